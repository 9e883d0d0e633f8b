//! Schedules: explicit lists of steps over programs that share one arena. Every method is a function to a [`Schedule`].

mod buffers;
mod compile;
#[cfg(feature = "cuda")]
mod cuda;
mod engine;
#[cfg(feature = "wgpu")]
mod gpu;
#[cfg(feature = "cuda")]
mod order;
mod program;
mod ptx;
mod report;
mod session;

pub use buffers::{Buffer, BufferId, Buffers};
pub use program::{Command, Live, Mark, Options, Program, Slice, Space};
pub use report::Report;
pub use session::{Event, Session};

use crate::graph::{Graph, Target};
use crate::{Error, Result};
use std::ops::Range;

/// One step of a schedule.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Runs a program.
    Run(usize),
    /// Runs `body` once for each row; before each, the row is copied into the row buffer, where programs read it.
    Repeat { rows: Range<usize>, body: Vec<Step> },
    /// Copies one buffer to another of the same size.
    Copy { from: BufferId, to: BufferId },
    /// Calls the host: progress, previews, logging, new data.
    Host(u32),
}

/// Scalars by row: noise levels, coefficients, guidance, learning rates. Formed in f64, stored in f32.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    pub columns: usize,
    pub data: Vec<f32>,
}

impl Rows {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.data.len().checked_div(self.columns).unwrap_or(0)
    }

    /// True if there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Row `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.columns..(i + 1) * self.columns]
    }
}

/// Programs, the buffers that they share, and the steps that run them.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub name: String,
    pub buffers: Buffers,
    pub programs: Vec<Program>,
    pub steps: Vec<Step>,
    pub rows: Rows,
    /// The buffer that holds the current row.
    pub row: Option<BufferId>,
}

impl Schedule {
    /// An empty schedule over `buffers`.
    pub fn new(name: impl Into<String>, buffers: Buffers) -> Self {
        let rows = Rows::default();
        Schedule { name: name.into(), buffers, programs: vec![], steps: vec![], rows, row: None }
    }

    /// The schedule that runs `graph` once. Every input, parameter and output has a buffer of its name; an output with the
    /// name of an input updates that input's buffer.
    pub fn once(name: impl Into<String>, graph: &Graph, target: Target, options: Options) -> Result<Self> {
        let name = name.into();
        let mut buffers = Buffers::new();
        let outputs = graph.outputs().iter().map(|(port, value)| (*value, port));
        for (value, port) in graph.inputs().chain(graph.parameters()).chain(outputs) {
            if buffers.find(port).is_none() {
                buffers.declare(port, graph.ty(value).clone());
            }
        }
        let names = buffers.clone();
        let program = Program::compile(&name, graph, target, &mut buffers, |port| names.find(port), options)?;
        let mut schedule = Schedule::new(name, buffers);
        let program = schedule.add(program);
        schedule.steps.push(Step::Run(program));
        Ok(schedule)
    }

    /// Adds a program; its number.
    pub fn add(&mut self, program: Program) -> usize {
        self.programs.push(program);
        self.programs.len() - 1
    }

    /// Checks that steps name programs, rows and buffers that exist, and that row and copy sizes fit.
    pub fn verify(&self) -> Result<()> {
        let columns = self.row.map_or(0, |b| self.buffers.get(b).ty.elements());
        if columns != self.rows.columns {
            return self.fail(format!("the row buffer holds {columns} numbers, rows {}", self.rows.columns));
        }
        self.verify_steps(&self.steps)
    }

    fn verify_steps(&self, steps: &[Step]) -> Result<()> {
        for step in steps {
            match step {
                Step::Run(p) if *p >= self.programs.len() => return self.fail(format!("there is no program {p}")),
                Step::Repeat { rows, .. } if rows.end > self.rows.len() => {
                    return self.fail(format!("rows {rows:?} of {}", self.rows.len()));
                }
                Step::Repeat { body, .. } => self.verify_steps(body)?,
                Step::Copy { from, to } if self.buffers.get(*from).bytes() != self.buffers.get(*to).bytes() => {
                    let (a, b) = (self.buffers.get(*from), self.buffers.get(*to));
                    return self.fail(format!("copy of `{}` ({}) to `{}` ({})", a.name, a.ty, b.name, b.ty));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn fail<T>(&self, reason: String) -> Result<T> {
        Err(Error::Verify { pass: "schedule", reason: format!("{}: {reason}", self.name) })
    }

    /// Bytes of the arena: all buffers, then one scratch region that every program shares.
    pub fn arena_bytes(&self) -> usize {
        self.buffers.bytes() + self.programs.iter().map(|p| p.peak).max().unwrap_or(0)
    }
}
