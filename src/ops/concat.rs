//! Tensors one after the other along an axis.

use super::{Slice, expect_plain};
use crate::cpu::threads::stretches;
use crate::graph::{Args, Cost, Graph, Launch, Node, Op, Signature, Target, Value};
use crate::tensor::TensorType;
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
        expect_plain(self.name(), "x", first)?;
        for x in rest {
            expect_plain(self.name(), "x", x)?;
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

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let Target::Cpu = target else { return target.lacks(self.name()) };
        let runs = io.inputs.iter().map(|x| x.shape[self.axis..].iter().product::<usize>());
        Ok(vec![Launch::cpu(self.name(), kernel, io.inputs.len(), 1).scalars(runs)])
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
