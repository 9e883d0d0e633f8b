//! Ancestral sampling in variance-exploding coordinates (k-diffusion's `euler_ancestral`): an Euler step down to
//! `sigma_down`, then fresh noise up to `sigma'`:
//!
//! ```text
//! x' = x0 + sigma_down eps + sigma_up noise
//! sigma_up = eta sigma' sqrt(1 - (sigma'/sigma)²),    sigma_down² = sigma'² - sigma_up²
//! ```

use super::{Plan, split_noise};
use crate::diffusion::trajectory::{Reg, Stage};

pub(super) fn stages(plan: &Plan, i: usize) -> Vec<Stage> {
    let rung = plan.rungs[i];
    let answer = plan.ask(rung.from, [Reg::X, Reg::OUT, Reg::X0]);
    let (sigma_down, sigma_up) = split_noise(rung.from, rung.to, plan.options.eta.unwrap_or(1.0));
    let mut stages = answer.stages;
    stages.push(Stage::noise(i));
    stages.push(Stage::update(Reg::X, rung.to.alpha * &answer.x0 + sigma_down * &answer.eps + sigma_up * Reg::NOISE));
    stages
}
