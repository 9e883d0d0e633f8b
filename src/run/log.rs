//! `log.jsonl`: what a run reports, a line each so many steps.

use super::folder::Progress;
use crate::files::write_atomic;
use crate::trainer::StepReport;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Between bins of noise levels: λ = ln(alpha/sigma). The first bin is nearly all noise, the last nearly all image.
pub const BIN_EDGES: [f64; 7] = [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0];

const BINS: usize = BIN_EDGES.len() + 1;

/// What bin `i` of [`Entry::loss_bins`] holds, as `-1 to 0`.
pub fn bin_name(i: usize) -> String {
    match (i.checked_sub(1).and_then(|i| BIN_EDGES.get(i)), BIN_EDGES.get(i)) {
        (Some(low), Some(high)) => format!("{low} to {high}"),
        (None, Some(high)) => format!("below {high}"),
        (Some(low), None) => format!("from {low}"),
        (None, None) => String::new(),
    }
}

/// A line of the log. Means are over the steps since the line before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Steps done.
    pub step: usize,
    /// Images seen.
    pub images: usize,
    /// Mean weighted loss.
    pub loss: f64,
    /// The same by noise level, see [`BIN_EDGES`]; none where no sample fell.
    pub loss_bins: Vec<Option<f64>>,
    /// Mean norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Since the process began.
    pub images_per_second: f64,
    /// Mean seconds a step waited for data.
    pub data_wait: f64,
    /// Processes that trained together.
    #[serde(default = "one")]
    pub ranks: usize,
    /// Mean seconds a step waited for the sum of their gradients.
    #[serde(default)]
    pub sum_wait: f64,
    /// Memory of the process, MiB; 0 where the system does not tell.
    pub memory_mib: f64,
}

/// Logs did not always tell.
fn one() -> usize {
    1
}

impl Entry {
    /// The share of a step's time, 0 to 1, that it waited for data.
    pub fn wait_share(&self) -> f64 {
        let steps_per_second = self.images_per_second * self.step as f64 / (self.images as f64).max(1.0);
        (self.data_wait * steps_per_second).min(1.0)
    }
}

/// What is gathered between two lines.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Sums {
    steps: usize,
    loss: f64,
    grad_norm: f64,
    data_wait: f64,
    #[serde(default)]
    sum_wait: f64,
    bins: [(f64, usize); BINS],
}

/// The log of a run that is going on.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    every: usize,
    batch: usize,
    ranks: usize,
    progress: Progress,
}

impl Log {
    /// Opens the log to go on after `progress`; lines of later steps, which a killed run left, are dropped.
    pub fn open(folder: &Path, every: usize, batch: usize, ranks: usize, progress: Progress) -> Result<Log> {
        let path = folder.join("log.jsonl");
        if path.exists() {
            let kept = read_log(folder)?.into_iter().filter(|e| e.step <= progress.step);
            let lines: Result<Vec<String>> = kept.map(|e| line(&path, &e)).collect();
            write_atomic(&path, lines?.concat().as_bytes())?;
        }
        let file = File::options().create(true).append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        Ok(Log { path, file, every: every.max(1), batch, ranks, progress })
    }

    /// What a checkpoint must keep of the log.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Adds a step; the line, if it is time for one.
    pub fn add(&mut self, report: &StepReport, images_per_second: f64, last: bool) -> Result<Option<Entry>> {
        self.progress.step = report.step;
        let sums = &mut self.progress.sums;
        sums.steps += 1;
        sums.loss += report.loss as f64;
        sums.grad_norm += report.grad_norm as f64;
        sums.data_wait += report.data_wait;
        sums.sum_wait += report.sum_wait;
        for (lambda, loss) in &report.samples {
            let bin = &mut sums.bins[BIN_EDGES.iter().filter(|edge| lambda >= edge).count()];
            *bin = (bin.0 + *loss as f64, bin.1 + 1);
        }
        if !report.step.is_multiple_of(self.every) && !last {
            return Ok(None);
        }
        let sums = std::mem::take(sums);
        let n = sums.steps as f64;
        let entry = Entry {
            step: report.step,
            images: report.step * self.batch,
            loss: sums.loss / n,
            loss_bins: sums.bins.iter().map(|(sum, n)| (*n > 0).then(|| sum / *n as f64)).collect(),
            grad_norm: sums.grad_norm / n,
            lr: report.learning_rate,
            images_per_second,
            data_wait: sums.data_wait / n,
            ranks: self.ranks,
            sum_wait: sums.sum_wait / n,
            memory_mib: memory_mib(),
        };
        let text = line(&self.path, &entry)?;
        self.file.write_all(text.as_bytes()).map_err(|e| Error::io(&self.path, e))?;
        Ok(Some(entry))
    }
}

fn line(path: &Path, entry: &Entry) -> Result<String> {
    serde_json::to_string(entry).map(|text| text + "\n").map_err(|e| Error::format(path, e.to_string()))
}

/// The log of the run in a folder. A last line that was cut off by a kill is left out.
///
/// # Errors
/// [`Error::Format`] naming a line that is none of a log.
pub fn read_log(folder: &Path) -> Result<Vec<Entry>> {
    let path = folder.join("log.jsonl");
    let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let entry =
        |(i, line)| serde_json::from_str(line).map_err(|e| Error::format(&path, format!("line {}: {e}", i + 1)));
    whole.lines().enumerate().map(entry).collect()
}

/// Resident memory of this process.
fn memory_mib() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    field.and_then(|f| f.trim().split(' ').next()?.parse::<f64>().ok()).map_or(0.0, |kib| kib / 1024.0)
}
