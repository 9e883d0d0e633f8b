//! The configurations of diffusers' two UNets.

use super::{
    CHANNELS, CLASSES, ClassEmbedding, EmbeddingConfig, Fields, LAYERS, LEVELS, Level, Mid, Sampler, TextTime,
    TimeEmbedding, Unet2dConditionConfig, Unet2dConfig, UnetConfig, check_blocks, check_groups,
};
use crate::Result;
use serde_json::Value;

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
    if dim.is_multiple_of(2) && (dim / 2) as f32 > freq_shift {
        return Ok(());
    }
    Err(fields.fail(field, format!("a time embedding cannot be {dim} wide with freq_shift {freq_shift}")))
}

/// `UNet2DModel`.
pub fn unet2d(fields: &Fields) -> Result<Unet2dConfig> {
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
    let up = [
        ("UpBlock2D", plain),
        ("AttnUpBlock2D", attention(sampler("upsample_type")?)),
        ("ResnetUpsampleBlock2D", resnet),
    ];
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
    let head_dim = if fields.is_null("attention_head_dim") {
        None
    } else {
        Some(fields.size("attention_head_dim", 8, CHANNELS)?)
    };
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

/// `UNet2DConditionModel`.
pub fn unet2d_condition(fields: &Fields) -> Result<Unet2dConditionConfig> {
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
    for field in
        ["dual_cross_attention", "class_embeddings_concat", "resnet_skip_time_act", "mid_block_only_cross_attention"]
    {
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
