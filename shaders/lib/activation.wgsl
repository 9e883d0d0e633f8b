// Pointwise nonlinearities and their derivatives; the numbers are those of `ops::Activation`.

// 0 identity, 1 SiLU, 2 GELU, 3 GELU through tanh, 4 ReLU
override ACTIVATION: u32 = 0u;

const SQRT_2_OVER_PI: f32 = 0.7978846;
const FRAC_1_SQRT_2PI: f32 = 0.3989423;

fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(min(-x, 88.0)));
}

// The normal distribution function; erf by Abramowitz & Stegun 7.1.26, off by at most 1.5e-7.
fn normal_cdf(x: f32) -> f32 {
    let z = abs(x) * 0.70710678;
    let t = 1.0 / (1.0 + 0.3275911 * z);
    let p = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    let tail = 0.5 * p * exp(-z * z);
    return select(1.0 - tail, tail, x < 0.0);
}

// (1 + tanh(u)) / 2 of GELU's approximation.
fn gelu_gate(x: f32) -> f32 {
    return sigmoid(2.0 * SQRT_2_OVER_PI * (x + 0.044715 * x * x * x));
}

fn act(x: f32) -> f32 {
    if ACTIVATION == 1u {
        return x * sigmoid(x);
    }
    if ACTIVATION == 2u {
        return x * normal_cdf(x);
    }
    if ACTIVATION == 3u {
        return x * gelu_gate(x);
    }
    if ACTIVATION == 4u {
        // NaN stays NaN, which `max` would hide.
        return select(x, 0.0, x < 0.0);
    }
    return x;
}

fn act_derivative(x: f32) -> f32 {
    if ACTIVATION == 1u {
        let g = sigmoid(x);
        return g * (1.0 + x * (1.0 - g));
    }
    if ACTIVATION == 2u {
        return normal_cdf(x) + x * FRAC_1_SQRT_2PI * exp(-0.5 * x * x);
    }
    if ACTIVATION == 3u {
        let g = gelu_gate(x);
        return g + x * 2.0 * g * (1.0 - g) * SQRT_2_OVER_PI * (1.0 + 0.134145 * x * x);
    }
    if ACTIVATION == 4u {
        return select(0.0, 1.0, x > 0.0);
    }
    return 1.0;
}
