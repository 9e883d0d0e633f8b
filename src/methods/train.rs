//! Denoising training: noise, network, loss, backward, optimiser and averages as one schedule.
//!
//! A step is two programs over one arena: forward and backward write every gradient straight into the region `grads`; the
//! optimiser then updates `params`, its moments and the averages in one launch over the whole region.

use super::forward::Backward;
use crate::cpu::philox;
use crate::device::ALIGN;
use crate::diffusion::{NoiseLevel, Objective, Prediction};
use crate::graph::{Graph, Origin, Target, Value};
use crate::nn::{Built, Parameter};
use crate::ops::{
    Binary, Cast, GradNorm, Loss, LossKind, OneOfMany, Optimizer, OptimizerKind, Random, RandomKind, Reduce, SampleMix,
    Slice, TransposeWeights,
};
use crate::passes::autodiff::{Recompute, gradients};
use crate::passes::fuse::{Purpose, fuse};
use crate::passes::turned::{Turned, turned_before};
use crate::schedule::{BufferId, Buffers, Mark, Options, Program, Rows, Schedule, Step};
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};
use std::collections::HashMap;
use std::ops::Range;

/// Philox streams of training, far from those of dropout layers: noise on the device; on the host levels, label dropout
/// and first weights.
const NOISE: u32 = 1 << 17;
const LEVELS: u32 = NOISE + 1;
const LABELS: u32 = NOISE + 2;
const INIT: u32 = NOISE + 3;

/// The noise level of sample number `sample` since the start of the run.
pub fn noise_level(objective: &Objective, seed: u64, sample: u64) -> NoiseLevel {
    objective.draw(uniforms(seed, sample, LEVELS))
}

/// Two numbers in (0, 1] from the counter (sample, stream).
fn uniforms(seed: u64, sample: u64, stream: u32) -> [f64; 2] {
    let words = philox::block([seed as u32, (seed >> 32) as u32], sample as u32, [(sample >> 32) as u32, stream, 0]);
    let unit = |high: u32, low: u32| (((high as u64) << 21 | low as u64 >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
    [unit(words[0][0], words[1][0]), unit(words[2][0], words[3][0])]
}

/// Two numbers in (0, 1] for element `i` of parameter number `parameter`.
pub fn init_uniforms(seed: u64, parameter: u32, i: u32) -> [f64; 2] {
    uniforms(seed, (parameter as u64) << 32 | i as u64, INIT)
}

/// True with probability `p`: drop the label of that sample, for classifier-free guidance (Ho & Salimans 2022).
pub fn drops_label(seed: u64, sample: u64, p: f64) -> bool {
    uniforms(seed, sample, LABELS)[0] <= p
}

/// How a training schedule is made.
#[derive(Clone, Copy, Debug)]
pub struct TrainLowering {
    pub target: Target,
    pub optimizer: OptimizerKind,
    /// Number of weight averages.
    pub emas: usize,
    /// Parts of a step's images that are run one after the other, their gradients summed; 1: all at once. A scale of
    /// 1/parts in the row makes the sum of the parts' mean gradients that of the whole batch; parts of all processes count.
    pub accumulate: usize,
    /// Of forward and backward pass.
    pub backward: Backward,
    /// Elements of a bucket, if several processes sum their gradients; at least.
    pub bucket: Option<usize>,
    pub options: Options,
}

/// The host step before the optimiser, where processes that train together must have summed their gradients.
pub const SUMMED: u32 = 0;

/// A training schedule and the names of what the host writes and reads.
#[derive(Clone, Debug)]
pub struct Training {
    /// One run is one step; its row holds [`Optimizer`]'s numbers, then the number of the draw.
    pub schedule: Schedule,
    /// Clean images, NHWC.
    pub images: BufferId,
    /// i32 `[B, 2]`: a 64-bit seed a sample.
    pub seeds: BufferId,
    /// f32 `[B]` each: time, alpha, sigma and weight of a [`NoiseLevel`].
    pub levels: [BufferId; 4],
    /// f32 `[B]` each, where the target is neither the image nor the noise: [`NoiseLevel::target`].
    pub target: Option<[BufferId; 2]>,
    /// i32 `[B]`, if the network takes labels.
    pub labels: Option<BufferId>,
    /// f32 `[B]`: the weighted loss of each sample; `[1]`: the gradient's norm.
    pub losses: BufferId,
    pub grad_norm: BufferId,
    /// Pieces of the gradient, from the end to the start, which is the order in which the backward pass finishes them. Mark i
    /// says that piece i is finished; the host must have summed all when it is called at [`SUMMED`]. None for one process.
    pub buckets: Vec<BufferId>,
    /// Whole regions: parameters, then one for each average.
    pub params: BufferId,
    /// The optimiser's two moments.
    pub moments: [BufferId; 2],
    pub emas: Vec<BufferId>,
    /// Where each parameter lies in those regions, in elements.
    pub offsets: Vec<(Parameter, usize)>,
}

impl Training {
    /// Numbers of a row.
    pub fn columns(emas: usize) -> usize {
        Optimizer::HYPER + emas + 1
    }
}

/// The schedule of one step on images `[B, H, W, C]` for a network built for B/`accumulate` of them that answers
/// `prediction`.
pub fn train(network: &Built, images: &TensorType, prediction: Prediction, how: TrainLowering) -> Result<Training> {
    let mut buffers = Buffers::new();
    let columns = Training::columns(how.emas);
    let row = buffers.declare("row", TensorType::f32([columns]));
    let hyper = buffers.view(row, "hyper", 0, TensorType::f32([Optimizer::HYPER + how.emas]))?;
    buffers.view(row, "draw", columns - 1, TensorType::f32([1]))?;
    let mut regions = Regions::declare(network, how.emas, how.backward, &mut buffers)?;
    let part = part_of(images, how.accumulate)?;
    let graph = step_graph(network, &part, prediction, how, &regions)?;
    let (graph, turned) = turned_before(&graph, &|name| regions.is_copy(name))?;
    regions.turn(&turned, &mut buffers)?;
    let mut ports = Vec::new();
    for (value, name) in graph.inputs() {
        if buffers.find(name).is_none() {
            ports.push((name.to_string(), buffers.declare(name, graph.ty(value).clone())));
        }
    }
    let losses = buffers.declare("losses", TensorType::f32([part.shape[0]]));
    let known = buffers.clone();
    let bind = |port: &str| regions.views.get(port).copied().or_else(|| known.find(port));
    let step =
        Program::compile("forward and backward", &graph, how.target, &mut buffers, bind, how.options)?.with_nfe(1);
    let grad_norm = buffers.declare("grad_norm", TensorType::f32([1]));
    let mut programs = vec![step];
    let mut gradient = regions.grads;
    if how.accumulate > 1 {
        gradient = buffers.declare("grad_sum", regions.ty.clone());
        programs.push(sum_program([gradient, regions.grads], how, &mut buffers)?);
    }
    let (mut last, mut buckets) = (0, Vec::new());
    if let Some(bucket) = how.bucket {
        let (program, pieces) = bucketed(programs[0].clone(), &regions, gradient, bucket, how, &mut buffers)?;
        programs.push(program);
        (last, buckets) = (programs.len() - 1, pieces);
    }
    let mut body = vec![Step::Run(last)];
    if how.accumulate > 1 {
        ports.push(("losses".into(), losses));
        body = accumulation(&regions, gradient, &ports, how.accumulate, last, &mut buffers)?;
    }
    if how.bucket.is_some() {
        body.push(Step::Host(SUMMED));
    }
    programs.push(optimizer_program(&regions, gradient, how, hyper, grad_norm, &mut buffers)?);
    body.push(Step::Run(programs.len() - 1));
    if regions.copies.is_some() {
        programs.push(copies_program(&regions, how, &mut buffers)?);
        body.insert(0, Step::Run(programs.len() - 1));
    }

    let missing = |what: &str| Error::Verify { pass: "training", reason: format!("there is no buffer `{what}`") };
    // Where the host writes and reads: the whole step's, if it runs in parts.
    let port = |name: &str| buffers.find(&whole(name)).or_else(|| buffers.find(name));
    let find = |name: &str| port(name).ok_or_else(|| missing(name));
    let training = Training {
        images: find("images")?,
        seeds: find("seeds")?,
        levels: [find(time_name(network))?, find("alpha")?, find("sigma_t")?, find("weight")?],
        target: port("target_x0").zip(port("target_eps")).map(|(a, b)| [a, b]),
        labels: port("class_labels"),
        losses: find("losses")?,
        grad_norm,
        buckets,
        params: regions.params,
        moments: regions.moments,
        emas: regions.emas,
        offsets: regions.offsets,
        schedule: Schedule {
            name: "train".into(),
            buffers: buffers.clone(),
            programs,
            steps: vec![Step::Repeat { rows: 0..1, body }],
            rows: Rows { columns, data: vec![0.0; columns] },
            row: Some(row),
        },
    };
    training.schedule.verify()?;
    Ok(training)
}

/// The images of one part of a step.
fn part_of(images: &TensorType, parts: usize) -> Result<TensorType> {
    let batch = images.shape[0];
    if parts == 0 || !batch.is_multiple_of(parts) {
        return Err(Error::invalid("accumulate", format!("{parts} parts do not divide a batch of {batch}")));
    }
    let mut shape = images.shape.to_vec();
    shape[0] = batch / parts;
    Ok(TensorType::f32(shape))
}

/// The buffer with a port's contents for a whole step of several parts.
fn whole(port: &str) -> String {
    format!("step/{port}")
}

/// The steps that run all parts: each takes its share of the whole step's inputs, leaves its losses, adds its gradient. `last` is
/// the program of the last part; if it is not that of the others, it adds its gradient itself.
fn accumulation(
    regions: &Regions,
    sum: BufferId,
    ports: &[(String, BufferId)],
    parts: usize,
    last: usize,
    buffers: &mut Buffers,
) -> Result<Vec<Step>> {
    let mut wholes = Vec::new();
    for (name, id) in ports {
        let mut ty = buffers.get(*id).ty.clone();
        let (part, share) = (ty.clone(), ty.stored());
        ty.shape[0] *= parts;
        let all = buffers.declare(whole(name), ty);
        wholes.push((name == "losses", *id, all, part, share));
    }
    let mut steps = Vec::new();
    for i in 0..parts {
        let mut after = Vec::new();
        for (is_loss, id, all, part, share) in &wholes {
            let name = format!("{} {i}", buffers.get(*all).name);
            let view = buffers.view(*all, name, i * share, part.clone())?;
            match is_loss {
                true => after.push(Step::Copy { from: *id, to: view }),
                false => steps.push(Step::Copy { from: view, to: *id }),
            }
        }
        let program = if i + 1 == parts { last } else { 0 };
        steps.push(Step::Run(program));
        steps.extend(after);
        match (program, i) {
            // The first part's gradient is the sum so far.
            (0, 0) => steps.push(Step::Copy { from: regions.grads, to: sum }),
            (0, _) => steps.push(Step::Run(1)),
            _ => {}
        }
    }
    Ok(steps)
}

/// The forward and backward pass with a mark where each bucket of gradients is finished; where gradients are accumulated, after
/// the bucket is added to `gradient`. The buckets of `gradient`, in the order of the marks.
fn bucketed(
    program: Program,
    regions: &Regions,
    gradient: BufferId,
    bucket: usize,
    how: TrainLowering,
    buffers: &mut Buffers,
) -> Result<(Program, Vec<BufferId>)> {
    let (mut marks, mut sums, mut pieces) = (Vec::new(), Vec::new(), Vec::new());
    let mut after = 0;
    for (number, range) in regions.buckets(bucket).into_iter().enumerate() {
        let ty = TensorType::f32([range.len()]);
        let own = buffers.view(regions.grads, format!("bucket {number}"), range.start, ty.clone())?;
        // Not before the bucket in front of it: all processes must come to one order, also where their kernels differ.
        after = program.done_with(buffers.get(own)).max(after);
        marks.push(Mark { after, number });
        if gradient == regions.grads {
            pieces.push(own);
        } else {
            let sum = buffers.view(gradient, format!("bucket sum {number}"), range.start, ty)?;
            sums.push(sum_program([sum, own], how, buffers)?);
            pieces.push(sum);
        }
    }
    let sums = sums.iter().map(Some).chain(std::iter::repeat(None));
    Ok((program.with_marks(marks.into_iter().zip(sums)), pieces))
}

/// sum ← sum + grads, in place.
fn sum_program([sum, grads]: [BufferId; 2], how: TrainLowering, buffers: &mut Buffers) -> Result<Program> {
    let mut g = Graph::new();
    let ty = buffers.get(sum).ty.clone();
    let [a, b] = ["sum", "grads"].map(|name| g.input(name, ty.clone()));
    let total = g.apply(Binary::Add, &[a, b])?;
    g.output("new sum", total);
    let bind = |port: &str| Some(if port == "grads" { grads } else { sum });
    Program::compile("sum of gradients", &g, how.target, buffers, bind, how.options)
}

/// Writes the copies of parameters in 16 bits, by one launch, and by another those that are transposed.
fn copies_program(regions: &Regions, how: TrainLowering, buffers: &mut Buffers) -> Result<Program> {
    let (mut g, mut ports) = (Graph::new(), HashMap::new());
    if let Some([masters, copies]) = regions.copies {
        let weights = g.input("masters", buffers.get(masters).ty.clone());
        let narrow = g.apply(Cast(how.backward.dtype), &[weights])?;
        g.output("copies", narrow);
        ports.extend([("masters", masters), ("copies", copies)]);
        if let Some((op, turned)) = &regions.turned {
            let table = op.table(&mut g)?;
            let all = g.apply(op.clone(), &[narrow, table])?;
            g.output("turned", all);
            ports.insert("turned", *turned);
        }
    }
    Program::compile("copies of weights", &g, how.target, buffers, |port| ports.get(port).copied(), how.options)
}

/// Numbers of a parameter that is small: biases and what norms multiply by. Where memory is dearer than time, only these have copies for the
/// whole step: each would take as long in a launch of its own as all of them.
const SMALL: usize = 1 << 16;

/// Regions that hold all parameters one after the other.
pub(super) struct Regions {
    pub params: BufferId,
    pub grads: BufferId,
    /// In a step with numbers of 16 bits: `params`, or its start where the small ones lie, and a copy of it in 16 bits.
    copies: Option<[BufferId; 2]>,
    /// How copies are transposed, and where.
    turned: Option<(TransposeWeights, BufferId)>,
    moments: [BufferId; 2],
    emas: Vec<BufferId>,
    ty: TensorType,
    /// Parameters and gradients by their ports' names.
    pub views: HashMap<String, BufferId>,
    pub offsets: Vec<(Parameter, usize)>,
}

impl Regions {
    pub fn declare(network: &Built, emas: usize, backward: Backward, buffers: &mut Buffers) -> Result<Regions> {
        let Backward { dtype, recompute } = backward;
        let mut offsets = Vec::new();
        let (mut total, mut copied) = (0, 0);
        let mut parameters: Vec<&Parameter> = network.parameters.iter().filter(|p| p.trainable).collect();
        let has_copy = |p: &Parameter| dtype != DType::F32 && (recompute != Recompute::Blocks || p.ty.stored() < SMALL);
        parameters.sort_by_key(|p| !has_copy(p));
        for p in parameters {
            offsets.push((p.clone(), total));
            // Where every device can bind it as it lies, and its copy.
            total += p.ty.stored().next_multiple_of(ALIGN / dtype.size());
            if has_copy(p) {
                copied = total;
            }
        }
        let ty = TensorType::f32([total]);
        let params = buffers.declare("params", ty.clone());
        let grads = buffers.declare("grads", ty.clone());
        let moments = ["m", "v"].map(|name| buffers.declare(name, ty.clone()));
        let emas = (0..emas).map(|i| buffers.declare(format!("ema{i}"), ty.clone())).collect();
        let mut views = HashMap::new();
        let mut copies = None;
        if copied > 0 {
            let masters = buffers.view(params, "masters", 0, TensorType::f32([copied]))?;
            copies = Some([masters, buffers.declare("copies", TensorType { dtype, ..TensorType::f32([copied]) })]);
        }
        for (p, at) in &offsets {
            if let Some([_, copies]) = copies.filter(|_| *at < copied) {
                let (name, ty) = (copy_name(&p.name), TensorType { dtype, ..p.ty.clone() });
                views.insert(name.clone(), buffers.view(copies, name, *at, ty)?);
            }
            let grad = format!("grad.{}", p.name);
            views.insert(p.name.clone(), buffers.view(params, &p.name, *at, p.ty.clone())?);
            views.insert(grad.clone(), buffers.view(grads, &grad, *at, p.ty.clone())?);
        }
        // What is not trained lies outside.
        for p in network.parameters.iter().filter(|p| !p.trainable) {
            views.insert(p.name.clone(), buffers.declare(&p.name, p.ty.clone()));
        }
        Ok(Regions { params, grads, copies, turned: None, moments, emas, ty, views, offsets })
    }

    /// True for the name of a parameter's copy.
    fn is_copy(&self, name: &str) -> bool {
        self.offsets.iter().any(|(p, _)| copy_name(&p.name) == name)
    }

    /// Declares a region of copies that are transposed once a step.
    fn turn(&mut self, all: &[Turned], buffers: &mut Buffers) -> Result<()> {
        let (Some([_, copies]), Some(first)) = (self.copies, all.first()) else { return Ok(()) };
        let (mut weights, mut to) = (vec![], 0);
        for turned in all {
            let from = buffers.get(self.views[&turned.of]).offset - buffers.get(copies).offset;
            let [n, c] = [turned.ty.rows() / turned.taps, turned.ty.cols()];
            weights.push(OneOfMany { from: from / turned.ty.dtype.size(), to, taps: turned.taps, c, n });
            to += turned.ty.stored().next_multiple_of(ALIGN / turned.ty.dtype.size());
        }
        let dtype = first.ty.dtype;
        let region = buffers.declare("turned", TensorType { dtype, ..TensorType::f32([to]) });
        for (turned, at) in all.iter().zip(&weights) {
            self.views.insert(turned.name.clone(), buffers.view(region, &turned.name, at.to, turned.ty.clone())?);
        }
        self.turned = Some((TransposeWeights { weights, elements: to }, region));
        Ok(())
    }

    /// Cuts a region between parameters into pieces of `bucket` elements or more, from its end to its start. What remains is
    /// the piece at the start: the backward pass ends with it, and no time is left to sum it in.
    fn buckets(&self, bucket: usize) -> Vec<Range<usize>> {
        let (mut pieces, mut end) = (Vec::new(), self.ty.elements());
        for (_, at) in self.offsets.iter().rev() {
            if end - at >= bucket || *at == 0 {
                pieces.push(*at..end);
                end = *at;
            }
        }
        pieces
    }
}

/// What a parameter's copy in 16 bits is called.
fn copy_name(parameter: &str) -> String {
    format!("copy of {parameter}")
}

/// What the network calls its noise level.
fn time_name(network: &Built) -> &'static str {
    if network.graph.inputs().any(|(_, name)| name.as_ref() == "sigma") { "sigma" } else { "timestep" }
}

/// Noise, network, loss and all gradients.
fn step_graph(
    network: &Built,
    images: &TensorType,
    prediction: Prediction,
    how: TrainLowering,
    regions: &Regions,
) -> Result<Graph> {
    let batch = images.shape[0];
    let inner = fuse(&network.graph, Purpose::Training)?.0;
    let mut g = Graph::new();
    let x0 = g.input("images", images.clone());
    let [seeds, draw] =
        [("seeds", TensorType::i32([batch, 2])), ("draw", TensorType::f32([1]))].map(|(n, ty)| g.input(n, ty));
    let [alpha, sigma, weight] = ["alpha", "sigma_t", "weight"].map(|n| g.input(n, TensorType::f32([batch])));
    let noise = Random { kind: RandomKind::Normal, shape: images.shape.clone(), stream: NOISE };
    let eps = g.apply(noise, &[seeds, draw])?;
    let x = g.apply(SampleMix { terms: 2 }, &[alpha, x0, sigma, eps])?;
    let mut ports = HashMap::from([("sample", x), ("seeds", seeds), ("draw", draw)]);
    for (value, name) in inner.inputs() {
        let name = name.as_ref();
        if !ports.contains_key(name) {
            let port = g.input(name, inner.ty(value).clone());
            ports.insert(name, port);
        }
    }
    let map = g.inline(&inner, |origin| match origin {
        Origin::Input(name) => ports.get(name.as_ref()).copied(),
        _ => None,
    })?;
    let Some((_, out)) = inner.outputs().first() else {
        return Err(Error::Verify { pass: "training", reason: "the network has no output".into() });
    };
    let mut out = map[out.index()];
    if g.ty(out).cols() != images.cols() {
        out = g.apply(Slice { axis: 3, start: 0, len: images.cols() }, &[out])?;
    }
    let target = match prediction {
        Prediction::Sample => x0,
        Prediction::Epsilon => eps,
        Prediction::Velocity | Prediction::Flow => {
            let [a, b] = ["target_x0", "target_eps"].map(|n| g.input(n, TensorType::f32([batch])));
            g.apply(SampleMix { terms: 2 }, &[a, x0, b, eps])?
        }
    };
    let losses = g.apply(Loss { kind: LossKind::Mse }, &[out, target, weight])?;
    let loss = g.apply(Reduce::mean_middle(1, batch, 1).to_shape([1]), &[losses])?;
    g.output("losses", losses);
    let one = g.constant(TensorType::f32([1]), vec![1.0])?;
    let trainable: HashMap<&str, ()> =
        network.parameters.iter().filter(|p| p.trainable).map(|p| (p.name.as_str(), ())).collect();
    let wrt: Vec<(Value, String)> = g
        .parameters()
        .filter(|(_, n)| trainable.contains_key(n.as_ref()))
        .map(|(v, n)| (v, format!("grad.{n}")))
        .collect();
    let values: Vec<Value> = wrt.iter().map(|(v, _)| *v).collect();
    let grads = gradients(&mut g, &[(loss, one)], &values, how.backward.recompute)?;
    for ((_, name), grad) in wrt.into_iter().zip(grads) {
        if let Some(grad) = grad {
            g.output(name, grad);
        }
    }
    let copy = |name: &str| Some(copy_name(name)).filter(|copy| regions.views.contains_key(copy));
    how.backward.finish(&g, &how.target, &copy)
}

pub(super) fn optimizer_program(
    regions: &Regions,
    gradient: BufferId,
    how: TrainLowering,
    hyper: BufferId,
    grad_norm: BufferId,
    buffers: &mut Buffers,
) -> Result<Program> {
    let mut g = Graph::new();
    let mut ports = HashMap::new();
    let mut input = |g: &mut Graph, name: String, id: BufferId, ty: &TensorType| {
        ports.insert(name.clone(), id);
        g.input(name, ty.clone())
    };
    let params = input(&mut g, "params".into(), regions.params, &regions.ty);
    let grads = input(&mut g, "grads".into(), gradient, &regions.ty);
    let mut inputs = vec![params, grads];
    for (name, id) in ["m", "v"].into_iter().zip(regions.moments) {
        inputs.push(input(&mut g, name.into(), id, &regions.ty));
    }
    for (i, id) in regions.emas.iter().enumerate() {
        inputs.push(input(&mut g, format!("ema{i}"), *id, &regions.ty));
    }
    let hyper_ty = TensorType::f32([Optimizer::HYPER + how.emas]);
    inputs.push(input(&mut g, "hyper".into(), hyper, &hyper_ty));
    let norm = g.apply(GradNorm, &[grads])?;
    inputs.push(norm);
    let outputs = g.apply_all(Optimizer { kind: how.optimizer, emas: how.emas }, &inputs)?;
    g.output("grad_norm", norm);
    let mut targets = vec![("new params".to_string(), regions.params)];
    targets.extend(["new m", "new v"].map(String::from).into_iter().zip(regions.moments));
    targets.extend(regions.emas.iter().enumerate().map(|(i, id)| (format!("new ema{i}"), *id)));
    for ((name, id), value) in targets.into_iter().zip(outputs) {
        g.output(&name, value);
        ports.insert(name, id);
    }
    ports.insert("grad_norm".into(), grad_norm);
    Program::compile("optimiser", &g, how.target, buffers, |port| ports.get(port).copied(), how.options)
}
