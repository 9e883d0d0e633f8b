//! What a training run depends on besides its network and its data.

use crate::diffusion::Objective;
use crate::nn::{AdaptableLayer, Adapter, LowRank};
use crate::ops::{OptimizerKind, power_ema_decay, power_ema_gamma};
use crate::passes::autodiff::Recompute;
use crate::tensor::DType;
use crate::{Error, Result};
use std::str::FromStr;

/// Everything a run depends on besides the network and the data. Names in errors are those of the settings.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainConfig {
    /// Images a step.
    pub batch: usize,
    /// Parts of a step's images that are run one after the other to need less memory; divides `batch`.
    pub accumulate: usize,
    /// All steps of the run.
    pub steps: usize,
    pub optimizer: OptimizerKind,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// How the rate falls after the warm-up.
    pub lr_schedule: LrSchedule,
    /// Steps over which the rate rises from 0.
    pub warmup: usize,
    /// Decays of the optimiser's moments.
    pub betas: [f64; 2],
    /// Keeps its division finite.
    pub eps: f64,
    pub weight_decay: f64,
    /// Clip the gradient to this norm; 0: do not.
    pub max_grad_norm: f64,
    /// Averages of the weights, 1 to 4; the first is what is exported.
    pub emas: Vec<Ema>,
    /// Probability of training a sample without its label.
    pub label_dropout: f64,
    /// Probability of mirroring an image left to right.
    pub flip: f64,
    /// Every class equally often, instead of every image.
    pub class_balanced: bool,
    /// What the network is to learn [default: EDM's objective for EDM networks, noise prediction for all others].
    pub objective: Option<Objective>,
    /// Train a low-rank adapter and leave the network's own weights as they are.
    pub lora: Option<LoraConfig>,
    /// What is made again in the backward pass instead of kept for it.
    pub recompute: Recompute,
    /// Type in memory of activations, their gradients and a step's copies of the weights: f32 or bf16. Weights, their gradients and what
    /// the optimiser keeps are f32.
    pub dtype: DType,
    /// Look for NaN and infinity behind every op. Slow.
    pub check_numerics: bool,
    pub seed: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            batch: 64,
            accumulate: 1,
            steps: 1000,
            optimizer: OptimizerKind::AdamW,
            learning_rate: 1e-3,
            lr_schedule: LrSchedule::Cosine,
            warmup: 100,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            emas: vec![Ema::HalfLife(20_000.0)],
            label_dropout: 0.1,
            flip: 0.0,
            class_balanced: false,
            objective: None,
            lora: None,
            recompute: Recompute::Off,
            dtype: DType::F32,
            check_numerics: false,
            seed: 0,
        }
    }
}

/// Which layers a low-rank adapter is trained for, and how wide it is.   (Hu et al. 2022)
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// At least 1.
    pub rank: usize,
    /// The adapter adds alpha/rank · up · down. Greater than 0.
    pub alpha: f64,
    /// `attention`, `mlp`, `conv`, `all`, or the end of layers' names (`to_q`, `attn2.to_k`); a layer that any of them names is
    /// adapted.
    pub targets: Vec<String>,
}

impl LoraConfig {
    /// The adapter for the layers among `layers` that the targets name.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a target that names no layer of the network.
    pub fn adapter(&self, layers: &[AdaptableLayer]) -> Result<Adapter> {
        let low = LowRank { rank: self.rank, alpha: self.alpha as f32 };
        let mut adapter = Adapter { name: "lora".into(), layers: Default::default() };
        for target in &self.targets {
            let named: Vec<_> = layers.iter().filter(|l| is_target(target, l, layers)).collect();
            if named.is_empty() {
                return Err(Error::invalid("lora_targets", format!("`{target}` names no layer of this network")));
            }
            adapter.layers.extend(named.into_iter().map(|l| (l.name.clone(), low)));
        }
        Ok(adapter)
    }

    fn check(&self) -> Result<()> {
        if !(1..=4096).contains(&self.rank) {
            return Err(Error::invalid("lora_rank", format!("{} is not from 1 to 4096", self.rank)));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return Err(Error::invalid("lora_alpha", format!("{} is not a number above 0", self.alpha)));
        }
        match self.targets.is_empty() {
            true => Err(Error::invalid("lora_targets", "names no layers")),
            false => Ok(()),
        }
    }
}

/// True if `target` names the layer.
fn is_target(target: &str, layer: &AdaptableLayer, layers: &[AdaptableLayer]) -> bool {
    let name = layer.name.as_str();
    let ends = |leaf: &str| name == leaf || name.strip_suffix(leaf).is_some_and(|rest| rest.ends_with('.'));
    match target {
        "all" => true,
        "conv" => matches!(layer.shape[..], [_, _, rows, cols] if rows * cols > 1),
        "mlp" => ends("ff.net.0.proj") || ends("ff.net.2"),
        "attention" => {
            // EDM's attention has `qkv` and, beside it, `proj`.
            let beside = |leaf: &str| {
                name.strip_suffix("proj").is_some_and(|rest| layers.iter().any(|l| l.name == format!("{rest}{leaf}")))
            };
            ["to_q", "to_k", "to_v", "to_out.0", "qkv"].into_iter().any(ends) || beside("qkv")
        }
        other => ends(other),
    }
}

/// How the learning rate goes on after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LrSchedule {
    /// As it is.
    Constant,
    /// To zero at the end of the run along a cosine.
    Cosine,
    /// With `sqrt(warmup / step)`.
    InverseSqrt,
}

impl FromStr for LrSchedule {
    type Err = Error;

    fn from_str(name: &str) -> Result<LrSchedule> {
        match name {
            "constant" => Ok(LrSchedule::Constant),
            "cosine" => Ok(LrSchedule::Cosine),
            "inverse-sqrt" => Ok(LrSchedule::InverseSqrt),
            _ => Err(Error::invalid("lr_schedule", format!("`{name}` is none of constant, cosine, inverse-sqrt"))),
        }
    }
}

/// A moving average of the weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ema {
    /// A weight's share has halved after so many images; early in the run after a twentieth of those seen (the ramp-up of
    /// EDM's training, Karras et al. 2022, appendix F.6).
    HalfLife(f64),
    /// The power-function average of Karras et al. 2024 (arXiv 2312.02696, section 3.1) with this relative standard
    /// deviation, at most 0.288.
    Power(f64),
}

impl Ema {
    /// What the old average keeps at `step`, counted from 1.
    pub fn decay(self, step: usize, batch: usize) -> Result<f64> {
        match self {
            Ema::HalfLife(images) => {
                let seen = (step * batch) as f64;
                Ok(0.5f64.powf(batch as f64 / images.min(seen * 0.05).max(1e-9)))
            }
            Ema::Power(std) => Ok(power_ema_decay(step as u64, power_ema_gamma(std)?)),
        }
    }
}

impl TrainConfig {
    /// The learning rate of step `step`, from 0.
    pub fn rate(&self, step: usize) -> f64 {
        let done = (step + 1) as f64;
        let warm = if self.warmup == 0 { 1.0 } else { (done / self.warmup as f64).min(1.0) };
        let shape = match self.lr_schedule {
            LrSchedule::Constant => 1.0,
            LrSchedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / self.steps as f64).cos()),
            LrSchedule::InverseSqrt => (self.warmup.max(1) as f64 / done).sqrt().min(1.0),
        };
        self.learning_rate * warm * shape
    }

    /// # Errors
    /// [`Error::Invalid`] naming the setting.
    pub fn check(&self) -> Result<()> {
        let positive = [("batch", self.batch), ("steps", self.steps), ("accumulate", self.accumulate)];
        if let Some((what, _)) = positive.iter().find(|(_, n)| *n == 0) {
            return Err(Error::invalid(*what, "must be at least 1"));
        }
        if !self.batch.is_multiple_of(self.accumulate) {
            let reason = format!("{} parts do not divide a batch of {}", self.accumulate, self.batch);
            return Err(Error::invalid("accumulate", reason));
        }
        let below_one = 1.0 - 1e-9;
        let finite = [
            ("lr", self.learning_rate, f64::MIN_POSITIVE, 10.0),
            ("beta1", self.betas[0], 0.0, below_one),
            ("beta2", self.betas[1], 0.0, below_one),
            ("adam_eps", self.eps, f64::MIN_POSITIVE, 1.0),
            ("weight_decay", self.weight_decay, 0.0, 10.0),
            ("max_grad_norm", self.max_grad_norm, 0.0, f64::MAX),
            ("label_dropout", self.label_dropout, 0.0, 1.0),
            ("flip", self.flip, 0.0, 1.0),
        ];
        if let Some((what, v, lo, hi)) = finite.iter().find(|(_, v, lo, hi)| !(lo..=hi).contains(&v)) {
            return Err(Error::invalid(*what, format!("{v} is not from {lo} to {hi}")));
        }
        if !matches!(self.dtype, DType::F32 | DType::Bf16) {
            // Most of what is below 6e-8 is 0 there, and the loss is not scaled.
            return Err(Error::invalid("dtype", format!("small gradients vanish in {}: take bf16 or f32", self.dtype)));
        }
        self.lora.iter().try_for_each(LoraConfig::check)?;
        if !(1..=4).contains(&self.emas.len()) {
            return Err(Error::invalid("ema_half_life", "one to four averages are kept, with those of ema_std"));
        }
        self.emas.iter().try_for_each(|ema| match ema {
            Ema::HalfLife(images) if images.is_finite() && *images >= 0.0 => Ok(()),
            Ema::HalfLife(images) => {
                Err(Error::invalid("ema_half_life", format!("{images} is not a number from 0 up")))
            }
            Ema::Power(std) => power_ema_gamma(*std).map(|_| ()).map_err(|e| match e {
                Error::Invalid { reason, .. } => Error::invalid("ema_std", reason),
                e => e,
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        let config = |lr_schedule| TrainConfig {
            learning_rate: 1.0,
            warmup: 10,
            steps: 100,
            lr_schedule,
            ..TrainConfig::default()
        };
        for schedule in [LrSchedule::Constant, LrSchedule::Cosine, LrSchedule::InverseSqrt] {
            let rise = config(schedule).rate(4);
            assert!((0.49..=0.5).contains(&rise), "{schedule:?}: {rise}");
        }
        assert_eq!(config(LrSchedule::Constant).rate(99), 1.0);
        assert!((config(LrSchedule::Cosine).rate(50) - 0.5).abs() < 1e-12);
        assert!(config(LrSchedule::Cosine).rate(99) < 3e-4);
        assert!((config(LrSchedule::InverseSqrt).rate(39) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn averages() {
        // Half of what was before is left after the half-life.
        let decay = Ema::HalfLife(1000.0).decay(100_000, 100).unwrap();
        assert!((decay.powi(10) - 0.5).abs() < 1e-12);
        // At first a twentieth of the images seen.
        let early = Ema::HalfLife(1e9).decay(20, 100).unwrap();
        assert!((early - 0.5).abs() < 1e-12);
        assert_eq!(Ema::Power(0.1).decay(1, 8).unwrap(), 0.0);
        assert!(Ema::Power(0.5).decay(1, 8).is_err());
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        type Change = fn(&mut TrainConfig);
        let cases: [(&str, Change); 8] = [
            ("batch", |c| c.batch = 0),
            ("accumulate", |c| c.accumulate = 7),
            ("lr", |c| c.learning_rate = f64::NAN),
            ("beta2", |c| c.betas[1] = 1.0),
            ("flip", |c| c.flip = 1.5),
            ("ema_half_life", |c| c.emas.clear()),
            ("ema_half_life", |c| c.emas = vec![Ema::HalfLife(f64::INFINITY)]),
            ("ema_std", |c| c.emas = vec![Ema::Power(0.9)]),
        ];
        for (name, change) in cases {
            let mut config = TrainConfig::default();
            change(&mut config);
            let e = config.check().unwrap_err();
            assert!(matches!(&e, Error::Invalid { option, .. } if option == name), "{name}: {e}");
        }
    }
}
