//! DINOv2 from a checkpoint in the layout of transformers' `Dinov2Model`.

use super::checkpoint::{Checkpoint, Wanted, scale_rows};
use super::resize::{Filter, Resize};
use super::{Backbone, Input};
use crate::Result;
use crate::nn::{Built, Dinov2Config, Parameter};
use std::path::PathBuf;

/// A tensor that only this network has.
pub const MARK: &str = "embeddings.patch_embeddings.projection.weight";
const POSITIONS: &str = "embeddings.position_embeddings";
/// Pixels of a side that images are brought to.
const SIZE: usize = 224;
/// Channels of a head in all published sizes.
const HEAD: usize = 64;
/// The mean and the standard deviation of ImageNet's colours, of 1.
const MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const STD: [f64; 3] = [0.229, 0.224, 0.225];

const MAX_WIDTH: usize = 1 << 15;
const MAX_LAYERS: usize = 1000;

/// The network and the file it is in.
#[derive(Debug)]
pub struct Dinov2 {
    config: Dinov2Config,
    checkpoint: Checkpoint,
    /// Side of the grid of positions in the file.
    grid: usize,
}

impl Dinov2 {
    /// `config` is the path and the text of a `config.json`.
    pub fn open(checkpoint: Checkpoint, config: Option<(PathBuf, String)>) -> Result<Self> {
        let sizes = sizes(&checkpoint)?;
        let config = match config {
            Some((path, text)) => sizes.with_json(&text, &path)?,
            None if sizes.hidden.is_multiple_of(HEAD) => sizes,
            None => {
                let reason = format!("has {} outputs, which are no heads of {HEAD}", sizes.hidden);
                return Err(checkpoint.fail(MARK, reason + ": open a folder with its config.json"));
            }
        };
        let [_, positions, _] = checkpoint.sizes::<3>(POSITIONS)?;
        let grid = (positions - 1).isqrt();
        if grid == 0 || grid * grid + 1 != positions {
            return Err(checkpoint.fail(POSITIONS, format!("has {positions} rows, not one and a square number")));
        }
        let network = Dinov2 { config, checkpoint, grid };
        let built = network.config.build(1)?;
        let wanted: Vec<Wanted> = built.parameters.iter().flat_map(|p| network.sources(p)).collect();
        network.checkpoint.check(&wanted, |name| name == "embeddings.mask_token")?;
        Ok(network)
    }

    /// The tensors of the file that a parameter is made of, and does not share with the one before it.
    fn sources(&self, p: &Parameter) -> Vec<Wanted> {
        let own = (p.name.clone(), p.shape.clone());
        match (p.name == POSITIONS, layer_scale(&p.name)) {
            (true, _) => vec![(own.0, vec![1, self.grid * self.grid + 1, self.config.hidden])],
            (_, Some(scale)) if p.name.ends_with(".weight") => vec![own, (scale, vec![self.config.hidden])],
            _ => vec![own],
        }
    }

    /// Position embeddings for the grid of the input: the first row as it is, the others, seen as an image, resized.
    fn positions(&self) -> Result<Vec<f32>> {
        let (width, grid) = (self.config.hidden, self.config.grid());
        let table = self.checkpoint.read(POSITIONS)?;
        if grid == self.grid {
            return Ok(table);
        }
        let resize = Resize::new([self.grid; 2], [grid; 2], Filter::Bicubic);
        let resized = resize.apply(&table[width..], width);
        Ok(table[..width].iter().copied().chain(resized.iter().map(|v| *v as f32)).collect())
    }
}

/// What the shapes of the weights say.
fn sizes(checkpoint: &Checkpoint) -> Result<Dinov2Config> {
    let [hidden, _, patch, _] = checkpoint.sizes::<4>(MARK)?;
    if hidden > MAX_WIDTH || !SIZE.is_multiple_of(patch) {
        let reason =
            format!("{hidden} channels, or patches of {patch} pixels in an image of {SIZE}, are not supported");
        return Err(checkpoint.fail(MARK, reason));
    }
    let layers = (0..=MAX_LAYERS).take_while(|i| checkpoint.holds(&format!("encoder.layer.{i}.norm1.weight"))).count();
    if layers == 0 || layers > MAX_LAYERS {
        return Err(checkpoint.fail("encoder.layer.0.norm1.weight", format!("one to {MAX_LAYERS} layers are needed")));
    }
    let swiglu = checkpoint.holds("encoder.layer.0.mlp.weights_out.weight");
    let out = if swiglu { "encoder.layer.0.mlp.weights_out.weight" } else { "encoder.layer.0.mlp.fc2.weight" };
    let [_, inner] = checkpoint.sizes::<2>(out)?;
    if inner > MAX_WIDTH {
        return Err(checkpoint.fail(out, format!("{inner} channels are too many")));
    }
    let qkv_bias = checkpoint.holds("encoder.layer.0.attention.attention.query.bias");
    let heads = (hidden / HEAD).max(1);
    Ok(Dinov2Config { hidden, heads, layers, inner, swiglu, qkv_bias, patch, size: SIZE, eps: 1e-6 })
}

/// The layer scale that follows the linear layer of a parameter.
fn layer_scale(parameter: &str) -> Option<String> {
    const SCALED: [(&str, &str); 3] = [
        ("attention.output.dense", "layer_scale1.lambda1"),
        ("mlp.fc2", "layer_scale2.lambda1"),
        ("mlp.weights_out", "layer_scale2.lambda1"),
    ];
    let (linear, _) = parameter.rsplit_once('.')?;
    SCALED.iter().find_map(|(layer, scale)| Some(format!("{}{scale}", linear.strip_suffix(layer)?)))
}

impl Backbone for Dinov2 {
    fn input(&self) -> Input {
        let filter = Filter::BicubicAntialias;
        Input { height: SIZE, width: SIZE, channels: 3, filter, mean: MEAN, std: STD }
    }

    fn build(&self, batch: usize) -> Result<Built> {
        self.config.build(batch)
    }

    /// With λ·(xW + b) folded into W and b.
    fn read(&self, p: &Parameter) -> Result<Vec<f32>> {
        if p.name == POSITIONS {
            return self.positions();
        }
        let mut numbers = self.checkpoint.read(&p.name)?;
        if let Some(scale) = layer_scale(&p.name) {
            scale_rows(&mut numbers, self.checkpoint.read(&scale)?.iter().map(|v| f64::from(*v)));
        }
        Ok(numbers)
    }
}
