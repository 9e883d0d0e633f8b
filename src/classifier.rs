//! The classifier whose features measure distances where no larger network is at hand: opening one, and training one.

use crate::data::{Dataset, permute};
use crate::device::Device;
use crate::features::{Backbone, Filter, Input};
use crate::methods::classify::{ClassifierTraining, classify};
use crate::methods::forward::Backward;
use crate::methods::train::TrainLowering;
use crate::model::{ModelTexts, read_text, save};
use crate::nn::{Built, ClassifierConfig, Parameter};
use crate::ops::OptimizerKind;
use crate::schedule::{Options, Session};
use crate::trainer::draw;
use crate::weights::{Dtype, Weights};
use crate::{Error, Result};
use std::path::Path;

/// The classifier that ships with the library: MNIST's digits, see `assets/README.md`.
pub const EMBEDDED: &str = "mnist-classifier";

/// A classifier and where its weights are.
#[derive(Debug)]
pub struct Classifier {
    pub config: ClassifierConfig,
    pub weights: Weights,
}

impl Classifier {
    /// Opens a folder with `config.json` and safetensors, or the embedded one by its name.
    pub fn open(path: &Path) -> Result<Classifier> {
        if path == Path::new(EMBEDDED) && !path.exists() {
            return Classifier::embedded();
        }
        let config_path = path.join("config.json");
        let config = ClassifierConfig::parse(&read_text(&config_path)?, &config_path)?;
        Ok(Classifier { config, weights: Weights::open(path)? })
    }

    /// True for a folder whose `config.json` is that of a classifier.
    pub fn is_one(path: &Path) -> bool {
        let config = path.join("config.json");
        read_text(&config).is_ok_and(|text| ClassifierConfig::parse(&text, &config).is_ok())
    }

    /// The one that ships with the library.
    pub fn embedded() -> Result<Classifier> {
        let config = include_str!("../assets/mnist-classifier/config.json");
        let weights = include_bytes!("../assets/mnist-classifier/diffusion_pytorch_model.safetensors");
        let config = ClassifierConfig::parse(config, Path::new(EMBEDDED))?;
        Ok(Classifier { config, weights: Weights::from_bytes(weights)? })
    }
}

impl Backbone for Classifier {
    fn input(&self) -> Input {
        let ClassifierConfig { size: [height, width], in_channels, .. } = self.config;
        Input { height, width, channels: in_channels, filter: Filter::Bilinear, mean: [0.5; 3], std: [0.5; 3] }
    }

    fn build(&self, batch: usize) -> Result<Built> {
        self.config.build(batch)
    }

    fn read(&self, p: &Parameter) -> Result<Vec<f32>> {
        let wrong = |reason: String| Error::tensor(self.weights.path(), &p.name, reason);
        let info = self.weights.info(&p.name).ok_or_else(|| wrong("is missing".into()))?;
        if !p.accepts(&info.shape) {
            return Err(wrong(format!("has shape {:?}, the network needs {:?}", info.shape, p.shape)));
        }
        self.weights.read_f32(&p.name)
    }
}

/// How a classifier is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassifierTrainConfig {
    /// Images a step.
    pub batch: usize,
    pub steps: usize,
    /// Peak learning rate; it rises over the first twentieth of the steps and falls to zero along a cosine.
    pub learning_rate: f64,
    pub weight_decay: f64,
    /// The last images of the data, which are not trained on.
    pub holdout: usize,
    /// Show every other image mirrored.
    pub flip: bool,
    pub seed: u64,
}

impl Default for ClassifierTrainConfig {
    fn default() -> Self {
        ClassifierTrainConfig {
            batch: 64,
            steps: 1000,
            learning_rate: 3e-3,
            weight_decay: 0.01,
            holdout: 0,
            flip: false,
            seed: 0,
        }
    }
}

impl ClassifierTrainConfig {
    fn check(&self, data: &Dataset) -> Result<()> {
        if self.batch == 0 || self.steps == 0 {
            return Err(Error::invalid(if self.batch == 0 { "--batch" } else { "--steps" }, "must be at least 1"));
        }
        for (what, v) in [("--lr", self.learning_rate), ("--weight-decay", self.weight_decay)] {
            if !(0.0..=10.0).contains(&v) {
                return Err(Error::invalid(what, format!("{v} is not from 0 to 10")));
            }
        }
        let left = data.n.saturating_sub(self.holdout);
        if left < self.batch {
            let reason = format!("{} exceeds the {left} images that are left to train on", self.batch);
            return Err(Error::invalid("--batch", reason));
        }
        Ok(())
    }

    fn rate(&self, step: usize) -> f64 {
        let through = step as f64 / self.steps as f64;
        let warm = ((step + 1) as f64 / (self.steps as f64 / 20.0)).min(1.0);
        self.learning_rate * warm * 0.5 * (1.0 + (std::f64::consts::PI * through).cos())
    }
}

/// A training run of a classifier.
#[derive(Debug)]
pub struct ClassifierTrainer<'a> {
    config: ClassifierTrainConfig,
    network: ClassifierConfig,
    built: Built,
    data: &'a Dataset,
    labels: &'a [u32],
    training: ClassifierTraining,
    session: Session,
    step: usize,
}

impl<'a> ClassifierTrainer<'a> {
    /// A classifier for the images and classes of this data set, its weights drawn from the seed. The data must have labels.
    pub fn new(config: ClassifierTrainConfig, data: &'a Dataset, device: Device) -> Result<Self> {
        config.check(data)?;
        let Some(labels) = &data.labels else {
            return Err(Error::invalid("--data", "holds no labels, and a classifier learns from nothing else"));
        };
        if data.class_count < 2 {
            return Err(Error::invalid("--data", "has a single class; there is nothing to tell apart"));
        }
        let network = ClassifierConfig::new([data.height, data.width], data.channels, data.class_count);
        let built = network.build(config.batch)?;
        let how = TrainLowering {
            target: device.target(),
            optimizer: OptimizerKind::AdamW,
            accumulate: 1,
            emas: 0,
            bucket: None,
            backward: Backward::default(),
            options: Options::default(),
        };
        let training = classify(&built, how)?;
        let mut session = Session::new(device, training.schedule.clone())?;
        for (number, (p, at)) in training.offsets.iter().enumerate() {
            let numbers = draw(p, config.seed, number as u32);
            session.fill_part(training.params, *at, p.ty.stored(), |stored| p.to_arena(&numbers, stored))?;
        }
        Ok(ClassifierTrainer { config, network, built, data, labels, training, session, step: 0 })
    }

    /// One step on the next batch; its mean loss.
    pub fn step(&mut self) -> Result<f32> {
        let c = &self.config;
        let (n, first) = ((self.data.n - c.holdout) as u64, (self.step * c.batch) as u64);
        let samples = first..first + c.batch as u64;
        let indices: Vec<usize> = samples.map(|s| permute(s % n, s / n, c.seed, n) as usize).collect();
        let data = self.data;
        self.session.fill(self.training.images, |images| {
            data.batch_f32_into(&indices, images)?;
            let flipped = if c.flip { &mut *images } else { &mut [] };
            for image in flipped.chunks_exact_mut(data.image_len()).step_by(2) {
                mirror(image, data.width, data.channels);
            }
            Ok(())
        })??;
        let labels: Vec<i32> = indices.iter().map(|i| self.labels[*i] as i32).collect();
        self.session.write(self.training.labels, &labels)?;
        let row = [c.rate(self.step), 0.9, 0.999, 1e-8, c.weight_decay, self.step as f64 + 1.0, 1.0, 1.0];
        self.session.set_rows(row.iter().map(|v| *v as f32).collect())?;
        self.session.run(&mut |_, _| Ok(()))?;
        self.step += 1;
        let losses = self.session.read::<f32>(self.training.losses)?;
        let loss = losses.iter().sum::<f32>() / losses.len() as f32;
        if loss.is_finite() {
            Ok(loss)
        } else {
            Err(Error::NotFinite { what: "the loss".into(), value: loss, step: self.step })
        }
    }

    /// Writes the weights as a model folder.
    pub fn save(&mut self, folder: &Path, dtype: Dtype) -> Result<()> {
        let region = self.session.read::<f32>(self.training.params)?;
        let offsets = &self.training.offsets;
        let texts = ModelTexts { config: &self.network.to_json(), scheduler: None };
        save(folder, texts, &self.built, dtype, |p| {
            let at = offsets.iter().find(|(q, _)| q.name == p.name).map_or(0, |(_, at)| *at);
            Ok(p.from_arena(&region[at..at + p.ty.stored()]))
        })
    }
}

/// Left becomes right.
fn mirror(image: &mut [f32], width: usize, channels: usize) {
    for row in image.chunks_exact_mut(width * channels) {
        for x in 0..width / 2 {
            let (left, right) = row.split_at_mut((width - 1 - x) * channels);
            left[x * channels..][..channels].swap_with_slice(&mut right[..channels]);
        }
    }
}
