//! What a network is trained for: the noise levels it sees, what it is to answer, and how much each level counts.
//!
//! Everything is a pure function of numbers drawn elsewhere; nothing here knows of graphs or devices.

use std::str::FromStr;

use serde_json::{Value, json};

use super::levels::Level;
use super::precond::Prediction;
use super::schedule::{Betas, VpSchedule, shift_sigma};
use crate::{Error, Result};

/// How times of flow matching are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FlowTimes {
    /// Evenly in (0, 1).
    Uniform,
    /// `logit(sigma) ~ N(mean, std²)` (Esser et al. 2024, arXiv 2403.03206, section 3.1).
    LogitNormal {
        /// Greater: more noise.
        mean: f64,
        /// Standard deviation, positive.
        std: f64,
    },
}

/// Which noise levels a network is trained at.
#[derive(Clone, Debug, PartialEq)]
pub enum Levels {
    /// Timesteps drawn evenly from a variance-preserving schedule (Ho et al. 2020, algorithm 1).
    Vp {
        /// What the schedule was made of; goes into `scheduler_config.json`.
        betas: Betas,
        /// Rescaled to zero terminal signal-to-noise ratio.
        zero_snr: bool,
        /// The schedule itself.
        schedule: VpSchedule,
    },
    /// `ln sigma ~ N(p_mean, p_std²)` (Karras et al. 2022, table 1). The network is told sigma and answers denoised images.
    Edm {
        /// EDM has -1.2.
        p_mean: f64,
        /// EDM has 1.2.
        p_std: f64,
    },
    /// The straight path `x = (1 - sigma) x0 + sigma eps`; the network is told `num_train_timesteps * sigma`.
    Flow {
        /// How they are drawn.
        times: FlowTimes,
        /// Moves all of them towards noise, see [`shift_sigma`]; 1 does not.
        shift: f64,
        /// What time at `sigma = 1` is called.
        num_train_timesteps: usize,
    },
}

impl Levels {
    /// A variance-preserving schedule.
    ///
    /// # Errors
    /// As [`VpSchedule::new`].
    pub fn vp(betas: Betas, num_train_timesteps: usize, zero_snr: bool) -> Result<Levels> {
        let schedule = VpSchedule::new(&betas, num_train_timesteps, zero_snr)?;
        Ok(Levels::Vp { betas, zero_snr, schedule })
    }

    /// The level that belongs to two independent numbers of (0, 1].
    pub fn draw(&self, [u, v]: [f64; 2]) -> Level {
        let normal = || (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
        match self {
            Levels::Vp { schedule, .. } => {
                let steps = schedule.num_train_timesteps();
                let t = ((u * steps as f64) as usize).min(steps - 1);
                Level::vp(schedule.alpha_bar()[t], t as f64)
            }
            Levels::Edm { p_mean, p_std } => Level::edm((p_mean + p_std * normal()).exp()),
            Levels::Flow { times, shift, num_train_timesteps } => {
                let sigma = match times {
                    FlowTimes::Uniform => u,
                    FlowTimes::LogitNormal { mean, std } => 1.0 / (1.0 + (-(mean + std * normal())).exp()),
                };
                let sigma = shift_sigma(*shift, sigma);
                Level::flow(sigma, sigma * *num_train_timesteps as f64)
            }
        }
    }
}

/// How much a noise level counts. `SNR` is `alpha²/sigma²`; every weighting is stated for the squared error of `x0` and
/// converted to that of what the network answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weighting {
    /// 1 on the answer as it is (Ho et al. 2020, eq. 14, for noise).
    Uniform,
    /// `min(SNR, gamma)` (Hang et al. 2023, arXiv 2303.09556); 5 is usual.
    MinSnr {
        /// Where the weight stops growing, positive.
        gamma: f64,
    },
    /// `SNR / (k + SNR)^gamma` (Choi et al. 2022, arXiv 2204.00227, eq. 8); both 1 is usual.
    P2 {
        /// Strength; 0 is uniform on the noise.
        gamma: f64,
        /// Keeps the weight of clean levels finite, positive.
        k: f64,
    },
    /// `SNR + 1/sigma_data²` (Karras et al. 2022, table 1): every level of equal importance at the start.
    Edm {
        /// Standard deviation of the data, positive.
        sigma_data: f64,
    },
}

impl Weighting {
    /// The weight of the squared error of an answer at `level`.
    pub fn weight(self, level: Level, prediction: Prediction) -> f64 {
        let snr = (level.alpha / level.sigma).powi(2);
        let of_x0 = match self {
            Weighting::Uniform => return 1.0,
            Weighting::MinSnr { gamma } => snr.min(gamma),
            Weighting::P2 { gamma, k } => snr / (k + snr).powf(gamma),
            Weighting::Edm { sigma_data } => snr + sigma_data.powi(-2),
        };
        // An error e of the answer is an error of out·e in x0.
        of_x0 * prediction.x0(level).out.powi(2)
    }
}

/// What a network is trained for.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    /// The noise levels.
    pub levels: Levels,
    /// What the network answers.
    pub prediction: Prediction,
    /// How much each level counts.
    pub weighting: Weighting,
}

/// A sample's noise level: `x = alpha x0 + sigma eps` goes in, `target[0] x0 + target[1] eps` is to come out, and the squared
/// error counts `weight` times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoiseLevel {
    /// Signal, noise, and what the network is told.
    pub level: Level,
    /// Coefficients of the answer.
    pub target: [f64; 2],
    /// See [`Weighting`].
    pub weight: f64,
}

impl Objective {
    /// # Errors
    /// [`Error::Invalid`] naming the option, for numbers out of range and combinations that cannot be learned.
    pub fn new(levels: Levels, prediction: Prediction, weighting: Weighting) -> Result<Objective> {
        let positive = |what: &str, v: f64| match v.is_finite() && v > 0.0 {
            true => Ok(()),
            false => Err(Error::invalid(what, format!("{v} is not a positive number"))),
        };
        let finite = |what: &str, v: f64| match v.abs() <= 20.0 {
            true => Ok(()),
            false => Err(Error::invalid(what, format!("{v} is not from -20 to 20"))),
        };
        match &levels {
            Levels::Vp { zero_snr: true, .. } if prediction == Prediction::Epsilon => {
                let reason = "cannot be learned where nothing but noise is left; zero terminal SNR needs v_prediction";
                return Err(Error::invalid("prediction", format!("`epsilon` {reason}")));
            }
            Levels::Vp { .. } => {}
            Levels::Edm { p_mean, p_std } => {
                finite("p_mean", *p_mean)?;
                positive("p_std", *p_std)?;
                finite("p_std", *p_std)?;
            }
            Levels::Flow { times, shift, num_train_timesteps } => {
                positive("shift", *shift)?;
                positive("num_train_timesteps", *num_train_timesteps as f64)?;
                if let FlowTimes::LogitNormal { mean, std } = times {
                    finite("logit_mean", *mean)?;
                    positive("logit_std", *std)?;
                    finite("logit_std", *std)?;
                }
            }
        }
        let fits = match (&levels, prediction) {
            (Levels::Edm { .. }, p) => p == Prediction::Sample,
            (Levels::Vp { .. }, Prediction::Flow) => false,
            (Levels::Flow { .. }, p) => p == Prediction::Flow,
            _ => true,
        };
        if !fits {
            return Err(Error::invalid("prediction", format!("`{}` does not go with these levels", prediction.name())));
        }
        match weighting {
            Weighting::Uniform => {}
            Weighting::MinSnr { gamma } => positive("min_snr_gamma", gamma)?,
            Weighting::P2 { gamma, k } => {
                positive("p2_k", k)?;
                positive("p2_gamma", gamma)?;
            }
            Weighting::Edm { sigma_data } => positive("sigma_data", sigma_data)?,
        }
        Ok(Objective { levels, prediction, weighting })
    }

    /// Noise prediction on the usual VP schedule: 1000 timesteps, linear betas from 1e-4 to 0.02 (Ho et al. 2020).
    ///
    /// # Errors
    /// None in practice.
    pub fn ddpm() -> Result<Objective> {
        let levels = Levels::vp(Betas::Linear { start: 1e-4, end: 0.02 }, 1000, false)?;
        Objective::new(levels, Prediction::Epsilon, Weighting::Uniform)
    }

    /// Denoising at EDM's levels with EDM's weights, for an EDM-preconditioned network.
    ///
    /// # Errors
    /// As [`Objective::new`].
    pub fn edm(p_mean: f64, p_std: f64, sigma_data: f64) -> Result<Objective> {
        Objective::new(Levels::Edm { p_mean, p_std }, Prediction::Sample, Weighting::Edm { sigma_data })
    }

    /// The level that belongs to two independent numbers of (0, 1].
    pub fn draw(&self, uniforms: [f64; 2]) -> NoiseLevel {
        let level = self.levels.draw(uniforms);
        let target = match self.prediction {
            Prediction::Epsilon => [0.0, 1.0],
            Prediction::Sample => [1.0, 0.0],
            Prediction::Velocity => [-level.sigma, level.alpha],
            Prediction::Flow => [-1.0, 1.0],
        };
        NoiseLevel { level, target, weight: self.weighting.weight(level, self.prediction) }
    }

    /// The `scheduler_config.json` that samplers of this project and of diffusers need for the trained network; none for
    /// EDM networks, whose `config.json` says it all.
    pub fn scheduler_config(&self) -> Option<Value> {
        match &self.levels {
            Levels::Edm { .. } => None,
            Levels::Flow { shift, num_train_timesteps, .. } => Some(json!({
                "_class_name": "FlowMatchEulerDiscreteScheduler",
                "num_train_timesteps": num_train_timesteps,
                "shift": shift,
            })),
            Levels::Vp { betas, zero_snr, schedule } => {
                let mut config = json!({
                    "_class_name": "DDIMScheduler",
                    "num_train_timesteps": schedule.num_train_timesteps(),
                    "prediction_type": self.prediction.name(),
                    "rescale_betas_zero_snr": zero_snr,
                });
                let mut with = |name: &str, start: f64, end: f64| {
                    config["beta_schedule"] = name.into();
                    config["beta_start"] = start.into();
                    config["beta_end"] = end.into();
                };
                match betas {
                    Betas::Linear { start, end } => with("linear", *start, *end),
                    Betas::ScaledLinear { start, end } => with("scaled_linear", *start, *end),
                    Betas::Sigmoid { start, end } => with("sigmoid", *start, *end),
                    Betas::SquaredCosine => config["beta_schedule"] = "squaredcos_cap_v2".into(),
                    Betas::Explicit(values) => config["trained_betas"] = json!(values),
                }
                if *zero_snr {
                    // The last timestep, pure noise, has to be where sampling starts (Lin et al. 2023, section 3.3).
                    config["timestep_spacing"] = "trailing".into();
                }
                Some(config)
            }
        }
    }
}

impl FromStr for FlowTimes {
    type Err = Error;

    fn from_str(name: &str) -> Result<FlowTimes> {
        match name {
            "uniform" => Ok(FlowTimes::Uniform),
            "logit-normal" => Ok(FlowTimes::LogitNormal { mean: 0.0, std: 1.0 }),
            _ => Err(Error::invalid("flow_times", format!("`{name}` is none of uniform, logit-normal"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vp() -> Levels {
        Levels::vp(Betas::ScaledLinear { start: 0.00085, end: 0.012 }, 1000, false).unwrap()
    }

    /// The published forms, each for its own prediction.
    #[test]
    fn weights_are_those_of_the_papers() {
        let level = Level::vp(0.3, 500.0);
        let snr: f64 = 0.3 / 0.7;
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} is not {b}");
        for gamma in [0.1, 5.0] {
            let weighting = Weighting::MinSnr { gamma };
            close(weighting.weight(level, Prediction::Epsilon), snr.min(gamma) / snr);
            close(weighting.weight(level, Prediction::Sample), snr.min(gamma));
            close(weighting.weight(level, Prediction::Velocity), snr.min(gamma) / (snr + 1.0));
        }
        close(Weighting::P2 { gamma: 0.5, k: 1.0 }.weight(level, Prediction::Epsilon), (1.0 + snr).powf(-0.5));
        let sigma: f64 = 0.8;
        let edm = (sigma * sigma + 0.25) / (sigma * 0.5).powi(2);
        close(Weighting::Edm { sigma_data: 0.5 }.weight(Level::edm(sigma), Prediction::Sample), edm);
        // A flow's direction: x0 = x - sigma u.
        close(Weighting::MinSnr { gamma: 5.0 }.weight(Level::flow(0.5, 500.0), Prediction::Flow), 0.25);
    }

    proptest! {
        /// Whatever is predicted, x0 and eps come out of the target by the sampler's own forms.
        #[test]
        fn the_target_is_what_samplers_take_it_for(u in 1e-6..1.0f64, v in 0.0..1.0f64, x0 in -1.0..1.0f64, eps in -3.0..3.0f64) {
            let flow = Levels::Flow {
                times: FlowTimes::LogitNormal { mean: 0.3, std: 1.1 },
                shift: 3.0,
                num_train_timesteps: 1000,
            };
            let objectives = [
                (vp(), Prediction::Epsilon),
                (vp(), Prediction::Sample),
                (vp(), Prediction::Velocity),
                (Levels::Edm { p_mean: -1.2, p_std: 1.2 }, Prediction::Sample),
                (flow, Prediction::Flow),
            ];
            for (levels, prediction) in objectives {
                let objective = Objective::new(levels, prediction, Weighting::Uniform).unwrap();
                let NoiseLevel { level, target, .. } = objective.draw([u, v]);
                let x = level.alpha * x0 + level.sigma * eps;
                let out = target[0] * x0 + target[1] * eps;
                let error = (prediction.x0(level).eval(x, out) - x0).abs() * level.alpha;
                prop_assert!(error < 1e-9, "{prediction:?} at {level:?}: x0 off by {error}");
                let error = (prediction.eps(level).eval(x, out) - eps).abs() * level.sigma;
                prop_assert!(error < 1e-9, "{prediction:?} at {level:?}: eps off by {error}");
            }
        }
    }

    #[test]
    fn what_cannot_be_learned_is_refused() {
        let zero = Levels::vp(Betas::SquaredCosine, 1000, true).unwrap();
        assert!(Objective::new(zero.clone(), Prediction::Epsilon, Weighting::Uniform).is_err());
        assert!(Objective::new(zero, Prediction::Velocity, Weighting::MinSnr { gamma: 5.0 }).is_ok());
        assert!(Objective::new(vp(), Prediction::Flow, Weighting::Uniform).is_err());
        assert!(Objective::new(vp(), Prediction::Epsilon, Weighting::MinSnr { gamma: f64::NAN }).is_err());
        assert!(Objective::edm(-1.2, 0.0, 0.5).is_err());
    }
}
