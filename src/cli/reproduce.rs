//! `langevin reproduce`

use super::progress::Progress;
use super::{Output, choose};
use crate::reproduce::{Event, PRESET, Part, Request};
use crate::run::{Settings, parse, preset};
use crate::{Error, Result};
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

/// Run a paper's claims again
#[derive(Args, Debug)]
pub struct ReproduceArgs {
    #[command(subcommand)]
    paper: Paper,
}

#[derive(Subcommand, Debug)]
enum Paper {
    W2sd(W2sdArgs),
}

/// Weak-to-strong diffusion with reflection (Bai, Sugiyama & Xie 2025)
///
/// Writes w2sd.md, w2sd.json and pictures into --out. Parts that were run before into the same folder stay in the report.
///
///   analytic      mixtures of Gaussians with exact scores; seconds
///   cifar         two models of cars and horses at 16x16, for which cars are rare: the share of cars by method. Trains both models
///                 and a classifier in --out, unless they are there; tens of minutes on a processor, and as long to sample
///   time-gap      the cosine of the gaps between three checkpoints of one of them, by noise level; a minute
///   guidance-gap  the embedded mnist-unet at two guidance scales, and guidance alone; tens of minutes
///   moe           the best and the worst experts of a DiT-MoE, which it trains as the preset mnist-dit-moe says
///
/// Parts whose data are not given are left out, and a line says so. Training that was stopped goes on where it was.
///
/// Examples:
///   langevin reproduce w2sd --part analytic --out w2sd
///   langevin reproduce w2sd --data cifar10-train.zip --mnist t10k-images-idx3-ubyte.gz --out w2sd
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
struct W2sdArgs {
    /// Which parts to run [default: all]
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    part: Vec<String>,
    /// CIFAR-10's training images: EDM-style zip or CIFAR binary; for cifar and time-gap
    #[arg(long)]
    data: Option<PathBuf>,
    /// CIFAR-10's test images for time-gap [default: the last ones of --data]
    #[arg(long, value_name = "DATA")]
    test: Option<PathBuf>,
    /// MNIST's images, their labels beside them; for guidance-gap and moe
    #[arg(long, value_name = "DATA")]
    mnist: Option<PathBuf>,
    /// Folder of the report, the pictures and the training runs
    #[arg(long)]
    out: PathBuf,
    /// A TOML file with settings of the training runs, over those of the preset cifar-pair: other networks, sizes, lengths. The
    /// preset of moe stays as it is
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Samples of networks a row [default: 2000]
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    /// Steps of their sampler [default: 20]
    #[arg(long, value_name = "T")]
    steps: Option<usize>,
    /// Images computed at a time; changes none of them
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[arg(long, default_value = "auto")]
    device: String,
}

impl W2sdArgs {
    fn request(&self, output: Output) -> Result<Request> {
        let defaults = Request::new(&self.out)?;
        let parts = self.part.iter().map(|p| p.parse()).collect::<Result<Vec<Part>>>()?;
        Ok(Request {
            parts: if parts.is_empty() { defaults.parts } else { parts },
            data: self.data.clone(),
            test: self.test.clone(),
            mnist: self.mnist.clone(),
            settings: self.config.as_deref().map_or(Ok(defaults.settings), settings)?,
            experts: defaults.experts,
            samples: self.samples.unwrap_or(defaults.samples),
            steps: self.steps.unwrap_or(defaults.steps),
            batch: self.batch.unwrap_or(defaults.batch),
            seed: self.seed,
            device: choose(&self.device, output, |_| Ok(()))?,
            out: defaults.out,
        })
    }
}

/// The preset's settings with those of a file over them.
fn settings(path: &Path) -> Result<Settings> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    Settings::from_layers([(Path::new(PRESET), &preset(PRESET)?), (path, &parse(path, &text)?)])
}

pub fn run(args: ReproduceArgs, output: Output) -> Result<()> {
    let Paper::W2sd(args) = args.paper;
    let request = args.request(output)?;
    let mut bar: Option<Progress> = None;
    let report = request.run(&mut |event| {
        match event {
            Event::Begin { what, steps } => {
                if let Some(done) = bar.take() {
                    done.finish();
                }
                let begun = bar.insert(Progress::new(output, steps, "steps"));
                begun.message(what.into());
            }
            Event::Step(n) => return bar.as_ref().map_or(Ok(()), |bar| bar.advance(n)),
            Event::Note(text) => output.note(text),
        }
        super::check_interrupt()
    })?;
    if let Some(bar) = bar {
        bar.finish();
    }
    let json = serde_json::to_value(&report).map_err(|e| Error::invalid("--json", e.to_string()))?;
    output.result(report.markdown().trim_end(), json);
    Ok(())
}
