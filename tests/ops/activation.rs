use crate::harness::{Case, f32s};
use langevin::ops::{Activate, Activation};

fn erf(x: f64) -> f64 {
    // Composite Simpson on the integral: plenty for a reference at |x| ≤ 6.
    let n = 400;
    let h = x / n as f64;
    let f = |t: f64| (-t * t).exp();
    let s: f64 = (0..=n)
        .map(|k| {
            f(h * k as f64)
                * if k == 0 || k == n {
                    1.0
                } else if k % 2 == 1 {
                    4.0
                } else {
                    2.0
                }
        })
        .sum();
    s * h / 3.0 * 2.0 / std::f64::consts::PI.sqrt()
}

pub fn reference(act: Activation, x: f64) -> f64 {
    match act {
        Activation::Identity => x,
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        Activation::Relu => x.max(0.0),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
    }
}

#[test]
fn activations() {
    for act in [Activation::Identity, Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
        for (n, scale) in [(1, 1.0), (17, 0.01), (100, 6.0)] {
            let x = f32s(&[n], 3).map(|v| v * scale);
            // Finite differences across ReLU's edge would not give its slope.
            let x = if act == Activation::Relu { x.map(|v| v + 0.1 * v.signum()) } else { x };
            Case::new(format!("{act:?} {n}"), Activate(act), vec![x], |i| vec![i[0].map(|x| reference(act, x))])
                .check();
        }
    }
}
