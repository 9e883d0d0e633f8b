//! Reading a model's `config.json`. A key that is absent has the default of the class that wrote it (diffusers' or
//! EDM's); a value that langevin cannot honour is an error that names the file and the field, never a silent
//! approximation.

mod dit_moe;
mod edm;
mod unets;

use super::fields::Fields;
use crate::Result;
use crate::ops::{Activation, Routing};
use serde_json::Value;
use std::ops::RangeInclusive;
use std::path::Path;

/// Bounds that keep an absurd file from making an absurd graph.
const CHANNELS: RangeInclusive<usize> = 1..=32_768;
const LEVELS: RangeInclusive<usize> = 1..=12;
const LAYERS: RangeInclusive<usize> = 1..=64;
const CLASSES: RangeInclusive<usize> = 1..=10_000_000;
const IMAGE: RangeInclusive<usize> = 1..=65_536;
/// The most ResNet and transformer blocks of one network.
const MAX_BLOCKS: usize = 2_000;

/// The configuration of one of the supported classes.
#[derive(Clone, PartialEq, Debug)]
pub enum Config {
    Unet2d(Unet2dConfig),
    Unet2dCondition(Unet2dConditionConfig),
    Dit(DitConfig),
    DitMoe(DitMoeConfig),
    Edm(EdmConfig),
}

/// How a UNet turns a time into a vector, and a class label into what is added to it.
#[derive(Clone, PartialEq, Debug)]
pub struct EmbeddingConfig {
    pub time: TimeEmbedding,
    /// Width of the vector that the ResNet blocks are given.
    pub dim: usize,
    pub class: ClassEmbedding,
}

/// The first, unlearned stage of a time embedding.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum TimeEmbedding {
    /// Sinusoids of t.
    Positional { flip_sin_to_cos: bool, freq_shift: f32 },
    /// Sinusoids of ln t at random frequencies, which the file holds; the network's output is divided by t.
    Fourier,
    /// A learned table with a row for each t.
    Learned { steps: usize },
}

/// What `class_labels` holds and what is done with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClassEmbedding {
    None,
    /// A table with a row for each label.
    Labels(usize),
    /// Embedded like a time.
    Timestep,
    /// Vectors that are added as they are.
    Identity,
    /// Vectors of this width through two linear layers.
    Projection(usize),
}

/// What changes the resolution at the end of a level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sampler {
    Conv,
    Resnet,
}

/// One level of a UNet's way down or up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Level {
    pub attention: bool,
    pub sampler: Sampler,
}

/// What every diffusers UNet has.
#[derive(Clone, PartialEq, Debug)]
pub struct UnetConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    /// Height and width it was trained at.
    pub sample_size: Option<[usize; 2]>,
    /// The input is 2·x − 1.
    pub center_input: bool,
    pub embedding: EmbeddingConfig,
    pub down: Vec<Level>,
    pub up: Vec<Level>,
    /// Channels by level, from the finest.
    pub channels: Vec<usize>,
    /// ResNet blocks by level on the way down; one more on the way up.
    pub layers: Vec<usize>,
    pub mid_scale: f32,
    /// Zeros around the strided convolutions: 0 means one row and column at the far side only.
    pub down_padding: usize,
    pub dropout: f32,
    pub activation: Activation,
    pub groups: usize,
    pub eps: f32,
    /// The time embedding scales and shifts the second norm of a ResNet block, and is not added before it.
    pub scale_shift: bool,
}

/// `UNet2DModel`.
#[derive(Clone, PartialEq, Debug)]
pub struct Unet2dConfig {
    pub unet: UnetConfig,
    pub mid: Option<Mid>,
    /// Channels of an attention head; none: one head over all channels.
    pub head_dim: Option<usize>,
}

/// The middle of a [`Unet2dConfig`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mid {
    pub attention: bool,
    /// Groups of the norm before the attention; none: no norm.
    pub attention_groups: Option<usize>,
}

/// `UNet2DConditionModel`. The lists go by level, from the finest.
#[derive(Clone, PartialEq, Debug)]
pub struct Unet2dConditionConfig {
    pub unet: UnetConfig,
    pub mid: bool,
    pub heads: Vec<usize>,
    /// Width of `encoder_hidden_states`.
    pub cross_attention_dim: usize,
    pub transformer_layers: Vec<usize>,
    /// The file holds the projections around a transformer as matrices rather than as 1×1 convolutions.
    pub linear_projection: bool,
    pub addition: Option<TextTime>,
    /// Width of the vector of a guidance-distilled model (LCM).
    pub time_cond_dim: Option<usize>,
    pub conv_in_kernel: usize,
    pub conv_out_kernel: usize,
}

/// SDXL's micro-conditioning: pooled text and sinusoids of sizes and crops through two linear layers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TextTime {
    /// Width of the sinusoids of one number.
    pub time_dim: usize,
    /// Width of text and all sinusoids together.
    pub input_dim: usize,
}

/// `DiTTransformer2DModel`.
#[derive(Clone, PartialEq, Debug)]
pub struct DitConfig {
    pub heads: usize,
    pub head_dim: usize,
    pub in_channels: usize,
    pub out_channels: usize,
    pub layers: usize,
    pub dropout: f32,
    pub attention_bias: bool,
    pub sample_size: usize,
    pub patch: usize,
    pub feed_forward: FeedForward,
    /// Classes without the null class.
    pub classes: usize,
    pub affine: bool,
    pub eps: f32,
}

/// `DiTMoE`.
#[derive(Clone, PartialEq, Debug)]
pub struct DitMoeConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    /// Height and width it was trained at.
    pub sample_size: usize,
    pub patch: usize,
    /// Channels of a token.
    pub width: usize,
    pub layers: usize,
    pub heads: usize,
    /// Classes without the null class.
    pub classes: usize,
    /// Experts of a block.
    pub experts: usize,
    /// Experts that a token goes to.
    pub chosen: usize,
    /// The weights of a token's experts are made to sum to 1.
    pub normalize: bool,
    /// Channels inside an expert.
    pub expert_width: usize,
    /// Channels inside the shared experts, which are one layer and see every token; 0: there are none.
    pub shared_width: usize,
    /// Not in the file: see [`Network::with_routing`](super::Network::with_routing).
    pub routing: Routing,
}

/// The nonlinearity of a transformer's feed-forward part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FeedForward {
    Plain(Activation),
    /// a · GELU(b), a and b being the halves of one projection.
    Geglu,
}

/// `EDMPrecond` around a SongUNet.
#[derive(Clone, PartialEq, Debug)]
pub struct EdmConfig {
    pub resolution: usize,
    pub channels: usize,
    /// Number of classes; 0: unconditional.
    pub label_dim: usize,
    /// Width of the augmentation labels; 0: none.
    pub augment_dim: usize,
    pub sigma_data: f32,
    pub model_channels: usize,
    pub channel_mult: Vec<usize>,
    pub channel_mult_emb: usize,
    pub channel_mult_noise: usize,
    pub blocks: usize,
    pub attention_resolutions: Vec<usize>,
    pub dropout: f32,
    /// Random frequencies that the file holds, not powers of 10000.
    pub fourier: bool,
    /// NCSN++: the image, resampled, is added at every level of the encoder.
    pub residual_encoder: bool,
    pub resample_filter: Vec<f32>,
}

impl Config {
    /// Parses the text of a `config.json`; `path` is named in errors.
    pub fn parse(text: &str, path: &Path) -> Result<Config> {
        let fields = Fields::parse(text, path)?;
        let class = fields.word("_class_name", None)?;
        match class {
            "UNet2DModel" => Ok(Config::Unet2d(unets::unet2d(&fields)?)),
            "UNet2DConditionModel" => Ok(Config::Unet2dCondition(unets::unet2d_condition(&fields)?)),
            "DiTTransformer2DModel" => Ok(Config::Dit(dit(&fields)?)),
            // What diffusers called it before 0.28; other transformers went by that name too.
            "Transformer2DModel" if fields.word("norm_type", Some(""))? == "ada_norm_zero" => {
                Ok(Config::Dit(dit(&fields)?))
            }
            "DiTMoE" => Ok(Config::DitMoe(dit_moe::dit_moe(&fields)?)),
            "EDMPrecond" => Ok(Config::Edm(edm::edm(&fields)?)),
            other => {
                let known = "UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel, DiTMoE, EDMPrecond";
                Err(fields.fail("_class_name", format!("`{other}` is none of {known}")))
            }
        }
    }
}

impl Fields {
    fn activation(&self, field: &str, default: &str) -> Result<Activation> {
        match self.word(field, Some(default))? {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" => Ok(Activation::Gelu),
            other => Err(self.fail(field, format!("`{other}` is none of silu, gelu"))),
        }
    }

    fn sample_size(&self) -> Result<Option<[usize; 2]>> {
        match self.get("sample_size") {
            None => Ok(None),
            Some(Value::Array(_)) => {
                let pair = self.sizes("sample_size", &[], 2..=2, IMAGE)?;
                Ok(Some([pair[0], pair[1]]))
            }
            Some(v) => self.integer("sample_size", v, &IMAGE).map(|n| Some([n, n])),
        }
    }
}

/// A norm's groups must divide its channels.
pub(super) fn check_groups(fields: &Fields, field: &str, groups: usize, channels: &[usize]) -> Result<()> {
    match channels.iter().find(|c| *c % groups != 0) {
        Some(c) => Err(fields.fail(field, format!("{groups} groups do not divide {c} channels"))),
        None => Ok(()),
    }
}

fn check_blocks(fields: &Fields, field: &str, blocks: usize) -> Result<()> {
    if blocks <= MAX_BLOCKS {
        return Ok(());
    }
    Err(fields.fail(field, format!("makes {blocks} blocks; at most {MAX_BLOCKS} are supported")))
}

fn dit(fields: &Fields) -> Result<DitConfig> {
    fields.lacks("norm_type", &[Value::from("ada_norm_zero")])?;
    let in_channels = fields.size("in_channels", 4, CHANNELS)?;
    let feed_forward = match fields.word("activation_fn", Some("gelu-approximate"))? {
        "gelu-approximate" => FeedForward::Plain(Activation::GeluTanh),
        "gelu" => FeedForward::Plain(Activation::Gelu),
        "geglu" => FeedForward::Geglu,
        other => {
            return Err(fields.fail("activation_fn", format!("`{other}` is none of gelu-approximate, gelu, geglu")));
        }
    };
    let c = DitConfig {
        heads: fields.size("num_attention_heads", 16, CHANNELS)?,
        head_dim: fields.size("attention_head_dim", 72, CHANNELS)?,
        in_channels,
        out_channels: fields.optional("out_channels", CHANNELS)?.unwrap_or(in_channels),
        layers: fields.size("num_layers", 28, 1..=1000)?,
        dropout: fields.number("dropout", 0.0, 0.0..=0.999)?,
        attention_bias: fields.flag("attention_bias", true)?,
        sample_size: fields.size("sample_size", 32, IMAGE)?,
        patch: fields.size("patch_size", 2, 1..=256)?,
        feed_forward,
        classes: fields.size("num_embeds_ada_norm", 1000, CLASSES)?,
        affine: fields.flag("norm_elementwise_affine", false)?,
        eps: fields.number("norm_eps", 1e-5, 0.0..=1.0)?,
    };
    let width = c.heads * c.head_dim;
    if !CHANNELS.contains(&width) || !width.is_multiple_of(4) {
        let reason = format!(
            "{} heads of {} channels make {width}, not a multiple of 4 up to {}",
            c.heads,
            c.head_dim,
            CHANNELS.end()
        );
        return Err(fields.fail("attention_head_dim", reason));
    }
    if c.sample_size < c.patch {
        return Err(fields.fail("patch_size", format!("{} exceeds sample_size {}", c.patch, c.sample_size)));
    }
    Ok(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config> {
        Config::parse(text, Path::new("model/config.json"))
    }

    #[test]
    fn absent_keys_have_the_class_defaults() {
        let Ok(Config::Unet2d(c)) = parse(r#"{"_class_name": "UNet2DModel"}"#) else { panic!() };
        assert_eq!((c.unet.channels.len(), c.head_dim, c.unet.groups), (4, Some(8), 32));
        let Ok(Config::Unet2dCondition(c)) = parse(r#"{"_class_name": "UNet2DConditionModel"}"#) else { panic!() };
        assert_eq!((c.heads[0], c.cross_attention_dim, c.unet.embedding.dim), (8, 1280, 1280));
        let Ok(Config::Dit(c)) = parse(r#"{"_class_name": "DiTTransformer2DModel"}"#) else { panic!() };
        assert_eq!((c.layers, c.heads * c.head_dim, c.out_channels), (28, 1152, 4));
        let Ok(Config::DitMoe(c)) = parse(r#"{"_class_name": "DiTMoE", "mlp_ratio": 4.0}"#) else { panic!() };
        assert_eq!((c.experts, c.chosen, c.expert_width, c.shared_width), (8, 2, 4608, 2304));
        assert_eq!((c.out_channels, c.normalize, c.routing), (8, false, Routing::Top));
    }

    #[test]
    fn bad_configurations_are_errors_that_name_the_field() {
        let cases = [
            (r#"{}"#, "_class_name"),
            (r#"[1]"#, "not a JSON object"),
            (r#"{"_class_name": "VQModel"}"#, "_class_name"),
            (r#"{"_class_name": "UNet2DModel", "block_out_channels": [16, 32]}"#, "down_block_types"),
            (r#"{"_class_name": "UNet2DModel", "block_out_channels": [40, 41, 42, 43]}"#, "norm_num_groups"),
            (r#"{"_class_name": "UNet2DModel", "block_out_channels": [1e99, 1, 1, 1]}"#, "block_out_channels"),
            (r#"{"_class_name": "UNet2DModel", "in_channels": -3}"#, "in_channels"),
            (r#"{"_class_name": "UNet2DModel", "norm_num_groups": 0}"#, "norm_num_groups"),
            (r#"{"_class_name": "UNet2DModel", "down_block_types": ["A", "B", "C", "D"]}"#, "down_block_types"),
            (r#"{"_class_name": "UNet2DModel", "attention_head_dim": 1000}"#, "attention_head_dim"),
            (r#"{"_class_name": "UNet2DModel", "act_fn": "mish"}"#, "act_fn"),
            (r#"{"_class_name": "UNet2DModel", "time_embedding_type": "learned"}"#, "num_train_timesteps"),
            (
                r#"{"_class_name": "UNet2DConditionModel", "only_cross_attention": [true, true, true, false]}"#,
                "only_cross_attention",
            ),
            (r#"{"_class_name": "UNet2DConditionModel", "attention_head_dim": [5, 10]}"#, "attention_head_dim"),
            (
                r#"{"_class_name": "UNet2DConditionModel", "transformer_layers_per_block": 64, "layers_per_block": 64}"#,
                "transformer_layers_per_block",
            ),
            (
                r#"{"_class_name": "UNet2DConditionModel", "addition_embed_type": "text_time"}"#,
                "addition_time_embed_dim",
            ),
            (r#"{"_class_name": "DiTTransformer2DModel", "norm_type": "ada_norm_single"}"#, "norm_type"),
            (
                r#"{"_class_name": "DiTTransformer2DModel", "num_attention_heads": 32768, "attention_head_dim": 32768}"#,
                "attention_head_dim",
            ),
            (r#"{"_class_name": "DiTMoE", "num_experts_per_tok": 9}"#, "num_experts_per_tok"),
            (r#"{"_class_name": "DiTMoE", "num_experts": 0}"#, "num_experts"),
            (r#"{"_class_name": "DiTMoE", "num_experts": 257}"#, "num_experts"),
            (r#"{"_class_name": "DiTMoE", "hidden_size": 34, "num_heads": 2}"#, "hidden_size"),
            (r#"{"_class_name": "DiTMoE", "num_heads": 7}"#, "num_heads"),
            (r#"{"_class_name": "DiTMoE", "mlp_ratio": 0.3}"#, "mlp_ratio"),
            (r#"{"_class_name": "DiTMoE", "input_size": 2, "patch_size": 4}"#, "patch_size"),
            (r#"{"_class_name": "DiTMoE", "n_shared_experts": -1}"#, "n_shared_experts"),
            (r#"{"_class_name": "DiTMoE", "scoring_func": "sigmoid"}"#, "scoring_func"),
            (r#"{"_class_name": "EDMPrecond", "img_resolution": 32, "img_channels": 3}"#, "DhariwalUNet"),
            (r#"{"_class_name": "EDMPrecond", "model_type": "SongUNet", "img_channels": 3}"#, "img_resolution"),
            (
                r#"{"_class_name": "EDMPrecond", "model_type": "SongUNet", "img_channels": 3, "img_resolution": 30}"#,
                "img_resolution",
            ),
            (
                r#"{"_class_name": "EDMPrecond", "model_type": "SongUNet", "img_channels": 3, "img_resolution": 32, "model_channels": 33}"#,
                "model_channels",
            ),
            (
                r#"{"_class_name": "EDMPrecond", "model_type": "SongUNet", "img_channels": 3, "img_resolution": 32, "resample_filter": [1, -1]}"#,
                "resample_filter",
            ),
        ];
        for (text, field) in cases {
            let message = parse(text).expect_err(text).to_string();
            assert!(message.contains(field) && message.contains("config.json"), "{text}: {message}");
        }
    }
}
