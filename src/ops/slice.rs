//! A part of a tensor along an axis.

use super::lines::{self, by_unit, divisor};
use super::{Pad, expect_inputs, expect_real};
use crate::cpu::threads::stretches;
use crate::graph::{Arg, Args, Cost, Graph, Launch, Node, Op, PLACES, Shader, Signature, Target, Value, ptx, wgsl};
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// y = x[…, start .. start + len, …] along `axis`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slice {
    pub axis: usize,
    pub start: usize,
    pub len: usize,
}

impl Op for Slice {
    fn name(&self) -> &'static str {
        "slice"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        expect_real(self.name(), "x", inputs[0])?;
        let mut shape = inputs[0].shape.clone();
        match (shape.get_mut(self.axis), self.start.checked_add(self.len)) {
            (Some(n), Some(end)) if end <= *n => *n = self.len,
            _ => return Err(Error::shape(self.name(), format!("{} has no part {self:?}", inputs[0]))),
        }
        Ok(vec![inputs[0].with_shape(shape)])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 0, bytes: 2 * io.outputs[0].bytes() as u64 }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        let after = g.shape(node.inputs[0])[self.axis] - self.start - self.len;
        Ok(vec![Some(g.apply(Pad { axis: self.axis, before: self.start, after }, &[dy])?)])
    }

    /// If nothing outside of the part lies between its numbers, and it begins where an argument may begin.
    fn view(&self, io: &Signature) -> Option<usize> {
        let (before, inner) = io.inputs[0].shape.split_at(self.axis);
        let first = self.start * inner[1..].iter().product::<usize>() * io.inputs[0].dtype.size();
        (before.iter().all(|n| *n == 1) && first.is_multiple_of(PLACES)).then_some(first)
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        target.stores(dtype)
    }

    fn equals(&self, other: &dyn Op) -> bool {
        other.downcast::<Self>() == Some(self)
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let x = &io.inputs[0].shape;
        let inner: usize = x[self.axis + 1..].iter().product();
        let sizes = [x[self.axis] * inner, self.start * inner, self.len * inner];
        let launch = match target {
            Target::Cuda(_) => {
                let (dtype, bytes) = (io.inputs[0].dtype, io.outputs[0].bytes());
                let unit = lines::unit(dtype, sizes);
                let [from, start, run] = sizes.map(|n| n * dtype.size() / unit);
                let launch = by_unit(self.name(), ptx!("slice"), unit, bytes, [Arg::Input(0), Arg::Output(0)]);
                return Ok(vec![launch.scalars([from, start]).scalars(divisor(run))]);
            }
            Target::Cpu => Launch::cpu(self.name(), kernel, 1, 1),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!(io.inputs[0].dtype; "lib/flat", "slice"));
                Launch::over(shader, target, io.outputs[0].elements(), [Arg::Input(0), Arg::Output(0)], [1])
            }
        };
        Ok(vec![launch.scalars(sizes)])
    }
}

fn kernel(args: &Args) {
    let [from, start, run] = [0, 1, 2].map(|i| args.int(i));
    let x = args.slice::<f32>(0);
    stretches(args.slice_mut(1), run, |row, col, part| {
        part.copy_from_slice(&x[row * from + start + col..][..part.len()]);
    });
}
