//! DPM-Solver++(2M) and its SDE form (Lu et al. 2022, arXiv 2211.01095, algorithm 2; the
//! `heun` term and the SDE form as in the authors' code).
//!
//! With `lambda = ln(alpha/sigma)`, `h = lambda' - lambda`, and `k` = 1 for the ODE, 2 for the SDE:
//!
//! ```text
//! x' = sigma'/sigma exp(-(k-1) h) x + alpha' (1 - exp(-k h)) x0 + alpha' c D1 [+ sigma' sqrt(1 - exp(-2h)) noise]
//! D1 = (x0 - x0_prev) h / h_prev
//! c  = (1 - exp(-k h)) / 2  (midpoint)   or   1 - (1 - exp(-k h)) / (k h)  (heun)
//! ```
//!
//! The first-order step (no `D1`) of the ODE is DDIM's.

use super::Plan;
use crate::diffusion::config::DpmTerm;
use crate::diffusion::trajectory::{Reg, Stage};

pub(super) fn ode_stages(plan: &Plan, i: usize) -> Vec<Stage> {
    stages(plan, i, false)
}

pub(super) fn sde_stages(plan: &Plan, i: usize) -> Vec<Stage> {
    stages(plan, i, true)
}

fn stages(plan: &Plan, i: usize, sde: bool) -> Vec<Stage> {
    let (from, to) = (plan.rungs[i].from, plan.rungs[i].to);
    let h = step_size(plan, i);
    let k = if sde { 2.0 } else { 1.0 };
    let decay = if sde { to.ratio() / from.ratio() } else { 1.0 };
    let gain = -(-k * h).exp_m1();

    let answer = plan.ask(from, [Reg::X, Reg::OUT, Reg::X0]);
    let mut stages = answer.stages;
    let multistep = plan.config.solver.order > 1;
    let x0 = if multistep && plan.config.clip.is_none() {
        stages.push(Stage::update(Reg::X0, answer.x0));
        Reg::X0.into()
    } else {
        answer.x0
    };

    let mut next = to.sigma / from.sigma * decay * Reg::X + to.alpha * gain * &x0;
    if multistep {
        let d1 = to.alpha * second_order(plan, i, gain, k * h);
        next = next + d1 * &x0 - d1 * Reg::X0_PREV;
    }
    if sde {
        stages.push(Stage::noise(i));
        next = next + to.sigma * gain.max(0.0).sqrt() * Reg::NOISE;
    }
    stages.push(Stage::update(Reg::X, next));
    if multistep {
        stages.push(Stage::update(Reg::X0_PREV, Reg::X0));
    }
    stages
}

/// `h = lambda' - lambda`, infinite in a step to zero noise.
fn step_size(plan: &Plan, i: usize) -> f64 {
    plan.rungs[i].to.lambda() - plan.rungs[i].from.lambda()
}

/// `c h / h_prev`, or 0 where the step is of first order.
fn second_order(plan: &Plan, i: usize, gain: f64, kh: f64) -> f64 {
    let solver = &plan.config.solver;
    let few = solver.lower_order_final && plan.rungs.len() < 15;
    if i == 0 || (plan.is_last(i) && (few || solver.euler_at_final)) {
        return 0.0;
    }
    let (h, h_prev) = (step_size(plan, i), step_size(plan, i - 1));
    // A step to zero noise has no second order; a step of no length has none and gives the next one no slope.
    if !h.is_finite() || h <= 0.0 || h_prev <= 0.0 {
        return 0.0;
    }
    let c = match solver.dpm_term {
        DpmTerm::Midpoint => 0.5 * gain,
        DpmTerm::Heun => 1.0 - gain / kh,
    };
    c * h / h_prev
}
