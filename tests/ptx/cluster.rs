//! Clusters: blocks that meet, and reach each other's shared memory.

use super::support::{fault, kernel, run, threads, words};
use langevin::ptx::{Failure, FaultKind};

#[test]
fn clusters_of_one_block() {
    // What each thread wrote before the arrival is there for all behind the wait.
    let body = |wait: &str| {
        format!(
            ".shared .align 4 .b32 x[64];\nmov.u64 %d0, x;\nmul.wide.u32 %d1, %r30, 4;\nadd.u64 %d2, %d0, %d1;\nst.shared.u32 [%d2], %r30;\n\
             barrier.cluster.arrive.release.aligned;\n{wait}\nsub.u32 %r1, 63, %r30;\nmul.wide.u32 %d1, %r1, 4;\n\
             cvt.u32.u64 %r2, %d0;\nmapa.shared::cluster.u32 %r3, %r2, 0;\ncvt.u32.u64 %r4, %d1;\nadd.u32 %r3, %r3, %r4;\n\
             ld.shared::cluster.u32 %r9, [%r3];\nmov.u32 %r5, %cluster_ctarank;\nadd.u32 %r9, %r9, %r5;\n\
             barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;"
        )
    };
    assert_eq!(threads(&body("barrier.cluster.wait.acquire.aligned;"), 64), (0..64).rev().collect::<Vec<u32>>());
    let (kind, ..) = fault("barrier.cluster.wait.aligned;", 32);
    assert!(matches!(kind, FaultKind::Misuse(_)), "{kind}");
}

/// A kernel whose blocks are in clusters of `size`, each of one warp: %r5 is the block's place there.
fn clusters(size: u32, body: &str) -> String {
    let body = format!(
        ".shared .align 8 .b32 x[64];\nmov.u32 %r30, %tid.x;\nmov.u32 %r5, %cluster_ctarank;\nmov.u64 %d0, x;\ncvt.u32.u64 %r2, %d0;\n{body}\nret;"
    );
    kernel(&body).replace(")\n{", &format!(")\n.explicitcluster\n.reqnctapercluster {size}, 1, 1\n{{"))
}

const MEET: &str = "barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;";

/// Thread 0 of each block writes 10 times its place to where the next block of its cluster has it, then all go on with `between`, and thread 0 leaves what
/// it has been given in `out`, by blocks.
fn hand_on(before: &str, between: &str) -> String {
    clusters(
        4,
        &format!(
            "{before}\nsetp.ne.u32 %p0, %r30, 0;\nadd.u32 %r6, %r5, 1;\nmov.u32 %r7, %cluster_nctarank;\nrem.u32 %r6, %r6, %r7;\n\
             mul.lo.u32 %r8, %r5, 10;\nmapa.shared::cluster.u32 %r3, %r2, %r6;\n@!%p0 st.shared::cluster.u32 [%r3], %r8;\n{between}\n@%p0 ret;\n\
             ld.shared.u32 %r9, [x];\nmov.u32 %r10, %ctaid.x;\nmul.wide.u32 %d1, %r10, 4;\nadd.u64 %d1, %d1, %out;\nst.global.u32 [%d1], %r9;"
        ),
    )
}

#[test]
fn blocks_of_a_cluster_write_to_each_other() {
    let (out, _) = run(&hand_on(MEET, MEET), 8, 32, 32, &[]).unwrap();
    assert_eq!(words(&out), [30, 0, 10, 20, 30, 0, 10, 20]);
    // Half of the way there by generic addresses, and back by a read.
    let body = format!(
        "st.shared.u32 [x], %r5;\n{MEET}\nxor.b32 %r6, %r5, 1;\nmapa.shared::cluster.u32 %r3, %r2, %r6;\nld.shared::cluster.u32 %r9, [%r3];\n\
         cvta.shared.u64 %d2, %d0;\nmapa.u64 %d2, %d2, %r6;\nld.u32 %r11, [%d2];\nadd.u32 %r9, %r9, %r11;\nmov.u32 %r10, %ctaid.x;\n\
         mul.wide.u32 %d1, %r10, 4;\nadd.u64 %d1, %d1, %out;\nst.global.u32 [%d1], %r9;\n{MEET}"
    );
    let (out, _) = run(&clusters(2, &body), 4, 1, 16, &[]).unwrap();
    assert_eq!(words(&out), [2, 0, 2, 0]);
    let places = "mov.u32 %r6, %clusterid.x;\nmov.u32 %r7, %nclusterid.x;\nmov.u32 %r8, %cluster_ctaid.x;\nmov.u32 %r9, %cluster_nctaid.x;\n\
                  mad.lo.u32 %r9, %r9, 10, %r8;\nmad.lo.u32 %r9, %r7, 100, %r9;\nmad.lo.u32 %r9, %r6, 1000, %r9;\nmov.u32 %r10, %ctaid.x;\n\
                  mul.wide.u32 %d1, %r10, 4;\nadd.u64 %d1, %d1, %out;\nst.global.u32 [%d1], %r9;";
    let (out, _) = run(&clusters(2, places), 6, 1, 24, &[]).unwrap();
    assert_eq!(words(&out), [320, 321, 1320, 1321, 2320, 2321]);
}

#[test]
fn what_is_wrong_between_blocks_of_a_cluster() {
    let fault = |text: &str| match run(text, 4, 32, 32, &[]) {
        Err(Failure::Fault(fault)) => fault.kind,
        other => panic!("{other:?}"),
    };
    // Nothing orders what another block wrote, and what it writes.
    assert!(matches!(fault(&hand_on(MEET, "")), FaultKind::Unwritten { .. } | FaultKind::InFlight { .. }));
    let own = format!("@!%p0 st.shared.u32 [x], 7;\n{MEET}");
    assert!(matches!(fault(&hand_on(MEET, &own)), FaultKind::Race { .. } | FaultKind::InFlight { .. }));
    // A block that may not have begun, one that may have ended, one that is not there.
    assert!(matches!(fault(&hand_on("", MEET)), FaultKind::Misuse(_)));
    let late = clusters(
        4,
        &format!(
            "st.shared.u32 [x], 1;\n{MEET}\nsetp.eq.u32 %p0, %r5, 0;\n@%p0 ret;\nmapa.shared::cluster.u32 %r3, %r2, 0;\nld.shared::cluster.u32 %r9, [%r3];"
        ),
    );
    assert!(matches!(fault(&late), FaultKind::Misuse(_)));
    // Whichever of the two comes first: block 0 is done before the one that it reads ends.
    let early = format!(
        "st.shared.u32 [x], 1;\n{MEET}\nsetp.ne.u32 %p0, %r5, 0;\n@%p0 ret;\nmapa.shared::cluster.u32 %r3, %r2, 2;\nld.shared::cluster.u32 %r9, [%r3];"
    );
    assert!(matches!(fault(&clusters(4, &early)), FaultKind::Misuse(_)));
    // An arrival that promises nothing of what was written elsewhere.
    let relaxed = MEET.replace("arrive.release", "arrive.relaxed");
    assert!(matches!(fault(&hand_on(MEET, &relaxed)), FaultKind::Misuse(_)));
    let beyond = format!(
        "st.shared.u32 [x], 1;\n{MEET}\nmapa.shared::cluster.u32 %r3, %r2, 4;\nld.shared::cluster.u32 %r9, [%r3];"
    );
    assert!(matches!(fault(&clusters(4, &beyond)), FaultKind::Misuse(_)));
    let far = beyond.replace("%r2, 4", "%r2, 256");
    assert!(matches!(fault(&clusters(4, &far)), FaultKind::Misuse(_)));
    // Blocks that are left over, and more than a GPU's clusters have.
    assert!(matches!(run(&clusters(4, ""), 6, 32, 32, &[]), Err(Failure::Request(_))));
    assert!(matches!(run(&clusters(16, ""), 16, 32, 32, &[]), Err(Failure::Request(_))));
    // Waits for a block that never comes.
    let alone = format!("setp.ne.u32 %p0, %r5, 0;\n@%p0 bra AWAY;\n{MEET}\nret;\nAWAY:\nbar.sync 1, 64;");
    assert!(matches!(fault(&clusters(4, &alone)), FaultKind::BarrierDivergence(_)));
}
