//! Training runs: data, network and optimiser put together.

use crate::data::{Dataset, permute};
use crate::device::Device;
use crate::diffusion::{Levels, NoiseLevel, Objective};
use crate::methods::train::{TrainLowering, Training, drops_label, noise_level, train};
use crate::model::{Model, ModelTexts, save};
use crate::nn::{Built, Config, Init, InputSpec, Network, Parameter};
use crate::ops::OptimizerKind;
use crate::passes::autodiff::Recompute;
use crate::schedule::{Options, Session};
use crate::tensor::TensorType;
use crate::weights::Dtype;
use crate::{Error, Result};
use std::path::Path;

/// Everything a run depends on besides the network and the data.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainConfig {
    /// Images a step.
    pub batch: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps over which the rate rises from 0.
    pub warmup: usize,
    /// All steps; the rate falls to zero over them along a cosine.
    pub steps: usize,
    pub weight_decay: f64,
    /// Clip the gradient to this norm; 0: do not.
    pub max_grad_norm: f64,
    /// Images after which a weight's share in the average has halved.
    pub ema_half_life: f64,
    /// Probability of training a sample without its label.
    pub label_dropout: f64,
    /// What the network is to learn [default: EDM's objective for EDM networks, noise prediction for all others].
    pub objective: Option<Objective>,
    pub recompute: bool,
    pub seed: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            batch: 64,
            learning_rate: 1e-3,
            warmup: 100,
            steps: 1000,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            ema_half_life: 20_000.0,
            label_dropout: 0.1,
            objective: None,
            recompute: false,
            seed: 0,
        }
    }
}

impl TrainConfig {
    fn check(&self) -> Result<()> {
        let positive = [("--batch", self.batch), ("--steps", self.steps)];
        if let Some((what, _)) = positive.iter().find(|(_, n)| *n == 0) {
            return Err(Error::invalid(*what, "must be at least 1"));
        }
        let finite = [
            ("--lr", self.learning_rate, f64::MIN_POSITIVE, 10.0),
            ("--weight-decay", self.weight_decay, 0.0, 10.0),
            ("--max-grad-norm", self.max_grad_norm, 0.0, f64::MAX),
            ("--ema-half-life", self.ema_half_life, 0.0, f64::MAX),
            ("--label-dropout", self.label_dropout, 0.0, 1.0),
        ];
        match finite.iter().find(|(_, v, lo, hi)| !(lo..=hi).contains(&v)) {
            Some((what, v, lo, hi)) => Err(Error::invalid(*what, format!("{v} is not from {lo} to {hi}"))),
            None => Ok(()),
        }
    }

    /// The learning rate of step `step`, from 0.
    fn rate(&self, step: usize) -> f64 {
        let warm = if self.warmup == 0 { 1.0 } else { ((step + 1) as f64 / self.warmup as f64).min(1.0) };
        let through = step as f64 / self.steps as f64;
        self.learning_rate * warm * 0.5 * (1.0 + (std::f64::consts::PI * through).cos())
    }
}

/// What a step reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Steps done.
    pub step: usize,
    /// Mean weighted loss of the batch.
    pub loss: f32,
    pub grad_norm: f32,
    pub learning_rate: f64,
}

/// A training run on a device.
#[derive(Debug)]
pub struct Trainer<'a> {
    config: TrainConfig,
    data: &'a Dataset,
    built: Built,
    network_config: String,
    objective: Objective,
    none: Option<i32>,
    training: Training,
    session: Session,
    step: usize,
}

impl<'a> Trainer<'a> {
    /// Builds the schedule for the network of `config_json` and initialises its weights from the seed.
    pub fn new(config: TrainConfig, config_json: &str, path: &Path, data: &'a Dataset, device: Device) -> Result<Self> {
        config.check()?;
        let network = Network::from_config(config_json, path)?;
        check_data(&network, data, &config)?;
        let spec = InputSpec::new(config.batch, data.height, data.width).training();
        let built = network.build(&spec)?;
        let objective = objective(&network, &config)?;
        let images = TensorType::f32([config.batch, data.height, data.width, data.channels]);
        let how = TrainLowering {
            target: device.target(),
            optimizer: OptimizerKind::AdamW,
            emas: 1,
            recompute: if config.recompute { Recompute::Blocks } else { Recompute::Off },
            options: Options::default(),
        };
        let training = train(&built, &images, objective.prediction, how)?;
        let mut session = Session::new(device, training.schedule.clone())?;
        let first = |number: usize, p: &Parameter| Ok(draw(p, config.seed, number as u32));
        write_weights(&built, &training, &mut session, first)?;
        let none = network.null_class().map(|n| n as i32);
        let network_config = config_json.to_owned();
        Ok(Trainer { config, data, built, network_config, objective, none, training, session, step: 0 })
    }

    /// Starts from a model's weights instead of drawn ones; before the first step.
    pub fn start_from(&mut self, model: &Model) -> Result<()> {
        // Checks that the model's files hold this network.
        model.build(&InputSpec::new(1, self.data.height, self.data.width))?;
        write_weights(&self.built, &self.training, &mut self.session, |_, p| {
            let mut numbers = Vec::new();
            model.read(p, &mut numbers)?;
            Ok(numbers)
        })
    }

    /// The schedule of one step.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The number of trained weights.
    pub fn parameters(&self) -> usize {
        self.training.offsets.iter().map(|(p, _)| p.elements()).sum()
    }

    /// One step on the next batch.
    pub fn step(&mut self) -> Result<StepReport> {
        let learning_rate = self.write_batch()?;
        self.session.run(&mut |_, _| Ok(()))?;
        let losses = self.session.buffer::<f32>(self.training.losses)?;
        let loss = losses.iter().sum::<f32>() / losses.len() as f32;
        let grad_norm = self.session.buffer::<f32>(self.training.grad_norm)?[0];
        self.step += 1;
        if !loss.is_finite() || !grad_norm.is_finite() {
            let value = if loss.is_finite() { grad_norm } else { loss };
            let what = if loss.is_finite() { "the gradient's norm" } else { "the loss" };
            return Err(Error::NotFinite { what: what.into(), value, step: self.step });
        }
        Ok(StepReport { step: self.step, loss, grad_norm, learning_rate })
    }

    /// Images, labels, levels, seeds and the optimiser's row of the next step; the learning rate.
    fn write_batch(&mut self) -> Result<f64> {
        let c = &self.config;
        let (n, batch) = (self.data.n as u64, c.batch);
        let first = (self.step * batch) as u64;
        let samples: Vec<u64> = (first..first + batch as u64).collect();
        let indices: Vec<usize> = samples.iter().map(|s| permute(s % n, s / n, c.seed, n) as usize).collect();
        let images = self.session.buffer::<f32>(self.training.images)?;
        self.data.batch_f32_into(&indices, images)?;
        if let (Some(id), Some(labels), Some(none)) = (self.training.labels, &self.data.labels, self.none) {
            let label = |(s, i): (&u64, &usize)| {
                if drops_label(c.seed, *s, c.label_dropout) { none } else { labels[*i] as i32 }
            };
            let labels: Vec<i32> = samples.iter().zip(&indices).map(label).collect();
            self.session.write(id, &labels)?;
        }
        let levels: Vec<NoiseLevel> = samples.iter().map(|s| noise_level(&self.objective, c.seed, *s)).collect();
        let columns: [fn(&NoiseLevel) -> f64; 4] =
            [|l| l.level.time, |l| l.level.alpha, |l| l.level.sigma, |l| l.weight];
        let targets: [fn(&NoiseLevel) -> f64; 2] = [|l| l.target[0], |l| l.target[1]];
        let places = self.training.levels.into_iter().chain(self.training.target.into_iter().flatten());
        for (id, column) in places.zip(columns.into_iter().chain(targets)) {
            self.session.write(id, &levels.iter().map(|l| column(l) as f32).collect::<Vec<_>>())?;
        }
        let seeds: Vec<i32> = samples.iter().flat_map(|s| sample_seed(c.seed, *s)).collect();
        self.session.write(self.training.seeds, &seeds)?;
        let rate = c.rate(self.step);
        // The average starts as the weights are and slows down to its half-life (Karras et al. 2022, appendix F.6: ramp-up).
        let seen = (first as f64 + batch as f64).max(1.0);
        let decay = 0.5f64.powf(batch as f64 / c.ema_half_life.min(seen * 0.05).max(1e-9));
        let row = [
            rate,
            0.9,
            0.999,
            1e-8,
            c.weight_decay,
            self.step as f64 + 1.0,
            1.0,
            c.max_grad_norm,
            decay,
            self.step as f64,
        ];
        self.session.set_rows(row.iter().map(|v| *v as f32).collect())?;
        Ok(rate)
    }

    /// Writes the averaged weights as a model folder, with the scheduler that goes with the objective.
    pub fn save(&mut self, folder: &Path, dtype: Dtype) -> Result<()> {
        let region = self.session.buffer::<f32>(self.training.emas[0])?.to_vec();
        let offsets = &self.training.offsets;
        let session = &mut self.session;
        let scheduler = self.objective.scheduler_config().map(|s| format!("{s:#}\n"));
        let texts = ModelTexts { config: &self.network_config, scheduler: scheduler.as_deref() };
        save(folder, texts, &self.built, dtype, |p| match offsets.iter().find(|(q, _)| q.name == p.name) {
            Some((_, at)) => Ok(p.from_arena(&region[*at..at + p.ty.stored()])),
            None => fixed_numbers(session, p),
        })
    }
}

/// The numbers of a parameter that is not trained.
fn fixed_numbers(session: &mut Session, p: &Parameter) -> Result<Vec<f32>> {
    let missing = || Error::Verify { pass: "training", reason: format!("there is no buffer `{}`", p.name) };
    let id = session.schedule().buffers.find(&p.name).ok_or_else(missing)?;
    Ok(p.from_arena(session.buffer(id)?))
}

/// The Philox key of a sample's noise: other seeds lead far away.
fn sample_seed(seed: u64, sample: u64) -> [i32; 2] {
    // The finaliser of SplitMix64 (Steele, Lea & Flood 2014): a bijection that mixes all bits.
    let mix = |z: u64| (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mix = |z: u64| (mix(z) ^ (mix(z) >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    let key = (mix(seed) ^ (mix(seed) >> 31)).wrapping_add(sample);
    [key as i32, (key >> 32) as i32]
}

/// The run's objective, checked against the network.
fn objective(network: &Network, config: &TrainConfig) -> Result<Objective> {
    let edm = match network.config() {
        Config::Edm(edm) => Some(edm.sigma_data as f64),
        Config::Unet2dCondition(_) => {
            let reason = "data sets hold images and classes only";
            return Err(Error::unsupported("training a text-conditioned network", reason));
        }
        _ => None,
    };
    match (&config.objective, edm) {
        (None, Some(sigma_data)) => Objective::edm(-1.2, 1.2, sigma_data),
        (None, None) => Objective::ddpm(),
        (Some(objective), edm) if matches!(objective.levels, Levels::Edm { .. }) == edm.is_some() => {
            Ok(objective.clone())
        }
        (Some(_), Some(_)) => {
            Err(Error::invalid("prediction", "this network is EDM-preconditioned; it takes EDM's levels"))
        }
        (Some(_), None) => {
            Err(Error::invalid("prediction", "EDM's levels are for EDM-preconditioned networks; this one is not"))
        }
    }
}

fn check_data(network: &Network, data: &Dataset, config: &TrainConfig) -> Result<()> {
    let channels = network.channels()[0];
    if channels != data.channels {
        let reason = format!("images have {} channels, the network takes {channels}", data.channels);
        return Err(Error::invalid("--data", reason));
    }
    if let Some(size) = network.sample_size().filter(|s| *s != [data.height, data.width]) {
        let reason = format!("images are {}×{}, the network takes {}×{}", data.height, data.width, size[0], size[1]);
        return Err(Error::invalid("--data", reason));
    }
    if data.n < config.batch {
        return Err(Error::invalid("--batch", format!("{} exceeds the {} images there are", config.batch, data.n)));
    }
    let (Some(mut classes), Some(none)) = (network.classes(), network.null_class()) else { return Ok(()) };
    if config.label_dropout > 0.0 {
        // A label of its own must be left to mean none.
        classes = classes.min(none);
    }
    match &data.labels {
        None => Err(Error::invalid("--data", "holds no labels, and the network is class-conditional")),
        Some(labels) => match labels.iter().find(|l| **l as usize >= classes) {
            Some(bad) => {
                Err(Error::invalid("--data", format!("has label {bad}, the network has room for {classes} classes")))
            }
            None => Ok(()),
        },
    }
}

/// Writes all weights; the average starts as they are.
fn write_weights(
    built: &Built,
    training: &Training,
    session: &mut Session,
    mut numbers: impl FnMut(usize, &Parameter) -> Result<Vec<f32>>,
) -> Result<()> {
    for (number, p) in built.parameters.iter().enumerate() {
        let numbers = numbers(number, p)?;
        match training.offsets.iter().find(|(q, _)| q.name == p.name) {
            Some((_, at)) => {
                for region in std::iter::once(training.params).chain(training.emas.iter().copied()) {
                    p.to_arena(&numbers, &mut session.buffer::<f32>(region)?[*at..at + p.ty.stored()]);
                }
            }
            None => {
                let missing = || Error::Verify { pass: "training", reason: format!("there is no buffer `{}`", p.name) };
                let id = session.schedule().buffers.find(&p.name).ok_or_else(missing)?;
                p.to_arena(&numbers, session.buffer(id)?);
            }
        }
    }
    Ok(())
}

/// A parameter's first numbers, in the file's order.
pub(crate) fn draw(p: &Parameter, seed: u64, number: u32) -> Vec<f32> {
    let uniform = |i: u32| crate::methods::train::init_uniforms(seed, number, i);
    let of = |i: usize| match p.init {
        Init::Zeros => 0.0,
        Init::Ones => 1.0,
        Init::Uniform(bound) => (uniform(i as u32)[0] * 2.0 - 1.0) as f32 * bound,
        Init::Normal(std) => {
            let [u, v] = uniform(i as u32);
            ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32 * std
        }
    };
    (0..p.elements()).map(of).collect()
}
