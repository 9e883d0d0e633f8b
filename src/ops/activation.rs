//! Pointwise nonlinearities: y = act(x), any shape.

use super::{elementwise, expect_inputs, expect_real, expect_typed};
use crate::Result;
use crate::cpu::Activation;
use crate::graph::{Arg, Args, Cost, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, ptx, wgsl};
use crate::tensor::{DType, TensorType};

/// y = act(x), any shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Activate(pub Activation);

impl Op for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        expect_real(self.name(), "x", inputs[0])?;
        Ok(vec![inputs[0].clone()])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 8 * io.out_elements(), bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        Ok(vec![Some(g.apply(ActivateGrad(self.0), &[node.inputs[0], dy])?)])
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
        Ok(vec![match target {
            Target::Cuda(_) => {
                let (dtype, n) = (io.inputs[0].dtype, io.outputs[0].stored());
                let kernel = Ptx::new(self.name(), ptx!("activation"), dtype);
                Launch::ptx_flat(kernel, dtype, n, [Arg::Input(0), Arg::Output(0)]).scalar(self.0 as usize)
            }
            Target::Cpu => Launch::cpu(self.name(), forward, 1, 1).scalar(self.0 as usize),
            Target::Wgpu(target) => {
                let shader =
                    Shader::new(self.name(), wgsl!(io.inputs[0].dtype; "lib/flat", "lib/activation", "activation"));
                Launch::flat(shader.constant("ACTIVATION", self.0 as u32), target, io.outputs[0].stored(), 1)
            }
        }])
    }
}

/// dx = dy · act'(x); inputs x, dy.
#[derive(Clone, Debug, PartialEq)]
pub struct ActivateGrad(pub Activation);

impl Op for ActivateGrad {
    fn name(&self) -> &'static str {
        "activation_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 2)?;
        expect_real(self.name(), "x", inputs[0])?;
        expect_typed(self.name(), "dy", inputs[1], inputs[0].dtype, &inputs[0].shape)?;
        Ok(vec![inputs[0].clone()])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 12 * io.out_elements(), bytes: io.bytes() }
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(1, 0), (0, 0)]
    }

    fn takes(&self, _: DType, target: &Target) -> bool {
        matches!(target, Target::Cuda(_))
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        Ok(vec![match target {
            Target::Cuda(_) => {
                let (dtype, n) = (io.inputs[0].dtype, io.outputs[0].stored());
                let kernel = Ptx::new(self.name(), ptx!("activation_grad"), dtype);
                let args = [Arg::Input(0), Arg::Input(1), Arg::Output(0)];
                Launch::ptx_flat(kernel, dtype, n, args).scalar(self.0 as usize)
            }
            Target::Cpu => Launch::cpu(self.name(), backward, 2, 1).scalar(self.0 as usize),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!("lib/flat", "lib/activation", "activation_grad"));
                Launch::flat(shader.constant("ACTIVATION", self.0 as u32), target, io.outputs[0].stored(), 2)
            }
        }])
    }
}

fn forward(args: &Args) {
    match args.int(0) {
        1 => elementwise(args, |[x]| Activation::Silu.eval(x)),
        2 => elementwise(args, |[x]| Activation::Gelu.eval(x)),
        3 => elementwise(args, |[x]| Activation::GeluTanh.eval(x)),
        4 => elementwise(args, |[x]| Activation::Relu.eval(x)),
        _ => elementwise(args, |[x]| x),
    }
}

fn backward(args: &Args) {
    match args.int(0) {
        1 => elementwise(args, |[x, dy]| dy * Activation::Silu.derivative(x)),
        2 => elementwise(args, |[x, dy]| dy * Activation::Gelu.derivative(x)),
        3 => elementwise(args, |[x, dy]| dy * Activation::GeluTanh.derivative(x)),
        4 => elementwise(args, |[x, dy]| dy * Activation::Relu.derivative(x)),
        _ => elementwise(args, |[_, dy]| dy),
    }
}
