//! What runs have come to, side by side.

use super::folder::read_settings;
use super::log::{Entry, read_log};
use super::settings::Settings;
use crate::{Error, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// What a run has come to.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub path: PathBuf,
    /// Steps of the whole run.
    pub steps: usize,
    /// The last line of the log; none before the first.
    pub last: Option<Entry>,
    /// The line with the least mean loss.
    pub best: Option<Entry>,
    #[serde(skip)]
    settings: Settings,
}

impl Summary {
    /// Reads settings and log of a run's folder; the run may be going on.
    pub fn read(path: &Path) -> Result<Summary> {
        let settings = read_settings(path)?;
        let log = if path.join("log.jsonl").exists() { read_log(path)? } else { vec![] };
        let best = log.iter().min_by(|a, b| a.loss.total_cmp(&b.loss)).cloned();
        Ok(Summary { path: path.to_owned(), steps: settings.steps, last: log.last().cloned(), best, settings })
    }

    /// The settings of the run.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}

/// The settings in which runs differ: the key, then the value in each run.
pub fn differences(runs: &[Summary]) -> Result<Vec<(String, Vec<String>)>> {
    let table = |run: &Summary| Table::try_from(&run.settings).map_err(|e| Error::format(&run.path, e.to_string()));
    let tables = runs.iter().map(table).collect::<Result<Vec<_>>>()?;
    let values = |key: &str| -> Vec<String> {
        tables.iter().map(|t| t.get(key).map(Value::to_string).unwrap_or_default()).collect()
    };
    let rows = Settings::KEYS.iter().map(|key| (key.name.to_string(), values(key.name)));
    Ok(rows.filter(|(_, values)| values.iter().any(|v| *v != values[0])).collect())
}
