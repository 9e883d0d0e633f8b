//! Weak-to-strong reflection as data: what is put before an ordinary step.
//!
//! W2SD (Bai, Sugiyama & Xie 2025, arXiv 2502.00473, algorithm 1) takes, at each of the noisiest steps from `t` to the cleaner
//! `t'`, two steps more, over and back:
//!
//! ```text
//! y  = denoise(x, t -> t')  with what the strong operator says about x at t
//! x~ = invert(y, t' -> t)   with what the weak operator says about y
//! ```
//!
//! and the ordinary step starts from `x~`. Both are [`ddim::denoise`] between explicit levels, in
//! whichever coordinates the sampler works, so that over and back is the identity where both operators see the same noise.
//! To first order the ordinary step then follows `eps_M + (eps_S - eps_W)`.
//!
//! Both steps are linear: clamping denoised latents (`clip_sample`) is left to the ordinary step, since inversion could not undo
//! it. They keep no history, so a multistep sampler's history is that of its ordinary steps.

use std::str::FromStr;

use super::config::{Options, SamplerConfig, SamplerKind, Space};
use super::levels::{Level, Rung};
use super::precond::{Linear, Prediction};
use super::samplers::ddim;
use super::trajectory::{Reg, Stage};
use crate::{Error, Result};

/// Which operator answers a [`Stage::Query`].
pub mod leg {
    /// The ordinary step.
    pub const MAIN: usize = 0;
    /// Denoising inside a reflection.
    pub const STRONG: usize = 1;
    /// Inversion inside a reflection.
    pub const WEAK: usize = 2;
    /// The unconditional side of the ordinary step, where a sampler needs it by itself (CFG++).
    pub const UNCONDITIONAL: usize = 3;
}

/// What the strong operator answered, the latents that it led to, what the weak one answered about them.
const OUT_STRONG: Reg = Reg("out_strong");
const Y: Reg = Reg("y");
const OUT_WEAK: Reg = Reg("out_weak");

/// Which time the weak model is told about the latents `y`, which lie at `t'`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueryTime {
    /// `t`, the noisier one: the paper's equation 5 and the released code.
    #[default]
    Old,
    /// `t'`, where the latents are.
    New,
}

/// Between which levels inversion leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReflectLevels {
    /// From `t'` to `t`: back to where the strong step began.
    #[default]
    Aligned,
    /// One step too low, with the coefficients for `t'' -> t'` on latents at `t'`: what the released code does with diffusers
    /// from 0.22.0 on, whose inverse scheduler counts otherwise than the code expects. For comparisons; it leaves latents with
    /// too little noise. DDIM on a discrete VP schedule only.
    ReleasedCode,
}

/// What leads back from `y`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Back {
    /// Inversion with the weak operator: W2SD, and with a gap in guidance alone Z-Sampling (Bai et al. 2025, arXiv 2412.10891).
    #[default]
    Weak,
    /// Fresh noise in place of a weak operator (Re-Sampling; RePaint, Lugmayr et al. 2022, arXiv 2201.09865).
    Noise,
}

/// Reflection at the noisiest steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reflection {
    /// How many of the noisiest steps reflect, less than the steps of the sampler; `None`: all but the last, as the paper's tables.
    pub lambda: Option<usize>,
    /// Reflections at each of these steps, at least 1 (`T_max` of Z-Sampling).
    pub repeat: usize,
    pub query: QueryTime,
    pub levels: ReflectLevels,
    pub back: Back,
}

impl Default for Reflection {
    fn default() -> Self {
        Reflection {
            lambda: None,
            repeat: 1,
            query: QueryTime::default(),
            levels: ReflectLevels::default(),
            back: Back::default(),
        }
    }
}

impl FromStr for QueryTime {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "old" => Ok(QueryTime::Old),
            "new" => Ok(QueryTime::New),
            _ => Err(Error::invalid("reflect-query", format!("`{name}` is neither old nor new"))),
        }
    }
}

impl FromStr for ReflectLevels {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "aligned" => Ok(ReflectLevels::Aligned),
            "released-code" => Ok(ReflectLevels::ReleasedCode),
            _ => Err(Error::invalid("reflect-levels", format!("`{name}` is neither aligned nor released-code"))),
        }
    }
}

impl Reflection {
    /// How many of `steps` steps reflect.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a `lambda` that is not below the number of steps: the last step never reflects.
    pub fn steps(&self, steps: usize) -> Result<usize> {
        match self.lambda {
            None => Ok(steps.saturating_sub(1)),
            Some(lambda) if lambda < steps => Ok(lambda),
            Some(lambda) => {
                let reason =
                    format!("{lambda} of {steps} steps cannot reflect: the last never does, so at most {}", steps - 1);
                Err(Error::invalid("lambda", reason))
            }
        }
    }

    /// Model calls that the reflections of a sampler of `steps` steps take, guided calls counted once.
    pub fn nfe(&self, steps: usize) -> Result<usize> {
        let each = match self.back {
            Back::Weak => 2,
            Back::Noise => 1,
        };
        Ok(each * self.repeat * self.steps(steps)?)
    }

    /// # Errors
    /// [`Error::Invalid`] or [`Error::Unsupported`] where reflection has no meaning: a sampler that adds noise leads elsewhere than
    /// inversion comes back from.
    pub(super) fn validate(&self, kind: SamplerKind, config: &SamplerConfig, options: &Options) -> Result<()> {
        let stochastic = match kind {
            SamplerKind::Ddpm | SamplerKind::EulerA | SamplerKind::Dpmpp2mSde => true,
            _ => options.eta.unwrap_or(0.0) > 0.0 || options.churn.amount > 0.0,
        };
        if stochastic {
            let option = if options.eta.unwrap_or(0.0) > 0.0 { "eta" } else { "sampler" };
            let reason = "a reflection goes over and back along one deterministic path: it needs ddim, euler, heun, \
                          dpmpp-2m or unipc with eta 0 and no churn";
            return Err(Error::invalid(option, reason));
        }
        if self.repeat == 0 {
            return Err(Error::invalid("reflect-repeat", "must be at least 1"));
        }
        let discrete = kind == SamplerKind::Ddim && matches!(config.space, Space::Vp(_));
        if self.levels == ReflectLevels::ReleasedCode && !discrete {
            let reason = "the released code inverts with DDIM on a discrete VP schedule; here levels are aligned";
            return Err(Error::unsupported("reflect-levels released-code", reason));
        }
        Ok(())
    }

    /// What stands before ordinary step `i`; nothing where it does not reflect.
    pub(super) fn stages(&self, config: &SamplerConfig, rungs: &[Rung], i: usize) -> Result<Vec<Stage>> {
        if i >= self.steps(rungs.len())? {
            return Ok(vec![]);
        }
        let Rung { from, to } = rungs[i];
        let mut stages = Vec::new();
        for _ in 0..self.repeat {
            stages.push(Stage::Query {
                leg: leg::STRONG,
                x: Reg::X,
                out: OUT_STRONG,
                time: from.time,
                scale: from.scale,
            });
            stages.push(update(Y, ddim::denoise(from, to, config.prediction), Reg::X, OUT_STRONG));
            if self.back == Back::Noise {
                // The forward process from t' to t, in the sampler's coordinates.
                let kept = from.alpha / to.alpha;
                let fresh = (from.sigma * from.sigma - (kept * to.sigma).powi(2)).max(0.0).sqrt();
                stages.push(Stage::noise(i));
                stages.push(Stage::update(Reg::X, kept * Y + fresh * Reg::NOISE));
                continue;
            }
            let told = match self.query {
                QueryTime::Old => from,
                QueryTime::New => to,
            };
            let seen = seen_as(&config.space, to, told);
            let scale = match config.space {
                // It scales its input itself, by the level that it is told.
                Space::Edm { .. } => seen,
                _ => to.scale,
            };
            stages.push(Stage::Query { leg: leg::WEAK, x: Y, out: OUT_WEAK, time: told.time, scale });
            let back = match self.levels {
                ReflectLevels::Aligned => invert(to, from, told, seen, config.prediction),
                ReflectLevels::ReleasedCode => ddim::invert(rungs[i + 1].to, rungs[i + 1].from, config.prediction),
            };
            stages.push(update(Reg::X, back, Y, OUT_WEAK));
        }
        Ok(stages)
    }
}

/// What latents at level `at` are multiplied by to be those that a model which is told `told` sees.
///
/// W2SD is defined for variance-preserving models, which see the latents as they are, of about unit variance, whatever time
/// they are told. In variance-exploding coordinates the same latents are `sqrt(1 + s²)` times as large, so they are scaled from
/// one level's size to the other's. EDM networks would otherwise be shown too little noise for what they are told, and give a
/// reflection that takes noise away.
fn seen_as(space: &Space, at: Level, told: Level) -> f64 {
    match space {
        Space::Edm { .. } => told.sigma.hypot(1.0) / at.sigma.hypot(1.0),
        _ => at.scale / told.scale,
    }
}

/// DDIM's inversion from level `at`, where the latents are, to the noisier `to`, with an answer that the model gave about `seen`
/// times the latents, being told `told`.
///
/// Noise, velocity and flow are taken as they are. Denoised latents mean the noise that they leave of what the model saw:
/// `eps = (seen y - alpha_told out) / sigma_told`.
fn invert(at: Level, to: Level, told: Level, seen: f64, prediction: Prediction) -> Linear {
    match prediction {
        Prediction::Sample => {
            let (kept, eps) = (to.alpha / at.alpha, prediction.eps(told));
            let added = to.sigma - kept * at.sigma;
            Linear { x: kept + added * eps.x * seen, out: added * eps.out }
        }
        _ => ddim::invert(at, to, prediction),
    }
}

fn update(to: Reg, form: Linear, x: Reg, out: Reg) -> Stage {
    Stage::update(to, form.x * x + form.out * out)
}
