//! Copies that run beside the threads: of a lane's bytes, in bulk, and of tensors' tiles.

use super::support::{fault, kernel, run, words};
use langevin::ptx::tensor::{Element, Swizzle};
use langevin::ptx::{Counters, Failure, FaultKind, Launch, Memory, Module, TensorMap};

/// Every thread copies 16 bytes of the input to its place in shared memory; then the statements.
fn copying(statements: &str) -> String {
    format!(
        ".shared .align 16 .b8 x[1024];\nmov.u32 %r30, %tid.x;\nmul.wide.u32 %d1, %r30, 16;\nmov.u64 %d0, x;\nadd.u64 %d2, %d0, %d1;\n\
         add.u64 %d3, %in, %d1;\ncp.async.cg.shared.global [%d2], [%d3], 16;\n{statements}\nret;"
    )
}

#[test]
fn asynchronous_copies_have_to_be_waited_for() {
    let input = [7u8; 1024];
    let of = |statements: &str, block| run(&kernel(&copying(statements)), 1, block, 64, &input);
    let kind = |statements: &str, block| match of(statements, block) {
        Err(Failure::Fault(fault)) => fault.kind,
        other => panic!("{statements}: {other:?}"),
    };
    let read = "ld.shared.u32 %r1, [%d2];\nst.global.u32 [%out], %r1;";
    let (out, _) = of(&format!("cp.async.commit_group;\ncp.async.wait_group 0;\n{read}"), 1).unwrap();
    assert_eq!(out[..4], [7; 4]);
    assert!(of(&format!("cp.async.wait_all;\n{read}"), 1).is_ok());
    assert!(matches!(kind(read, 1), FaultKind::InFlight { line: 22, .. }));
    // A group that was not committed is not waited for, and one group may be left.
    assert!(matches!(kind(&format!("cp.async.wait_group 0;\n{read}"), 1), FaultKind::InFlight { .. }));
    assert!(matches!(
        kind(&format!("cp.async.commit_group;\ncp.async.wait_group 1;\n{read}"), 1),
        FaultKind::InFlight { .. }
    ));
    assert!(matches!(kind("st.shared.u32 [%d2], 1;", 1), FaultKind::InFlight { .. }));
    // Waiting is for one's own copies; those of others are behind a barrier.
    let other = "xor.b32 %r2, %r30, 32;\nmul.wide.u32 %d4, %r2, 16;\nadd.u64 %d4, %d0, %d4;\nld.shared.u32 %r1, [%d4];";
    assert!(of(&format!("cp.async.wait_all;\nbar.sync 0;\n{other}"), 64).is_ok());
    let early = kind(&format!("cp.async.wait_all;\n{other}"), 64);
    assert!(
        matches!(early, FaultKind::Race { .. } | FaultKind::Unwritten { .. } | FaultKind::InFlight { .. }),
        "{early}"
    );
    // Bytes beyond the source's are zero.
    let (out, _) = of(
        "cp.async.wait_all;\nmov.u32 %r3, 4;\ncp.async.ca.shared.global [%d2], [%d3], 8, %r3;\ncp.async.wait_all;\n\
         ld.shared.u64 %d5, [%d2];\nst.global.u64 [%out], %d5;",
        1,
    )
    .unwrap();
    assert_eq!(out[..8], [7, 7, 7, 7, 0, 0, 0, 0]);
}

/// A bulk copy of 64 bytes that `expected` are announced of, by thread 0; then the statements, in which all may wait.
fn bulk(expected: u32, statements: &str) -> Result<(Vec<u8>, Counters), Failure> {
    let text = kernel(&format!(
        ".shared .align 16 .b8 x[64];\n.shared .align 8 .b64 object;\nmov.u32 %r30, %tid.x;\nmov.u64 %d0, x;\nmov.u64 %d1, object;\n\
         setp.ne.u32 %p0, %r30, 0;\n@%p0 bra READY;\nmbarrier.init.shared::cta.b64 [%d1], 1;\nfence.mbarrier_init.release.cluster;\n\
         READY:\nbar.sync 0;\n@%p0 bra ISSUED;\nmbarrier.arrive.expect_tx.shared::cta.b64 %d2, [%d1], {expected};\n\
         cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%d0], [%in], 64, [%d1];\nISSUED:\n{statements}\n\
         and.b32 %r1, %r30, 15;\nmul.wide.u32 %d3, %r1, 4;\nadd.u64 %d4, %d0, %d3;\nadd.u64 %d5, %out, %d3;\n\
         ld.shared.u32 %r2, [%d4];\nst.global.u32 [%d5], %r2;\nret;"
    ));
    run(&text, 1, 64, 64, &(0..64).collect::<Vec<u8>>())
}

#[test]
fn bulk_copies_complete_barrier_objects() {
    let wait = "WAIT:\nmbarrier.try_wait.parity.shared::cta.b64 %p1, [%d1], 0;\n@!%p1 bra WAIT;";
    let (out, counters) = bulk(64, wait).unwrap();
    assert_eq!(out, (0..64).collect::<Vec<u8>>());
    assert_eq!((counters.loads.requests, counters.loads.distinct_bytes), (1, 64));
    let kind = |result| match result {
        Err(Failure::Fault(fault)) => fault.kind,
        other => panic!("{other:?}"),
    };
    assert!(matches!(kind(bulk(64, "")), FaultKind::InFlight { .. } | FaultKind::Unwritten { .. }));
    // One warp's waiting does not help the other.
    let half = "setp.lt.u32 %p2, %r30, 32;\n@!%p2 bra SKIP;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 %p1, [%d1], 0;\n@!%p1 bra WAIT;\nSKIP:";
    assert!(matches!(
        kind(bulk(64, half)),
        FaultKind::InFlight { .. } | FaultKind::Race { .. } | FaultKind::Unwritten { .. }
    ));
    // More is announced than comes.
    assert_eq!(kind(bulk(80, wait)), FaultKind::Budget(100_000));
}

/// Copies arrive at a barrier object by themselves: behind its phase they are there for all, and before it for nobody.
#[test]
fn copies_arrive_at_barrier_objects() {
    let body = |wait: &str| {
        format!(
            ".shared .align 16 .b8 x[1024];\n.shared .align 8 .b64 object;\nmov.u32 %r30, %tid.x;\nmov.u64 %d0, x;\nmov.u64 %d6, object;\n\
             setp.ne.u32 %p0, %r30, 0;\n@%p0 bra READY;\nmbarrier.init.shared.b64 [%d6], 64;\nREADY:\nbar.sync 0;\n\
             mul.wide.u32 %d1, %r30, 16;\nadd.u64 %d2, %d0, %d1;\nadd.u64 %d3, %in, %d1;\ncp.async.cg.shared.global [%d2], [%d3], 16;\n\
             cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%d6];\n{wait}\nxor.b32 %r2, %r30, 32;\nmul.wide.u32 %d4, %r2, 16;\n\
             add.u64 %d4, %d0, %d4;\nld.shared.u32 %r1, [%d4];\nmul.wide.u32 %d5, %r30, 4;\nadd.u64 %d5, %out, %d5;\n\
             st.global.u32 [%d5], %r1;\nret;"
        )
    };
    let input: Vec<u8> = (0..1024).map(|i| (i / 16) as u8).collect();
    let of = |wait: &str| run(&kernel(&body(wait)), 1, 64, 256, &input);
    let (out, _) = of("WAIT:\nmbarrier.try_wait.parity.shared.b64 %p1, [%d6], 0;\n@!%p1 bra WAIT;").unwrap();
    assert_eq!(words(&out), (0..64).map(|i| 0x0101_0101 * (i ^ 32)).collect::<Vec<u32>>());
    let Err(Failure::Fault(fault)) = of("") else { panic!("nobody waits for the copies") };
    let kind = fault.kind;
    assert!(
        matches!(kind, FaultKind::InFlight { .. } | FaultKind::Race { .. } | FaultKind::Unwritten { .. }),
        "{kind}"
    );
}

#[test]
fn bulk_copies_to_global_memory() {
    let body = |between: &str| {
        format!(
            ".shared .align 16 .b8 x[64];\nmov.u64 %d0, x;\nmov.u32 %r30, %tid.x;\nmul.wide.u32 %d1, %r30, 4;\nadd.u64 %d2, %d0, %d1;\n\
             st.shared.u32 [%d2], %r30;\nfence.proxy.async.shared::cta;\nbar.sync 0;\nsetp.ne.u32 %p0, %r30, 0;\n@%p0 bra END;\n\
             cp.async.bulk.global.shared::cta.bulk_group [%out], [%d0], 64;\ncp.async.bulk.commit_group;\n{between}\nst.shared.u32 [%d2], 9;\n\
             cp.async.bulk.wait_group 0;\nEND:\nret;"
        )
    };
    let (out, _) = run(&kernel(&body("cp.async.bulk.wait_group.read 0;")), 1, 16, 64, &[]).unwrap();
    assert_eq!(words(&out), (0..16).collect::<Vec<u32>>());
    // Another warp that changes the source before the wait is found, though a barrier is between them.
    let text = kernel(
        ".shared .align 16 .b8 x[64];\nmov.u64 %d0, x;\nmov.u32 %r30, %tid.x;\nsetp.eq.u32 %p0, %r30, 0;\n\
         @%p0 st.shared.v4.u32 [%d0], {1, 2, 3, 4};\n@%p0 cp.async.bulk.global.shared::cta.bulk_group [%out], [%d0], 16;\n\
         @%p0 cp.async.bulk.commit_group;\nbar.sync 0;\nsetp.eq.u32 %p1, %r30, 32;\n@%p1 st.shared.u32 [%d0], 9;\n\
         @%p0 cp.async.bulk.wait_group 0;\nret;",
    );
    match run(&text, 1, 64, 64, &[]) {
        Err(Failure::Fault(fault)) => assert!(matches!(fault.kind, FaultKind::Race { .. }), "{fault}"),
        other => panic!("{other:?}"),
    }
}

/// One thread brings a tile of `from` and sends it to `to`; `[axes]` coordinates as given.
fn move_tile(
    from: &TensorMap,
    at: &[i32],
    to: &TensorMap,
    there: &[i32],
    memory: &mut Memory,
) -> Result<Counters, Failure> {
    let axes = at.len();
    let list = |c: &[i32]| c.iter().map(|c| c.to_string()).collect::<Vec<_>>().join(", ");
    let bytes = from.tile.iter().zip(&from.steps).map(|(n, s)| n.div_ceil(*s)).product::<u32>() * 4;
    let text = format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .align 64 .b8 a[128], .param .align 64 .b8 b[128])\n{{\n\
         .reg .pred %p<2>;\n.reg .b64 %d<4>;\n.shared .align 1024 .b8 x[8192];\n.shared .align 8 .b64 object;\nmov.b64 %d0, a;\ncvta.param.u64 %d1, %d0;\n\
         mov.b64 %d2, b;\ncvta.param.u64 %d3, %d2;\nprefetch.tensormap [%d1];\nmbarrier.init.shared.b64 [object], 1;\n\
         mbarrier.arrive.expect_tx.shared.b64 _, [object], {bytes};\n\
         cp.async.bulk.tensor.{axes}d.shared::cluster.global.mbarrier::complete_tx::bytes [x], [%d1, {{{}}}], [object];\n\
         L:\nmbarrier.try_wait.parity.shared.b64 %p0, [object], 0;\n@!%p0 bra L;\nfence.proxy.async.shared::cta;\n\
         cp.async.bulk.tensor.{axes}d.global.shared::cta.tile.bulk_group [%d3, {{{}}}], [x];\ncp.async.bulk.commit_group;\n\
         cp.async.bulk.wait_group.read 0;\nst.shared.u32 [x], 0;\nret;\n}}\n",
        list(at),
        list(there)
    );
    let launch = Launch { budget: 10_000, ..Launch::new([1, 1, 1], [1, 1, 1]) };
    let launch = launch.argument(from.encode().unwrap()).argument(to.encode().unwrap());
    Module::parse(&text).unwrap_or_else(|e| panic!("{e}")).entry("k").unwrap().launch(memory, &launch)
}

#[test]
fn tiles_of_tensors() {
    let x: Vec<u32> = (0..6 * 40).collect();
    let mut memory = Memory::new();
    let from = memory.allocate_with("from", bytemuck::cast_slice(&x)).unwrap();
    // Two axes, out of the tensor on two sides, with every swizzle on both ways: what comes back is what went.
    for (swizzle, columns) in [(Swizzle::None, 12), (Swizzle::B32, 8), (Swizzle::B64, 16), (Swizzle::B128, 32)] {
        let to = memory.allocate("to", 4 * 16 * columns).unwrap();
        let a = TensorMap::dense(Element::U32, from, &[40, 6], &[columns as u32, 16], swizzle);
        let b = TensorMap::dense(Element::U32, to, &[columns as u64, 16], &[columns as u32, 16], swizzle);
        let counters = move_tile(&a, &[32, -2], &b, &[0, 0], &mut memory).unwrap();
        let got = words(memory.slice(to, 4 * 16 * columns).unwrap());
        for (i, got) in got.iter().enumerate() {
            let (row, col) = (i / columns, i % columns);
            let inside = (2..8).contains(&row) && col < 8;
            assert_eq!(*got, if inside { ((row - 2) * 40 + 32 + col) as u32 } else { 0 }, "{swizzle:?} ({row}, {col})");
        }
        assert_eq!(
            (counters.loads.distinct_bytes, counters.stores.distinct_bytes),
            (6 * 8 * 4, 4 * 16 * columns as u64)
        );
    }
    // Three axes, of the second every other element; only what lies inside is written.
    let to = memory.allocate("to", 4 * 2 * 2 * 3).unwrap();
    let a = TensorMap {
        steps: vec![1, 2, 1],
        ..TensorMap::dense(Element::U32, from, &[8, 5, 6], &[4, 3, 3], Swizzle::None)
    };
    let b = TensorMap::dense(Element::U32, to, &[4, 1, 3], &[4, 2, 3], Swizzle::None);
    move_tile(&a, &[4, 1, 2], &b, &[0, 0, 0], &mut memory).unwrap();
    let got = words(memory.slice(to, 48).unwrap());
    let expected: Vec<u32> = (0..12).map(|i| (2 + i / 4) * 40 + 8 + 4 + i % 4).collect();
    assert_eq!(got, expected);
    // What nobody wrote is not read, and bounds are the allocation's, whatever the map says.
    let empty = memory.allocate("empty", 1024).unwrap();
    let fault = |a: &TensorMap, memory: &mut Memory| match move_tile(a, &[0, 0], a, &[0, 0], memory) {
        Err(Failure::Fault(fault)) => fault.kind,
        other => panic!("{other:?}"),
    };
    let a = TensorMap::dense(Element::F32, empty, &[32, 8], &[32, 8], Swizzle::B128);
    assert!(matches!(fault(&a, &mut memory), FaultKind::Unwritten { .. }));
    let a = TensorMap::dense(Element::F32, from, &[40, 60], &[32, 8], Swizzle::B128);
    let kind = match move_tile(&a, &[0, 40], &a, &[0, 0], &mut memory) {
        Err(Failure::Fault(fault)) => fault.kind,
        other => panic!("{other:?}"),
    };
    assert!(matches!(kind, FaultKind::OutOfBounds { .. }), "{kind}");
}

#[test]
fn maps_of_tensors_that_cannot_be() {
    let good = TensorMap::dense(Element::Bf16, 4096, &[100, 7, 3], &[64, 4, 1], Swizzle::B128);
    assert_eq!(good.strides, [200, 1400]);
    // Strides of 200 bytes are no multiples of 16.
    assert!(good.encode().unwrap_err().to_string().contains("multiples of 16"));
    let good = TensorMap { strides: vec![208, 2080], ..good };
    good.encode().unwrap();
    let wrong = [
        TensorMap { address: 4100, ..good.clone() },
        TensorMap { tile: vec![32, 4, 1], ..good.clone() },
        TensorMap { tile: vec![64, 257, 1], ..good.clone() },
        TensorMap { steps: vec![1, 9, 1], ..good.clone() },
        TensorMap { steps: vec![2, 1, 1], ..good.clone() },
        TensorMap { shape: vec![100, 7], ..good.clone() },
        TensorMap { shape: vec![0, 7, 3], ..good.clone() },
        TensorMap { tile: vec![60, 4, 1], swizzle: Swizzle::None, ..good.clone() },
    ];
    for map in wrong {
        assert!(map.encode().is_err(), "{map:?}");
    }
    let (kind, ..) = fault(
        ".shared .align 128 .b8 x[128];\n.shared .align 8 .b64 object;\nmbarrier.init.shared.b64 [object], 1;\n\
         cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes [x], [%in, {0}], [object];",
        1,
    );
    assert!(matches!(kind, FaultKind::OutOfBounds { .. }), "{kind}");
}
