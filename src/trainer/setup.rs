//! What a trainer begins with: a network that can be trained on the data, an objective that fits it, first weights.

use super::{LoraConfig, TrainConfig};
use crate::data::Dataset;
use crate::diffusion::{Levels, Objective};
use crate::methods::train::Training;
use crate::nn::{Adapter, Built, Config, Init, InputSpec, Network, Parameter, adaptable_layers, adapter_parameter};
use crate::schedule::{BufferId, Session};
use crate::{Error, Result};

/// The network for training: all of it, or an adapter on it.
pub(super) fn build(
    network: &Network,
    spec: &InputSpec,
    lora: Option<&LoraConfig>,
) -> Result<(Built, Option<Adapter>)> {
    let built = network.build(spec)?;
    let Some(lora) = lora else { return Ok((built, None)) };
    let adapter = lora.adapter(&adaptable_layers(&built.parameters))?;
    let mut built = network.build_adapted(spec, std::slice::from_ref(&adapter))?;
    for p in &mut built.parameters {
        p.trainable &= adapter_parameter(&p.name).is_some();
    }
    Ok((built, Some(adapter)))
}

/// The images of a step that each of `ranks` processes trains.
pub(super) fn share(c: &TrainConfig, ranks: usize) -> Result<usize> {
    if !c.batch.is_multiple_of(ranks * c.accumulate) {
        let reason = format!("{} images are not for {ranks} processes in {} equal parts each", c.batch, c.accumulate);
        return Err(Error::invalid("batch", reason));
    }
    Ok(c.batch / ranks)
}

/// The run's objective, checked against the network.
pub(super) fn objective(network: &Network, config: &TrainConfig) -> Result<Objective> {
    let edm = match network.config() {
        Config::Edm(edm) => Some(edm.sigma_data as f64),
        Config::Unet2dCondition(_) => {
            let reason = "data sets hold images and classes only";
            return Err(Error::unsupported("training a text-conditioned network", reason));
        }
        _ => None,
    };
    match (&config.objective, edm) {
        (None, Some(sigma_data)) => Objective::edm(-1.2, 1.2, sigma_data),
        (None, None) => Objective::ddpm(),
        (Some(objective), edm) if matches!(objective.levels, Levels::Edm { .. }) == edm.is_some() => {
            Ok(objective.clone())
        }
        (Some(_), Some(_)) => {
            Err(Error::invalid("prediction", "this network is EDM-preconditioned; it takes EDM's levels"))
        }
        (Some(_), None) => {
            Err(Error::invalid("prediction", "EDM's levels are for EDM-preconditioned networks; this one is not"))
        }
    }
}

pub(super) fn check_data(network: &Network, data: &Dataset, config: &TrainConfig) -> Result<()> {
    let channels = network.channels()[0];
    if channels != data.channels {
        let hint = if matches!(channels, 1 | 3) { "; `channels` converts grey and RGB" } else { "" };
        let reason = format!("images have {} channels, the network takes {channels}{hint}", data.channels);
        return Err(Error::invalid("data", reason));
    }
    if let Some(size) = network.sample_size().filter(|s| *s != [data.height, data.width]) {
        let reason = format!("images are {}×{}, the network takes {}×{}", data.height, data.width, size[0], size[1]);
        return Err(Error::invalid("data", reason));
    }
    if data.n < config.batch {
        return Err(Error::invalid("batch", format!("{} exceeds the {} images there are", config.batch, data.n)));
    }
    let (Some(mut classes), Some(none)) = (network.classes(), network.null_class()) else { return Ok(()) };
    if config.label_dropout > 0.0 {
        // A label of its own must be left to mean none.
        classes = classes.min(none);
    }
    match &data.labels {
        None => Err(Error::invalid("data", "holds no labels, and the network is class-conditional")),
        Some(labels) => match labels.iter().find(|l| **l as usize >= classes) {
            Some(bad) => {
                Err(Error::invalid("data", format!("has label {bad}, the network has room for {classes} classes")))
            }
            None => Ok(()),
        },
    }
}

/// The buffer of a parameter that is not trained.
pub(super) fn fixed_buffer(session: &Session, p: &Parameter) -> Result<BufferId> {
    let missing = || Error::Verify { pass: "training", reason: format!("there is no buffer `{}`", p.name) };
    session.schedule().buffers.find(&p.name).ok_or_else(missing)
}

/// Writes all weights; the average starts as they are.
pub(super) fn write_weights(
    built: &Built,
    training: &Training,
    session: &mut Session,
    mut numbers: impl FnMut(usize, &Parameter) -> Result<Vec<f32>>,
) -> Result<()> {
    for (number, p) in built.parameters.iter().enumerate() {
        let numbers = numbers(number, p)?;
        match training.offsets.iter().find(|(q, _)| q.name == p.name) {
            Some((_, at)) => {
                for region in std::iter::once(training.params).chain(training.emas.iter().copied()) {
                    session.fill_part(region, *at, p.ty.stored(), |stored| p.to_arena(&numbers, stored))?;
                }
            }
            None => {
                let id = fixed_buffer(session, p)?;
                session.fill(id, |stored| p.to_arena(&numbers, stored))?;
            }
        }
    }
    Ok(())
}

/// A parameter's first numbers, in the file's order.
pub(crate) fn draw(p: &Parameter, seed: u64, number: u32) -> Vec<f32> {
    let uniform = |i: u32| crate::methods::train::init_uniforms(seed, number, i);
    let of = |i: usize| match p.init {
        Init::Zeros => 0.0,
        Init::Ones => 1.0,
        Init::Uniform(bound) => (uniform(i as u32)[0] * 2.0 - 1.0) as f32 * bound,
        Init::Normal(std) => {
            let [u, v] = uniform(i as u32);
            ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32 * std
        }
    };
    (0..p.elements()).map(of).collect()
}
