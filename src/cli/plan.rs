//! `langevin plan`

use super::sample::RequestArgs;
use super::{Output, choose, storage_type};
use crate::Result;
use crate::diffusion::Prediction;
use crate::graph::Target;
use crate::methods::forward::{Backward, forward};
use crate::methods::train::{TrainLowering, train};
use crate::model::network_text;
use crate::nn::{Config, InputSpec, Network};
use crate::ops::OptimizerKind;
use crate::passes::autodiff::Recompute;
use crate::schedule::{Live, Options, Report, Schedule};
use crate::tensor::{DType, TensorType};
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

/// Show what a schedule will do: steps, launches, FLOPs, bytes, network evaluations, memory
///
/// Examples:
///   langevin plan sample --sampler heun --steps 18
///   langevin plan sample --model unet/ --guidance 7.5 --json
///   langevin plan train --network unet/ --batch 8 --recompute blocks
///   langevin plan train --network unet/ --batch 128 --device ptx:90 --dtype bf16
///   langevin plan w2sd --model unet/ --reflect-with weak/ --lambda 25
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
        request: Box<RequestArgs>,
        #[command(flatten)]
        view: View,
    },
    /// Weak-to-strong reflection; the arguments are those of `langevin sample`, --reflect being set
    W2sd {
        #[command(flatten)]
        request: Box<RequestArgs>,
        #[command(flatten)]
        view: View,
    },
    /// One evaluation of a network, with its gradients if asked for
    Forward {
        /// A config.json, a folder with one, or an embedded model
        #[arg(long)]
        network: PathBuf,
        #[arg(long, default_value_t = 1)]
        batch: usize,
        #[arg(long)]
        grad: bool,
        #[command(flatten)]
        target: TargetArgs,
        #[command(flatten)]
        view: View,
    },
    /// One training step with AdamW and one weight average
    Train {
        /// A config.json, a folder with one, or an embedded model
        #[arg(long)]
        network: PathBuf,
        #[arg(long, default_value_t = 64)]
        batch: usize,
        /// What is made again in the backward pass instead of kept for it: off, cheap (norms, activations), blocks (all); auto: cheap in 16 bits, else off
        #[arg(long, default_value = "auto")]
        recompute: String,
        #[command(flatten)]
        target: TargetArgs,
        #[command(flatten)]
        view: View,
    },
}

#[derive(Args, Debug)]
struct TargetArgs {
    /// The device that it is planned for; `ptx` and `ptx:90` are planned for as GPUs are
    #[arg(long, default_value = "auto")]
    device: String,
    /// Type of weights and activations in memory: f32, or f16 or bf16 where the device has it. Of activations, where gradients are made
    #[arg(long, default_value = "f32")]
    dtype: String,
}

#[derive(Args, Debug)]
struct View {
    /// Print a Graphviz digraph
    #[arg(long)]
    dot: bool,
    /// Print every launch with its place in the arena
    #[arg(long)]
    launches: bool,
    /// Print what memory holds where most of it is in use
    #[arg(long)]
    peak: bool,
    /// Print what was fused (sample only)
    #[arg(long)]
    fusions: bool,
}

pub fn run(args: PlanArgs, output: Output) -> Result<()> {
    match args.what {
        What::Sample { request, view } => plan_sample(&request, &view, output),
        What::W2sd { mut request, view } => {
            request.reflect.reflect = true;
            plan_sample(&request, &view, output)
        }
        What::Forward { network, batch, grad, target, view } => {
            let (target, dtype) = target.open(output)?;
            let (network, [height, width]) = open_network(&network)?;
            let built = network.build(&InputSpec::new(batch, height, width))?;
            let built = if grad { built } else { built.for_inference(dtype, &target)? };
            let grad = grad.then_some(Backward { dtype, ..Backward::default() });
            show(&forward(&built, grad, target, Options::default())?, &view, output)
        }
        What::Train { network, batch, recompute, target, view } => {
            let (target, dtype) = target.open(output)?;
            let (network, [height, width]) = open_network(&network)?;
            let built = network.build(&InputSpec::new(batch, height, width).training())?;
            let images = TensorType::f32([batch, height, width, network.channels()[0]]);
            let how = TrainLowering {
                target,
                optimizer: OptimizerKind::AdamW,
                emas: 1,
                accumulate: 1,
                bucket: None,
                backward: Backward { recompute: Recompute::parse(&recompute, dtype)?, dtype },
                options: Options::default(),
            };
            let edm = matches!(network.config(), Config::Edm(_));
            let prediction = if edm { Prediction::Sample } else { Prediction::Epsilon };
            show(&train(&built, &images, prediction, how)?.schedule, &view, output)
        }
    }
}

impl TargetArgs {
    fn open(&self, output: Output) -> Result<(Target, DType)> {
        let device = choose(&self.device, output, |_| Ok(()))?;
        Ok((device.target(), storage_type(&self.dtype)?))
    }
}

fn plan_sample(request: &RequestArgs, view: &View, output: Output) -> Result<()> {
    let files = request.open()?;
    let asked = request.request(&files)?;
    for warning in asked.reflect.iter().flat_map(|r| r.warnings(asked.guidance_scale)) {
        output.note(warning);
    }
    let device = choose(&request.device, output, |device| asked.lower(&files.model, device).map(drop))?;
    let sampling = asked.lower(&files.model, &device)?;
    if view.fusions {
        output.result(sampling.fusions.join("\n"), serde_json::json!({ "fusions": sampling.fusions }));
        return Ok(());
    }
    show(&sampling.schedule, view, output)
}

/// A network and its size, without weights.
fn open_network(path: &Path) -> Result<(Network, [usize; 2])> {
    let (text, path) = network_text(path)?;
    let network = Network::from_config(&text, path)?;
    let size = network.sample_size().unwrap_or([64, 64]);
    Ok((network, size))
}

fn show(schedule: &Schedule, view: &View, output: Output) -> Result<()> {
    let report = Report::new(schedule);
    let json = serde_json::to_value(&report).map_err(|e| crate::Error::invalid("--json", e.to_string()))?;
    if view.dot {
        output.result(Report::dot(schedule), serde_json::json!({ "dot": Report::dot(schedule) }));
    } else if view.launches {
        output.result(launches(schedule), json);
    } else if view.peak {
        output.result(peak(schedule), json);
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
            let (gflop, kernel) = (c.cost.flops as f64 / 1e9, &c.kernel);
            lines.push(format!("  {kernel:?} [{}] {:?} {gflop:.4} GFLOP  # {}", args.join(" "), c.scalars, c.scope));
        }
    }
    lines.join("\n")
}

/// The buffers, those inside of others left out; then by op and by tensor what scratch holds where the program that needs most of it
/// does so.
fn peak(schedule: &Schedule) -> String {
    let mib = |bytes: usize| bytes as f64 / 1048576.0;
    let mut lines = Vec::new();
    let mut end = 0;
    for buffer in schedule.buffers.all().iter().filter(|b| b.bytes() > 0) {
        if buffer.offset >= end {
            end = buffer.offset + buffer.bytes();
            lines.push(format!("{:>10.3} MiB  buffer {} {}", mib(buffer.bytes()), buffer.name, buffer.ty));
        }
    }
    let Some(program) = schedule.programs.iter().max_by_key(|p| p.lower_bound) else { return lines.join("\n") };
    let pass = |l: &Live| if l.backward { "backward" } else { "forward" };
    let what = |l: &Live| if l.ty.is_some() { "" } else { ", scratch" };
    let mut sums = std::collections::BTreeMap::new();
    for l in &program.live {
        *sums.entry(format!("{} of the {} pass{}", l.op, pass(l), what(l))).or_insert(0) += l.bytes;
    }
    let alive: usize = program.live.iter().map(|l| l.bytes).sum();
    let lent = mib(alive.saturating_sub(program.lower_bound));
    lines.push(format!(
        "{:>10.3} MiB  in {}; {lent:.3} of it lie in buffers not yet written",
        mib(alive),
        program.name
    ));
    lines.extend(sums.into_iter().map(|(name, bytes)| format!("{:>10.3} MiB  {name}", mib(bytes))));
    for l in &program.live {
        let ty = l.ty.as_ref().map_or("scratch".to_string(), |ty| ty.to_string());
        let [first, last] = l.span;
        lines.push(format!("{:>10.3} MiB  {} {ty}, nodes {first} to {last}  # {}", mib(l.bytes), l.op, l.scope));
    }
    lines.join("\n")
}
