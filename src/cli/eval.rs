//! `langevin eval`

use super::progress::Progress;
use super::sample::RequestArgs;
use super::{Output, choose};
use crate::classifier::EMBEDDED;
use crate::data::{Dataset, DatasetOptions};
use crate::eval::{Bootstrap, NEIGHBOURS, Reference};
use crate::evaluator::{Evaluation, FeatureExtractor, Metric, data_fingerprint, evaluate, pictures};
use crate::files::AtomicFile;
use crate::sampler::Images;
use crate::weights::Weights;
use crate::{Device, Error, Result};
use clap::Args;
use serde_json::json;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Measure how good samples are: distances to real images in the features of a network
///
/// Samples are pictures (--samples), or are drawn from a model with the options of `langevin sample`. Values and their 95 % intervals
/// (bootstrap over images; the network and the reference count as known) are for these metrics:
///
///   fd         Frechet distance of the features, named after the network: fd-classifier is not FID
///   prdc       precision, recall, density and coverage, with balls to the --k-th nearest neighbour
///   is         exp(E KL(p(y|x) || p(y))) in 10 parts, the form of the inception score
///   nn         nn-distance: median distance to the nearest reference image; memorised: share of samples nearer to one than 99 %
///              of the reference images are to each other
///   classes    share of each predicted class; of labelled samples the share that is what it should be
///   per-class  Frechet distance of each class; needs labels on both sides
///
/// The embedded network knows 28x28 grey digits. For other images train one with `langevin train-classifier`.
///
/// Examples:
///   langevin eval --model mnist-unet --n 1000 --reference t10k-images-idx3-ubyte.gz
///   langevin eval --samples samples/ --reference train.zip --features my-classifier --cache train.safetensors
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct EvalArgs {
    /// Pictures: a folder, a zip, IDX or CIFAR files, or the `sample` (NCHW in -1..1) of a safetensors file; class folders and
    /// `class_labels` say what they should show
    #[arg(long, value_name = "PATH", conflicts_with_all = ["model", "n"])]
    samples: Option<PathBuf>,
    /// Real images: EDM-style zip, IDX (.gz), CIFAR binary, or folder
    #[arg(long, value_name = "DATA", required_unless_present = "cache")]
    reference: Option<PathBuf>,
    /// Keep the reference's features and statistics in this safetensors file. What another network or other data left in it is
    /// replaced; without --reference, it is only read
    #[arg(long, value_name = "FILE")]
    cache: Option<PathBuf>,
    /// Feature network: the embedded mnist-classifier, a folder that `langevin train-classifier` wrote, or the safetensors of an
    /// InceptionV3 (the layout of pytorch-fid) or a DINOv2 (that of transformers)
    #[arg(long, value_name = "NET", default_value = EMBEDDED)]
    features: PathBuf,
    /// Which to take, of fd, prdc, is, nn, classes, per-class [default: all that can be]
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    metrics: Vec<String>,
    /// Neighbours that precision, recall, density and coverage look at
    #[arg(long, value_name = "N", default_value_t = NEIGHBOURS)]
    k: usize,
    /// Convert pictures and real images to this many channels, 1 (grey) or 3 (RGB) [default: RGB if any of a set is]
    #[arg(long, value_name = "N")]
    channels: Option<usize>,
    /// Resamples of the intervals; 0: no intervals. Frechet distances of more than 512 features take 10 at most
    #[arg(long, value_name = "N", default_value_t = 100)]
    bootstrap: usize,
    #[command(flatten)]
    request: RequestArgs,
}

/// The most resamples: more only take time.
const MAX_RESAMPLES: usize = 100_000;
/// The most neighbours: balls of more tell nothing apart.
const MAX_NEIGHBOURS: usize = 1000;

pub fn run(args: EvalArgs, output: Output) -> Result<()> {
    let device = choose(&args.request.device, output, |_| Ok(()))?;
    let metrics: Vec<Metric> = args.metrics.iter().map(|m| m.parse()).collect::<Result<_>>()?;
    if args.bootstrap > MAX_RESAMPLES {
        return Err(Error::invalid("--bootstrap", format!("{} is not from 0 to {MAX_RESAMPLES}", args.bootstrap)));
    }
    if !(1..=MAX_NEIGHBOURS).contains(&args.k) {
        return Err(Error::invalid("--k", format!("{} is not from 1 to {MAX_NEIGHBOURS}", args.k)));
    }
    let start = Instant::now();
    let mut network = FeatureExtractor::open(&args.features, device.clone())?;
    let reference = reference(&args, &mut network, output)?;
    let samples = match &args.samples {
        Some(path) => open_samples(path, &args.images())?,
        None => draw_samples(&args.request, device, output)?,
    };
    let bar = Progress::new(output, samples.n as u64, "samples");
    let extracted = network.extract("the samples", &samples, &mut |n| bar.advance(n))?;
    bar.finish();
    let bar =
        Progress::new(output, if metrics.is_empty() { Metric::ALL.len() } else { metrics.len() } as u64, "metrics");
    let bootstrap = Bootstrap { resamples: args.bootstrap, seed: 0 };
    let labels = samples.labels.as_deref();
    let evaluation = evaluate(&network, &extracted, labels, &reference, &metrics, bootstrap, &mut |metric| {
        bar.message(metric.name().into());
        bar.advance(1)
    })?;
    bar.finish();
    for note in &evaluation.notes {
        output.note(format!("note: {note}"));
    }
    let rows: Vec<_> = evaluation
        .rows
        .iter()
        .map(|r| json!({ "name": r.name, "value": r.estimate.value, "interval": r.estimate.interval }))
        .collect();
    output.result(
        table(&evaluation),
        json!({ "network": network.fingerprint(), "samples": samples.n, "reference": reference.features.n(),
                "k": reference.k, "bootstrap": args.bootstrap, "metrics": rows, "notes": evaluation.notes,
                "seconds": start.elapsed().as_secs_f64() }),
    );
    Ok(())
}

impl EvalArgs {
    /// How files of images are read.
    fn images(&self) -> DatasetOptions {
        DatasetOptions { channels: self.channels, ..DatasetOptions::default() }
    }
}

/// The reference's statistics: from the cache if they are there, and into it if they are not.
fn reference(args: &EvalArgs, network: &mut FeatureExtractor, output: Output) -> Result<Reference> {
    let data = args.reference.as_ref().map(|path| Dataset::open(path, &args.images())).transpose()?;
    let cache = args.cache.as_deref();
    if let Some(cache) = cache.filter(|c| data.is_none() || c.exists()) {
        let cached = Reference::open(cache)?;
        let mismatch = cached.mismatch(network.fingerprint(), data.as_ref().map(data_fingerprint).as_deref());
        match mismatch {
            None => return from_cache(cached, cache, args.k, data.is_some(), output),
            Some(reason) if data.is_none() => {
                return Err(Error::format(cache, format!("{reason}; with --reference it is made anew")));
            }
            Some(reason) => output.note(format!("note: {} {reason}; it is replaced", cache.display())),
        }
    }
    let Some(data) = data else { return Err(Error::invalid("--reference", "is missing")) };
    // A cache that cannot be written is found out before the work, not after.
    cache.map(AtomicFile::create).transpose().map(drop)?;
    let bar = Progress::new(output, data.n as u64, "reference images");
    let reference = network.reference(&data, args.k, &mut |n| bar.advance(n))?;
    bar.finish();
    if let Some(cache) = cache {
        reference.save(cache)?;
    }
    Ok(reference)
}

/// What the cache holds, with `k` neighbours; `keep` says whether it is changed if it has another number.
fn from_cache(cached: Reference, cache: &Path, k: usize, keep: bool, output: Output) -> Result<Reference> {
    output.note(format!("{} reference images from {}", cached.features.n(), cache.display()));
    if cached.k == k {
        return Ok(cached);
    }
    output.note(format!("note: it has distances to {} neighbours; those to {k} are taken from its features", cached.k));
    let reference = cached.with_neighbours(k)?;
    if keep {
        reference.save(cache)?;
    }
    Ok(reference)
}

/// Pictures, or the values in a safetensors file.
fn open_samples(path: &Path, options: &DatasetOptions) -> Result<Dataset> {
    if path.extension().is_none_or(|e| e != "safetensors") {
        return Dataset::open(path, options);
    }
    let file = Weights::open(path)?;
    let Some(info) = file.info("sample") else { return Err(Error::tensor(path, "sample", "is missing")) };
    let [n, c @ (1 | 3), h, w] = info.shape[..] else {
        let reason = format!("must be [n, 1 or 3, height, width], is {:?}", info.shape);
        return Err(Error::tensor(path, "sample", reason));
    };
    let labels = match file.info("class_labels") {
        None => None,
        Some(info) if info.shape == [n] => {
            let labels: Option<Vec<u32>> =
                file.read_i64("class_labels")?.into_iter().map(|l| u32::try_from(l).ok()).collect();
            Some(labels.ok_or_else(|| Error::tensor(path, "class_labels", "holds numbers that are no classes"))?)
        }
        Some(info) => {
            let reason = format!("must have one label for each of the {n} samples, is {:?}", info.shape);
            return Err(Error::tensor(path, "class_labels", reason));
        }
    };
    pictures(&Images { data: file.read_f32("sample")?, shape: [n, c, h, w] }, labels)
}

/// Samples of a model, with the classes that were asked for.
fn draw_samples(request: &RequestArgs, device: Device, output: Output) -> Result<Dataset> {
    let files = request.open()?;
    let mut spelled = request.request(&files)?;
    if request.n.is_none() && spelled.latents.is_none() {
        spelled.n = 1000;
    }
    let mut sampler = spelled.prepare(&files.model, device)?;
    let mut bar: Option<Progress> = None;
    let images = sampler
        .run(&mut |p| bar.get_or_insert_with(|| Progress::new(output, p.steps as u64, "sampling steps")).advance(1))?;
    if let Some(bar) = bar {
        bar.finish();
    }
    let classes: Vec<u32> = sampler.classes().iter().map(|c| *c as u32).collect();
    pictures(&images, (!classes.is_empty()).then_some(classes))
}

fn table(evaluation: &Evaluation) -> String {
    let width = evaluation.rows.iter().map(|r| r.name.len()).max().unwrap_or(0);
    let mut text = format!("{:width$}  {:>10}  95 % interval", "metric", "value");
    for row in &evaluation.rows {
        let _ = write!(text, "\n{:width$}  {:>10.4}", row.name, row.estimate.value);
        if let Some([low, high]) = row.estimate.interval {
            let _ = write!(text, "  {low:.4} to {high:.4}");
        }
    }
    text
}
