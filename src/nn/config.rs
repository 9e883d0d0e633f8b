//! Reading a model's `config.json`. A key that is absent has the default of the class that wrote it (diffusers' or EDM's); a value
//! that langevin cannot honour is an error that names the file and the field, never a silent approximation.

use crate::ops::Activation;
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

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
            "UNet2DModel" => Ok(Config::Unet2d(unet2d(&fields)?)),
            "UNet2DConditionModel" => Ok(Config::Unet2dCondition(unet2d_condition(&fields)?)),
            "DiTTransformer2DModel" => Ok(Config::Dit(dit(&fields)?)),
            "EDMPrecond" => Ok(Config::Edm(edm(&fields)?)),
            other => {
                let known = "UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel, EDMPrecond";
                Err(fields.fail("_class_name", format!("`{other}` is none of {known}")))
            }
        }
    }
}

/// The fields of a JSON object.
struct Fields {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Fields {
    fn parse(text: &str, path: &Path) -> Result<Fields> {
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Ok(Fields { path: path.to_owned(), map }),
            Ok(_) => Err(Error::format(path, "not a JSON object")),
            Err(e) => Err(Error::format(path, e.to_string())),
        }
    }

    fn fail(&self, field: &str, reason: impl Into<String>) -> Error {
        Error::config(&self.path, field, reason)
    }

    fn wrong(&self, field: &str, value: &Value, wanted: &str) -> Error {
        let text: String = value.to_string().chars().take(80).collect();
        self.fail(field, format!("{text} is not {wanted}"))
    }

    /// The value, if the key is there and not null.
    fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    /// True if the key is there with null: none, where absence would be the default.
    fn is_null(&self, field: &str) -> bool {
        self.map.get(field).is_some_and(Value::is_null)
    }

    fn integer(&self, field: &str, value: &Value, range: &RangeInclusive<usize>) -> Result<usize> {
        let n = value.as_u64().and_then(|n| usize::try_from(n).ok());
        n.filter(|n| range.contains(n))
            .ok_or_else(|| self.wrong(field, value, &format!("a whole number from {} to {}", range.start(), range.end())))
    }

    /// A whole number, or none if the key is absent or null.
    fn optional(&self, field: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        self.get(field).map(|v| self.integer(field, v, &range)).transpose()
    }

    fn size(&self, field: &str, default: usize, range: RangeInclusive<usize>) -> Result<usize> {
        if self.is_null(field) {
            return Err(self.fail(field, "must not be null"));
        }
        Ok(self.optional(field, range)?.unwrap_or(default))
    }

    /// A whole number that must be there.
    fn required(&self, field: &str, range: RangeInclusive<usize>) -> Result<usize> {
        self.optional(field, range)?.ok_or_else(|| self.fail(field, "is missing"))
    }

    fn number(&self, field: &str, default: f64, range: RangeInclusive<f64>) -> Result<f32> {
        let Some(value) = self.get(field) else { return Ok(default as f32) };
        let wanted = || self.wrong(field, value, &format!("a number from {} to {}", range.start(), range.end()));
        value.as_f64().filter(|n| range.contains(n)).map(|n| n as f32).ok_or_else(wanted)
    }

    fn flag(&self, field: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(field) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(field, value, "true or false"))
    }

    /// A string; without a default the key must be there.
    fn word<'a>(&'a self, field: &str, default: Option<&'a str>) -> Result<&'a str> {
        match self.get(field) {
            Some(value) => value.as_str().ok_or_else(|| self.wrong(field, value, "a string")),
            None => default.ok_or_else(|| self.fail(field, "is missing")),
        }
    }

    fn list(&self, field: &str, length: RangeInclusive<usize>) -> Result<Option<&Vec<Value>>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let list = value.as_array().ok_or_else(|| self.wrong(field, value, "a list"))?;
        if !length.contains(&list.len()) {
            let reason = format!("has {} entries; supported are {} to {}", list.len(), length.start(), length.end());
            return Err(self.fail(field, reason));
        }
        Ok(Some(list))
    }

    fn sizes(&self, field: &str, default: &[usize], length: RangeInclusive<usize>, range: RangeInclusive<usize>) -> Result<Vec<usize>> {
        match self.list(field, length)? {
            Some(list) => list.iter().map(|v| self.integer(field, v, &range)).collect(),
            None => Ok(default.to_vec()),
        }
    }

    /// One whole number for every level, or a list with one for each.
    fn by_level(&self, field: &str, default: usize, levels: usize, range: RangeInclusive<usize>) -> Result<Vec<usize>> {
        if self.get(field).is_some_and(Value::is_array) {
            let list = self.sizes(field, &[], LEVELS, range)?;
            return self.same_length(field, list.len(), levels).map(|()| list);
        }
        Ok(vec![self.size(field, default, range)?; levels])
    }

    fn same_length(&self, field: &str, found: usize, levels: usize) -> Result<()> {
        if found == levels {
            return Ok(());
        }
        Err(self.fail(field, format!("has {found} entries, block_out_channels {levels}")))
    }

    /// Fails if the key is there with a value that is neither null nor `neutral`: a feature that langevin does not have.
    fn lacks(&self, field: &str, neutral: &[Value]) -> Result<()> {
        let equal = |a: &Value, b: &Value| a == b || (a.is_number() && a.as_f64() == b.as_f64());
        match self.get(field) {
            Some(value) if !neutral.iter().any(|n| equal(value, n)) => {
                let text: String = value.to_string().chars().take(80).collect();
                Err(self.fail(field, format!("{text} is not supported")))
            }
            _ => Ok(()),
        }
    }

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
fn check_groups(fields: &Fields, field: &str, groups: usize, channels: &[usize]) -> Result<()> {
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

/// What the names of block types mean.
type BlockNames = [(&'static str, Level)];

fn levels(fields: &Fields, field: &str, default: &[&str], known: &BlockNames) -> Result<Vec<Level>> {
    let level = |name: &str| match known.iter().find(|(n, _)| *n == name) {
        Some((_, level)) => Ok(*level),
        None => {
            let names: Vec<&str> = known.iter().map(|(n, _)| *n).collect();
            Err(fields.fail(field, format!("`{name}` is none of {}", names.join(", "))))
        }
    };
    let Some(list) = fields.list(field, LEVELS)? else { return default.iter().map(|n| level(n)).collect() };
    list.iter().map(|v| level(v.as_str().ok_or_else(|| fields.wrong(field, v, "a string"))?)).collect()
}

/// Defaults in which the two UNets differ.
struct UnetDefaults<'a> {
    in_channels: usize,
    down: &'a [&'a str],
    up: &'a [&'a str],
    channels: &'a [usize],
}

fn unet(fields: &Fields, defaults: UnetDefaults, down: &BlockNames, up: &BlockNames) -> Result<UnetConfig> {
    let channels = fields.sizes("block_out_channels", defaults.channels, LEVELS, CHANNELS)?;
    let down = levels(fields, "down_block_types", defaults.down, down)?;
    let up = levels(fields, "up_block_types", defaults.up, up)?;
    fields.same_length("down_block_types", down.len(), channels.len())?;
    fields.same_length("up_block_types", up.len(), channels.len())?;
    let layers = fields.by_level("layers_per_block", 2, channels.len(), LAYERS)?;
    let groups = fields.size("norm_num_groups", 32, CHANNELS)?;
    check_groups(fields, "norm_num_groups", groups, &channels)?;
    let scale_shift = match fields.word("resnet_time_scale_shift", Some("default"))? {
        "default" => false,
        "scale_shift" => true,
        other => {
            let reason = format!("`{other}` is none of default, scale_shift");
            return Err(fields.fail("resnet_time_scale_shift", reason));
        }
    };
    Ok(UnetConfig {
        in_channels: fields.size("in_channels", defaults.in_channels, CHANNELS)?,
        out_channels: fields.size("out_channels", defaults.in_channels, CHANNELS)?,
        sample_size: fields.sample_size()?,
        center_input: fields.flag("center_input_sample", false)?,
        embedding: embedding(fields, channels[0])?,
        mid_scale: fields.number("mid_block_scale_factor", 1.0, 1e-6..=1e6)?,
        down_padding: fields.size("downsample_padding", 1, 0..=1)?,
        dropout: fields.number("dropout", 0.0, 0.0..=0.999)?,
        activation: fields.activation("act_fn", "silu")?,
        eps: fields.number("norm_eps", 1e-5, 0.0..=1.0)?,
        down,
        up,
        channels,
        layers,
        groups,
        scale_shift,
    })
}

fn embedding(fields: &Fields, first: usize) -> Result<EmbeddingConfig> {
    let flip_sin_to_cos = fields.flag("flip_sin_to_cos", true)?;
    let freq_shift = fields.number("freq_shift", 0.0, 0.0..=1e3)?;
    let time = match fields.word("time_embedding_type", Some("positional"))? {
        "positional" => TimeEmbedding::Positional { flip_sin_to_cos, freq_shift },
        "fourier" => TimeEmbedding::Fourier,
        "learned" => TimeEmbedding::Learned { steps: fields.required("num_train_timesteps", CLASSES)? },
        other => {
            let reason = format!("`{other}` is none of positional, fourier, learned");
            return Err(fields.fail("time_embedding_type", reason));
        }
    };
    if matches!(time, TimeEmbedding::Positional { .. }) {
        check_sinusoids(fields, "block_out_channels", first, freq_shift)?;
    }
    let dim = fields.optional("time_embedding_dim", CHANNELS)?.unwrap_or(first.saturating_mul(4));
    let class = match (fields.word("class_embed_type", Some("none"))?, fields.optional("num_class_embeds", CLASSES)?) {
        ("none", Some(n)) => ClassEmbedding::Labels(n),
        ("none", None) => ClassEmbedding::None,
        ("timestep", _) if matches!(time, TimeEmbedding::Positional { .. }) => ClassEmbedding::Timestep,
        ("identity", _) => ClassEmbedding::Identity,
        ("projection", _) => {
            ClassEmbedding::Projection(fields.required("projection_class_embeddings_input_dim", CHANNELS)?)
        }
        (other, _) => return Err(fields.fail("class_embed_type", format!("`{other}` is not supported here"))),
    };
    Ok(EmbeddingConfig { time, dim, class })
}

/// Sinusoids come in pairs, and half their number less the shift divides the exponents.
fn check_sinusoids(fields: &Fields, field: &str, dim: usize, freq_shift: f32) -> Result<()> {
    if dim % 2 == 0 && (dim / 2) as f32 > freq_shift {
        return Ok(());
    }
    Err(fields.fail(field, format!("a time embedding cannot be {dim} wide with freq_shift {freq_shift}")))
}

fn unet2d(fields: &Fields) -> Result<Unet2dConfig> {
    let sampler = |field: &str| match fields.word(field, Some("conv"))? {
        "conv" => Ok(Sampler::Conv),
        "resnet" => Ok(Sampler::Resnet),
        other => Err(fields.fail(field, format!("`{other}` is none of conv, resnet"))),
    };
    let plain = Level { attention: false, sampler: Sampler::Conv };
    let resnet = Level { attention: false, sampler: Sampler::Resnet };
    // Only levels with attention heed downsample_type and upsample_type.
    let attention = |sampler| Level { attention: true, sampler };
    let down = [
        ("DownBlock2D", plain),
        ("AttnDownBlock2D", attention(sampler("downsample_type")?)),
        ("ResnetDownsampleBlock2D", resnet),
    ];
    let up =
        [("UpBlock2D", plain), ("AttnUpBlock2D", attention(sampler("upsample_type")?)), ("ResnetUpsampleBlock2D", resnet)];
    let (a, b) = ("AttnDownBlock2D", "AttnUpBlock2D");
    let defaults = UnetDefaults {
        in_channels: 3,
        down: &["DownBlock2D", a, a, a],
        up: &[b, b, b, "UpBlock2D"],
        channels: &[224, 448, 672, 896],
    };
    let unet = unet(fields, defaults, &down, &up)?;
    if matches!(unet.embedding.class, ClassEmbedding::Projection(_)) {
        return Err(fields.fail("class_embed_type", "UNet2DModel has no `projection`"));
    }
    check_blocks(fields, "layers_per_block", unet.layers.iter().map(|n| 2 * n + 1).sum())?;
    let head_dim = if fields.is_null("attention_head_dim") { None } else { Some(fields.size("attention_head_dim", 8, CHANNELS)?) };
    let mid = unet2d_mid(fields, &unet)?;
    check_head_dim(fields, &unet, mid, head_dim)?;
    Ok(Unet2dConfig { unet, mid, head_dim })
}

fn unet2d_mid(fields: &Fields, unet: &UnetConfig) -> Result<Option<Mid>> {
    if fields.is_null("mid_block_type") {
        return Ok(None);
    }
    let name = fields.word("mid_block_type", Some("UNetMidBlock2D"))?;
    if name != "UNetMidBlock2D" {
        return Err(fields.fail("mid_block_type", format!("`{name}` is neither UNetMidBlock2D nor null")));
    }
    let given = fields.optional("attn_norm_num_groups", CHANNELS)?;
    let attention_groups = given.or((!unet.scale_shift).then_some(unet.groups));
    if let (Some(groups), Some(last)) = (attention_groups, unet.channels.last()) {
        check_groups(fields, "attn_norm_num_groups", groups, &[*last])?;
    }
    Ok(Some(Mid { attention: fields.flag("add_attention", true)?, attention_groups }))
}

fn check_head_dim(fields: &Fields, unet: &UnetConfig, mid: Option<Mid>, head_dim: Option<usize>) -> Result<()> {
    let Some(head_dim) = head_dim else { return Ok(()) };
    let last = unet.channels.len() - 1;
    let attends = |i: usize| {
        unet.down[i].attention || unet.up[last - i].attention || (i == last && mid.is_some_and(|m| m.attention))
    };
    match (0..=last).find(|i| attends(*i) && unet.channels[*i] < head_dim) {
        Some(i) => Err(fields.fail("attention_head_dim", format!("{head_dim} exceeds {} channels", unet.channels[i]))),
        None => Ok(()),
    }
}

fn unet2d_condition(fields: &Fields) -> Result<Unet2dConditionConfig> {
    condition_lacks(fields)?;
    let plain = Level { attention: false, sampler: Sampler::Conv };
    let resnet = Level { attention: false, sampler: Sampler::Resnet };
    let cross = Level { attention: true, sampler: Sampler::Conv };
    let down = [("DownBlock2D", plain), ("CrossAttnDownBlock2D", cross), ("ResnetDownsampleBlock2D", resnet)];
    let up = [("UpBlock2D", plain), ("CrossAttnUpBlock2D", cross), ("ResnetUpsampleBlock2D", resnet)];
    let (a, b) = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D");
    let defaults = UnetDefaults {
        in_channels: 4,
        down: &[a, a, a, "DownBlock2D"],
        up: &["UpBlock2D", b, b, b],
        channels: &[320, 640, 1280, 1280],
    };
    let unet = unet(fields, defaults, &down, &up)?;
    if !matches!(unet.embedding.time, TimeEmbedding::Positional { .. }) {
        return Err(fields.fail("time_embedding_type", "only `positional` is supported for UNet2DConditionModel"));
    }
    let levels = unet.channels.len();
    let transformer_layers = fields.by_level("transformer_layers_per_block", 1, levels, LAYERS)?;
    let blocks = unet.layers.iter().zip(&transformer_layers).map(|(n, t)| (2 * n + 1) * (1 + t)).sum();
    check_blocks(fields, "transformer_layers_per_block", blocks)?;
    // The field is misnamed: it holds the number of heads (diffusers issue 2011).
    let heads = fields.by_level("attention_head_dim", 8, levels, CHANNELS)?;
    if let Some((h, c)) = heads.iter().zip(&unet.channels).find(|(h, c)| h > c) {
        return Err(fields.fail("attention_head_dim", format!("{h} heads do not fit {c} channels")));
    }
    Ok(Unet2dConditionConfig {
        mid: condition_mid(fields)?,
        cross_attention_dim: cross_attention_dim(fields, levels)?,
        linear_projection: fields.flag("use_linear_projection", false)?,
        addition: text_time(fields, &unet.embedding)?,
        time_cond_dim: fields.optional("time_cond_proj_dim", CHANNELS)?,
        conv_in_kernel: odd(fields, "conv_in_kernel")?,
        conv_out_kernel: odd(fields, "conv_out_kernel")?,
        unet,
        heads,
        transformer_layers,
    })
}

/// All levels read the same `encoder_hidden_states`.
fn cross_attention_dim(fields: &Fields, levels: usize) -> Result<usize> {
    let dims = fields.by_level("cross_attention_dim", 1280, levels, CHANNELS)?;
    if dims.iter().any(|d| *d != dims[0]) {
        return Err(fields.fail("cross_attention_dim", format!("{dims:?} differ between levels")));
    }
    Ok(dims[0])
}

/// Features of `UNet2DConditionModel` that langevin does not have.
fn condition_lacks(fields: &Fields) -> Result<()> {
    let off = Value::Bool(false);
    let one = Value::from(1.0);
    for field in [
        "num_attention_heads",
        "reverse_transformer_layers_per_block",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "time_embedding_act_fn",
        "timestep_post_act",
        "cross_attention_norm",
    ] {
        fields.lacks(field, &[])?;
    }
    for field in ["dual_cross_attention", "class_embeddings_concat", "resnet_skip_time_act", "mid_block_only_cross_attention"] {
        fields.lacks(field, std::slice::from_ref(&off))?;
    }
    fields.lacks("only_cross_attention", std::slice::from_ref(&off))?;
    fields.lacks("resnet_out_scale_factor", std::slice::from_ref(&one))?;
    fields.lacks("attention_type", &[Value::from("default")])
}

fn condition_mid(fields: &Fields) -> Result<bool> {
    if fields.is_null("mid_block_type") {
        return Ok(false);
    }
    match fields.word("mid_block_type", Some("UNetMidBlock2DCrossAttn"))? {
        "UNetMidBlock2DCrossAttn" => Ok(true),
        other => Err(fields.fail("mid_block_type", format!("`{other}` is neither UNetMidBlock2DCrossAttn nor null"))),
    }
}

fn text_time(fields: &Fields, embedding: &EmbeddingConfig) -> Result<Option<TextTime>> {
    match fields.word("addition_embed_type", Some("none"))? {
        "none" => Ok(None),
        "text_time" => {
            let time_dim = fields.required("addition_time_embed_dim", CHANNELS)?;
            if let TimeEmbedding::Positional { freq_shift, .. } = embedding.time {
                check_sinusoids(fields, "addition_time_embed_dim", time_dim, freq_shift)?;
            }
            let input_dim = fields.required("projection_class_embeddings_input_dim", 1..=1_000_000)?;
            Ok(Some(TextTime { time_dim, input_dim }))
        }
        other => Err(fields.fail("addition_embed_type", format!("`{other}` is neither text_time nor null"))),
    }
}

fn odd(fields: &Fields, field: &str) -> Result<usize> {
    let kernel = fields.size(field, 3, 1..=15)?;
    if kernel % 2 == 1 { Ok(kernel) } else { Err(fields.fail(field, format!("{kernel} is not odd"))) }
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
    if !CHANNELS.contains(&width) || width % 4 != 0 {
        let reason = format!("{} heads of {} channels make {width}, not a multiple of 4 up to {}", c.heads, c.head_dim, CHANNELS.end());
        return Err(fields.fail("attention_head_dim", reason));
    }
    if c.sample_size < c.patch {
        return Err(fields.fail("patch_size", format!("{} exceeds sample_size {}", c.patch, c.sample_size)));
    }
    Ok(c)
}

fn edm(fields: &Fields) -> Result<EdmConfig> {
    let model = fields.word("model_type", Some("DhariwalUNet"))?;
    if model != "SongUNet" {
        return Err(Error::unsupported(format!("{}: model_type `{model}`", fields.path.display()), "only SongUNet is"));
    }
    fields.lacks("decoder_type", &[Value::from("standard")])?;
    let choice = |field: &str, default, off: &str, on: &str| match fields.word(field, Some(default))? {
        word if word == off => Ok(false),
        word if word == on => Ok(true),
        other => Err(fields.fail(field, format!("`{other}` is none of {off}, {on}"))),
    };
    let c = EdmConfig {
        resolution: fields.required("img_resolution", IMAGE)?,
        channels: fields.required("img_channels", CHANNELS)?,
        label_dim: fields.size("label_dim", 0, 0..=*CLASSES.end())?,
        augment_dim: fields.size("augment_dim", 0, 0..=*CHANNELS.end())?,
        sigma_data: fields.number("sigma_data", 0.5, 1e-6..=1e6)?,
        model_channels: fields.size("model_channels", 128, 4..=*CHANNELS.end())?,
        channel_mult: fields.sizes("channel_mult", &[1, 2, 2, 2], LEVELS, 1..=64)?,
        channel_mult_emb: fields.size("channel_mult_emb", 4, 1..=64)?,
        channel_mult_noise: fields.size("channel_mult_noise", 1, 1..=64)?,
        blocks: fields.size("num_blocks", 4, LAYERS)?,
        attention_resolutions: fields.sizes("attn_resolutions", &[16], 0..=64, IMAGE)?,
        dropout: fields.number("dropout", 0.1, 0.0..=0.999)?,
        fourier: choice("embedding_type", "positional", "positional", "fourier")?,
        residual_encoder: choice("encoder_type", "standard", "standard", "residual")?,
        resample_filter: resample_filter(fields)?,
    };
    check_edm(fields, &c)?;
    Ok(c)
}

fn resample_filter(fields: &Fields) -> Result<Vec<f32>> {
    let field = "resample_filter";
    let Some(list) = fields.list(field, 1..=16)? else { return Ok(vec![1.0, 1.0]) };
    let taps: Option<Vec<f32>> = list.iter().map(|v| v.as_f64().filter(|x| x.abs() < 1e6).map(|x| x as f32)).collect();
    let taps = taps.ok_or_else(|| fields.fail(field, "has entries that are no numbers"))?;
    if taps.len() % 2 != 0 || taps.iter().sum::<f32>().abs() < 1e-6 {
        return Err(fields.fail(field, "must have an even number of taps that do not cancel"));
    }
    Ok(taps)
}

fn check_edm(fields: &Fields, c: &EdmConfig) -> Result<()> {
    let levels = c.channel_mult.len();
    if c.resolution % (1 << (levels - 1)) != 0 {
        let reason = format!("{} cannot be halved {} times", c.resolution, levels - 1);
        return Err(fields.fail("img_resolution", reason));
    }
    // All factors are bounded, so no product overflows.
    let noise = c.model_channels * c.channel_mult_noise;
    let widths: Vec<usize> = c.channel_mult.iter().map(|m| m * c.model_channels).collect();
    let widest = widths.iter().copied().chain([noise, c.model_channels * c.channel_mult_emb]).max().unwrap_or(0);
    if widest > *CHANNELS.end() {
        return Err(fields.fail("model_channels", format!("makes layers of {widest} channels")));
    }
    if noise % 2 != 0 || noise < 4 {
        return Err(fields.fail("model_channels", format!("a noise embedding cannot be {noise} wide")));
    }
    // What a decoder block joins: its level's width with its own, the one below, or the one above.
    let joined = widths.windows(2).map(|w| w[0] + w[1]).chain(widths.iter().map(|w| 2 * w));
    for channels in widths.iter().copied().chain([c.model_channels]).chain(joined) {
        check_groups(fields, "model_channels", super::song_unet::groups(channels), &[channels])?;
    }
    Ok(())
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
            (r#"{"_class_name": "UNet2DConditionModel", "only_cross_attention": [true, true, true, false]}"#, "only_cross_attention"),
            (r#"{"_class_name": "UNet2DConditionModel", "attention_head_dim": [5, 10]}"#, "attention_head_dim"),
            (r#"{"_class_name": "UNet2DConditionModel", "transformer_layers_per_block": 64, "layers_per_block": 64}"#, "transformer_layers_per_block"),
            (r#"{"_class_name": "UNet2DConditionModel", "addition_embed_type": "text_time"}"#, "addition_time_embed_dim"),
            (r#"{"_class_name": "DiTTransformer2DModel", "norm_type": "ada_norm_single"}"#, "norm_type"),
            (r#"{"_class_name": "DiTTransformer2DModel", "num_attention_heads": 32768, "attention_head_dim": 32768}"#, "attention_head_dim"),
            (r#"{"_class_name": "EDMPrecond", "img_resolution": 32, "img_channels": 3}"#, "DhariwalUNet"),
            (r#"{"_class_name": "EDMPrecond", "model_type": "SongUNet", "img_channels": 3}"#, "img_resolution"),
            (r#"{"_class_name": "EDMPrecond", "model_type": "SongUNet", "img_channels": 3, "img_resolution": 30}"#, "img_resolution"),
            (r#"{"_class_name": "EDMPrecond", "model_type": "SongUNet", "img_channels": 3, "img_resolution": 32, "model_channels": 33}"#, "model_channels"),
            (r#"{"_class_name": "EDMPrecond", "model_type": "SongUNet", "img_channels": 3, "img_resolution": 32, "resample_filter": [1, -1]}"#, "resample_filter"),
        ];
        for (text, field) in cases {
            let message = parse(text).expect_err(text).to_string();
            assert!(message.contains(field) && message.contains("config.json"), "{text}: {message}");
        }
    }
}
