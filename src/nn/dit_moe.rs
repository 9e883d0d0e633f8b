//! DiT-MoE: a DiT whose feed-forward parts are mixtures of experts   (Fei et al. 2024, "Scaling Diffusion Transformers to 16
//! Billion Parameters"). The router's auxiliary loss is not part of it.

use super::Built;
use super::config::DitMoeConfig;
use super::layers::{Builder, Layer, Modulation};
use super::params::{Import, Init};
use super::patches::Patches;
use crate::Result;
use crate::graph::Value;
use crate::ops::{
    Activation, Attention, Binary, CombineTokens, DispatchTokens, ExpertLinear, Gate, GroupByExpert, Route,
    TimestepEmbedding,
};
use crate::tensor::TensorType;

/// Width of the sinusoids of t.
const SINUSOIDS: usize = 256;
/// ε of all norms.
const EPS: f32 = 1e-6;

/// The graph of the whole network.
pub fn build(c: &DitMoeConfig, mut b: Builder) -> Result<Built> {
    let patches = Patches { patch: c.patch, width: c.width, base: c.sample_size / c.patch };
    let grid = patches.grid(&b)?;
    let x = b.sample(c.in_channels);
    let inputs = [b.rows("timestep", None), b.labels("class_labels")];
    let mut x = b.scoped("x_embedder", |b| patches.embed(b, x, grid))?;
    b.fixed_tensor("pos_embed", &[1, grid[0] * grid[1], c.width], patches.positions(grid));
    let emb = embed(c, &mut b, inputs)?;
    let emb = b.activate(emb, Activation::Silu)?;
    for i in 0..c.layers {
        x = b.block(|b| b.scoped(format!("blocks.{i}"), |b| block(c, b, x, emb)))?;
    }
    let y = b.block(|b| b.scoped("final_layer", |b| last(c, b, x, emb)))?;
    let y = patches.join(&mut b, y, grid, c.out_channels)?;
    Ok(b.finish("prediction", y))
}

/// The embedding of time and class `[B, D]`.
fn embed(c: &DitMoeConfig, b: &mut Builder, [t, labels]: [Value; 2]) -> Result<Value> {
    let sinusoids =
        TimestepEmbedding { dim: SINUSOIDS, flip_sin_to_cos: true, freq_shift: 0.0, max_period: 10_000.0, scale: 1.0 };
    let t = b.graph.apply(sinusoids, &[t])?;
    let layer = Layer::new(c.width).init(Init::Normal(0.02));
    let t = b.scoped("t_embedder", |b| {
        let h = b.linear("mlp.0", t, layer)?;
        let h = b.activate(h, Activation::Silu)?;
        b.linear("mlp.2", h, layer)
    })?;
    let y = b.embedding("y_embedder.embedding_table.weight", labels, [c.classes + 1, c.width], Init::Normal(0.02))?;
    b.graph.apply(Binary::Add, &[t, y])
}

/// One block; `emb` `[B, D]` is the activated embedding.
fn block(c: &DitMoeConfig, b: &mut Builder, x: Value, emb: Value) -> Result<Value> {
    let h = b.linear("adaLN_modulation.1", emb, Layer::new(6 * c.width).init(Init::Zeros))?;
    let [shift_attn, scale_attn, gate_attn, shift_moe, scale_moe, gate_moe] = b.split(h)?;
    let h = b.layer_norm("norm1", x, EPS, false, Some(Modulation { scale: scale_attn, shift: shift_attn }))?;
    let h = b.scoped("attn", |b| attention(c, b, h))?;
    let x = b.graph.apply(Gate, &[h, gate_attn, x])?;
    let h = b.layer_norm("norm2", x, EPS, false, Some(Modulation { scale: scale_moe, shift: shift_moe }))?;
    let h = b.scoped("moe", |b| mixture(c, b, h))?;
    b.graph.apply(Gate, &[h, gate_moe, x])
}

/// Self-attention, q, k and v being one layer.
fn attention(c: &DitMoeConfig, b: &mut Builder, x: Value) -> Result<Value> {
    let h = b.linear("qkv", x, Layer::new(3 * c.width))?;
    let [q, k, v] = b.split(h)?;
    let scale = 1.0 / ((c.width / c.heads) as f32).sqrt();
    let y = b.graph.apply(Attention { heads: c.heads, scale }, &[q, k, v])?;
    b.linear("proj", y, Layer::new(c.width))
}

/// Each token through the experts that the gate chooses for it, their answers added up by the gate's weights; plus what the
/// shared experts make of every token. `[B, N, D]` → `[B, N, D]`
fn mixture(c: &DitMoeConfig, b: &mut Builder, x: Value) -> Result<Value> {
    let shape = b.graph.shape(x).to_vec();
    let x = b.reshape(x, [shape[0] * shape[1], c.width])?;
    let logits = b.linear("gate", x, Layer::new(c.experts).no_bias())?;
    let route = Route { chosen: c.chosen, routing: c.routing, normalize: c.normalize };
    let routed = b.graph.apply_all(route, &[logits])?;
    let (weights, experts) = (routed[0], routed[1]);
    let groups = b.graph.apply_all(GroupByExpert { experts: c.experts }, &[experts])?;
    let (order, places, offsets) = (groups[0], groups[1], groups[2]);
    let rows = b.graph.apply(DispatchTokens { weighted: false }, &[x, order, places])?;
    let rows = gated(b, rows, |b, name, x, width| experts_linear(c, b, name, x, width, offsets), c.expert_width)?;
    let mut y = b.graph.apply(CombineTokens { weighted: true }, &[rows, order, places, weights])?;
    if c.shared_width > 0 {
        let shared = |b: &mut Builder, name: &str, x, width| b.linear(name, x, Layer::new(width).no_bias());
        let h = b.scoped("shared_experts", |b| gated(b, x, shared, c.shared_width))?;
        y = b.graph.apply(Binary::Add, &[h, y])?;
    }
    b.reshape(y, shape)
}

/// down(silu(gate(x)) · up(x)), `inner` wide inside; `linear` makes a layer from name, input and width.
fn gated(
    b: &mut Builder,
    x: Value,
    linear: impl Fn(&mut Builder, &str, Value, usize) -> Result<Value>,
    inner: usize,
) -> Result<Value> {
    let width = b.channels(x);
    let gate = linear(b, "gate_proj", x, inner)?;
    let gate = b.activate(gate, Activation::Silu)?;
    let up = linear(b, "up_proj", x, inner)?;
    let h = b.graph.apply(Binary::Mul, &[gate, up])?;
    linear(b, "down_proj", h, width)
}

/// A layer of every expert, over the rows that are its own.
fn experts_linear(
    c: &DitMoeConfig,
    b: &mut Builder,
    name: &str,
    x: Value,
    outputs: usize,
    offsets: Value,
) -> Result<Value> {
    let k = b.channels(x);
    b.scoped(format!("experts.*.{name}"), |b| {
        let (shape, ty) = ([c.experts, outputs, k], TensorType::panels([c.experts, k, outputs]));
        let weight = b.parameter("weight", &shape, ty, Import::Experts, Init::Uniform(1.0 / (k as f32).sqrt()));
        b.graph.apply(ExpertLinear::default(), &[x, weight, offsets])
    })
}

/// The last norm, modulated, and the projection to pixels: `[B, N, p·p·C]`
fn last(c: &DitMoeConfig, b: &mut Builder, x: Value, emb: Value) -> Result<Value> {
    let h = b.linear("adaLN_modulation.1", emb, Layer::new(2 * c.width).init(Init::Zeros))?;
    let [shift, scale] = b.split(h)?;
    let h = b.layer_norm("norm_final", x, EPS, false, Some(Modulation { scale, shift }))?;
    b.linear("linear", h, Layer::new(c.patch * c.patch * c.out_channels).init(Init::Zeros))
}
