//! Training runs as folders: started, watched, killed, resumed.
//!
//! ```text
//! RUN/
//!   config.toml          the settings, every key, with its meaning
//!   data.json            what data the run is on: sizes and fingerprint
//!   log.jsonl            a line each `log_every` steps
//!   log.svg              the log as plots
//!   events.out.tfevents… the log for TensorBoard
//!   checkpoints/step-…/  state.safetensors and progress.json: all that resuming needs
//!   model/               the averaged weights of the last checkpoint, as a model folder; model-ema1 and on: further averages
//!   step-…/              model folders that are kept for good
//!   grids/step-….png     samples from the same latents each time
//!   lock                 held by the process that trains
//! ```
//!
//! Everything that changes the weights is a function of the settings, the data and the step's number, so that a run that was
//! killed at any moment goes on from its last checkpoint as if nothing had happened, bit for bit.
//!
//! Several processes may train one run: see [`crate::collective`]. Only the first writes to the folder; the others must be able to
//! read it in order to resume. Their number may change from one start to the next; the weights are then the same up to the order
//! of sums.

mod compare;
mod events;
mod folder;
mod log;
mod plots;
mod settings;
mod status;

pub use compare::{Summary, differences};
pub use folder::{DataId, RunFolder, is_run};
pub use log::{BIN_EDGES, Entry, bin_name, read_log};
pub use plots::plot;
pub use settings::{Key, PRESETS, Settings, parse, preset};
pub use status::{Average, Changed, NetworkStatus, State, Status};

use crate::collective::{Alone, Collective, agree, same};
use crate::data::{ClassLimit, Dataset, DatasetOptions, Skipped};
use crate::diffusion::SamplerKind;
use crate::image::Image;
use crate::model::{Model, network_text};
use crate::nn::Network;
use crate::sampler::SampleRequest;
use crate::trainer::{StepReport, TrainConfig, Trainer};
use crate::{Device, Error, Result};
use events::Events;
use folder::Progress;
use log::Log;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// A training run in its folder.
#[derive(Debug)]
pub struct Run {
    folder: RunFolder,
    settings: Settings,
    trainer: Trainer,
    /// Of the process that writes.
    log: Option<Log>,
    events: Option<Events>,
    /// Since this process began: when, and at which step.
    started: (Instant, usize),
}

impl Run {
    /// Starts a run in a folder that is new or empty of runs.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is a run already, or another process trains in it; whatever is wrong with the settings, the
    /// network or the data.
    pub fn start(path: &Path, settings: Settings, device: Device) -> Result<Run> {
        Run::start_among(Box::new(Alone), path, settings, device)
    }

    /// The same for one of several processes, all of which call it.
    pub fn start_among(mut ranks: Box<dyn Collective>, path: &Path, settings: Settings, device: Device) -> Result<Run> {
        let folder = if ranks.rank() == 0 { RunFolder::create(path) } else { Ok(RunFolder::follow(path)) };
        let folder = agree(&mut *ranks, folder)?;
        let (trainer, data) = trainer(ranks, &settings, device)?;
        let mut run = Run { folder, settings, trainer, log: None, events: None, started: (Instant::now(), 0) };
        run.alone(|run| {
            run.folder.begin(&run.settings, &data)?;
            run.open_log(Progress::default())
        })?;
        Ok(run)
    }

    /// Goes on with the run in a folder from its last checkpoint, or from its start if there is none.
    /// `change` may change the settings that do not touch the weights.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming what differs, if a setting that shapes the weights or the data set has changed.
    pub fn resume(path: &Path, change: impl FnOnce(&Settings) -> Result<Settings>, device: Device) -> Result<Run> {
        Run::resume_among(Box::new(Alone), path, change, device)
    }

    /// The same for one of several processes, all of which call it.
    pub fn resume_among(
        mut ranks: Box<dyn Collective>,
        path: &Path,
        change: impl FnOnce(&Settings) -> Result<Settings>,
        device: Device,
    ) -> Result<Run> {
        let folder = if ranks.rank() == 0 { RunFolder::open(path) } else { Ok(RunFolder::follow(path)) };
        let folder = agree(&mut *ranks, folder)?;
        let settings = agree(&mut *ranks, changed(&folder, change))?;
        let (mut trainer, data) = trainer(ranks, &settings, device)?;
        let loaded = folder.check_data(&data).and_then(|()| load(&folder, &mut trainer));
        let progress = agree(trainer.ranks_mut(), loaded)?;
        same(trainer.ranks_mut(), "checkpoint", &progress.step.to_string())?;
        let started = (Instant::now(), trainer.steps_done());
        let mut run = Run { folder, settings, trainer, log: None, events: None, started };
        run.alone(|run| {
            run.folder.write_settings(&run.settings)?;
            run.open_log(progress)
        })?;
        Ok(run)
    }

    fn open_log(&mut self, progress: Progress) -> Result<()> {
        let (folder, settings) = (self.folder.path(), &self.settings);
        let ranks = self.trainer.ranks().size();
        self.log = Some(Log::open(folder, settings.log_every, settings.batch, ranks, progress)?);
        self.events = settings.tensorboard.then(|| Events::create(folder, self.started.1)).transpose()?;
        Ok(())
    }

    /// Has the first process write; all learn how it went.
    fn alone(&mut self, write: impl FnOnce(&mut Run) -> Result<()>) -> Result<()> {
        let written = if self.trainer.ranks().rank() == 0 { write(self) } else { Ok(()) };
        agree(self.trainer.ranks_mut(), written)
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Images that could not be used.
    pub fn skipped(&self) -> &Skipped {
        &self.trainer.data().skipped
    }

    pub fn trainer(&self) -> &Trainer {
        &self.trainer
    }

    /// Images a second since this process began.
    pub fn images_per_second(&self) -> f64 {
        let steps = self.trainer.steps_done() - self.started.1;
        (steps * self.settings.batch) as f64 / self.started.0.elapsed().as_secs_f64().max(1e-9)
    }

    /// Trains to the end. `watch` sees every step, on every process; an error from it stops the run after a checkpoint.
    ///
    /// # Errors
    /// What `watch` returned; [`Error::NotFinite`] if a number became none, the last checkpoint then staying as it is;
    /// [`Error::Io`] if the disk is full, likewise.
    pub fn finish(&mut self, watch: &mut dyn FnMut(&Run, &StepReport) -> Result<()>) -> Result<()> {
        let steps = self.settings.steps;
        while self.trainer.steps_done() < steps {
            let report = self.trainer.step()?;
            let last = report.step == steps;
            let due = |every: usize| every > 0 && report.step.is_multiple_of(every);
            self.alone(|run| run.record(&report, last))?;
            let watched = watch(self, &report);
            let watched = agree(self.trainer.ranks_mut(), watched);
            // Before the checkpoint: a kill in between repeats them, the other way round it would lose them.
            if self.settings.save_at.contains(&report.step) {
                self.alone(|run| run.export_to(&run.folder.path().join(format!("step-{}", report.step)), 0))?;
            }
            if due(self.settings.grid_every) || (last && self.settings.grid_every > 0) {
                self.alone(|run| run.grid(report.step))?;
            }
            if watched.is_err() || (due(self.settings.checkpoint_every) && !last) {
                self.alone(Run::checkpoint)?;
            }
            watched?;
        }
        // Also where a run was killed between its last checkpoint and its last export.
        self.alone(Run::checkpoint)
    }

    /// A step in the log.
    fn record(&mut self, report: &StepReport, last: bool) -> Result<()> {
        let rate = self.images_per_second();
        let Some(log) = &mut self.log else { return Ok(()) };
        let entry = log.add(report, rate, last)?;
        if let (Some(entry), Some(events)) = (&entry, &mut self.events) {
            events.write(entry)?;
        }
        Ok(())
    }

    /// Saves all that resuming needs, the averaged weights as models, and the plots.
    fn checkpoint(&mut self) -> Result<()> {
        let Some(progress) = self.log.as_ref().map(Log::progress) else { return Ok(()) };
        let trainer = &mut self.trainer;
        let step = trainer.steps_done();
        self.folder.checkpoint(step, &progress, self.settings.keep, |dir| {
            trainer.save_state(&dir.join("state.safetensors"))
        })?;
        for ema in 0..self.trainer.config().emas.len() {
            self.export_to(&self.model_folder(ema), ema)?;
        }
        plot(self.folder.path(), &[self.folder.path()])
    }

    fn export_to(&mut self, folder: &Path, ema: usize) -> Result<()> {
        self.trainer.save(folder, self.settings.export_dtype()?, ema)
    }

    fn model_folder(&self, ema: usize) -> PathBuf {
        self.folder.path().join(model_name(ema))
    }

    /// Samples from the first average, from the same latents each time. Nothing of the training changes.
    fn grid(&mut self, step: usize) -> Result<()> {
        let folder = self.model_folder(0);
        self.export_to(&folder, 0)?;
        let model = Model::open(&folder)?;
        let n = self.settings.grid_n.max(1);
        let defaults = SampleRequest::new(&model);
        let guidance_scale = self.settings.grid_guidance;
        let request = SampleRequest { n, batch: n.min(defaults.batch), guidance_scale, ..defaults };
        let images = request.prepare(&model, self.trainer.session().device().clone())?.run(&mut |_| Ok(()))?;
        let image: Image = images.grid((n as f64).sqrt().ceil() as usize)?;
        if let Some(events) = &mut self.events {
            events.image(step, &image)?;
        }
        image.save_png(self.folder.grid_path(step)?)
    }

    /// The run's folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// The model folder of average number `ema`.
fn model_name(ema: usize) -> String {
    if ema == 0 { "model".into() } else { format!("model-ema{ema}") }
}

/// The settings of the run in a folder, with what may be changed of them.
fn changed(folder: &RunFolder, change: impl FnOnce(&Settings) -> Result<Settings>) -> Result<Settings> {
    let before = folder.settings()?;
    let settings = change(&before)?;
    if let [first, rest @ ..] = &before.conflicts(&settings)?[..] {
        let more = rest.iter().map(|line| format!("; {line}")).collect::<String>();
        let reason = format!("{} was started with other settings: {first}{more}", folder.path().display());
        return Err(Error::invalid("--resume", reason));
    }
    Ok(settings)
}

/// Reads the last checkpoint, if there is one.
fn load(folder: &RunFolder, trainer: &mut Trainer) -> Result<Progress> {
    let Some(checkpoint) = folder.last_checkpoint()? else { return Ok(Progress::default()) };
    trainer.load_state(&checkpoint.join("state.safetensors"))?;
    folder::read_progress(&checkpoint)
}

/// A trainer for settings, and what data it is on: the same on all processes.
fn trainer(mut ranks: Box<dyn Collective>, settings: &Settings, device: Device) -> Result<(Trainer, DataId)> {
    let sources = agree(&mut *ranks, Sources::open(settings))?;
    let Sources { config, text, path, data, from } = sources;
    let id = DataId::of(&data);
    // A process may have its own copy of the data, which the fingerprint covers.
    same(&mut *ranks, "settings", &Settings { data: String::new(), ..settings.clone() }.to_toml()?)?;
    same(&mut *ranks, "data", &format!("{id:?}"))?;
    let mut trainer = Trainer::among(ranks, config, &text, &path, data, device)?;
    if let Some(model) = &from {
        let started = trainer.start_from(model);
        agree(trainer.ranks_mut(), started)?;
    }
    Ok((trainer, id))
}

/// The settings with what the model in `from` predicts, where they leave it open: more of the same training.
fn as_before(settings: &Settings, from: Option<&Model>) -> Result<Settings> {
    let mut settings = settings.clone();
    if let Some(model) = from.filter(|model| settings.prediction == "auto" && !model.is_edm()) {
        settings.prediction = model.sampler_config(SamplerKind::Dpmpp2m)?.prediction.name().into();
    }
    Ok(settings)
}

/// What a trainer is made of.
struct Sources {
    config: TrainConfig,
    /// The network's.
    text: String,
    path: PathBuf,
    data: Arc<Dataset>,
    /// Whose weights it begins with.
    from: Option<Model>,
}

impl Sources {
    fn open(settings: &Settings) -> Result<Sources> {
        let from = (!settings.from.is_empty()).then(|| Model::open(&settings.from)).transpose()?;
        let given = |key: &str, value: &str| match value.is_empty() {
            true => Err(Error::invalid(format!("--{key}"), "is not given, and there is no default")),
            false => Ok(()),
        };
        given("data", &settings.data)?;
        let (text, path) = match &from {
            Some(model) if settings.network.is_empty() => (model.config().to_owned(), model.path().to_owned()),
            _ => {
                given("network", &settings.network)?;
                network_text(Path::new(&settings.network))?
            }
        };
        let network = Network::from_config(&text, &path)?;
        let config = as_before(settings, from.as_ref())?.train_config(&network)?;
        settings.export_dtype()?;
        let resize = (settings.resize > 0).then_some(settings.resize);
        let channels = (settings.channels > 0).then_some(settings.channels);
        let classes = ClassLimit::list(&settings.classes)?;
        let strict = settings.strict;
        let options = DatasetOptions { resize, channels, classes, strict, ..DatasetOptions::default() };
        let data = Arc::new(Dataset::open(Path::new(&settings.data), &options)?);
        Ok(Sources { config, text, path, data, from })
    }
}
