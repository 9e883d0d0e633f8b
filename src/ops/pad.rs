//! Zeros around a tensor along an axis.

use super::lines::{self, by_unit, divisor};
use super::{Slice, expect_inputs, expect_real};
use crate::cpu::threads::stretches;
use crate::graph::{Arg, Args, Cost, Graph, Launch, Node, Op, Shader, Signature, Target, Value, ptx, wgsl};
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// y = `before` zeros | x | `after` zeros along `axis`. The transpose of [`Slice`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pad {
    pub axis: usize,
    pub before: usize,
    pub after: usize,
}

impl Op for Pad {
    fn name(&self) -> &'static str {
        "pad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        expect_real(self.name(), "x", inputs[0])?;
        let mut shape = inputs[0].shape.clone();
        match shape.get_mut(self.axis) {
            Some(n) => *n += self.before + self.after,
            None => return Err(Error::shape(self.name(), format!("{} has no axis {}", inputs[0], self.axis))),
        }
        Ok(vec![inputs[0].with_shape(shape)])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 0, bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        let len = g.shape(node.inputs[0])[self.axis];
        Ok(vec![Some(g.apply(Slice { axis: self.axis, start: self.before, len }, &[dy])?)])
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        target.stores(dtype)
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let x = &io.inputs[0].shape;
        let inner: usize = x[self.axis + 1..].iter().product();
        let [before, run, after] = [self.before, x[self.axis], self.after].map(|n| n * inner);
        Ok(vec![match target {
            Target::Cuda(_) => {
                let dtype = io.inputs[0].dtype;
                let unit = lines::unit(dtype, [before, run, after]);
                let [before, run, after] = [before, run, after].map(|n| n * dtype.size() / unit);
                let args = [Arg::Input(0), Arg::Output(0)];
                let launch = by_unit(self.name(), ptx!("pad"), unit, io.outputs[0].bytes(), args);
                launch.scalars([before, run]).scalars(divisor(before + run + after))
            }
            Target::Cpu => Launch::cpu(self.name(), kernel, 1, 1).scalars([before, run, after]),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!(io.inputs[0].dtype; "lib/flat", "pad"));
                Launch::over(shader, target, io.outputs[0].elements(), [Arg::Input(0), Arg::Output(0)], [1]).scalars([
                    before,
                    run,
                    before + run + after,
                ])
            }
        }])
    }
}

fn kernel(args: &Args) {
    let [before, run, after] = [0, 1, 2].map(|i| args.int(i));
    let x = args.slice::<f32>(0);
    stretches(args.slice_mut(1), before + run + after, |row, col, part| {
        // The columns of `part` that lie in x.
        let start = before.saturating_sub(col).min(part.len());
        let end = (before + run).saturating_sub(col).clamp(start, part.len());
        part[..start].fill(0.0);
        if start < end {
            part[start..end].copy_from_slice(&x[row * run + col + start - before..][..end - start]);
        }
        part[end..].fill(0.0);
    });
}
