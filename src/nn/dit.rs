//! diffusers' `DiTTransformer2DModel`: a transformer over latent patches, its norms modulated by time and class
//! (Peebles & Xie 2023, adaLN-Zero).

use super::Built;
use super::config::DitConfig;
use super::layers::{AttentionLayer, Builder, Layer, Modulation};
use super::params::Init;
use super::patches::Patches;
use crate::graph::Value;
use crate::ops::{Activation, Binary, Gate, TimestepEmbedding};
use crate::{Error, Result};

/// Width of the sinusoids of t.
const SINUSOIDS: usize = 256;
/// ε of the norms that are modulated before attention and at the end.
const EPS: f32 = 1e-6;

/// The graph of the whole network.
pub fn build(c: &DitConfig, mut b: Builder) -> Result<Built> {
    let patches = Patches { patch: c.patch, width: c.heads * c.head_dim, base: c.sample_size / c.patch };
    let grid = patches.grid(&b)?;
    b.enable_dropout(c.dropout);
    let x = b.sample(c.in_channels);
    let inputs = [b.rows("timestep", None), b.labels("class_labels")];
    b.ignore("pos_embed.pos_embed");
    let mut x = b.scoped("pos_embed", |b| patches.embed(b, x, grid))?;
    let mut conditioning = None;
    for i in 0..c.layers {
        let (y, emb) = b.block(|b| b.scoped(format!("transformer_blocks.{i}"), |b| block(c, b, x, inputs)))?;
        x = y;
        conditioning.get_or_insert(emb);
    }
    let y = b.block(|b| last(c, b, x, conditioning))?;
    let y = patches.join(&mut b, y, grid, c.out_channels)?;
    Ok(b.finish("prediction", y))
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
