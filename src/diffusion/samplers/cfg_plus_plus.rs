//! CFG++ (Chung et al. 2024, arXiv 2406.08070, algorithm 2): denoised latents from the conditional and the unconditional answer,
//! combined at a scale from 0 to 1; the noise that is put back from the unconditional answer alone:
//!
//! ```text
//! x' = alpha' (scale x0_cond + (1 - scale) x0_uncond) + sigma' eps_uncond
//! ```

use super::{Plan, recompose};
use crate::diffusion::reflection::leg;
use crate::diffusion::trajectory::{Reg, Stage};

/// What the unconditional operator answered.
const OUT_UNCONDITIONAL: Reg = Reg("out_unconditional");

pub(super) fn stages(plan: &Plan, i: usize, scale: f64) -> Vec<Stage> {
    let rung = plan.rungs[i];
    let ask = |leg, out| Stage::Query { leg, x: Reg::X, out, time: rung.from.time, scale: rung.from.scale };
    let mut stages = vec![ask(leg::MAIN, Reg::OUT), ask(leg::UNCONDITIONAL, OUT_UNCONDITIONAL)];
    let conditional = plan.x0(rung.from, Reg::X, Reg::OUT);
    let unconditional = plan.x0(rung.from, Reg::X, OUT_UNCONDITIONAL);
    let mut x0 = scale * &conditional + (1.0 - scale) * &unconditional;
    if plan.config.clip.is_some() {
        stages.push(Stage::clipped(Reg::X0, x0, plan.config.clip));
        x0 = Reg::X0.into();
    }
    let eps = plan.eps(rung.from, Reg::X, OUT_UNCONDITIONAL);
    stages.push(Stage::update(Reg::X, recompose(rung.to, &x0, &eps)));
    stages
}
