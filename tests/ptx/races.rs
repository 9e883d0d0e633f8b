//! Races in shared memory, between warps and within one.

use super::support::{BODY, fault, kernel, run};
use langevin::ptx::FaultKind;

#[test]
fn races_in_shared_memory() {
    let prefix = ".shared .align 4 .b32 x[64];\nmov.u64 %d0, x;\nmov.u32 %r30, %tid.x;\nmul.wide.u32 %d1, %r30, 4;\nadd.u64 %d2, %d0, %d1;\n\
        sub.u32 %r1, 63, %r30;\nmul.wide.u32 %d3, %r1, 4;\nadd.u64 %d3, %d0, %d3;\n";
    let races: &[&str] = &[
        // Write and read, whichever warp comes first.
        "st.shared.u32 [%d2], 0;\nbar.sync 0;\nst.shared.u32 [%d2], 1;\nld.shared.u32 %r2, [%d3];",
        // Write after read.
        "st.shared.u32 [%d2], 1;\nbar.sync 0;\nld.shared.u32 %r2, [%d3];\nst.shared.u32 [%d2], 2;",
        // Two writes.
        "st.shared.u32 [%d0], %r30;",
        // A warp's own sync does not order two warps.
        "st.shared.u32 [%d2], 0;\nbar.sync 0;\nst.shared.u32 [%d2], 1;\nbar.warp.sync -1;\nld.shared.u32 %r2, [%d3];",
        // Atomics and ordinary writes.
        "st.shared.u32 [%d2], 1;\nbar.sync 0;\nred.shared.add.u32 [x], 1;\nsetp.eq.u32 %p0, %r30, 40;\n@%p0 st.shared.u32 [x], 1;",
    ];
    for body in races {
        let (kind, ..) = fault(&format!("{prefix}{body}\nret;"), 64);
        assert!(matches!(kind, FaultKind::Race { .. }), "{body}: {kind}");
    }
    let (kind, line, thread) = fault(&format!("{prefix}{}\nret;", races[0]), 64);
    assert_eq!((line, thread), (BODY + 10, [0, 0, 0]));
    assert!(kind.to_string().contains("thread [63, 0, 0] read it in line 27"), "{kind}");

    let sound = [
        "st.shared.u32 [%d2], 1;\nbar.sync 0;\nld.shared.u32 %r2, [%d3];\nbar.sync 0;\nst.shared.u32 [%d2], 2;",
        "st.shared.u32 [%d2], 1;\nld.shared.u32 %r2, [%d2];",
        "st.shared.u32 [%d2], 1;\nbar.sync 0;\natom.shared.add.u32 %r2, [x], 1;",
        "st.volatile.shared.u32 [x], 1;\nld.volatile.shared.u32 %r2, [x];",
    ];
    for body in sound {
        run(&kernel(&format!("{prefix}{body}\nret;")), 1, 64, 64, &[]).unwrap_or_else(|e| panic!("{body}: {e}"));
    }
}

#[test]
fn races_within_a_warp() {
    let prefix = ".shared .align 4 .b32 x[32];\nmov.u64 %d0, x;\nmov.u32 %r30, %tid.x;\nmul.wide.u32 %d1, %r30, 4;\nadd.u64 %d2, %d0, %d1;\n";
    let (kind, ..) = fault(&format!("{prefix}st.shared.u32 [%d2], 1;\nld.shared.u32 %r2, [x+4];"), 32);
    assert!(matches!(kind, FaultKind::Race { .. }), "{kind}");
    for sound in ["st.shared.u32 [%d2], 1;\nbar.warp.sync -1;\nld.shared.u32 %r2, [x+4];", "st.shared.u32 [x], %r30;"] {
        run(&kernel(&format!("{prefix}{sound}\nret;")), 1, 32, 64, &[]).unwrap();
    }
}
