//! Noise schedules: how much noise there is at each training timestep, and which levels a sampler visits.

use std::f64::consts::FRAC_PI_2;
use std::str::FromStr;

use crate::{Error, Result};

/// The most training timesteps a schedule may have; real ones have a thousand.
pub const MAX_TRAIN_TIMESTEPS: usize = 100_000;

/// Forward-process variances `beta_t`, `t = 0..T`.
#[derive(Clone, Debug, PartialEq)]
pub enum Betas {
    /// `beta` evenly spaced from `start` to `end` (Ho et al. 2020, arXiv 2006.11239, section 4).
    Linear {
        /// `beta_0`, in (0, 1)
        start: f64,
        /// `beta_{T-1}`, in (0, 1)
        end: f64,
    },
    /// `sqrt(beta)` evenly spaced from `sqrt(start)` to `sqrt(end)` (Rombach et al. 2022, latent diffusion).
    ScaledLinear {
        /// `beta_0`, in (0, 1)
        start: f64,
        /// `beta_{T-1}`, in (0, 1)
        end: f64,
    },
    /// `alpha_bar(u) = cos²((u + 0.008) / 1.008 · π/2)` at `u = t/T`, betas at most 0.999
    /// (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17). diffusers calls it `squaredcos_cap_v2`.
    SquaredCosine,
    /// `beta = start + (end - start) / (1 + exp(-u))`, `u` evenly spaced from -6 to 6 (Xu et al. 2022, GeoDiff).
    Sigmoid {
        /// limit at small `t`, in (0, 1)
        start: f64,
        /// limit at large `t`, in (0, 1)
        end: f64,
    },
    /// One by one, each in (0, 1).
    Explicit(Vec<f64>),
}

impl Betas {
    fn values(&self, len: usize) -> Vec<f64> {
        match self {
            Betas::Linear { start, end } => linspace(*start, *end, len),
            Betas::ScaledLinear { start, end } => {
                linspace(start.sqrt(), end.sqrt(), len).into_iter().map(|root| root * root).collect()
            }
            Betas::SquaredCosine => {
                let alpha_bar = |t: usize| ((t as f64 / len as f64 + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
                (0..len).map(|t| (1.0 - alpha_bar(t + 1) / alpha_bar(t)).min(0.999)).collect()
            }
            Betas::Sigmoid { start, end } => {
                let sigmoid = |u: f64| 1.0 / (1.0 + (-u).exp());
                linspace(-6.0, 6.0, len).into_iter().map(|u| start + (end - start) * sigmoid(u)).collect()
            }
            Betas::Explicit(betas) => betas.clone(),
        }
    }
}

/// A discrete variance-preserving schedule: `x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps`,
/// `alpha_bar_t = prod_{s <= t} (1 - beta_s)` (Ho et al. 2020, eq. 4).
#[derive(Clone, Debug, PartialEq)]
pub struct VpSchedule {
    alpha_bar: Vec<f64>,
}

impl VpSchedule {
    /// The schedule of `num_train_timesteps` steps, if asked for rescaled to zero terminal signal-to-noise ratio:
    /// `sqrt(alpha_bar)` shifted and stretched so that its first value stays and its last becomes 0
    /// (Lin et al. 2023, arXiv 2305.08891, algorithm 1).
    ///
    /// # Errors
    /// [`Error::Invalid`] naming diffusers' key, if there are no or too many timesteps, if a beta is not inside (0, 1),
    /// if explicit betas are not as many as the timesteps, or if no signal is left that could be rescaled.
    pub fn new(betas: &Betas, num_train_timesteps: usize, rescale_betas_zero_snr: bool) -> Result<VpSchedule> {
        if !(1..=MAX_TRAIN_TIMESTEPS).contains(&num_train_timesteps) {
            let reason = format!("{num_train_timesteps} is not in 1..={MAX_TRAIN_TIMESTEPS}");
            return Err(Error::invalid("num_train_timesteps", reason));
        }
        let betas = betas.values(num_train_timesteps);
        if betas.len() != num_train_timesteps {
            let reason = format!("{} betas for {num_train_timesteps} timesteps", betas.len());
            return Err(Error::invalid("trained_betas", reason));
        }
        if let Some((t, beta)) = betas.iter().enumerate().find(|(_, beta)| !(**beta > 0.0 && **beta < 1.0)) {
            return Err(Error::invalid("betas", format!("beta at timestep {t} is {beta}, which is not inside (0, 1)")));
        }
        let mut alpha_bar: Vec<f64> = betas
            .iter()
            .scan(1.0, |product, beta| {
                *product *= 1.0 - beta;
                Some(*product)
            })
            .collect();
        if rescale_betas_zero_snr {
            rescale_to_zero_snr(&mut alpha_bar)?;
        }
        let usable = |alpha_bar: f64| if rescale_betas_zero_snr { alpha_bar >= 0.0 } else { alpha_bar > 0.0 };
        if alpha_bar.last().is_none_or(|last| !usable(*last)) {
            return Err(Error::invalid("betas", "the signal vanishes below what f64 can hold"));
        }
        Ok(VpSchedule { alpha_bar })
    }

    /// `alpha_bar_t` for all `t`, falling.
    pub fn alpha_bar(&self) -> &[f64] {
        &self.alpha_bar
    }

    /// `T`, the number of training timesteps, at least 1.
    pub fn num_train_timesteps(&self) -> usize {
        self.alpha_bar.len()
    }

    /// The noise-to-signal ratio `sqrt((1 - alpha_bar_t) / alpha_bar_t)`, EDM's sigma, at a timestep with a fraction:
    /// linear between whole ones. Timesteps outside `0..=T-1` count as the nearest end.
    /// Where `alpha_bar` is 0 (zero terminal SNR) it is that of `alpha_bar = 2^-24`, about 4096.
    pub fn ratio(&self, time: f64) -> f64 {
        let (low, high, weight) = self.neighbours(time);
        self.ratio_at(low) * (1.0 - weight) + self.ratio_at(high) * weight
    }

    /// The timestep, with a fraction, whose noise-to-signal ratio is `ratio`: linear in `ln(ratio)` between whole
    /// timesteps, clamped to `0..=T-1`.
    pub fn time_of(&self, ratio: f64) -> f64 {
        let above = self.alpha_bar.partition_point(|&alpha_bar| ratio_of(alpha_bar) <= ratio);
        if above == 0 || above == self.alpha_bar.len() {
            return above.saturating_sub(1) as f64;
        }
        let (low, high) = (self.ratio_at(above - 1).ln(), self.ratio_at(above).ln());
        (above - 1) as f64 + (ratio.ln() - low) / (high - low)
    }

    fn ratio_at(&self, t: usize) -> f64 {
        ratio_of(self.alpha_bar[t])
    }

    /// The whole timesteps around `time` and the weight of the upper one.
    fn neighbours(&self, time: f64) -> (usize, usize, f64) {
        let last = self.alpha_bar.len() - 1;
        let time = time.clamp(0.0, last as f64);
        let low = time.floor() as usize;
        (low, (low + 1).min(last), time - time.floor())
    }
}

/// `sqrt((1 - alpha_bar) / alpha_bar)`, with 2^-24 in place of an `alpha_bar` of 0 so that it is finite.
fn ratio_of(alpha_bar: f64) -> f64 {
    let alpha_bar = if alpha_bar == 0.0 { 1.0 / 16_777_216.0 } else { alpha_bar };
    ((1.0 - alpha_bar) / alpha_bar).sqrt()
}

fn rescale_to_zero_snr(alpha_bar: &mut [f64]) -> Result<()> {
    let (Some(first), Some(last)) = (alpha_bar.first().map(|a| a.sqrt()), alpha_bar.last().map(|a| a.sqrt())) else {
        return Ok(());
    };
    if first <= last {
        return Err(Error::invalid("rescale_betas_zero_snr", "needs at least two timesteps"));
    }
    for value in alpha_bar.iter_mut() {
        *value = ((value.sqrt() - last) * first / (first - last)).powi(2);
    }
    Ok(())
}

/// How the timesteps that a sampler visits are picked from `0..T` (Lin et al. 2023, table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Spacing {
    /// Multiples of `T / n` rounded down, from 0, plus `steps_offset`: the noisiest level is left out.
    Leading,
    /// Evenly from `0` to `T - 1`, both included.
    Linspace,
    /// Evenly downwards from `T - 1`: the noisiest level is always there.
    Trailing,
}

impl FromStr for Spacing {
    type Err = Error;

    fn from_str(name: &str) -> Result<Spacing> {
        match name {
            "leading" => Ok(Spacing::Leading),
            "linspace" => Ok(Spacing::Linspace),
            "trailing" => Ok(Spacing::Trailing),
            _ => Err(Error::invalid("timestep_spacing", format!("`{name}` is none of leading, linspace, trailing"))),
        }
    }
}

impl Spacing {
    /// The first `steps` of `points` timesteps spread over `0..len`, noisiest first; `points` is `steps`, or one more
    /// where the end of the last step is to be one of the spread points.
    ///
    /// A single linspace point is `len - 1`: a sampler that makes one step starts at noise.
    pub(super) fn timesteps(self, len: usize, points: usize, steps: usize, steps_offset: usize) -> Vec<f64> {
        let stride = (len / points.max(1)) as f64;
        let timestep = |i: usize| match self {
            Spacing::Leading => (points - 1 - i) as f64 * stride + steps_offset as f64,
            Spacing::Linspace if points == 1 => (len - 1) as f64,
            // The product first: it is exact, and so is the first timestep.
            Spacing::Linspace => ((points - 1 - i) * (len - 1)) as f64 / (points - 1) as f64,
            Spacing::Trailing => (len as f64 - i as f64 * (len as f64 / steps as f64)).round_ties_even() - 1.0,
        };
        (0..steps.min(points)).map(timestep).collect()
    }
}

/// `n` levels evenly spaced in `sigma^(1/rho)`, from `sigma_max` down to `sigma_min` (Karras et al. 2022, eq. 5):
/// `sigma_i = (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho`. One level is `sigma_max`.
pub fn karras_sigmas(sigma_min: f64, sigma_max: f64, rho: f64, n: usize) -> Vec<f64> {
    linspace(sigma_max.powf(1.0 / rho), sigma_min.powf(1.0 / rho), n).into_iter().map(|root| root.powf(rho)).collect()
}

/// `n` levels evenly spaced in `ln(sigma)`, from `sigma_max` down to `sigma_min`. One level is `sigma_max`.
pub fn exponential_sigmas(sigma_min: f64, sigma_max: f64, n: usize) -> Vec<f64> {
    linspace(sigma_max.ln(), sigma_min.ln(), n).into_iter().map(f64::exp).collect()
}

/// Moves a flow-matching level towards noise: `shift sigma / (1 + (shift - 1) sigma)`
/// (Esser et al. 2024, arXiv 2403.03206, eq. 23 with `shift = sqrt(m/n)`). Fixes 0 and 1; 1 does nothing.
pub fn shift_sigma(shift: f64, sigma: f64) -> f64 {
    shift * sigma / (1.0 + (shift - 1.0) * sigma)
}

/// `n` numbers evenly spaced from `start` to `end`, both included; one number is `start`.
pub(super) fn linspace(start: f64, end: f64, n: usize) -> Vec<f64> {
    let step = (end - start) / n.saturating_sub(1).max(1) as f64;
    (0..n).map(|i| if i > 0 && i + 1 == n { end } else { start + i as f64 * step }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-12 * b.abs().max(1.0), "{a} is not {b}");
    }

    #[test]
    fn alpha_bar_is_the_product() {
        let vp = VpSchedule::new(&Betas::Linear { start: 0.1, end: 0.3 }, 3, false).unwrap();
        for (a, b) in vp.alpha_bar().iter().zip([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7]) {
            close(*a, b);
        }
    }

    #[test]
    fn cosine_follows_its_formula_until_capped() {
        let vp = VpSchedule::new(&Betas::SquaredCosine, 1000, false).unwrap();
        let f = |t: f64| ((t / 1000.0 + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
        close(vp.alpha_bar()[499], f(500.0) / f(0.0));
        close(vp.alpha_bar()[999] / vp.alpha_bar()[998], 0.001);
    }

    #[test]
    fn zero_terminal_snr_keeps_the_first_level() {
        let betas = Betas::ScaledLinear { start: 0.00085, end: 0.012 };
        let plain = VpSchedule::new(&betas, 1000, false).unwrap();
        let rescaled = VpSchedule::new(&betas, 1000, true).unwrap();
        close(rescaled.alpha_bar()[0], plain.alpha_bar()[0]);
        assert_eq!(rescaled.alpha_bar()[999], 0.0);
        close(rescaled.ratio(999.0), (2f64.powi(24) - 1.0).sqrt());
    }

    #[test]
    fn ratio_and_time_are_inverse_at_whole_timesteps() {
        let vp = VpSchedule::new(&Betas::Linear { start: 1e-4, end: 0.02 }, 1000, false).unwrap();
        for t in [0.0, 1.0, 500.0, 998.0, 999.0] {
            assert!((vp.time_of(vp.ratio(t)) - t).abs() < 1e-9);
        }
        assert_eq!((vp.time_of(0.0), vp.time_of(1e9)), (0.0, 999.0));
        assert!((vp.time_of(vp.ratio(500.5)) - 500.5).abs() < 1e-3, "between them the interpolations nearly agree");
    }

    #[test]
    fn bad_betas_are_errors() {
        let linear = |start, end| Betas::Linear { start, end };
        for (betas, len) in [
            (linear(0.0, 0.02), 10),
            (linear(1e-4, 1.0), 10),
            (linear(f64::NAN, 0.02), 10),
            (linear(1e-4, 0.02), 0),
            (linear(1e-4, 0.02), usize::MAX),
            (Betas::ScaledLinear { start: -1.0, end: 0.02 }, 10),
            (Betas::Explicit(vec![0.1; 3]), 4),
            (linear(0.9, 0.999), 100_000),
        ] {
            assert!(VpSchedule::new(&betas, len, false).is_err(), "{betas:?}, {len}");
        }
        assert!(VpSchedule::new(&linear(0.1, 0.1), 1, true).is_err());
    }

    #[test]
    fn spacings() {
        assert_eq!(Spacing::Leading.timesteps(1000, 4, 4, 1), [751.0, 501.0, 251.0, 1.0]);
        assert_eq!(Spacing::Linspace.timesteps(1000, 4, 4, 1), [999.0, 666.0, 333.0, 0.0]);
        assert_eq!(Spacing::Linspace.timesteps(1000, 1, 1, 0), [999.0]);
        assert_eq!(Spacing::Trailing.timesteps(1000, 4, 4, 1), [999.0, 749.0, 499.0, 249.0]);
        for n in 1..=1000 {
            let trailing = Spacing::Trailing.timesteps(1000, n, n, 0);
            assert!(trailing.len() == n && trailing[n - 1] >= 0.0 && trailing.is_sorted_by(|a, b| a > b));
        }
    }

    #[test]
    fn sigma_grids() {
        let sigmas = karras_sigmas(0.002, 80.0, 7.0, 18);
        close(sigmas[0], 80.0);
        close(sigmas[17], 0.002);
        close(sigmas[1], (80f64.powf(1.0 / 7.0) * 16.0 / 17.0 + 0.002f64.powf(1.0 / 7.0) / 17.0).powi(7));
        close(exponential_sigmas(0.01, 100.0, 3)[1], 1.0);
        close(shift_sigma(3.0, 0.5), 0.75);
        assert_eq!((shift_sigma(3.0, 0.0), shift_sigma(3.0, 1.0)), (0.0, 1.0));
    }
}
