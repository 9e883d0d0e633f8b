//! Ancestral sampling (Ho, Jain & Abbeel 2020, arXiv 2006.11239, eq. 7 and algorithm 2): `x' ~ q(x' | x, x0)` with
//!
//! ```text
//! mean = sqrt(alpha_bar') beta / (1 - alpha_bar) x0 + sqrt(alpha) (1 - alpha_bar') / (1 - alpha_bar) x
//!      = alpha' x0 + sqrt(sigma'² - beta_tilde) eps
//! beta_tilde = sigma'² (1 - (s'/s)²),    beta = sigma² (1 - (s'/s)²),    s = sigma / alpha
//! ```
//!
//! The second form of the mean is the one used: it holds in all coordinates and for any two levels.

use super::{Plan, split_noise};
use crate::diffusion::config::Variance;
use crate::diffusion::trajectory::{Reg, Stage};

pub(super) fn stages(plan: &Plan, i: usize) -> Vec<Stage> {
    let rung = plan.rungs[i];
    let answer = plan.ask(rung.from, [Reg::X, Reg::OUT, Reg::X0]);
    let (kept, posterior) = split_noise(rung.from, rung.to, 1.0);
    let fresh = match plan.config.variance {
        Variance::FixedSmall => posterior,
        Variance::FixedLarge if plan.is_last(i) => 0.0,
        Variance::FixedLarge => posterior * rung.from.sigma / rung.to.sigma,
    };
    let mut stages = answer.stages;
    stages.push(Stage::noise(i));
    stages.push(Stage::update(Reg::X, rung.to.alpha * &answer.x0 + kept * &answer.eps + fresh * Reg::NOISE));
    stages
}
