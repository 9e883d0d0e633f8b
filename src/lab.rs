//! The kernel lab: every op with the shapes that real networks give it, checked against the processor and timed.

use crate::graph::{Graph, Op, Signature, Value};
use crate::nn::{InputSpec, Network};
use crate::ops::{
    Activation, Affine, Attention, Cast, Conv2d, DiffusionUpdate, Epilogue, GradNorm, GroupNorm, LayerNorm, Linear,
    Optimizer, OptimizerKind,
};
use crate::passes::autodiff::{Recompute, gradients};
use crate::passes::fuse::{Purpose, fuse};
use crate::passes::once::once;
use crate::ptx::Counters;
use crate::schedule::{Options, Program, Schedule, Session, Step};
use crate::tensor::{DType, TensorType, to_layout};
use crate::{Device, Error, Result};
use half::{bf16, f16};
use std::collections::HashMap;
use std::sync::Arc;

/// Where shapes come from: a name, what it is, the network's configuration, the side of its samples.
const MODELS: &[(&str, &str, &str, usize)] = &[
    ("sd15", "Stable Diffusion 1.5, 512 pixels", crate::bench::SD15, 64),
    ("sdxl", "Stable Diffusion XL, 1024 pixels", SDXL, 128),
    ("dit-xl-2", "DiT-XL/2, 256 pixels", crate::bench::DIT_XL_2, 32),
    ("edm-cifar10", "EDM's DDPM++ for CIFAR-10", crate::bench::EDM_CIFAR10, 32),
    ("ddpm-cifar10", "ddpm-cifar10", crate::bench::DDPM_CIFAR10, 32),
    ("tiny-unet", "a UNet for devices that are slow", TINY_UNET, 8),
    ("tiny-dit", "a DiT for devices that are slow", TINY_DIT, 8),
];

/// Ops of samplers and training steps, which stand in no network.
const STEPS: &str = "steps";
/// Ops that `benches/peers/pytorch_gpu.py` measures in PyTorch, with the same shapes.
const PEERS: &str = "peers";

const SDXL: &str = r#"{"_class_name": "UNet2DConditionModel", "sample_size": 128, "in_channels": 4, "out_channels": 4,
 "block_out_channels": [320, 640, 1280], "layers_per_block": 2, "cross_attention_dim": 2048,
 "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
 "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "transformer_layers_per_block": [1, 2, 10],
 "attention_head_dim": [5, 10, 20], "use_linear_projection": true, "addition_embed_type": "text_time",
 "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816}"#;

const TINY_UNET: &str = r#"{"_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 3, "out_channels": 3,
 "block_out_channels": [16, 32], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
 "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 8}"#;

const TINY_DIT: &str = r#"{"_class_name": "DiTTransformer2DModel", "sample_size": 8, "in_channels": 4, "out_channels": 8,
 "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 24, "patch_size": 2, "num_embeds_ada_norm": 10}"#;

/// An op with the types of its inputs and outputs.
#[derive(Clone, Debug)]
pub struct Case {
    pub op: Arc<dyn Op>,
    pub io: Signature,
    /// The network that gives it these shapes first.
    pub model: &'static str,
    /// How often it stands there.
    pub count: usize,
}

impl Case {
    /// Its inputs and outputs in words.
    pub fn shapes(&self) -> String {
        let list = |types: &[TensorType]| types.iter().map(|t| t.to_string()).collect::<Vec<_>>().join(" ");
        format!("{} -> {}", list(&self.io.inputs), list(&self.io.outputs))
    }
}

/// The names that [`cases`] takes.
pub fn models() -> Vec<(&'static str, &'static str)> {
    let networks = MODELS.iter().map(|(name, what, ..)| (*name, *what));
    let others = [(STEPS, "steps of samplers and optimisers"), (PEERS, "what benches/peers measure in PyTorch")];
    networks.chain(others).collect()
}

/// All different ops of a network's forward, or of its training step, for a batch of samples.
///
/// # Errors
/// [`Error::Invalid`] for a name that is none of [`models`].
pub fn cases(model: &str, batch: usize, training: bool) -> Result<Vec<Case>> {
    match (model, MODELS.iter().find(|m| m.0 == model)) {
        (STEPS, _) => steps(batch),
        (PEERS, _) => Ok(cases_of(&peers(training)?, PEERS)),
        (_, Some(&(model, _, config, side))) => {
            Ok(cases_of(&graph(config, model, InputSpec::new(batch, side, side), training)?, model))
        }
        _ => {
            let names: Vec<&str> = models().iter().map(|m| m.0).collect();
            Err(Error::invalid("--model", format!("`{model}` is none of {}", names.join(", "))))
        }
    }
}

/// All different ops of a graph.
fn cases_of(graph: &Graph, model: &'static str) -> Vec<Case> {
    let (mut cases, mut known): (Vec<Case>, HashMap<String, usize>) = Default::default();
    for node in graph.nodes().iter().filter(|n| n.op.view(&graph.signature(n)).is_none()) {
        let io = graph.signature(node);
        let number = *known.entry(format!("{:?} {io:?}", node.op)).or_insert(cases.len());
        match cases.get_mut(number) {
            Some(case) => case.count += 1,
            None => cases.push(Case { op: node.op.clone(), io, model, count: 1 }),
        }
    }
    cases
}

fn graph(config: &str, model: &str, spec: InputSpec, training: bool) -> Result<Graph> {
    let built = Network::from_config(config, model)?.build(&if training { spec.training() } else { spec })?;
    if !training {
        return once(&fuse(&built.graph, Purpose::Inference)?.0);
    }
    let mut graph = fuse(&built.graph, Purpose::Training)?.0;
    let Some((_, out)) = graph.outputs().iter().find(|(name, _)| name.as_ref() == built.output).cloned() else {
        return Err(Error::Verify { pass: "the kernel lab", reason: format!("{model} has no output") });
    };
    let seed = graph.input("dy", graph.ty(out).clone());
    let parameters: Vec<Value> = graph.parameters().map(|(v, _)| v).collect();
    gradients(&mut graph, &[(out, seed)], &parameters, Recompute::Off)?;
    Ok(fuse(&graph, Purpose::Inference)?.0)
}

/// Products, 3×3 convolutions, attention, norms, and their gradients if `training`.
fn peers(training: bool) -> Result<Graph> {
    let mut g = Graph::new();
    let mut outputs = vec![];
    let mut apply = |g: &mut Graph, op: Arc<dyn Op>, inputs: &[TensorType]| -> Result<()> {
        let at = outputs.len();
        let named = inputs.iter().enumerate().map(|(i, ty)| g.parameter(format!("in{at}.{i}"), ty.clone()));
        let inputs: Vec<Value> = named.collect();
        outputs.push(g.apply_arc(op, &inputs)?[0]);
        Ok(())
    };
    let f32s = |shape: &[usize]| TensorType::f32(shape);
    let plain = Epilogue::default();
    for [m, k, n] in [
        [4096, 4096, 4096],
        [8192, 8192, 8192],
        [1024, 1152, 3456],
        [1024, 1152, 4608],
        [1024, 4608, 1152],
        [16384, 320, 2560],
    ] {
        apply(&mut g, Arc::new(Linear(plain)), &[f32s(&[m, k]), TensorType::panels([k, n])])?;
    }
    for [batch, side, c] in
        [[4, 64, 320], [4, 32, 640], [4, 16, 1280], [4, 8, 1280], [64, 32, 128], [64, 32, 256], [64, 16, 256]]
    {
        let inputs = [f32s(&[batch, side, side, c]), TensorType::panels([9, c, c])];
        apply(&mut g, Arc::new(Conv2d::same(3, plain)), &inputs)?;
    }
    for [batch, heads, tokens, size] in [
        [4, 8, 4096, 40],
        [4, 8, 1024, 80],
        [4, 8, 256, 160],
        [4, 10, 4096, 64],
        [4, 16, 256, 72],
        [2, 16, 4096, 128],
        [4, 4, 256, 256],
    ] {
        let scale = (size as f32).powf(-0.5);
        let inputs = [0; 3].map(|_| f32s(&[batch, tokens, heads * size]));
        apply(&mut g, Arc::new(Attention { heads, scale }), &inputs)?;
    }
    for [batch, side, c] in [[4, 64, 320], [4, 32, 640], [64, 32, 128]] {
        let norm = GroupNorm { groups: 32, eps: 1e-5, activation: Activation::Silu, modulate: false };
        apply(&mut g, Arc::new(norm), &[f32s(&[batch, side, side, c]), f32s(&[c]), f32s(&[c])])?;
    }
    let norm = LayerNorm { eps: 1e-5, affine: false, modulate: true, first: [0; 2] };
    apply(&mut g, Arc::new(norm), &[f32s(&[64, 256, 1152]), f32s(&[64, 1152]), f32s(&[64, 1152])])?;
    for (i, y) in outputs.iter().enumerate() {
        g.output(format!("out{i}"), *y);
    }
    if training {
        let seeds: Vec<(Value, Value)> =
            outputs.iter().map(|y| (*y, g.input(format!("dy{y:?}"), g.ty(*y).clone()))).collect();
        let parameters: Vec<Value> = g.parameters().map(|(v, _)| v).collect();
        gradients(&mut g, &seeds, &parameters, Recompute::Off)?;
    }
    Ok(g)
}

/// A step of a sampler on latents of 64×64×4, and one of an optimiser on 35.7 million weights: as many as ddpm-cifar10 has.
fn steps(batch: usize) -> Result<Vec<Case>> {
    let (latents, weights) = (TensorType::f32([batch, 64, 64, 4]), TensorType::f32([35_746_307]));
    let update = |terms: usize| {
        let inputs = [TensorType::f32([terms])].into_iter().chain((0..terms).map(|_| latents.clone()));
        case(DiffusionUpdate { terms, clip: None }, inputs.collect())
    };
    let optimizer = |emas: usize| {
        let state = (0..4 + emas).map(|_| weights.clone());
        let inputs = state.chain([TensorType::f32([Optimizer::HYPER + emas]), TensorType::f32([1])]);
        case(Optimizer { kind: OptimizerKind::AdamW, emas }, inputs.collect())
    };
    let norm = case(GradNorm, vec![weights.clone()]);
    [update(2), update(3), norm, optimizer(0), optimizer(1)].into_iter().collect()
}

fn case(op: impl Op, inputs: Vec<TensorType>) -> Result<Case> {
    let outputs = op.infer(&inputs.iter().collect::<Vec<_>>())?;
    Ok(Case { op: Arc::new(op), io: Signature { inputs, outputs }, model: STEPS, count: 1 })
}

/// How near a device comes to the processor.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Parity {
    /// ‖device − processor‖ / ‖processor‖, of the output for which it is largest.
    pub error: f64,
    /// The most that is right for the type.
    pub bound: f64,
    pub worst: Worst,
}

/// The element that is farthest off.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Worst {
    pub output: usize,
    pub element: usize,
    pub got: f32,
    pub expected: f32,
}

impl Parity {
    /// True if the error is within its bound.
    pub fn holds(&self) -> bool {
        self.error <= self.bound
    }
}

/// Runs a case on `device` with numbers stored as `dtype`, and on the CPU device in f32 with the same numbers. The CPU device is itself
/// held against f64 by the tests of ops. `None` if the op does not take that type.
///
/// # Errors
/// What lowering and running give.
pub fn check(case: &Case, device: &Device, dtype: DType) -> Result<Option<Parity>> {
    if dtype != DType::F32 && !case.op.takes(dtype, &device.target()) {
        return Ok(None);
    }
    let expected = outputs(case, &Device::Cpu, DType::F32, dtype)?;
    let got = outputs(case, device, dtype, dtype)?;
    let bound = match dtype {
        DType::F16 => 2e-3,
        DType::Bf16 => 1.6e-2,
        DType::F32 | DType::I32 => 1e-4,
    };
    let mut parity = Parity { error: 0.0, bound, worst: Worst::default() };
    for (output, (got, expected)) in got.iter().zip(&expected).enumerate() {
        let off = |(g, e): (&f32, &f32)| (f64::from(*g) - f64::from(*e)).abs();
        let norm = |squares: f64| squares.sqrt();
        let difference = norm(got.iter().zip(expected).map(|p| off(p).powi(2)).sum());
        let size = norm(expected.iter().map(|e| f64::from(*e).powi(2)).sum());
        // What is no number is off without bound.
        let error = if difference.is_finite() { difference / size.max(1e-6) } else { f64::INFINITY };
        if error >= parity.error {
            let far = |(_, p): &(usize, (&f32, &f32))| if off(*p).is_nan() { f64::INFINITY } else { off(*p) };
            let worst = got.iter().zip(expected).enumerate().max_by(|a, b| far(a).total_cmp(&far(b)));
            parity.error = error;
            if let Some((element, (got, expected))) = worst {
                parity.worst = Worst { output, element, got: *got, expected: *expected };
            }
        }
    }
    Ok(Some(parity))
}

/// The outputs of a case whose numbers are stored as `dtype`, as f32; its inputs are rounded to `rounded` first.
fn outputs(case: &Case, device: &Device, dtype: DType, rounded: DType) -> Result<Vec<Vec<f32>>> {
    let mut g = Graph::new();
    let mut inputs = Vec::new();
    for (i, ty) in case.io.inputs.iter().enumerate() {
        let x = g.input(format!("in{i}"), ty.clone());
        let narrow = dtype != DType::F32 && ty.dtype == DType::F32 && !case.op.stays_f32(i);
        inputs.push(if narrow { g.apply(Cast(dtype), &[x])? } else { x });
    }
    for (i, y) in g.apply_arc(case.op.clone(), &inputs)?.into_iter().enumerate() {
        let wide = matches!(g.ty(y).dtype, DType::F32 | DType::I32);
        let y = if wide { y } else { g.apply(Cast(DType::F32), &[y])? };
        g.output(format!("out{i}"), y);
    }
    let mut session = Session::new(device.clone(), Schedule::once("case", &g, device.target(), Options::default())?)?;
    fill(&mut session, case, rounded)?;
    session.run(&mut |_, _| Ok(()))?;
    let buffers = session.schedule().buffers.clone();
    let output = |i: usize| {
        let Some(id) = buffers.find(&format!("out{i}")) else { return Ok(vec![]) };
        match buffers.get(id).ty.dtype {
            DType::I32 => Ok(session.read::<i32>(id)?.into_iter().map(|v| v as f32).collect()),
            _ => session.read::<f32>(id),
        }
    };
    (0..case.io.outputs.len()).map(output).collect()
}

/// Writes numbers to all inputs `in0`, `in1`, …, in the types that they have: uniform in ±1, rounded to `rounded`, the padding of
/// weights zero; whole numbers are 0, which is a row of every table.
fn fill(session: &mut Session, case: &Case, rounded: DType) -> Result<()> {
    let buffers = session.schedule().buffers.clone();
    for i in 0..case.io.inputs.len() {
        let Some(id) = buffers.find(&format!("in{i}")) else { continue };
        let ty = &buffers.get(id).ty;
        if ty.dtype == DType::I32 {
            continue;
        }
        let number = |k: usize| {
            let bits = (k as u32 ^ (i as u32) << 27).wrapping_mul(0x9E37_79B9) ^ 0x85EB_CA6B;
            let mixed = (bits ^ bits >> 15).wrapping_mul(0x2C1B_3C6D);
            let v = (mixed >> 8) as f32 / (1 << 23) as f32 - 1.0;
            match rounded {
                DType::F16 => f16::from_f32(v).to_f32(),
                DType::Bf16 => bf16::from_f32(v).to_f32(),
                DType::F32 | DType::I32 => v,
            }
        };
        let plain: Vec<f32> = (0..ty.elements()).map(number).collect();
        let mut stored = vec![0.0; ty.stored()];
        to_layout(ty, &plain, &mut stored);
        match ty.dtype {
            DType::F16 => session.write(id, &stored.iter().map(|v| f16::from_f32(*v)).collect::<Vec<_>>())?,
            DType::Bf16 => session.write(id, &stored.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>())?,
            DType::F32 | DType::I32 => session.write(id, &stored)?,
        }
    }
    Ok(())
}

/// What [`time`] found.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Timing {
    pub launches: usize,
    pub ms_median: f64,
    pub ms_min: f64,
    pub gflops: f64,
    /// On minimal bytes.
    pub gbps: f64,
    /// The rate, reads and writes, at which the device copies in the same run.
    pub copy_gbps: f64,
    /// How near the time is to the least possible one (1: there), which is that of its FLOPs at [`Device::peak_gflops`] or that of its
    /// minimal bytes at `copy_gbps`, whichever is longer.   (Williams et al. 2009, "Roofline")
    pub of_roofline: Option<f64>,
}

/// Bytes that are touched between two runs of a kernel, so that caches are cold.
const FLUSH: usize = 128 << 20;

/// Times a case on `device` with numbers stored as `dtype`, caches cold before every run, by the device's clock where it has one.
/// `None` if the op does not take that type.
pub fn time(case: &Case, device: &Device, dtype: DType, runs: usize) -> Result<Option<Timing>> {
    let Some(mut schedule) = alone(case, device, dtype)? else { return Ok(None) };
    let mut flush = Graph::new();
    let x = flush.input("flush", TensorType::f32([FLUSH / 8]));
    let y = flush.apply(Affine::scale(0.5), &[x])?;
    flush.output("flushed", y);
    let ids = ["flush", "flushed"].map(|name| schedule.buffers.declare(name, TensorType::f32([FLUSH / 8])));
    let names = schedule.buffers.clone();
    let bind = |port: &str| ids.into_iter().find(|id| names.get(*id).name.as_ref() == port);
    let program = Program::compile("flush", &flush, device.target(), &mut schedule.buffers, bind, Options::default())?;
    let flush = schedule.add(program);
    let cost = schedule.programs[0].cost();
    let launches = schedule.programs[0].commands.len();
    let mut session = Session::new(device.clone(), schedule)?;
    fill(&mut session, case, dtype)?;
    session.run_program(0)?;
    let (mut times, mut copies) = (vec![], vec![]);
    for _ in 0..runs.max(1) {
        let [mut copy, mut all] = [0.0; 2];
        session.time_program(flush, &mut |_, seconds| copy += seconds)?;
        session.time_program(0, &mut |_, seconds| all += seconds)?;
        copies.push(copy);
        times.push(all);
    }
    times.sort_by(f64::total_cmp);
    copies.sort_by(f64::total_cmp);
    let (median, copy) = (times[times.len() / 2], FLUSH as f64 / copies[copies.len() / 2]);
    let least = |peak: f64| (cost.flops as f64 / (peak * 1e9)).max(cost.bytes as f64 / copy);
    Ok(Some(Timing {
        launches,
        ms_median: median * 1e3,
        ms_min: times[0] * 1e3,
        gflops: cost.flops as f64 / median / 1e9,
        gbps: cost.bytes as f64 / median / 1e9,
        copy_gbps: copy / 1e9,
        of_roofline: device.peak_gflops(dtype).map(|peak| least(peak) / median),
    }))
}

/// What each launch of a case counts on the ptx device: the kernel's entry, its counters. `None` if the op does not take that type.
pub fn count(case: &Case, device: &Device, dtype: DType) -> Result<Option<Vec<(String, Counters)>>> {
    let Some(schedule) = alone(case, device, dtype)? else { return Ok(None) };
    let entries: Vec<String> = schedule.programs[0].commands.iter().map(|c| format!("{:?}", c.kernel)).collect();
    let mut session = Session::new(device.clone(), schedule)?;
    fill(&mut session, case, dtype)?;
    let mut counted = Vec::new();
    session.count_program(0, &mut |number, counters| counted.push((entries[number].clone(), counters)))?;
    Ok(Some(counted))
}

/// A program of the op alone, its inputs and outputs of the types that it has there.
fn alone(case: &Case, device: &Device, dtype: DType) -> Result<Option<Schedule>> {
    let target = device.target();
    if dtype != DType::F32 && !case.op.takes(dtype, &target) {
        return Ok(None);
    }
    let mut g = Graph::new();
    let stored = |(i, ty): (usize, &TensorType)| match ty.dtype {
        DType::F32 if !case.op.stays_f32(i) => TensorType { dtype, ..ty.clone() },
        _ => ty.clone(),
    };
    let types = case.io.inputs.iter().enumerate().map(stored);
    let inputs: Vec<Value> = types.enumerate().map(|(i, ty)| g.input(format!("in{i}"), ty)).collect();
    for (i, y) in g.apply_arc(case.op.clone(), &inputs)?.into_iter().enumerate() {
        g.output(format!("out{i}"), y);
    }
    let mut schedule = Schedule::once("case", &g, target, Options::default())?;
    schedule.steps = vec![Step::Run(0)];
    Ok(Some(schedule))
}
