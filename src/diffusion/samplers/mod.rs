//! The samplers. Each file is one function that says what a step does, given its rung of the ladder of noise levels.

mod cfg_plus_plus;
pub mod ddim;
mod ddpm;
mod dpmpp;
mod euler;
mod euler_ancestral;
mod heun;
mod unipc;

use super::config::{Options, SamplerConfig, SamplerKind};
use super::expr::Expr;
use super::levels::{Level, Rung, ladder};
use super::precond::{Linear, Prediction};
use super::trajectory::{Reg, Stage, Step, Trajectory};
use crate::{Error, Result};

/// The way of sampler `kind` from noise to latents in `steps` steps.
///
/// # Errors
/// [`Error::Invalid`] or [`Error::Unsupported`], naming the option, for anything out of range or contradictory; among
/// others for noise prediction where the schedule has no signal left (zero terminal SNR).
///
/// ```
/// use langevin::diffusion::{Options, SamplerConfig, SamplerKind, trajectory};
/// let kind: SamplerKind = "heun".parse()?;
/// let heun = trajectory(kind, &SamplerConfig::edm(kind), 18, &Options::default())?;
/// assert_eq!(heun.nfe(), 35);
/// # Ok::<(), langevin::Error>(())
/// ```
pub fn trajectory(kind: SamplerKind, config: &SamplerConfig, steps: usize, options: &Options) -> Result<Trajectory> {
    config.validate(kind)?;
    options.validate(kind, &config.space)?;
    let ladder = ladder(kind, config, steps)?;
    if config.prediction == Prediction::Epsilon && ladder.rungs.iter().any(|rung| rung.from.alpha == 0.0) {
        let reason = "noise alone says nothing about the image where there is no signal (zero terminal SNR)";
        return Err(Error::invalid("prediction_type", reason));
    }
    if let Some(reflection) = &options.reflection {
        reflection.validate(kind, config, options)?;
    }
    let plan = Plan { config, options, rungs: &ladder.rungs };
    let stages = match kind {
        SamplerKind::Ddim => ddim::stages,
        SamplerKind::Ddpm => ddpm::stages,
        SamplerKind::Euler => euler::stages,
        SamplerKind::EulerA => euler_ancestral::stages,
        SamplerKind::Heun => heun::stages,
        SamplerKind::Dpmpp2m => dpmpp::ode_stages,
        SamplerKind::Dpmpp2mSde => dpmpp::sde_stages,
        SamplerKind::UniPc => unipc::stages,
    };
    let step = |(i, rung): (usize, &Rung)| -> Result<Step> {
        let ordinary = match options.cfg_plus_plus {
            Some(scale) => cfg_plus_plus::stages(&plan, i, scale),
            None => stages(&plan, i),
        };
        let reflected = options.reflection.map(|r| r.stages(config, &ladder.rungs, i)).transpose()?;
        Ok(Step {
            stages: reflected.into_iter().flatten().chain(ordinary).collect(),
            guided: options.guidance_interval.covers(rung.from.ratio(), i, steps),
            level: (rung.from.ratio(), rung.to.ratio()),
        })
    };
    let steps = ladder.rungs.iter().enumerate().map(step).collect::<Result<_>>()?;
    Trajectory { init_scale: ladder.init_scale, steps, out: Reg::X, kept: vec![] }.verified()
}

/// What a sampler's steps are worked out from.
struct Plan<'a> {
    config: &'a SamplerConfig,
    options: &'a Options,
    rungs: &'a [Rung],
}

/// What a model says about latents: how to ask it, and what follows.
struct Answer {
    /// The call, and the clamping if there is any.
    stages: Vec<Stage>,
    /// Denoised latents.
    x0: Expr,
    /// The noise that together with `x0` makes up the latents.
    eps: Expr,
}

impl Plan<'_> {
    /// Asks about the latents in `x` at `level`. The answer is in `out`; clamped denoised latents are in `x0`.
    fn ask(&self, level: Level, [x, out, x0]: [Reg; 3]) -> Answer {
        let query = Stage::query(level, x, out);
        let denoised = self.x0(level, x, out);
        match self.config.clip {
            None => Answer { stages: vec![query], x0: denoised, eps: self.eps(level, x, out) },
            clip => Answer {
                stages: vec![query, Stage::clipped(x0, denoised, clip)],
                x0: x0.into(),
                eps: form(Prediction::Sample.eps(level), x, x0),
            },
        }
    }

    /// Denoised latents, from the latents and the model's answer.
    fn x0(&self, level: Level, x: Reg, out: Reg) -> Expr {
        match self.config.prediction {
            Prediction::Sample => out.into(),
            prediction => form(prediction.x0(level), x, out),
        }
    }

    /// The noise, from the latents and the model's answer.
    fn eps(&self, level: Level, x: Reg, out: Reg) -> Expr {
        match self.config.prediction {
            Prediction::Epsilon => out.into(),
            prediction => form(prediction.eps(level), x, out),
        }
    }

    fn is_last(&self, i: usize) -> bool {
        i + 1 == self.rungs.len()
    }
}

fn form(linear: Linear, x: Reg, out: Reg) -> Expr {
    linear.x * x + linear.out * out
}

/// The latents at level `to` that have these parts: `alpha' x0 + sigma' eps`.
///
/// In variance-preserving coordinates this is DDIM's step, in the other two Euler's: there `x` is a straight line in
/// `sigma` while `x0` and `eps` stay the same, so that following it for `sigma' - sigma` is no approximation.
fn recompose(to: Level, x0: &Expr, eps: &Expr) -> Expr {
    to.alpha * x0 + to.sigma * eps
}

/// How much of the noise at level `to` a step keeps, and how much of it is fresh: `(kept, fresh)` with
/// `kept² + fresh² = sigma'²` and
///
/// ```text
/// fresh = eta sigma' sqrt(1 - (s'/s)²),     s = sigma / alpha
/// ```
///
/// In variance-preserving coordinates that is DDIM's `sigma_t` (Song et al. 2021, eq. 16), in variance-exploding ones
/// with `eta = 1` the split into `sigma_down` and `sigma_up` of ancestral sampling. `eta` above 1 keeps nothing at
/// most.
fn split_noise(from: Level, to: Level, eta: f64) -> (f64, f64) {
    let decay = to.ratio() / from.ratio();
    let fresh = (eta * to.sigma * (1.0 - decay * decay).max(0.0).sqrt()).min(to.sigma);
    ((to.sigma * to.sigma - fresh * fresh).max(0.0).sqrt(), fresh)
}

/// Puts noise back before step `i` (Karras et al. 2022, algorithm 2, lines 4 to 6): the stages, and the raised level.
fn churn(plan: &Plan, i: usize) -> (Vec<Stage>, Level) {
    let churn = &plan.options.churn;
    let from = plan.rungs[i].from;
    if churn.amount == 0.0 {
        return (vec![], from);
    }
    let gamma = churn.gamma(from.sigma, plan.rungs.len());
    let sigma_hat = from.sigma * (1.0 + gamma);
    let noise = churn.noise * from.sigma * (gamma * (2.0 + gamma)).sqrt();
    let stages = vec![Stage::noise(i), Stage::update(Reg::X, 1.0 * Reg::X + noise * Reg::NOISE)];
    let raised = if gamma > 0.0 { Level::exploding(&plan.config.space, sigma_hat) } else { from };
    (stages, raised)
}
