//! What a network's output means: denoised latents and noise as linear forms of latents and output.

use std::str::FromStr;

use super::levels::Level;
use crate::{Error, Result};

/// What the network was trained to answer about `x = alpha x0 + sigma eps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Prediction {
    /// The noise `eps` (Ho et al. 2020, arXiv 2006.11239).
    Epsilon,
    /// The denoised latents `x0`. Also what an EDM-preconditioned model answers, [`EdmPrecond`] being inside it.
    Sample,
    /// `v = alpha eps - sigma x0` with `alpha² + sigma² = 1` (Salimans & Ho 2022, arXiv 2202.00512, section 4).
    Velocity,
    /// `u = eps - x0`, the direction of the straight path (Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023).
    Flow,
}

/// `x * latents + out * output`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    /// Coefficient of the latents.
    pub x: f64,
    /// Coefficient of the network's output.
    pub out: f64,
}

impl Linear {
    /// The form's value.
    pub fn eval(self, x: f64, out: f64) -> f64 {
        self.x * x + self.out * out
    }
}

impl Prediction {
    /// diffusers' `prediction_type`.
    pub fn name(self) -> &'static str {
        match self {
            Prediction::Epsilon => "epsilon",
            Prediction::Sample => "sample",
            Prediction::Velocity => "v_prediction",
            Prediction::Flow => "flow_prediction",
        }
    }

    /// The denoised latents `x0`.
    ///
    /// | prediction | `x0` |
    /// |---|---|
    /// | epsilon | `(x - sigma out) / alpha` |
    /// | sample | `out` |
    /// | velocity | `(alpha x/r - sigma out) / r`, with `r = sqrt(alpha² + sigma²)` |
    /// | flow | `(x - sigma out) / (alpha + sigma)` |
    ///
    /// `r` is 1 in variance-preserving coordinates; with it the forms hold in every coordinates.
    /// Not finite for epsilon where `alpha` is 0.
    pub fn x0(self, level: Level) -> Linear {
        let Level { alpha, sigma, .. } = level;
        let r = alpha.hypot(sigma);
        match self {
            Prediction::Epsilon => Linear { x: 1.0 / alpha, out: -sigma / alpha },
            Prediction::Sample => Linear { x: 0.0, out: 1.0 },
            Prediction::Velocity => Linear { x: alpha / r / r, out: -sigma / r },
            Prediction::Flow => Linear { x: 1.0 / (alpha + sigma), out: -sigma / (alpha + sigma) },
        }
    }

    /// The noise `eps`.
    ///
    /// | prediction | `eps` |
    /// |---|---|
    /// | epsilon | `out` |
    /// | sample | `(x - alpha out) / sigma` |
    /// | velocity | `(sigma x/r + alpha out) / r`, with `r = sqrt(alpha² + sigma²)` |
    /// | flow | `(x + alpha out) / (alpha + sigma)` |
    ///
    /// Not finite for sample where `sigma` is 0.
    pub fn eps(self, level: Level) -> Linear {
        let Level { alpha, sigma, .. } = level;
        let r = alpha.hypot(sigma);
        match self {
            Prediction::Epsilon => Linear { x: 0.0, out: 1.0 },
            Prediction::Sample => Linear { x: 1.0 / sigma, out: -alpha / sigma },
            Prediction::Velocity => Linear { x: sigma / r / r, out: alpha / r },
            Prediction::Flow => Linear { x: 1.0 / (alpha + sigma), out: alpha / (alpha + sigma) },
        }
    }
}

impl FromStr for Prediction {
    type Err = Error;

    /// Reads diffusers' `prediction_type`.
    fn from_str(name: &str) -> Result<Prediction> {
        match name {
            "epsilon" => Ok(Prediction::Epsilon),
            "sample" | "original_sample" => Ok(Prediction::Sample),
            "v_prediction" => Ok(Prediction::Velocity),
            "flow_prediction" => Ok(Prediction::Flow),
            _ => Err(Error::invalid(
                "prediction_type",
                format!("`{name}` is none of epsilon, sample, v_prediction, flow_prediction"),
            )),
        }
    }
}

/// The four factors around an EDM network `F` (Karras et al. 2022, arXiv 2206.00364, table 1):
/// `D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EdmPrecond {
    /// `sigma_data² / (sigma² + sigma_data²)`
    pub c_skip: f64,
    /// `sigma sigma_data / sqrt(sigma² + sigma_data²)`
    pub c_out: f64,
    /// `1 / sqrt(sigma² + sigma_data²)`
    pub c_in: f64,
    /// `ln(sigma) / 4`
    pub c_noise: f64,
}

impl EdmPrecond {
    /// The factors at noise level `sigma` for data of standard deviation `sigma_data`, both positive.
    pub fn new(sigma: f64, sigma_data: f64) -> EdmPrecond {
        let r = sigma.hypot(sigma_data);
        EdmPrecond {
            c_skip: (sigma_data / r).powi(2),
            c_out: sigma * sigma_data / r,
            c_in: 1.0 / r,
            c_noise: sigma.ln() / 4.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Prediction; 4] = [Prediction::Epsilon, Prediction::Sample, Prediction::Velocity, Prediction::Flow];

    /// The output a perfect network gives.
    fn output(prediction: Prediction, level: Level, x0: f64, eps: f64) -> f64 {
        let r = level.alpha.hypot(level.sigma);
        match prediction {
            Prediction::Epsilon => eps,
            Prediction::Sample => x0,
            Prediction::Velocity => (level.alpha * eps - level.sigma * x0) / r,
            Prediction::Flow => eps - x0,
        }
    }

    #[test]
    fn forms_recover_signal_and_noise_in_all_coordinates() {
        let (x0, eps) = (0.7, -1.3);
        for level in [Level::vp(0.3, 5.0), Level::ve(3.0, 5.0), Level::edm(0.4), Level::flow(0.25, 250.0)] {
            let x = level.alpha * x0 + level.sigma * eps;
            for prediction in ALL {
                let out = output(prediction, level, x0, eps);
                assert!((prediction.x0(level).eval(x, out) - x0).abs() < 1e-14, "{prediction:?} at {level:?}");
                assert!((prediction.eps(level).eval(x, out) - eps).abs() < 1e-14, "{prediction:?} at {level:?}");
            }
        }
    }

    #[test]
    fn edm_factors_keep_unit_variance() {
        for sigma in [0.002, 0.5, 80.0] {
            let EdmPrecond { c_skip, c_out, c_in, .. } = EdmPrecond::new(sigma, 0.5);
            assert!((c_in * sigma.hypot(0.5) - 1.0).abs() < 1e-14, "unit input variance");
            // unit target variance: c_out² = E|x0 - c_skip x|² (Karras et al. 2022, appendix B.6)
            let target = ((1.0 - c_skip) * 0.5).hypot(c_skip * sigma);
            assert!((c_out - target).abs() < 1e-14, "unit target variance");
        }
    }
}
