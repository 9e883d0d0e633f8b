//! UniPC, a multistep predictor (UniP) and corrector (UniC) in data prediction (Zhao et al. 2023, arXiv 2302.04867).
//! Each step asks the model once: the answer corrects the step that led here, then predicts the next one.
//!
//! Let a step lead from level `s` to `t`, `h = lambda_t - lambda_s`, and let `m_0` be the denoised latents at `s`,
//! `m_1`, `m_2`.. those before them and `m_t` those at `t`. With nodes `r_k = (lambda_k - lambda_s) / h` and `r_t = 1`:
//!
//! ```text
//! x_t = sigma_t/sigma_s x_s + alpha_t (1 - exp(-h)) m_0 - alpha_t sum_k w_k (m_k - m_0) / r_k
//! ```
//!
//! The predictor has the nodes `1..order`, the corrector `t` as well. The weights solve
//! `sum_k w_k r_k^(n-1) = n! z phi_{n+1}(z)`, `z = -h`, one equation `n = 1, 2..` a node, so that polynomials are
//! integrated exactly. A system of one equation is not solved but `w = B(h)/2` is taken, `B(h)` being `z` or
//! `exp(z) - 1`; that is the only place where it matters.

use super::Plan;
use crate::diffusion::config::UniPcB;
use crate::diffusion::expr::Expr;
use crate::diffusion::levels::Rung;
use crate::diffusion::trajectory::{Reg, Stage};

pub(super) fn stages(plan: &Plan, i: usize) -> Vec<Stage> {
    // Denoised latents: of now, and of the steps before. A solver of order p looks back p.
    let history = &[Reg::X0, Reg::X0_PREV, Reg::X0_PREV2, Reg::X0_PREV3][..=plan.config.solver.order];
    let from = plan.rungs[i].from;
    let mut stages = vec![
        Stage::query(from, Reg::X, Reg::OUT),
        Stage::clipped(Reg::X0, plan.x0(from, Reg::X, Reg::OUT), plan.config.clip),
        Stage::update(Reg::X_LAST, corrected(plan, i, history)),
        Stage::update(Reg::X, predicted(plan, i, history)),
    ];
    stages.extend(history.windows(2).rev().map(|pair| Stage::update(pair[1], pair[0])));
    stages
}

/// The step that led here once more, now that the model has been asked where it led: `x_last` becomes where it should
/// have led.
fn corrected(plan: &Plan, i: usize, history: &[Reg]) -> Expr {
    let shape = zeros(&[&[Reg::X, Reg::X_LAST], history].concat());
    if i == 0 || plan.config.solver.disable_corrector.contains(&(i - 1)) {
        return shape + Reg::X.into();
    }
    shape + Weights::new(plan, i - 1, true).step(plan.rungs[i - 1], &history[1..], history[0])
}

/// The step from here to the next level.
fn predicted(plan: &Plan, i: usize, history: &[Reg]) -> Expr {
    let history = &history[..history.len() - 1];
    let shape = zeros(&[&[Reg::X_LAST], history].concat());
    shape + Weights::new(plan, i, false).step(plan.rungs[i], history, Reg::X0)
}

/// Terms that count for nothing but keep the shape of steps of lower order.
fn zeros(registers: &[Reg]) -> Expr {
    registers.iter().fold(Expr::default(), |sum, reg| sum + 0.0 * *reg)
}

/// `w_k / r_k` for the earlier nodes, and for the node at the step's end.
struct Weights {
    earlier: Vec<f64>,
    end: Option<f64>,
}

impl Weights {
    /// Those of step `i`'s predictor or corrector.
    fn new(plan: &Plan, i: usize, correct: bool) -> Weights {
        let lambda = |k: usize| plan.rungs[k].from.lambda();
        let h = plan.rungs[i].to.lambda() - lambda(i);
        let mut nodes: Vec<f64> = (1..order(plan, i)).map(|k| (lambda(i - k) - lambda(i)) / h).collect();
        let earlier = nodes.len();
        if correct {
            nodes.push(1.0);
        }
        let mut scaled: Vec<f64> = weights(&nodes, -h, plan.config.solver.unipc_b);
        scaled.iter_mut().zip(&nodes).for_each(|(weight, node)| *weight /= node);
        let end = scaled.get(earlier).copied();
        scaled.truncate(earlier);
        Weights { earlier: scaled, end }
    }

    /// `x_t` from `x_last`, the history `[m_0, m_1, ..]` and `m_t`.
    fn step(&self, Rung { from, to }: Rung, history: &[Reg], m_t: Reg) -> Expr {
        let m_0 = history[0];
        let decay = to.ratio() / from.ratio();
        let euler = to.sigma / from.sigma * Reg::X_LAST + to.alpha * (1.0 - decay) * m_0;
        let nodes = history[1..].iter().zip(&self.earlier).chain(self.end.iter().map(|end| (&m_t, end)));
        nodes.fold(euler, |sum, (&m, weight)| sum - to.alpha * weight * m + to.alpha * weight * m_0)
    }
}

/// The order of step `i`: as much history as there is, fewer steps from the end if asked for, and 1 to zero noise.
fn order(plan: &Plan, i: usize) -> usize {
    let solver = &plan.config.solver;
    let left = if solver.lower_order_final { plan.rungs.len() - i } else { usize::MAX };
    // No node may lie where the step begins: a step of no length, or to zero noise, has no nodes to lean on.
    let step = |k: usize| plan.rungs[k].to.lambda() - plan.rungs[k].from.lambda();
    let usable = |h: f64| h > 0.0 && h.is_finite();
    let nodes = (0..i).rev().take(solver.order).take_while(|&k| usable(step(k))).count();
    if usable(step(i)) { solver.order.min(left).min(nodes + 1) } else { 1 }
}

/// Solves `sum_k w_k r_k^(n-1) = n! z phi_{n+1}(z)` for `n = 1..=nodes`.
fn weights(nodes: &[f64], z: f64, b: UniPcB) -> Vec<f64> {
    match nodes.len() {
        0 => vec![],
        1 if b == UniPcB::H => vec![0.5 * z],
        1 => vec![0.5 * z.exp_m1()],
        len => {
            let factorial = |n: usize| (1..=n).product::<usize>() as f64;
            let row = |n: usize| {
                let powers = nodes.iter().map(|r| r.powi(n as i32 - 1));
                powers.chain([factorial(n) * z * phi(n + 1, z)]).collect()
            };
            solve((1..=len).map(row).collect())
        }
    }
}

/// `phi_1(z) = (exp(z) - 1)/z`, `phi_{k+1}(z) = (phi_k(z) - 1/k!)/z`; that is `sum_j z^j / (j+k)!`, used near 0.
fn phi(k: usize, z: f64) -> f64 {
    let inverse_factorial = |n: usize| (1..=n).map(|i| 1.0 / i as f64).product::<f64>();
    if z.abs() < 1.0 {
        let first = inverse_factorial(k);
        let term = |term: &mut f64, j: usize| {
            let now = *term;
            *term *= z / (j + k + 1) as f64;
            Some(now)
        };
        return (0..20).scan(first, term).sum();
    }
    (1..k).fold(z.exp_m1() / z, |phi, n| (phi - inverse_factorial(n)) / z)
}

/// Solves a small linear system, each row followed by its right-hand side, by Gaussian elimination with pivoting.
fn solve(mut rows: Vec<Vec<f64>>) -> Vec<f64> {
    let n = rows.len();
    for column in 0..n {
        let size = |row: &usize| rows[*row][column].abs();
        let pivot = (column..n).max_by(|a, b| size(a).total_cmp(&size(b))).unwrap_or(column);
        rows.swap(column, pivot);
        let pivot_row = rows[column].clone();
        for (_, row) in rows.iter_mut().enumerate().filter(|(i, _)| *i != column) {
            let factor = row[column] / pivot_row[column];
            row.iter_mut().zip(&pivot_row).for_each(|(value, pivot)| *value -= factor * pivot);
        }
    }
    (0..n).map(|i| rows[i][n] / rows[i][i]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phi_is_smooth_where_its_two_forms_meet() {
        for k in 1..=4 {
            let (series, recursion) = (phi(k, -1.0 + 1e-12), phi(k, -1.0 - 1e-12));
            assert!((series - recursion).abs() < 1e-11, "phi_{k}: {series}, {recursion}");
        }
        assert_eq!(phi(2, 0.0), 0.5);
    }

    #[test]
    fn weights_integrate_polynomials_exactly() {
        let nodes = [-0.8, -2.1, 1.0];
        let z: f64 = -0.7;
        let w = weights(&nodes, z, UniPcB::ExpM1);
        for (n, moment) in [(1, z * phi(2, z)), (2, 2.0 * z * phi(3, z)), (3, 6.0 * z * phi(4, z))] {
            let sum: f64 = w.iter().zip(nodes).map(|(w, r)| w * r.powi(n - 1)).sum();
            assert!((sum - moment).abs() < 1e-13);
        }
    }
}
