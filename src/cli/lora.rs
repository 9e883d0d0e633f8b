//! `--lora`, wherever a model is opened.

use crate::model::Model;
use crate::{Error, Result};
use clap::Args;

/// LoRAs to add to a model.
#[derive(Args, Debug)]
pub struct LoraArgs {
    /// Add a LoRA (safetensors under kohya's, PEFT's or diffusers' names, or a folder that PEFT saved) at a scale of any sign
    /// [default: 1]; may be repeated
    #[arg(long = "lora", value_name = "FILE[=SCALE]")]
    files: Vec<String>,
}

impl LoraArgs {
    /// The model with all of them.
    pub fn add_to(&self, model: Model) -> Result<Model> {
        self.files.iter().try_fold(model, |model, given| {
            let (path, scale) = match given.rsplit_once('=') {
                Some((path, scale)) => (path, scale.parse().map_err(|_| invalid(given))?),
                None => (given.as_str(), 1.0),
            };
            model.with_lora(path, scale)
        })
    }
}

fn invalid(given: &str) -> Error {
    Error::invalid("--lora", format!("`{given}`: what stands behind = is not a number"))
}
