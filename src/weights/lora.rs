//! LoRA files: low-rank pairs under the names that the tools in use give them.
//!
//! | written by | a layer's pair | alpha |
//! |---|---|---|
//! | kohya's scripts | `lora_unet_<layer, _ for .>.lora_down.weight`, `.lora_up.weight` | `lora_unet_<layer>.alpha` |
//! | PEFT | `base_model.model.<layer>.lora_A.weight`, `.lora_B.weight` | `adapter_config.json` beside it |
//! | diffusers | `unet.<layer>.lora_A.weight` or, before 0.20, `….lora.down.weight`, `….processor.to_q_lora.down.weight` | note in the header |
//!
//! Where no alpha is given it equals the rank. kohya's files for SDXL name layers as Stability's code does; the attention
//! blocks of those names are known.

use super::{Dtype, TensorInfo, TensorSpec, Weights, WriteOptions, Writer};
use crate::files::write_atomic;
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// PEFT's description of an adapter, beside its weights.
const ADAPTER_CONFIG: &str = "adapter_config.json";
/// PEFT's weights.
const ADAPTER_MODEL: &str = "adapter_model.safetensors";
/// The weights under kohya's names.
const KOHYA_FILE: &str = "kohya.safetensors";
/// The largest `adapter_config.json` that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// The low-rank pairs of a LoRA file.
#[derive(Debug)]
pub struct LoraFile {
    weights: Weights,
    pairs: Vec<LoraPair>,
    base: Option<PathBuf>,
    text_tensors: usize,
}

/// One adapted layer in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraPair {
    layer: LayerName,
    /// Name of the tensor `[rank, K]` or `[rank, C, k₀, k₁]`.
    pub down: String,
    /// Name of the tensor `[N, rank]` or `[N, rank, 1, 1]`.
    pub up: String,
    pub rank: usize,
    /// The pair adds `alpha/rank · up · down`.
    pub alpha: f32,
}

/// How a file spells a layer's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum LayerName {
    Dotted(String),
    /// With every dot an underscore.
    Underscored(String),
}

/// What a tensor is of its pair.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Down,
    Up,
    Alpha,
}

/// A pair while its tensors are gathered.
#[derive(Default)]
struct Parts {
    down: Option<String>,
    up: Option<String>,
    alpha: Option<String>,
}

/// Endings of tensor names, longest first where one ends another.
const ENDINGS: [(&str, Part); 13] = [
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".lora_A.default.weight", Part::Down),
    (".lora_B.default.weight", Part::Up),
    (".lora_A.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    ("_lora.down.weight", Part::Down),
    ("_lora.up.weight", Part::Up),
    (".alpha", Part::Alpha),
];

/// In front of the names of layers, where a file holds more than one network.
const UNDERSCORED_PREFIXES: [&str; 2] = ["lora_unet_", "lora_transformer_"];
const DOTTED_PREFIXES: [&str; 5] =
    ["base_model.model.", "unet.", "transformer.", "model.diffusion_model.", "diffusion_model."];
/// Of text encoders, which langevin does not have.
const TEXT_PREFIXES: [&str; 3] = ["lora_te", "text_encoder", "text_model"];

impl LoraFile {
    /// Opens a LoRA file, or the folder that PEFT saves an adapter in.
    ///
    /// # Errors
    /// [`Error::Format`] listing the tensors that belong to no low-rank pair; [`Error::Tensor`] for half a pair or a rank that
    /// contradicts itself; [`Error::Config`] for forms of PEFT's adapters other than plain LoRA.
    pub fn open(path: impl AsRef<Path>) -> Result<LoraFile> {
        let path = path.as_ref();
        let (weights, config) = match path.is_dir() {
            true => {
                let config = PeftConfig::read(&path.join(ADAPTER_CONFIG))?;
                (Weights::open(path.join(ADAPTER_MODEL))?, Some(config))
            }
            false => {
                let weights = Weights::open(path)?;
                let config = PeftConfig::of_note(&weights)?;
                (weights, config)
            }
        };
        let (gathered, text_tensors) = gather(&weights)?;
        let mut pairs = Vec::new();
        for (layer, parts) in gathered {
            let alpha = config.as_ref().map(|c| c.alpha(&layer));
            pairs.push(pair(&weights, layer, parts, alpha)?);
        }
        if config.as_ref().is_some_and(|c| c.use_rslora) {
            // The factor of rank-stabilised LoRA is alpha/√rank.   (Kalajdzievski 2023)
            pairs.iter_mut().for_each(|p| p.alpha *= (p.rank as f32).sqrt());
        }
        let base = config.and_then(|p| p.base_model_name_or_path).map(PathBuf::from);
        Ok(LoraFile { weights, pairs, base, text_tensors })
    }

    /// True for a folder in which PEFT, or langevin, saved an adapter.
    pub fn is_adapter_folder(path: &Path) -> bool {
        path.join(ADAPTER_CONFIG).is_file()
    }

    /// The tensors.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// All pairs, by layer.
    pub fn pairs(&self) -> &[LoraPair] {
        &self.pairs
    }

    /// The model that PEFT's configuration says the adapter is for.
    pub fn base(&self) -> Option<&Path> {
        self.base.as_deref()
    }

    /// The number of tensors for text encoders, which are left alone.
    pub fn text_tensors(&self) -> usize {
        self.text_tensors
    }
}

impl LoraPair {
    /// True if this is the pair of that layer.
    pub fn adapts(&self, layer: &str) -> bool {
        match &self.layer {
            LayerName::Dotted(name) => name == layer,
            LayerName::Underscored(name) => {
                name.len() == layer.len()
                    && name.chars().zip(layer.chars()).all(|(a, b)| a == b || (a, b) == ('_', '.'))
            }
        }
    }
}

/// The tensors by layer, and the number of those for text encoders.
fn gather(weights: &Weights) -> Result<(BTreeMap<LayerName, Parts>, usize)> {
    let mut layers: BTreeMap<LayerName, Parts> = BTreeMap::new();
    let (mut unknown, mut text) = (Vec::new(), 0);
    for name in weights.names() {
        if is_text(name) {
            text += 1;
            continue;
        }
        let Some((layer, part)) = ENDINGS.iter().find_map(|(e, part)| Some((name.strip_suffix(e)?, *part))) else {
            unknown.push(name);
            continue;
        };
        let parts = layers.entry(layer_name(layer)).or_default();
        let place = match part {
            Part::Down => &mut parts.down,
            Part::Up => &mut parts.up,
            Part::Alpha => &mut parts.alpha,
        };
        if let Some(other) = place.replace(name.to_owned()) {
            return Err(Error::tensor(weights.path(), name, format!("names the same layer as `{other}`")));
        }
    }
    if !unknown.is_empty() {
        let reason = format!("holds tensors of no LoRA pair that langevin knows: {}", listed(&unknown));
        return Err(Error::format(weights.path(), reason));
    }
    if layers.is_empty() {
        return Err(Error::format(weights.path(), "holds no LoRA pair for a UNet or DiT"));
    }
    Ok((layers, text))
}

fn is_text(name: &str) -> bool {
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    TEXT_PREFIXES.iter().any(|p| name.starts_with(p))
}

/// A layer's name without what stands around it.
fn layer_name(name: &str) -> LayerName {
    if let Some(layer) = UNDERSCORED_PREFIXES.iter().find_map(|p| name.strip_prefix(p)) {
        return LayerName::Underscored(from_stability(layer).unwrap_or_else(|| layer.to_owned()));
    }
    let mut layer = name;
    while let Some(rest) = DOTTED_PREFIXES.iter().find_map(|p| layer.strip_prefix(p)) {
        layer = rest;
    }
    // `….attn1.processor.to_out`, as diffusers wrote before 0.20; the linear layer is the first of a list.
    let layer = layer.replace(".processor.", ".");
    LayerName::Dotted(if layer.ends_with(".to_out") { format!("{layer}.0") } else { layer })
}

/// `input_blocks_4_1_…` → `down_blocks_1_attentions_0_…`: SDXL's attention blocks, of which a level's every ResNet block has
/// one, with a resampling block after each level but the last.
fn from_stability(layer: &str) -> Option<String> {
    const PER_LEVEL: usize = 3;
    if let Some(rest) = layer.strip_prefix("middle_block_1_") {
        return Some(format!("mid_block_attentions_0_{rest}"));
    }
    let (side, rest) = match layer.strip_prefix("input_blocks_") {
        Some(rest) => ("down", rest),
        None => ("up", layer.strip_prefix("output_blocks_")?),
    };
    let (block, rest) = rest.split_once('_')?;
    let rest = rest.strip_prefix("1_")?;
    // The first input block is the stem.
    let block = block.parse::<usize>().ok()?.checked_sub((side == "down") as usize)?;
    Some(format!("{side}_blocks_{}_attentions_{}_{rest}", block / PER_LEVEL, block % PER_LEVEL))
}

/// Names, at most eight.
fn listed(names: &[&str]) -> String {
    let shown = names.iter().take(8).map(|n| format!("`{}`", super::shown(n))).collect::<Vec<_>>().join(", ");
    if names.len() > 8 { format!("{shown} and {} more", names.len() - 8) } else { shown }
}

/// Checks a layer's tensors. `alpha` is what counts where the layer has none of its own.
fn pair(weights: &Weights, layer: LayerName, parts: Parts, alpha: Option<f32>) -> Result<LoraPair> {
    let half = |there: Option<String>, other: &Option<String>| {
        there.ok_or_else(|| {
            let (LayerName::Dotted(name) | LayerName::Underscored(name)) = &layer;
            let name = other.as_deref().unwrap_or(name);
            Error::tensor(weights.path(), name, "is half of a LoRA pair; the other half is missing")
        })
    };
    let (down, up) = (half(parts.down.clone(), &parts.up)?, half(parts.up, &parts.down)?);
    let shape = |name: &str| weights.info(name).map_or(&[][..], |TensorInfo { shape, .. }| shape);
    let rank = match (shape(&down), shape(&up)) {
        ([a, _, ..], [_, b, ..]) if a == b && *a > 0 => *a,
        (a, b) => {
            let reason = format!("has shape {a:?}, its other half {b:?}: they share no rank");
            return Err(Error::tensor(weights.path(), down, reason));
        }
    };
    let own = parts.alpha.map(|name| read_alpha(weights, &name)).transpose()?;
    Ok(LoraPair { layer, down, up, rank, alpha: own.or(alpha).unwrap_or(rank as f32) })
}

fn read_alpha(weights: &Weights, name: &str) -> Result<f32> {
    match weights.read_f32(name)?[..] {
        [alpha] if alpha.is_finite() => Ok(alpha),
        _ => Err(Error::tensor(weights.path(), name, "must be one finite number")),
    }
}

/// What counts of PEFT's `adapter_config.json`.
#[derive(Deserialize)]
struct PeftConfig {
    peft_type: String,
    lora_alpha: f32,
    /// For layers whose names end so.
    alpha_pattern: Option<BTreeMap<String, f32>>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    base_model_name_or_path: Option<String>,
}

impl PeftConfig {
    fn read(path: &Path) -> Result<PeftConfig> {
        let size = fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
        if size > MAX_CONFIG_BYTES {
            return Err(Error::format(path, format!("{size} bytes are too many for a configuration")));
        }
        let text = fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let json = serde_json::from_str(&text).map_err(|e| Error::format(path, e.to_string()))?;
        PeftConfig::checked(json, path)
    }

    /// The note in which newer diffusers keep it, each key behind its network's name.
    fn of_note(weights: &Weights) -> Result<Option<PeftConfig>> {
        let Some(text) = weights.metadata().get("lora_adapter_metadata") else { return Ok(None) };
        let wrong = |e: serde_json::Error| Error::format(weights.path(), format!("lora_adapter_metadata: {e}"));
        let note: Map<String, Value> = serde_json::from_str(text).map_err(wrong)?;
        let own = |key: &str| ["unet.", "transformer."].iter().find_map(|p| key.strip_prefix(p)).map(String::from);
        let json: Map<String, Value> = note.into_iter().filter_map(|(key, v)| Some((own(&key)?, v))).collect();
        if json.is_empty() { Ok(None) } else { PeftConfig::checked(json.into(), weights.path()).map(Some) }
    }

    fn checked(json: Value, path: &Path) -> Result<PeftConfig> {
        let config = PeftConfig::deserialize(json).map_err(|e| Error::format(path, e.to_string()))?;
        if config.peft_type != "LORA" {
            return Err(Error::config(path, "peft_type", format!("`{}` is not LORA", config.peft_type)));
        }
        for (field, set) in [("use_dora", config.use_dora), ("fan_in_fan_out", config.fan_in_fan_out)] {
            if set {
                return Err(Error::config(path, field, "is not supported: only plain LoRA is"));
            }
        }
        if !config.lora_alpha.is_finite() {
            return Err(Error::config(path, "lora_alpha", "must be finite"));
        }
        Ok(config)
    }

    fn alpha(&self, layer: &LayerName) -> f32 {
        let LayerName::Dotted(layer) = layer else { return self.lora_alpha };
        let own = |key: &str| layer == key || layer.ends_with(&format!(".{key}"));
        let pattern = self.alpha_pattern.iter().flatten().find(|(key, _)| own(key));
        pattern.map_or(self.lora_alpha, |(_, alpha)| *alpha)
    }
}

/// An adapter to be saved.
#[derive(Clone, Copy, Debug)]
pub struct LoraSpec<'a> {
    /// Each layer's name, down shape and up shape.
    pub layers: &'a [(String, [Vec<usize>; 2])],
    pub rank: usize,
    pub alpha: f32,
    /// The model that it adapts.
    pub base: &'a str,
    pub dtype: Dtype,
}

/// Writes an adapter as a folder that PEFT opens, and beside it the same under kohya's names. `numbers` gives a layer's half,
/// 0 down or 1 up, in the file's order.
pub fn write_lora(
    folder: &Path,
    spec: LoraSpec,
    mut numbers: impl FnMut(&str, usize) -> Result<Vec<f32>>,
) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let names: [fn(&str, usize) -> String; 2] = [
        |layer, half| format!("base_model.model.{layer}.{}.weight", ["lora_A", "lora_B"][half]),
        |layer, half| format!("lora_unet_{}.{}.weight", layer.replace('.', "_"), ["lora_down", "lora_up"][half]),
    ];
    for (file, name) in [ADAPTER_MODEL, KOHYA_FILE].into_iter().zip(names) {
        let mut specs = Vec::new();
        for (layer, shapes) in spec.layers {
            let half = |half: usize| TensorSpec::new(name(layer, half), spec.dtype, shapes[half].clone());
            specs.extend([half(0), half(1)]);
            if file == KOHYA_FILE {
                specs.push(TensorSpec::new(kohya_alpha(layer), spec.dtype, []));
            }
        }
        let mut writer = Writer::create(folder.join(file), specs, &WriteOptions::default())?;
        for (layer, _) in spec.layers {
            for half in 0..2 {
                writer.put_f32(&name(layer, half), &numbers(layer, half)?)?;
            }
            if file == KOHYA_FILE {
                writer.put_f32(&kohya_alpha(layer), &[spec.alpha])?;
            }
        }
        writer.finish()?;
    }
    let config = json!({
        "base_model_name_or_path": spec.base,
        "peft_type": "LORA",
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "target_modules": spec.layers.iter().map(|(layer, _)| layer).collect::<Vec<_>>(),
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": false,
        "inference_mode": true,
    });
    write_atomic(folder.join(ADAPTER_CONFIG), format!("{config:#}\n").as_bytes())
}

fn kohya_alpha(layer: &str) -> String {
    format!("lora_unet_{}.alpha", layer.replace('.', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapts(name: &str, layer: &str) -> bool {
        let (stem, _) = ENDINGS.iter().find_map(|(e, part)| Some((name.strip_suffix(e)?, part))).unwrap();
        let pair = |layer| LoraPair { layer, down: String::new(), up: String::new(), rank: 1, alpha: 1.0 };
        pair(layer_name(stem)).adapts(layer)
    }

    #[test]
    fn one_layer_under_all_its_names() {
        let layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0";
        for name in [
            "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_down.weight",
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0.lora_up.weight",
            "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_A.weight",
            "base_model.model.unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_B.default.weight",
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.lora.up.weight",
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.down.weight",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.alpha",
        ] {
            assert!(adapts(name, layer), "{name}");
            assert!(!adapts(name, &layer.replace("attn1", "attn2")), "{name}");
        }
    }

    #[test]
    fn stability_names() {
        let names = [
            ("input_blocks_4_1_proj_in", "down_blocks_1_attentions_0_proj_in"),
            ("input_blocks_8_1_proj_in", "down_blocks_2_attentions_1_proj_in"),
            ("middle_block_1_proj_out", "mid_block_attentions_0_proj_out"),
            ("output_blocks_2_1_proj_in", "up_blocks_0_attentions_2_proj_in"),
            ("output_blocks_3_1_proj_in", "up_blocks_1_attentions_0_proj_in"),
        ];
        for (theirs, ours) in names {
            assert_eq!(from_stability(theirs).as_deref(), Some(ours));
        }
        for other in ["down_blocks_0_attentions_0_proj_in", "input_blocks_4_0_in_layers_2", "input_blocks_x_1_y"] {
            assert_eq!(from_stability(other), None);
        }
    }
}
