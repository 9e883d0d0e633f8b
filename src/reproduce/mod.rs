//! W2SD's claims (Bai, Sugiyama & Xie 2025, arXiv 2502.00473) run again, at a scale that a processor can bear.
//!
//! ```no_run
//! use langevin::reproduce::{Part, Request};
//!
//! let request = Request { parts: vec![Part::Analytic], ..Request::new("report")? };
//! let report = request.run(&mut |_| Ok(()))?;
//! println!("{}", report.markdown());
//! # Ok::<(), langevin::Error>(())
//! ```

mod analytic;
mod cifar;
mod digits;
mod draw;
mod guidance_gap;
pub mod mixture;
mod moe;
mod noise;
mod plots;
mod report;
mod time_gap;
mod train;

pub use report::{Cell, Column, Finding, Picture, Report, Row, Section, Table};

use crate::run::{Settings, preset};
use crate::{Device, Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The preset that the pair of `cifar` is trained by.
pub const PRESET: &str = "cifar-pair";

/// What can be run by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Mixtures of Gaussians with exact scores.
    Analytic,
    /// Two models of cars and horses, in which cars are rare.
    Cifar,
    /// Checkpoints of one of these at three times.
    TimeGap,
    /// One model at two guidance scales.
    GuidanceGap,
    /// The best and the worst experts of one model.
    Moe,
}

impl Part {
    /// All of them.
    pub const ALL: [Part; 5] = [Part::Analytic, Part::Cifar, Part::TimeGap, Part::GuidanceGap, Part::Moe];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Part::Analytic => "analytic",
            Part::Cifar => "cifar",
            Part::TimeGap => "time-gap",
            Part::GuidanceGap => "guidance-gap",
            Part::Moe => "moe",
        }
    }
}

impl FromStr for Part {
    type Err = Error;

    fn from_str(name: &str) -> Result<Part> {
        let names = || Part::ALL.map(Part::name).join(", ");
        let found = Part::ALL.into_iter().find(|p| p.name() == name);
        found.ok_or_else(|| Error::invalid("--part", format!("`{name}` is none of {}", names())))
    }
}

/// What to run, and on what.
#[derive(Clone, Debug)]
pub struct Request {
    pub parts: Vec<Part>,
    /// CIFAR-10's training images, for `cifar` and `time-gap`.
    pub data: Option<PathBuf>,
    /// CIFAR-10's test images, for `time-gap`; without them it takes the last of `data`.
    pub test: Option<PathBuf>,
    /// MNIST's images with their labels beside them, for `guidance-gap` and `moe`.
    pub mnist: Option<PathBuf>,
    /// Folder of the report, its pictures, and what is trained.
    pub out: PathBuf,
    /// How the pair of `cifar` is trained, but for data and classes.
    pub settings: Settings,
    /// How the model of `moe` is trained, but for data.
    pub experts: Settings,
    /// Samples of networks a row.
    pub samples: usize,
    /// Steps of their sampler, at least 2.
    pub steps: usize,
    /// Images computed at a time; changes none of them.
    pub batch: usize,
    pub seed: u64,
    pub device: Device,
}

/// What a run tells about itself.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<'a> {
    /// Work of so many steps begins.
    Begin { what: &'a str, steps: u64 },
    /// So many steps of it are done.
    Step(u64),
    /// Something to say.
    Note(String),
}

/// Sees all events; an error from it stops the run.
pub type Watch<'a> = dyn FnMut(Event) -> Result<()> + 'a;

impl Request {
    /// All parts without data, on the processor: 2000 samples by 20 steps, models trained as the presets `cifar-pair` and
    /// `mnist-dit-moe` say.
    ///
    /// # Errors
    /// None in practice.
    pub fn new(out: impl Into<PathBuf>) -> Result<Request> {
        let of = |name: &str| Settings::from_layers([(Path::new(name), &preset(name)?)]);
        Ok(Request {
            parts: Part::ALL.to_vec(),
            data: None,
            test: None,
            mnist: None,
            out: out.into(),
            settings: of(PRESET)?,
            experts: of("mnist-dit-moe")?,
            samples: 2000,
            steps: 20,
            batch: 50,
            seed: 0,
            device: Device::Cpu,
        })
    }

    /// Runs the parts and writes the report, to which earlier parts in the same folder belong. Each part is written as soon as it
    /// is done.
    ///
    /// # Errors
    /// Those of files, data, training and sampling; what `watch` returned.
    pub fn run(&self, watch: &mut Watch) -> Result<Report> {
        for (option, number, least) in
            [("--samples", self.samples, 1), ("--batch", self.batch, 1), ("--steps", self.steps, 2)]
        {
            if number < least {
                return Err(Error::invalid(option, format!("must be at least {least}")));
            }
        }
        std::fs::create_dir_all(&self.out).map_err(|e| Error::io(&self.out, e))?;
        let mut report = Report::open(&self.out)?;
        for part in &self.parts {
            let section = match (part, &self.data, &self.mnist) {
                (Part::Analytic, ..) => analytic::run(self, watch)?,
                (Part::Cifar, Some(data), _) => cifar::run(self, data, watch)?,
                (Part::TimeGap, Some(data), _) => time_gap::run(self, data, watch)?,
                (Part::GuidanceGap, _, Some(mnist)) => guidance_gap::run(self, mnist, watch)?,
                (Part::Moe, _, Some(mnist)) => moe::run(self, mnist, watch)?,
                (part, ..) => {
                    let digits = matches!(part, Part::GuidanceGap | Part::Moe);
                    let option = if digits { "--mnist" } else { "--data" };
                    watch(Event::Note(format!("{} is left out: it needs {option}", part.name())))?;
                    continue;
                }
            };
            // Parts that another process has written meanwhile stay.
            report = Report::open(&self.out)?;
            report.put(section);
            report.save(&self.out)?;
        }
        Ok(report)
    }
}
