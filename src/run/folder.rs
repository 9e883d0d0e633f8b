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
pub(super) struct DataId {
    images: usize,
    height: usize,
    width: usize,
    channels: usize,
    classes: usize,
    fingerprint: String,
}

impl DataId {
    pub fn of(data: &Dataset) -> DataId {
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

impl RunFolder {
    /// A folder for a new run.
    pub(super) fn create(path: &Path) -> Result<RunFolder> {
        fs::create_dir_all(path).map_err(|e| Error::io(path, e))?;
        let folder = RunFolder::lock(path)?;
        if path.join("config.toml").exists() {
            let step = folder.last_checkpoint()?.map_or(0, |c| step_of(&c).unwrap_or(0));
            let reason = format!("{} holds a run, at step {step}; --resume goes on with it", path.display());
            return Err(Error::invalid("--out", reason));
        }
        Ok(folder)
    }

    /// The folder of a run that was begun.
    pub(super) fn open(path: &Path) -> Result<RunFolder> {
        if !path.join("config.toml").is_file() {
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
        let path = self.path.join("data.json");
        let before: DataId = read_json(&path)?;
        if before == *data {
            return Ok(());
        }
        let shown = |d: &DataId| {
            let DataId { images, height, width, channels, classes, fingerprint } = d;
            format!("{images} images of {height}×{width}×{channels} in {classes} classes ({fingerprint})")
        };
        let reason = format!("the data set has changed: {}, was {}", shown(data), shown(&before));
        Err(Error::invalid("--data", reason))
    }

    /// The newest whole checkpoint.
    pub fn last_checkpoint(&self) -> Result<Option<PathBuf>> {
        Ok(self.checkpoints()?.pop())
    }

    /// All whole checkpoints, oldest first.
    fn checkpoints(&self) -> Result<Vec<PathBuf>> {
        let folder = self.path.join("checkpoints");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            Err(e) => return Err(Error::io(&folder, e)),
        };
        let mut found: Vec<(usize, PathBuf)> = Vec::new();
        for entry in entries {
            let path = entry.map_err(|e| Error::io(&folder, e))?.path();
            found.extend(step_of(&path).map(|step| (step, path)));
        }
        found.sort();
        Ok(found.into_iter().map(|(_, path)| path).collect())
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
        let mut all = self.checkpoints()?;
        all.truncate(all.len().saturating_sub(keep.max(1)));
        all.iter().try_for_each(|old| remove_folder(old))
    }

    pub(super) fn grid_path(&self, step: usize) -> Result<PathBuf> {
        let folder = self.path.join("grids");
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        Ok(folder.join(format!("step-{step:08}.png")))
    }
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

pub(super) fn read_progress(checkpoint: &Path) -> Result<Progress> {
    read_json(&checkpoint.join("progress.json"))
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::format(path, e.to_string()))
}

/// The step of a checkpoint's folder.
fn step_of(path: &Path) -> Option<usize> {
    path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()
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
