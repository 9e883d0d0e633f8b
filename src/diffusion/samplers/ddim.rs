//! Denoising diffusion implicit models (Song, Meng & Ermon 2021, arXiv 2010.02502, eq. 12):
//!
//! ```text
//! x' = sqrt(alpha_bar') x0 + sqrt(1 - alpha_bar' - fresh²) eps + fresh noise
//! ```
//!
//! and the same between explicit levels, in both directions.

use super::{Plan, recompose, split_noise};
use crate::diffusion::levels::Level;
use crate::diffusion::precond::{Linear, Prediction};
use crate::diffusion::trajectory::{Reg, Stage};

/// `x'` at the cleaner level `to` as a linear form of `x` at level `from` and the model's answer there, eta 0.
///
/// For noise prediction between `a = alpha_bar` and `b = alpha_bar'`:
/// `x' = sqrt(b/a) x + (sqrt(1 - b) - sqrt(b/a) sqrt(1 - a)) eps`.
///
/// ```
/// use langevin::diffusion::{Level, Prediction, samplers::ddim};
/// let (noisy, clean) = (Level::vp(0.2, 700.0), Level::vp(0.3, 600.0));
/// let denoise = ddim::denoise(noisy, clean, Prediction::Epsilon);
/// let invert = ddim::invert(clean, noisy, Prediction::Epsilon);
/// let (x, eps) = (0.8, -0.4);
/// assert!((invert.eval(denoise.eval(x, eps), eps) - x).abs() < 1e-15);
/// ```
pub fn denoise(from: Level, to: Level, prediction: Prediction) -> Linear {
    let (x0, eps) = (prediction.x0(from), prediction.eps(from));
    Linear { x: to.alpha * x0.x + to.sigma * eps.x, out: to.alpha * x0.out + to.sigma * eps.out }
}

/// `x'` at the noisier level `to` as a linear form of `x` at level `from` and the model's answer about it: DDIM's
/// inversion, [`denoise`] with the levels exchanged. It undoes `denoise` exactly if both get the same noise.
///
/// The answer is turned into noise with the coefficients of `from`, where the latents are, whichever time the model was
/// told (methods differ in that).
pub fn invert(from: Level, to: Level, prediction: Prediction) -> Linear {
    denoise(from, to, prediction)
}

pub(super) fn stages(plan: &Plan, i: usize) -> Vec<Stage> {
    let rung = plan.rungs[i];
    let eta = plan.options.eta.unwrap_or(0.0);
    let answer = plan.ask(rung.from, [Reg::X, Reg::OUT, Reg::X0]);
    let mut stages = answer.stages;
    // Of clamped latents only x0 is taken; the direction stays the model's.
    let eps = plan.eps(rung.from, Reg::X, Reg::OUT);
    if eta == 0.0 {
        stages.push(Stage::update(Reg::X, recompose(rung.to, &answer.x0, &eps)));
        return stages;
    }
    let (kept, fresh) = split_noise(rung.from, rung.to, eta);
    stages.push(Stage::noise(i));
    stages.push(Stage::update(Reg::X, rung.to.alpha * &answer.x0 + kept * &eps + fresh * Reg::NOISE));
    stages
}
