//! `langevin train-classifier`

use super::progress::Progress;
use super::{Output, choose};
use crate::classifier::{Classifier, ClassifierTrainConfig, ClassifierTrainer};
use crate::data::{ClassLimit, Dataset, DatasetOptions};
use crate::evaluator::FeatureExtractor;
use crate::weights::weight_type;
use crate::{Device, Error, Result};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

/// Train a small classifier on a labelled data set, for `langevin eval --features`
///
/// 94,000 weights, 64 features. A distance needs features that know the data, not the best of classifiers: the default steps take
/// minutes. --flip helps where left and right mean the same.
///
/// Examples:
///   langevin train-classifier --data t10k-images-idx3-ubyte.gz --holdout 1000 --out digits-classifier
///   langevin train-classifier --data cifar10-train.zip --steps 3000 --flip --out cifar-classifier
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct TrainClassifierArgs {
    /// Labelled images: EDM-style zip, IDX (.gz), CIFAR binary, or folder of class folders
    #[arg(long)]
    data: PathBuf,
    /// Model folder to write
    #[arg(long)]
    out: PathBuf,
    #[arg(long, default_value_t = 1000)]
    steps: usize,
    /// Images a step
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Peak learning rate; it falls to zero along a cosine
    #[arg(long, default_value_t = 3e-3)]
    lr: f64,
    #[arg(long, default_value_t = 0.01)]
    weight_decay: f64,
    /// Leave out the last N images, and measure the accuracy on them
    #[arg(long, value_name = "N", default_value_t = 0)]
    holdout: usize,
    /// Take images of these classes only, e.g. 1,7:500 for all of class 1 and the first 500 of class 7
    #[arg(long, value_name = "CLASSES", default_value = "")]
    classes: String,
    /// Resize the shorter side of every image to this many pixels and crop the centre square
    #[arg(long, value_name = "PIXELS")]
    resize: Option<usize>,
    /// Convert images to this many channels, 1 (grey) or 3 (RGB) [default: RGB if any image is]
    #[arg(long, value_name = "N")]
    channels: Option<usize>,
    /// Mirror every other image
    #[arg(long)]
    flip: bool,
    /// Type of the saved weights: f32, f16 or bf16
    #[arg(long, default_value = "f16")]
    save_dtype: String,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[arg(long, default_value = "auto")]
    device: String,
}

pub fn run(args: TrainClassifierArgs, output: Output) -> Result<()> {
    let device = choose(&args.device, output, |_| Ok(()))?;
    let dtype = weight_type(&args.save_dtype)?;
    let (channels, resize, classes) = (args.channels, args.resize, ClassLimit::list(&args.classes)?);
    let options = DatasetOptions { channels, resize, classes, ..DatasetOptions::default() };
    let data = Dataset::open(&args.data, &options)?;
    let classes = data.class_count;
    output.note(format!("{} images of {}×{}×{}, {classes} classes", data.n, data.height, data.width, data.channels));
    let config = ClassifierTrainConfig {
        batch: args.batch,
        steps: args.steps,
        learning_rate: args.lr,
        weight_decay: args.weight_decay,
        holdout: args.holdout,
        flip: args.flip,
        seed: args.seed,
    };
    let mut trainer = ClassifierTrainer::new(config, &data, device.clone())?;
    std::fs::create_dir_all(&args.out).map_err(|e| Error::io(&args.out, e))?;
    let start = Instant::now();
    let bar = Progress::new(output, args.steps as u64, "steps");
    let mut smooth = None;
    for _ in 0..args.steps {
        let loss = trainer.step()?;
        let loss = *smooth.insert(smooth.map_or(loss, |s: f32| 0.98 * s + 0.02 * loss));
        bar.message(format!("loss {loss:.4}"));
        bar.advance(1)?;
    }
    bar.finish();
    trainer.save(&args.out, dtype)?;
    let seconds = start.elapsed().as_secs_f64();
    let accuracy = if args.holdout > 0 { Some(accuracy(&args, &data, device)?) } else { None };
    let text = accuracy.map_or(String::new(), |a| format!(", {:.2} % of the last {} right", 100.0 * a, args.holdout));
    output.result(
        format!("{} steps in {seconds:.0} s{text}: {}", args.steps, args.out.display()),
        json!({ "out": args.out, "steps": args.steps, "seconds": seconds, "loss": smooth, "accuracy": accuracy }),
    );
    Ok(())
}

/// Of the classifier as it was saved, on the images that it was not trained on.
fn accuracy(args: &TrainClassifierArgs, data: &Dataset, device: Device) -> Result<f64> {
    let mut network = FeatureExtractor::classifier(Classifier::open(&args.out)?, device)?;
    let held_out = data.part(data.n - args.holdout..data.n)?;
    network.accuracy(&held_out, &mut |_| super::check_interrupt())
}
