//! A checkpoint whose tensors are checked by name and shape before any is read.

use crate::model::FLOATS;
use crate::weights::Weights;
use crate::{Error, Result};
use std::collections::HashSet;
use std::path::Path;

/// A tensor that a network needs: its name and shape in the file.
pub type Wanted = (String, Vec<usize>);

/// The tensors of a file, and the name of the network they are for.
#[derive(Debug)]
pub struct Checkpoint {
    weights: Weights,
    network: &'static str,
}

impl Checkpoint {
    pub fn new(weights: Weights, network: &'static str) -> Self {
        Checkpoint { weights, network }
    }

    /// The file, or the index of its shards.
    pub fn path(&self) -> &Path {
        self.weights.path()
    }

    /// True if there is a tensor of that name.
    pub fn holds(&self, name: &str) -> bool {
        self.weights.info(name).is_some()
    }

    /// An error about a tensor.
    pub fn fail(&self, name: &str, reason: impl Into<String>) -> Error {
        Error::tensor(self.path(), name, reason)
    }

    /// The dimensions of a tensor that must have N, none of them 0.
    pub fn sizes<const N: usize>(&self, name: &str) -> Result<[usize; N]> {
        let info = self.weights.info(name).ok_or_else(|| self.fail(name, "is missing"))?;
        let sizes = <[usize; N]>::try_from(&info.shape[..]).ok().filter(|s| !s.contains(&0));
        sizes.ok_or_else(|| self.fail(name, format!("has shape {:?}; {N} dimensions above 0 are needed", info.shape)))
    }

    /// Fails unless the file holds all of `wanted` in these shapes and with numbers that can be weights, and nothing more but
    /// what `ignored` names.
    pub fn check(&self, wanted: &[Wanted], ignored: impl Fn(&str) -> bool) -> Result<()> {
        let missing: Vec<&Wanted> = wanted.iter().filter(|(name, _)| !self.holds(name)).collect();
        if let [(first, _), rest @ ..] = &missing[..] {
            let more = if rest.is_empty() { String::new() } else { format!(" (and {} more)", rest.len()) };
            return Err(self.fail(first, format!("is missing{more}; {} has it", self.network)));
        }
        for (name, shape) in wanted {
            let Some(info) = self.weights.info(name) else { continue };
            if info.shape != *shape {
                let reason = format!("has shape {:?}, this {} needs {shape:?}", info.shape, self.network);
                return Err(self.fail(name, reason));
            }
            if !FLOATS.contains(&info.dtype) {
                return Err(self.fail(name, format!("has dtype {}; floating-point weights are needed", info.dtype)));
            }
        }
        let known: HashSet<&str> = wanted.iter().map(|(name, _)| name.as_str()).collect();
        match self.weights.names().find(|name| !known.contains(name) && !ignored(name)) {
            Some(extra) => Err(self.fail(extra, format!("is not part of {}", self.network))),
            None => Ok(()),
        }
    }

    /// A tensor's numbers. The file's pages are let go.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        let numbers = self.weights.read_f32(name)?;
        self.weights.release(name);
        Ok(numbers)
    }
}

/// Multiplies every row of a matrix of as many rows as there are factors.
pub fn scale_rows(matrix: &mut [f32], factors: impl ExactSizeIterator<Item = f64>) {
    let width = matrix.len() / factors.len().max(1);
    for (row, factor) in matrix.chunks_exact_mut(width.max(1)).zip(factors) {
        row.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
    }
}
