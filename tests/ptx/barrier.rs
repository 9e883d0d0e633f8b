//! Barriers of a block and in shared memory.

use super::support::{BODY, fault, threads};
use langevin::ptx::FaultKind;

#[test]
fn barriers_that_reduce() {
    let count = "setp.lt.u32 %p0, %r30, 40;\nbar.red.popc.u32 %r9, 1, %p0;";
    assert_eq!(threads(count, 64), vec![40; 64]);
    for (name, expected) in [("and", 0), ("or", 1)] {
        let got = threads(
            &format!("setp.lt.u32 %p0, %r30, 40;\nbar.red.{name}.pred %p1, 1, %p0;\nselp.u32 %r9, 1, 0, %p1;"),
            64,
        );
        assert_eq!(got, vec![expected; 64]);
    }
    // One warp tells the other, by a barrier of 64 threads at which it does not wait.
    let handed = threads(
        ".shared .u32 x[32];\nmov.u64 %d0, x;\nand.b32 %r0, %r30, 31;\nmul.wide.u32 %d1, %r0, 4;\nadd.u64 %d0, %d0, %d1;\n\
         mov.u32 %r9, 0;\nsetp.lt.u32 %p0, %r30, 32;\n@%p0 bra WRITE;\nbar.sync 3, 64;\nld.shared.u32 %r9, [%d0];\nbra DONE;\n\
         WRITE:\nst.shared.u32 [%d0], %r30;\nbar.arrive 3, 64;\nDONE:",
        64,
    );
    assert_eq!(handed[32..], (0..32).collect::<Vec<u32>>());
}

#[test]
fn barrier_divergence() {
    let low = "mov.u32 %r30, %tid.x;\nsetp.lt.u32 %p0, %r30, 16;\n";
    for body in [
        format!("{low}@%p0 bar.sync 0;\nret;"),
        format!("{low}@%p0 bra A;\nbar.sync 0;\nbra B;\nA:\nbar.sync 0;\nB:\nst.global.u32 [%out], 1;\nret;"),
        format!("{low}@%p0 bra A;\nbra B;\nA:\nbar.warp.sync -1;\nB:\nst.global.u32 [%out], 1;\nret;"),
        format!("{low}@%p0 shfl.sync.idx.b32 %r1, %r30, 0, 31, -1;\nret;"),
        format!("{low}shfl.sync.idx.b32 %r1, %r30, 0, 31, 0xffff;\nret;"),
        // Two warps at two barriers.
        "mov.u32 %r30, %tid.x;\nshr.u32 %r1, %r30, 5;\nbar.sync %r1;\nret;".to_owned(),
        "mov.u32 %r30, %tid.x;\nsetp.lt.u32 %p0, %r30, 32;\n@%p0 bar.sync 1, 64;\n@!%p0 bar.sync 1, 96;\nret;"
            .to_owned(),
        "bar.sync 1, 96;\nret;".to_owned(),
    ] {
        let (kind, line, _) = fault(&body, 64);
        assert!(matches!(kind, FaultKind::BarrierDivergence(_)), "{body}: {kind}");
        assert!(line >= BODY);
    }
}

#[test]
fn barrier_objects_count_arrivals() {
    // 64 threads arrive; then the phase is over, and what each wrote is there for all.
    let got = threads(
        ".shared .align 8 .b64 object;\n.shared .align 4 .b32 x[64];\nmov.u64 %d1, object;\nmov.u64 %d0, x;\nsetp.ne.u32 %p0, %r30, 0;\n\
         @%p0 bra READY;\nmbarrier.init.shared.b64 [%d1], 64;\nREADY:\nbar.sync 0;\nmul.wide.u32 %d2, %r30, 4;\nadd.u64 %d3, %d0, %d2;\n\
         st.shared.u32 [%d3], %r30;\nmbarrier.arrive.shared.b64 %d4, [%d1];\nWAIT:\nmbarrier.test_wait.shared.b64 %p1, [%d1], %d4;\n\
         @!%p1 bra WAIT;\nsub.u32 %r1, 63, %r30;\nmul.wide.u32 %d2, %r1, 4;\nadd.u64 %d3, %d0, %d2;\nld.shared.u32 %r9, [%d3];",
        64,
    );
    assert_eq!(got, (0..64).rev().collect::<Vec<u32>>());
    let (kind, ..) = fault(
        ".shared .align 8 .b64 object;\nmbarrier.init.shared.b64 [object], 1;\nmbarrier.arrive.shared.b64 _, [object], 2;",
        1,
    );
    assert!(matches!(kind, FaultKind::Misuse(_)), "{kind}");
}
