//! Training: data, network and optimiser put together, one step at a time. [`crate::run`] makes a run folder of it.

mod config;
mod setup;
mod state;

pub use config::{Ema, LoraConfig, LrSchedule, TrainConfig};
pub(crate) use setup::draw;

use crate::collective::{Alone, Collective, Piece, agree};
use crate::data::{Dataset, Loader, LoaderConfig, Order};
use crate::device::Device;
use crate::diffusion::{NoiseLevel, Objective};
use crate::files::write_atomic;
use crate::methods::forward::Backward;
use crate::methods::train::{SUMMED, TrainLowering, Training, drops_label, noise_level, train};
use crate::model::{Model, ModelTexts, save};
use crate::nn::{Adapter, Built, InputSpec, Network, Parameter, adapter_parameter};
use crate::schedule::{BufferId, Event, Options, Session};
use crate::tensor::TensorType;
use crate::weights::{Dtype, LoraSpec, write_lora};
use crate::{Error, Result};
use setup::{build, check_data, fixed_buffer, objective, share, write_weights};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// What a step reports.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Steps done.
    pub step: usize,
    /// Mean weighted loss of the batch.
    pub loss: f32,
    /// Of the mean gradient, before clipping.
    pub grad_norm: f32,
    pub learning_rate: f64,
    /// Of every sample: λ = ln(alpha/sigma) of its noise level, and its weighted loss.
    pub samples: Vec<(f64, f32)>,
    /// Seconds that the step waited for data.
    pub data_wait: f64,
    /// Seconds that the step waited, after the backward pass, for the sum of all processes' gradients.
    pub sum_wait: f64,
}

/// Training on a device. Every step is a pure function of the configuration, the data and the step's number.
///
/// Several processes may train together, each with a trainer of its own: a step's samples are cut into one share a process, in
/// the order of their numbers. All make the same calls, all get the same reports, weights and errors. What a sample is does not
/// depend on who trains it, so that their number changes nothing but the order of sums.
#[derive(Debug)]
pub struct Trainer {
    ranks: Box<dyn Collective>,
    config: TrainConfig,
    data: Arc<Dataset>,
    built: Built,
    network_config: String,
    /// If an adapter is trained.
    lora: Option<Lora>,
    objective: Objective,
    none: Option<i32>,
    training: Training,
    session: Session,
    /// From the first step on; makes the next batches meanwhile.
    loader: Option<Loader>,
    step: usize,
}

/// An adapter in training.
#[derive(Debug)]
struct Lora {
    adapter: Adapter,
    /// The path of the model that it adapts, and [`Weights::checksum`](crate::weights::Weights::checksum) of its weights.
    base: String,
    checksum: u32,
}

impl Trainer {
    /// Builds the schedule for the network of `config_json` and initialises its weights from the seed.
    pub fn new(
        config: TrainConfig,
        config_json: &str,
        path: &Path,
        data: Arc<Dataset>,
        device: Device,
    ) -> Result<Self> {
        Trainer::among(Box::new(Alone), config, config_json, path, data, device)
    }

    /// The same for one of several processes.
    ///
    /// # Errors
    /// Besides those of [`Trainer::new`], of whichever process, [`Error::Invalid`] if their number times `accumulate` does not
    /// divide the batch.
    pub fn among(
        mut ranks: Box<dyn Collective>,
        config: TrainConfig,
        config_json: &str,
        path: &Path,
        data: Arc<Dataset>,
        device: Device,
    ) -> Result<Self> {
        let made = Trainer::make(&*ranks, config, config_json, path, data, device);
        let made = agree(&mut *ranks, made)?;
        Ok(Trainer { ranks, ..made })
    }

    /// A trainer for one of `ranks` that does not know the others yet.
    fn make(
        ranks: &dyn Collective,
        config: TrainConfig,
        config_json: &str,
        path: &Path,
        data: Arc<Dataset>,
        device: Device,
    ) -> Result<Self> {
        config.check()?;
        let share = share(&config, ranks.size())?;
        let network = Network::from_config(config_json, path)?;
        check_data(&network, &data, &config)?;
        let part = share / config.accumulate;
        let spec = InputSpec::new(part, data.height, data.width).training();
        let (built, adapter) = build(&network, &spec, config.lora.as_ref())?;
        let objective = objective(&network, &config)?;
        let images = TensorType::f32([share, data.height, data.width, data.channels]);
        let how = TrainLowering {
            target: device.target(),
            optimizer: config.optimizer,
            emas: config.emas.len(),
            accumulate: config.accumulate,
            backward: Backward { recompute: config.recompute, dtype: config.dtype },
            bucket: (ranks.size() > 1).then(|| ranks.bucket()),
            options: Options::default(),
        };
        let training = train(&built, &images, objective.prediction, how)?;
        let mut session = Session::new(device, training.schedule.clone())?;
        let first = |number: usize, p: &Parameter| Ok(draw(p, config.seed, number as u32));
        write_weights(&built, &training, &mut session, first)?;
        let none = network.null_class().map(|n| n as i32);
        let network_config = config_json.to_owned();
        let lora = adapter.map(|adapter| Lora { adapter, base: String::new(), checksum: 0 });
        Ok(Trainer {
            ranks: Box::new(Alone),
            config,
            data,
            built,
            network_config,
            lora,
            objective,
            none,
            training,
            session,
            loader: None,
            step: 0,
        })
    }

    /// Starts from a model's weights instead of drawn ones; before the first step. An adapter begins as if it were not there.
    pub fn start_from(&mut self, model: &Model) -> Result<()> {
        if model.adapters().len() > 0 {
            let reason = format!("{} is an adapter; a model with all its weights is needed", model.path().display());
            return Err(Error::invalid("from", reason));
        }
        // Checks that the model's files hold this network.
        model.build(&InputSpec::new(1, self.data.height, self.data.width))?;
        if let Some(lora) = &mut self.lora {
            (lora.base, lora.checksum) = (absolute(model)?, model.weights().checksum()?);
        }
        let seed = self.config.seed;
        write_weights(&self.built, &self.training, &mut self.session, |number, p| {
            if adapter_parameter(&p.name).is_some() {
                return Ok(draw(p, seed, number as u32));
            }
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

    /// One step on the next batch. After an error the next call tries the same step again; the weights are as they were, but
    /// where only the loss overflowed and its gradient did not.
    pub fn step(&mut self) -> Result<StepReport> {
        let report = self.try_step();
        if report.is_err() {
            // It is ahead by the batch of the failed step.
            self.loader = None;
        }
        report
    }

    fn try_step(&mut self) -> Result<StepReport> {
        let written = self.write_batch();
        self.session.check_numerics(self.config.check_numerics);
        let pieces = self.pieces()?;
        let mut meeting = Meeting { ranks: &mut *self.ranks, pieces, begun: 0, wait: None };
        let ran = written.and_then(|data_wait| {
            self.session.run(&mut |_, event| match event {
                Event::Mark(_) => meeting.begin(),
                Event::Host(SUMMED) => meeting.end(Ok(())),
                _ => Ok(()),
            })?;
            Ok(data_wait)
        });
        // Who failed still owes its sums to the others, who learn there that it did.
        let ran = if meeting.wait.is_none() { meeting.end(ran) } else { ran };
        let sum_wait = meeting.wait.unwrap_or(0.0);
        let data_wait = ran.map_err(|e| self.at_step(e))?;
        let losses = self.losses()?;
        let loss = losses.iter().sum::<f32>() / losses.len() as f32;
        let grad_norm = self.session.read::<f32>(self.training.grad_norm)?[0] / self.parts() as f32;
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Err(self.find_numeric_fault(loss, grad_norm));
        }
        let learning_rate = self.config.rate(self.step);
        self.step += 1;
        let first = ((self.step - 1) * self.config.batch) as u64;
        let lambda =
            |(i, loss)| (noise_level(&self.objective, self.config.seed, first + i as u64).level.lambda(), loss);
        let samples = losses.into_iter().enumerate().map(lambda).collect();
        Ok(StepReport { step: self.step, loss, grad_norm, learning_rate, samples, data_wait, sum_wait })
    }

    /// Where the gradients are that processes sum, in the order of the marks.
    fn pieces(&mut self) -> Result<Vec<Piece>> {
        let session = &mut self.session;
        let piece = |id: &BufferId| {
            let memory = session.memory(*id)?;
            // SAFETY: the buffer holds f32 in an arena that neither moves nor goes before the trainer; between a piece's
            // mark and the end of the meeting no command touches it.
            Ok(unsafe { Piece::new(memory.ptr.cast(), memory.bytes / size_of::<f32>()) })
        };
        self.training.buckets.iter().map(piece).collect()
    }

    /// The losses of all samples of the step that ran, on whichever process.
    fn losses(&mut self) -> Result<Vec<f32>> {
        let own = self.session.read::<f32>(self.training.losses)?;
        let mut all = vec![0.0; own.len() * self.ranks.size()];
        let first = own.len() * self.ranks.rank();
        all[first..first + own.len()].copy_from_slice(&own);
        self.ranks.sum(&mut all)?;
        Ok(all)
    }

    /// Parts of a step's batch, on all processes. The gradient is the sum of their mean gradients, divided by their number.
    fn parts(&self) -> usize {
        self.config.accumulate * self.ranks.size()
    }

    /// Which op made a number that is none. The optimiser has left weights and moments alone, so that the step can be run
    /// again, now with a look behind every op. Of several processes each looks at its own share and stops before the sum.
    fn find_numeric_fault(&mut self, loss: f32, grad_norm: f32) -> Error {
        self.session.check_numerics(true);
        let found = self.session.run(&mut |_, event| match event {
            Event::Host(SUMMED) => Err(Error::Cancelled),
            _ => Ok(()),
        });
        let found = if matches!(found, Err(Error::Cancelled)) { Ok(()) } else { found };
        match agree(&mut *self.ranks, found) {
            Err(e) => self.at_step(e),
            Ok(()) if loss.is_finite() => {
                Error::NotFinite { what: "the gradient's norm".into(), value: grad_norm, step: self.step + 1 }
            }
            Ok(()) => Error::NotFinite { what: "the loss".into(), value: loss, step: self.step + 1 },
        }
    }

    /// The session counts no steps; the trainer does.
    fn at_step(&self, e: Error) -> Error {
        match e {
            Error::NotFinite { what, value, .. } => Error::NotFinite { what, value, step: self.step + 1 },
            e => e,
        }
    }

    /// The processes that train together.
    pub fn ranks(&self) -> &dyn Collective {
        &*self.ranks
    }

    /// The same, for what they do together besides steps.
    pub fn ranks_mut(&mut self) -> &mut dyn Collective {
        &mut *self.ranks
    }

    /// Steps done.
    pub fn steps_done(&self) -> usize {
        self.step
    }

    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// The data set.
    pub fn data(&self) -> &Dataset {
        &self.data
    }

    pub fn objective(&self) -> &Objective {
        &self.objective
    }

    /// Images, labels, levels and seeds of this process's share of the next step, and the optimiser's row; the seconds that data
    /// took.
    fn write_batch(&mut self) -> Result<f64> {
        let parts = self.parts();
        let c = &self.config;
        let loader = match &mut self.loader {
            Some(loader) => loader,
            none => none.insert(loader(self.data.clone(), c, self.step, &*self.ranks)?),
        };
        let batch = loader.next()?;
        let samples: Vec<u64> = batch.samples.clone().collect();
        self.session.write(self.training.images, &batch.images)?;
        if let (Some(id), Some(labels), Some(none)) = (self.training.labels, &batch.labels, self.none) {
            let label = |(s, label): (&u64, &u32)| {
                if drops_label(c.seed, *s, c.label_dropout) { none } else { *label as i32 }
            };
            let labels: Vec<i32> = samples.iter().zip(labels).map(label).collect();
            self.session.write(id, &labels)?;
        }
        let wait = batch.wait.as_secs_f64();
        loader.recycle(batch);
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
        let mut row = vec![
            c.rate(self.step),
            c.betas[0],
            c.betas[1],
            c.eps,
            c.weight_decay,
            self.step as f64 + 1.0,
            1.0 / parts as f64,
            c.max_grad_norm,
        ];
        for ema in &c.emas {
            row.push(ema.decay(self.step + 1, c.batch)?);
        }
        row.push(self.step as f64);
        self.session.set_rows(row.iter().map(|v| *v as f32).collect())?;
        Ok(wait)
    }

    /// Writes average number `ema` of the weights as a model folder, with the scheduler that goes with the objective; of an
    /// adapter, the folder that PEFT opens, which names the model that it was trained on.
    pub fn save(&mut self, folder: &Path, dtype: Dtype, ema: usize) -> Result<()> {
        let Some(id) = self.training.emas.get(ema) else {
            return Err(Error::invalid(
                "ema",
                format!("{ema} is not below their number, {}", self.training.emas.len()),
            ));
        };
        let region = self.session.read::<f32>(*id)?;
        let offsets = &self.training.offsets;
        let session = &mut self.session;
        let scheduler = self.objective.scheduler_config().map(|s| format!("{s:#}\n"));
        if let (Some(Lora { adapter, base, .. }), Some(lora)) = (&self.lora, &self.config.lora) {
            let of = |name: &str| offsets.iter().find(|(p, _)| p.name == name);
            let shape = |name: &String| of(name).map_or(vec![], |(p, _)| p.shape.clone());
            let shapes = |layer: &String| adapter.weights(layer).each_ref().map(shape);
            let layers: Vec<_> = adapter.layers.keys().map(|layer| (layer.clone(), shapes(layer))).collect();
            let spec = LoraSpec { layers: &layers, rank: lora.rank, alpha: lora.alpha as f32, base, dtype };
            if let Some(scheduler) = &scheduler {
                std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
                write_atomic(folder.join("scheduler_config.json"), scheduler.as_bytes())?;
            }
            return write_lora(folder, spec, |layer, half| {
                let name = &adapter.weights(layer)[half];
                let missing = || Error::Verify { pass: "training", reason: format!("`{name}` is not trained") };
                let (p, at) = of(name).ok_or_else(missing)?;
                Ok(p.from_arena(&region[*at..at + p.ty.stored()]))
            });
        }
        let texts = ModelTexts { config: &self.network_config, scheduler: scheduler.as_deref() };
        save(folder, texts, &self.built, dtype, |p| match offsets.iter().find(|(q, _)| q.name == p.name) {
            Some((_, at)) => Ok(p.from_arena(&region[*at..at + p.ty.stored()])),
            None => {
                let id = fixed_buffer(session, p)?;
                Ok(p.from_arena(&session.read(id)?))
            }
        })
    }
}

/// A model's path that stays right in another folder; an embedded model's name.
fn absolute(model: &Model) -> Result<String> {
    if model.is_embedded() {
        return Ok(model.path().display().to_string());
    }
    let path = model.path();
    Ok(std::path::absolute(path).map_err(|e| Error::io(path, e))?.display().to_string())
}

/// This process's shares of the batches from step `step` on.
fn loader(data: Arc<Dataset>, c: &TrainConfig, step: usize, ranks: &dyn Collective) -> Result<Loader> {
    let order = if c.class_balanced { Order::ClassBalanced } else { Order::Plain };
    let batch = share(c, ranks.size())?;
    let first_sample = (step * c.batch + ranks.rank() * batch) as u64;
    let skip = (c.batch - batch) as u64;
    let config = LoaderConfig { batch, order, seed: c.seed, flip: c.flip, first_sample, skip, prefetch: 2 };
    Loader::new(data, config)
}

/// What processes do together in one step. Each does all of it, also where it fails.
struct Meeting<'a> {
    ranks: &'a mut dyn Collective,
    pieces: Vec<Piece>,
    /// Pieces whose sum has begun.
    begun: usize,
    /// Seconds that the end took; none before it.
    wait: Option<f64>,
}

impl Meeting<'_> {
    /// Begins to sum the next piece.
    fn begin(&mut self) -> Result<()> {
        self.begun += 1;
        self.ranks.start_sum(self.pieces[self.begun - 1])
    }

    /// Waits for the sums, then for everybody's word that it went well.
    fn end<T>(&mut self, mine: Result<T>) -> Result<T> {
        let start = Instant::now();
        while self.begun < self.pieces.len() {
            self.begin()?;
        }
        self.ranks.wait()?;
        self.wait = Some(start.elapsed().as_secs_f64());
        agree(self.ranks, mine)
    }
}

/// The Philox key of a sample's noise: other seeds lead far away.
fn sample_seed(seed: u64, sample: u64) -> [i32; 2] {
    // The finaliser of SplitMix64 (Steele, Lea & Flood 2014): a bijection that mixes all bits.
    let mix = |z: u64| (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mix = |z: u64| (mix(z) ^ (mix(z) >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    let key = (mix(seed) ^ (mix(seed) >> 31)).wrapping_add(sample);
    [key as i32, (key >> 32) as i32]
}
