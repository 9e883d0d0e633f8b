//! Matrices of a warp: `ldmatrix`, `stmatrix`, `mma`.

use super::support::{fault, kernel, run};
use half::{bf16, f16};
use langevin::ptx::FaultKind;

#[test]
fn matrices_are_stored_and_transposed() {
    let body = ".shared .align 16 .b8 x[256];\nmov.u32 %r30, %tid.x;\nmov.u64 %d0, x;\nmul.wide.u32 %d1, %r30, 4;\nadd.u64 %d2, %in, %d1;\n\
        ld.global.u32 %r0, [%d2];\nadd.u64 %d3, %d0, %d1;\nst.shared.u32 [%d3], %r0;\nbar.warp.sync -1;\nand.b32 %r1, %r30, 7;\n\
        mul.wide.u32 %d4, %r1, 16;\nadd.u64 %d5, %d0, %d4;\nldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%d5];\n\
        setp.ne.u32 %p0, %r2, %r0;\n@%p0 trap;\nadd.u64 %d6, %d5, 128;\nstmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%d6], {%r2};\n\
        bar.warp.sync -1;\nadd.u64 %d7, %d3, 128;\nld.shared.u32 %r3, [%d7];\nadd.u64 %d8, %out, %d1;\nst.global.u32 [%d8], %r3;\nret;";
    let input: Vec<u16> = (0..64).collect();
    let (out, counters) = run(&kernel(body), 1, 32, 128, bytemuck::cast_slice(&input)).unwrap();
    let out: Vec<u16> = bytemuck::pod_collect_to_vec(&out);
    assert_eq!(out, (0..64).map(|i| i % 8 * 8 + i / 8).collect::<Vec<u16>>());
    assert_eq!(counters.bank_conflicts, 0);
}

/// One `mma` of [16, k] by [k, 8] whose registers are filled by the rules of the PTX ISA.
fn one_mma(shape: &str, ty: &str, k: usize, encode: fn(f32) -> u32, wide: bool) {
    let small = |i: usize| ((i * 7 + 3) % 11) as f32 - 5.0;
    let (a, b) = (|m: usize, k: usize| small(m * 16 + k), |k: usize, n: usize| small(k * 8 + n + 5));
    let pair = |low: f32, high: f32| encode(low) | encode(high) << 16;
    let mut input = Vec::new();
    for lane in 0..32 {
        let (group, member) = (lane / 4, lane % 4);
        let mut registers = [0u32; 6];
        for (r, register) in registers[..4].iter_mut().enumerate() {
            let row = group + 8 * (r % 2);
            *register = if wide {
                encode(a(row, member + 4 * (r / 2)))
            } else {
                pair(a(row, 2 * member + 8 * (r / 2)), a(row, 2 * member + 8 * (r / 2) + 1))
            };
        }
        for r in 0..2 {
            registers[4 + r] = if wide {
                encode(b(member + 4 * r, group))
            } else {
                pair(b(2 * member + 8 * r, group), b(2 * member + 8 * r + 1, group))
            };
        }
        input.extend(registers);
    }
    let (ra, rb) = if wide || k == 16 { ("{%r0, %r1, %r2, %r3}", "{%r4, %r5}") } else { ("{%r0, %r1}", "{%r4}") };
    let body = format!(
        "mov.u32 %r30, %tid.x;\nmul.wide.u32 %d0, %r30, 24;\nadd.u64 %d1, %in, %d0;\nld.global.v2.b32 {{%r0, %r1}}, [%d1];\n\
         ld.global.v2.b32 {{%r2, %r3}}, [%d1+8];\nld.global.v2.b32 {{%r4, %r5}}, [%d1+16];\nmov.f32 %f4, 0f3F800000;\n\
         mma.sync.aligned.{shape}.row.col.f32.{ty}.{ty}.f32 {{%f0, %f1, %f2, %f3}}, {ra}, {rb}, {{%f4, %f4, %f4, %f4}};\n\
         mul.wide.u32 %d2, %r30, 16;\nadd.u64 %d3, %out, %d2;\nst.global.v4.f32 [%d3], {{%f0, %f1, %f2, %f3}};\nret;"
    );
    let (out, counters) = run(&kernel(&body), 1, 32, 512, bytemuck::cast_slice(&input)).unwrap();
    let out: Vec<f32> = bytemuck::pod_collect_to_vec(&out);
    for lane in 0..32 {
        for r in 0..4 {
            let (row, col) = (lane / 4 + 8 * (r / 2), lane % 4 * 2 + r % 2);
            let exact: f32 = 1.0 + (0..k).map(|k| a(row, k) * b(k, col)).sum::<f32>();
            assert_eq!(out[4 * lane + r], exact, "{shape} {ty} ({row}, {col})");
        }
    }
    assert_eq!(counters.flops, (2 * 16 * 8 * k) as u64);
}

#[test]
fn products_of_matrices() {
    let half = |x| u32::from(f16::from_f32(x).to_bits());
    let brain = |x| u32::from(bf16::from_f32(x).to_bits());
    one_mma("m16n8k16", "f16", 16, half, false);
    one_mma("m16n8k16", "bf16", 16, brain, false);
    one_mma("m16n8k8", "f16", 8, half, false);
    one_mma("m16n8k8", "bf16", 8, brain, false);
    one_mma("m16n8k8", "tf32", 8, f32::to_bits, true);
    let (kind, ..) = fault(
        "mov.u32 %r0, %tid.x;\nsetp.eq.u32 %p0, %r0, 0;\nmov.u32 %r1, 1024;\n@%p0 ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%r1];",
        32,
    );
    assert!(matches!(kind, FaultKind::BarrierDivergence(_)), "{kind}");
}
