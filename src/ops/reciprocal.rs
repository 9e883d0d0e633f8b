//! y = 1/x.

use super::{Affine, Binary, elementwise, expect_inputs, expect_plain};
use crate::Result;
use crate::graph::{Arg, Args, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, ptx, wgsl};
use crate::tensor::{DType, TensorType};

/// y = 1/x, any shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reciprocal;

impl Op for Reciprocal {
    fn name(&self) -> &'static str {
        "reciprocal"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        expect_plain(self.name(), "x", inputs[0])?;
        Ok(vec![inputs[0].clone()])
    }

    /// dx = −dy·y²
    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        let y = node.outputs[0];
        let square = g.apply(Binary::Mul, &[y, y])?;
        let product = g.apply(Binary::Mul, &[dy, square])?;
        Ok(vec![Some(g.apply(Affine::scale(-1.0), &[product])?)])
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        Ok(vec![match target {
            Target::Cuda(_) => {
                let kernel = Ptx::new(self.name(), ptx!("reciprocal"), DType::F32);
                Launch::ptx_flat(kernel, DType::F32, io.outputs[0].stored(), [Arg::Input(0), Arg::Output(0)])
            }
            Target::Cpu => Launch::cpu(self.name(), |args: &Args| elementwise(args, |[x]| 1.0 / x), 1, 1),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!("lib/flat", "reciprocal"));
                Launch::flat(shader, target, io.outputs[0].stored(), 1)
            }
        }])
    }
}
