//! Heun's method on the probability flow ODE (Karras et al. 2022, arXiv 2206.00364, algorithm 1; with churn
//! algorithm 2): an Euler step, and where it does not end at zero noise, a second one with the mean of both slopes.
//!
//! ```text
//! x_hat = x + (sigma' - sigma) d(x, sigma)
//! x'    = x + (sigma' - sigma) (d(x, sigma) + d(x_hat, sigma')) / 2
//! ```
//!
//! The slope of `x = alpha x0 + sigma eps` is `d = dx/dsigma = eps + (dalpha/dsigma) x0`. In both coordinates used here
//! `alpha` is straight in `sigma`: `dalpha/dsigma` is 0 in variance-exploding ones and -1 in flow matching's.

use super::{Answer, Plan, churn, recompose};
use crate::diffusion::expr::Expr;
use crate::diffusion::levels::Level;
use crate::diffusion::trajectory::{Reg, Stage};

pub(super) fn stages(plan: &Plan, i: usize) -> Vec<Stage> {
    let to = plan.rungs[i].to;
    let (mut stages, from) = churn(plan, i);
    let first = plan.ask(from, [Reg::X, Reg::OUT, Reg::X0]);
    stages.extend(first.stages.iter().cloned());
    if to.sigma == 0.0 {
        stages.push(Stage::update(Reg::X, recompose(to, &first.x0, &first.eps)));
        return stages;
    }
    stages.push(Stage::update(Reg::X_HAT, recompose(to, &first.x0, &first.eps)));
    let second = plan.ask(to, [Reg::X_HAT, Reg::OUT_HAT, Reg::X0_HAT]);
    stages.extend(second.stages.iter().cloned());
    let half = 0.5 * (to.sigma - from.sigma);
    let slopes = slope(&first, from, to) + slope(&second, from, to);
    stages.push(Stage::update(Reg::X, 1.0 * Reg::X + half * &slopes));
    stages
}

/// `dx/dsigma` on the way between two levels.
fn slope(answer: &Answer, from: Level, to: Level) -> Expr {
    (to.alpha - from.alpha) / (to.sigma - from.sigma) * &answer.x0 + 1.0 * &answer.eps
}
