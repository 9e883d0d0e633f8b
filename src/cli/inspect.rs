//! `langevin inspect`

use super::Output;
use crate::model::Model;
use crate::nn::InputSpec;
use crate::weights::Weights;
use crate::{Result, nn};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

/// Show what is in a model folder or a safetensors file
///
/// Examples:
///   langevin inspect mnist-unet
///   langevin inspect unet/ --tensors
///   langevin inspect lora.safetensors
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct InspectArgs {
    /// Model folder, embedded model, or safetensors file
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
