//! Features of images: what distances between sets of images are taken over.
//!
//! A [`FeatureNetwork`] is a graph from images to vectors with the weights of a checkpoint: InceptionV3 in the layout of the FID
//! tools, DINOv2 in that of transformers, or any network behind the trait [`Backbone`]. [`FeatureNetwork::open`] knows the
//! first two by the names of their tensors. An [`Extractor`] runs one on a device.
//!
//! ```no_run
//! use langevin::{Device, features::FeatureNetwork};
//! # fn images() -> Vec<u8> { vec![] }
//! let network = FeatureNetwork::open("inception.safetensors")?;
//! let mut extractor = network.extractor(Device::auto(), 16)?;
//! let features = extractor.features(&images(), [1000, 32, 32, 3], &mut |_done| Ok(()))?;
//! assert_eq!(features.dim, 2048);
//! # Ok::<(), langevin::Error>(())
//! ```

mod checkpoint;
mod dinov2;
mod inception;
mod resize;

pub use resize::{Filter, Resize};

use crate::device::Device;
use crate::methods::forward::forward;
use crate::model::read_text;
use crate::nn::{Built, Parameter};
use crate::schedule::{BufferId, Options, Session};
use crate::weights::Weights;
use crate::{Error, Result};
use checkpoint::Checkpoint;
use rayon::prelude::*;
use std::fmt::Debug;
use std::path::Path;

/// Longest side of an image that is taken.
const MAX_SIDE: usize = 1 << 16;

/// What a network takes: images of one size, as (x/255 − mean)/std by channel.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Input {
    pub height: usize,
    pub width: usize,
    /// 1 (grey) or 3 (RGB). Grey images become three equal channels for networks that take three.
    pub channels: usize,
    /// How images of another size are brought to this one.
    pub filter: Filter,
    /// By channel; networks of one channel use the first.
    pub mean: [f64; 3],
    pub std: [f64; 3],
}

/// A network that features can be taken from: its graph, its weights, and what its input must be.
pub trait Backbone: Debug + Send + Sync {
    /// What [`Backbone::build`]'s input `sample` must hold.
    fn input(&self) -> Input;

    /// The graph for a batch. Its input is `sample` `[B, H, W, C]`; its outputs `features` `[B, D]` and, if the network
    /// classifies, `logits` `[B, K]`.
    fn build(&self, batch: usize) -> Result<Built>;

    /// The numbers of one of the graph's parameters, in the order of [`Parameter::shape`].
    fn read(&self, parameter: &Parameter) -> Result<Vec<f32>>;
}

/// A network and its weights, ready to be put on a device.
#[derive(Debug)]
pub struct FeatureNetwork {
    name: String,
    backbone: Box<dyn Backbone>,
    dim: usize,
    classes: Option<usize>,
}

/// Features of images, image by image.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Features {
    /// `[n, dim]`
    pub data: Vec<f32>,
    pub n: usize,
    pub dim: usize,
    /// `[n, classes]`, where the network classifies: before the softmax, bias included.
    pub logits: Option<Vec<f32>>,
}

impl FeatureNetwork {
    /// Opens a safetensors file, an index of shards, or a folder that holds either: InceptionV3 (`inception`) or DINOv2
    /// (`dinov2`), told apart by the names of their tensors. Of a folder `config.json` is read too, if it is there; without one
    /// the heads of a DINOv2 have 64 channels. Every tensor is checked: all must be there, none too many, each of its shape.
    pub fn open(path: impl AsRef<Path>) -> Result<FeatureNetwork> {
        let path = path.as_ref();
        let weights = Weights::open(path)?;
        if weights.info(inception::MARK).is_some() {
            return Self::new("inception", inception::Inception::open(Checkpoint::new(weights, "InceptionV3"))?);
        }
        if weights.info(dinov2::MARK).is_some() {
            let config = Some(path.join("config.json")).filter(|p| p.is_file());
            let config = config.map(|p| read_text(&p).map(|text| (p, text))).transpose()?;
            return Self::new("dinov2", dinov2::Dinov2::open(Checkpoint::new(weights, "DINOv2"), config)?);
        }
        let reason = format!(
            "is neither InceptionV3 (which has a tensor `{}`) nor DINOv2 (which has `{}`)",
            inception::MARK,
            dinov2::MARK
        );
        Err(Error::format(weights.path(), reason))
    }

    /// A network of another kind under a name of its own.
    pub fn new(name: impl Into<String>, backbone: impl Backbone + 'static) -> Result<FeatureNetwork> {
        let built = backbone.build(1)?;
        let width = |name: &str| built.graph.find_output(name).map(|v| built.graph.ty(v).cols());
        let dim = width("features").ok_or_else(|| Error::shape("features", "the network has no output `features`"))?;
        let classes = width("logits");
        Ok(FeatureNetwork { name: name.into(), backbone: Box::new(backbone), dim, classes })
    }

    /// `inception`, `dinov2`, or the name that it was made with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Numbers of one image's features.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Classes of the logits, if there are any.
    pub fn classes(&self) -> Option<usize> {
        self.classes
    }

    /// What the network takes.
    pub fn input(&self) -> Input {
        self.backbone.input()
    }

    /// The bias of the logits `[classes]`, if the network's last layer is an `fc` with one. The first Inception Scores
    /// (Salimans et al. 2016) were taken without it: subtract it from [`Features::logits`] to compare with them.
    pub fn logit_bias(&self) -> Result<Option<Vec<f32>>> {
        let built = self.backbone.build(1)?;
        built.parameters.iter().find(|p| p.name == "fc.bias").map(|p| self.backbone.read(p)).transpose()
    }

    /// Puts the network on a device, to run `batch` images at a time.
    pub fn extractor(&self, device: Device, batch: usize) -> Result<Extractor> {
        let built = self.backbone.build(batch)?;
        let schedule = forward(&built, None, device.target(), Options::default())?;
        let buffers = schedule.buffers.clone();
        let mut session = Session::new(device, schedule)?;
        for p in &built.parameters {
            let Some(id) = buffers.find(&format!("weights/{}", p.name)) else { continue };
            let numbers = self.backbone.read(p)?;
            if numbers.len() != p.elements() {
                let reason = format!("`{}` must be {:?}, has {} numbers", p.name, p.shape, numbers.len());
                return Err(Error::shape("features", reason));
            }
            session.fill(id, |stored| p.to_arena(&numbers, stored))?;
        }
        let find = |name: &str| {
            buffers.find(name).ok_or_else(|| Error::shape("features", format!("the network has no `{name}`")))
        };
        let (sample, features) = (find("sample")?, find("out/features")?);
        let logits = self.classes.map(|_| find("out/logits")).transpose()?;
        Ok(Extractor { session, input: self.input(), batch, dim: self.dim, sample, features, logits })
    }
}

/// A feature network on a device.
#[derive(Debug)]
pub struct Extractor {
    session: Session,
    input: Input,
    batch: usize,
    dim: usize,
    sample: BufferId,
    features: BufferId,
    logits: Option<BufferId>,
}

impl Extractor {
    /// The features of `n` images `[n, height, width, channels]` of bytes, grey or RGB. `progress` is told how many are done;
    /// an error from it stops the work. A feature that is not finite is an error.
    pub fn features(
        &mut self,
        images: &[u8],
        shape: [usize; 4],
        progress: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Features> {
        let [_, height, width, channels] = shape;
        self.check(images, shape)?;
        let resize = Resize::new([height, width], [self.input.height, self.input.width], self.input.filter);
        let mut out = Features { dim: self.dim, logits: self.logits.map(|_| Vec::new()), ..Features::default() };
        for images in images.chunks((self.batch * height * width * channels).max(1)) {
            let count = images.len() / (height * width * channels);
            let input = self.input;
            self.session.fill(self.sample, |sample: &mut [f32]| {
                let places = sample.par_chunks_exact_mut(input.height * input.width * input.channels);
                let images = images.par_chunks_exact(height * width * channels);
                images.zip(places).for_each(|(image, place)| prepare(image, channels, &resize, &input, place));
            })?;
            self.session.run(&mut |_, _| Ok(()))?;
            let features = self.session.read_part::<f32>(self.features, 0, count * self.dim)?;
            if let Some(at) = features.iter().position(|v| !v.is_finite()) {
                let what = format!("a feature of image {}", out.n + at / self.dim);
                return Err(Error::Device {
                    device: self.session.device().name(),
                    reason: format!("{what} is not finite"),
                });
            }
            out.data.extend_from_slice(&features);
            if let (Some(id), Some(logits)) = (self.logits, &mut out.logits) {
                let stored = self.session.read::<f32>(id)?;
                logits.extend_from_slice(&stored[..count * (stored.len() / self.batch)]);
            }
            out.n += count;
            progress(out.n)?;
        }
        Ok(out)
    }

    fn check(&self, images: &[u8], shape: [usize; 4]) -> Result<()> {
        let [_, height, width, channels] = shape;
        let side = 1..=MAX_SIDE;
        let fits = side.contains(&height)
            && side.contains(&width)
            && (channels == self.input.channels || (channels == 1 && self.input.channels == 3));
        let bytes = shape.iter().try_fold(1usize, |product, n| product.checked_mul(*n));
        if !fits || bytes != Some(images.len()) {
            let reason = format!(
                "{} bytes are not {shape:?} images (number, height, width, channels) for a network of {} channels",
                images.len(),
                self.input.channels
            );
            return Err(Error::shape("features", reason));
        }
        Ok(())
    }
}

/// One image, resized and normalised, as the network takes it.
fn prepare(image: &[u8], channels: usize, resize: &Resize, input: &Input, out: &mut [f32]) {
    let resized = resize.apply(image, channels);
    let pixels = out.chunks_exact_mut(input.channels).zip(resized.chunks_exact(channels));
    for (to, from) in pixels {
        for (c, v) in to.iter_mut().enumerate() {
            *v = ((from[c % channels] / 255.0 - input.mean[c]) / input.std[c]) as f32;
        }
    }
}
