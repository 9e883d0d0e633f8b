//! y = a ∘ b, element by element, both of one shape.

use super::{Affine, elementwise, expect_inputs};
use crate::graph::{Arg, Args, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, ptx, wgsl};
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// An elementwise operation on two tensors of one type (weights in panels too).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    /// (a + b) · scale: what fusion makes of [`Binary::Add`] and [`Affine`].
    AddScaled(f32),
}

impl Binary {
    /// What the result is multiplied by.
    fn scale(&self) -> f32 {
        if let Binary::AddScaled(scale) = self { *scale } else { 1.0 }
    }
}

impl Op for Binary {
    fn name(&self) -> &'static str {
        match self {
            Binary::Add | Binary::AddScaled(_) => "add",
            Binary::Sub => "sub",
            Binary::Mul => "mul",
        }
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 2)?;
        if inputs[0] != inputs[1] {
            return Err(Error::shape(self.name(), format!("operands differ: {} and {}", inputs[0], inputs[1])));
        }
        Ok(vec![inputs[0].clone()])
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], wanted: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None, None]) };
        let (a, b) = (node.inputs[0], node.inputs[1]);
        Ok(match self {
            Binary::Add => vec![Some(dy), Some(dy)],
            Binary::AddScaled(scale) => vec![Some(g.apply(Affine::scale(*scale), &[dy])?); 2],
            Binary::Sub => vec![Some(dy), if wanted[1] { Some(g.apply(Affine::scale(-1.0), &[dy])?) } else { None }],
            Binary::Mul => vec![
                if wanted[0] { Some(g.apply(Binary::Mul, &[dy, b])?) } else { None },
                if wanted[1] { Some(g.apply(Binary::Mul, &[dy, a])?) } else { None },
            ],
        })
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (1, 0)]
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
        Ok(vec![match (target, self) {
            (Target::Cuda(_), _) => {
                let (dtype, n) = (io.inputs[0].dtype, io.outputs[0].stored());
                let args = [Arg::Input(0), Arg::Input(1), Arg::Output(0)];
                let launch = Launch::ptx_flat(Ptx::new(self.name(), ptx!("binary"), dtype), dtype, n, args);
                if self.name() == "add" { launch.scalar(self.scale()) } else { launch }
            }
            (Target::Cpu, Binary::Add) => Launch::cpu("add", |args| elementwise(args, |[a, b]| a + b), 2, 1),
            (Target::Cpu, Binary::AddScaled(scale)) => {
                let add = |args: &Args| {
                    let scale = args.float(0);
                    elementwise(args, |[a, b]| (a + b) * scale)
                };
                Launch::cpu("add", add, 2, 1).scalar(*scale)
            }
            (Target::Cpu, Binary::Sub) => Launch::cpu("sub", |args| elementwise(args, |[a, b]| a - b), 2, 1),
            (Target::Cpu, Binary::Mul) => Launch::cpu("mul", |args| elementwise(args, |[a, b]| a * b), 2, 1),
            (Target::Wgpu(target), _) => {
                let operation = match self {
                    Binary::Add | Binary::AddScaled(_) => 0u32,
                    Binary::Sub => 1,
                    Binary::Mul => 2,
                };
                let shader = Shader::new(self.name(), wgsl!(io.inputs[0].dtype; "lib/flat", "binary"));
                let shader = shader.constant("OPERATION", operation).constant("SCALE", self.scale());
                Launch::flat(shader, target, io.outputs[0].stored(), 2)
            }
        }])
    }
}
