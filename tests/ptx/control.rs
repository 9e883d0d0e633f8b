//! Branches, calls and returns: lanes that part and where they meet again.

use super::support::{fault, kernel, kernel_with, run, threads, words};
use langevin::ptx::FaultKind;

#[test]
fn functions() {
    // The result of a loop that each thread leaves at its own time, by way of a structure.
    let globals = ".func (.param .b32 sum) power(.param .b32 base, .param .align 4 .b8 exponent[8]);\n\
        .func (.param .b32 sum) twice(.param .b32 x)\n{\n.reg .b32 %r<3>;\nld.param.u32 %r0, [x];\n{\n.param .b32 a;\n.param .align 4 .b8 b[8];\n\
        .param .b32 c;\nst.param.b32 [a+0], %r0;\nst.param.b32 [b+4], 1;\nst.param.b32 [b], 0;\ncall (c), power, (a, b);\n\
        ld.param.u32 %r1, [c];\n}\nadd.u32 %r1, %r1, %r0;\nst.param.b32 [sum], %r1;\nret;\n}\n\
        .func (.param .b32 sum) power(.param .b32 base, .param .align 4 .b8 exponent[8])\n{\n.reg .pred %p<2>;\n.reg .b32 %r<4>;\n.reg .b64 %rd0;\n\
        ld.param.u32 %r0, [base];\nmov.b64 %rd0, exponent;\nld.param.u32 %r1, [%rd0+4];\nmov.u32 %r2, 1;\nL:\nst.param.b32 [sum], %r2;\n\
        setp.eq.u32 %p1, %r1, 0;\n@%p1 ret;\nmul.lo.u32 %r2, %r2, %r0;\nsub.u32 %r1, %r1, 1;\nbra.uni L;\n}";
    let body = "mov.u32 %r30, %tid.x;\nmov.u32 %r9, 0;\nsetp.ne.u32 %p0, %r30, 3;\n{\n.param .b32 base;\n.param .align 8 .b8 exponent[8];\n\
        .param .b32 out1;\nst.param.b32 [base], 3;\nst.param.v2.b32 [exponent], {7, %r30};\ncall.uni (out1), power, (base, exponent);\n\
        ld.param.b32 %r9, [out1+0];\n}\n{\n.param .b32 x;\n.param .b32 y;\nst.param.b32 [x], %r9;\nst.param.b32 [y], 1000;\n\
        @%p0 call (y), twice, (x);\nld.param.b32 %r9, [y];\n}\nbar.warp.sync -1;\nmul.wide.u32 %d18, %r30, 4;\nadd.u64 %d19, %out, %d18;\n\
        st.global.u32 [%d19], %r9;\nret;";
    let (out, _) = run(&kernel_with(globals, body), 1, 5, 20, &[]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(words(&out), [2, 6, 18, 1000, 162]);
}

#[test]
fn nested_branches_meet_again() {
    // The vote after them sees the whole warp, or the member mask would be at fault.
    let got = threads(
        "and.b32 %r0, %r30, 1;\nand.b32 %r1, %r30, 2;\nsetp.eq.u32 %p0, %r0, 0;\nsetp.eq.u32 %p1, %r1, 0;\n@%p0 bra EVEN;\n\
         @%p1 bra ODD_LOW;\nmov.u32 %r9, 3;\nbra ODD_END;\nODD_LOW:\nmov.u32 %r9, 1;\nODD_END:\nactivemask.b32 %r5;\nadd.u32 %r9, %r9, 10;\n\
         bra END;\nEVEN:\nmov.u32 %r9, 0;\n@%p1 bra END;\nmov.u32 %r9, 2;\nEND:\nvote.sync.ballot.b32 %r4, %p0, -1;\n\
         setp.ne.u32 %p3, %r5, 0xaaaaaaaa;\nand.pred %p3, %p3, !%p0;\n@%p3 trap;",
        32,
    );
    assert_eq!(got, (0..32).map(|l| [0, 11, 2, 13][l % 4]).collect::<Vec<u32>>());
}

#[test]
fn loops_of_different_lengths_meet_again() {
    let got = threads(
        "mov.u32 %r9, 0;\nmov.u32 %r1, 0;\nLOOP:\nsetp.ge.u32 %p0, %r1, %r30;\n@%p0 bra OUT;\nadd.u32 %r9, %r9, %r1;\n\
         add.u32 %r1, %r1, 1;\nbra LOOP;\nOUT:\nbar.sync 0;",
        64,
    );
    assert_eq!(got, (0..64).map(|n: u32| (0..n).sum()).collect::<Vec<u32>>());
}

#[test]
fn threads_that_return_early_are_not_waited_for() {
    for leave in ["@%p0 ret;", "@%p0 bra LEAVE;", "@!%p0 bra STAY;\nst.global.u32 [%d0], 7;\nret;\nSTAY:"] {
        let text = kernel(&format!(
            "mov.u32 %r30, %tid.x;\nmul.wide.u32 %d0, %r30, 4;\nadd.u64 %d0, %d0, %out;\nst.global.u32 [%d0], 7;\n\
             setp.lt.u32 %p0, %r30, 40;\n{leave}\nbar.sync 0;\nst.global.u32 [%d0], 9;\nLEAVE:\nret;"
        ));
        let (out, _) = run(&text, 1, 70, 280, &[]).unwrap_or_else(|e| panic!("{leave}: {e}"));
        assert_eq!(words(&out), (0..70).map(|t| if t < 40 { 7 } else { 9 }).collect::<Vec<u32>>(), "{leave}");
    }
}

#[test]
fn labels_and_registers_in_braces_are_their_own() {
    let block = "{\n.reg .pred q;\n.reg .b32 n;\nmov.u32 n, 3;\nAGAIN:\nadd.u32 %r9, %r9, n;\nsub.u32 n, n, 1;\n\
        setp.ne.u32 q, n, 0;\n@q bra AGAIN;\n}\n";
    assert_eq!(threads(&format!("mov.u32 %r9, 0;\n{block}{block}"), 1), [12]);
}

#[test]
fn the_grid_and_its_places() {
    let text = kernel(
        "mov.u32 %r0, %ctaid.x;\nmov.u32 %r1, %nctaid.x;\nmad.lo.u32 %r2, %r1, 10, %r0;\nmul.wide.u32 %d0, %r0, 4;\n\
         add.u64 %d0, %d0, %out;\nst.global.u32 [%d0], %r2;\nret;",
    );
    let (out, _) = run(&text, 3, 1, 12, &[]).unwrap();
    assert_eq!(words(&out), [30, 31, 32]);
}

#[test]
fn endless_loops_and_traps_end() {
    assert_eq!(fault("L:\nbra L;", 1).0, FaultKind::Budget(100_000));
    assert_eq!(fault("mov.u32 %r0, %tid.x;\nsetp.eq.u32 %p0, %r0, 5;\n@%p0 trap;", 32).2, [5, 0, 0]);
    assert!(matches!(fault("bar.sync 16;", 1).0, FaultKind::Misuse(_)));
    assert!(matches!(
        fault("mov.u32 %r0, %tid.x;\nsetp.eq.u32 %p0, %r0, 5;\n@%p0 shfl.sync.idx.b32 %r1, %r0, 0, 31, 32;", 32).0,
        FaultKind::Misuse(_)
    ));
}
