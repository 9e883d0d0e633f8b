//! What a method's steps amount to in terms of classifier-free guidance.

use super::{SampleRequest, Sampler};
use crate::device::Device;
use crate::diffusion::reflection::leg;
use crate::diffusion::{Guidance, Ladder, Linear, Prediction, Reg, Stage, Step, Trajectory, ladder};
use crate::methods::sample::{Denoiser, Lowering, Operator, sample};
use crate::model::Model;
use crate::schedule::{Event, Options, Session};
use crate::{Error, Result};

/// The unconditional answer.
const OUT_UNCONDITIONAL: Reg = Reg("out_unconditional");

/// The guidance at which classifier-free guidance would have made the steps that `request` makes, on the average of its steps
/// and the first batch. Of each step the noise that it followed, `eps = (x'/alpha' - x/alpha) / (s' - s)`, is projected:
///
/// ```text
/// g = <eps - eps_uncond, eps_cond - eps_uncond> / |eps_cond - eps_uncond|²
/// ```
///
/// with both answers of the model at `x` (the calibration of "Guidance Matters", arXiv 2602.22570). Plain guidance by a first-order
/// sampler gives its own scale.
///
/// # Errors
/// [`Error::Unsupported`] for a model without an unconditional side, and those of sampling.
pub fn effective_guidance(
    request: SampleRequest,
    model: &Model,
    device: &Device,
    step: &mut dyn FnMut() -> Result<()>,
) -> Result<f64> {
    if model.network().null_class().is_none() && request.conditioning.is_none() {
        return Err(Error::unsupported("effective guidance", format!("{} is not conditional", model.path().display())));
    }
    let config = request.sampler_config(model)?;
    let ladder = ladder(request.sampler, &config, request.steps)?;
    let mut sampler = request.prepare(model, device.clone())?;
    let path = sampler.path(step)?;
    let answers = answers(&mut sampler, &ladder, &path, device)?;
    let each = (0..ladder.rungs.len()).filter_map(|i| {
        let [from, to] = [ladder.rungs[i].from, ladder.rungs[i].to];
        // Pure noise has no direction of its own yet; alpha 0 has no coordinates to compare in.
        let usable = from.alpha > 0.0 && to.alpha > 0.0;
        usable.then(|| {
            let eps =
                |x: f32, out: f32| noise(config.prediction, from.alpha, from.sigma).eval(f64::from(x), f64::from(out));
            let (mut dot, mut square) = (0.0, 0.0);
            for (j, x) in path[i].iter().enumerate() {
                let (cond, uncond) = (eps(*x, answers[i][0][j]), eps(*x, answers[i][1][j]));
                let net =
                    (f64::from(path[i + 1][j]) / to.alpha - f64::from(*x) / from.alpha) / (to.ratio() - from.ratio());
                dot += (net - uncond) * (cond - uncond);
                square += (cond - uncond) * (cond - uncond);
            }
            dot / square
        })
    });
    let each: Vec<f64> = each.filter(|g| g.is_finite()).collect();
    if each.is_empty() {
        return Err(Error::unsupported("effective guidance", "both answers of the model are the same"));
    }
    Ok(each.iter().sum::<f64>() / each.len() as f64)
}

fn noise(prediction: Prediction, alpha: f64, sigma: f64) -> Linear {
    prediction.eps(crate::diffusion::Level { alpha, sigma, time: 0.0, scale: 1.0 })
}

impl Sampler<'_> {
    /// The latents (NHWC) of the first batch before each step, and the result.
    fn path(&mut self, step: &mut dyn FnMut() -> Result<()>) -> Result<Vec<Vec<f32>>> {
        self.write_inputs(0)?;
        let x = self.buffer(Reg::X.0)?;
        let mut path = Vec::new();
        self.session.run(&mut |session, event| {
            if let Event::Row(_) = event {
                step()?;
                path.push(session.read::<f32>(x)?);
            }
            Ok(())
        })?;
        path.push(self.session.read::<f32>(self.plan.sampling.result)?);
        Ok(path)
    }

    fn buffer(&self, name: &str) -> Result<crate::schedule::BufferId> {
        let missing = || Error::Verify { pass: "sampling", reason: format!("there is no buffer `{name}`") };
        self.session.schedule().buffers.find(name).ok_or_else(missing)
    }
}

/// What the model answers at each latent of the path, with and without its condition.
fn answers(sampler: &mut Sampler, ladder: &Ladder, path: &[Vec<f32>], device: &Device) -> Result<Vec<[Vec<f32>; 2]>> {
    let query = |leg, out, rung: &crate::diffusion::Rung| Stage::Query {
        leg,
        x: Reg::X,
        out,
        time: rung.from.time,
        scale: rung.from.scale,
    };
    let steps = ladder.rungs.iter().map(|rung| Step {
        stages: vec![query(leg::MAIN, Reg::OUT, rung), query(1, OUT_UNCONDITIONAL, rung)],
        guided: false,
        level: (rung.from.ratio(), rung.to.ratio()),
    });
    let trajectory =
        Trajectory { init_scale: 1.0, steps: steps.collect(), out: Reg::X, kept: vec![Reg::OUT, OUT_UNCONDITIONAL] };
    let [batch, height, width, _] = sampler.plan.latents.shape[..] else {
        return Err(Error::shape("latents", "must have 4 dimensions"));
    };
    let request = &sampler.request;
    let built = request.build(sampler.model, &request.spec(batch, height, width), None)?;
    let conditional = Denoiser { network: &built, weights: "main", inputs: "cond", scales: "main" };
    let operator = |denoiser| Operator { denoiser, guidance: Guidance::default(), guide: None };
    let operators = [operator(conditional), operator(Denoiser { inputs: "uncond", ..conditional })];
    let how = Lowering { target: device.target(), fuse: true, options: Options::default(), draw_latents: false };
    let sampling = sample(&trajectory, &operators, &sampler.plan.latents, how)?;
    let schedule = sampling.schedule.clone();
    // The same inputs and weights, another schedule.
    sampler.plan.sampling = sampling;
    sampler.session = Session::new(device.clone(), schedule)?;
    sampler.load_weights()?;
    sampler.write_inputs(0)?;
    let [x, cond, uncond] = [Reg::X, Reg::OUT, OUT_UNCONDITIONAL].map(|reg| sampler.buffer(reg.0));
    let (x, cond, uncond) = (x?, cond?, uncond?);
    let mut found = Vec::new();
    let read = |session: &mut Session| Ok([session.read::<f32>(cond)?, session.read::<f32>(uncond)?]);
    sampler.session.run(&mut |session, event| {
        if let Event::Row(row) = event {
            if row > 0 {
                found.push(read(session)?);
            }
            session.write(x, &path[row])?;
        }
        Ok(())
    })?;
    found.push(read(&mut sampler.session)?);
    Ok(found)
}
