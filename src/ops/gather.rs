//! One slice of each sample, by index.

use super::embedding::expect_i32;
use super::lines::{by_unit, divisor};
use super::{expect_inputs, expect_plain};
use crate::cpu::threads::stretches;
use crate::graph::{Arg, Args, Cost, Graph, Launch, Node, Op, Shader, Signature, Target, Value, ptx, wgsl};
use crate::tensor::TensorType;
use crate::{Error, Result};

/// `y[b] = x[b, index[b]]`   x `[B, K, …]`, index i32 `[B]` → y `[B, …]`. An index outside 0..K gives NaN.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gather;

impl Op for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 2)?;
        expect_plain(self.name(), "x", inputs[0])?;
        let [b, _, rest @ ..] = &inputs[0].shape[..] else {
            return Err(Error::shape(self.name(), format!("x must be [B, K, ..], is {}", inputs[0])));
        };
        expect_i32(self.name(), "index", inputs[1], &[*b])?;
        Ok(vec![inputs[0].with_shape([&[*b], rest].concat())])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 0, bytes: (2 * io.outputs[0].bytes() + io.inputs[1].bytes()) as u64 }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], wanted: &[bool]) -> Result<Vec<Option<Value>>> {
        let (Some(dy), true) = (dy[0], wanted[0]) else { return Ok(vec![None; 2]) };
        let count = g.shape(node.inputs[0])[1];
        Ok(vec![Some(g.apply(GatherGrad { count }, &[dy, node.inputs[1]])?), None])
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let x = &io.inputs[0].shape;
        let sizes = [x[1], x[2..].iter().product()];
        let launch = match target {
            Target::Cuda(_) => {
                let [count, inner] = sizes;
                let unit = if inner.is_multiple_of(4) { 16 } else { 4 };
                let args = [Arg::Input(0), Arg::Input(1), Arg::Output(0)];
                let launch = by_unit(self.name(), ptx!("gather"), unit, io.outputs[0].bytes(), args);
                return Ok(vec![launch.scalar(count).scalars(divisor(4 * inner / unit))]);
            }
            Target::Cpu => Launch::cpu(self.name(), kernel, 2, 1),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!("lib/flat", "gather"));
                let args = [Arg::Input(0), Arg::Input(1), Arg::Output(0)];
                Launch::over(shader, target, io.outputs[0].elements(), args, [2])
            }
        };
        Ok(vec![launch.scalars(sizes)])
    }
}

fn kernel(args: &Args) {
    let [count, inner] = [0, 1].map(|i| args.int(i));
    let (x, index) = (args.slice::<f32>(0), args.slice::<i32>(1));
    stretches(args.slice_mut(2), inner, |b, col, part| match usize::try_from(index[b]) {
        Ok(k) if k < count => part.copy_from_slice(&x[(b * count + k) * inner + col..][..part.len()]),
        _ => part.fill(f32::NAN),
    });
}

/// dx of [`Gather`]: dy `[B, …]`, index i32 `[B]` → `[B, count, …]`, dy at the index and zero elsewhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GatherGrad {
    pub count: usize,
}

impl Op for GatherGrad {
    fn name(&self) -> &'static str {
        "gather_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 2)?;
        let [b, rest @ ..] = &inputs[0].shape[..] else {
            return Err(Error::shape(self.name(), format!("dy must be [B, ..], is {}", inputs[0])));
        };
        expect_plain(self.name(), "dy", inputs[0])?;
        expect_i32(self.name(), "index", inputs[1], &[*b])?;
        Ok(vec![inputs[0].with_shape([&[*b, self.count], rest].concat())])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 0, bytes: io.bytes() }
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let inner = io.inputs[0].shape[1..].iter().product::<usize>();
        let launch = match target {
            Target::Cuda(_) => {
                let unit = if inner.is_multiple_of(4) { 16 } else { 4 };
                let args = [Arg::Input(0), Arg::Input(1), Arg::Output(0)];
                let launch = by_unit(self.name(), ptx!("gather_grad"), unit, io.outputs[0].bytes(), args);
                return Ok(vec![launch.scalars(divisor(self.count)).scalars(divisor(4 * inner / unit))]);
            }
            Target::Cpu => Launch::cpu(self.name(), grad_kernel, 2, 1),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!("lib/flat", "gather_grad"));
                let args = [Arg::Input(0), Arg::Input(1), Arg::Output(0)];
                Launch::over(shader, target, io.outputs[0].elements(), args, [2])
            }
        };
        Ok(vec![launch.scalars([self.count, inner])])
    }
}

fn grad_kernel(args: &Args) {
    let [count, inner] = [0, 1].map(|i| args.int(i));
    let (dy, index) = (args.slice::<f32>(0), args.slice::<i32>(1));
    stretches(args.slice_mut(2), inner, |row, col, part| {
        let (b, k) = (row / count, row % count);
        if usize::try_from(index[b]) == Ok(k) {
            part.copy_from_slice(&dy[b * inner + col..][..part.len()]);
        } else {
            part.fill(0.0);
        }
    });
}
