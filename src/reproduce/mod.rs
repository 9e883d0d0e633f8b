//! W2SD's claims (Bai, Sugiyama & Xie 2025, arXiv 2502.00473) run again, at a scale that a processor can bear.
//!
//! ```no_run
//! use langevin::reproduce::{Part, Request};
//!
//! let request = Request { parts: vec![Part::Analytic], ..Request::new("report") };
//! let report = request.run(&mut |_| Ok(()))?;
//! println!("{}", report.markdown());
//! # Ok::<(), langevin::Error>(())
//! ```

mod analytic;
pub mod mixture;
mod noise;
mod plots;
mod report;

pub use report::{Cell, Column, Finding, Picture, Report, Row, Section, Table};

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::str::FromStr;

/// What can be run by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Mixtures of Gaussians with exact scores.
    Analytic,
}

impl Part {
    /// All of them.
    pub const ALL: [Part; 1] = [Part::Analytic];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Part::Analytic => "analytic",
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
    /// Folder of the report, its pictures, and what is trained.
    pub out: PathBuf,
    pub seed: u64,
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
    /// All parts, seed 0.
    pub fn new(out: impl Into<PathBuf>) -> Request {
        Request { parts: Part::ALL.to_vec(), out: out.into(), seed: 0 }
    }

    /// Runs the parts and writes the report, to which earlier parts in the same folder belong. Each part is written as soon as it
    /// is done.
    ///
    /// # Errors
    /// Those of files, data and sampling; what `watch` returned.
    pub fn run(&self, watch: &mut Watch) -> Result<Report> {
        std::fs::create_dir_all(&self.out).map_err(|e| Error::io(&self.out, e))?;
        let mut report = Report::open(&self.out)?;
        for part in &self.parts {
            let section = match part {
                Part::Analytic => analytic::run(self, watch)?,
            };
            report.put(section);
            report.save(&self.out)?;
        }
        Ok(report)
    }
}
