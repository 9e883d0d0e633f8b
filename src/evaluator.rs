//! How good samples are: pictures to features, features to numbers.
//!
//! ```no_run
//! use langevin::Device;
//! use langevin::classifier::Classifier;
//! use langevin::data::{Dataset, DatasetOptions};
//! use langevin::eval::{Bootstrap, NEIGHBOURS};
//! use langevin::evaluator::{FeatureExtractor, evaluate};
//!
//! let mut network = FeatureExtractor::classifier(Classifier::embedded()?, Device::auto())?;
//! let [samples, real] = ["samples/", "t10k-images-idx3-ubyte.gz"].map(|p| Dataset::open(p, &DatasetOptions::default()));
//! let (samples, real) = (samples?, real?);
//! let reference = network.reference(&real, NEIGHBOURS, &mut |_| Ok(()))?;
//! let features = network.extract("the samples", &samples, &mut |_| Ok(()))?;
//! let bootstrap = Bootstrap { resamples: 100, seed: 0 };
//! for row in evaluate(&network, &features, samples.labels.as_deref(), &reference, &[], bootstrap, &mut |_| Ok(()))?.rows {
//!     println!("{}: {}", row.name, row.estimate.value);
//! }
//! # Ok::<(), langevin::Error>(())
//! ```

use crate::classifier::{Classifier, EMBEDDED};
use crate::data::Dataset;
use crate::device::Device;
use crate::eval::{
    Bootstrap, ClassProbabilities, Estimate, Features, Frechet, Moments, Origin, Reference, SPLITS, nearest,
    neighbourhood, quantile,
};
use crate::features::{Extractor, FeatureNetwork, Input};
use crate::image::to_byte;
use crate::sampler::Images;
use crate::weights::Weights;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

/// Images that a feature network is given at a time.
const BATCH: usize = 50;
/// The same for InceptionV3 and DINOv2, whose activations are large.
const WIDE_BATCH: usize = 8;
/// Above this many features a Fréchet distance takes seconds, and is resampled less often.
const WIDE: usize = 512;
const WIDE_RESAMPLES: usize = 10;

/// A network that turns images into features, loaded on a device.
#[derive(Debug)]
pub struct FeatureExtractor {
    name: String,
    fingerprint: String,
    input: Input,
    /// Images of another size than the network's are resized; a classifier's must have its size.
    resizes: bool,
    extractor: Extractor,
}

/// What a network says of a set of images.
#[derive(Clone, Debug, PartialEq)]
pub struct Extracted {
    pub features: Features,
    /// Of networks that classify.
    pub logits: Option<Features>,
}

impl FeatureExtractor {
    /// A classifier of langevin (a folder, or the embedded one by its name), or the safetensors of an InceptionV3 or a DINOv2.
    pub fn open(path: &Path, device: Device) -> Result<FeatureExtractor> {
        if path == Path::new(EMBEDDED) || Classifier::is_one(path) {
            return FeatureExtractor::classifier(Classifier::open(path)?, device);
        }
        let checksum = Weights::open(path)?.checksum()?;
        let network = FeatureNetwork::open(path)?;
        FeatureExtractor::new(&network, checksum, true, WIDE_BATCH, device)
    }

    /// A classifier of langevin; its distance is `fd-classifier`.
    pub fn classifier(classifier: Classifier, device: Device) -> Result<FeatureExtractor> {
        let checksum = classifier.weights.checksum()?;
        FeatureExtractor::new(&FeatureNetwork::new("classifier", classifier)?, checksum, false, BATCH, device)
    }

    fn new(network: &FeatureNetwork, checksum: u32, resizes: bool, batch: usize, device: Device) -> Result<Self> {
        Ok(FeatureExtractor {
            name: network.name().into(),
            fingerprint: format!("{}-{checksum:08x}", network.name()),
            input: network.input(),
            resizes,
            extractor: network.extractor(device, batch)?,
        })
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// True if it takes images of these channels and this size (any, if that is not known).
    pub fn fits(&self, channels: usize, size: Option<[usize; 2]>) -> bool {
        let Input { height, width, channels: own, .. } = self.input;
        self.resizes || (channels == own && size.is_none_or(|s| s == [height, width]))
    }

    /// The name and a checksum of the weights.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Features of all images, and logits if there are any. `progress` is told how many images were done after each batch; an error
    /// from it stops the run. `what` names the images in errors.
    pub fn extract(
        &mut self,
        what: &str,
        data: &Dataset,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Extracted> {
        let Input { height: h, width: w, channels: c, .. } = self.input;
        if !self.resizes && [data.height, data.width, data.channels] != [h, w, c] {
            let reason = format!(
                "are {}×{}×{}, the feature network `{}` takes {h}×{w}×{c}; `langevin train-classifier` makes one for any \
                 labelled data set",
                data.height, data.width, data.channels, self.name
            );
            return Err(Error::invalid(what, reason));
        }
        let mut done = 0;
        let shape = [data.n, data.height, data.width, data.channels];
        let out = self.extractor.features(&data.images, shape, &mut |n| {
            let new = n - done;
            done = n;
            progress(new as u64)
        })?;
        let classes = out.logits.as_ref().map_or(0, |l| l.len() / out.n.max(1));
        let logits = out.logits.map(|logits| Features::new(what, logits, classes)).transpose()?;
        Ok(Extracted { features: Features::new(what, out.data, out.dim)?, logits })
    }

    /// The statistics of a set of real images, with `k` neighbours of each.
    pub fn reference(
        &mut self,
        data: &Dataset,
        k: usize,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Reference> {
        let features = self.extract("the reference images", data, progress)?.features;
        let origin = Origin { network: self.fingerprint.clone(), data: data_fingerprint(data) };
        Reference::new(origin, features, data.labels.clone(), k)
    }

    /// The share of images whose most probable class is their label.
    pub fn accuracy(&mut self, data: &Dataset, progress: &mut dyn FnMut(u64) -> Result<()>) -> Result<f64> {
        let extracted = self.extract("the images", data, progress)?;
        let (Some(logits), Some(labels)) = (&extracted.logits, &data.labels) else {
            return Err(Error::invalid("the images", "have no labels to compare with"));
        };
        let predictions = ClassProbabilities::new(logits).predictions();
        Ok(agreement(&predictions, labels).iter().sum::<f64>() / data.n as f64)
    }
}

/// A data set's [`Dataset::fingerprint`] as a reference's file holds it.
pub fn data_fingerprint(data: &Dataset) -> String {
    format!("{:032x}", data.fingerprint())
}

/// Sampled values as the pictures that they would be saved as, with these labels: real images are bytes too.
pub fn pictures(images: &Images, labels: Option<Vec<u32>>) -> Result<Dataset> {
    let [n, c, h, w] = images.shape;
    if images.data.len() != n * c * h * w || images.data.is_empty() {
        return Err(Error::shape("samples", format!("{} numbers are not {n}×{c}×{h}×{w}", images.data.len())));
    }
    if let Some(at) = images.data.iter().position(|v| !v.is_finite()) {
        return Err(Error::invalid("samples", format!("image {} holds {}", at / (c * h * w), images.data[at])));
    }
    let mut bytes = Vec::with_capacity(images.data.len());
    for image in images.data.chunks_exact(c * h * w) {
        bytes.extend((0..h * w).flat_map(|p| (0..c).map(move |channel| to_byte(image[channel * h * w + p]))));
    }
    let class_count = labels.iter().flatten().max().map_or(0, |l| *l as usize + 1);
    Ok(Dataset { images: bytes, n, height: h, width: w, channels: c, labels, class_count, ..Dataset::default() })
}

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Metric {
    /// Fréchet distance: `fd-<network>`.
    Fd,
    /// Precision, recall, density and coverage.
    Prdc,
    /// The inception score's form: `is-<network>`.
    Is,
    /// Median distance to the nearest training image, and the share of samples that are suspiciously near.
    Nn,
    /// The share of each predicted class; of labelled samples also how many are what was asked for.
    Classes,
    /// The Fréchet distance of each class.
    PerClass,
}

impl Metric {
    /// All of them.
    pub const ALL: [Metric; 6] = [Metric::Fd, Metric::Prdc, Metric::Is, Metric::Nn, Metric::Classes, Metric::PerClass];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Fd => "fd",
            Metric::Prdc => "prdc",
            Metric::Is => "is",
            Metric::Nn => "nn",
            Metric::Classes => "classes",
            Metric::PerClass => "per-class",
        }
    }
}

impl FromStr for Metric {
    type Err = Error;

    fn from_str(text: &str) -> Result<Metric> {
        let found = Metric::ALL.into_iter().find(|m| m.name() == text);
        let names = || Metric::ALL.map(Metric::name).join(", ");
        found.ok_or_else(|| Error::invalid("--metrics", format!("`{text}` is none of {}", names())))
    }
}

/// One number of an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub name: String,
    pub estimate: Estimate,
}

/// All numbers of an evaluation, and what is to be said about them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    pub rows: Vec<Row>,
    pub notes: Vec<String>,
}

impl Evaluation {
    fn add(&mut self, name: impl Into<String>, estimate: Estimate) {
        self.rows.push(Row { name: name.into(), estimate });
    }
}

/// Measures samples against a reference. `labels` are the classes that the samples were asked to be. An empty list of metrics means
/// all that can be taken, and the notes say what cannot; a metric that is named and cannot be taken is an error. `progress` is
/// told each metric before it is taken.
pub fn evaluate(
    network: &FeatureExtractor,
    samples: &Extracted,
    labels: Option<&[u32]>,
    reference: &Reference,
    metrics: &[Metric],
    bootstrap: Bootstrap,
    progress: &mut dyn FnMut(Metric) -> Result<()>,
) -> Result<Evaluation> {
    let judge = Judge { network: network.name(), samples, labels, reference, bootstrap };
    let mut evaluation = Evaluation::default();
    judge.warn(&mut evaluation);
    for metric in if metrics.is_empty() { &Metric::ALL } else { metrics } {
        progress(*metric)?;
        match judge.obstacle(*metric) {
            None => judge.take(*metric, &mut evaluation)?,
            Some(reason) if metrics.is_empty() => {
                evaluation.notes.push(format!("no {}: {reason}", metric.name()));
            }
            Some(reason) => return Err(Error::invalid(format!("--metrics {}", metric.name()), reason)),
        }
    }
    Ok(evaluation)
}

/// What all metrics are taken from.
struct Judge<'a> {
    network: &'a str,
    samples: &'a Extracted,
    labels: Option<&'a [u32]>,
    reference: &'a Reference,
    bootstrap: Bootstrap,
}

impl Judge<'_> {
    /// Why a metric cannot be taken.
    fn obstacle(&self, metric: Metric) -> Option<String> {
        let (n, references) = (self.samples.features.n(), self.reference.features.n());
        let (fewest, k) = (n.min(references), self.reference.k);
        match metric {
            Metric::Fd if fewest < 2 => Some(format!("a covariance needs more than one image, there is {fewest}")),
            Metric::Prdc if fewest <= k => {
                Some(format!("{k} nearest neighbours need more than {k} images, there are {fewest}"))
            }
            Metric::Nn if self.reference.near.is_none() => Some(format!("the reference has {references} images only")),
            Metric::Is | Metric::Classes if self.samples.logits.is_none() => {
                Some(format!("the network `{}` does not classify", self.network))
            }
            Metric::PerClass if self.labels.is_none() => Some("the samples have no labels".into()),
            Metric::PerClass if self.reference.labels.is_none() => Some("the reference has no labels".into()),
            _ => None,
        }
    }

    /// Notes on sets that are too small for what follows.
    fn warn(&self, evaluation: &mut Evaluation) {
        let dim = self.samples.features.dim();
        for (what, n) in [("samples", self.samples.features.n()), ("reference images", self.reference.features.n())] {
            if n < dim + 1 {
                evaluation.notes.push(format!(
                    "{n} {what} are fewer than {}, so the covariance of {dim} features is singular and Fréchet distances are too \
                     large",
                    dim + 1
                ));
            }
        }
    }

    fn take(&self, metric: Metric, evaluation: &mut Evaluation) -> Result<()> {
        match metric {
            Metric::Fd => self.frechet(evaluation),
            Metric::Prdc => self.neighbourhood(evaluation),
            Metric::Is => self.inception_score(evaluation),
            Metric::Nn => self.distance_to_training_set(evaluation),
            Metric::Classes => self.classes(evaluation),
            Metric::PerClass => self.by_class(evaluation),
        }
    }

    fn frechet(&self, evaluation: &mut Evaluation) -> Result<()> {
        let estimate = self.frechet_of(&self.reference.moments, &self.samples.features)?;
        evaluation.add(format!("fd-{}", self.network), estimate);
        if self.samples.features.dim() > WIDE && self.bootstrap.resamples > WIDE_RESAMPLES {
            evaluation.notes.push(format!(
                "the interval of the Fréchet distance is of {WIDE_RESAMPLES} resamples: {} features make it slow",
                self.samples.features.dim()
            ));
        }
        Ok(())
    }

    fn frechet_of(&self, reference: &Moments, samples: &Features) -> Result<Estimate> {
        let most = if samples.dim() > WIDE { WIDE_RESAMPLES } else { usize::MAX };
        let bootstrap = Bootstrap { resamples: self.bootstrap.resamples.min(most), ..self.bootstrap };
        let frechet = Frechet::new(reference);
        let estimate = bootstrap.estimate(samples.n(), |rows| frechet.distance(&Moments::of_rows(samples, rows)?))?;
        // No distance is below 0, whatever its interval was moved by.
        Ok(Estimate { interval: estimate.interval.map(|i| i.map(|v| v.max(0.0))), ..estimate })
    }

    fn neighbourhood(&self, evaluation: &mut Evaluation) -> Result<()> {
        let near = self.reference.near.as_deref().unwrap_or_default();
        let found = neighbourhood(&self.samples.features, &self.reference.features, near)?;
        let parts = [
            ("precision", &found.precision),
            ("recall", &found.recall),
            ("density", &found.density),
            ("coverage", &found.coverage),
        ];
        for (name, each) in parts {
            evaluation.add(name, self.bootstrap.mean(each)?);
        }
        Ok(())
    }

    fn inception_score(&self, evaluation: &mut Evaluation) -> Result<()> {
        let Some(logits) = &self.samples.logits else { return Ok(()) };
        let classes = ClassProbabilities::new(logits);
        let estimate = self.bootstrap.estimate(classes.n(), |rows| Ok(classes.score(rows, SPLITS)))?;
        evaluation.add(format!("is-{}", self.network), estimate);
        Ok(())
    }

    /// Samples nearer to the training set than 99 % of the training set are to the rest of it are taken for copies.
    fn distance_to_training_set(&self, evaluation: &mut Evaluation) -> Result<()> {
        let Some(near) = &self.reference.near else { return Ok(()) };
        let nearest = nearest(&self.samples.features, &self.reference.features, 1)?;
        let median = |rows: &[usize]| {
            let mut distances: Vec<f64> = rows.iter().map(|i| nearest[*i]).collect();
            distances.sort_by(f64::total_cmp);
            Ok(quantile(&distances, 0.5))
        };
        evaluation.add("nn-distance", self.bootstrap.estimate(nearest.len(), median)?);
        let mut own: Vec<f64> = near.iter().step_by(self.reference.k).copied().collect();
        own.sort_by(f64::total_cmp);
        let bound = quantile(&own, 0.01);
        let copies: Vec<f64> = nearest.iter().map(|d| (*d < bound) as usize as f64).collect();
        evaluation.add("memorised", self.bootstrap.mean(&copies)?);
        Ok(())
    }

    fn classes(&self, evaluation: &mut Evaluation) -> Result<()> {
        let Some(logits) = &self.samples.logits else { return Ok(()) };
        let predictions = ClassProbabilities::new(logits).predictions();
        for class in 0..logits.dim() as u32 {
            let each: Vec<f64> = predictions.iter().map(|p| (*p == class) as usize as f64).collect();
            evaluation.add(format!("class-share/{class}"), self.bootstrap.mean(&each)?);
        }
        if let Some(labels) = self.labels {
            evaluation.add("class-agreement", self.bootstrap.mean(&agreement(&predictions, labels))?);
        }
        Ok(())
    }

    fn by_class(&self, evaluation: &mut Evaluation) -> Result<()> {
        let (Some(labels), Some(real)) = (self.labels, &self.reference.labels) else { return Ok(()) };
        let mut classes: BTreeMap<u32, [Vec<usize>; 2]> = BTreeMap::new();
        for (side, labels) in [labels, real].into_iter().enumerate() {
            for (i, class) in labels.iter().enumerate() {
                classes.entry(*class).or_default()[side].push(i);
            }
        }
        let (mut few, mut singular) = (Vec::new(), 0);
        for (class, [samples, real]) in classes {
            if samples.len() < 2 || real.len() < 2 {
                few.push(class.to_string());
                continue;
            }
            let moments = Moments::of_rows(&self.reference.features, &real)?;
            singular += (moments.is_singular() || samples.len() < moments.dim() + 1) as usize;
            let estimate = self.frechet_of(&moments, &self.samples.features.select(&samples))?;
            evaluation.add(format!("fd-{}/{class}", self.network), estimate);
        }
        if !few.is_empty() {
            let classes = few.join(", ");
            evaluation.notes.push(format!("classes without two images on both sides have no distance: {classes}"));
        }
        if singular > 0 {
            let dim = self.samples.features.dim();
            evaluation.notes.push(format!(
                "{singular} classes have fewer than {} images on a side: their covariances are singular",
                dim + 1
            ));
        }
        Ok(())
    }
}

/// 1 for each prediction that is its label.
fn agreement(predictions: &[u32], labels: &[u32]) -> Vec<f64> {
    predictions.iter().zip(labels).map(|(p, l)| (p == l) as usize as f64).collect()
}
