//! A linear layer of experts, each over the rows that go to it, and its weight gradient.

use super::embedding::expect_i32;
use super::linear::expect_weight;
use super::product::{Blocks, Tiling};
use super::{TransposeWeight, expect_inputs, expect_plain};
use crate::cpu::gemm::{Epilogue, Matrix, gemm_part, weight_grad_part};
use crate::graph::{Arg, Args, Cost, Graph, Launch, Node, Op, Shader, Signature, Target, Value, ptx, wgsl};
use crate::tensor::{DType, PANEL, TensorType};
use crate::{Error, Result};

/// `y[r] = x[r] · W[e]` for the rows offsets\[e\] ≤ r < offsets\[e + 1\] of every expert e   x `[R, K]`, W `[E, K, N]` in panels,
/// offsets i32 `[E + 1]`, from 0 to R and never falling → y `[R, N]`
///
/// The work is that of R rows, whatever E is and however they are shared out. Rows that no expert has are not written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpertLinear {
    /// The last expert's weight comes first, as [`TransposeWeight`] leaves them.
    pub reversed: bool,
}

/// E, of which the offsets are.
fn expect_offsets(op: &str, offsets: &TensorType) -> Result<usize> {
    expect_i32(op, "offsets", offsets, &[offsets.elements()])?;
    match offsets.elements() {
        0 | 1 => Err(Error::shape(op, format!("offsets must be [E + 1] with E ≥ 1, are {offsets}"))),
        n => Ok(n - 1),
    }
}

/// The rows of expert `e`, inside 0..`rows` whatever stands in `offsets`.
fn rows_of(offsets: &[i32], e: usize, rows: usize) -> std::ops::Range<usize> {
    let clamp = |v: i32| usize::try_from(v).map_or(0, |v| v.min(rows));
    let start = clamp(offsets[e]);
    start..clamp(offsets[e + 1]).max(start)
}

impl Op for ExpertLinear {
    fn name(&self) -> &'static str {
        "expert_linear"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 3)?;
        let experts = expect_offsets(self.name(), inputs[2])?;
        let [terms, n] = expect_weight(self.name(), inputs[1], DType::F32)?;
        expect_plain(self.name(), "x", inputs[0])?;
        match inputs[0].shape[..] {
            [rows, k] if k * experts == terms => Ok(vec![TensorType::f32([rows, n])]),
            _ => {
                let reason = format!("x [R, K] {} does not fit {experts} weights [K, N] {}", inputs[0], inputs[1]);
                Err(Error::shape(self.name(), reason))
            }
        }
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 2 * io.out_elements() * io.inputs[0].cols() as u64, bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], wanted: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None; 3]) };
        let (x, w, offsets) = (node.inputs[0], node.inputs[1], node.inputs[2]);
        let dx = if wanted[0] {
            let experts = g.shape(offsets)[0] - 1;
            let transposed = g.apply(TransposeWeight { taps: experts }, &[w])?;
            Some(g.apply(ExpertLinear { reversed: !self.reversed }, &[dy, transposed, offsets])?)
        } else {
            None
        };
        let dw = if wanted[1] {
            let shape = g.shape(w).to_vec();
            Some(g.apply(ExpertLinearWeightGrad { shape, reversed: self.reversed }, &[x, dy, offsets])?)
        } else {
            None
        };
        Ok(vec![dx, dw, None])
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let [rows, k, n] = [io.inputs[0].rows(), io.inputs[0].cols(), io.outputs[0].cols()];
        let experts = io.inputs[2].elements() - 1;
        let launch = match target {
            Target::Cuda(_) if io.outputs[0].elements() == 0 => return Ok(vec![]),
            Target::Cuda(target) => {
                let args = [Arg::Input(0), Arg::Input(1), Arg::Input(2), Arg::Output(0)];
                let blocks = Blocks::grouped(experts, rows, n, target);
                blocks.launch(self.name(), ptx!("expert_linear"), self.name(), DType::F32, &args)
            }
            Target::Cpu => Launch::cpu(self.name(), kernel, 3, 1),
            Target::Wgpu(_) if io.outputs[0].elements() == 0 => return Ok(vec![]),
            Target::Wgpu(target) => {
                let tiles = Tiling::grouped(experts, rows, n);
                let shader = Shader::new(self.name(), wgsl!("lib/product", "lib/experts", "expert_linear"));
                let args = [Arg::Input(0), Arg::Input(1), Arg::Input(2), Arg::Output(0)];
                Launch::wgsl(tiles.shader(shader), target.grid(tiles.count), args)
            }
        };
        Ok(vec![launch.scalars([rows, n, k, experts]).scalar(self.reversed)])
    }
}

fn kernel(args: &Args) {
    let [rows, n, k, experts] = [0, 1, 2, 3].map(|i| args.int(i));
    let reversed = args.flag(4);
    let (x, w, offsets) = (args.slice::<f32>(0), args.slice::<f32>(1), args.slice::<i32>(2));
    let y = args.slice_mut::<f32>(3);
    for e in 0..experts {
        let of = rows_of(offsets, e, rows);
        let slot = if reversed { experts - 1 - e } else { e };
        let (x, y) = (&x[of.start * k..of.end * k], &mut y[of.start * n..of.end * n]);
        let w = &w[(slot * k * PANEL).min(w.len())..];
        gemm_part(&Matrix { data: x, stride: k }, w, experts * k, [of.len(), n, k], &Epilogue::default(), y);
    }
}

/// The gradient of the weights of [`ExpertLinear`]: `dW[e] = x[r]ᵀ · dy[r]` over the rows of expert e, zero where there are
/// none.   x `[R, K]`, dy `[R, N]`, offsets i32 `[E + 1]` → dW in panels; `shape` is the weight's, with E·K rows
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertLinearWeightGrad {
    pub shape: Vec<usize>,
    /// As in [`ExpertLinear::reversed`].
    pub reversed: bool,
}

impl Op for ExpertLinearWeightGrad {
    fn name(&self) -> &'static str {
        "expert_linear_weight_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 3)?;
        expect_plain(self.name(), "x", inputs[0])?;
        expect_plain(self.name(), "dy", inputs[1])?;
        let experts = expect_offsets(self.name(), inputs[2])?;
        let out = TensorType::panels(self.shape.clone());
        let fits = inputs[0].rows() == inputs[1].rows()
            && inputs[0].cols() * experts == out.rows()
            && inputs[1].cols() == out.cols();
        if !fits {
            return Err(Error::shape(self.name(), format!("x {}, dy {} do not make {out}", inputs[0], inputs[1])));
        }
        Ok(vec![out])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 2 * io.inputs[0].elements() as u64 * io.inputs[1].cols() as u64, bytes: io.bytes() }
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let [rows, k, n] = [io.inputs[0].rows(), io.inputs[0].cols(), io.inputs[1].cols()];
        let experts = io.inputs[2].elements() - 1;
        let launch = match target {
            Target::Cuda(_) if io.outputs[0].elements() == 0 => return Ok(vec![]),
            Target::Cuda(target) => {
                let args = [Arg::Input(0), Arg::Input(1), Arg::Input(2), Arg::Output(0)];
                let blocks = Blocks { parts: 1, ..Blocks::new(experts, [k, n, rows / experts], 128, target) };
                blocks.launch(self.name(), ptx!("expert_linear_weight_grad"), self.name(), DType::F32, &args)
            }
            Target::Cpu => Launch::cpu(self.name(), weight_grad_kernel, 3, 1),
            Target::Wgpu(_) if io.outputs[0].elements() == 0 => return Ok(vec![]),
            Target::Wgpu(target) => {
                let tiles = Tiling::new(experts, k, n.next_multiple_of(PANEL));
                let shader = Shader::new(self.name(), wgsl!("lib/product", "lib/experts", "expert_linear_weight_grad"));
                let args = [Arg::Input(0), Arg::Input(1), Arg::Input(2), Arg::Output(0)];
                Launch::wgsl(tiles.shader(shader), target.grid(tiles.count), args)
            }
        };
        Ok(vec![launch.scalars([rows, n, k, experts]).scalar(self.reversed)])
    }
}

fn weight_grad_kernel(args: &Args) {
    let [rows, n, k, experts] = [0, 1, 2, 3].map(|i| args.int(i));
    let reversed = args.flag(4);
    let (x, dy, offsets) = (args.slice::<f32>(0), args.slice::<f32>(1), args.slice::<i32>(2));
    let dw = args.slice_mut::<f32>(3);
    for e in 0..experts {
        let of = rows_of(offsets, e, rows);
        let slot = if reversed { experts - 1 - e } else { e };
        let (x, dy) = (&x[of.start * k..of.end * k], &dy[of.start * n..of.end * n]);
        let at = (slot * k * PANEL).min(dw.len());
        weight_grad_part(&Matrix { data: x, stride: k }, dy, [of.len(), n, 1, k], experts * k, &mut dw[at..]);
    }
}
