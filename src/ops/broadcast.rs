//! Repeats a tensor along its middle.

use super::lines::{by_pack, divisor};
use super::{Reduce, Reduction, expect_inputs, expect_real};
use crate::cpu::threads::{Ptr, tasks};
use crate::graph::{Arg, Args, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, ptx, wgsl};
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// x seen as `[outer, inner]` → scale · x repeated over `middle`: `[outer, middle, inner]` under `shape`. The transpose of
/// [`Reduce`].
#[derive(Clone, Debug, PartialEq)]
pub struct Broadcast {
    pub outer: usize,
    pub middle: usize,
    pub inner: usize,
    pub scale: f32,
    pub shape: Vec<usize>,
}

impl Broadcast {
    /// `[inner]` repeated for each of `count` rows: `[count, inner…]`.
    pub fn rows(count: usize, x: &TensorType) -> Self {
        let shape = [&[count], &x.shape[..]].concat();
        Broadcast { outer: 1, middle: count, inner: x.elements(), scale: 1.0, shape }
    }
}

impl Op for Broadcast {
    fn name(&self) -> &'static str {
        "broadcast"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        expect_real(self.name(), "x", inputs[0])?;
        let out = inputs[0].with_shape(self.shape.clone());
        let fits =
            inputs[0].elements() == self.outer * self.inner && out.elements() == self.outer * self.middle * self.inner;
        if !fits {
            let dims = [self.outer, self.middle, self.inner];
            return Err(Error::shape(self.name(), format!("{} spread as {dims:?} does not make {out}", inputs[0])));
        }
        Ok(vec![out])
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        let shape = g.shape(node.inputs[0]).to_vec();
        let sum =
            Reduce { outer: self.outer, middle: self.middle, inner: self.inner, reduction: Reduction::Sum, shape };
        let dx = g.apply(sum, &[dy])?;
        Ok(vec![Some(if self.scale == 1.0 { dx } else { g.apply(super::Affine::scale(self.scale), &[dx])? })])
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        target.stores(dtype)
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let launch = match target {
            Target::Cuda(_) => {
                let dtype = io.inputs[0].dtype;
                let kernel = Ptx::new(self.name(), ptx!("broadcast"), dtype);
                let args = [Arg::Input(0), Arg::Output(0)];
                by_pack(kernel, dtype, io.outputs[0].elements(), self.inner, args).scalars(divisor(self.middle))
            }
            Target::Cpu => Launch::cpu(self.name(), kernel, 1, 1).scalars([self.outer, self.middle, self.inner]),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!(io.inputs[0].dtype; "lib/flat", "broadcast"));
                let args = [Arg::Input(0), Arg::Output(0)];
                Launch::over(shader, target, io.outputs[0].elements(), args, [1])
                    .scalars([self.inner, self.middle * self.inner])
            }
        };
        Ok(vec![launch.scalar(self.scale)])
    }
}

fn kernel(args: &Args) {
    let [outer, middle, inner] = [0, 1, 2].map(|i| args.int(i));
    let scale = args.float(3);
    let x = args.slice::<f32>(0);
    let out = args.slice_mut::<f32>(1);
    let work = out.len();
    let out = Ptr::new(out);
    tasks(outer, work, |o| {
        // SAFETY: one outer row a task.
        let out = unsafe { out.part(o * middle * inner, middle * inner) };
        if inner == 1 {
            return out.fill(x[o] * scale);
        }
        for line in out.chunks_exact_mut(inner) {
            for (y, x) in line.iter_mut().zip(&x[o * inner..(o + 1) * inner]) {
                *y = x * scale;
            }
        }
    });
}
