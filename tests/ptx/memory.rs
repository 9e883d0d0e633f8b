//! Loads, stores and atomics in every space, windows of an arena, and the faults of addresses.

use super::support::{BODY, fault, kernel, kernel_with, run, s, threads, words};
use langevin::ptx::{Failure, FaultKind, Launch, Memory, Module};

#[test]
fn memory_instructions() {
    let input: Vec<u8> = (0..64).collect();
    let text = kernel(
        "ld.global.nc.v4.u32 {%r0, %r1, %r2, %r3}, [%in+16];\nst.global.v2.u32 [%out], {%r3, %r0};\n\
         ld.global.s8 %r4, [%in+63];\nst.global.u8 [%out+8], %r4;\nld.global.u16 %h0, [%in+2];\nst.global.u16 [%out+10], %h0;\n\
         ld.volatile.global.u64 %d0, [%in];\nst.global.cs.u32 [%out+12], %d0;\nret;",
    );
    let (out, counters) = run(&text, 1, 1, 16, &input).unwrap();
    assert_eq!(out, [28, 29, 30, 31, 16, 17, 18, 19, 63, 0, 2, 3, 0, 1, 2, 3]);
    assert_eq!((counters.loads.requests, counters.loads.bytes, counters.loads.distinct_bytes), (4, 27, 25));
    assert_eq!((counters.stores.requests, counters.stores.sectors), (4, 4));
}

#[test]
fn every_space_is_reached_by_generic_addresses() {
    let globals = ".const .align 4 .b32 table[3] = {7, 8, 9};\n.global .align 4 .u32 counter = 5;\n.shared .align 8 .b8 room[16];";
    let body = "mov.u64 %d0, table;\nld.const.u32 %r0, [%d0+4];\nst.global.u32 [%out], %r0;\n\
        ld.global.u32 %r1, [counter];\nst.global.u32 [%out+4], %r1;\n\
        mov.u64 %d1, room;\ncvta.shared.u64 %d2, %d1;\nst.u32 [%d2+8], 11;\nld.shared.u32 %r2, [room+8];\nst.global.u32 [%out+8], %r2;\n\
        .local .align 8 .b8 depot[8];\nmov.u64 %d3, depot;\ncvta.local.u64 %d4, %d3;\nst.local.u32 [%d3+4], 12;\nld.u32 %r3, [%d4+4];\n\
        st.u32 [%out+12], %r3;\ncvta.to.shared.u64 %d5, %d2;\nsub.u64 %d6, %d5, %d1;\nst.global.u32 [%out+16], %d6;\n\
        isspacep.shared %p0, %d2;\nselp.u32 %r4, 1, 0, %p0;\nst.global.u32 [%out+20], %r4;\nret;";
    let (out, _) = run(&kernel_with(globals, body), 1, 1, 24, &[]).unwrap();
    assert_eq!(words(&out), [8, 5, 11, 12, 0, 1]);
}

#[test]
fn atomics() {
    let cases: &[(&str, u64, u64)] = &[
        ("add.u32", 5, 5 + 32),
        ("min.s32", s(-5), s(-5)),
        ("max.u32", 0, 1),
        ("inc.u32", 3, (3..35).fold(3, |a, _| if a >= 1 { 0 } else { a + 1 })),
        ("and.b32", 3, 1),
        ("or.b32", 2, 3),
        ("xor.b32", 2, 2),
        ("exch.b32", 2, 1),
    ];
    for (name, start, expected) in cases {
        let text = kernel(&format!(
            ".shared .u32 x;\nmov.u32 %r0, %tid.x;\nsetp.eq.u32 %p0, %r0, 0;\n@%p0 st.shared.u32 [x], {start};\nbar.sync 0;\n\
             atom.shared.{name} %r1, [x], 1;\nbar.sync 0;\n@%p0 ld.shared.u32 %r2, [x];\n@%p0 st.global.u32 [%out], %r2;\nret;"
        ));
        let (out, _) = run(&text, 1, 32, 4, &[]).unwrap();
        assert_eq!(u64::from(words(&out)[0]), *expected, "{name}");
    }
    // Each lane gets what the one before it left.
    let got = threads(
        ".shared .f32 x;\nsetp.eq.u32 %p0, %r30, 0;\n@%p0 st.shared.f32 [x], 0f00000000;\nbar.warp.sync -1;\n\
         atom.shared.add.f32 %f0, [x], 0f3F000000;\nmov.b32 %r9, %f0;",
        4,
    );
    assert_eq!(got, [0.0f32, 0.5, 1.0, 1.5].map(f32::to_bits));
    let swapped = threads(
        ".shared .u32 x;\nsetp.eq.u32 %p0, %r30, 0;\n@%p0 st.shared.u32 [x], 2;\nbar.warp.sync -1;\n\
         add.u32 %r1, %r30, 1;\natom.shared.cas.b32 %r9, [x], %r30, %r1;",
        4,
    );
    assert_eq!(swapped, [2, 2, 2, 3]);
    let text = kernel("st.global.u32 [%out], 0;\nred.global.add.u32 [%out], 2;\natom.add.f16x2 %r0, [%in], %r1;\nret;");
    assert!(run(&text, 1, 1, 4, &[0; 4]).is_ok());
}

/// Doubles the words of `in` into `out`, one a thread.
fn double() -> String {
    kernel(
        "mov.u32 %r0, %tid.x;\nmul.wide.u32 %d0, %r0, 4;\nadd.u64 %d1, %in, %d0;\nadd.u64 %d2, %out, %d0;\n\
         ld.global.u32 %r1, [%d1];\nshl.b32 %r1, %r1, 1;\nst.global.u32 [%d2], %r1;\nret;",
    )
}

#[test]
fn windows_of_an_arena_are_the_bounds() {
    let module = Module::parse(&double()).unwrap();
    let entry = module.entry("k").unwrap();
    let mut memory = Memory::new();
    let arena = memory.allocate("arena", 256).unwrap();
    let (x, y) = (arena + 32, arena + 64);
    memory.slice_mut(x, 16).unwrap().copy_from_slice(bytemuck::cast_slice(&[1u32, 2, 3, 4]));
    let of = |threads, from: u64, to: u64| Launch::new([1, 1, 1], [threads, 1, 1]).argument(to).argument(from);
    let good = of(4, x, y).window("x", x, 16, false).window("y", y, 16, true);
    let counters = entry.launch(&mut memory, &good).unwrap();
    assert_eq!(words(memory.slice(y, 16).unwrap()), [2, 4, 6, 8]);
    assert_eq!((counters.loads.distinct_bytes, counters.stores.distinct_bytes), (16, 16));
    // In place: one address, of which the larger window may be written.
    let in_place = of(4, y, y).window("y", y, 16, false).window("y again", y, 16, true);
    let counters = entry.launch(&mut memory, &in_place).unwrap();
    assert_eq!(words(memory.slice(y, 16).unwrap()), [4, 8, 12, 16]);
    assert_eq!((counters.loads.distinct_bytes, counters.stores.distinct_bytes), (16, 16));

    let mut kind = |launch: Launch| match entry.launch(&mut memory, &launch) {
        Err(Failure::Fault(fault)) => fault.kind,
        other => panic!("{other:?}"),
    };
    // The arena goes on behind both windows.
    let behind = kind(of(5, x, y).window("x", x, 16, false).window("y", y, 20, true));
    assert!(behind.to_string().contains("it ends 4 bytes behind `x` of 16 bytes"), "{behind}");
    let behind = kind(of(5, x, y).window("x", x, 32, false).window("y", y, 16, true));
    assert!(matches!(behind, FaultKind::Unwritten { ref place, .. } if place == "byte 16 of `x`"), "{behind}");
    let behind = kind(of(4, x, y).window("x", x, 16, false).window("y", y, 12, true));
    assert!(matches!(behind, FaultKind::OutOfBounds { access: "store", .. }), "{behind}");
    let constant = kind(of(4, x, y).window("x", x, 16, true).window("y", y, 16, false));
    assert_eq!(constant, FaultKind::ReadOnly { place: "`y`".into() });
    // A later value of the same place has not been written.
    memory.forget(x + 4, 4).unwrap();
    let stale = match entry.launch(&mut memory, &good) {
        Err(Failure::Fault(fault)) => (fault.kind, fault.thread),
        other => panic!("{other:?}"),
    };
    assert!(matches!(stale, (FaultKind::Unwritten { ref place, .. }, [1, 0, 0]) if place == "byte 4 of `x`"));
    assert_eq!([memory.is_written(x, 4), memory.is_written(x, 16)].map(Result::unwrap), [true, false]);
    let outside = of(4, x, y).window("x", x, 16, false).window("y", arena + 250, 16, true);
    assert!(matches!(entry.launch(&mut memory, &outside), Err(Failure::Request(_))));
    assert!(memory.slice(arena + 250, 7).is_err() && memory.slice(0, 1).is_err());
}

#[test]
fn variables_belong_to_a_module() {
    let counting = |start: u32| {
        kernel_with(
            &format!(".global .u32 n = {start};"),
            "atom.global.add.u32 %r0, [n], 1;\nst.global.u32 [%out], %r0;\nret;",
        )
    };
    let modules = [10, 20].map(|start| Module::parse(&counting(start)).unwrap());
    let mut memory = Memory::new();
    let out = memory.allocate("out", 4).unwrap();
    let arguments = Launch::new([1, 1, 1], [1, 1, 1]).argument(out).argument(out).window("out", out, 4, true);
    let mut next = |module: usize| {
        modules[module].entry("k").unwrap().launch(&mut memory, &arguments).unwrap();
        words(memory.slice(out, 4).unwrap())[0]
    };
    assert_eq!([next(0), next(1), next(0), next(1)], [10, 20, 11, 21]);
}

#[test]
fn out_of_bounds() {
    let (kind, line, thread) = fault(
        "mov.u32 %r0, %tid.x;\nmul.wide.u32 %d0, %r0, 4;\nadd.u64 %d0, %d0, %in;\nld.global.u32 %r1, [%d0];\nret;",
        20,
    );
    assert!(matches!(kind, FaultKind::OutOfBounds { access: "load", bytes: 4, .. }), "{kind}");
    assert!(kind.to_string().contains("it ends 4 bytes behind `in` of 64 bytes"), "{kind}");
    assert_eq!((line, thread), (BODY + 3, [16, 0, 0]));
    for body in [
        "st.global.u32 [%out+64], 1;",
        "mov.u64 %d0, 0;\nld.global.u32 %r0, [%d0];",
        "mov.u32 %r1, 0;\nld.shared.u32 %r0, [%r1];",
        "mov.u64 %d3, -8;\nld.global.u32 %r0, [%d3];",
        "ld.param.u64 %d0, [in+8];",
        "mov.u64 %d0, 1024;\nst.shared.u32 [%d0+1024], 1;",
        "mov.u32 %r0, 0;\nst.local.u32 [%r0], 1;",
        "red.global.add.u32 [%in+64], 1;",
        "mov.u32 %r0, 1024;\ncp.async.ca.shared.global [%r0], [%in+64], 4;",
    ] {
        let (kind, ..) = fault(body, 1);
        assert!(matches!(kind, FaultKind::OutOfBounds { .. }), "{body}: {kind}");
    }
    let (kind, ..) = fault("st.const.u32 [%in], 1;", 1);
    assert!(matches!(kind, FaultKind::ReadOnly { .. }), "{kind}");
}

#[test]
fn misaligned() {
    for body in
        ["ld.global.u32 %r0, [%in+2];", "ld.global.v4.f32 {%f0, %f1, %f2, %f3}, [%in+8];", "st.global.u16 [%out+1], 1;"]
    {
        let (kind, line, _) = fault(body, 1);
        assert!(matches!(kind, FaultKind::Misaligned { .. }), "{body}: {kind}");
        assert_eq!(line, BODY);
    }
}

#[test]
fn reads_of_what_nothing_wrote() {
    let (kind, ..) = fault("ld.global.u32 %r0, [%out+4];", 1);
    assert!(kind.to_string().contains("byte 4 of `out`"), "{kind}");
    for body in [
        "st.global.u16 [%out], 1;\nld.global.u32 %r0, [%out];",
        ".shared .u32 x;\nld.shared.u32 %r0, [x];",
        ".local .u32 x;\nld.local.u32 %r0, [x];",
        ".shared .u32 x;\natom.shared.add.u32 %r0, [x], 1;",
    ] {
        let (kind, ..) = fault(body, 1);
        assert!(matches!(kind, FaultKind::Unwritten { .. }), "{body}: {kind}");
    }
}
