//! The configuration of EDM's networks.

use super::{CHANNELS, CLASSES, EdmConfig, Fields, IMAGE, LAYERS, LEVELS, check_groups};
use crate::nn::song_unet::groups;
use crate::{Error, Result};
use serde_json::Value;

/// `EDMPrecond` around a SongUNet.
pub fn edm(fields: &Fields) -> Result<EdmConfig> {
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
    if !c.resolution.is_multiple_of(1 << (levels - 1)) {
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
    if !noise.is_multiple_of(2) || noise < 4 {
        return Err(fields.fail("model_channels", format!("a noise embedding cannot be {noise} wide")));
    }
    // What a decoder block joins: its level's width with its own, the one below, or the one above.
    let joined = widths.windows(2).map(|w| w[0] + w[1]).chain(widths.iter().map(|w| 2 * w));
    for channels in widths.iter().copied().chain([c.model_channels]).chain(joined) {
        check_groups(fields, "model_channels", groups(channels), &[channels])?;
    }
    Ok(())
}
