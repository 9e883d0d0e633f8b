//! `langevin inspect`

use super::Output;
use crate::model::Model;
use crate::nn::InputSpec;
use crate::run::{Average, State, Status, bin_name, is_run, plot};
use crate::weights::Weights;
use crate::{Result, nn};
use clap::Args;
use serde_json::json;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Show what is in a run's folder, a model folder or a safetensors file
///
/// Of a run: how far it is, what its log says last, which settings are not the defaults. Its plots, log.svg, are drawn anew.
/// With --tensors or --graph: of the model in it.
///
/// Examples:
///   langevin inspect runs/mnist
///   langevin inspect mnist-unet
///   langevin inspect unet/ --tensors
///   langevin inspect lora.safetensors
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct InspectArgs {
    /// Run folder, model folder, embedded model, or safetensors file
    path: PathBuf,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Print the network's graph for one sample, op by op
    #[arg(long)]
    graph: bool,
}

pub fn run(args: InspectArgs, output: Output) -> Result<()> {
    if args.path.is_file() {
        let weights = Weights::open(&args.path)?;
        let (text, json) = describe_weights(&weights, true);
        output.result(text, json);
        return Ok(());
    }
    if is_run(&args.path) && !args.tensors && !args.graph {
        return inspect_run(&args.path, output);
    }
    let model = Model::open(&args.path)?;
    let network = model.network();
    let [height, width] = network.sample_size().unwrap_or([64, 64]);
    let built = model.build(&InputSpec::new(1, height, width))?;
    if args.graph {
        output.result(built.graph.print(), json!({ "graph": built.graph.print() }));
        return Ok(());
    }
    let (tensors, tensors_json) = describe_weights(model.weights(), args.tensors);
    let parameters: usize = built.parameters.iter().map(nn::Parameter::elements).sum();
    let cost = built.graph.cost();
    let [inputs, outputs] = network.channels();
    let classes = network.classes().map_or("no".to_string(), |n| n.to_string());
    let text = format!(
        "{} at {height}x{width}, {inputs} channels in, {outputs} out, {classes} classes\n\
         {parameters} parameters, {} ops, {:.3} GFLOP a sample\n{tensors}",
        network.class_name(),
        built.graph.nodes().len(),
        cost.flops as f64 / 1e9,
    );
    let json = json!({
        "class": network.class_name(), "height": height, "width": width, "in_channels": inputs, "out_channels": outputs,
        "classes": network.classes(), "parameters": parameters, "ops": built.graph.nodes().len(), "flops": cost.flops,
        "weights": tensors_json,
    });
    output.result(text, json);
    Ok(())
}

fn inspect_run(path: &Path, output: Output) -> Result<()> {
    let status = Status::read(path)?;
    let plots = path.join("log.svg");
    if status.summary.last.is_some()
        && let Err(e) = plot(path, &[path])
    {
        // Someone else's folder can be looked into all the same.
        output.note(format!("note: the plots are not drawn anew: {e}"));
    }
    let plots = plots.is_file().then_some(plots);
    let mut json = serde_json::to_value(&status).map_err(|e| crate::Error::format(path, e.to_string()))?;
    json["plots"] = json!(plots);
    output.result(describe_run(&status, plots.as_deref()), json);
    Ok(())
}

fn describe_run(status: &Status, plots: Option<&Path>) -> String {
    let (summary, settings) = (&status.summary, status.summary.settings());
    let step = summary.last.as_ref().map_or(0, |e| e.step);
    let state = match status.state {
        State::Running => "running",
        State::Stopped => "stopped; `langevin train --resume` goes on",
        State::Finished => "finished",
    };
    let mut lines = vec![("run", summary.path.display().to_string()), ("state", state.into())];
    let left = status.seconds_left.map(|s| format!(", {} left", duration(s))).unwrap_or_default();
    lines.push(("step", format!("{step} of {}{left}", summary.steps)));
    lines.push((
        "network",
        match &status.network {
            Some(n) => format!("{}, {} parameters ({})", n.class, n.parameters, settings.network),
            None => settings.network.clone(),
        },
    ));
    let data = status.data.as_ref().map(|id| format!("{id}: ")).unwrap_or_default();
    lines.push(("data", data + &settings.data));
    lines.extend(status.summary.last.iter().flat_map(|e| {
        let best = summary.best.iter().map(|b| format!("{:.5}, least {:.5} at step {}", e.loss, b.loss, b.step));
        let wait = 100.0 * status.wait_share.unwrap_or(0.0);
        [
            ("loss", best.collect()),
            ("grad norm", format!("{:.5}", e.grad_norm)),
            ("lr", format!("{:.3e}", e.lr)),
            ("images/s", format!("{:.1}; {wait:.2} % of a step waits for data", e.images_per_second)),
            ("memory", format!("{:.0} MiB", e.memory_mib)),
        ]
    }));
    let checkpoints: Vec<String> = status.checkpoints.iter().map(|step| step.to_string()).collect();
    lines.push(("checkpoints", or_none(checkpoints.join(", "))));
    lines.extend(status.averages.iter().map(|average| ("average", describe_average(average))));
    lines.extend(status.kept_models.iter().map(|path| ("kept model", path.display().to_string())));
    lines.extend(plots.map(|path| ("plots", path.display().to_string())));
    lines.extend(status.grid.iter().map(|path| ("newest grid", path.display().to_string())));
    let mut text = lines.iter().fold(String::new(), |text, (name, value)| text + &format!("{name:12} {value}\n"));
    if let Some(entry) = &summary.last {
        text += "\nln(alpha/sigma)        loss\n";
        for (i, loss) in entry.loss_bins.iter().enumerate() {
            let loss = loss.map_or_else(|| "-".to_string(), |loss| format!("{loss:.5}"));
            let _ = writeln!(text, "{:15} {loss:>11}", bin_name(i));
        }
    }
    if !status.changed.is_empty() {
        text += "\nsettings that are not the defaults\n";
        for changed in &status.changed {
            let _ = writeln!(text, "{} = {}  ({})", changed.key, changed.value, changed.default);
        }
    }
    text.trim_end().to_owned()
}

fn describe_average(average: &Average) -> String {
    let kind = match (average.half_life, average.std) {
        (Some(images), _) => format!("half-life {images} images"),
        (None, Some(std)) => format!("power function of width {std}"),
        (None, None) => String::new(),
    };
    let model = average.model.as_ref().map_or("not exported yet".to_string(), |path| path.display().to_string());
    format!("{kind}: {model}")
}

fn or_none(text: String) -> String {
    if text.is_empty() { "none".into() } else { text }
}

/// Seconds for people: the two largest units.
fn duration(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match (s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60) {
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, s) => format!("{m} min {s} s"),
        (0, h, m, _) => format!("{h} h {m} min"),
        (d, h, ..) => format!("{d} d {h} h"),
    }
}

fn describe_weights(weights: &Weights, list: bool) -> (String, serde_json::Value) {
    let mut lines = vec![format!(
        "{} tensors, {:.2} MB in {}",
        weights.names().len(),
        weights.byte_count() as f64 / 1e6,
        weights.path().display()
    )];
    let mut tensors = Vec::new();
    for name in weights.names() {
        let Some(info) = weights.info(name) else { continue };
        let dtype = format!("{:?}", info.dtype);
        if list {
            lines.push(format!("  {name}  {dtype} {:?}", info.shape));
        }
        tensors.push(json!({ "name": name, "dtype": dtype, "shape": info.shape }));
    }
    (lines.join("\n"), json!({ "bytes": weights.byte_count(), "metadata": weights.metadata(), "tensors": tensors }))
}
