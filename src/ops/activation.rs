//! Pointwise nonlinearities: y = act(x), any shape.

use super::{elementwise, expect_inputs, expect_plain, expect_shape};
use crate::Result;
use crate::device::cpu::simd::{erf, exp, sigmoid, tanh};
use crate::graph::{Args, Cost, Graph, Launch, Node, Op, Signature, Target, Value};
use crate::tensor::TensorType;

/// A pointwise nonlinearity.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Activation {
    #[default]
    Identity,
    /// x · sigmoid(x)   (Elfwing et al. 2017)
    Silu,
    /// x · Φ(x), Φ the normal distribution function   (Hendrycks & Gimpel 2016)
    Gelu,
    /// GELU with Φ approximated through tanh   (ibid., section 2)
    GeluTanh,
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const FRAC_1_SQRT_2PI: f32 = 0.398_942_3;

impl Activation {
    /// The activation whose number (`as usize`) is `code`.
    pub(crate) fn from_code(code: usize) -> Self {
        match code {
            1 => Activation::Silu,
            2 => Activation::Gelu,
            3 => Activation::GeluTanh,
            _ => Activation::Identity,
        }
    }

    /// act(x)
    #[inline(always)]
    pub fn eval(self, x: f32) -> f32 {
        match self {
            Activation::Identity => x,
            Activation::Silu => x * sigmoid(x),
            Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)),
            Activation::GeluTanh => 0.5 * x * (1.0 + tanh(SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x))),
        }
    }

    /// act'(x)
    #[inline(always)]
    pub fn derivative(self, x: f32) -> f32 {
        match self {
            Activation::Identity => 1.0,
            Activation::Silu => {
                let s = sigmoid(x);
                s * (1.0 + x * (1.0 - s))
            }
            Activation::Gelu => {
                let phi = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
                phi + x * FRAC_1_SQRT_2PI * exp(-0.5 * x * x)
            }
            Activation::GeluTanh => {
                let t = tanh(SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x));
                0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * SQRT_2_OVER_PI * (1.0 + 3.0 * 0.044_715 * x * x)
            }
        }
    }
}

/// y = act(x), any shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Activate(pub Activation);

impl Op for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        expect_plain(self.name(), "x", inputs[0])?;
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

    fn lower(&self, _: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let Target::Cpu = target;
        Ok(vec![Launch::cpu(self.name(), forward, 1, 1).scalar(self.0 as usize)])
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
        expect_plain(self.name(), "x", inputs[0])?;
        expect_shape(self.name(), "dy", inputs[1], &inputs[0].shape)?;
        Ok(vec![inputs[0].clone()])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 12 * io.out_elements(), bytes: io.bytes() }
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(1, 0), (0, 0)]
    }

    fn lower(&self, _: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let Target::Cpu = target;
        Ok(vec![Launch::cpu(self.name(), backward, 2, 1).scalar(self.0 as usize)])
    }
}

fn forward(args: &Args) {
    match args.int(0) {
        1 => elementwise(args, |[x]| Activation::Silu.eval(x)),
        2 => elementwise(args, |[x]| Activation::Gelu.eval(x)),
        3 => elementwise(args, |[x]| Activation::GeluTanh.eval(x)),
        _ => elementwise(args, |[x]| x),
    }
}

fn backward(args: &Args) {
    match args.int(0) {
        1 => elementwise(args, |[x, dy]| dy * Activation::Silu.derivative(x)),
        2 => elementwise(args, |[x, dy]| dy * Activation::Gelu.derivative(x)),
        3 => elementwise(args, |[x, dy]| dy * Activation::GeluTanh.derivative(x)),
        _ => elementwise(args, |[_, dy]| dy),
    }
}
