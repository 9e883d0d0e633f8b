//! What a run's folder holds: what `langevin inspect RUN` shows.

use super::compare::Summary;
use super::folder::{DataId, by_step, checkpoints, grids, is_locked, read_data};
use super::settings::Settings;
use crate::Result;
use crate::model::network_text;
use crate::nn::{InputSpec, Network, Parameter};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A process trains in the folder.
    Running,
    /// No process trains, and steps are left.
    Stopped,
    /// The last step has its checkpoint.
    Finished,
}

/// A network that is trained.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkStatus {
    /// As `config.json` names it.
    pub class: &'static str,
    pub parameters: usize,
}

/// An average of the weights.
#[derive(Clone, Debug, Serialize)]
pub struct Average {
    /// Images after which a weight's share has halved.
    pub half_life: Option<f64>,
    /// Relative standard deviation of a power-function average.
    pub std: Option<f64>,
    /// The model folder with it, once there is one.
    pub model: Option<PathBuf>,
}

/// A setting that is not the default, as TOML writes it.
#[derive(Clone, Debug, Serialize)]
pub struct Changed {
    pub key: &'static str,
    pub value: String,
    pub default: String,
}

/// What a run's folder holds.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    #[serde(flatten)]
    pub summary: Summary,
    pub state: State,
    /// None if the network's file is no longer where the run found it and no model was exported yet.
    pub network: Option<NetworkStatus>,
    /// None before the run has begun.
    pub data: Option<DataId>,
    /// Steps of the checkpoints, oldest first.
    pub checkpoints: Vec<usize>,
    /// In the order of the exported models.
    pub averages: Vec<Average>,
    /// Model folders that are kept for good, in the order of steps.
    pub kept_models: Vec<PathBuf>,
    /// The share of a step's time that it waits for data.
    pub wait_share: Option<f64>,
    /// What the steps that are left take at the speed of the last line of the log.
    pub seconds_left: Option<f64>,
    /// The newest grid of samples.
    pub grid: Option<PathBuf>,
    /// Settings that are not the defaults.
    pub changed: Vec<Changed>,
}

impl Status {
    /// Reads a run's folder; the run may be going on.
    ///
    /// # Errors
    /// [`Io`](crate::Error::Io) and [`Format`](crate::Error::Format) naming the file of the run that cannot be read.
    pub fn read(path: &Path) -> Result<Status> {
        let summary = Summary::read(path)?;
        let settings = summary.settings();
        let checkpoints: Vec<usize> = checkpoints(path)?.into_iter().map(|(step, _)| step).collect();
        let data = if path.join("data.json").exists() { Some(read_data(path)?) } else { None };
        let state = match checkpoints.last() {
            _ if is_locked(path)? => State::Running,
            Some(step) if *step >= summary.steps => State::Finished,
            _ => State::Stopped,
        };
        let last = summary.last.as_ref();
        let left = summary.steps.saturating_sub(last.map_or(0, |e| e.step)) * settings.batch;
        let speed = last.map(|e| e.images_per_second).filter(|speed| *speed > 0.0);
        Ok(Status {
            state,
            network: network(path, settings, data.as_ref()),
            data,
            checkpoints,
            averages: averages(path, settings),
            kept_models: by_step(path)?.into_iter().map(|(_, path)| path).collect(),
            wait_share: last.map(|e| e.wait_share()),
            seconds_left: speed.filter(|_| left > 0).map(|speed| left as f64 / speed),
            grid: grids(path)?.pop().map(|(_, path)| path),
            changed: changed(settings)?,
            summary,
        })
    }
}

/// The network of the exported model, else of the settings, whose path was relative to where the run was started.
fn network(run: &Path, settings: &Settings, data: Option<&DataId>) -> Option<NetworkStatus> {
    let places = [run.join("model"), PathBuf::from(&settings.network)];
    let (text, path) = places.iter().find_map(|place| network_text(place).ok())?;
    let network = Network::from_config(&text, &path).ok()?;
    let [height, width] = network.sample_size().or(data.map(|d| [d.height, d.width]))?;
    let built = network.build(&InputSpec::new(1, height, width)).ok()?;
    Some(NetworkStatus {
        class: network.class_name(),
        parameters: built.parameters.iter().map(Parameter::elements).sum(),
    })
}

fn averages(run: &Path, settings: &Settings) -> Vec<Average> {
    let half_lives = settings.ema_half_life.iter().map(|images| (Some(*images), None));
    let powers = settings.ema_std.iter().map(|std| (None, Some(*std)));
    let model = |i| Some(run.join(super::model_name(i))).filter(|folder| folder.is_dir());
    let all = half_lives.chain(powers).enumerate();
    all.map(|(i, (half_life, std))| Average { half_life, std, model: model(i) }).collect()
}

fn changed(settings: &Settings) -> Result<Vec<Changed>> {
    let differ = settings.differences(&Settings::default())?;
    Ok(differ.into_iter().map(|(key, value, default)| Changed { key: key.name, value, default }).collect())
}
