//! `langevin forward`

use super::lora::LoraArgs;
use super::{Output, choose, storage_type};
use crate::graph::Graph;
use crate::methods::forward::{Backward, forward};
use crate::model::Model;
use crate::nn::{Built, InputSpec, nchw_to_nhwc, nhwc_to_nchw};
use crate::passes::autodiff::Recompute;
use crate::schedule::{Options, Session};
use crate::tensor::{DType, TensorType};
use crate::weights::{Dtype, TensorSpec, Weights, WriteOptions, write};
use crate::{Device, Error, Result};
use clap::Args;
use std::path::PathBuf;

/// Run a network once on tensors from a file
///
/// Inputs are named `sample`, `timestep` or `sigma`, `class_labels`, `encoder_hidden_states`, `text_embeds`, `time_ids`; with
/// --grad also `grad_output`. Images are NCHW. The output file holds `sample` (EDM networks: `denoised`), and with --grad
/// `d_sample` and `grad.<parameter>`, the gradients of sum(output * grad_output).
///
/// Example: langevin forward --model unet/ --inputs in.safetensors --output out.safetensors --grad
#[derive(Args, Debug)]
pub struct ForwardArgs {
    /// Model folder in diffusers' layout, or an embedded model
    #[arg(long)]
    model: PathBuf,
    #[command(flatten)]
    lora: LoraArgs,
    /// Safetensors file with the inputs
    #[arg(long)]
    inputs: PathBuf,
    /// Safetensors file to write
    #[arg(long)]
    output: PathBuf,
    #[arg(long, default_value = "auto")]
    device: String,
    /// Type of weights and activations in memory: f32, or f16 or bf16 where the device has it
    #[arg(long, default_value = "f32")]
    dtype: String,
    /// Also write the gradients of sum(output * grad_output)
    #[arg(long)]
    grad: bool,
    /// What is made again in the backward pass instead of kept for it: off, cheap (norms, activations), blocks (all), or auto
    #[arg(long, requires = "grad", default_value = "auto")]
    recompute: String,
}

pub fn run(args: ForwardArgs, output: Output) -> Result<()> {
    let dtype = storage_type(&args.dtype)?;
    let model = args.lora.add_to(Model::open(&args.model)?)?;
    let inputs = Weights::open(&args.inputs)?;
    let spec = spec_of(&inputs, &model)?;
    let built = model.build(&spec)?;
    let recompute = Recompute::parse(&args.recompute, dtype)?;
    let grad = args.grad.then_some(Backward { recompute, dtype });
    let lower = |device: &Device| {
        // With gradients weights stay f32.
        let built = if args.grad { built.clone() } else { built.clone().for_inference(dtype, &device.target())? };
        let schedule = forward(&built, grad, device.target(), Options::default())?;
        Ok((built, schedule))
    };
    let device = choose(&args.device, output, |device| lower(device).map(drop))?;
    let (built, schedule) = lower(&device)?;
    let mut session = Session::new(device, schedule)?;
    load_weights(&model, &built, &mut session)?;
    write_inputs(&model, &built, &inputs, args.grad, &mut session, output)?;
    session.run(&mut |_, _| super::check_interrupt())?;
    save_outputs(&args.output, &built, &mut session, model.is_edm(), args.grad)?;
    output.note(format!("wrote {}", args.output.display()));
    Ok(())
}

/// Writes a model's weights into buffers named `weights/…`.
pub fn load_weights(model: &Model, built: &Built, session: &mut Session) -> Result<()> {
    let buffers = session.schedule().buffers.clone();
    let places = built.parameters.iter().filter_map(|p| buffers.find(&format!("weights/{}", p.name)).map(|id| (id, p)));
    model.load(session, places)
}

/// Batch, size and tokens from the input file's shapes.
fn spec_of(inputs: &Weights, model: &Model) -> Result<InputSpec> {
    let Some(sample) = inputs.info("sample") else {
        return Err(Error::tensor(inputs.path(), "sample", "is missing"));
    };
    let [batch, channels, height, width] = sample.shape[..] else {
        let reason = format!("must be [batch, channels, height, width], is {:?}", sample.shape);
        return Err(Error::tensor(inputs.path(), "sample", reason));
    };
    let wanted = model.network().channels()[0];
    if channels != wanted {
        let reason = format!("has {channels} channels, the model takes {wanted}");
        return Err(Error::tensor(inputs.path(), "sample", reason));
    }
    let dim = |name: &str, i: usize| inputs.info(name).and_then(|t| t.shape.get(i)).copied();
    let mut spec = InputSpec::new(batch, height, width);
    spec.tokens = dim("encoder_hidden_states", 1).unwrap_or(spec.tokens);
    spec.time_ids = dim("time_ids", 1).unwrap_or(spec.time_ids);
    spec.augment = inputs.info("augment_labels").is_some();
    Ok(spec)
}

/// Fills every input of the graph from the file; notes what the file holds besides.
fn write_inputs(
    model: &Model,
    built: &Built,
    inputs: &Weights,
    grad: bool,
    session: &mut Session,
    output: Output,
) -> Result<()> {
    let graph = &built.graph;
    let mut ports: Vec<(String, TensorType)> =
        graph.inputs().map(|(v, n)| (n.to_string(), graph.ty(v).clone())).collect();
    if grad && let Some((_, out)) = graph.outputs().first() {
        ports.push(("grad_output".into(), graph.ty(*out).clone()));
    }
    for (name, ty) in &ports {
        let Some(id) = session.schedule().buffers.find(name) else { continue };
        let optional_label =
            name == "class_labels" && inputs.info(name).is_none() && inputs.info("class_onehot").is_none();
        if optional_label && model.is_edm() {
            // EDM without a label: the class after the last stands for none.
            let none = model.network().classes().unwrap_or(0) as i32;
            session.write(id, &vec![none; ty.elements()])?;
        } else {
            write_input(model, inputs, name, ty, id, session)?;
        }
    }
    for name in inputs.names().filter(|n| !ports.iter().any(|(p, _)| p == n)) {
        output.note(format!("note: `{name}` in {} is not an input of this model", inputs.path().display()));
    }
    Ok(())
}

fn write_input(
    model: &Model,
    inputs: &Weights,
    name: &str,
    ty: &TensorType,
    id: crate::schedule::BufferId,
    session: &mut Session,
) -> Result<()> {
    let Some(info) = inputs.info(name) else {
        return Err(Error::tensor(
            inputs.path(),
            name,
            format!("is missing; the model takes it as {:?}", nchw_shape(ty)),
        ));
    };
    let (shape, wanted) = (info.shape.clone(), nchw_shape(ty));
    // One number may stand for all samples.
    let spread = wanted.len() == 1 && shape.iter().product::<usize>() == 1;
    if shape != wanted && !spread {
        return Err(Error::tensor(inputs.path(), name, format!("has shape {shape:?}, the model takes {wanted:?}")));
    }
    if ty.dtype == DType::I32 {
        let mut labels = inputs.read_i64(name)?;
        labels.resize(ty.elements(), labels.first().copied().unwrap_or(0));
        check_labels(model, name, inputs, &labels)?;
        let labels: Vec<i32> = labels.iter().map(|l| *l as i32).collect();
        return session.write(id, &labels);
    }
    let mut numbers = inputs.read_f32(name)?;
    numbers.resize(ty.elements(), numbers.first().copied().unwrap_or(0.0));
    if let [b, c, h, w] = wanted[..] {
        numbers = nchw_to_nhwc(&numbers, [b, c, h, w]);
    }
    session.write(id, &numbers)
}

fn check_labels(model: &Model, name: &str, inputs: &Weights, labels: &[i64]) -> Result<()> {
    let Some(classes) = model.network().classes() else { return Ok(()) };
    let most = classes.max(model.network().null_class().map_or(0, |none| none + 1));
    match labels.iter().find(|l| **l < 0 || **l >= most as i64) {
        Some(bad) => Err(Error::tensor(inputs.path(), name, format!("class {bad} is not from 0 to {}", most - 1))),
        None => Ok(()),
    }
}

/// The shape at the doors: images are NCHW there.
fn nchw_shape(ty: &TensorType) -> Vec<usize> {
    match ty.shape[..] {
        [b, h, w, c] => vec![b, c, h, w],
        _ => ty.shape.clone(),
    }
}

fn save_outputs(path: &std::path::Path, built: &Built, session: &mut Session, edm: bool, grad: bool) -> Result<()> {
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    let graph: &Graph = &built.graph;
    let take = |name: &str, session: &mut Session| -> Result<Option<Vec<f32>>> {
        match session.schedule().buffers.find(&format!("out/{name}")) {
            Some(id) => Ok(Some(session.read::<f32>(id)?)),
            None => Ok(None),
        }
    };
    let source = graph.inputs().find(|(_, n)| n.as_ref() == "sample").map(|(v, _)| v);
    let answer = (if edm { "denoised" } else { "sample" }, built.output, graph.find_output(built.output));
    for (name, port, value) in [answer, ("d_sample", "d_sample", source)].into_iter().take(1 + grad as usize) {
        let (Some(value), Some(numbers)) = (value, take(port, session)?) else { continue };
        let shape = nchw_shape(graph.ty(value));
        let [b, c, h, w] = shape[..] else { continue };
        let numbers = nhwc_to_nchw(&numbers, [b, h, w, c]);
        tensors.push((name.to_string(), shape, numbers));
    }
    if grad {
        for p in built.parameters.iter().filter(|p| p.trainable) {
            let name = format!("grad.{}", p.name);
            let numbers = match take(&name, session)? {
                Some(stored) => p.from_arena(&stored),
                None => vec![0.0; p.elements()],
            };
            tensors.push((name, p.shape.clone(), numbers));
        }
    }
    let specs = tensors.iter().map(|(n, s, _)| TensorSpec::new(n, Dtype::F32, s.clone())).collect();
    let mut next = tensors.iter();
    write(path, specs, &WriteOptions::default(), |_, out| {
        if let Some((_, _, numbers)) = next.next() {
            out.copy_from_slice(numbers);
        }
        Ok(())
    })
}
