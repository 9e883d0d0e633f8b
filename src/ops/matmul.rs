//! Products of matrices that both are computed, batch by batch.

use super::pieces::along;
use super::product::{PlainProduct, ShaderBlocks, Tiling, by_matrices};
use super::{expect_inputs, expect_real, expect_typed};
use crate::cpu::gemm::{Left, Tiles, pack_cols, pack_rows, with_buffers};
use crate::cpu::threads::{Ptr, tasks};
use crate::graph::{
    Arg, Args, Cost, Graph, Launch, Node, Op, Shader, Signature, Target, Value, WgpuTarget, ptx, wgsl,
    wgsl_with_matrices,
};
use crate::tensor::{DType, PANEL, TensorType};
use crate::{Error, Result};

/// `y[b] = A[b]·B[b]`   a `[B, M, K]` (`[B, K, M]` if `transpose_a`), b `[B, K, N]` (`[B, N, K]` if `transpose_b`) → y `[B, M, N]`
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BatchedMatmul {
    pub transpose_a: bool,
    pub transpose_b: bool,
}

/// Depth of a block of B that a task packs.
const K_BLOCK: usize = 256;
/// Rows and columns of y in a task: a packed block of B takes 256 KiB.
const M_BLOCK: usize = 192;
const N_BLOCK: usize = 256;
/// Packed rows of A are this much longer than they need be, so that they do not share cache sets.
const A_PAD: usize = 16;

impl BatchedMatmul {
    /// B, M, N, K.
    fn sizes(&self, a: &TensorType, b: &TensorType) -> Option<[usize; 4]> {
        let ([batch, a0, a1], [batch_b, b0, b1]) = (&a.shape[..], &b.shape[..]) else { return None };
        let (m, k) = if self.transpose_a { (a1, a0) } else { (a0, a1) };
        let (k_b, n) = if self.transpose_b { (b1, b0) } else { (b0, b1) };
        (batch == batch_b && k == k_b).then_some([*batch, *m, *n, *k])
    }
}

impl Op for BatchedMatmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 2)?;
        expect_real(self.name(), "a", inputs[0])?;
        expect_typed(self.name(), "b", inputs[1], inputs[0].dtype, &inputs[1].shape)?;
        let Some([batch, m, n, _]) = self.sizes(inputs[0], inputs[1]) else {
            return Err(Error::shape(self.name(), format!("{} and {} do not fit {self:?}", inputs[0], inputs[1])));
        };
        Ok(vec![inputs[0].with_shape([batch, m, n])])
    }

    fn cost(&self, io: &Signature) -> Cost {
        let k = self.sizes(&io.inputs[0], &io.inputs[1]).map_or(0, |s| s[3]) as u64;
        Cost { flops: 2 * k * io.out_elements(), bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], wanted: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None, None]) };
        let (a, b) = (node.inputs[0], node.inputs[1]);
        let (ta, tb) = (self.transpose_a, self.transpose_b);
        let mut product = |wanted: bool, x: Value, y: Value, transpose_a, transpose_b| {
            wanted.then(|| g.apply(BatchedMatmul { transpose_a, transpose_b }, &[x, y])).transpose()
        };
        // dA = dY·Bᵀ and dB = Aᵀ·dY, or their transposes.
        let da = if ta { product(wanted[0], b, dy, tb, true)? } else { product(wanted[0], dy, b, false, !tb)? };
        let db = if tb { product(wanted[1], dy, a, true, ta)? } else { product(wanted[1], a, dy, !ta, false)? };
        Ok(vec![da, db])
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        target.stores(dtype)
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let Some([batch, m, n, k]) = self.sizes(&io.inputs[0], &io.inputs[1]) else { return Ok(vec![]) };
        Ok(match target {
            Target::Cuda(target) => {
                let entry = match (self.transpose_a, self.transpose_b) {
                    (false, false) => "matmul_nn",
                    (false, true) => "matmul_nt",
                    (true, false) => "matmul_tn",
                    (true, true) => "matmul_tt",
                };
                let product = PlainProduct {
                    name: self.name(),
                    file: ptx!("matmul"),
                    entry,
                    dtype: io.inputs[0].dtype,
                    out: io.outputs[0].dtype,
                    largest: if io.inputs[0].dtype == DType::F32 { 128 } else { 64 },
                    batch,
                    sizes: [m, n, k],
                    stored: [io.outputs[0].elements(), n],
                    scalars: &[batch],
                };
                product.launches(target)
            }
            Target::Cpu => {
                let launch = Launch::cpu(self.name(), kernel, 2, 1).scalars([m, n, k]);
                vec![launch.scalars([self.transpose_a, self.transpose_b])]
            }
            Target::Wgpu(_) if io.outputs[0].elements() == 0 => vec![],
            Target::Wgpu(target) => {
                along(0, &[], io, target, |io| match io.outputs[0].shape[0] == 1 && !self.transpose_a {
                    // Rows of a, which lie together.
                    true => along(1, &[1], io, target, |io| self.shaders(io, target)),
                    false => self.shaders(io, target),
                })?
            }
        })
    }
}

impl BatchedMatmul {
    fn shaders(&self, io: &Signature, target: &WgpuTarget) -> Result<Vec<Launch>> {
        let Some([batch, m, n, k]) = self.sizes(&io.inputs[0], &io.inputs[1]) else { return Ok(vec![]) };
        let dtype = io.inputs[0].dtype;
        let shader = |text| {
            let shader = Shader::new(self.name(), text);
            shader.flag("TRANSPOSE_A", self.transpose_a).flag("TRANSPOSE_B", self.transpose_b)
        };
        let args = [Arg::Input(0), Arg::Input(1), Arg::Output(0)];
        let launch = if let Some(edge) = target.matrices(dtype) {
            let text = wgsl_with_matrices!(
                edge, dtype; "lib/product", "matmul", "lib/matrix_product", "matmul_cooperative"
            );
            by_matrices(shader(text), target, [batch, m, n], args)
        } else if !target.software && [m, n, k].iter().all(|size| size.is_multiple_of(4)) {
            let blocks = ShaderBlocks::new(batch, [m, n, k], 1..=1, target);
            let text = wgsl!(dtype; "lib/x_fours", "lib/product_sizes", "lib/blocks", "matmul_blocks");
            Launch::wgsl(blocks.shader(shader(text)), target.grid(blocks.count), args)
        } else {
            let tiles = Tiling::new(batch, m, n);
            let shader = tiles.shader(shader(wgsl!(dtype; "lib/product", "matmul")));
            Launch::wgsl(shader, target.grid(tiles.count), args)
        };
        Ok(vec![launch.scalars([batch, m, n, k])])
    }
}

fn kernel(args: &Args) {
    let [m, n, k] = [0, 1, 2].map(|i| args.int(i));
    let (transpose_a, transpose_b) = (args.flag(3), args.flag(4));
    let (a, b, out) = (args.slice::<f32>(0), args.slice::<f32>(1), args.slice_mut::<f32>(2));
    if out.is_empty() {
        return;
    }
    let batch = out.len() / (m * n);
    let (row_blocks, col_blocks) = (m.div_ceil(M_BLOCK), n.div_ceil(N_BLOCK));
    let (rows, cols) = (m.div_ceil(row_blocks), n.div_ceil(col_blocks).next_multiple_of(PANEL));
    let col_blocks = n.div_ceil(cols);
    let out = Ptr::new(out);
    tasks(batch * row_blocks * col_blocks, batch * m * n * k / 64, |task| {
        let (i, rest) = (task / (row_blocks * col_blocks), task % (row_blocks * col_blocks));
        let (row0, col0) = (rest / col_blocks * rows, rest % col_blocks * cols);
        let (height, width) = (rows.min(m - row0.min(m)), cols.min(n - col0));
        let (a, b) = (&a[i * m * k..][..m * k], &b[i * k * n..][..k * n]);
        with_buffers(K_BLOCK * (rows + A_PAD), K_BLOCK * cols, |pack_a, pack| {
            for k0 in (0..k.max(1)).step_by(K_BLOCK) {
                let depth = K_BLOCK.min(k - k0);
                let pack = &mut pack[..depth * width.next_multiple_of(PANEL)];
                match (depth, transpose_b) {
                    (0, _) => {}
                    (_, true) => pack_cols(&b[col0 * k + k0..], k, width, depth, pack),
                    (_, false) => pack_rows(&b[k0 * n + col0..], n, width, pack),
                }
                // The columns of a transposed A lie far apart: they are brought together.
                let a = if transpose_a {
                    for (i, line) in pack_a.chunks_exact_mut(rows + A_PAD).enumerate().take(depth) {
                        line[..height].copy_from_slice(&a[(k0 + i) * m + row0..][..height]);
                    }
                    Left::Columns { a: pack_a.as_ptr(), stride: rows + A_PAD }
                } else {
                    Left::Rows { a: a.as_ptr().wrapping_add(row0 * k + k0), stride: k }
                };
                let tiles = Tiles {
                    a,
                    b: pack.as_ptr(),
                    b_panel: depth * PANEL,
                    c: out.raw().wrapping_add((i * m + row0) * n + col0),
                    c_row: n,
                    c_panel: PANEL,
                };
                // SAFETY: `height` rows of A and `depth` rows of the packed B; this block of y is this task's alone.
                unsafe { tiles.run([height, width, depth], k0 > 0) };
            }
        });
    });
}
