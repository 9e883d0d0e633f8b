//! The folder of a run: lock, settings, checkpoints.

use super::log::Sums;
use super::settings::{Settings, parse};
use crate::data::Dataset;
use crate::files::write_atomic;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

/// A run's folder, locked by this process as long as this lives.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// None if another process has it, which trains together with this one and does all the writing.
    _lock: Option<File>,
}

/// What a checkpoint holds besides the trainer's state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// Steps done.
    pub step: usize,
    /// What the log had gathered since its last line.
    pub sums: Sums,
}

/// Which data a run is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataId {
    pub images: usize,
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    /// 0 without labels.
    pub classes: usize,
    /// [`Dataset::fingerprint`] in hexadecimal.
    pub fingerprint: String,
}

impl DataId {
    pub(super) fn of(data: &Dataset) -> DataId {
        DataId {
            images: data.n,
            height: data.height,
            width: data.width,
            channels: data.channels,
            classes: data.class_count,
            fingerprint: format!("{:032x}", data.fingerprint()),
        }
    }
}

impl std::fmt::Display for DataId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let DataId { images, height, width, channels, classes, fingerprint } = self;
        write!(f, "{images} images of {height}×{width}×{channels} in {classes} classes ({fingerprint})")
    }
}

impl RunFolder {
    /// A folder for a new run.
    pub(super) fn create(path: &Path) -> Result<RunFolder> {
        fs::create_dir_all(path).map_err(|e| Error::io(path, e))?;
        let folder = RunFolder::lock(path)?;
        if path.join("config.toml").exists() {
            let step = checkpoints(path)?.last().map_or(0, |(step, _)| *step);
            let reason = format!("{} holds a run, at step {step}; --resume goes on with it", path.display());
            return Err(Error::invalid("--out", reason));
        }
        Ok(folder)
    }

    /// The folder of a run that was begun.
    pub(super) fn open(path: &Path) -> Result<RunFolder> {
        if !is_run(path) {
            return Err(Error::invalid("--resume", format!("{} holds no run: no config.toml", path.display())));
        }
        RunFolder::lock(path)
    }

    /// The folder that another process, which trains together with this one, has locked.
    pub(super) fn follow(path: &Path) -> RunFolder {
        RunFolder { path: path.to_owned(), _lock: None }
    }

    fn lock(path: &Path) -> Result<RunFolder> {
        let file = path.join("lock");
        let lock = File::options().create(true).append(true).open(&file).map_err(|e| Error::io(&file, e))?;
        match lock.try_lock() {
            Ok(()) => Ok(RunFolder { path: path.to_owned(), _lock: Some(lock) }),
            Err(TryLockError::WouldBlock) => {
                Err(Error::invalid("--out", format!("another process trains in {}", path.display())))
            }
            Err(TryLockError::Error(e)) => Err(Error::io(&file, e)),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes what tells a run from an empty folder; the settings last, so that they stand for all of it.
    pub(super) fn begin(&self, settings: &Settings, data: &DataId) -> Result<()> {
        let json = serde_json::to_vec_pretty(data).map_err(|e| Error::format(&self.path, e.to_string()))?;
        write_atomic(self.path.join("data.json"), &json)?;
        self.write_settings(settings)
    }

    pub(super) fn write_settings(&self, settings: &Settings) -> Result<()> {
        write_atomic(self.path.join("config.toml"), settings.to_toml()?.as_bytes())
    }

    /// The settings that the run was begun with.
    pub fn settings(&self) -> Result<Settings> {
        read_settings(&self.path)
    }

    /// Fails unless the data are those that the run was begun with.
    pub(super) fn check_data(&self, data: &DataId) -> Result<()> {
        let before = read_data(&self.path)?;
        if before == *data {
            return Ok(());
        }
        Err(Error::invalid("--data", format!("the data set has changed: {data}, was {before}")))
    }

    /// The newest whole checkpoint.
    pub fn last_checkpoint(&self) -> Result<Option<PathBuf>> {
        Ok(checkpoints(&self.path)?.pop().map(|(_, path)| path))
    }

    /// Makes a checkpoint that is there whole or not at all: written beside its place by `save`, flushed, renamed. Older ones
    /// but for `keep` go afterwards.
    pub(super) fn checkpoint(
        &self,
        step: usize,
        progress: &Progress,
        keep: usize,
        save: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let folder = self.path.join("checkpoints");
        let place = folder.join(format!("step-{step:08}"));
        if place.exists() {
            // Nothing is random: a checkpoint of this step is this checkpoint.
            return Ok(());
        }
        let unfinished = folder.join(UNFINISHED);
        remove_folder(&unfinished)?;
        fs::create_dir_all(&unfinished).map_err(|e| Error::io(&unfinished, e))?;
        let json = serde_json::to_vec_pretty(progress).map_err(|e| Error::format(&place, e.to_string()))?;
        let written = save(&unfinished).and_then(|()| write_atomic(unfinished.join("progress.json"), &json));
        if let Err(e) = written {
            // A full disk should not stay full of this.
            let _ = remove_folder(&unfinished);
            return Err(e);
        }
        fs::rename(&unfinished, &place).map_err(|e| Error::io(&place, e))?;
        sync(&folder)?;
        let mut all = checkpoints(&self.path)?;
        all.truncate(all.len().saturating_sub(keep.max(1)));
        all.iter().try_for_each(|(_, old)| remove_folder(old))
    }

    pub(super) fn grid_path(&self, step: usize) -> Result<PathBuf> {
        let folder = self.path.join("grids");
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        Ok(folder.join(format!("step-{step:08}.png")))
    }
}

/// Whether there is a run in a folder.
pub fn is_run(path: &Path) -> bool {
    path.join("config.toml").is_file()
}

/// Whether a process trains in a run's folder now. Asked by taking the lock for a moment, shared with others that ask.
pub(super) fn is_locked(path: &Path) -> Result<bool> {
    let file = path.join("lock");
    let lock = match File::open(&file) {
        Ok(lock) => lock,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(Error::io(&file, e)),
    };
    match lock.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(e)) => Err(Error::io(&file, e)),
    }
}

/// All whole checkpoints of a run with their steps, oldest first.
pub(super) fn checkpoints(run: &Path) -> Result<Vec<(usize, PathBuf)>> {
    by_step(&run.join("checkpoints"))
}

/// The grids of a run with their steps, oldest first.
pub(super) fn grids(run: &Path) -> Result<Vec<(usize, PathBuf)>> {
    by_step(&run.join("grids"))
}

/// What is named `step-N` or `step-N.…` in a folder, in the order of steps; nothing if there is no such folder.
pub(super) fn by_step(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(Error::io(folder, e)),
    };
    let mut found: Vec<(usize, PathBuf)> = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        found.extend(step_of(&path).map(|step| (step, path)));
    }
    found.sort();
    Ok(found)
}

/// Where a checkpoint is written.
const UNFINISHED: &str = ".unfinished";

/// The settings of the run in a folder.
pub(super) fn read_settings(path: &Path) -> Result<Settings> {
    let file = path.join("config.toml");
    let text = fs::read_to_string(&file).map_err(|e| Error::io(&file, e))?;
    let table = parse(&file, &text)?;
    Settings::from_layers([(file.as_path(), &table)])
}

/// The data that the run in a folder is on.
pub(super) fn read_data(path: &Path) -> Result<DataId> {
    read_json(&path.join("data.json"))
}

pub(super) fn read_progress(checkpoint: &Path) -> Result<Progress> {
    read_json(&checkpoint.join("progress.json"))
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::format(path, e.to_string()))
}

/// The N of `step-N`, with or without an extension.
fn step_of(path: &Path) -> Option<usize> {
    path.file_stem()?.to_str()?.strip_prefix("step-")?.parse().ok()
}

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}

/// A rename is safe from a power cut once its folder is on the disk.
fn sync(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io(folder, e))?;
    Ok(())
}
