//! diffusers' `UNet2DConditionModel`: the text-conditioned UNet of latent diffusion (Rombach et al. 2022) and SDXL
//! (Podell et al. 2023).

use super::Built;
use super::config::{FeedForward, TextTime, Unet2dConditionConfig};
use super::layers::{AttentionLayer, Builder, Layer, Norm};
use super::unet::{Place, Unet, embed, head, sinusoids, stem};
use crate::graph::Value;
use crate::ops::{Activation, Binary};
use crate::tensor::TensorType;
use crate::{Error, Result};

/// The graph of the whole network.
pub fn build(c: &Unet2dConditionConfig, mut b: Builder) -> Result<Built> {
    let u = &c.unet;
    b.enable_dropout(u.dropout);
    let (mut emb, _) = embed(&mut b, &u.embedding, u.channels[0], u.activation, |b, x| guidance(c, b, x))?;
    if let Some(addition) = c.addition {
        let added = text_time(c, addition, &mut b)?;
        emb = b.graph.apply(Binary::Add, &[emb, added])?;
    }
    let emb = b.activate(emb, u.activation)?;
    let x = stem(&mut b, u, c.conv_in_kernel)?;
    let context = TensorType::f32([b.spec.batch, b.spec.tokens, c.cross_attention_dim]);
    let context = b.graph.input("encoder_hidden_states", context);
    let attend = |b: &mut Builder, name: &str, x: Value, place: Place| transformer(c, b, name, x, context, place);
    let x = Unet { config: u, emb, attend, mid: c.mid.then_some(true) }.body(&mut b, x)?;
    let y = head(&mut b, u, x, u.activation, c.conv_out_kernel)?;
    Ok(b.finish("prediction", y))
}

/// Adds the projected guidance embedding of a distilled model.   (Luo et al. 2023)
fn guidance(c: &Unet2dConditionConfig, b: &mut Builder, x: Value) -> Result<Value> {
    let Some(width) = c.time_cond_dim else { return Ok(x) };
    let (condition, outputs) = (b.rows("timestep_cond", Some(width)), b.channels(x));
    b.linear("time_embedding.cond_proj", condition, Layer { residual: Some(x), ..Layer::new(outputs).no_bias() })
}

/// SDXL's conditions: pooled text `[B, D]` and six sizes and crops `[B, 6]`, as sinusoids, through two linear layers.
fn text_time(c: &Unet2dConditionConfig, t: TextTime, b: &mut Builder) -> Result<Value> {
    let numbers = b.spec.time_ids;
    let sinusoid_width = numbers.saturating_mul(t.time_dim);
    let Some(text_dim) = t.input_dim.checked_sub(sinusoid_width).filter(|n| *n > 0 && numbers > 0) else {
        let reason = format!("{numbers} of {} sinusoids leave no text in {} inputs", t.time_dim, t.input_dim);
        return Err(Error::invalid("time_ids", reason));
    };
    let text = b.rows("text_embeds", Some(text_dim));
    let ids = b.rows("time_ids", Some(numbers));
    let batch = b.spec.batch;
    let ids = b.reshape(ids, [batch * numbers])?;
    let ids = sinusoids(b, ids, c.unet.embedding.time, t.time_dim)?;
    let ids = b.reshape(ids, [batch, sinusoid_width])?;
    let joined = b.concat(1, text, ids)?;
    b.embedding_mlp("add_embedding", joined, c.unet.embedding.dim, Activation::Silu)
}

/// diffusers' `Transformer2DModel` over the pixels of x, plus x.
fn transformer(
    c: &Unet2dConditionConfig,
    b: &mut Builder,
    name: &str,
    x: Value,
    context: Value,
    place: Place,
) -> Result<Value> {
    let level = match place {
        Place::Level(level) => level,
        Place::Mid => c.heads.len() - 1,
    };
    let (shape, channels) = (b.graph.shape(x).to_vec(), b.channels(x));
    let heads = c.heads[level];
    let a = AttentionLayer { heads, head_dim: channels / heads, bias: false, divisor: 1.0 };
    let project = |outputs| if c.linear_projection { Layer::new(outputs) } else { Layer::new(outputs).pointwise() };
    b.scoped(name, |b| {
        let mut h = b.block(|b| {
            let norm = Norm { groups: c.unet.groups, eps: 1e-6 };
            let h = b.group_norm("norm", x, norm, Activation::Identity, None)?;
            let h = b.flatten(h)?;
            b.linear("proj_in", h, project(a.heads * a.head_dim))
        })?;
        for k in 0..c.transformer_layers[level] {
            h = b.block(|b| b.scoped(format!("transformer_blocks.{k}"), |b| transformer_block(b, h, context, a)))?;
        }
        let x = b.flatten(x)?;
        let y = b.linear("proj_out", h, project(channels).residual(x, 1.0))?;
        b.reshape(y, shape)
    })
}

/// Self-attention, cross-attention and a gated feed-forward part, each over a norm and added to its input.
fn transformer_block(b: &mut Builder, x: Value, context: Value, a: AttentionLayer) -> Result<Value> {
    const EPS: f32 = 1e-5;
    let width = b.channels(x);
    let h = b.layer_norm("norm1", x, EPS, true, None)?;
    let x = b.scoped("attn1", |b| b.attention(h, h, a, width, Some(x)))?;
    let h = b.layer_norm("norm2", x, EPS, true, None)?;
    let x = b.scoped("attn2", |b| b.attention(h, context, a, width, Some(x)))?;
    let h = b.layer_norm("norm3", x, EPS, true, None)?;
    b.feed_forward(h, FeedForward::Geglu, |_, h| Ok(h), Some(x))
}
