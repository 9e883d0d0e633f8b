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

use crate::data::{Dataset, DatasetOptions, Skipped};
use crate::image::Image;
use crate::model::{Model, network_text};
use crate::nn::Network;
use crate::sampler::SampleRequest;
use crate::trainer::{StepReport, Trainer};
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
    log: Log,
    events: Option<Events>,
    device: Device,
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
        let folder = RunFolder::create(path)?;
        let (trainer, data) = trainer(&settings, device)?;
        folder.begin(&settings, &data)?;
        Run::new(folder, settings, trainer, Progress::default(), device)
    }

    /// Goes on with the run in a folder from its last checkpoint, or from its start if there is none.
    /// `change` may change the settings that do not touch the weights.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming what differs, if a setting that shapes the weights or the data set has changed.
    pub fn resume(path: &Path, change: impl FnOnce(&Settings) -> Result<Settings>, device: Device) -> Result<Run> {
        let folder = RunFolder::open(path)?;
        let before = folder.settings()?;
        let settings = change(&before)?;
        if let [first, rest @ ..] = &before.conflicts(&settings)?[..] {
            let more = rest.iter().map(|line| format!("; {line}")).collect::<String>();
            let reason = format!("{} was started with other settings: {first}{more}", path.display());
            return Err(Error::invalid("--resume", reason));
        }
        let (mut trainer, data) = trainer(&settings, device)?;
        folder.check_data(&data)?;
        let progress = match folder.last_checkpoint()? {
            Some(checkpoint) => {
                trainer.load_state(&checkpoint.join("state.safetensors"))?;
                folder::read_progress(&checkpoint)?
            }
            None => Progress::default(),
        };
        folder.write_settings(&settings)?;
        Run::new(folder, settings, trainer, progress, device)
    }

    fn new(folder: RunFolder, settings: Settings, trainer: Trainer, progress: Progress, device: Device) -> Result<Run> {
        let log = Log::open(folder.path(), settings.log_every, settings.batch, progress)?;
        let step = trainer.steps_done();
        let events = settings.tensorboard.then(|| Events::create(folder.path(), step)).transpose()?;
        Ok(Run { folder, settings, trainer, log, events, device, started: (Instant::now(), step) })
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

    /// Trains to the end. `watch` sees every step; an error from it stops the run after a checkpoint.
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
            let entry = self.log.add(&report, self.images_per_second(), last)?;
            if let (Some(entry), Some(events)) = (&entry, &mut self.events) {
                events.write(entry)?;
            }
            let watched = watch(self, &report);
            // Before the checkpoint: a kill in between repeats them, the other way round it would lose them.
            if self.settings.save_at.contains(&report.step) {
                self.export_to(&self.folder.path().join(format!("step-{}", report.step)), 0)?;
            }
            if due(self.settings.grid_every) || (last && self.settings.grid_every > 0) {
                self.grid(report.step)?;
            }
            if watched.is_err() || (due(self.settings.checkpoint_every) && !last) {
                self.checkpoint()?;
            }
            watched?;
        }
        // Also where a run was killed between its last checkpoint and its last export.
        self.checkpoint()
    }

    /// Saves all that resuming needs, the averaged weights as models, and the plots.
    fn checkpoint(&mut self) -> Result<()> {
        let progress = self.log.progress();
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
        let images = request.prepare(&model, self.device)?.run(&mut |_| Ok(()))?;
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

/// Data, network and trainer for settings.
fn trainer(settings: &Settings, device: Device) -> Result<(Trainer, DataId)> {
    for (key, value) in [("network", &settings.network), ("data", &settings.data)] {
        if value.is_empty() {
            return Err(Error::invalid(format!("--{key}"), "is not given, and there is no default"));
        }
    }
    let (text, path) = network_text(Path::new(&settings.network))?;
    let network = Network::from_config(&text, &path)?;
    let config = settings.train_config(&network)?;
    settings.export_dtype()?;
    let resize = (settings.resize > 0).then_some(settings.resize);
    let channels = (settings.channels > 0).then_some(settings.channels);
    let options = DatasetOptions { resize, channels, strict: settings.strict, ..DatasetOptions::default() };
    let data = Arc::new(Dataset::open(Path::new(&settings.data), &options)?);
    let id = DataId::of(&data);
    let mut trainer = Trainer::new(config, &text, &path, data, device)?;
    if !settings.from.is_empty() {
        trainer.start_from(&Model::open(&settings.from)?)?;
    }
    Ok((trainer, id))
}
