//! The flags of W2SD, wherever something is sampled.

use crate::diffusion::{Back, QueryTime, ReflectLevels, Reflection};
use crate::model::Model;
use crate::sampler::{Leg, Reflect, SampleRequest};
use crate::weights::Weights;
use crate::{Error, Result};
use clap::Args;
use std::path::PathBuf;

/// The embedded pair.
const STRONG: &str = "mnist-unet";
const WEAK: &str = "mnist-unet-weak";

/// Weak-to-strong reflection: what makes the weak (and the strong) leg differ from the ordinary step. Any of them may be combined.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Weak-to-strong reflection")]
pub struct ReflectArgs {
    /// W2SD between the embedded mnist-unet and its early checkpoint, or with what the options below name: at the noisiest
    /// steps denoise with the strong leg, invert with the weak one, then step
    #[arg(long)]
    pub reflect: bool,
    /// The weak leg's model: a folder or an embedded one
    #[arg(long, value_name = "MODEL")]
    reflect_with: Option<PathBuf>,
    /// Scale of the LoRAs in the weak leg, any sign
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    weak_lora_scale: Option<f64>,
    /// Scale of the LoRAs in the strong leg, any sign [default: as in the step]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    strong_lora_scale: Option<f64>,
    /// Guidance of the weak leg, the strong leg's being that of the step: 0 is Z-Sampling
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    weak_guidance: Option<f64>,
    /// Class of the weak leg
    #[arg(long, value_name = "C")]
    weak_class: Option<usize>,
    /// Class of the strong leg [default: the image's]
    #[arg(long, value_name = "C")]
    strong_class: Option<usize>,
    /// Experts of the weak leg, for a DiT-MoE: bottom, those with the lowest gate scores, or top [default: top]
    #[arg(long, value_name = "WHICH")]
    weak_experts: Option<String>,
    /// Conditioning of the weak leg, as --conditioning
    #[arg(long, value_name = "FILE")]
    weak_conditioning: Option<PathBuf>,
    /// Conditioning of the strong leg, as --conditioning
    #[arg(long, value_name = "FILE")]
    strong_conditioning: Option<PathBuf>,
    /// How many of the noisiest steps reflect [default: all but the last]
    #[arg(long, value_name = "L")]
    lambda: Option<usize>,
    /// Reflections at each of these steps
    #[arg(long, value_name = "N")]
    reflect_repeat: Option<usize>,
    /// The time that the weak leg is told: old, before the strong step, or new, behind it [default: old]
    #[arg(long, value_name = "TIME")]
    reflect_query: Option<String>,
    /// aligned, or released-code: the levels of the published code, shifted by a step [default: aligned]
    #[arg(long, value_name = "LEVELS")]
    reflect_levels: Option<String>,
    /// Guidance of the strong leg [default: 1, with --weak-guidance that of the step]
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    reflect_guidance_strong: Option<f64>,
    /// Guidance of the weak leg [default: 1]
    #[arg(long, value_name = "G", allow_negative_numbers = true, conflicts_with = "weak_guidance")]
    reflect_guidance_weak: Option<f64>,
    /// S2WD, a control: swap the two legs
    #[arg(long)]
    s2wd: bool,
    /// Re-Sampling: come back by fresh noise instead of a weak leg
    #[arg(long)]
    resample: bool,
}

/// Files that the legs borrow from.
pub struct ReflectFiles {
    weak: Option<Model>,
    weak_conditioning: Option<Weights>,
    strong_conditioning: Option<Weights>,
}

impl ReflectArgs {
    /// True if anything is to reflect.
    pub fn active(&self) -> bool {
        self.reflect || self.s2wd || self.resample || self.has_gap()
    }

    /// True if something tells the weak leg from the step.
    fn has_gap(&self) -> bool {
        self.reflect_with.is_some()
            || self.weak_lora_scale.is_some()
            || self.strong_lora_scale.is_some()
            || self.weak_class.is_some()
            || self.weak_experts.is_some()
            || self.strong_class.is_some()
            || self.weak_conditioning.is_some()
            || self.strong_conditioning.is_some()
            || self.weak_guidance.is_some()
            || self.reflect_guidance_strong.is_some()
            || self.reflect_guidance_weak.is_some()
    }

    /// True if the embedded pair is meant.
    fn embedded_pair(&self, model: Option<&PathBuf>) -> bool {
        self.active() && !self.resample && !self.has_gap() && model.is_none_or(|m| m.as_os_str() == STRONG)
    }

    /// The model, if none is named.
    pub fn default_model(&self, otherwise: &str) -> PathBuf {
        if self.embedded_pair(None) { STRONG.into() } else { otherwise.into() }
    }

    pub fn open(&self, model: Option<&PathBuf>) -> Result<ReflectFiles> {
        if self.active() && !self.resample && !self.has_gap() && !self.embedded_pair(model) {
            let reason = "what is the weak leg? Name --reflect-with MODEL, --weak-guidance G, --weak-lora-scale X, --weak-class C \
                          or --weak-experts bottom";
            return Err(Error::invalid("--reflect", reason));
        }
        let embedded = self.embedded_pair(model).then(|| PathBuf::from(WEAK));
        let weak = self.reflect_with.clone().or(embedded);
        let file = |path: &Option<PathBuf>| path.as_ref().map(Weights::open).transpose();
        Ok(ReflectFiles {
            weak: weak.map(Model::open).transpose()?,
            weak_conditioning: file(&self.weak_conditioning)?,
            strong_conditioning: file(&self.strong_conditioning)?,
        })
    }

    /// Adds the reflection to a request.
    pub fn add_to<'a>(&self, request: &mut SampleRequest<'a>, files: &'a ReflectFiles) -> Result<()> {
        if !self.active() {
            let given = [
                ("--lambda", self.lambda.is_some()),
                ("--reflect-repeat", self.reflect_repeat.is_some()),
                ("--reflect-query", self.reflect_query.is_some()),
                ("--reflect-levels", self.reflect_levels.is_some()),
            ];
            return match given.iter().find(|(_, given)| *given) {
                Some((option, _)) => {
                    Err(Error::invalid(*option, "nothing reflects; say --reflect, or name the weak leg"))
                }
                None => Ok(()),
            };
        }
        let strong_guidance = self.reflect_guidance_strong.unwrap_or(match self.weak_guidance {
            Some(_) => request.guidance_scale,
            None => 1.0,
        });
        let strong = Leg {
            model: None,
            guidance_scale: strong_guidance,
            class: self.strong_class,
            lora_scale: self.strong_lora_scale,
            routing: None,
            conditioning: files.strong_conditioning.as_ref(),
        };
        let weak = Leg {
            model: files.weak.as_ref(),
            guidance_scale: self.weak_guidance.or(self.reflect_guidance_weak).unwrap_or(1.0),
            class: self.weak_class,
            lora_scale: self.weak_lora_scale,
            routing: self.weak_experts.as_deref().map(str::parse).transpose()?,
            conditioning: files.weak_conditioning.as_ref(),
        };
        let reflection = Reflection {
            lambda: self.lambda,
            repeat: self.reflect_repeat.unwrap_or(1),
            query: self.reflect_query.as_deref().map_or(Ok(QueryTime::default()), str::parse)?,
            levels: self.reflect_levels.as_deref().map_or(Ok(ReflectLevels::default()), str::parse)?,
            back: if self.resample { Back::Noise } else { Back::Weak },
        };
        let reflect = Reflect { reflection, strong, weak };
        request.reflect = Some(if self.s2wd { reflect.swapped() } else { reflect });
        Ok(())
    }
}
