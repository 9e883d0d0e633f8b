//! Networks: from a model's `config.json` to a graph and the list of its parameters under their public names.

mod adapter;
mod classifier;
mod config;
mod dinov2;
mod dit;
mod dit_moe;
mod fields;
mod inception;
mod layers;
mod params;
mod patches;
mod song_unet;
mod unet;
mod unet2d;
mod unet2d_condition;

pub use crate::ops::Routing;
pub use adapter::{AdaptableLayer, Adapter, LowRank, adaptable_layers, adapter_parameter};
pub use classifier::ClassifierConfig;
pub use config::{
    ClassEmbedding, Config, DitConfig, DitMoeConfig, EdmConfig, EmbeddingConfig, FeedForward, Level, Mid, Sampler,
    TextTime, TimeEmbedding, Unet2dConditionConfig, Unet2dConfig, UnetConfig,
};
pub use dinov2::Dinov2Config;
pub use inception::InceptionConfig;
pub use params::{FixedTensor, Import, Init, Parameter, nchw_to_nhwc, nhwc_to_nchw};

use crate::device::ALIGN;
use crate::graph::{Graph, Target};
use crate::passes::join::{Joined, join};
use crate::passes::storage::store;
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};
use layers::Builder;
use std::collections::HashMap;
use std::path::Path;

/// What a network's graph is built for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InputSpec {
    pub batch: usize,
    /// Pixels (or latent pixels) of the sample.
    pub height: usize,
    pub width: usize,
    /// Rows of `encoder_hidden_states`, for networks that have them.
    pub tokens: usize,
    /// Columns of `time_ids`, for networks that have them: 6 for SDXL, 5 for its refiner.
    pub time_ids: usize,
    /// Networks with augmentation labels get the input `augment_labels`; otherwise these count as zero.
    pub augment: bool,
    /// Networks with dropout get the inputs `seeds` and `draw`, and drop.
    pub train: bool,
}

impl InputSpec {
    /// For inference, with 77 text tokens.
    pub fn new(batch: usize, height: usize, width: usize) -> Self {
        InputSpec { batch, height, width, tokens: 77, time_ids: 6, augment: false, train: false }
    }

    /// The same for training.
    pub fn training(self) -> Self {
        InputSpec { train: true, ..self }
    }

    /// Fails where a size is zero, or so large that a graph for it can only be a mistake.
    fn check(&self, widest: usize) -> Result<()> {
        let sizes = [("batch", self.batch), ("height", self.height), ("width", self.width), ("tokens", self.tokens)];
        for (what, n) in sizes {
            if n == 0 || n > MAX_SIDE {
                return Err(Error::invalid(what, format!("{n} is not from 1 to {MAX_SIDE}")));
            }
        }
        let elements = sizes[..3].iter().try_fold(widest, |product, (_, n)| product.checked_mul(*n));
        if elements.is_none_or(|n| n > MAX_ELEMENTS) {
            let Self { batch, height, width, .. } = self;
            let reason = format!("{batch} × {height} × {width} samples with {widest} channels are too much");
            return Err(Error::invalid("batch", reason));
        }
        Ok(())
    }
}

const MAX_SIDE: usize = 1 << 20;
/// The most elements of one activation: 1 TiB of f32.
const MAX_ELEMENTS: usize = 1 << 38;

/// A network as a graph. Inputs, all NHWC or row-major and f32 unless said otherwise:
///
/// | name | shape | |
/// |---|---|---|
/// | `sample` | `[B, H, W, C]` | |
/// | `timestep` | `[B]` | i32 with a learned time embedding |
/// | `sigma` | `[B]` | EDM, in place of `timestep` |
/// | `class_labels` | i32 `[B]`; f32 `[B]` or `[B, D]` where the configuration embeds numbers or vectors | DiT, DiT-MoE and EDM: the number of classes itself means none |
/// | `encoder_hidden_states` | `[B, T, D]` | text-conditioned UNets |
/// | `text_embeds`, `time_ids` | `[B, D]`, `[B, 6]` | SDXL |
/// | `timestep_cond` | `[B, D]` | guidance-distilled UNets |
/// | `augment_labels` | `[B, D]` | EDM, if asked for |
/// | `seeds`, `draw` | i32 `[B, 2]`, `[1]` | training with dropout |
#[derive(Clone, Debug)]
pub struct Built {
    pub graph: Graph,
    /// In the order in which the network uses them.
    pub parameters: Vec<Parameter>,
    /// Tensors that the file holds although they follow from the configuration; written back when a model is saved.
    pub fixed: Vec<FixedTensor>,
    /// Parameters of the graph whose parts are parameters of the network, see [`Built::for_inference`]; none as built.
    pub joined: Vec<Joined>,
    /// Names of tensors that some files hold and none needs.
    pub ignored: Vec<String>,
    /// Name of the output, NHWC: `prediction`, or for EDM `denoised`; `features` `[B, D]` for a feature network, which may
    /// have the second output `logits`.
    pub output: &'static str,
}

impl Built {
    /// The network for inference on `target` with its weights and activations in memory as `dtype`, f32, f16 or bf16; inputs and
    /// outputs keep their types.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a type that the target does not store, and for i32.
    pub fn stored(mut self, dtype: DType, target: &Target) -> Result<Built> {
        match dtype {
            DType::F32 => return Ok(self),
            DType::F16 | DType::Bf16 => self.graph = store(&self.graph, dtype, target)?,
            DType::I32 => return Err(Error::unsupported("a network in i32", "there are f32, f16 and bf16")),
        }
        let types: HashMap<&str, &TensorType> =
            self.graph.parameters().map(|(v, name)| (name.as_ref(), self.graph.ty(v))).collect();
        for p in &mut self.parameters {
            if let Some(ty) = types.get(p.name.as_str()) {
                p.ty = (*ty).clone();
            }
        }
        Ok(self)
    }

    /// [`Built::stored`], and with CUDA, where a launch takes longest for what it does, layers [joined](crate::passes::join). Whoever reserves buffers for
    /// the graph begins with those of `joined`, by [`Buffers::declare_joined`](crate::schedule::Buffers::declare_joined): the network's own parameters are parts of them.
    ///
    /// # Errors
    /// Those of [`Built::stored`].
    pub fn for_inference(self, dtype: DType, target: &Target) -> Result<Built> {
        let mut built = self.stored(dtype, target)?;
        // With adapters, layers have more to do than what can be joined. Beside a plain network of the same weights they find theirs as parts.
        let adapted = built.parameters.iter().any(|p| adapter_parameter(&p.name).is_some());
        if let (Target::Cuda(_), false) = (target, adapted) {
            (built.graph, built.joined) = join(&built.graph, ALIGN)?;
        }
        Ok(built)
    }
}

/// A network that can be built for any batch and size.
#[derive(Clone, PartialEq, Debug)]
pub struct Network {
    config: Config,
}

impl Network {
    /// Reads the text of a `config.json`; `path` is named in errors.
    pub fn from_config(text: &str, path: impl AsRef<Path>) -> Result<Network> {
        Ok(Network { config: Config::parse(text, path.as_ref())? })
    }

    /// The configuration, every default filled in.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The same network with tokens going to other experts: with [`Routing::Bottom`] a weaker one, for methods that need a strong
    /// and a weak network of the same weights. Parameters, their names and the work are the same.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a network without experts.
    pub fn with_routing(&self, routing: Routing) -> Result<Network> {
        match &self.config {
            Config::DitMoe(c) => Ok(Network { config: Config::DitMoe(DitMoeConfig { routing, ..c.clone() }) }),
            _ => Err(Error::invalid("routing", format!("a {} has no experts to choose from", self.class_name()))),
        }
    }

    /// The name of the class that the configuration belongs to.
    pub fn class_name(&self) -> &'static str {
        match self.config {
            Config::Unet2d(_) => "UNet2DModel",
            Config::Unet2dCondition(_) => "UNet2DConditionModel",
            Config::Dit(_) => "DiTTransformer2DModel",
            Config::DitMoe(_) => "DiTMoE",
            Config::Edm(_) => "EDMPrecond",
        }
    }

    /// Channels of the sample and of the output. A DiT that learns its variance has twice as many outputs.
    pub fn channels(&self) -> [usize; 2] {
        match &self.config {
            Config::Unet2d(c) => [c.unet.in_channels, c.unet.out_channels],
            Config::Unet2dCondition(c) => [c.unet.in_channels, c.unet.out_channels],
            Config::Dit(c) => [c.in_channels, c.out_channels],
            Config::DitMoe(c) => [c.in_channels, c.out_channels],
            Config::Edm(c) => [c.channels, c.channels],
        }
    }

    /// Height and width it was trained at, where the configuration says so.
    pub fn sample_size(&self) -> Option<[usize; 2]> {
        match &self.config {
            Config::Unet2d(c) => c.unet.sample_size,
            Config::Unet2dCondition(c) => c.unet.sample_size,
            Config::Dit(c) => Some([c.sample_size; 2]),
            Config::DitMoe(c) => Some([c.sample_size; 2]),
            Config::Edm(c) => Some([c.resolution; 2]),
        }
    }

    /// Number of classes that `class_labels` may name, if it holds labels. DiT, DiT-MoE and EDM know one more: none.
    pub fn classes(&self) -> Option<usize> {
        let unet = match &self.config {
            Config::Unet2d(c) => &c.unet,
            Config::Unet2dCondition(c) => &c.unet,
            Config::Dit(c) => return Some(c.classes),
            Config::DitMoe(c) => return Some(c.classes),
            Config::Edm(c) => return (c.label_dim > 0).then_some(c.label_dim),
        };
        match unet.embedding.class {
            ClassEmbedding::Labels(n) => Some(n),
            _ => None,
        }
    }

    /// The label that means no class: the one after the last for DiT, DiT-MoE and EDM; UNets of diffusers have none of their own, by
    /// custom it is their last.
    pub fn null_class(&self) -> Option<usize> {
        let own = matches!(self.config, Config::Dit(_) | Config::DitMoe(_) | Config::Edm(_));
        self.classes().map(|n| if own { n } else { n.saturating_sub(1) })
    }

    /// The graph for one batch and size.
    pub fn build(&self, spec: &InputSpec) -> Result<Built> {
        self.build_adapted(spec, &[])
    }

    /// The same with adapters, whose weights become parameters of their own.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming a layer that an adapter adapts and the network does not have.
    pub fn build_adapted(&self, spec: &InputSpec, adapters: &[Adapter]) -> Result<Built> {
        let [inputs, outputs] = self.channels();
        let widest = match &self.config {
            Config::Unet2d(c) => 2 * c.unet.channels.iter().copied().max().unwrap_or(1),
            Config::Unet2dCondition(c) => 8 * c.unet.channels.iter().copied().max().unwrap_or(1),
            Config::Dit(c) => 8 * c.heads * c.head_dim,
            // A row for every expert of a token.
            Config::DitMoe(c) => (6 * c.width).max(c.chosen * c.expert_width).max(c.shared_width),
            Config::Edm(c) => 2 * c.model_channels * c.channel_mult.iter().copied().max().unwrap_or(1),
        };
        spec.check(widest.max(inputs).max(outputs))?;
        let b = Builder::new(spec, adapters);
        let built = match &self.config {
            Config::Unet2d(c) => unet2d::build(c, b),
            Config::Unet2dCondition(c) => unet2d_condition::build(c, b),
            Config::Dit(c) => dit::build(c, b),
            Config::DitMoe(c) => dit_moe::build(c, b),
            Config::Edm(c) => song_unet::build(c, b),
        }?;
        adapters.iter().try_for_each(|adapter| adapter.check(&built.parameters))?;
        Ok(built)
    }
}
