//! What a sampler has to know: the model's noise schedule and the scheduler's settings.

use std::fmt;
use std::str::FromStr;

use super::guidance::Interval;
use super::precond::Prediction;
use super::reflection::Reflection;
use super::schedule::{Betas, Spacing, VpSchedule};
use crate::{Error, Result};

/// The samplers, by their names on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SamplerKind {
    /// `ddim`: Song et al. 2021, any eta.
    Ddim,
    /// `ddpm`: ancestral sampling of Ho et al. 2020.
    Ddpm,
    /// `euler`: Euler's method on the probability flow ODE, if asked for with churn.
    Euler,
    /// `euler-a`: Euler steps to a lower level, and noise to make up for it.
    EulerA,
    /// `heun`: Heun's method, Karras et al. 2022, algorithm 1; with churn algorithm 2.
    Heun,
    /// `dpmpp-2m`: DPM-Solver++(2M), Lu et al. 2022.
    Dpmpp2m,
    /// `dpmpp-2m-sde`: the same for the reverse SDE.
    Dpmpp2mSde,
    /// `unipc`: UniPC, Zhao et al. 2023.
    UniPc,
}

impl SamplerKind {
    /// All of them.
    pub const ALL: [SamplerKind; 8] = [
        SamplerKind::Ddim,
        SamplerKind::Ddpm,
        SamplerKind::Euler,
        SamplerKind::EulerA,
        SamplerKind::Heun,
        SamplerKind::Dpmpp2m,
        SamplerKind::Dpmpp2mSde,
        SamplerKind::UniPc,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            SamplerKind::Ddim => "ddim",
            SamplerKind::Ddpm => "ddpm",
            SamplerKind::Euler => "euler",
            SamplerKind::EulerA => "euler-a",
            SamplerKind::Heun => "heun",
            SamplerKind::Dpmpp2m => "dpmpp-2m",
            SamplerKind::Dpmpp2mSde => "dpmpp-2m-sde",
            SamplerKind::UniPc => "unipc",
        }
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for SamplerKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<SamplerKind> {
        SamplerKind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let names = SamplerKind::ALL.map(SamplerKind::name).join(", ");
            Error::invalid("sampler", format!("`{name}` is none of {names}"))
        })
    }
}

/// Where the noise levels come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Space {
    /// A discrete variance-preserving schedule; the model is told timesteps.
    Vp(VpSchedule),
    /// `sigma_i` of Karras et al. 2022, eq. 5; the model is told sigma and answers denoised latents.
    Edm {
        /// Least sigma but for the final 0; EDM has 0.002.
        sigma_min: f64,
        /// Greatest sigma; EDM has 80.
        sigma_max: f64,
        /// Exponent of the spacing; EDM has 7.
        rho: f64,
    },
    /// The straight path `x = (1 - sigma) x0 + sigma eps`; the model is told `num_train_timesteps * sigma`.
    Flow {
        /// See [`shift_sigma`](super::schedule::shift_sigma); 1 is none.
        shift: f64,
        /// What time at `sigma = 1` is called, usually 1000.
        num_train_timesteps: usize,
    },
}

impl Space {
    /// EDM's own range: `rho` 7, sigma from 0.002 to 80 (Karras et al. 2022, table 1).
    pub const EDM: Space = Space::Edm { sigma_min: 0.002, sigma_max: 80.0, rho: 7.0 };
}

/// Which noise-to-signal ratios a sampler visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SigmaGrid {
    /// Those of the spaced timesteps; in EDM's space its own, in flow matching's the shifted even ones.
    Timesteps,
    /// Even in `sigma^(1/7)`.
    Karras,
    /// Even in `ln(sigma)`.
    Exponential,
}

/// Where the last step leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinalSigma {
    /// To no noise at all.
    Zero,
    /// To the least noise of the schedule.
    SigmaMin,
}

/// Where a DDIM or DDPM step leads when timesteps are not evenly spaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DdimTarget {
    /// To the next timestep that is visited: consistent for every spacing.
    Next,
    /// `T / n` timesteps down whatever comes next, as diffusers' DDIMScheduler does. The same for leading spacing;
    /// for linspace (and trailing where `n` does not divide `T`) the next step then starts at another level than this
    /// one ended at. To reproduce images made so.
    Stride,
}

/// The variance of DDPM's noise, given the posterior's `beta_tilde = sigma'²/sigma² beta` (Ho et al. 2020, section
/// 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variance {
    /// `beta_tilde`, the posterior variance for data at a point.
    FixedSmall,
    /// `beta`, the posterior variance for unit-variance data; none in the last step.
    FixedLarge,
}

/// The second-order term of DPM-Solver++ (Lu et al. 2022; `heun` is from the authors' code).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DpmTerm {
    /// `alpha' (1 - exp(-h)) D1 / 2`
    Midpoint,
    /// `alpha' (1 - (1 - exp(-h)) / h) D1`
    Heun,
}

/// `B(h)` of UniPC (Zhao et al. 2023).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UniPcB {
    /// `B1(h) = h`
    H,
    /// `B2(h) = exp(h) - 1`
    ExpM1,
}

/// Settings of the multistep solvers.
#[derive(Clone, Debug, PartialEq)]
pub struct Solver {
    /// Greatest order: DPM-Solver++ 1 or 2, UniPC 1 to 3.
    pub order: usize,
    /// DPM-Solver++'s second-order term.
    pub dpm_term: DpmTerm,
    /// UniPC's `B(h)`.
    pub unipc_b: UniPcB,
    /// Lower the order towards the end: DPM-Solver++ in the last of fewer than 15 steps, UniPC always.
    pub lower_order_final: bool,
    /// DPM-Solver++: make the last step one of first order.
    pub euler_at_final: bool,
    /// UniPC: steps whose result is not corrected, counted from 0.
    pub disable_corrector: Vec<usize>,
}

/// Everything a sampler has to know but for the number of steps and what is in [`Options`].
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerConfig {
    /// Where the noise levels come from.
    pub space: Space,
    /// What the model answers.
    pub prediction: Prediction,
    /// Clamp denoised latents to `[-clip, clip]`. DDIM then keeps the unclamped noise; all others take the noise that
    /// belongs to the clamped latents.
    pub clip: Option<f64>,
    /// How timesteps are picked (VP).
    pub spacing: Spacing,
    /// Added to timesteps with leading spacing (VP).
    pub steps_offset: usize,
    /// Which ratios are visited; DDIM and DDPM on VP have only [`SigmaGrid::Timesteps`].
    pub sigma_grid: SigmaGrid,
    /// Least ratio of a Karras or exponential grid (VP) instead of the schedule's.
    pub sigma_min: Option<f64>,
    /// Greatest ratio of a Karras or exponential grid (VP) instead of the schedule's.
    pub sigma_max: Option<f64>,
    /// Leave out timesteps whose `lambda = ln(alpha/sigma)` is less (VP).
    pub lambda_min: Option<f64>,
    /// Where the last step leads (not DDIM and DDPM on VP).
    pub final_sigma: FinalSigma,
    /// DDIM and DDPM on VP: the last step leads to `alpha_bar` = 1, else to that of timestep 0.
    pub set_alpha_to_one: bool,
    /// Where DDIM's and DDPM's steps lead on VP.
    pub ddim_target: DdimTarget,
    /// DDPM's variance.
    pub variance: Variance,
    /// Settings of the multistep solvers.
    pub solver: Solver,
}

impl SamplerConfig {
    /// The settings of `kind` for a model on `space` that answers `prediction`: diffusers' defaults, but without
    /// clamping.
    pub fn new(kind: SamplerKind, space: Space, prediction: Prediction) -> SamplerConfig {
        let spacing = match kind {
            SamplerKind::Ddim | SamplerKind::Ddpm => Spacing::Leading,
            _ => Spacing::Linspace,
        };
        SamplerConfig {
            space,
            prediction,
            clip: None,
            spacing,
            steps_offset: 0,
            sigma_grid: SigmaGrid::Timesteps,
            sigma_min: None,
            sigma_max: None,
            lambda_min: None,
            final_sigma: FinalSigma::Zero,
            set_alpha_to_one: true,
            ddim_target: DdimTarget::Next,
            variance: Variance::FixedSmall,
            solver: Solver {
                order: 2,
                dpm_term: DpmTerm::Midpoint,
                unipc_b: UniPcB::ExpM1,
                lower_order_final: true,
                euler_at_final: false,
                disable_corrector: vec![],
            },
        }
    }

    /// A noise-predicting model on the usual VP schedule: 1000 timesteps, linear betas from 1e-4 to 0.02.
    ///
    /// # Errors
    /// None in practice.
    pub fn ddpm_linear(kind: SamplerKind) -> Result<SamplerConfig> {
        let schedule = VpSchedule::new(&Betas::Linear { start: 1e-4, end: 0.02 }, 1000, false)?;
        Ok(SamplerConfig::new(kind, Space::Vp(schedule), Prediction::Epsilon))
    }

    /// An EDM-preconditioned model on EDM's own levels.
    pub fn edm(kind: SamplerKind) -> SamplerConfig {
        SamplerConfig::new(kind, Space::EDM, Prediction::Sample)
    }

    /// A flow-matching model with 1000 timesteps.
    pub fn flow(kind: SamplerKind, shift: f64) -> SamplerConfig {
        SamplerConfig::new(kind, Space::Flow { shift, num_train_timesteps: 1000 }, Prediction::Flow)
    }

    /// # Errors
    /// [`Error::Invalid`] or [`Error::Unsupported`] naming the field; what concerns noise levels is checked by
    /// [`ladder`](super::levels::ladder).
    pub(super) fn validate(&self, kind: SamplerKind) -> Result<()> {
        if let Some(clip) = self.clip.filter(|clip| !(clip.is_finite() && *clip > 0.0)) {
            return Err(Error::invalid("clip_sample_range", format!("{clip} is not a positive number")));
        }
        if self.lambda_min.is_some_and(f64::is_nan) {
            return Err(Error::invalid("lambda_min_clipped", "is not a number"));
        }
        let most = match kind {
            SamplerKind::Dpmpp2m | SamplerKind::Dpmpp2mSde => 2,
            SamplerKind::UniPc => 3,
            _ => return Ok(()),
        };
        if (1..=most).contains(&self.solver.order) {
            return Ok(());
        }
        Err(Error::unsupported(format!("solver_order {}", self.solver.order), format!("{kind} has orders 1 to {most}")))
    }
}

/// Noise put back before a step (Karras et al. 2022, algorithm 2): at `sigma` in `[sigma_min, sigma_max]` the level is
/// raised to `sigma (1 + gamma)`, `gamma = min(amount / n, sqrt(2) - 1)`, by noise of standard deviation
/// `noise sqrt(sigma_hat² - sigma²)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Churn {
    /// `S_churn`, at least 0; 0 is none.
    pub amount: f64,
    /// `S_min`
    pub sigma_min: f64,
    /// `S_max`, may be infinite
    pub sigma_max: f64,
    /// `S_noise`, about 1
    pub noise: f64,
}

impl Default for Churn {
    /// None.
    fn default() -> Self {
        Churn { amount: 0.0, sigma_min: 0.0, sigma_max: f64::INFINITY, noise: 1.0 }
    }
}

impl Churn {
    /// `gamma` at level `sigma` of a sampler of `steps` steps.
    pub fn gamma(&self, sigma: f64, steps: usize) -> f64 {
        if self.sigma_min <= sigma && sigma <= self.sigma_max {
            (self.amount / steps as f64).min(std::f64::consts::SQRT_2 - 1.0)
        } else {
            0.0
        }
    }
}

/// What is chosen anew for each run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Options {
    /// How stochastic DDIM (default 0) and `euler-a` (default 1) are: 0 is deterministic, 1 ancestral sampling.
    /// Finite and at least 0; beyond 1 only as far as the step's noise allows.
    pub eta: Option<f64>,
    /// Noise put back by `euler` and `heun`.
    pub churn: Churn,
    /// Which steps are guided.
    pub guidance_interval: Interval,
    /// Weak-to-strong reflection at the noisiest steps.
    pub reflection: Option<Reflection>,
    /// CFG++ (Chung et al. 2024, arXiv 2406.08070) at this guidance, 0 to 1, in place of classifier-free guidance: `ddim` and `euler` only.
    pub cfg_plus_plus: Option<f64>,
}

impl Options {
    /// # Errors
    /// [`Error::Invalid`] if an option is out of range or means nothing to the sampler.
    pub(super) fn validate(&self, kind: SamplerKind, space: &Space) -> Result<()> {
        self.guidance_interval.validate()?;
        if let Some(scale) = self.cfg_plus_plus {
            let deterministic = self.eta.unwrap_or(0.0) == 0.0 && self.churn.amount == 0.0;
            if !matches!(kind, SamplerKind::Ddim | SamplerKind::Euler) || !deterministic {
                return Err(Error::unsupported("cfg++ here", "it is a form of ddim and euler, without eta and churn"));
            }
            if !(0.0..=1.0).contains(&scale) {
                return Err(Error::invalid("cfg++", format!("{scale} is not from 0 to 1")));
            }
        }
        if let Some(eta) = self.eta {
            if !(eta.is_finite() && eta >= 0.0) {
                return Err(Error::invalid("eta", format!("{eta} is not a number from 0 up")));
            }
            if eta != 0.0 && !matches!(kind, SamplerKind::Ddim | SamplerKind::EulerA) {
                return Err(Error::invalid("eta", format!("{kind} has none, only ddim and euler-a do")));
            }
        }
        let Churn { amount, sigma_min, sigma_max, noise } = self.churn;
        let finite = [amount, sigma_min, noise].iter().all(|value| value.is_finite() && *value >= 0.0);
        if !(finite && sigma_max >= sigma_min) {
            return Err(Error::invalid("churn", "needs numbers from 0 up and sigma_min <= sigma_max"));
        }
        if amount > 0.0 && !matches!(kind, SamplerKind::Euler | SamplerKind::Heun) {
            return Err(Error::invalid("churn", format!("{kind} has none, only euler and heun do")));
        }
        if amount > 0.0 && matches!(space, Space::Flow { .. }) {
            return Err(Error::unsupported("churn for flow matching", "it is defined for EDM's and VP models' sigmas"));
        }
        Ok(())
    }
}
