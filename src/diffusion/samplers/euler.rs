//! Euler's method on the probability flow ODE `dx/dsigma = eps` (Song et al. 2021, arXiv 2011.13456;
//! Karras et al. 2022, eq. 1), in variance-exploding or flow coordinates:
//!
//! ```text
//! x' = x + (sigma' - sigma) eps = x0 + sigma' eps
//! ```
//!
//! If asked for, with noise put back before the step (Karras et al. 2022, algorithm 2 without its correction).

use super::{Plan, churn, recompose};
use crate::diffusion::trajectory::{Reg, Stage};

pub(super) fn stages(plan: &Plan, i: usize) -> Vec<Stage> {
    let (mut stages, from) = churn(plan, i);
    let answer = plan.ask(from, [Reg::X, Reg::OUT, Reg::X0]);
    stages.extend(answer.stages);
    stages.push(Stage::update(Reg::X, recompose(plan.rungs[i].to, &answer.x0, &answer.eps)));
    stages
}
