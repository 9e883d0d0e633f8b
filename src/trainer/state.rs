//! Everything that a run changes, in a file: weights, moments, averages. The rest follows from the configuration and the
//! step's number.

use super::Trainer;
use super::setup::fixed_buffer;
use crate::nn::Parameter;
use crate::schedule::BufferId;
use crate::weights::{Dtype, TensorSpec, Weights, WriteOptions, Writer};
use crate::{Error, Result};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// The note in the file that holds the number of steps done.
const STEP: &str = "langevin.step";
/// The note that holds the checksum of the model that an adapter is trained on.
const BASE: &str = "langevin.base";

impl Trainer {
    /// The regions of the state by the prefix of their tensors' names.
    fn regions(&self) -> Vec<(String, BufferId)> {
        let [m, v] = self.training.moments;
        let emas = self.training.emas.iter().enumerate().map(|(i, id)| (format!("ema{i}"), *id));
        [("params", self.training.params), ("m", m), ("v", v)]
            .map(|(name, id)| (name.to_string(), id))
            .into_iter()
            .chain(emas)
            .collect()
    }

    /// Names in the file, with their parameters: `params.<parameter>`, `m.…`, `v.…`, `ema0.…`, and `fixed.…` for what is drawn
    /// and not trained. The weights of a model that an adapter is trained on are in that model's files.
    fn state_tensors(&self) -> Vec<(String, Place, Parameter)> {
        let mut tensors = Vec::new();
        for (prefix, region) in self.regions() {
            for (p, at) in &self.training.offsets {
                tensors.push((format!("{prefix}.{}", p.name), Place::Region(region, *at), p.clone()));
            }
        }
        for p in self.built.parameters.iter().filter(|p| !p.trainable && self.lora.is_none()) {
            tensors.push((format!("fixed.{}", p.name), Place::Own, p.clone()));
        }
        tensors
    }

    /// The buffer that holds a parameter, and the number it starts with there.
    fn find(&self, place: Place, p: &Parameter) -> Result<(BufferId, usize)> {
        match place {
            Place::Region(id, at) => Ok((id, at)),
            Place::Own => Ok((fixed_buffer(&self.session, p)?, 0)),
        }
    }

    /// Writes the state as safetensors, atomically.
    pub fn save_state(&mut self, file: &Path) -> Result<()> {
        let tensors = self.state_tensors();
        let specs = tensors.iter().map(|(name, _, p)| TensorSpec::new(name, Dtype::F32, p.shape.clone())).collect();
        let mut metadata = BTreeMap::from([(STEP.to_string(), self.step.to_string())]);
        metadata.extend(self.lora.as_ref().map(|lora| (BASE.to_string(), lora.checksum.to_string())));
        let options = WriteOptions { metadata, max_shard_bytes: u64::MAX };
        let mut writer = Writer::create(file, specs, &options)?;
        for (name, place, p) in &tensors {
            let (id, at) = self.find(*place, p)?;
            let numbers = p.from_arena(&self.session.read_part(id, at, p.ty.stored())?);
            writer.put_f32(name, &numbers)?;
        }
        writer.finish()
    }

    /// Goes on where [`Trainer::save_state`] was called, bit for bit.
    ///
    /// # Errors
    /// [`Error::Tensor`] naming the first tensor that does not fit this network and these averages; [`Error::Invalid`] if the
    /// model that an adapter was trained on has other weights now. The trainer is then unchanged.
    pub fn load_state(&mut self, file: &Path) -> Result<()> {
        let weights = Weights::open(file)?;
        let step = weights.metadata().get(STEP).and_then(|s| s.parse().ok());
        let step = step.ok_or_else(|| Error::format(file, format!("is not a training state: no `{STEP}`")))?;
        if let Some(lora) = &self.lora
            && weights.metadata().get(BASE) != Some(&lora.checksum.to_string())
        {
            let reason = format!("the weights of {} are not those that the adapter was trained on", lora.base);
            return Err(Error::invalid("from", reason));
        }
        let tensors = self.state_tensors();
        for (name, _, p) in &tensors {
            match weights.info(name) {
                None => {
                    return Err(Error::tensor(file, name, "is missing: a state of another network, or other averages"));
                }
                Some(info) if info.dtype != Dtype::F32 || info.shape != p.shape => {
                    let reason = format!("is {} {:?}, this network has f32 {:?}", info.dtype, info.shape, p.shape);
                    return Err(Error::tensor(file, name, reason));
                }
                Some(_) => {}
            }
        }
        let known: HashSet<&str> = tensors.iter().map(|(name, ..)| name.as_str()).collect();
        if let Some(extra) = weights.names().find(|n| !known.contains(n)) {
            return Err(Error::tensor(file, extra, "is not part of this network"));
        }
        let mut numbers = Vec::new();
        for (name, place, p) in &tensors {
            numbers.resize(p.elements(), 0.0);
            weights.read_f32_into(name, &mut numbers)?;
            let (id, at) = self.find(*place, p)?;
            self.session.fill_part(id, at, p.ty.stored(), |stored| p.to_arena(&numbers, stored))?;
            weights.release(name);
        }
        self.step = step;
        // Its batches would be those of other steps.
        self.loader = None;
        Ok(())
    }
}

/// Where a parameter's numbers are.
#[derive(Clone, Copy)]
enum Place {
    /// In a region of all, at an offset.
    Region(BufferId, usize),
    /// In the buffer of its name.
    Own,
}
