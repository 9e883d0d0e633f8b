//! Images from a model: the library's front door.
//!
//! ```no_run
//! use langevin::{Device, Model, sampler::SampleRequest};
//!
//! let model = Model::open("mnist-dit")?;
//! let request = SampleRequest { n: 4, classes: vec![3], guidance_scale: 2.0, ..SampleRequest::new(&model) };
//! let images = request.prepare(&model, Device::auto())?.run(&mut |progress| {
//!     println!("{} of {} steps", progress.step, progress.steps);
//!     Ok(())
//! })?;
//! images.grid(2)?.save_png("threes.png")?;
//! # Ok::<(), langevin::Error>(())
//! ```

mod effective;
mod reflect;

pub use effective::effective_guidance;
pub use reflect::{Leg, Reflect};

use crate::device::Device;
use crate::diffusion::reflection::leg;
use crate::diffusion::{
    Guidance, Options as SamplerOptions, SamplerConfig, SamplerKind, Stage, Trajectory, trajectory,
};
use crate::graph::Target;
use crate::image::{BatchShape, Image, grid};
use crate::methods::sample::{Denoiser, Lowering, Operator, Sampling, sample};
use crate::model::Model;
use crate::nn::{Built, InputSpec, Routing, nchw_to_nhwc, nhwc_to_nchw};
use crate::schedule::{BufferId, Event, Options, Schedule, Session};
use crate::tensor::{DType, TensorType};
use crate::weights::Weights;
use crate::{Error, Result};
use reflect::{Prepared, STRONG, WEAK};

/// What to sample, and how.
#[derive(Debug)]
pub struct SampleRequest<'a> {
    pub sampler: SamplerKind,
    /// Steps of the sampler, 1 to the number of training timesteps.
    pub steps: usize,
    /// Number of images.
    pub n: usize,
    /// Images computed at a time; does not change any of them.
    pub batch: usize,
    /// Height and width in pixels (or latent pixels) [default: the model's own].
    pub size: Option<[usize; 2]>,
    /// Classes, one after the other over the images; empty: 0, 1, 2, … if the model has classes.
    pub classes: Vec<usize>,
    /// 1: the conditional answer alone; larger: classifier-free guidance, `uncond + g·(cond − uncond)`.
    pub guidance_scale: f64,
    /// φ in 0..=1, see [`Guidance::rescale`].
    pub guidance_rescale: f64,
    pub options: SamplerOptions,
    /// A weaker model that takes the unconditional one's place (autoguidance).
    pub guide: Option<&'a Model>,
    /// Weak-to-strong reflection before the noisiest steps (W2SD). It takes the place of `options.reflection`.
    pub reflect: Option<Reflect<'a>>,
    /// The sampler's settings [default: [`Model::sampler_config`]].
    pub config: Option<SamplerConfig>,
    /// Image i draws from the stream (seed, i).
    pub seed: u64,
    /// First latents of unit variance, NCHW, `n` of them, instead of drawing them.
    pub latents: Option<Vec<f32>>,
    /// Tensors for networks with other inputs than classes: `encoder_hidden_states`, `text_embeds`, `time_ids`, for one image
    /// or for all; `uncond.encoder_hidden_states` and so on for the unconditional side.
    pub conditioning: Option<&'a Weights>,
    /// Merge ops into fewer launches.
    pub fuse: bool,
    /// How the networks' weights and activations lie in memory: f32, or f16 on devices that have it.
    pub dtype: DType,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Sampler steps begun, over all batches.
    pub step: usize,
    pub steps: usize,
    /// Images of one step.
    pub batch: usize,
    /// All images.
    pub n: usize,
}

/// Sampled images, NCHW, values near −1..1.
#[derive(Clone, Debug, PartialEq)]
pub struct Images {
    pub data: Vec<f32>,
    /// n, channels, height, width
    pub shape: [usize; 4],
}

impl Images {
    /// Standard deviation of the values of an image, averaged over images: near 0 where there is nothing to see.
    pub fn contrast(&self) -> f64 {
        let [n, c, h, w] = self.shape;
        let deviation = |image: &[f32]| {
            let mean = image.iter().map(|v| f64::from(*v)).sum::<f64>() / image.len() as f64;
            (image.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / image.len() as f64).sqrt()
        };
        self.data.chunks_exact((c * h * w).max(1)).map(deviation).sum::<f64>() / n.max(1) as f64
    }

    /// All images in one picture.
    pub fn grid(&self, columns: usize) -> Result<Image> {
        let [n, c, h, w] = self.shape;
        grid(&self.data, BatchShape::nchw(n, c, h, w), columns, 2)
    }
}

impl<'a> SampleRequest<'a> {
    /// Twenty images by the sampler that suits the model; embedded models are guided.
    pub fn new(model: &Model) -> Self {
        let (sampler, steps) = model.usual_sampler();
        SampleRequest {
            sampler,
            steps,
            n: 20,
            batch: 20,
            size: None,
            classes: vec![],
            guidance_scale: if model.is_embedded() { 2.5 } else { 1.0 },
            guidance_rescale: 0.0,
            options: SamplerOptions::default(),
            guide: None,
            reflect: None,
            config: None,
            seed: 0,
            latents: None,
            conditioning: None,
            fuse: true,
            dtype: DType::F32,
        }
    }

    /// The sampler's steps with all their coefficients.
    pub fn trajectory(&self, model: &Model) -> Result<Trajectory> {
        let options = SamplerOptions { reflection: self.reflect.as_ref().map(|r| r.reflection), ..self.options };
        trajectory(self.sampler, &self.sampler_config(model)?, self.steps, &options)
    }

    fn sampler_config(&self, model: &Model) -> Result<SamplerConfig> {
        self.config.clone().map_or_else(|| model.sampler_config(self.sampler), Ok)
    }

    /// Builds the schedule, makes the arena and loads the weights.
    pub fn prepare(self, model: &'a Model, device: Device) -> Result<Sampler<'a>> {
        let plan = self.plan(model, &device)?;
        let session = Session::new(device, plan.sampling.schedule.clone())?;
        let mut sampler = Sampler { request: self, model, plan, session };
        sampler.load_weights()?;
        Ok(sampler)
    }

    /// The schedule and what was fused in it; nothing is allocated.
    pub fn lower(&self, model: &Model, device: &Device) -> Result<Sampling> {
        Ok(self.plan(model, device)?.sampling)
    }

    fn plan(&self, model: &Model, device: &Device) -> Result<SamplePlan> {
        let classes = self.check(model)?;
        let trajectory = self.trajectory(model)?;
        let size = self.size.or(model.network().sample_size());
        let Some([height, width]) = size else {
            return Err(Error::invalid("size", "the model's config.json names none; give one"));
        };
        let batch = self.batch.min(self.n);
        let spec = self.spec(batch, height, width);
        let target = device.target();
        let built = self.build(model, &spec, None, &target)?;
        // CFG++ combines the two answers by itself.
        let guidance_scale = if self.options.cfg_plus_plus.is_some() { 1.0 } else { self.guidance_scale };
        let interval = self.options.guidance_interval;
        let guidance = Guidance { guidance_scale, interval, rescale: self.guidance_rescale };
        guidance.validate()?;
        let guide_built = self.guide.map(|g| self.build(g, &spec, None, &target)).transpose()?;
        let denoiser = Denoiser { network: &built, weights: "main", inputs: "cond", scales: "main" };
        let guided = guidance.needs_uncond().then_some(match &guide_built {
            Some(network) => Denoiser { network, weights: "guide", scales: "guide", ..denoiser },
            None => Denoiser { inputs: "uncond", ..denoiser },
        });
        let config = self.sampler_config(model)?;
        let build = |model: &Model, routing| self.build(model, &spec, routing, &target);
        let prepare = |names, leg| Prepared::new(names, leg, model, &config, self.sampler, &build);
        let legs = match &self.reflect {
            Some(reflect) => vec![prepare(&STRONG, &reflect.strong)?, prepare(&WEAK, &reflect.weak)?],
            None => vec![],
        };
        let mut operators = vec![Operator { denoiser, guidance, guide: guided }];
        for leg in &legs {
            operators.push(leg.operator(denoiser)?);
        }
        if self.options.cfg_plus_plus.is_some() {
            // Legs that nobody asks stand for themselves.
            operators.resize(leg::UNCONDITIONAL, operators[leg::MAIN]);
            let unconditional = Denoiser { inputs: "uncond", ..denoiser };
            operators.push(Operator { denoiser: unconditional, guidance: Guidance::default(), guide: None });
        }
        let channels = model.network().channels()[0];
        let latents = TensorType::f32([batch, height, width, channels]);
        let how =
            Lowering { target, fuse: self.fuse, options: Options::default(), draw_latents: self.latents.is_none() };
        let sampling = sample(&trajectory, &operators, &latents, how)?;
        let steps = trajectory.steps.len();
        Ok(SamplePlan { sampling, latents, steps, classes })
    }

    /// A model's network, its numbers stored as asked for.
    fn build(&self, model: &Model, spec: &InputSpec, routing: Option<Routing>, target: &Target) -> Result<Built> {
        let built = routing.map_or_else(|| model.build(spec), |routing| model.build_routed(spec, routing))?;
        built.for_inference(self.dtype, target)
    }

    /// The sizes of the network's inputs.
    fn spec(&self, batch: usize, height: usize, width: usize) -> InputSpec {
        let dim =
            |name: &str, i: usize| self.conditioning.and_then(|c| c.info(name)).and_then(|t| t.shape.get(i).copied());
        let mut spec = InputSpec::new(batch, height, width);
        spec.tokens = dim("encoder_hidden_states", 1).unwrap_or(spec.tokens);
        spec.time_ids = dim("time_ids", 1).unwrap_or(spec.time_ids);
        spec
    }

    /// Network evaluations that one batch takes: a guided call is two, unless its scale is 0 or 1.
    pub fn nfe(&self, model: &Model) -> Result<usize> {
        let calls = |scale: f64| if scale == 0.0 || scale == 1.0 { 1 } else { 2 };
        let ordinary = if self.options.cfg_plus_plus.is_some() { 1 } else { calls(self.guidance_scale) };
        let reflect = self.reflect.as_ref();
        let [strong, weak] = reflect.map_or([1, 1], |r| [&r.strong, &r.weak].map(|leg| calls(leg.guidance_scale)));
        let of = |guided: bool, stage: &Stage| match stage {
            Stage::Query { leg: leg::MAIN, .. } if guided => ordinary,
            Stage::Query { leg: leg::STRONG, .. } => strong,
            Stage::Query { leg: leg::WEAK, .. } => weak,
            Stage::Query { .. } => 1,
            _ => 0,
        };
        let trajectory = self.trajectory(model)?;
        Ok(trajectory.steps.iter().map(|step| step.stages.iter().map(|s| of(step.guided, s)).sum::<usize>()).sum())
    }

    /// Checks counts and classes; the class of every image.
    fn check(&self, model: &Model) -> Result<Vec<usize>> {
        for (what, n) in [("--n", self.n), ("--batch", self.batch), ("--steps", self.steps)] {
            if n == 0 {
                return Err(Error::invalid(what, "must be at least 1"));
            }
        }
        let Some(classes) = model.network().classes() else {
            return match self.classes.first() {
                Some(_) => Err(Error::invalid("--classes", format!("{} has no classes", model.path().display()))),
                None => Ok(vec![]),
            };
        };
        if let Some(bad) = self.classes.iter().find(|c| **c >= classes) {
            return Err(Error::invalid("--classes", format!("class {bad} is not from 0 to {}", classes - 1)));
        }
        let all: Vec<usize> = if self.classes.is_empty() { (0..classes).collect() } else { self.classes.clone() };
        Ok((0..self.n).map(|i| all[i % all.len()]).collect())
    }
}

#[derive(Debug)]
struct SamplePlan {
    sampling: Sampling,
    latents: TensorType,
    steps: usize,
    /// One for each image, if the model has classes.
    classes: Vec<usize>,
}

/// A prepared request: run it as often as you like.
#[derive(Debug)]
pub struct Sampler<'a> {
    request: SampleRequest<'a>,
    model: &'a Model,
    plan: SamplePlan,
    session: Session,
}

impl<'a> Sampler<'a> {
    /// The schedule that [`Sampler::run`] runs.
    pub fn schedule(&self) -> &Schedule {
        self.session.schedule()
    }

    /// The class of each image; none if the model has no classes.
    pub fn classes(&self) -> &[usize] {
        &self.plan.classes
    }

    fn load_weights(&mut self) -> Result<()> {
        let reflect = self.request.reflect.as_ref();
        let legs = reflect.map(|r| [(&STRONG, &r.strong), (&WEAK, &r.weak)]).into_iter().flatten();
        let own = legs.clone().map(|(names, leg)| (names.weights, leg.model));
        for (prefix, model) in [("main", Some(self.model)), ("guide", self.request.guide)].into_iter().chain(own) {
            let Some(model) = model else { continue };
            let places = self.plan.sampling.weights.iter().filter(|(_, p, _)| p == prefix).map(|(id, _, p)| (*id, p));
            model.load(&mut self.session, places)?;
        }
        for (names, leg) in legs {
            let Some(scale) = leg.lora_scale else { continue };
            for (id, ..) in self.plan.sampling.weights.iter().filter(|(_, p, _)| p == names.scales) {
                self.session.write(*id, &[scale as f32])?;
            }
        }
        Ok(())
    }

    /// Samples all images. `progress` is called before every step; an error from it ([`Error::Cancelled`], say) stops the run.
    pub fn run(&mut self, progress: &mut dyn FnMut(Progress) -> Result<()>) -> Result<Images> {
        let [batch, h, w, c] = self.plan.latents.shape[..] else {
            return Err(Error::shape("latents", "must have 4 dimensions"));
        };
        let n = self.request.n;
        let steps = self.plan.steps * n.div_ceil(batch);
        let mut images = Vec::with_capacity(n * h * w * c);
        let mut step = 0;
        for first in (0..n).step_by(batch) {
            self.run_batch(first, &mut || {
                step += 1;
                progress(Progress { step, steps, batch: batch.min(n - first), n })
            })?;
            let result = self.session.read::<f32>(self.plan.sampling.result)?;
            if let Some(bad) = result.iter().find(|v| !v.is_finite()) {
                return Err(Error::NotFinite { what: "the sampled latents".into(), value: *bad, step });
            }
            let nchw = nhwc_to_nchw(&result, [batch, h, w, c]);
            images.extend_from_slice(&nchw[..batch.min(n - first) * c * h * w]);
        }
        Ok(Images { data: images, shape: [n, c, h, w] })
    }

    /// Samples one batch, the images from number `first` on, and leaves them on the device, where [`Sampler::wgpu_images`] finds
    /// them. `step` is called before every step.
    pub fn run_batch(&mut self, first: usize, step: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.write_inputs(first)?;
        self.session.run(&mut |_, event| match event {
            Event::Row(_) => step(),
            Event::Host(_) | Event::Mark(_) => Ok(()),
        })
    }

    /// The last batch on the wgpu device: the buffer, where in it the images begin, in bytes, and their shape
    /// `[n, height, width, channels]`. f32, near −1..1.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on another device.
    #[cfg(feature = "wgpu")]
    pub fn wgpu_images(&self) -> Result<(wgpu::Buffer, u64, &[usize])> {
        let (buffer, offset) = self.session.wgpu_buffer(self.plan.sampling.result)?;
        Ok((buffer, offset, &self.plan.latents.shape))
    }

    /// The latents of unit variance that images `0..n` start from, NCHW, as [`Sampler::run`] would draw them.
    pub fn latents(&mut self) -> Result<Vec<f32>> {
        if let Some(latents) = &self.request.latents {
            return Ok(latents.clone());
        }
        let [batch, h, w, c] = self.plan.latents.shape[..] else { return Ok(vec![]) };
        let n = self.request.n;
        let mut all = Vec::new();
        for first in (0..n).step_by(batch) {
            self.write_inputs(first)?;
            self.session.run_program(0)?;
            let drawn = self.session.read::<f32>(self.plan.sampling.latents)?;
            let nchw = nhwc_to_nchw(&drawn, [batch, h, w, c]);
            all.extend_from_slice(&nchw[..batch.min(n - first) * c * h * w]);
        }
        Ok(all)
    }

    /// Seeds, classes, given latents and conditioning of the batch that starts with image `first`.
    fn write_inputs(&mut self, first: usize) -> Result<()> {
        let [batch, h, w, c] = self.plan.latents.shape[..] else { return Ok(()) };
        let seeds: Vec<i32> = (first..first + batch).flat_map(|i| seed_of(self.request.seed, i as u64)).collect();
        self.session.write(self.plan.sampling.seeds, &seeds)?;
        if let Some(latents) = &self.request.latents {
            let each = c * h * w;
            if latents.len() != self.request.n * each {
                let reason = format!(
                    "{} numbers, {} images of [{c}, {h}, {w}] need {}",
                    latents.len(),
                    self.request.n,
                    self.request.n * each
                );
                return Err(Error::invalid("latents", reason));
            }
            let mut part: Vec<f32> = latents[first * each..((first + batch) * each).min(latents.len())].to_vec();
            part.resize(batch * each, 0.0);
            self.session.write(self.plan.sampling.latents, &nchw_to_nhwc(&part, [batch, c, h, w]))?;
        }
        let buffers = self.session.schedule().buffers.clone();
        for buffer in buffers.all() {
            let Some((prefix, name)) = buffer.name.split_once('/') else { continue };
            let Some(inputs) = self.inputs(prefix) else { continue };
            if let Some(id) = buffers.find(&buffer.name) {
                self.write_conditioning(id, &inputs, name, &buffer.ty, first)?;
            }
        }
        Ok(())
    }

    /// What the inputs of that prefix hold.
    fn inputs(&self, prefix: &str) -> Option<Inputs<'a>> {
        let main = Leg::default();
        let reflect = self.request.reflect.as_ref();
        let (leg, uncond) = match prefix {
            "cond" | "uncond" => (&main, prefix == "uncond"),
            p if p == STRONG.cond || p == STRONG.uncond => (&reflect?.strong, p == STRONG.uncond),
            p if p == WEAK.cond || p == WEAK.uncond => (&reflect?.weak, p == WEAK.uncond),
            _ => return None,
        };
        let null_class = leg.model.unwrap_or(self.model).network().null_class().unwrap_or(0);
        let class = if uncond { Some(null_class) } else { leg.class };
        Some(Inputs { uncond, class, conditioning: leg.conditioning.or(self.request.conditioning) })
    }

    fn write_conditioning(
        &mut self,
        id: BufferId,
        inputs: &Inputs,
        name: &str,
        ty: &TensorType,
        first: usize,
    ) -> Result<()> {
        let batch = ty.shape.first().copied().unwrap_or(1);
        if name == "class_labels" && !self.plan.classes.is_empty() {
            let class = |i: usize| inputs.class.or(self.plan.classes.get(i).copied()).unwrap_or(0);
            let labels: Vec<i32> = (first..first + batch).map(|i| class(i) as i32).collect();
            return self.session.write(id, &labels);
        }
        let Some(file) = inputs.conditioning else {
            let reason = format!("the model needs `{name}` {:?}; give a safetensors file with it", ty.shape);
            return Err(Error::invalid("--conditioning", reason));
        };
        let key = if inputs.uncond { format!("uncond.{name}") } else { name.to_string() };
        let numbers = file.read_f32(&key)?;
        let each = ty.elements() / batch.max(1);
        if each == 0 || numbers.len() % each != 0 || numbers.is_empty() {
            return Err(Error::tensor(
                file.path(),
                key,
                format!("has {} numbers, an image needs {each}", numbers.len()),
            ));
        }
        let rows = numbers.len() / each;
        let data: Vec<f32> = (first..first + batch)
            .flat_map(|i| numbers[i % rows * each..(i % rows + 1) * each].iter().copied())
            .collect();
        self.session.write(id, &data)
    }
}

/// What a set of a network's inputs holds.
struct Inputs<'a> {
    uncond: bool,
    /// The class of every image; `None`: each its own.
    class: Option<usize>,
    conditioning: Option<&'a Weights>,
}

/// The 64-bit stream of image `i`: the seed's two halves, the image's number mixed into them.
fn seed_of(seed: u64, i: u64) -> [i32; 2] {
    // SplitMix64 (Steele et al. 2014) of the pair, so that neighbouring seeds share no image.
    let mut z = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(i).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    [z as u32 as i32, (z >> 32) as u32 as i32]
}
