//! Low-rank adapters (LoRA) of a network's layers.

use super::params::{Import, Parameter};
use crate::{Error, Result};
use std::collections::BTreeMap;

/// Rank and alpha of one layer's adapter: it adds `scale · alpha/rank · up(down(x))`.   (Hu et al. 2022, section 4.1)
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LowRank {
    /// At least 1.
    pub rank: usize,
    /// Any sign.
    pub alpha: f32,
}

/// A low-rank adapter: which layers it adapts, by their public names (`mid_block.attentions.0.to_q`).
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// Tells the adapters of one network apart; stands in front of its parameters' names.
    pub name: String,
    pub layers: BTreeMap<String, LowRank>,
}

impl Adapter {
    /// The parameter `[1]` that multiplies all of it: 1 as trained, 0 as if it were not there, any sign. A session may write
    /// its buffer between runs.
    pub fn scale(&self) -> String {
        format!("{}/scale", self.name)
    }

    /// The parameters of a layer: down `[rank, K]` (a convolution's `[rank, C, k₀, k₁]`) and up `[N, rank]`.
    pub fn weights(&self, layer: &str) -> [String; 2] {
        ["lora_A", "lora_B"].map(|half| format!("{}/{layer}.{half}.weight", self.name))
    }

    /// Fails if a layer is none of those that the network has.
    pub(super) fn check(&self, parameters: &[Parameter]) -> Result<()> {
        let declared = |layer: &str| {
            let [down, _] = self.weights(layer);
            parameters.iter().any(|p| p.name == down)
        };
        match self.layers.keys().find(|layer| !declared(layer)) {
            Some(layer) => Err(Error::invalid("adapter", format!("the network has no layer `{layer}` to adapt"))),
            None => Ok(()),
        }
    }
}

/// Adapter and name of an adapter's parameter; `None` for a network's own.
pub fn adapter_parameter(name: &str) -> Option<(&str, &str)> {
    name.split_once('/')
}

/// A linear layer or a convolution that can be adapted.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaptableLayer {
    pub name: String,
    /// Of its weight in the file: `[N, K]` or `[N, C, k₀, k₁]`.
    pub shape: Vec<usize>,
}

/// The layers among a network's parameters, in their order. Experts, which do not see every row, are not among them.
pub fn adaptable_layers(parameters: &[Parameter]) -> Vec<AdaptableLayer> {
    let layer = |p: &Parameter| {
        let name = p.name.strip_suffix(".weight").filter(|_| !matches!(p.import, Import::Plain | Import::Experts))?;
        Some(AdaptableLayer { name: name.to_owned(), shape: p.shape.clone() })
    };
    parameters.iter().filter(|p| adapter_parameter(&p.name).is_none()).filter_map(layer).collect()
}
