//! diffusers' `DiTTransformer2DModel`: a transformer over latent patches, its norms modulated by time and class
//! (Peebles & Xie 2023, adaLN-Zero).

use super::Built;
use super::config::DitConfig;
use super::layers::{AttentionLayer, Builder, Layer, Modulation, Window};
use super::params::Init;
use crate::graph::Value;
use crate::ops::{Activation, Binary, Broadcast, Gate, Padding, Permute, TimestepEmbedding};
use crate::tensor::TensorType;
use crate::{Error, Result};

/// Width of the sinusoids of t.
const SINUSOIDS: usize = 256;
/// ε of the norms that are modulated before attention and at the end.
const EPS: f32 = 1e-6;
/// The most elements of the position table: 1 GiB.
const MAX_POSITIONS: usize = 1 << 28;

/// The graph of the whole network.
pub fn build(c: &DitConfig, mut b: Builder) -> Result<Built> {
    let [rows, cols] = grid(c, &b)?;
    b.enable_dropout(c.dropout);
    let x = b.sample(c.in_channels);
    let inputs = [b.rows("timestep", None), b.labels("class_labels")];
    b.ignore("pos_embed.pos_embed");
    let mut x = b.scoped("pos_embed", |b| patches(c, b, x, [rows, cols]))?;
    let mut conditioning = None;
    for i in 0..c.layers {
        let (y, emb) = b.block(|b| b.scoped(format!("transformer_blocks.{i}"), |b| block(c, b, x, inputs)))?;
        x = y;
        conditioning.get_or_insert(emb);
    }
    let y = b.block(|b| last(c, b, x, conditioning))?;
    let y = unpatch(c, &mut b, y, [rows, cols])?;
    Ok(b.finish("prediction", y))
}

/// Patches along both sides.
fn grid(c: &DitConfig, b: &Builder) -> Result<[usize; 2]> {
    for (what, n) in [("height", b.spec.height), ("width", b.spec.width)] {
        if n % c.patch != 0 {
            return Err(Error::invalid(what, format!("{n} is not a multiple of the patch size {}", c.patch)));
        }
    }
    let [rows, cols] = [b.spec.height / c.patch, b.spec.width / c.patch];
    if rows * cols > MAX_POSITIONS / (c.heads * c.head_dim) {
        return Err(Error::invalid("height", format!("{rows} × {cols} patches are too many")));
    }
    Ok([rows, cols])
}

/// x `[B, H, W, C]` → patches, projected, plus their positions: `[B, N, D]`
fn patches(c: &DitConfig, b: &mut Builder, x: Value, [rows, cols]: [usize; 2]) -> Result<Value> {
    let (batch, width, n) = (b.spec.batch, c.heads * c.head_dim, rows * cols);
    let table = positions(width, [rows, cols], c.sample_size / c.patch);
    let table = b.graph.constant(TensorType::f32([rows, cols, width]), table)?;
    let spread = Broadcast::rows(batch, b.graph.ty(table));
    let table = b.graph.apply(spread, &[table])?;
    let window = Window { kernel: [c.patch; 2], stride: c.patch, padding: Padding::default() };
    let x = b.conv("proj", x, window, Layer::new(width).residual(table, 1.0))?;
    b.reshape(x, [batch, n, width])
}

/// Fixed positions `[rows, cols, width]`: a quarter each of sin and cos of the column, then of the row, both counted in
/// the grid `base` wide that the model was trained at.
fn positions(width: usize, [rows, cols]: [usize; 2], base: usize) -> Vec<f32> {
    let quarter = width / 4;
    let frequency = |j: usize| 10_000f64.powf(-(j as f64) / quarter as f64);
    let scaled = |i: usize, n: usize| (i as f64 * base as f64 / n as f64) as f32 as f64;
    let mut table = Vec::with_capacity(rows * cols * width);
    for row in 0..rows {
        for col in 0..cols {
            for at in [scaled(col, cols), scaled(row, rows)] {
                table.extend((0..quarter).map(|j| (at * frequency(j)).sin() as f32));
                table.extend((0..quarter).map(|j| (at * frequency(j)).cos() as f32));
            }
        }
    }
    table
}

/// The embedding of time and class `[B, D]`. Every block of the file has its own.
fn embed(c: &DitConfig, b: &mut Builder, [t, labels]: [Value; 2]) -> Result<Value> {
    let width = c.heads * c.head_dim;
    let sinusoids =
        TimestepEmbedding { dim: SINUSOIDS, flip_sin_to_cos: true, freq_shift: 1.0, max_period: 10_000.0, scale: 1.0 };
    let t = b.graph.apply(sinusoids, &[t])?;
    let t = b.embedding_mlp("timestep_embedder", t, width, Activation::Silu)?;
    let table = [c.classes + 1, width];
    let y = b.embedding("class_embedder.embedding_table.weight", labels, table, Init::Normal(0.02))?;
    b.graph.apply(Binary::Add, &[t, y])
}

/// One block, and its embedding of time and class.
fn block(c: &DitConfig, b: &mut Builder, x: Value, inputs: [Value; 2]) -> Result<(Value, Value)> {
    let width = c.heads * c.head_dim;
    let (emb, parts) = b.scoped("norm1", |b| {
        let emb = b.scoped("emb", |b| embed(c, b, inputs))?;
        let h = b.activate(emb, Activation::Silu)?;
        let h = b.linear("linear", h, Layer::new(6 * width).init(Init::Zeros))?;
        Ok::<_, Error>((emb, b.split(h)?))
    })?;
    let [shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff] = parts;
    let modulation = Modulation { scale: scale_attn, shift: shift_attn };
    let h = b.layer_norm("norm1.norm", x, EPS, false, Some(modulation))?;
    let a = AttentionLayer { heads: c.heads, head_dim: c.head_dim, bias: c.attention_bias, divisor: 1.0 };
    let h = b.scoped("attn1", |b| b.attention(h, h, a, width, None))?;
    let h = b.dropout(h)?;
    let x = b.graph.apply(Gate, &[h, gate_attn, x])?;
    let modulation = Modulation { scale: scale_ff, shift: shift_ff };
    let h = b.layer_norm("norm3", x, c.eps, c.affine, Some(modulation))?;
    let h = b.feed_forward(h, c.feed_forward, Builder::dropout, None)?;
    Ok((b.graph.apply(Gate, &[h, gate_ff, x])?, emb))
}

/// The last norm, modulated by the first block's embedding, and the projection to pixels: `[B, N, p·p·C]`
fn last(c: &DitConfig, b: &mut Builder, x: Value, conditioning: Option<Value>) -> Result<Value> {
    let width = c.heads * c.head_dim;
    let modulation = match conditioning {
        Some(emb) => {
            let h = b.activate(emb, Activation::Silu)?;
            let h = b.linear("proj_out_1", h, Layer::new(2 * width).init(Init::Zeros))?;
            let [shift, scale] = b.split(h)?;
            Some(Modulation { scale, shift })
        }
        None => None,
    };
    let h = b.layer_norm("norm_out", x, EPS, false, modulation)?;
    b.linear("proj_out_2", h, Layer::new(c.patch * c.patch * c.out_channels).init(Init::Zeros))
}

/// `[B, rows·cols, p·p·C]` → `[B, rows·p, cols·p, C]`
fn unpatch(c: &DitConfig, b: &mut Builder, x: Value, [rows, cols]: [usize; 2]) -> Result<Value> {
    let (batch, p, channels) = (b.spec.batch, c.patch, c.out_channels);
    let x = b.reshape(x, [batch, rows, cols, p, p, channels])?;
    let x = b.graph.apply(Permute(vec![0, 1, 3, 2, 4, 5]), &[x])?;
    b.reshape(x, [batch, rows * p, cols * p, channels])
}
