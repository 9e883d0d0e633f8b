//! A small convolutional classifier, whose last features measure how alike two sets of images are.

use super::config::check_groups;
use super::fields::Fields;
use super::layers::{Builder, Layer, Norm, Window};
use super::{Built, InputSpec};
use crate::ops::{Activation, Padding, Reduce};
use crate::{Error, Result};
use serde_json::json;
use std::path::Path;

/// The `_class_name` of its `config.json`.
const CLASS: &str = "LangevinClassifier";

/// A classifier of images of one size: a convolution, then for every further level a strided one that halves the resolution, then
/// one more with a residual; before each but the first a group norm and SiLU. The mean over the pixels are the features.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClassifierConfig {
    /// Height and width.
    pub size: [usize; 2],
    pub in_channels: usize,
    pub classes: usize,
    /// Channels by level, from the finest; the last are the number of features.
    pub channels: Vec<usize>,
    pub groups: usize,
}

impl ClassifierConfig {
    /// For images of this size: 94,000 weights, 64 features.
    pub fn new(size: [usize; 2], in_channels: usize, classes: usize) -> Self {
        ClassifierConfig { size, in_channels, classes, channels: vec![32, 64, 64], groups: 8 }
    }

    /// Reads the text of a `config.json`; `path` is named in errors.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let fields = Fields::parse(text, path)?;
        let class = fields.word("_class_name", None)?;
        if class != CLASS {
            return Err(fields.fail("_class_name", format!("`{class}` is not {CLASS}")));
        }
        let sides = fields.sizes("sample_size", &[], 2..=2, 1..=4096)?;
        let [height, width] = sides[..] else { return Err(fields.fail("sample_size", "is missing")) };
        let c = ClassifierConfig {
            size: [height, width],
            in_channels: fields.required("in_channels", 1..=64)?,
            classes: fields.required("num_classes", 1..=100_000)?,
            channels: fields.sizes("block_out_channels", &[32, 64, 64], 1..=6, 1..=4096)?,
            groups: fields.size("norm_num_groups", 8, 1..=4096)?,
        };
        check_groups(&fields, "norm_num_groups", c.groups, &c.channels)?;
        Ok(c)
    }

    /// The text of its `config.json`.
    pub fn to_json(&self) -> String {
        let text = json!({
            "_class_name": CLASS, "sample_size": self.size, "in_channels": self.in_channels,
            "num_classes": self.classes, "block_out_channels": self.channels, "norm_num_groups": self.groups
        });
        format!("{text:#}\n")
    }

    /// Numbers of an image's features.
    pub fn features(&self) -> usize {
        self.channels.last().copied().unwrap_or(0)
    }

    /// The graph: `sample` `[B, H, W, C]` in −1..1 → `features` `[B, features]` and `logits` `[B, classes]`.
    pub fn build(&self, batch: usize) -> Result<Built> {
        let [first, rest @ ..] = &self.channels[..] else {
            return Err(Error::invalid("block_out_channels", "is empty"));
        };
        let spec = InputSpec::new(batch, self.size[0], self.size[1]);
        spec.check(self.channels.iter().copied().max().unwrap_or(1).max(self.in_channels))?;
        let norm = Norm { groups: self.groups, eps: 1e-5 };
        let mut b = Builder::new(&spec, &[]);
        let x = b.sample(self.in_channels);
        let mut x = b.conv("conv_in", x, Window::same(3), Layer::new(*first))?;
        for (level, channels) in rest.iter().enumerate() {
            x = b.scoped(format!("down_blocks.{level}"), |b| {
                let h = b.group_norm("norm", x, norm, Activation::Silu, None)?;
                let halving = Window { kernel: [3, 3], stride: 2, padding: Padding::same(1) };
                b.conv("conv", h, halving, Layer::new(*channels))
            })?;
        }
        let h = b.group_norm("norm_mid", x, norm, Activation::Silu, None)?;
        let width = self.features();
        let x = b.conv("conv_mid", h, Window::same(3), Layer::new(width).residual(x, 1.0))?;
        let h = b.group_norm("norm_out", x, norm, Activation::Silu, None)?;
        let pixels: usize = b.graph.shape(h)[1..3].iter().product();
        let features = b.graph.apply(Reduce::mean_middle(batch, pixels, width), &[h])?;
        let logits = b.linear("classifier", features, Layer::new(self.classes))?;
        b.graph.output("features", features);
        Ok(b.finish("logits", logits))
    }
}
