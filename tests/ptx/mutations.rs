//! Mutations of the compiled kernels: bytes changed, pieces left out, doubled and cut off. Whatever they are, the answer is an
//! error or a run within the budget.

use super::support::{BLOCK_SUM, GEMM, MATMUL, MIXED, MMA, SAXPY, SOFTMAX, kernel};
use langevin::ptx::tensor::{Element, Swizzle};
use langevin::ptx::{Launch, Memory, Module, TensorMap};
use proptest::prelude::*;

/// What the compiled kernels have none of.
const REST: &str = ".shared .align 16 .b8 x[512];\n.shared .align 8 .b64 object;\n.local .align 8 .b8 depot[64];\n\
    mov.u64 %d0, x;\nmov.u64 %d1, object;\nmov.u32 %r0, %tid.x;\nmul.wide.u32 %d2, %r0, 16;\nadd.u64 %d3, %d0, %d2;\n\
    st.shared.v4.u32 [%d3], {1, 2, 3, 4};\nbar.warp.sync -1;\natom.shared.cas.b32 %r1, [x+4], 1, %r0;\nred.shared.add.f32 [x], 1.5;\n\
    ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r2, %r3, %r4, %r5}, [%d3];\nprmt.b32 %r6, %r2, %r3, 0x5410;\n\
    bfe.s32 %r7, %r6, %r0, 9;\nbfi.b64 %d4, %d2, %d3, %r0, %r1;\nshf.l.wrap.b32 %r8, %r6, %r7, %r0;\nlop3.b32 %r9, %r1, %r2, %r3, 0xe8;\n\
    cvt.rni.s8.f32 %r10, %f0;\ncvt.rz.f16x2.f32 %r11, %f0, %f1;\ncvt.sat.u64.s16 %d5, %h0;\ndiv.rp.f32 %f2, %f0, %f1;\nmul.hi.u64 %d6, %d2, %d3;\n\
    st.local.u64 [depot+8], %d6;\nshfl.sync.up.b32 %r12|%p0, %r11, 3, 0x1800, -1;\nmatch.any.sync.b32 %r13, %r12, -1;\n\
    setp.eq.u32 %p1, %r0, 0;\n@%p1 mbarrier.init.shared.b64 [%d1], 1;\nbar.red.popc.u32 %r14, 1, 32, %p0;\n\
    @%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%d0], [%in], 64, [%d1];\n\
    mbarrier.try_wait.parity.shared.b64 %p2, [%d1], 1;\nret;";

#[test]
fn the_unchanged_texts_are_good() {
    for text in [SAXPY, BLOCK_SUM, MATMUL, SOFTMAX, MMA, MIXED, GEMM, &kernel(REST)] {
        Module::parse(text).unwrap();
    }
}

fn survive(text: &str) {
    let Ok(module) = Module::parse(text) else { return };
    for entry in &module.entries {
        let mut memory = Memory::new();
        let x = memory.allocate_with("x", &[0; 4096]).unwrap();
        let map = TensorMap::dense(Element::Bf16, x, &[64, 16], &[64, 64], Swizzle::B128).encode().unwrap();
        let arguments = entry.parameters.iter().map(|p| match p.bytes {
            8 => x.to_le_bytes().to_vec(),
            128 => map.to_vec(),
            n => vec![1; n.min(64) as usize],
        });
        let mut launch = Launch::new([1, 1, 1], [128, 1, 1]);
        launch.shared_bytes = 32768;
        launch.arguments = arguments.collect();
        launch.budget = 2000;
        let _ = entry.launch(&mut memory, &launch);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_panic(
        which in 0..8usize,
        changes in prop::collection::vec((0..4u8, any::<prop::sample::Index>(), any::<prop::sample::Index>(), 32..127u8), 1..6),
    ) {
        let rest = kernel(REST);
        let mut text = [SAXPY, BLOCK_SUM, MATMUL, SOFTMAX, MMA, MIXED, GEMM, &rest][which].as_bytes().to_vec();
        for (kind, a, b, byte) in changes {
            if text.is_empty() {
                break;
            }
            let (a, b) = (a.index(text.len()), b.index(text.len()));
            match kind {
                0 => text[a] = byte,
                1 => drop(text.drain(a..(a + b % 40).min(text.len()))),
                2 => {
                    let piece = text[a..(a + b % 400).min(text.len())].to_vec();
                    text.splice(b..b, piece);
                }
                _ => text.truncate(text.len() / 2 + a / 2),
            }
        }
        survive(&String::from_utf8_lossy(&text));
    }
}
