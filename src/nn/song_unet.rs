//! EDM's SongUNet inside EDM preconditioning: DDPM++ and NCSN++ (Song et al. 2021) as reimplemented by Karras et al.
//! 2022 ("Elucidating the Design Space of Diffusion-Based Generative Models", table 1 and appendix C).

use super::Built;
use super::config::EdmConfig;
use super::layers::{Builder, Layer, Norm, WeightKind, Window};
use super::params::{Import, Init};
use crate::graph::Value;
use crate::ops::{
    Activation, Affine, Attention, Binary, Broadcast, EdmCoefficients, Embedding, FourierEmbedding, Pad, Padding,
    Resample, SampleMix, TimestepEmbedding,
};
use crate::tensor::TensorType;
use crate::{Error, Result};

/// ε of all norms.
const EPS: f32 = 1e-6;
/// What sums of two branches are multiplied by, to keep their variance.
const SKIP_SCALE: f32 = std::f32::consts::FRAC_1_SQRT_2;

/// Groups of a norm over `channels`.
pub fn groups(channels: usize) -> usize {
    (channels / 4).clamp(1, 32)
}

/// D(x; σ) = c_skip·x + c_out·F(c_in·x; ln(σ)/4)   (Karras et al. 2022, equation 7 and table 1)
pub fn build(c: &EdmConfig, mut b: Builder) -> Result<Built> {
    check_size(c, &b)?;
    b.enable_dropout(c.dropout);
    let x = b.sample(c.channels);
    let sigma = b.rows("sigma", None);
    let coefficients = b.graph.apply_all(EdmCoefficients { sigma_data: c.sigma_data }, &[sigma])?;
    let [c_skip, c_out, c_in, c_noise] = coefficients[..] else {
        return Err(Error::shape("edm_coefficients", "must give four outputs"));
    };
    let scaled = b.graph.apply(SampleMix { terms: 1 }, &[c_in, x])?;
    let f = b.scoped("model", |b| song_unet(c, b, scaled, c_noise))?;
    let y = b.graph.apply(SampleMix { terms: 2 }, &[c_skip, x, c_out, f])?;
    Ok(b.finish("denoised", y))
}

fn check_size(c: &EdmConfig, b: &Builder) -> Result<()> {
    let factor = 1usize << (c.channel_mult.len() - 1);
    for (what, n) in [("height", b.spec.height), ("width", b.spec.width)] {
        if n % factor != 0 {
            return Err(Error::invalid(what, format!("{n} is not a multiple of {factor}, which this SongUNet needs")));
        }
    }
    Ok(())
}

/// F: image `[B, H, W, C]`, noise level `[B]` → image
fn song_unet(c: &EdmConfig, b: &mut Builder, x: Value, noise: Value) -> Result<Value> {
    let emb = embed(c, b, noise)?;
    let net = SongUnet { c, emb };
    let mut skips = Vec::new();
    let h = b.scoped("enc", |b| net.encoder(b, x, &mut skips))?;
    b.scoped("dec", |b| net.decoder(b, h, skips))
}

/// The embedding of noise level, class and augmentation `[B, E]`.
fn embed(c: &EdmConfig, b: &mut Builder, noise: Value) -> Result<Value> {
    let width = c.model_channels * c.channel_mult_noise;
    let mut h = if c.fourier {
        let frequencies = b.frequencies("map_noise.freqs", width / 2);
        b.graph.apply(FourierEmbedding { log: false, flip_sin_to_cos: false }, &[noise, frequencies])?
    } else {
        let (flip_sin_to_cos, freq_shift) = (false, 1.0);
        let op = TimestepEmbedding { dim: width, flip_sin_to_cos, freq_shift, max_period: 10_000.0, scale: 1.0 };
        b.graph.apply(op, &[noise])?
    };
    if c.label_dim > 0 {
        let class = b.scoped("map_label", |b| class_embedding(c, b, width))?;
        h = b.graph.apply(Binary::Add, &[h, class])?;
    }
    if c.augment_dim > 0 {
        h = augmentation(c, b, h)?;
    }
    let outputs = c.model_channels * c.channel_mult_emb;
    for name in ["map_layer0", "map_layer1"] {
        let init = xavier(b.channels(h), outputs, 1.0);
        h = b.linear(name, h, Layer::new(outputs).init(init))?;
        h = b.activate(h, Activation::Silu)?;
    }
    Ok(h)
}

/// W · (one-hot · √classes) + bias; the label that equals the number of classes stands for none, a row of zeros.
fn class_embedding(c: &EdmConfig, b: &mut Builder, width: usize) -> Result<Value> {
    let (n, batch) = (c.label_dim, b.spec.batch);
    let labels = b.labels("class_labels");
    let init = xavier(n, width, 1.0);
    let table = b.parameter("weight", &[width, n], TensorType::f32([n, width]), Import::Transpose, init);
    let bias = b.parameter("bias", &[width], TensorType::f32([width]), Import::Plain, Init::Zeros);
    let table = b.graph.apply(Pad { axis: 0, before: 0, after: 1 }, &[table])?;
    let rows = b.graph.apply(Embedding, &[table, labels])?;
    let rows = b.graph.apply(Affine::scale((n as f32).sqrt()), &[rows])?;
    let spread = Broadcast::rows(batch, b.graph.ty(bias));
    let bias = b.graph.apply(spread, &[bias])?;
    b.graph.apply(Binary::Add, &[rows, bias])
}

/// Adds W · `augment_labels`; without that input, zero, but the weight is kept.
fn augmentation(c: &EdmConfig, b: &mut Builder, h: Value) -> Result<Value> {
    let (n, width) = (c.augment_dim, b.channels(h));
    let init = xavier(n, width, 1.0);
    if b.spec.augment {
        let labels = b.rows("augment_labels", Some(n));
        return b.linear("map_augment", labels, Layer { residual: Some(h), ..Layer::new(width).no_bias().init(init) });
    }
    b.parameter("map_augment.weight", &[width, n], TensorType::panels([n, width]), Import::Transpose, init);
    Ok(h)
}

/// Uniform in ±gain·√(6/(fan-in + fan-out)).   (Glorot & Bengio 2010, equation 16)
fn xavier(fan_in: usize, fan_out: usize, gain: f32) -> Init {
    Init::Uniform(gain * (6.0 / (fan_in + fan_out) as f32).sqrt())
}

/// What a block does to the resolution.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    None,
    Down,
    Up,
}

/// One block of the encoder or decoder.
#[derive(Clone, Copy)]
struct Block {
    outputs: usize,
    /// Joined with the input.
    skip: Option<Value>,
    change: Change,
    attention: bool,
}

impl Block {
    /// A ResNet block and nothing more.
    fn new(outputs: usize) -> Self {
        Block { outputs, skip: None, change: Change::None, attention: false }
    }
}

struct SongUnet<'a> {
    c: &'a EdmConfig,
    emb: Value,
}

impl SongUnet<'_> {
    fn width(&self, level: usize) -> usize {
        self.c.model_channels * self.c.channel_mult[level]
    }

    /// Names go by the resolution that the network was trained at.
    fn name(&self, level: usize, what: &str) -> String {
        let n = self.c.resolution >> level;
        format!("{n}x{n}_{what}")
    }

    fn attends(&self, level: usize) -> bool {
        self.c.attention_resolutions.contains(&(self.c.resolution >> level))
    }

    fn encoder(&self, b: &mut Builder, image: Value, skips: &mut Vec<Value>) -> Result<Value> {
        let c = self.c;
        let (mut x, mut pyramid) = (image, image);
        for level in 0..c.channel_mult.len() {
            if level == 0 {
                x = self.conv3(b, &self.name(0, "conv"), x, c.model_channels)?;
            } else {
                let outputs = b.channels(x);
                let down = Block { change: Change::Down, ..Block::new(outputs) };
                x = self.block(b, &self.name(level, "down"), x, down)?;
                if c.residual_encoder {
                    x = self.merged(b, &self.name(level, "aux_residual"), x, pyramid)?;
                    pyramid = x;
                }
            }
            skips.push(x);
            for i in 0..c.blocks {
                let block = Block { attention: self.attends(level), ..Block::new(self.width(level)) };
                x = self.block(b, &self.name(level, &format!("block{i}")), x, block)?;
                skips.push(x);
            }
        }
        Ok(x)
    }

    fn decoder(&self, b: &mut Builder, mut x: Value, mut skips: Vec<Value>) -> Result<Value> {
        let (c, coarsest) = (self.c, self.c.channel_mult.len() - 1);
        for level in (0..=coarsest).rev() {
            let outputs = b.channels(x);
            if level == coarsest {
                let attentive = Block { attention: true, ..Block::new(outputs) };
                x = self.block(b, &self.name(level, "in0"), x, attentive)?;
                x = self.block(b, &self.name(level, "in1"), x, Block::new(outputs))?;
            } else {
                let up = Block { change: Change::Up, ..Block::new(outputs) };
                x = self.block(b, &self.name(level, "up"), x, up)?;
            }
            for i in 0..=c.blocks {
                let attention = i == c.blocks && self.attends(level);
                let block = Block { skip: skips.pop(), attention, ..Block::new(self.width(level)) };
                x = self.block(b, &self.name(level, &format!("block{i}")), x, block)?;
            }
        }
        let norm = self.norm(b, x);
        let h = b.block(|b| b.group_norm(&self.name(0, "aux_norm"), x, norm, Activation::Silu, None))?;
        let init = xavier(9 * b.channels(h), 9 * c.channels, 1e-5);
        b.conv(&self.name(0, "aux_conv"), h, Window::same(3), Layer::new(c.channels).init(init))
    }

    fn norm(&self, b: &Builder, x: Value) -> Norm {
        Norm { groups: groups(b.channels(x)), eps: EPS }
    }

    fn conv3(&self, b: &mut Builder, name: &str, x: Value, outputs: usize) -> Result<Value> {
        let init = xavier(9 * b.channels(x), 9 * outputs, 1.0);
        b.conv(name, x, Window::same(3), Layer::new(outputs).init(init))
    }

    /// One block, as one recomputation block: the skip joined, resampling, ResNet, attention.
    fn block(&self, b: &mut Builder, name: &str, x: Value, block: Block) -> Result<Value> {
        b.block(|b| {
            b.scoped(name, |b| {
                let x = block.skip.map_or(Ok(x), |skip| b.concat(3, x, skip))?;
                let y = self.resnet(b, x, block.outputs, block.change)?;
                if block.attention { self.attention(b, y) } else { Ok(y) }
            })
        })
    }

    /// y = (conv1(dropout(silu(norm1(conv0(silu(norm0(x))) + W·emb)))) + skip(x)) / √2
    fn resnet(&self, b: &mut Builder, x: Value, outputs: usize, change: Change) -> Result<Value> {
        let norm = self.norm(b, x);
        let h = b.group_norm("norm0", x, norm, Activation::Silu, None)?;
        let emb_init = xavier(b.channels(self.emb), outputs, 1.0);
        let emb = b.linear("affine", self.emb, Layer::new(outputs).init(emb_init))?;
        let h = self.resample(b, "conv0", h, change)?;
        let init = xavier(9 * b.channels(h), 9 * outputs, 1.0);
        let h = b.conv("conv0", h, Window::same(3), Layer::new(outputs).init(init).sample_bias(Some(emb)))?;
        let norm = self.norm(b, h);
        let h = b.group_norm("norm1", h, norm, Activation::Silu, None)?;
        let h = b.dropout(h)?;
        let skip = self.skip(b, x, outputs, change)?;
        let init = xavier(9 * outputs, 9 * outputs, 1e-5);
        b.conv("conv1", h, Window::same(3), Layer::new(outputs).init(init).residual(skip, SKIP_SCALE))
    }

    /// x, resampled and projected where the block changes resolution or channels.
    fn skip(&self, b: &mut Builder, x: Value, outputs: usize, change: Change) -> Result<Value> {
        let inputs = b.channels(x);
        if change == Change::None && inputs == outputs {
            return Ok(x);
        }
        let x = self.resample(b, "skip", x, change)?;
        b.linear("skip", x, Layer::new(outputs).pointwise().init(xavier(inputs, outputs, 1.0)))
    }

    /// Resampling before the convolution of that name, whose entry in the file holds the filter.
    fn resample(&self, b: &mut Builder, name: &str, x: Value, change: Change) -> Result<Value> {
        let f = &self.c.resample_filter;
        let op = match change {
            Change::None => return Ok(x),
            Change::Down => Resample::fir_down(f),
            Change::Up => Resample::fir_up(f),
        };
        self.declare_filter(b, name);
        b.graph.apply(op, &[x])
    }

    /// The file holds f⊗f/(Σf)² beside every resampling convolution.
    fn declare_filter(&self, b: &mut Builder, name: &str) {
        let f = &self.c.resample_filter;
        let sum: f32 = f.iter().sum();
        let data = f.iter().flat_map(|a| f.iter().map(move |b| a * b / (sum * sum))).collect();
        b.scoped(name, |b| b.fixed_tensor("resample_filter", &[1, 1, f.len(), f.len()], data));
    }

    /// y = (proj(softmax(q·kᵀ/√C)·v) + x) / √2, one head over all pixels
    fn attention(&self, b: &mut Builder, x: Value) -> Result<Value> {
        let (shape, channels) = (b.graph.shape(x).to_vec(), b.channels(x));
        let norm = self.norm(b, x);
        let h = b.group_norm("norm2", x, norm, Activation::Identity, None)?;
        let (h, x) = (b.flatten(h)?, b.flatten(x)?);
        let qkv = Layer { weight: WeightKind::Qkv { heads: 1 }, ..Layer::new(3 * channels) };
        let init = xavier(channels, 3 * channels, 0.2f32.sqrt());
        let h = b.linear("qkv", h, qkv.init(init))?;
        let [q, k, v] = b.split(h)?;
        let scale = 1.0 / (channels as f32).sqrt();
        let h = b.graph.apply(Attention { heads: 1, scale }, &[q, k, v])?;
        let proj = Layer::new(channels).pointwise().init(xavier(channels, channels, 1e-5));
        let y = b.linear("proj", h, proj.residual(x, SKIP_SCALE))?;
        b.reshape(y, shape)
    }

    /// NCSN++: (x + down(conv(pyramid))) / √2. The filter runs over the convolution of the image with zeros around it,
    /// edges included, so the convolution is padded by the filter's own margin and the filter not at all.
    fn merged(&self, b: &mut Builder, name: &str, x: Value, pyramid: Value) -> Result<Value> {
        let (outputs, f) = (b.channels(x), &self.c.resample_filter);
        self.declare_filter(b, name);
        b.block(|b| {
            let margin = (f.len() - 1) / 2;
            let window = Window { kernel: [3; 2], stride: 1, padding: Padding::same(1 + margin) };
            let init = xavier(9 * b.channels(pyramid), 9 * outputs, 1.0);
            let h = b.conv(name, pyramid, window, Layer::new(outputs).init(init))?;
            let h = b.graph.apply(Resample { pad: [0, 0], ..Resample::fir_down(f) }, &[h])?;
            let sum = b.graph.apply(Binary::Add, &[x, h])?;
            b.graph.apply(Affine::scale(SKIP_SCALE), &[sum])
        })
    }
}
