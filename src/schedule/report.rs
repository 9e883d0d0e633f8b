//! What a schedule will do, in numbers: for `langevin plan`.

use super::{Program, Schedule, Step};
use serde::Serialize;
use std::fmt;

/// Totals of a schedule and one entry for each program.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub schedule: String,
    /// Network evaluations.
    pub nfe: usize,
    pub launches: usize,
    pub flops: u64,
    /// Bytes moved if every launch read its inputs and wrote its outputs once.
    pub bytes: u64,
    /// Arena bytes: buffers and the largest program's scratch.
    pub arena_peak: usize,
    /// The same with scratch as small as any plan could make it.
    pub arena_lower_bound: usize,
    pub buffer_bytes: usize,
    pub scratch_peak: usize,
    pub scratch_lower_bound: usize,
    pub rows: usize,
    pub steps: Vec<String>,
    pub programs: Vec<ProgramReport>,
}

/// One program.
#[derive(Clone, Debug, Serialize)]
pub struct ProgramReport {
    pub name: String,
    pub runs: usize,
    pub launches: usize,
    pub flops: u64,
    pub bytes: u64,
    pub scratch_peak: usize,
    pub scratch_lower_bound: usize,
}

impl Report {
    /// Counts everything that `schedule` will run.
    pub fn new(schedule: &Schedule) -> Report {
        let mut runs = vec![0; schedule.programs.len()];
        count_runs(&schedule.steps, 1, &mut runs);
        let each = |f: &dyn Fn(&Program) -> u64| -> u64 {
            schedule.programs.iter().zip(&runs).map(|(p, n)| f(p) * *n as u64).sum()
        };
        let most = |f: &dyn Fn(&Program) -> usize| schedule.programs.iter().map(f).max().unwrap_or(0);
        let buffer_bytes = schedule.buffers.bytes();
        let (scratch_peak, scratch_lower_bound) = (most(&|p| p.peak), most(&|p| p.lower_bound));
        let mut steps = Vec::new();
        describe(schedule, &schedule.steps, 0, &mut steps);
        Report {
            schedule: schedule.name.clone(),
            nfe: each(&|p| p.nfe as u64) as usize,
            launches: each(&|p| p.commands.len() as u64) as usize,
            flops: each(&|p| p.cost().flops),
            bytes: each(&|p| p.cost().bytes),
            arena_peak: buffer_bytes + scratch_peak,
            arena_lower_bound: buffer_bytes + scratch_lower_bound,
            buffer_bytes,
            scratch_peak,
            scratch_lower_bound,
            rows: schedule.rows.len(),
            steps,
            programs: schedule.programs.iter().zip(runs).map(|(p, runs)| ProgramReport::new(p, runs)).collect(),
        }
    }

    /// The schedule as a Graphviz digraph: programs as nodes, the order of steps as edges.
    pub fn dot(schedule: &Schedule) -> String {
        let mut out =
            format!("digraph \"{}\" {{\n  node [shape=box, fontname=monospace];\n", schedule.name.escape_default());
        for (i, p) in schedule.programs.iter().enumerate() {
            let gflop = p.cost().flops as f64 / 1e9;
            out += &format!(
                "  p{i} [label=\"{}\\n{} launches, {gflop:.3} GFLOP\"];\n",
                p.name.escape_default(),
                p.commands.len()
            );
        }
        let mut previous = None;
        dot_steps(&schedule.steps, &mut previous, &mut out);
        out + "}\n"
    }
}

impl ProgramReport {
    fn new(p: &Program, runs: usize) -> Self {
        let cost = p.cost();
        ProgramReport {
            name: p.name.clone(),
            runs,
            launches: p.commands.len(),
            flops: cost.flops,
            bytes: cost.bytes,
            scratch_peak: p.peak,
            scratch_lower_bound: p.lower_bound,
        }
    }
}

fn count_runs(steps: &[Step], times: usize, runs: &mut [usize]) {
    for step in steps {
        match step {
            Step::Run(p) => runs[*p] += times,
            Step::Repeat { rows, body } => count_runs(body, times * rows.len(), runs),
            Step::Copy { .. } | Step::Host(_) => {}
        }
    }
}

fn describe(schedule: &Schedule, steps: &[Step], depth: usize, out: &mut Vec<String>) {
    let pad = "  ".repeat(depth);
    for step in steps {
        match step {
            Step::Run(p) => out.push(format!("{pad}run {}", schedule.programs[*p].name)),
            Step::Host(hook) => out.push(format!("{pad}host {hook}")),
            Step::Copy { from, to } => {
                let name = |id| schedule.buffers.get(id).name.clone();
                out.push(format!("{pad}copy {} -> {}", name(*from), name(*to)));
            }
            Step::Repeat { rows, body } => {
                out.push(format!("{pad}repeat rows {}..{}", rows.start, rows.end));
                describe(schedule, body, depth + 1, out);
            }
        }
    }
}

fn dot_steps(steps: &[Step], previous: &mut Option<usize>, out: &mut String) {
    for step in steps {
        match step {
            Step::Run(p) => {
                if let Some(q) = previous.replace(*p) {
                    *out += &format!("  p{q} -> p{p};\n");
                }
            }
            Step::Repeat { rows, body } => {
                let start = out.len();
                dot_steps(body, previous, out);
                let first = body.iter().find_map(|s| if let Step::Run(p) = s { Some(*p) } else { None });
                if let (Some(first), Some(last), true) = (first, *previous, out.len() >= start) {
                    *out += &format!("  p{last} -> p{first} [style=dashed, label=\"× {}\"];\n", rows.len());
                }
            }
            Step::Copy { .. } | Step::Host(_) => {}
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |b: usize| b as f64 / 1048576.0;
        writeln!(f, "{}", self.schedule)?;
        self.steps.iter().try_for_each(|s| writeln!(f, "  {s}"))?;
        writeln!(
            f,
            "\n{:<28} {:>6} {:>9} {:>12} {:>10} {:>12}",
            "program", "runs", "launches", "GFLOP", "MB", "scratch MiB"
        )?;
        for p in &self.programs {
            let (gflop, mb) = (p.flops as f64 / 1e9, p.bytes as f64 / 1e6);
            writeln!(
                f,
                "{:<28} {:>6} {:>9} {gflop:>12.4} {mb:>10.2} {:>12.2}",
                p.name,
                p.runs,
                p.launches,
                mib(p.scratch_peak)
            )?;
        }
        writeln!(f, "\nnetwork evaluations   {}", self.nfe)?;
        writeln!(f, "launches              {}", self.launches)?;
        writeln!(f, "GFLOP                 {:.3}", self.flops as f64 / 1e9)?;
        writeln!(f, "minimal MB            {:.3}", self.bytes as f64 / 1e6)?;
        writeln!(
            f,
            "arena peak            {:.3} MiB ({:.3} buffers, {:.3} scratch)",
            mib(self.arena_peak),
            mib(self.buffer_bytes),
            mib(self.scratch_peak)
        )?;
        let ratio = self.scratch_peak as f64 / self.scratch_lower_bound.max(1) as f64;
        write!(
            f,
            "lower bound           {:.3} MiB (scratch {:.3}; planned/bound {ratio:.4})",
            mib(self.arena_lower_bound),
            mib(self.scratch_lower_bound)
        )
    }
}
