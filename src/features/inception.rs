//! InceptionV3 from a checkpoint of the FID tools: convolutions without bias, each followed by a batch norm.

use super::checkpoint::{Checkpoint, Wanted, scale_rows};
use super::{Backbone, Filter, Input};
use crate::Result;
use crate::nn::{Built, InceptionConfig, Parameter};

/// A tensor that only this network has; its first dimension is the width of the stem.
pub const MARK: &str = "Conv2d_1a_3x3.conv.weight";
/// ε of the batch norms.
const EPS: f64 = 0.001;
/// What a batch norm holds in the file.
const NORM: [&str; 4] = ["weight", "bias", "running_mean", "running_var"];

/// The network and the file it is in.
#[derive(Debug)]
pub struct Inception {
    config: InceptionConfig,
    checkpoint: Checkpoint,
}

impl Inception {
    pub fn open(checkpoint: Checkpoint) -> Result<Self> {
        let [stem, ..] = checkpoint.sizes::<4>(MARK)?;
        if stem % 2 != 0 || stem > InceptionConfig::FID.stem {
            let reason =
                format!("has {stem} outputs; the network has 32, or an even number below if it is a narrow one");
            return Err(checkpoint.fail(MARK, reason));
        }
        let [classes, _] = checkpoint.sizes::<2>("fc.weight")?;
        if classes != InceptionConfig::FID.classes {
            let reason = format!(
                "has {classes} rows; the network of FID has {} (torchvision's own, with 1000, is another one)",
                InceptionConfig::FID.classes
            );
            return Err(checkpoint.fail("fc.weight", reason));
        }
        let config = InceptionConfig { stem, classes };
        let wanted: Vec<Wanted> = config.build(1)?.parameters.iter().flat_map(sources).collect();
        checkpoint.check(&wanted, |name| name.ends_with(".bn.num_batches_tracked"))?;
        Ok(Inception { config, checkpoint })
    }

    /// γ/√(variance + ε) of a layer's batch norm.
    fn factors(&self, layer: &str) -> Result<Vec<f64>> {
        let gain = self.checkpoint.read(&format!("{layer}.bn.weight"))?;
        let name = format!("{layer}.bn.running_var");
        let variance = self.checkpoint.read(&name)?;
        if let Some(bad) = variance.iter().find(|v| v.is_nan() || f64::from(**v) <= -EPS) {
            return Err(self.checkpoint.fail(&name, format!("holds {bad}, which is no variance")));
        }
        Ok(gain.iter().zip(&variance).map(|(g, v)| f64::from(*g) / (f64::from(*v) + EPS).sqrt()).collect())
    }
}

/// The tensors of the file that a parameter is made of, and does not share with the one before it.
fn sources(p: &Parameter) -> Vec<Wanted> {
    match p.name.strip_suffix(".conv.bias") {
        Some(layer) => NORM.iter().map(|leaf| (format!("{layer}.bn.{leaf}"), p.shape.clone())).collect(),
        None => vec![(p.name.clone(), p.shape.clone())],
    }
}

impl Backbone for Inception {
    /// x·2 − 1 of pixels in 0..1.
    fn input(&self) -> Input {
        let (height, width) = (InceptionConfig::SIZE, InceptionConfig::SIZE);
        Input { height, width, channels: 3, filter: Filter::Bilinear, mean: [0.5; 3], std: [0.5; 3] }
    }

    fn build(&self, batch: usize) -> Result<Built> {
        self.config.build(batch)
    }

    /// With the batch norm γ·(x − mean)/√(variance + ε) + β folded in: weights times γ/√…, and the bias β − mean·γ/√….
    fn read(&self, p: &Parameter) -> Result<Vec<f32>> {
        if let Some(layer) = p.name.strip_suffix(".conv.weight") {
            let mut weight = self.checkpoint.read(&p.name)?;
            scale_rows(&mut weight, self.factors(layer)?.into_iter());
            return Ok(weight);
        }
        let Some(layer) = p.name.strip_suffix(".conv.bias") else { return self.checkpoint.read(&p.name) };
        let shift = self.checkpoint.read(&format!("{layer}.bn.bias"))?;
        let mean = self.checkpoint.read(&format!("{layer}.bn.running_mean"))?;
        let factors = self.factors(layer)?;
        let folded = shift.iter().zip(&mean).zip(factors);
        Ok(folded.map(|((b, m), f)| (f64::from(*b) - f64::from(*m) * f) as f32).collect())
    }
}
