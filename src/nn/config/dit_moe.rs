//! The configuration of DiT-MoE.

use super::{CHANNELS, CLASSES, DitMoeConfig, Fields, IMAGE};
use crate::Result;
use crate::ops::Routing;

/// `DiTMoE`. The keys are the arguments of its class in the authors' code, `n_shared_experts` and `norm_topk_prob` attributes there.
pub fn dit_moe(fields: &Fields) -> Result<DitMoeConfig> {
    fields.lacks("scoring_func", &["softmax".into()])?;
    let in_channels = fields.size("in_channels", 4, CHANNELS)?;
    let width = fields.size("hidden_size", 1152, CHANNELS)?;
    let shared = if fields.is_null("n_shared_experts") { 0 } else { fields.size("n_shared_experts", 2, 0..=64)? };
    let c = DitMoeConfig {
        in_channels,
        out_channels: if fields.flag("learn_sigma", true)? { 2 * in_channels } else { in_channels },
        sample_size: fields.size("input_size", 32, IMAGE)?,
        patch: fields.size("patch_size", 2, 1..=256)?,
        width,
        layers: fields.size("depth", 28, 1..=1000)?,
        heads: fields.size("num_heads", 16, CHANNELS)?,
        classes: fields.size("num_classes", 1000, CLASSES)?,
        experts: fields.size("num_experts", 8, 1..=256)?,
        chosen: fields.size("num_experts_per_tok", 2, 1..=256)?,
        normalize: fields.flag("norm_topk_prob", false)?,
        expert_width: expert_width(fields, width)?,
        shared_width: shared * width,
        routing: Routing::Top,
    };
    check(fields, &c)?;
    Ok(c)
}

/// `mlp_ratio` times the width, a whole number.
fn expert_width(fields: &Fields, width: usize) -> Result<usize> {
    let ratio = fields.number("mlp_ratio", 4.0, 1e-3..=64.0)?;
    let inner = ratio * width as f32;
    if inner.fract() != 0.0 || inner < 1.0 {
        let reason = format!("{ratio} times hidden_size {width} is {inner}, not a whole number of channels");
        return Err(fields.fail("mlp_ratio", reason));
    }
    Ok(inner as usize)
}

fn check(fields: &Fields, c: &DitMoeConfig) -> Result<()> {
    if !c.width.is_multiple_of(4) {
        return Err(fields.fail("hidden_size", format!("{} is not a multiple of 4", c.width)));
    }
    if !c.width.is_multiple_of(c.heads) {
        return Err(fields.fail("num_heads", format!("{} heads do not divide hidden_size {}", c.heads, c.width)));
    }
    if c.sample_size < c.patch {
        return Err(fields.fail("patch_size", format!("{} exceeds input_size {}", c.patch, c.sample_size)));
    }
    if c.chosen > c.experts {
        let reason = format!("{} experts for each token are more than num_experts {}", c.chosen, c.experts);
        return Err(fields.fail("num_experts_per_tok", reason));
    }
    Ok(())
}
