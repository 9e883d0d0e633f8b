//! `langevin train`

use super::Output;
use super::progress::Progress;
use crate::data::{Dataset, DatasetOptions};
use crate::diffusion::{Betas, FlowTimes, Levels, Objective, Prediction, Weighting};
use crate::model::{Embedded, Model};
use crate::trainer::{TrainConfig, Trainer};
use crate::weights::Dtype;
use crate::{Device, Error, Result};
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Train a network to denoise, and save its averaged weights as a model folder
///
/// EDM networks learn to denoise at EDM's levels, all others to predict the noise of a VP schedule (1000 timesteps, linear
/// betas). Images come from an EDM-style zip, MNIST's IDX files, CIFAR-10's binary files or a folder of class folders.
///
/// Example: langevin train --network mnist-unet --data t10k-images-idx3-ubyte.gz --steps 2000 --out runs/mnist
#[derive(Args, Debug)]
pub struct TrainArgs {
    /// The network: a config.json, a folder with one, or the name of an embedded model
    #[arg(long)]
    network: PathBuf,
    /// Start from this model's weights instead of random ones
    #[arg(long, value_name = "MODEL")]
    from: Option<PathBuf>,
    /// Images: EDM-style zip, IDX (.gz), CIFAR binary, or folder of class folders
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
    #[arg(long, default_value_t = 1e-3)]
    lr: f64,
    /// Steps over which the learning rate rises
    #[arg(long, default_value_t = 100)]
    warmup: usize,
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f64,
    /// Clip the gradient to this norm; 0: do not
    #[arg(long, default_value_t = 1.0)]
    max_grad_norm: f64,
    /// Images after which a weight's share in the average has halved
    #[arg(long, default_value_t = 20_000.0)]
    ema_half_life: f64,
    /// Probability of training a sample without its label
    #[arg(long, default_value_t = 0.1)]
    label_dropout: f64,
    /// What the network learns to answer: epsilon, sample, v_prediction (1000 timesteps, linear betas), or flow_prediction
    /// (straight path, logit-normal times); EDM networks always learn to denoise
    #[arg(long)]
    prediction: Option<Prediction>,
    /// Also save after these steps, as OUT-<step>
    #[arg(long, value_delimiter = ',')]
    save_at: Vec<usize>,
    /// Type of the saved weights: f32, f16 or bf16
    #[arg(long, default_value = "f32")]
    save_dtype: String,
    /// Run each block's forward pass again in the backward pass, and keep less
    #[arg(long)]
    recompute: bool,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[arg(long, default_value = "auto")]
    device: String,
}

pub fn run(args: TrainArgs, output: Output) -> Result<()> {
    let device: Device = args.device.parse()?;
    let dtype = weight_type(&args.save_dtype)?;
    let (config, path) = network_config(&args.network)?;
    let data = Dataset::open(&args.data, &DatasetOptions::default())?;
    output.note(format!("{} images of {}×{}×{}", data.n, data.height, data.width, data.channels));
    std::fs::create_dir_all(&args.out).map_err(|e| Error::io(&args.out, e))?;
    let mut trainer = Trainer::new(args.config()?, &config, &path, &data, device)?;
    if let Some(from) = &args.from {
        trainer.start_from(&Model::open(from)?)?;
    }
    let (weights, mib) = (trainer.parameters(), trainer.session().arena_bytes() as f64 / 1048576.0);
    output.note(format!("{weights} weights, an arena of {mib:.0} MiB"));
    let start = Instant::now();
    let bar = Progress::new(output, args.steps as u64, "steps");
    let mut smooth = None;
    for step in 1..=args.steps {
        let report = trainer.step()?;
        let loss = *smooth.insert(smooth.map_or(report.loss, |s: f32| 0.98 * s + 0.02 * report.loss));
        let rate = (step * args.batch) as f64 / start.elapsed().as_secs_f64();
        bar.message(format!("loss {loss:.4} {rate:.0} img/s"));
        if output.json && (step % 50 == 0 || step == args.steps) {
            println!(
                "{}",
                json!({ "step": step, "loss": loss, "grad_norm": report.grad_norm, "lr": report.learning_rate, "images_per_second": rate })
            );
        }
        if args.save_at.contains(&step) {
            let name = format!("{}-{step}", args.out.display());
            trainer.save(Path::new(&name), dtype)?;
        }
        if let Err(e) = bar.advance(1) {
            trainer.save(&args.out, dtype)?;
            output.note(format!("stopped after step {step}; saved {}", args.out.display()));
            return Err(e);
        }
    }
    bar.finish();
    trainer.save(&args.out, dtype)?;
    let seconds = start.elapsed().as_secs_f64();
    output.result(
        format!("{} steps in {seconds:.0} s: {}", args.steps, args.out.display()),
        json!({ "out": args.out, "steps": args.steps, "seconds": seconds }),
    );
    Ok(())
}

/// The type of saved weights that a word names.
pub fn weight_type(name: &str) -> Result<Dtype> {
    match name {
        "f32" => Ok(Dtype::F32),
        "f16" => Ok(Dtype::F16),
        "bf16" => Ok(Dtype::BF16),
        other => Err(Error::invalid("--save-dtype", format!("`{other}` is none of f32, f16, bf16"))),
    }
}

impl TrainArgs {
    fn config(&self) -> Result<TrainConfig> {
        Ok(TrainConfig {
            batch: self.batch,
            learning_rate: self.lr,
            warmup: self.warmup,
            steps: self.steps,
            weight_decay: self.weight_decay,
            max_grad_norm: self.max_grad_norm,
            ema_half_life: self.ema_half_life,
            label_dropout: self.label_dropout,
            recompute: self.recompute,
            seed: self.seed,
            objective: self.prediction.map(objective).transpose()?,
        })
    }
}

/// The usual levels for what a network answers.
fn objective(prediction: Prediction) -> Result<Objective> {
    let levels = if prediction == Prediction::Flow {
        let times = FlowTimes::LogitNormal { mean: 0.0, std: 1.0 };
        Levels::Flow { times, shift: 1.0, num_train_timesteps: 1000 }
    } else {
        Levels::vp(Betas::Linear { start: 1e-4, end: 0.02 }, 1000, false)?
    };
    Objective::new(levels, prediction, Weighting::Uniform)
}

/// The text of a network's configuration, and what to call it in errors.
pub fn network_config(network: &Path) -> Result<(String, PathBuf)> {
    if let Some(embedded) = Embedded::ALL.into_iter().find(|e| Path::new(e.name()) == network && !network.exists()) {
        return Ok((embedded.config().to_owned(), network.to_owned()));
    }
    let path = if network.is_dir() { network.join("config.json") } else { network.to_owned() };
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    Ok((text, path))
}
