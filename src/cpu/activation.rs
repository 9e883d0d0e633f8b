//! Pointwise nonlinearities and their derivatives.

use super::simd::{erf, exp, sigmoid, tanh};

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
    /// max(x, 0); the derivative at 0 is 0
    Relu,
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
            4 => Activation::Relu,
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
            // NaN stays NaN, which `max` would hide.
            Activation::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
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
            Activation::Relu => {
                if x > 0.0 {
                    1.0
                } else {
                    0.0
                }
            }
        }
    }
}
