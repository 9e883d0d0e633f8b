//! diffusers' `UNet2DModel`: the unconditional or class-conditional UNet of DDPM (Ho et al. 2020).

use super::Built;
use super::config::{TimeEmbedding, Unet2dConfig};
use super::layers::{AttentionLayer, Builder, Norm};
use super::unet::{Place, Unet, embed, head, stem};
use crate::graph::Value;
use crate::ops::{Activation, Reciprocal, SampleMix};
use crate::{Error, Result};

/// The graph of the whole network.
pub fn build(c: &Unet2dConfig, mut b: Builder) -> Result<Built> {
    let u = &c.unet;
    check_size(&b, u.channels.len())?;
    b.enable_dropout(u.dropout);
    // act_fn is that of the ResNet blocks; embeddings and head have SiLU always.
    let (emb, t) = embed(&mut b, &u.embedding, u.channels[0], Activation::Silu, |_, x| Ok(x))?;
    let emb = b.activate(emb, u.activation)?;
    let x = stem(&mut b, u, 3)?;
    let attend = |b: &mut Builder, name: &str, x: Value, place: Place| attention(c, b, name, x, place);
    let x = Unet { config: u, emb, attend, mid: c.mid.map(|m| m.attention) }.body(&mut b, x)?;
    let mut y = head(&mut b, u, x, Activation::Silu, 3)?;
    if u.embedding.time == TimeEmbedding::Fourier {
        let inverse = b.graph.apply(Reciprocal, &[t])?;
        y = b.graph.apply(SampleMix { terms: 1 }, &[inverse, y])?;
    }
    Ok(b.finish("prediction", y))
}

/// Skips fit only where every level halves both sides.
fn check_size(b: &Builder, levels: usize) -> Result<()> {
    let factor = 1usize << (levels - 1);
    for (what, n) in [("height", b.spec.height), ("width", b.spec.width)] {
        if n % factor != 0 {
            return Err(Error::invalid(
                what,
                format!("{n} is not a multiple of {factor}, which this UNet2DModel needs"),
            ));
        }
    }
    Ok(())
}

fn attention(c: &Unet2dConfig, b: &mut Builder, name: &str, x: Value, place: Place) -> Result<Value> {
    let u = &c.unet;
    let (groups, divisor) = match place {
        Place::Level(_) => (Some(u.groups), 1.0),
        Place::Mid => (c.mid.and_then(|m| m.attention_groups), u.mid_scale),
    };
    let channels = b.channels(x);
    let head_dim = c.head_dim.unwrap_or(channels);
    let layer = AttentionLayer { heads: channels / head_dim, head_dim, bias: true, divisor };
    let norm = groups.map(|groups| Norm { groups, eps: u.eps });
    b.block(|b| b.image_attention(name, x, norm, layer))
}
