//! `langevin sample`

use super::lora::LoraArgs;
use super::progress::Progress;
use super::reflect::{ReflectArgs, ReflectFiles};
use super::{Output, choose};
use crate::diffusion::{Churn, Interval, Options, SamplerConfig, SamplerKind};
use crate::files::AtomicFile;
use crate::model::Model;
use crate::sampler::{Images, SampleRequest, Sampler};
use crate::weights::{Dtype, TensorSpec, Weights, WriteOptions, write};
use crate::{Error, Result};
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Sample images and write them as one picture
///
/// Without --model the embedded MNIST UNet is used; without anything at all a grid of digits is written.
///
/// Examples:
///   langevin sample
///   langevin sample --classes 3,7 --n 32 --guidance 2 --out threes-and-sevens.png
///   langevin sample --model unet/ --sampler dpmpp-2m --steps 20 --scheduler-config scheduler_config.json
///   langevin sample --reflect
///   langevin sample --model strong/ --reflect-with weak/ --guidance 5.5 --lambda 25
///   langevin sample --model experts/ --weak-experts bottom
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct SampleArgs {
    #[command(flatten)]
    pub request: RequestArgs,
    /// Write the first latents (unit variance, NCHW, as `latents`) to a safetensors file
    #[arg(long, value_name = "FILE")]
    save_latents: Option<PathBuf>,
    /// Write the sampled values (NCHW, as `sample`) to a safetensors file
    #[arg(long, value_name = "FILE")]
    save_samples: Option<PathBuf>,
    /// Picture to write
    #[arg(long, default_value = "samples.png")]
    out: PathBuf,
    /// Show reflected samples alone, not beside those without reflection
    #[arg(long)]
    reflected_only: bool,
    /// Images in a row of the picture [default: a square]
    #[arg(long)]
    columns: Option<usize>,
}

/// What `sample` and `plan sample` share.
#[derive(Args, Debug)]
pub struct RequestArgs {
    /// Model folder in diffusers' layout, or an embedded model: mnist-dit, mnist-unet, mnist-unet-weak [default: mnist-dit;
    /// with --reflect alone mnist-unet]
    #[arg(long)]
    model: Option<PathBuf>,
    #[command(flatten)]
    lora: LoraArgs,
    #[command(flatten)]
    pub reflect: ReflectArgs,
    /// ddim, ddpm, euler, euler-a, heun, dpmpp-2m, dpmpp-2m-sde or unipc [default: heun for EDM networks, else ddim]
    #[arg(long)]
    sampler: Option<String>,
    /// Steps of the sampler [default: 18 for EDM networks, else 50]
    #[arg(long)]
    steps: Option<usize>,
    /// JSON file with the keys of a diffusers scheduler; absent keys mean the defaults of the sampler's class
    #[arg(long, value_name = "FILE")]
    scheduler_config: Option<PathBuf>,
    /// Guidance scale; 1 asks the conditional network alone [default: 2.5 for embedded models, else 1]
    #[arg(long, allow_negative_numbers = true)]
    pub guidance: Option<f64>,
    /// Pull the guided answer's spread back to the conditional one's, 0 to 1
    #[arg(long, default_value_t = 0.0)]
    guidance_rescale: f64,
    /// Guide only where sigma lies between these two
    #[arg(long, num_args = 2, value_names = ["LO", "HI"])]
    guidance_interval: Option<Vec<f64>>,
    /// A weaker model that guides instead of the unconditional one (autoguidance)
    #[arg(long, value_name = "MODEL")]
    guide: Option<PathBuf>,
    /// CFG++ at this scale, 0 to 1, instead of --guidance; with ddim or euler
    #[arg(long, value_name = "SCALE")]
    pub cfg_plus_plus: Option<f64>,
    /// Classes, repeated over the images [default: all in turn]
    #[arg(long, value_delimiter = ',')]
    classes: Vec<usize>,
    /// Number of images [default: 20; eval: 1000]
    #[arg(long, short)]
    pub n: Option<usize>,
    /// Images computed at a time; changes none of them
    #[arg(long, default_value_t = 20)]
    batch: usize,
    /// Height and width [default: the model's]
    #[arg(long, num_args = 2, value_names = ["HEIGHT", "WIDTH"])]
    size: Option<Vec<usize>>,
    /// Seed, from 0 to 2^64 - 1; every image has a stream of its own
    #[arg(long, default_value = "0", allow_negative_numbers = true, value_parser = parse_seed)]
    pub seed: u64,
    /// How stochastic ddim and euler-a are: 0 deterministic, 1 ancestral
    #[arg(long)]
    eta: Option<f64>,
    /// S_churn of EDM's stochastic sampler, for euler and heun
    #[arg(long, default_value_t = 0.0)]
    churn: f64,
    /// First latents of unit variance (NCHW, named `latents`) from a safetensors file
    #[arg(long, value_name = "FILE")]
    latents: Option<PathBuf>,
    /// Safetensors file with encoder_hidden_states and so on, and the same under uncond. for guidance
    #[arg(long, value_name = "FILE")]
    conditioning: Option<PathBuf>,
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Type of weights and activations in memory: f32, or f16 or bf16 where the device has it
    #[arg(long, default_value = "f32")]
    dtype: String,
    /// Keep every op a launch of its own
    #[arg(long)]
    no_fuse: bool,
}

fn parse_seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("`{text}` is not a whole number from 0 to {}", u64::MAX))
}

/// Files that a request borrows from.
pub struct RequestFiles {
    pub model: Model,
    reflect: ReflectFiles,
    guide: Option<Model>,
    conditioning: Option<Weights>,
}

impl RequestArgs {
    /// The model, or the default one.
    fn model(&self) -> PathBuf {
        self.model.clone().unwrap_or_else(|| self.reflect.default_model("mnist-dit"))
    }

    pub fn open(&self) -> Result<RequestFiles> {
        Ok(RequestFiles {
            model: self.lora.add_to(Model::open(self.model())?)?,
            reflect: self.reflect.open(self.model.as_ref())?,
            guide: self.guide.as_ref().map(Model::open).transpose()?,
            conditioning: self.conditioning.as_ref().map(Weights::open).transpose()?,
        })
    }

    /// The request that the arguments spell.
    pub fn request<'a>(&self, files: &'a RequestFiles) -> Result<SampleRequest<'a>> {
        let mut request = SampleRequest::new(&files.model);
        match &self.sampler {
            Some(name) => request.sampler = name.parse::<SamplerKind>()?,
            // One call a step, as the legs.
            None if self.reflect.active() && request.sampler == SamplerKind::Heun => {
                request.sampler = SamplerKind::Euler
            }
            None if self.cfg_plus_plus.is_some() => request.sampler = files.model.one_call_sampler(),
            None => {}
        }
        request.steps = self.steps.unwrap_or(request.steps);
        request.config = self.scheduler_config.as_ref().map(|p| scheduler_config(p, request.sampler)).transpose()?;
        request.guidance_scale = self.guidance.unwrap_or(request.guidance_scale);
        request.guidance_rescale = self.guidance_rescale;
        let guidance_interval = match self.guidance_interval.as_deref() {
            Some([lo, hi]) => Interval::Sigma { lo: *lo, hi: *hi },
            _ => Interval::Always,
        };
        let churn = Churn { amount: self.churn, ..Churn::default() };
        request.options = Options {
            eta: self.eta,
            churn,
            guidance_interval,
            cfg_plus_plus: self.cfg_plus_plus,
            ..Options::default()
        };
        request.guide = files.guide.as_ref();
        request.classes = self.classes.clone();
        (request.n, request.batch) = (self.n.unwrap_or(request.n), self.batch);
        request.size = self.size.as_deref().and_then(|s| Some([*s.first()?, *s.get(1)?]));
        request.seed = self.seed;
        if let Some(path) = &self.latents {
            let (n, latents) = read_latents(path, &files.model, &mut request.size)?;
            request.n = n;
            request.latents = Some(latents);
        }
        request.conditioning = files.conditioning.as_ref();
        (request.fuse, request.dtype) = (!self.no_fuse, super::storage_type(&self.dtype)?);
        self.reflect.add_to(&mut request, &files.reflect)?;
        Ok(request)
    }
}

fn scheduler_config(path: &Path, kind: SamplerKind) -> Result<SamplerConfig> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    SamplerConfig::from_json(kind, &text, path)
}

/// Latents `[N, C, H, W]`: how many, and their numbers; they also set the size.
fn read_latents(path: &Path, model: &Model, size: &mut Option<[usize; 2]>) -> Result<(usize, Vec<f32>)> {
    let file = Weights::open(path)?;
    let Some(info) = file.info("latents") else { return Err(Error::tensor(path, "latents", "is missing")) };
    let channels = model.network().channels()[0];
    match info.shape[..] {
        [n, c, h, w] if c == channels && n * h * w > 0 => {
            *size = Some([h, w]);
            Ok((n, file.read_f32("latents")?))
        }
        _ => {
            Err(Error::tensor(path, "latents", format!("must be [n, {channels}, height, width], is {:?}", info.shape)))
        }
    }
}

pub fn run(args: SampleArgs, output: Output) -> Result<()> {
    let files = args.request.open()?;
    let request = args.request.request(&files)?;
    let device = choose(&args.request.device, output, |device| request.lower(&files.model, device).map(drop))?;
    // An output that cannot be written is found out before the work, not after.
    for path in [Some(&args.out), args.save_latents.as_ref(), args.save_samples.as_ref()].into_iter().flatten() {
        drop(AtomicFile::create(path)?);
    }
    for warning in request.reflect.iter().flat_map(|r| r.warnings(request.guidance_scale)) {
        output.note(warning);
    }
    let (sampler_name, steps, n, seed) = (request.sampler, request.steps, request.n, request.seed);
    let reflects = request.reflect.is_some();
    let mut sampler = request.prepare(&files.model, device.clone())?;
    let nfe = crate::schedule::Report::new(sampler.schedule()).nfe;
    let start = Instant::now();
    let images = draw(&mut sampler, output)?;
    let seconds = start.elapsed().as_secs_f64();
    if let Some(path) = &args.save_latents {
        save(path, "latents", images.shape, &sampler.latents()?)?;
    }
    if let Some(path) = &args.save_samples {
        save(path, "sample", images.shape, &images.data)?;
    }
    drop(sampler);
    let columns = args.columns.unwrap_or_else(|| (n as f64).sqrt().ceil() as usize).max(1);
    let mut shown = picture(&images, columns)?;
    if reflects && !args.reflected_only {
        let plain = SampleRequest { reflect: None, ..args.request.request(&files)? };
        let plain = draw(&mut plain.prepare(&files.model, device)?, output)?;
        shown = picture(&plain, columns)?.beside(&shown, 16)?;
    }
    shown.save_png(&args.out)?;
    let how = match (reflects, args.reflected_only) {
        (false, _) => "",
        (true, true) => " with reflection",
        (true, false) => " with reflection (right; left without)",
    };
    output.result(
        format!(
            "{n} images by {sampler_name}{how}, {steps} steps, {nfe} network evaluations a batch, {seconds:.2} s: {}",
            args.out.display()
        ),
        json!({ "out": args.out, "n": n, "sampler": sampler_name.to_string(), "steps": steps, "nfe": nfe,
                "seed": seed, "seconds": seconds, "images_per_second": n as f64 / seconds }),
    );
    Ok(())
}

/// Runs a sampler with a progress bar.
fn draw(sampler: &mut Sampler, output: Output) -> Result<Images> {
    let start = Instant::now();
    let mut bar: Option<Progress> = None;
    let images = sampler.run(&mut |p| {
        let bar = bar.get_or_insert_with(|| Progress::new(output, p.steps as u64, "steps"));
        let batches = p.step as f64 / p.steps as f64 * p.n.div_ceil(p.batch) as f64;
        bar.message(format!("{:.2} img/s", batches * p.batch as f64 / start.elapsed().as_secs_f64().max(1e-9)));
        bar.advance(1)
    })?;
    if let Some(bar) = bar {
        bar.finish();
    }
    Ok(images)
}

/// The grid, enlarged if the images are tiny. Latents of more than four channels show their first three.
pub(super) fn picture(images: &Images, columns: usize) -> Result<crate::image::Image> {
    let [n, c, h, w] = images.shape;
    let shown = if c == 1 { 1 } else { c.min(3) };
    let data: Vec<f32> = images
        .data
        .chunks_exact(h * w)
        .enumerate()
        .filter(|(i, _)| i % c < shown)
        .flat_map(|(_, p)| p.iter().copied())
        .collect();
    let small = Images { data, shape: [n, shown, h, w] };
    let grid = small.grid(columns)?;
    grid.upscale((96 / h.max(w).max(1)).clamp(1, 4))
}

fn save(path: &Path, name: &str, shape: [usize; 4], data: &[f32]) -> Result<()> {
    let spec = TensorSpec::new(name, Dtype::F32, shape.to_vec());
    write(path, vec![spec], &WriteOptions::default(), |_, out| {
        out.copy_from_slice(data);
        Ok(())
    })
}
