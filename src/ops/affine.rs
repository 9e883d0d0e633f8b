//! y = scale · x + shift with fixed numbers.

use super::{expect_inputs, expect_real};
use crate::Result;
use crate::graph::{Arg, Args, Cost, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, ptx, wgsl};
use crate::tensor::{DType, TensorType};

/// y = scale · x + shift, any shape. A weight in panels must keep its zero padding: use shift 0 there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    pub scale: f32,
    pub shift: f32,
}

impl Affine {
    /// y = scale · x
    pub fn scale(scale: f32) -> Self {
        Affine { scale, shift: 0.0 }
    }
}

impl Op for Affine {
    fn name(&self) -> &'static str {
        "affine"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        if self.shift != 0.0 {
            expect_real(self.name(), "x", inputs[0])?;
        }
        Ok(vec![inputs[0].clone()])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 2 * io.out_elements(), bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, _: &Node, dy: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        Ok(vec![Some(if self.scale == 1.0 { dy } else { g.apply(Affine::scale(self.scale), &[dy])? })])
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
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
        let launch = match target {
            Target::Cuda(_) => {
                let (dtype, n) = (io.inputs[0].dtype, io.outputs[0].stored());
                Launch::ptx_flat(
                    Ptx::new(self.name(), ptx!("affine"), dtype),
                    dtype,
                    n,
                    [Arg::Input(0), Arg::Output(0)],
                )
            }
            Target::Cpu => Launch::cpu(self.name(), kernel, 1, 1),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!(io.inputs[0].dtype; "lib/flat", "affine"));
                Launch::flat(shader, target, io.outputs[0].stored(), 1)
            }
        };
        Ok(vec![launch.scalars([self.scale, self.shift])])
    }
}

fn kernel(args: &Args) {
    let (scale, shift) = (args.float(0), args.float(1));
    super::elementwise(args, move |[x]| scale * x + shift);
}
