//! `langevin plan`

use super::Output;
use super::sample::RequestArgs;
use crate::schedule::{Report, Schedule};
use crate::{Device, Result};
use clap::{Args, Subcommand};

/// Show what a schedule will do: steps, launches, FLOPs, bytes, network evaluations, memory
///
/// Examples:
///   langevin plan sample --sampler heun --steps 18
///   langevin plan sample --model unet/ --guidance 7.5 --json
///   langevin plan sample --dot | dot -Tsvg > plan.svg
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct PlanArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// A sampling schedule; the arguments are those of `langevin sample`
    Sample {
        #[command(flatten)]
        request: RequestArgs,
        #[command(flatten)]
        view: View,
    },
}

#[derive(Args, Debug)]
struct View {
    /// Print a Graphviz digraph
    #[arg(long)]
    dot: bool,
    /// Print every launch with its place in the arena
    #[arg(long)]
    launches: bool,
}

pub fn run(args: PlanArgs, output: Output) -> Result<()> {
    match args.what {
        What::Sample { request, view } => {
            let device: Device = request.device.parse()?;
            let files = request.open()?;
            let schedule = request.request(&files)?.schedule(&files.model, device)?;
            show(&schedule, &view, output)
        }
    }
}

fn show(schedule: &Schedule, view: &View, output: Output) -> Result<()> {
    let report = Report::new(schedule);
    let json = serde_json::to_value(&report).map_err(|e| crate::Error::invalid("--json", e.to_string()))?;
    if view.dot {
        output.result(Report::dot(schedule), serde_json::json!({ "dot": Report::dot(schedule) }));
    } else if view.launches {
        output.result(launches(schedule), json);
    } else {
        output.result(report, json);
    }
    Ok(())
}

fn launches(schedule: &Schedule) -> String {
    let mut lines = Vec::new();
    for p in &schedule.programs {
        lines.push(format!("program {}", p.name));
        for c in &p.commands {
            let args: Vec<String> = c.args.iter().map(|s| format!("{:?}+{}:{}", s.space, s.offset, s.bytes)).collect();
            let (gflop, kernel) = (c.cost.flops as f64 / 1e9, c.kernel);
            lines.push(format!("  {kernel:?} [{}] {:?} {gflop:.4} GFLOP  # {}", args.join(" "), c.scalars, c.scope));
        }
    }
    lines.join("\n")
}
