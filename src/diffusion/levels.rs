//! Noise levels, and the ladder of levels that a sampler climbs down.

use super::config::{DdimTarget, FinalSigma, SamplerConfig, SamplerKind, SigmaGrid, Space};
use super::schedule::{
    MAX_TRAIN_TIMESTEPS, Spacing, VpSchedule, exponential_sigmas, karras_sigmas, linspace, shift_sigma,
};
use crate::{Error, Result};

/// A noise level and how to ask the model there: latents are `x = alpha x0 + sigma eps`, and the model is given
/// `scale x` and told `time`.
///
/// The same amount of noise can be written in several coordinates; what a model sees is the same in all of them.
///
/// | coordinates | `alpha` | `sigma` | used by |
/// |---|---|---|---|
/// | variance preserving | `sqrt(alpha_bar)` | `sqrt(1 - alpha_bar)` | DDPM, DDIM, DPM-Solver++, UniPC |
/// | variance exploding | 1 | `s` | Euler, Heun; all of EDM |
/// | flow | `1 - s` | `s` | flow matching |
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// Coefficient of the data, in `[0, 1]`.
    pub alpha: f64,
    /// Standard deviation of the noise, at least 0.
    pub sigma: f64,
    /// What the model is told.
    pub time: f64,
    /// What latents are multiplied by before the model sees them.
    pub scale: f64,
}

impl Level {
    /// Variance-preserving coordinates, from `alpha_bar` in `[0, 1]`.
    pub fn vp(alpha_bar: f64, time: f64) -> Level {
        Level { alpha: alpha_bar.sqrt(), sigma: (1.0 - alpha_bar).sqrt(), time, scale: 1.0 }
    }

    /// Variance-preserving coordinates, from the noise-to-signal ratio.
    pub fn vp_from_ratio(ratio: f64, time: f64) -> Level {
        let alpha = 1.0 / ratio.hypot(1.0);
        Level { alpha, sigma: ratio * alpha, time, scale: 1.0 }
    }

    /// Variance-exploding coordinates for a model that wants variance-preserving latents.
    pub fn ve(sigma: f64, time: f64) -> Level {
        Level { alpha: 1.0, sigma, time, scale: 1.0 / sigma.hypot(1.0) }
    }

    /// EDM: variance-exploding coordinates for a model that is told sigma and preconditions by itself.
    pub fn edm(sigma: f64) -> Level {
        Level { alpha: 1.0, sigma, time: sigma, scale: 1.0 }
    }

    /// Flow-matching coordinates.
    pub fn flow(sigma: f64, time: f64) -> Level {
        Level { alpha: 1.0 - sigma, sigma, time, scale: 1.0 }
    }

    /// The noise-to-signal ratio `sigma / alpha`: EDM's sigma, whatever the coordinates. Infinite for pure noise.
    pub fn ratio(self) -> f64 {
        self.sigma / self.alpha
    }

    /// `lambda = ln(alpha / sigma)`, half the log signal-to-noise ratio (Lu et al. 2022). Infinite without noise.
    pub fn lambda(self) -> f64 {
        (self.alpha / self.sigma).ln()
    }

    /// The level of pure VE noise `sigma` in the coordinates of `space`; VP models are told the timestep they know it
    /// by.
    pub(super) fn exploding(space: &Space, sigma: f64) -> Level {
        match space {
            Space::Vp(vp) => Level::ve(sigma, vp.time_of(sigma)),
            _ => Level::edm(sigma),
        }
    }
}

/// One rung: a step leads `from` a level, at which the model is asked, `to` a cleaner one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rung {
    /// Where the latents are.
    pub from: Level,
    /// Where they are to be.
    pub to: Level,
}

/// The rungs of a sampler, noisiest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Ladder {
    /// The standard deviation of the noise to start from.
    pub init_scale: f64,
    /// One rung for each step. But for [`DdimTarget::Stride`], each begins where the one before it ends.
    pub rungs: Vec<Rung>,
}

impl Ladder {
    fn through(levels: &[Level], init_scale: f64) -> Ladder {
        let rungs = levels.windows(2).map(|pair| Rung { from: pair[0], to: pair[1] }).collect();
        Ladder { init_scale, rungs }
    }
}

/// Which coordinates and which grid a sampler works on. (Names in brackets: diffusers classes.)
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    /// Whole timesteps, variance-preserving coordinates [DDPM, DDIM].
    Discrete,
    /// Sigmas, variance-exploding coordinates [Euler*, Heun].
    Sigma,
    /// Sigmas, variance-preserving coordinates, the last step's end being a point of the grid [DPMSolver*, UniPC].
    Multistep,
}

fn family(kind: SamplerKind) -> Family {
    match kind {
        SamplerKind::Ddim | SamplerKind::Ddpm => Family::Discrete,
        SamplerKind::Euler | SamplerKind::EulerA | SamplerKind::Heun => Family::Sigma,
        SamplerKind::Dpmpp2m | SamplerKind::Dpmpp2mSde | SamplerKind::UniPc => Family::Multistep,
    }
}

/// The ladder that sampler `kind` climbs down in `steps` steps.
///
/// # Errors
/// [`Error::Invalid`] if `steps` is 0, or more than the schedule has levels for, or `steps_offset` leads out of it,
/// or a parameter of the space is out of range; [`Error::Unsupported`] for a [`SigmaGrid`] that the sampler does not
/// have.
pub fn ladder(kind: SamplerKind, config: &SamplerConfig, steps: usize) -> Result<Ladder> {
    match &config.space {
        Space::Vp(vp) => vp_ladder(family(kind), config, vp, steps),
        Space::Edm { sigma_min, sigma_max, rho } => edm_ladder(config, [*sigma_min, *sigma_max, *rho], steps),
        Space::Flow { shift, num_train_timesteps } => flow_ladder(kind, config, *shift, *num_train_timesteps, steps),
    }
}

fn check_steps(steps: usize, most: usize) -> Result<()> {
    if (1..=most).contains(&steps) {
        return Ok(());
    }
    Err(Error::invalid("steps", format!("{steps} is not in 1..={most}")))
}

fn vp_ladder(family: Family, config: &SamplerConfig, vp: &VpSchedule, steps: usize) -> Result<Ladder> {
    check_steps(steps, vp.num_train_timesteps())?;
    let times = vp_timesteps(family, config, vp, steps)?;
    match family {
        Family::Discrete => discrete_ladder(config, vp, &times),
        Family::Sigma => {
            let range = [times[times.len() - 1], times[0]].map(|time| vp.ratio(time));
            let ratios = vp_ratios(config, vp, &times, range)?;
            let levels = on_grid(config, vp, &times, &ratios, Level::ve);
            let sigma = levels[0].sigma;
            let init_scale = if config.spacing == Spacing::Leading { sigma.hypot(1.0) } else { sigma };
            Ok(Ladder::through(&levels, init_scale))
        }
        Family::Multistep => {
            let range = [0.0, (vp.num_train_timesteps() - 1) as f64].map(|time| vp.ratio(time));
            let ratios = vp_ratios(config, vp, &times, range)?;
            let whole = |ratio: f64, time: f64| Level::vp_from_ratio(ratio, time.round_ties_even());
            Ok(Ladder::through(&on_grid(config, vp, &times, &ratios, whole), 1.0))
        }
    }
}

/// The timesteps to visit, noisiest first; at least one, all inside the schedule.
fn vp_timesteps(family: Family, config: &SamplerConfig, vp: &VpSchedule, steps: usize) -> Result<Vec<f64>> {
    let total = vp.num_train_timesteps();
    let len = match config.lambda_min {
        Some(least) => (0..total).take_while(|&t| -vp.ratio(t as f64).ln() >= least).count(),
        None => total,
    };
    let points = match (family, config.spacing) {
        (Family::Multistep, Spacing::Leading | Spacing::Linspace) => steps + 1,
        _ => steps,
    };
    if points > len {
        let reason = format!("{steps} steps need {points} levels; the schedule has {len}");
        return Err(Error::invalid("steps", reason));
    }
    let mut times = config.spacing.timesteps(len, points, steps, config.steps_offset);
    if family != Family::Sigma {
        times.iter_mut().for_each(|time| *time = time.round_ties_even());
    }
    if times[0] > (total - 1) as f64 {
        let reason = format!("{} leads to timestep {}, the last is {}", config.steps_offset, times[0], total - 1);
        return Err(Error::invalid("steps_offset", reason));
    }
    Ok(times)
}

fn discrete_ladder(config: &SamplerConfig, vp: &VpSchedule, times: &[f64]) -> Result<Ladder> {
    if config.sigma_grid != SigmaGrid::Timesteps {
        return Err(Error::unsupported("a Karras or exponential grid", "DDIM and DDPM visit whole timesteps"));
    }
    let at = |time: f64| Level::vp(vp.alpha_bar()[time as usize], time);
    let end = Level::vp(if config.set_alpha_to_one { 1.0 } else { vp.alpha_bar()[0] }, 0.0);
    let stride = (vp.num_train_timesteps() / times.len()) as f64;
    let rung = |i: usize| {
        let target = match config.ddim_target {
            DdimTarget::Next => times.get(i + 1).copied(),
            DdimTarget::Stride => Some(times[i] - stride).filter(|time| *time >= 0.0),
        };
        Rung { from: at(times[i]), to: target.map_or(end, at) }
    };
    Ok(Ladder { init_scale: 1.0, rungs: (0..times.len()).map(rung).collect() })
}

/// Noise-to-signal ratios to visit; grids other than the timesteps' own span `range` = (least, greatest).
fn vp_ratios(config: &SamplerConfig, vp: &VpSchedule, times: &[f64], range: [f64; 2]) -> Result<Vec<f64>> {
    let least = config.sigma_min.unwrap_or(range[0]);
    let greatest = config.sigma_max.unwrap_or(range[1]);
    check_sigmas(least, greatest)?;
    Ok(match config.sigma_grid {
        SigmaGrid::Timesteps => times.iter().map(|time| vp.ratio(*time)).collect(),
        SigmaGrid::Karras => karras_sigmas(least, greatest, 7.0, times.len()),
        SigmaGrid::Exponential => exponential_sigmas(least, greatest, times.len()),
    })
}

/// The levels of `ratios`, and the final one.
fn on_grid(
    config: &SamplerConfig,
    vp: &VpSchedule,
    times: &[f64],
    ratios: &[f64],
    level: impl Fn(f64, f64) -> Level,
) -> Vec<Level> {
    let end = match config.final_sigma {
        FinalSigma::Zero => 0.0,
        FinalSigma::SigmaMin => vp.ratio(0.0),
    };
    let time = |i: usize| match config.sigma_grid {
        SigmaGrid::Timesteps => times[i],
        _ => vp.time_of(ratios[i]),
    };
    (0..ratios.len()).map(|i| level(ratios[i], time(i))).chain([level(end, 0.0)]).collect()
}

fn check_sigmas(least: f64, greatest: f64) -> Result<()> {
    if 0.0 < least && least <= greatest && greatest.is_finite() {
        return Ok(());
    }
    Err(Error::invalid("sigma_min, sigma_max", format!("{least}, {greatest}: need 0 < sigma_min <= sigma_max")))
}

fn edm_ladder(config: &SamplerConfig, [sigma_min, sigma_max, rho]: [f64; 3], steps: usize) -> Result<Ladder> {
    check_steps(steps, MAX_TRAIN_TIMESTEPS)?;
    check_sigmas(sigma_min, sigma_max)?;
    if !(rho.is_finite() && rho > 0.0) {
        return Err(Error::invalid("rho", format!("{rho} is not a positive number")));
    }
    let sigmas = match config.sigma_grid {
        SigmaGrid::Timesteps | SigmaGrid::Karras => karras_sigmas(sigma_min, sigma_max, rho, steps),
        SigmaGrid::Exponential => exponential_sigmas(sigma_min, sigma_max, steps),
    };
    let end = match config.final_sigma {
        FinalSigma::Zero => 0.0,
        FinalSigma::SigmaMin => sigma_min,
    };
    let levels: Vec<Level> = sigmas.into_iter().chain([end]).map(Level::edm).collect();
    Ok(Ladder::through(&levels, levels[0].sigma))
}

fn flow_ladder(kind: SamplerKind, config: &SamplerConfig, shift: f64, total: usize, steps: usize) -> Result<Ladder> {
    if !(1..=MAX_TRAIN_TIMESTEPS).contains(&total) {
        return Err(Error::invalid("num_train_timesteps", format!("{total} is not in 1..={MAX_TRAIN_TIMESTEPS}")));
    }
    check_steps(steps, total)?;
    if !(shift.is_finite() && shift > 0.0) {
        return Err(Error::invalid("shift", format!("{shift} is not a positive number")));
    }
    if config.sigma_grid != SigmaGrid::Timesteps {
        return Err(Error::unsupported("a Karras or exponential grid", "flow matching has its own levels"));
    }
    let sigmas = flow_sigmas(kind, shift, total, steps);
    let end = match config.final_sigma {
        FinalSigma::Zero => 0.0,
        FinalSigma::SigmaMin => sigmas[sigmas.len() - 1],
    };
    let level = |sigma: f64| Level::flow(sigma, sigma * total as f64);
    let levels: Vec<Level> = sigmas.into_iter().chain([end]).map(level).collect();
    Ok(Ladder::through(&levels, 1.0))
}

/// The levels that the corresponding diffusers class visits.
fn flow_sigmas(kind: SamplerKind, shift: f64, total: usize, steps: usize) -> Vec<f64> {
    let least = 1.0 / total as f64;
    let even = match kind {
        SamplerKind::UniPc => linspace(1.0, least, steps + 1),
        SamplerKind::Dpmpp2m | SamplerKind::Dpmpp2mSde => linspace(1.0 - least, 0.0, steps + 1),
        // FlowMatchEuler shifts the least level twice: once in training, once here.
        _ => linspace(1.0, shift_sigma(shift, least), steps),
    };
    let shifted = even.into_iter().take(steps).map(|sigma| shift_sigma(shift, sigma));
    if family(kind) == Family::Multistep {
        // Multistep solvers work in the log signal-to-noise ratio, which has to stay finite.
        return shifted.map(|sigma| sigma.min(1.0 - 1e-6)).collect();
    }
    shifted.collect()
}
