//! What diffusers' two UNets share: embeddings, the way down and up, the head.

use super::config::{ClassEmbedding, EmbeddingConfig, Sampler, TimeEmbedding, UnetConfig};
use super::layers::{Builder, Layer, Norm, Resampling, ResnetBlock, Window};
use super::params::Init;
use crate::Result;
use crate::graph::Value;
use crate::ops::{Activation, Affine, Binary, FourierEmbedding, Padding, Resample, ResizeNearest, TimestepEmbedding};

/// Where in the network an attention stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// In the level of this number, from the finest.
    Level(usize),
    Mid,
}

/// A UNet around the attention blocks that make the difference.
pub struct Unet<'a, F> {
    pub config: &'a UnetConfig,
    /// The activated embedding of time and conditions `[B, E]`.
    pub emb: Value,
    /// Applies the attention block of this name.
    pub attend: F,
    /// The middle: none, without or with attention.
    pub mid: Option<bool>,
}

impl<F: Fn(&mut Builder, &str, Value, Place) -> Result<Value>> Unet<'_, F> {
    /// From what `conv_in` makes to what `conv_out` takes.   (Ronneberger et al. 2015; Ho et al. 2020, appendix B)
    pub fn body(&self, b: &mut Builder, x: Value) -> Result<Value> {
        let c = self.config;
        let mut skips = vec![x];
        let mut x = x;
        for level in 0..c.channels.len() {
            x = b.scoped(format!("down_blocks.{level}"), |b| self.down(b, x, level, &mut skips))?;
        }
        if let Some(attention) = self.mid {
            x = b.scoped("mid_block", |b| self.middle(b, x, attention))?;
        }
        for i in 0..c.channels.len() {
            x = b.scoped(format!("up_blocks.{i}"), |b| self.up(b, x, i, &mut skips))?;
        }
        Ok(x)
    }

    fn resnet(&self, level: usize) -> ResnetBlock {
        let c = self.config;
        ResnetBlock {
            outputs: c.channels[level],
            norm: Norm { groups: c.groups, eps: c.eps },
            activation: c.activation,
            scale_shift: c.scale_shift,
            divisor: 1.0,
            resample: Resampling::None,
        }
    }

    fn down(&self, b: &mut Builder, mut x: Value, level: usize, skips: &mut Vec<Value>) -> Result<Value> {
        let (c, kind) = (self.config, self.config.down[level]);
        for j in 0..c.layers[level] {
            x = b.block(|b| b.resnet(&format!("resnets.{j}"), x, self.emb, self.resnet(level)))?;
            if kind.attention {
                x = (self.attend)(b, &format!("attentions.{j}"), x, Place::Level(level))?;
            }
            skips.push(x);
        }
        if level + 1 < c.channels.len() {
            x = match kind.sampler {
                Sampler::Resnet => {
                    let r = ResnetBlock { resample: Resampling::Down, ..self.resnet(level) };
                    b.block(|b| b.resnet("downsamplers.0", x, self.emb, r))?
                }
                Sampler::Conv => self.strided(b, x)?,
            };
            skips.push(x);
        }
        Ok(x)
    }

    /// A 3×3 convolution of stride 2.
    fn strided(&self, b: &mut Builder, x: Value) -> Result<Value> {
        let padding = match self.config.down_padding {
            0 => Padding { top: 0, left: 0, bottom: 1, right: 1 },
            p => Padding::same(p),
        };
        let channels = b.channels(x);
        b.conv("downsamplers.0.conv", x, Window { kernel: [3; 2], stride: 2, padding }, Layer::new(channels))
    }

    fn middle(&self, b: &mut Builder, x: Value, attention: bool) -> Result<Value> {
        let r = ResnetBlock { divisor: self.config.mid_scale, ..self.resnet(self.config.channels.len() - 1) };
        let mut x = b.block(|b| b.resnet("resnets.0", x, self.emb, r))?;
        if attention {
            x = (self.attend)(b, "attentions.0", x, Place::Mid)?;
        }
        b.block(|b| b.resnet("resnets.1", x, self.emb, r))
    }

    /// Number `i` of the way up, whose levels go from the coarsest.
    fn up(&self, b: &mut Builder, mut x: Value, i: usize, skips: &mut Vec<Value>) -> Result<Value> {
        let c = self.config;
        let (level, kind) = (c.channels.len() - 1 - i, c.up[i]);
        for j in 0..=c.layers[level] {
            let skip = skips.pop();
            x = b.block(|b| {
                let x = skip.map_or(Ok(x), |skip| b.concat(3, x, skip))?;
                b.resnet(&format!("resnets.{j}"), x, self.emb, self.resnet(level))
            })?;
            if kind.attention {
                x = (self.attend)(b, &format!("attentions.{j}"), x, Place::Level(level))?;
            }
        }
        if level == 0 {
            return Ok(x);
        }
        match kind.sampler {
            Sampler::Resnet => {
                let r = ResnetBlock { resample: Resampling::Up, ..self.resnet(level) };
                b.block(|b| b.resnet("upsamplers.0", x, self.emb, r))
            }
            Sampler::Conv => b.block(|b| enlarged(b, x, skips.last().copied())),
        }
    }
}

/// Nearest neighbours to the size of `like` (twice the size, or one less where that was odd), then a 3×3 convolution.
fn enlarged(b: &mut Builder, x: Value, like: Option<Value>) -> Result<Value> {
    let [from, to] = [Some(x), like].map(|v| v.map_or([0; 2], |v| [1, 2].map(|axis| b.graph.shape(v)[axis])));
    let h = if like.is_none() || to == from.map(|n| 2 * n) {
        b.graph.apply(Resample::nearest_up(2), &[x])?
    } else {
        b.graph.apply(ResizeNearest { height: to[0], width: to[1] }, &[x])?
    };
    let channels = b.channels(x);
    b.conv("upsamplers.0.conv", h, Window::same(3), Layer::new(channels))
}

/// The image, centred if the configuration says so, through the first convolution.
pub fn stem(b: &mut Builder, c: &UnetConfig, kernel: usize) -> Result<Value> {
    let mut x = b.sample(c.in_channels);
    if c.center_input {
        x = b.graph.apply(Affine { scale: 2.0, shift: -1.0 }, &[x])?;
    }
    b.conv("conv_in", x, Window::same(kernel), Layer::new(c.channels[0]))
}

/// Norm, activation and the last convolution.
pub fn head(b: &mut Builder, c: &UnetConfig, x: Value, activation: Activation, kernel: usize) -> Result<Value> {
    let h = b.block(|b| b.group_norm("conv_norm_out", x, Norm { groups: c.groups, eps: c.eps }, activation, None))?;
    b.conv("conv_out", h, Window::same(kernel), Layer::new(c.out_channels))
}

/// Sinusoids of the times `[B]` → `[B, dim]`.   (Ho et al. 2020, after Vaswani et al. 2017, section 3.5)
pub fn sinusoids(b: &mut Builder, t: Value, time: TimeEmbedding, dim: usize) -> Result<Value> {
    let (flip_sin_to_cos, freq_shift) = match time {
        TimeEmbedding::Positional { flip_sin_to_cos, freq_shift } => (flip_sin_to_cos, freq_shift),
        TimeEmbedding::Fourier | TimeEmbedding::Learned { .. } => (true, 0.0),
    };
    b.graph.apply(TimestepEmbedding { dim, flip_sin_to_cos, freq_shift, max_period: 10_000.0, scale: 1.0 }, &[t])
}

/// The embedding of time and class `[B, E]`, and the input `timestep`. `activation` is that of the time embedding;
/// `condition` is added before the second stage of the time embedding.
pub fn embed(
    b: &mut Builder,
    c: &EmbeddingConfig,
    width: usize,
    activation: Activation,
    condition: impl FnOnce(&mut Builder, Value) -> Result<Value>,
) -> Result<(Value, Value)> {
    let (t, first) = match c.time {
        TimeEmbedding::Positional { .. } => {
            let t = b.rows("timestep", None);
            (t, sinusoids(b, t, c.time, width)?)
        }
        TimeEmbedding::Fourier => {
            let t = b.rows("timestep", None);
            let frequencies = b.frequencies("time_proj.weight", width);
            (t, b.graph.apply(FourierEmbedding { log: true, flip_sin_to_cos: false }, &[t, frequencies])?)
        }
        TimeEmbedding::Learned { steps } => {
            let t = b.labels("timestep");
            (t, b.embedding("time_proj.weight", t, [steps, width], Init::Normal(1.0))?)
        }
    };
    let first = condition(b, first)?;
    let emb = b.embedding_mlp("time_embedding", first, c.dim, activation)?;
    let class = match c.class {
        ClassEmbedding::None => return Ok((emb, t)),
        ClassEmbedding::Labels(n) => {
            let labels = b.labels("class_labels");
            b.embedding("class_embedding.weight", labels, [n, c.dim], Init::Normal(1.0))?
        }
        ClassEmbedding::Timestep => {
            let labels = b.rows("class_labels", None);
            let h = sinusoids(b, labels, c.time, width)?;
            b.embedding_mlp("class_embedding", h, c.dim, activation)?
        }
        ClassEmbedding::Identity => b.rows("class_labels", Some(c.dim)),
        ClassEmbedding::Projection(n) => {
            let rows = b.rows("class_labels", Some(n));
            b.embedding_mlp("class_embedding", rows, c.dim, Activation::Silu)?
        }
    };
    Ok((b.graph.apply(Binary::Add, &[emb, class])?, t))
}
