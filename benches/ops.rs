//! Single ops at sizes that real networks have. `cargo bench --bench ops`
//!
//! `LANGEVIN_DEVICE` chooses the device; ops that it lacks are named and left out.
//!
//! "elements" are FLOPs where arithmetic is the floor, so Gelem/s reads as GFLOP/s; ops that only move memory show bytes.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use langevin::Device;
use langevin::graph::{Graph, Op};
use langevin::ops::{Activation, Attention, Conv2d, DiffusionUpdate, Epilogue, GroupNorm, Linear};
use langevin::schedule::{Options, Schedule, Session};
use langevin::tensor::TensorType;
use std::time::Duration;

/// A session that runs `op` on small numbers, and what the op costs.
fn prepare(op: impl Op, inputs: &[TensorType]) -> langevin::Result<(Session, langevin::graph::Cost)> {
    let mut graph = Graph::new();
    let inputs: Vec<_> = inputs.iter().enumerate().map(|(i, ty)| graph.input(format!("in{i}"), ty.clone())).collect();
    let outputs = graph.apply_all(op, &inputs)?;
    outputs.iter().enumerate().for_each(|(i, value)| graph.output(format!("out{i}"), *value));
    let cost = graph.cost();
    let device: Device = std::env::var("LANGEVIN_DEVICE").as_deref().unwrap_or("auto").parse()?;
    let schedule = Schedule::once("op", &graph, device.target(), Options::default())?;
    let ids: Vec<_> = (0..inputs.len()).filter_map(|i| schedule.buffers.find(&format!("in{i}"))).collect();
    let mut session = Session::new(device, schedule)?;
    for id in ids {
        let number = |i: usize| ((i * 37) % 101) as f32 * 2e-3 - 0.1;
        session.fill(id, |numbers| numbers.iter_mut().enumerate().for_each(|(i, v)| *v = number(i)))?;
    }
    Ok((session, cost))
}

fn bench(c: &mut Criterion, name: &str, moves: bool, op: impl Op, inputs: &[TensorType]) {
    let (mut session, cost) = match prepare(op, inputs) {
        Err(e @ langevin::Error::Unsupported { .. }) => return println!("{name}: left out: {e}"),
        prepared => prepared.expect(name),
    };
    let mut group = c.benchmark_group("ops");
    group.throughput(if moves { Throughput::Bytes(cost.bytes) } else { Throughput::Elements(cost.flops) });
    group.bench_function(name, |b| b.iter(|| session.run_program(0)));
    group.finish();
}

fn ops(c: &mut Criterion) {
    let f = |shape: &[usize]| TensorType::f32(shape);
    let epilogue = Epilogue::bias();
    let weight = TensorType::panels([9, 256, 256]);
    bench(c, "conv2d 3x3 256->256 16x16", false, Conv2d::same(3, epilogue), &[f(&[1, 16, 16, 256]), weight, f(&[256])]);
    let weight = TensorType::panels([384, 1536]);
    bench(c, "linear 256x384->1536", false, Linear(epilogue), &[f(&[1, 256, 384]), weight, f(&[1536])]);
    let attention = Attention { heads: 6, scale: 0.125 };
    bench(c, "attention 256 tokens 6x64", false, attention, &[f(&[1, 256, 384]), f(&[1, 256, 384]), f(&[1, 256, 384])]);
    let norm = GroupNorm { groups: 32, eps: 1e-6, activation: Activation::Silu, modulate: false };
    bench(c, "group_norm + silu 32x32x128", true, norm, &[f(&[1, 32, 32, 128]), f(&[128]), f(&[128])]);
    let update = DiffusionUpdate { terms: 3, clip: None };
    let latents = f(&[8, 64, 64, 4]);
    bench(c, "diffusion_update 3 terms 8x64x64x4", true, update, &[f(&[3]), latents.clone(), latents.clone(), latents]);
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = ops
}
criterion_main!(benches);
