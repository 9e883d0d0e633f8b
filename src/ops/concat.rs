//! Tensors one after the other along an axis.

use super::lines::{self, by_unit, divisor};
use super::{Slice, expect_real, expect_typed};
use crate::cpu::threads::stretches;
use crate::graph::{Arg, Args, Cost, Graph, Launch, Node, Op, Shader, Signature, Target, Value, WgpuTarget, ptx, wgsl};
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// y = x₀ | x₁ | … along `axis`; two or more inputs that differ in that dimension at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Concat {
    pub axis: usize,
}

impl Op for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let [first, rest @ ..] = inputs else { return Err(Error::shape(self.name(), "takes 2 or more inputs, got 0")) };
        if rest.is_empty() || self.axis >= first.shape.len() {
            let reason = format!("{} inputs along axis {} of {first}", inputs.len(), self.axis);
            return Err(Error::shape(self.name(), reason));
        }
        let mut shape = first.shape.clone();
        expect_real(self.name(), "x", first)?;
        for x in rest {
            expect_typed(self.name(), "x", x, first.dtype, &x.shape)?;
            let size = x.shape.get(self.axis).copied().unwrap_or(0);
            let mut as_first = x.shape.clone();
            if let Some(n) = as_first.get_mut(self.axis) {
                *n = first.shape[self.axis];
            }
            if as_first != first.shape {
                return Err(Error::shape(self.name(), format!("{first} and {x} do not join along axis {}", self.axis)));
            }
            shape[self.axis] += size;
        }
        Ok(vec![first.with_shape(shape)])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 0, bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], wanted: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None; node.inputs.len()]) };
        let mut start = 0;
        let mut grads = Vec::with_capacity(node.inputs.len());
        for (x, wanted) in node.inputs.iter().zip(wanted) {
            let len = g.shape(*x)[self.axis];
            grads.push(if *wanted { Some(g.apply(Slice { axis: self.axis, start, len }, &[dy])?) } else { None });
            start += len;
        }
        Ok(grads)
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        target.stores(dtype)
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let runs = io.inputs.iter().map(|x| x.shape[self.axis..].iter().product::<usize>());
        match target {
            Target::Cuda(_) => Ok(self.fours(io, &runs.collect::<Vec<_>>())),
            Target::Cpu => Ok(vec![Launch::cpu(self.name(), kernel, io.inputs.len(), 1).scalars(runs)]),
            Target::Wgpu(target) => Ok(self.pairs(io, &runs.collect::<Vec<_>>(), target)),
        }
    }
}

impl Concat {
    /// Launches of the PTX kernel, which takes four inputs at a time; `runs` are what the inputs give to a row of y.
    fn fours(&self, io: &Signature, runs: &[usize]) -> Vec<Launch> {
        let dtype = io.inputs[0].dtype;
        let rows: usize = io.inputs[0].shape[..self.axis].iter().product();
        let unit = lines::unit(dtype, runs.iter().copied());
        let in_units = |n: usize| n * dtype.size() / unit;
        let (width, mut start) = (runs.iter().sum(), 0);
        let four = |(i, runs): (usize, &[usize])| {
            // An input that is not there is the first, of which nothing is taken.
            let input = |k: usize| Arg::Input(4 * i + if k < runs.len() { k } else { 0 });
            let args = (0..4).map(input).chain([Arg::Output(0)]);
            let made: usize = runs.iter().sum();
            let launch = by_unit(self.name(), ptx!("concat"), unit, rows * made * dtype.size(), args);
            let given = [0, 1, 2, 3].map(|k| in_units(runs.get(k).copied().unwrap_or(0)));
            let launch = launch.scalars(given).scalars([start, width].map(in_units));
            start += made;
            launch.scalars(divisor(in_units(made)))
        };
        runs.chunks(4).enumerate().map(four).collect()
    }

    /// Launches of the shader, which takes two inputs at a time; `runs` are what the inputs give to a row of y.
    fn pairs(&self, io: &Signature, runs: &[usize], target: &WgpuTarget) -> Vec<Launch> {
        let rows: usize = io.inputs[0].shape[..self.axis].iter().product();
        let width: usize = runs.iter().sum();
        let mut start = 0;
        let pair = |(i, runs): (usize, &[usize])| {
            let shader = Shader::new(self.name(), wgsl!(io.inputs[0].dtype; "lib/flat", "concat"));
            // An input without a partner is its own, of which nothing is taken.
            let (a, b) = (runs[0], runs.get(1).copied().unwrap_or(0));
            let args = [Arg::Input(2 * i), Arg::Input(2 * i + runs.len() - 1), Arg::Output(0)];
            let cut = (a + b == width).then_some(2);
            let launch = Launch::over(shader, target, rows * (a + b), args, cut).scalars([a, b, start, width]);
            start += a + b;
            launch
        };
        runs.chunks(2).enumerate().map(pair).collect()
    }
}

fn kernel(args: &Args) {
    let n = args.len() - 1;
    let inputs: Vec<(&[f32], usize)> = (0..n).map(|i| (args.slice(i), args.int(i))).collect();
    let width = inputs.iter().map(|(_, run)| run).sum();
    stretches(args.slice_mut(n), width, |row, mut col, mut part| {
        for (x, run) in &inputs {
            let len = run.saturating_sub(col).min(part.len());
            if len > 0 {
                let (to, rest) = part.split_at_mut(len);
                to.copy_from_slice(&x[row * run + col..][..len]);
                part = rest;
            }
            col = col.saturating_sub(*run);
        }
    });
}
