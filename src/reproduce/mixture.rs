//! Mixtures of Gaussians, whose scores are known: W2SD without any network.
//!
//! The strong and the weak "model" answer the exact noise of a mixture that differs from the ideal one in the weights of its modes
//! alone, as models do that were trained on unbalanced data. So whatever a sampler gets wrong is its own.

use super::noise::normals;
use crate::Result;
use crate::diffusion::{Options, QueryTime, ReflectLevels, Reflection, SamplerConfig, SamplerKind, Space, trajectory};
use rayon::prelude::*;

/// Standard deviation of every mode.
const STD: f64 = 0.8;
/// Distance of the modes from the axes.
const MODE: f64 = 4.0;
/// The most modes.
const MODES: usize = 4;
/// Samples of a task.
const TASK: usize = 1024;

/// Modes in `D` dimensions.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture<const D: usize> {
    /// At most [`MODES`], each with the logarithm of its weight.
    modes: Vec<([f64; D], f64)>,
}

impl Mixture<1> {
    /// Modes at -4 and 4, the left one of this weight.
    pub fn line(left: f64) -> Self {
        Mixture { modes: vec![([-MODE], left.ln()), ([MODE], (1.0 - left).ln())] }
    }
}

impl Mixture<2> {
    /// Modes at (±4, ±4), that at (-4, -4) of this weight and the others alike.
    pub fn square(light: f64) -> Self {
        let corners = [[-MODE, -MODE], [-MODE, MODE], [MODE, -MODE], [MODE, MODE]];
        let weight = |i: usize| if i == 0 { light } else { (1.0 - light) / 3.0 };
        Mixture { modes: corners.iter().enumerate().map(|(i, c)| (*c, weight(i).ln())).collect() }
    }
}

impl<const D: usize> Mixture<D> {
    /// The noise that the best noise predictor sees in `x` at `alpha_bar`: `-sqrt(1 - alpha_bar)` times the score.
    fn noise(&self, x: &[f64; D], alpha_bar: f64) -> [f64; D] {
        let (alpha, variance) = (alpha_bar.sqrt(), alpha_bar * STD * STD + 1.0 - alpha_bar);
        // Logarithms of the modes' shares of `x`, up to a constant.
        let mut logs = [f64::NEG_INFINITY; MODES];
        for (log, (mode, weight)) in logs.iter_mut().zip(&self.modes) {
            let square: f64 = mode.iter().zip(x).map(|(m, x)| (x - alpha * m).powi(2)).sum();
            *log = weight - square / (2.0 * variance);
        }
        let greatest = logs.into_iter().fold(f64::NEG_INFINITY, f64::max);
        let (mut sum, mut mean) = (0.0, [0.0; D]);
        for (log, (mode, _)) in logs.iter().zip(&self.modes) {
            let share = (log - greatest).exp();
            sum += share;
            mean.iter_mut().zip(mode).for_each(|(mean, m)| *mean += share * m);
        }
        std::array::from_fn(|d| (1.0 - alpha_bar).sqrt() * (x[d] - alpha * mean[d] / sum) / variance)
    }
}

/// A way of sampling with a strong and a weak mixture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    Strong,
    Weak,
    W2sd(Reflection),
    /// Denoise weakly, invert strongly, then the strong step.
    S2wd,
    /// Both legs strong.
    Itself(Reflection),
    /// `eps_S + (eps_S - eps_W)` in plain steps.
    AutoGuidance,
}

/// What a leg answers: mixtures with their factors.
type Answer<'a, const D: usize> = Vec<(f64, &'a Mixture<D>)>;

impl Way {
    fn reflection(self) -> Option<Reflection> {
        match self {
            Way::W2sd(reflection) | Way::Itself(reflection) => Some(reflection),
            Way::S2wd => Some(Reflection::default()),
            _ => None,
        }
    }

    /// What answers in the ordinary step, the strong leg and the weak one.
    fn legs<'a, const D: usize>(self, strong: &'a Mixture<D>, weak: &'a Mixture<D>) -> [Answer<'a, D>; 3] {
        let alone = |mixture| vec![(1.0, mixture)];
        match self {
            Way::Strong | Way::W2sd(_) => [alone(strong), alone(strong), alone(weak)],
            Way::Weak => [alone(weak), alone(weak), alone(weak)],
            Way::S2wd => [alone(strong), alone(weak), alone(strong)],
            Way::Itself(_) => [alone(strong), alone(strong), alone(strong)],
            Way::AutoGuidance => [vec![(2.0, strong), (-1.0, weak)], alone(strong), alone(weak)],
        }
    }

    /// Samples by DDIM on the usual VP schedule (linear betas from 1e-4 to 0.02, 1000 timesteps, leading spacing), down to the
    /// noise of timestep 0.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for a number of steps, or of reflections, that the sampler does not take.
    pub fn sample<const D: usize>(
        self,
        [strong, weak]: [&Mixture<D>; 2],
        steps: usize,
        n: usize,
        seed: u64,
    ) -> Result<Vec<[f64; D]>> {
        let kind = SamplerKind::Ddim;
        let config = SamplerConfig { set_alpha_to_one: false, ..SamplerConfig::ddpm_linear(kind)? };
        let options = Options { reflection: self.reflection(), ..Options::default() };
        let trajectory = trajectory(kind, &config, steps, &options)?;
        let alpha_bar: &[f64] = if let Space::Vp(vp) = &config.space { vp.alpha_bar() } else { &[] };
        let legs = self.legs(strong, weak);
        let tasks: Vec<Vec<f64>> = normals(seed, n * D).chunks(TASK * D).map(<[f64]>::to_vec).collect();
        let ends = tasks.into_par_iter().map(|latents| {
            let mut answer = |leg: usize, x: &[f64], time: f64| {
                let alpha_bar = alpha_bar[time as usize];
                let mut eps = vec![0.0; x.len()];
                for (x, eps) in x.as_chunks::<D>().0.iter().zip(eps.as_chunks_mut::<D>().0) {
                    for (factor, mixture) in &legs[leg] {
                        let noise = mixture.noise(x, alpha_bar);
                        eps.iter_mut().zip(noise).for_each(|(eps, noise)| *eps += factor * noise);
                    }
                }
                eps
            };
            trajectory.simulate(&latents, &mut answer, &mut |_, len| vec![0.0; len])
        });
        let ends = ends.collect::<Result<Vec<_>>>()?;
        Ok(ends.iter().flat_map(|end| end.as_chunks::<D>().0).copied().collect())
    }
}

/// Ways with what they are called, for one strong and one weak mixture.
pub fn ways() -> [(&'static str, Way); 10] {
    let old = Reflection::default();
    let new = Reflection { query: QueryTime::New, ..old };
    let released = Reflection { levels: ReflectLevels::ReleasedCode, ..old };
    [
        ("strong", Way::Strong),
        ("weak", Way::Weak),
        ("W2SD, old time", Way::W2sd(old)),
        ("W2SD, new time", Way::W2sd(new)),
        ("W2SD, levels of the released code", Way::W2sd(released)),
        ("AutoGuidance, w = 1", Way::AutoGuidance),
        ("S2WD", Way::S2wd),
        ("strong for both, old time", Way::Itself(old)),
        ("strong for both, new time", Way::Itself(new)),
        ("strong for both, levels of the released code", Way::Itself(released)),
    ]
}

/// The share of samples that fulfil something, and the mean of their first coordinate; NaN of none.
pub fn share_and_mean<const D: usize>(samples: &[[f64; D]], which: impl Fn(&[f64; D]) -> bool) -> (f64, f64) {
    let chosen: Vec<f64> = samples.iter().filter(|x| which(x)).map(|x| x[0]).collect();
    let count = chosen.len() as f64;
    (count / samples.len() as f64, chosen.iter().sum::<f64>() / count)
}
