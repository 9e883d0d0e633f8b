//! Clusters: blocks that meet, and reach each other's shared memory.

use super::support::{fault, kernel, run, threads, words};
use langevin::ptx::{Failure, Fault, FaultKind};

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
    assert!(matches!(fault(&hand_on(MEET, "")), FaultKind::Unwritten { .. } | FaultKind::Race { .. }));
    let own = format!("@!%p0 st.shared.u32 [x], 7;\n{MEET}");
    assert!(matches!(fault(&hand_on(MEET, &own)), FaultKind::Race { .. }));
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

/// A statement that one thread of one block alone executes; %r6 is the block.
fn by(block: u32, thread: u32, statement: &str) -> String {
    format!("setp.eq.u32 %p1, %r6, {block};\nsetp.eq.and.u32 %p1, %r30, {thread}, %p1;\n@%p1 {statement}\n")
}

/// What the statements do in clusters of four blocks of two warps, of which block 6 is in the second. Its thread 0 has written a
/// word before all met, and %r3 is the address of that word.
fn around_a_word_of_block_6(statements: &str) -> Result<(), Box<Fault>> {
    let text = format!(
        "mov.u32 %r6, %ctaid.x;\n{}{MEET}\nmapa.shared::cluster.u32 %r3, %r2, 2;\n{statements}\n{MEET}",
        by(6, 0, "st.shared.u32 [x], 0;")
    );
    match run(&clusters(4, &text), 8, 64, 32, &[]) {
        Ok(_) => Ok(()),
        Err(Failure::Fault(fault)) => Err(fault),
        Err(other) => panic!("{other}"),
    }
}

/// That the statements race, at a thread of a block, and what the fault says.
#[track_caller]
fn races(statements: &str, block: u32, thread: u32, words: &str) {
    let Err(fault) = around_a_word_of_block_6(statements) else { panic!("no fault:\n{statements}") };
    assert_eq!((fault.block, fault.thread), ([block, 0, 0], [thread, 0, 0]), "{fault}\n{statements}");
    let words = format!("{words} it in line");
    assert!(fault.kind.to_string().contains(&words), "{fault}\nnot: {words}\n{statements}");
}

#[track_caller]
fn is_ordered(statements: &str) {
    around_a_word_of_block_6(statements).unwrap_or_else(|fault| panic!("{fault}\n{statements}"));
}

const WRITE: &str = "st.shared::cluster.u32 [%r3], 1;";
const READ: &str = "ld.shared::cluster.u32 %r4, [%r3];";

#[test]
fn two_blocks_in_the_memory_of_a_third() {
    let (first, second) = (by(4, 0, WRITE), by(5, 0, WRITE));
    let memory = "races in shared memory of block [6, 0, 0] at 0x400:";
    let wrote = format!("{memory} writes here, and no barrier since thread [0, 0, 0] of block [4, 0, 0] wrote");
    races(&format!("{first}{second}"), 5, 0, &wrote);
    // A barrier of each block is none between them.
    races(&format!("{first}bar.sync 0;\n{second}"), 5, 0, &wrote);
    is_ordered(&format!("{first}{MEET}\n{second}"));
    let read = by(5, 40, READ);
    let reads = format!("{memory} reads here, and no barrier since thread [0, 0, 0] of block [4, 0, 0] wrote");
    races(&format!("{first}{read}"), 5, 40, &reads);
    races(
        &format!("{}{}", by(4, 40, READ), second),
        5,
        0,
        &format!("{memory} writes here, and no barrier since thread [40, 0, 0] of block [4, 0, 0] read"),
    );
    is_ordered(&format!("{first}{MEET}\n{read}{}", by(7, 0, READ)));
    // Accesses that are meant to meet do not race.
    let relaxed = "st.relaxed.cluster.shared::cluster.u32 [%r3], 1;";
    is_ordered(&format!("{}{}", by(4, 0, relaxed), by(5, 0, relaxed)));
}

#[test]
fn two_warps_of_a_block_in_the_memory_of_another() {
    let (first, second) = (by(4, 0, WRITE), by(4, 33, WRITE));
    let wrote = "memory of block [6, 0, 0] at 0x400: writes here, and no barrier since thread [0, 0, 0] wrote";
    races(&format!("{first}{second}"), 4, 33, wrote);
    races(&format!("{first}bar.warp.sync -1;\n{second}"), 4, 33, wrote);
    is_ordered(&format!("{first}bar.sync 0;\n{second}"));
    // A barrier object orders them too.
    let object = ".shared .align 8 .b64 object;\n@%p0 mbarrier.init.shared.b64 [object], 1;\nbar.sync 0;\n";
    let hand_over = "setp.lt.u32 %p3, %r30, 32;\n@%p3 bra ARRIVE;\nWAIT:\nmbarrier.try_wait.parity.shared.b64 %p4, [object], 0;\n\
                     @!%p4 bra WAIT;\nbra DONE;\nARRIVE:\n@%p0 mbarrier.arrive.shared.b64 %d4, [object];\nDONE:\n";
    let start = "setp.eq.u32 %p0, %r30, 0;\n";
    is_ordered(&format!("{start}{object}{first}{hand_over}{second}"));
    // Two lanes of a warp are ordered by its sync alone.
    let lane = by(4, 1, WRITE);
    races(&format!("{first}{lane}"), 4, 1, wrote);
    is_ordered(&format!("{first}bar.warp.sync -1;\n{lane}"));
}

#[test]
fn a_block_and_those_that_visit_it() {
    let (write, read) = (by(4, 0, WRITE), by(4, 0, READ));
    let memory = "in shared memory at 0x400:";
    let wrote = format!("{memory} reads here, and no barrier since thread [0, 0, 0] of block [4, 0, 0] wrote");
    races(&format!("{write}{}", by(6, 0, "ld.shared.u32 %r4, [x];")), 6, 0, &wrote);
    is_ordered(&format!("{write}{MEET}\n{}", by(6, 32, "ld.shared.u32 %r4, [x];")));
    // Whole words and parts of them.
    let was_read = format!("{memory} writes here, and no barrier since thread [0, 0, 0] of block [4, 0, 0] read");
    for store in ["st.shared.u32 [x], 1;", "st.shared.u8 [x], 1;"] {
        races(&format!("{read}{}", by(6, 0, store)), 6, 0, &was_read);
        is_ordered(&format!("{read}{MEET}\n{}", by(6, 0, store)));
    }
    let owner =
        "of block [6, 0, 0] at 0x400: writes here, and no barrier since thread [0, 0, 0] of block [6, 0, 0] read";
    races(&format!("{}{}", by(6, 0, "ld.shared.u32 %r4, [x];"), by(7, 0, WRITE)), 7, 0, owner);
}

/// An arrival releases what its warp did and knows of, not what others did beside it.
#[test]
fn arrivals_release_what_their_warp_knows() {
    let write = by(6, 32, "st.shared.u32 [x], 1;");
    let meet = "setp.lt.u32 %p3, %r30, 32;\n@%p3 bra RELEASE;\nbarrier.cluster.arrive.relaxed.aligned;\nbra ARRIVED;\nRELEASE:\n\
                barrier.cluster.arrive.release.aligned;\nARRIVED:\nbarrier.cluster.wait.acquire.aligned;\n";
    let read = by(4, 0, READ);
    let wrote =
        "of block [6, 0, 0] at 0x400: reads here, and no barrier since thread [32, 0, 0] of block [6, 0, 0] wrote";
    races(&format!("bar.sync 0;\n{write}{meet}{read}"), 4, 0, wrote);
    is_ordered(&format!("bar.sync 0;\n{write}bar.sync 0;\n{meet}{read}"));
}

#[test]
fn what_a_copy_brings_is_there_for_other_blocks_behind_its_wait() {
    let body = |wait: &str| {
        clusters(
            2,
            &format!(
                ".shared .align 8 .b64 object;\nmov.u64 %d1, object;\nsetp.ne.u32 %p0, %r30, 0;\n@%p0 bra ISSUED;\nmbarrier.init.shared::cta.b64 [%d1], 1;\n\
                 mbarrier.arrive.expect_tx.shared::cta.b64 %d2, [%d1], 64;\n\
                 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%d0], [%in], 64, [%d1];\n{wait}\nISSUED:\n{MEET}\n\
                 xor.b32 %r6, %r5, 1;\nmapa.shared::cluster.u32 %r3, %r2, %r6;\n@!%p0 ld.shared::cluster.u32 %r9, [%r3+8];\nmov.u32 %r10, %ctaid.x;\n\
                 mul.wide.u32 %d3, %r10, 4;\nadd.u64 %d3, %d3, %out;\n@!%p0 st.global.u32 [%d3], %r9;\n{MEET}"
            ),
        )
    };
    let input: Vec<u8> = (0..64).collect();
    let wait = "WAIT:\nmbarrier.try_wait.parity.shared::cta.b64 %p1, [%d1], 0;\n@!%p1 bra WAIT;";
    let (out, _) = run(&body(wait), 2, 32, 8, &input).unwrap();
    assert_eq!(words(&out), [0x0b0a_0908; 2]);
    match run(&body(""), 2, 32, 8, &input) {
        Err(Failure::Fault(fault)) => assert!(matches!(fault.kind, FaultKind::InFlight { .. }), "{fault}"),
        other => panic!("{other:?}"),
    }
}

/// Who has waited for another block's copies, as all have behind the first meeting, knows nothing of those of its own.
#[test]
fn copies_of_two_blocks_are_not_mixed_up() {
    let wait = |label: &str| {
        format!("{label}:\nmbarrier.try_wait.parity.shared::cta.b64 %p1, [%d1], 0;\n@!%p1 bra {label};\n")
    };
    let body = |between: &str| {
        let (first, second) = (wait("FIRST"), wait("SECOND"));
        clusters(
            2,
            &format!(
                ".shared .align 8 .b64 object;\nmov.u64 %d1, object;\nsetp.ne.u32 %p0, %r30, 0;\nsetp.ne.u32 %p2, %r5, 0;\nsetp.lt.u32 %p3, %r30, 32;\n\
                 @%p0 bra ISSUED;\nst.shared.u32 [x+128], 0;\nmbarrier.init.shared::cta.b64 [%d1], 1;\nmbarrier.arrive.expect_tx.shared::cta.b64 %d2, [%d1], 64;\n\
                 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%d0], [%in], 64, [%d1];\n@%p2 bra ISSUED;\n{first}ISSUED:\n{MEET}\n\
                 or.pred %p5, %p0, !%p2;\n@%p5 bra LANDED;\n{second}st.volatile.shared.u32 [x+128], 1;\nLANDED:\n{between}\n\
                 or.pred %p5, %p3, !%p2;\n@%p5 bra END;\nPOLL:\nld.volatile.shared.u32 %r4, [x+128];\nsetp.eq.u32 %p4, %r4, 0;\n@%p4 bra POLL;\n\
                 ld.shared.u32 %r9, [x];\nEND:"
            ),
        )
    };
    run(&body("bar.sync 0;"), 2, 64, 8, &[7; 64]).unwrap();
    match run(&body(""), 2, 64, 8, &[7; 64]) {
        Err(Failure::Fault(fault)) => assert!(matches!(fault.kind, FaultKind::InFlight { .. }), "{fault}"),
        other => panic!("{other:?}"),
    }
}
