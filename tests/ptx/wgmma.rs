//! Products of four warps, and a whole one through tensor maps.

use super::support::{GEMM, fault, floats_at, kernel, launch, noise, run};
use half::bf16;
use langevin::ptx::tensor::{Element, Swizzle};
use langevin::ptx::{Counters, Failure, FaultKind, Launch, Memory, TensorMap};

/// Where element (row, k) of a matrix of halves lies in shared memory, rows of `span` bytes with the eight rows of a pattern
/// one behind the other: the chunk of 16 bytes within the row is changed by the row's number.
fn swizzled(span: usize, row: usize, byte: usize) -> usize {
    let (chunk, inside) = (byte / 16, byte % 16);
    let turned = match span {
        128 => chunk ^ (row % 8),
        64 => chunk ^ (row / 2 % 4),
        32 => chunk ^ (row / 4 % 2),
        _ => chunk,
    };
    row * span + 16 * turned + inside
}

fn descriptor(start: usize, leading: usize, stride: usize, span: usize) -> u64 {
    let mode = [16, 128, 64, 32].iter().position(|s| *s == span).unwrap() as u64;
    ((start / 16) | ((leading / 16) << 16) | ((stride / 16) << 32)) as u64 | (mode << 62)
}

/// A `wgmma` of [64, 16] by [16, 32] whose operands are images in shared memory from 1024 and 1024 + 8192 on, with each layout.
fn one_wgmma(span: usize, a_transposed: bool, b_transposed: bool) {
    let a = |m: usize, k: usize| ((m * 7 + k * 3) % 11) as f32 - 5.0;
    let b = |k: usize, n: usize| ((k * 5 + n * 2) % 9) as f32 - 4.0;
    let mut image = vec![0u8; 16384];
    // Puts a matrix of `rows` by 16 at `base`, and says what describes it.
    let mut put = |base: usize, rows: usize, transposed: bool, value: &dyn Fn(usize, usize) -> f32| {
        let per_span = span / 2;
        for row in 0..rows {
            for k in 0..16 {
                let at = match (span, transposed) {
                    // Matrices of 8 rows by 16 bytes: next to each other along k at 4096, along the rows at 128.
                    (16, false) => k / 8 * 4096 + row / 8 * 128 + row % 8 * 16 + k % 8 * 2,
                    // Along the rows at 256, along k at 128.
                    (16, true) => row / 8 * 256 + k / 8 * 128 + k % 8 * 16 + row % 8 * 2,
                    (_, false) => swizzled(span, row, 2 * k),
                    // Blocks of `span` bytes along the rows, 2048 bytes apart.
                    (_, true) => row / per_span * 2048 + swizzled(span, k, row % per_span * 2),
                };
                image[base + at..base + at + 2].copy_from_slice(&bf16::from_f32(value(row, k)).to_le_bytes());
            }
        }
        let (leading, stride) = match (span, transposed) {
            (16, false) => (4096, 128),
            (16, true) => (128, 256),
            (_, false) => (16, 8 * span),
            (_, true) => (2048, 8 * span),
        };
        descriptor(1024 + base, leading, stride, span)
    };
    let a_bits = put(0, 64, a_transposed, &a);
    let b_bits = put(8192, 32, b_transposed, &|n, k| b(k, n));
    let (ta, tb) = (u8::from(a_transposed), u8::from(b_transposed));
    let list: Vec<String> = (0..16).map(|i| format!("%f{i}")).collect();
    let list = list.join(", ");
    let body = format!(
        ".shared .align 1024 .b8 x[16384];\nmov.u64 %d0, x;\nmov.u32 %r30, %tid.x;\nmul.wide.u32 %d1, %r30, 16;\nmov.u32 %r0, 0;\nCOPY:\n\
         add.u64 %d2, %in, %d1;\nld.global.v4.u32 {{%r1, %r2, %r3, %r4}}, [%d2];\nadd.u64 %d3, %d0, %d1;\n\
         st.shared.v4.u32 [%d3], {{%r1, %r2, %r3, %r4}};\nadd.u64 %d1, %d1, 2048;\nadd.u32 %r0, %r0, 1;\nsetp.lt.u32 %p0, %r0, 8;\n@%p0 bra COPY;\n\
         fence.proxy.async;\nbar.sync 0;\nwgmma.fence.sync.aligned;\nsetp.ne.u32 %p1, %r0, %r0;\nmov.u64 %d4, {a_bits};\nmov.u64 %d5, {b_bits};\n\
         wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {{{list}}}, %d4, %d5, %p1, 1, 1, {ta}, {tb};\n\
         wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {{{list}}}, %d4, %d5, 1, -1, -1, {ta}, {tb};\n\
         wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\nmul.wide.u32 %d6, %r30, 64;\nadd.u64 %d7, %out, %d6;\n\
         st.global.v4.f32 [%d7], {{%f0, %f1, %f2, %f3}};\nst.global.v4.f32 [%d7+16], {{%f4, %f5, %f6, %f7}};\n\
         st.global.v4.f32 [%d7+32], {{%f8, %f9, %f10, %f11}};\nst.global.v4.f32 [%d7+48], {{%f12, %f13, %f14, %f15}};\nret;"
    );
    let (out, counters) = run(&kernel(&body), 1, 128, 128 * 64, &image).unwrap_or_else(|e| panic!("{span}: {e}"));
    let out: Vec<f32> = bytemuck::pod_collect_to_vec(&out);
    for thread in 0..128 {
        for i in 0..16 {
            let m = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
            let n = thread % 4 * 2 + i / 4 * 8 + i % 2;
            let exact: f32 = 2.0 * (0..16).map(|k| a(m, k) * b(k, n)).sum::<f32>();
            assert_eq!(out[16 * thread + i], exact, "{span} {a_transposed} {b_transposed} ({m}, {n})");
        }
    }
    assert_eq!(counters.flops, 2 * 2 * 64 * 32 * 16);
}

#[test]
fn products_by_four_warps() {
    for span in [16, 32, 64, 128] {
        for (a, b) in [(false, false), (true, false), (false, true), (true, true)] {
            one_wgmma(span, a, b);
        }
    }
}

/// A of ones in registers, B of ones in shared memory; [64, 16] by [16, 8] of halves or [64, 8] by [8, 8] of tf32. Then the
/// statements, and %f0 of the first thread.
fn wgmma_of_ones(types: &str, one: u32, numbers: &str, statements: &str) -> Result<f32, Failure> {
    let body = format!(
        ".shared .align 128 .b8 x[256];\nmov.u64 %d0, x;\nmov.u32 %r30, %tid.x;\nmul.wide.u32 %d1, %r30, 2;\nadd.u64 %d2, %d0, %d1;\n\
         mov.u32 %r0, {one};\nand.b32 %r1, %r30, 1;\nsetp.eq.u32 %p0, %r1, 0;\n@%p0 st.shared.u32 [%d2], %r0;\nbar.sync 0;\nmov.f32 %f0, 0f3F800000;\n\
         mov.f32 %f1, %f0;\nmov.f32 %f2, %f0;\nmov.f32 %f3, %f0;\nwgmma.fence.sync.aligned;\nmov.u64 %d3, {};\n\
         wgmma.mma_async.sync.aligned.{types} {{%f0, %f1, %f2, %f3}}, {{%r0, %r0, %r0, %r0}}, %d3, 1, {numbers};\n\
         wgmma.commit_group.sync.aligned;\n{statements}\nsetp.eq.u32 %p2, %r30, 0;\n@%p2 st.global.f32 [%out], %f0;\nret;",
        descriptor(1024, 128, 128, 16)
    );
    let (out, _) = run(&kernel(&body), 1, 128, 4, &[])?;
    Ok(f32::from_le_bytes(out.try_into().unwrap()))
}

#[test]
fn products_by_four_warps_have_to_be_waited_for() {
    let wait = "wgmma.wait_group.sync.aligned 0;";
    let halves = "m64n8k16.f32.f16.f16";
    let ones = 0x3c00_3c00;
    assert_eq!(wgmma_of_ones(halves, ones, "1, 1, 0", wait).unwrap(), 17.0);
    assert_eq!(wgmma_of_ones(halves, ones, "-1, 1, 0", wait).unwrap(), -15.0);
    assert_eq!(wgmma_of_ones("m64n8k8.f32.tf32.tf32", 1f32.to_bits(), "1, 1", wait).unwrap(), 9.0);
    // Before the wait there is nothing to be seen.
    assert!(wgmma_of_ones(halves, ones, "1, 1, 0", "").unwrap().is_nan());
    assert!(wgmma_of_ones(halves, ones, "1, 1, 0", "wgmma.wait_group.sync.aligned 1;").unwrap().is_nan());
    // Its operands may not change before the wait, barrier or not.
    let change = format!("bar.sync 0;\n@%p0 st.shared.u32 [%d2], 0;\n{wait}");
    match wgmma_of_ones(halves, ones, "1, 1, 0", &change) {
        Err(Failure::Fault(fault)) => assert!(matches!(fault.kind, FaultKind::Race { here: "reads", .. }), "{fault}"),
        other => panic!("{other:?}"),
    }
    assert!(
        wgmma_of_ones(halves, ones, "1, 1, 0", &format!("{wait}\nbar.sync 0;\n@%p0 st.shared.u32 [%d2], 0;")).is_ok()
    );
    let (kind, ..) = fault(
        ".shared .align 128 .b8 x[256];\nwgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {%f0, %f1, %f2, %f3}, {%r0, %r0, %r0, %r0}, %d0, 1, 1, 1;",
        96,
    );
    assert!(matches!(kind, FaultKind::Misuse(_)), "{kind}");
}

/// [100, k] by [72, k] through the kernel; the text may be changed.
fn gemm(text: &str, k: usize) -> Result<Counters, Failure> {
    let (m, n) = (100usize, 72usize);
    let row = k.next_multiple_of(8);
    let numbers = |rows: usize| noise(rows * row).iter().map(|v| bf16::from_f32(*v)).collect::<Vec<bf16>>();
    let (a, b) = (numbers(m), numbers(n));
    let mut memory = Memory::new();
    let pa = memory.allocate_with("a", bytemuck::cast_slice(&a)).unwrap();
    let pb = memory.allocate_with("b", bytemuck::cast_slice(&b)).unwrap();
    let pc = memory.allocate("c", 4 * m * n).unwrap();
    let map = |address, rows: usize| {
        let strides = vec![2 * row as u64];
        let dense = TensorMap::dense(Element::Bf16, address, &[k as u64, rows as u64], &[64, 64], Swizzle::B128);
        TensorMap { strides, ..dense }.encode().unwrap()
    };
    let arguments = Launch::new([2, 2, 1], [128, 1, 1]).argument(map(pa, m)).argument(map(pb, n));
    let mut arguments = arguments.argument(m as u32).argument(n as u32).argument(k as u32).argument(pc);
    arguments.shared_bytes = 4 * 8192;
    arguments.budget = 1_000_000;
    let counters = launch(text, "gemm", &mut memory, &arguments)?;
    for (i, c) in floats_at(&memory, pc).iter().enumerate() {
        let exact: f64 = (0..k).map(|j| a[i / n * row + j].to_f64() * b[i % n * row + j].to_f64()).sum();
        assert!((f64::from(*c) - exact).abs() < 1e-4, "{k}, {i}: {c} {exact}");
    }
    Ok(counters)
}

#[test]
fn a_product_through_tensor_maps() {
    for k in [7, 64, 200, 320] {
        let counters = gemm(GEMM, k).unwrap();
        assert_eq!(counters.flops, 2 * 128 * 128 * k.next_multiple_of(64) as u64);
    }
    let kind = |text: &str| match gemm(text, 320) {
        Err(Failure::Fault(fault)) => fault.kind,
        other => panic!("{other:?}"),
    };
    // Tiles come while products are under way that are not waited for.
    let hasty = kind(&GEMM.replace("wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 1;"));
    assert!(matches!(hasty, FaultKind::InFlight { .. }), "{hasty}");
    // Products that do not wait for the tiles: not at all, and by one look instead of a loop.
    for waits in ["mbarrier.try_wait", "@!p bra AGAIN;"] {
        let hasty = kind(&GEMM.replace(waits, &format!("// {waits}")));
        assert!(matches!(hasty, FaultKind::InFlight { .. } | FaultKind::Unwritten { .. }), "{waits}: {hasty}");
    }
}
