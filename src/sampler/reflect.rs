//! The legs of a reflection: which models, guidance, classes and adapters stand behind the strong and the weak operator.

use crate::diffusion::{Back, Guidance, Reflection, SamplerConfig, SamplerKind, Space};
use crate::methods::sample::{Denoiser, Operator};
use crate::model::Model;
use crate::nn::{Built, Routing};
use crate::weights::Weights;
use crate::{Error, Result};

/// A reflection with its two operators. See [`Reflection`] for what is done with them.
#[derive(Clone, Debug, Default)]
pub struct Reflect<'a> {
    pub reflection: Reflection,
    /// Denoises.
    pub strong: Leg<'a>,
    /// Inverts; not asked where noise leads back.
    pub weak: Leg<'a>,
}

/// An operator: what is not given is as in the ordinary step.
#[derive(Clone, Debug)]
pub struct Leg<'a> {
    /// A model with the same latent space, prediction and noise schedule.
    pub model: Option<&'a Model>,
    /// Any sign; 1 asks the conditional network alone, 0 the unconditional one, either at the price of one call. The guidance
    /// interval is the ordinary step's alone.
    pub guidance_scale: f64,
    pub class: Option<usize>,
    /// In the place of the scale of each of the model's LoRAs.
    pub lora_scale: Option<f64>,
    /// The experts that tokens go to, of a model that has experts. The weights are those of the model, once.
    pub routing: Option<Routing>,
    /// See [`SampleRequest::conditioning`](super::SampleRequest::conditioning).
    pub conditioning: Option<&'a Weights>,
}

impl Default for Leg<'_> {
    /// The ordinary step's model, not guided.
    fn default() -> Self {
        Leg { model: None, guidance_scale: 1.0, class: None, lora_scale: None, routing: None, conditioning: None }
    }
}

impl Leg<'_> {
    /// True if both ask the same network the same question.
    fn same(&self, other: &Leg) -> bool {
        let path = |leg: &Leg| leg.model.map(|m| m.path().to_owned());
        let conditioning = |leg: &Leg| leg.conditioning.map(|c| c.path().to_owned());
        path(self) == path(other)
            && conditioning(self) == conditioning(other)
            && self.routing.unwrap_or_default() == other.routing.unwrap_or_default()
            && (self.guidance_scale, self.class, self.lora_scale)
                == (other.guidance_scale, other.class, other.lora_scale)
    }
}

impl Reflect<'_> {
    /// S2WD, a control: denoise with the weak operator, invert with the strong one.
    pub fn swapped(self) -> Self {
        Reflect { strong: self.weak, weak: self.strong, ..self }
    }

    /// The guidance that the whole step amounts to, to first order, if the legs differ in guidance alone:
    /// `g_M + g_S - g_W`.
    pub fn effective_guidance(&self, guidance_scale: f64) -> f64 {
        match self.reflection.back {
            Back::Weak => {
                guidance_scale + self.reflection.repeat as f64 * (self.strong.guidance_scale - self.weak.guidance_scale)
            }
            Back::Noise => guidance_scale,
        }
    }

    /// What a user should know before a run.
    pub fn warnings(&self, guidance_scale: f64) -> Vec<String> {
        let mut warnings = Vec::new();
        let effective = self.effective_guidance(guidance_scale);
        let scales = [guidance_scale, self.strong.guidance_scale, self.weak.guidance_scale];
        if scales.iter().any(|g| *g < 0.0) || !(0.0..=20.0).contains(&effective) {
            let [main, strong, weak] = scales;
            warnings.push(format!(
                "guidance {main} in the step, {strong} in the strong leg, {weak} in the weak one: to first order that is \
                 classifier-free guidance at {effective}"
            ));
        }
        if self.reflection.back == Back::Weak && self.strong.same(&self.weak) {
            warnings.push("the strong and the weak leg are the same: reflection has no gap to follow".into());
        }
        warnings
    }
}

/// Names of a leg's buffers; those of the ordinary step are `main`, `cond` and `uncond`.
pub(super) struct Names {
    pub weights: &'static str,
    pub scales: &'static str,
    pub cond: &'static str,
    pub uncond: &'static str,
}

pub(super) const STRONG: Names =
    Names { weights: "strong", scales: "strong-scale", cond: "strong-cond", uncond: "strong-uncond" };
pub(super) const WEAK: Names =
    Names { weights: "weak", scales: "weak-scale", cond: "weak-cond", uncond: "weak-uncond" };

/// A leg whose network is built.
pub(super) struct Prepared<'a> {
    names: &'static Names,
    leg: &'a Leg<'a>,
    own: Option<Built>,
}

impl<'a> Prepared<'a> {
    pub(super) fn new(
        names: &'static Names,
        leg: &'a Leg<'a>,
        main: &Model,
        config: &SamplerConfig,
        kind: SamplerKind,
        build: &dyn Fn(&Model, Option<Routing>) -> Result<Built>,
    ) -> Result<Self> {
        let model = leg.model.unwrap_or(main);
        if leg.lora_scale.is_some_and(|s| !s.is_finite()) {
            return Err(Error::invalid("lora scale", "is not a finite number"));
        }
        if leg.lora_scale.is_some() && model.adapters().len() == 0 {
            let reason = format!("{} has no LoRA to scale; add one with --lora", model.path().display());
            return Err(Error::invalid(format!("{}-lora-scale", names.weights), reason));
        }
        if let Some(class) = leg.class {
            let option = format!("{}-class", names.weights);
            match model.network().classes() {
                None => return Err(Error::invalid(option, format!("{} has no classes", model.path().display()))),
                Some(n) if class >= n => {
                    return Err(Error::invalid(option, format!("class {class} is not from 0 to {}", n - 1)));
                }
                Some(_) => {}
            }
        }
        if let Some(other) = leg.model {
            check_fit(main, config, other, kind)?;
        }
        let own = match (leg.model, leg.routing) {
            (None, None) => None,
            (other, routing) => Some(build(other.unwrap_or(main), routing)?),
        };
        Ok(Prepared { names, leg, own })
    }

    pub(super) fn operator<'b>(&'b self, main: Denoiser<'b>) -> Result<Operator<'b>> {
        let Prepared { names, leg, own } = self;
        let guidance = Guidance { guidance_scale: leg.guidance_scale, ..Guidance::default() };
        guidance.validate()?;
        let own_inputs = leg.model.is_some() || leg.class.is_some() || leg.conditioning.is_some();
        let network = own.as_ref().unwrap_or(main.network);
        let weights = if leg.model.is_some() { names.weights } else { main.weights };
        let scales = if leg.lora_scale.is_some() { names.scales } else { weights };
        let (cond, uncond) = if own_inputs { (names.cond, names.uncond) } else { (main.inputs, "uncond") };
        let denoiser = Denoiser { network, weights, inputs: cond, scales };
        let guide = guidance.needs_uncond().then_some(Denoiser { inputs: uncond, ..denoiser });
        Ok(Operator { denoiser, guidance, guide })
    }
}

/// Fails unless latents of `main` on the levels of `config` mean the same to `other`.
fn check_fit(main: &Model, config: &SamplerConfig, other: &Model, kind: SamplerKind) -> Result<()> {
    let [a, b] = [main, other].map(|m| m.path().display().to_string());
    let differ = |field: &str, ours: String, theirs: String| {
        Err(Error::invalid("reflect-with", format!("{field} is {theirs} in {b}, but {ours} in {a}")))
    };
    let (ours, theirs) = (main.network().channels()[0], other.network().channels()[0]);
    if ours != theirs {
        return differ(
            "the number of latent channels (in_channels of config.json)",
            ours.to_string(),
            theirs.to_string(),
        );
    }
    if let (Some(ours), Some(theirs)) = (main.network().sample_size(), other.network().sample_size())
        && ours != theirs
    {
        return differ("the size (sample_size of config.json)", format!("{ours:?}"), format!("{theirs:?}"));
    }
    if main.is_edm() != other.is_edm() {
        let class = |m: &Model| m.network().class_name().to_string();
        return differ("_class_name of config.json", class(main), class(other));
    }
    let theirs = other.sampler_config(kind)?;
    if config.prediction != theirs.prediction {
        let (ours, theirs) = (config.prediction.name(), theirs.prediction.name());
        return differ("prediction_type of scheduler_config.json", ours.into(), theirs.into());
    }
    match (&config.space, &theirs.space) {
        (Space::Vp(ours), Space::Vp(theirs)) if ours.num_train_timesteps() != theirs.num_train_timesteps() => {
            let [ours, theirs] = [ours, theirs].map(|s| s.num_train_timesteps().to_string());
            differ("num_train_timesteps of scheduler_config.json", ours, theirs)
        }
        (Space::Vp(ours), Space::Vp(theirs)) => {
            let pairs = ours.alpha_bar().iter().zip(theirs.alpha_bar()).enumerate();
            match pairs.max_by(|a, b| (a.1.0 - a.1.1).abs().total_cmp(&(b.1.0 - b.1.1).abs())) {
                Some((t, (ours, theirs))) if (ours - theirs).abs() > 1e-6 => differ(
                    &format!("the noise schedule (betas of scheduler_config.json; alpha_bar at timestep {t})"),
                    format!("{ours:.6}"),
                    format!("{theirs:.6}"),
                ),
                _ => Ok(()),
            }
        }
        (Space::Flow { num_train_timesteps: ours, .. }, Space::Flow { num_train_timesteps: theirs, .. })
            if ours != theirs =>
        {
            differ("num_train_timesteps of scheduler_config.json", ours.to_string(), theirs.to_string())
        }
        (Space::Edm { .. }, Space::Edm { .. }) | (Space::Flow { .. }, Space::Flow { .. }) => Ok(()),
        _ => differ(
            "_class_name of scheduler_config.json (the kind of noise schedule)",
            "another".into(),
            "one kind".into(),
        ),
    }
}
