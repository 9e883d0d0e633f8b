//! What a set of real images comes down to, and the file that keeps it.

use super::{Features, Moments, nearest_others};
use crate::files::write_atomic;
use crate::weights::Weights;
use crate::{Error, Result};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::path::Path;

/// The `format` that a file's metadata names.
const FORMAT: &str = "langevin-reference-2";

/// What features were made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The network's name and its fingerprint.
    pub network: String,
    /// The data's fingerprint.
    pub data: String,
}

/// Features of a reference set and what follows from them alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    pub origin: Origin,
    pub features: Features,
    pub labels: Option<Vec<u32>>,
    pub moments: Moments,
    /// How many neighbours precision, recall, density and coverage look at.
    pub k: usize,
    /// Distances to the k nearest other images, `[n, k]`; none with too few images.
    pub near: Option<Vec<f64>>,
}

impl Reference {
    /// Moments and `k` neighbours, 1 or more, of these features.
    pub fn new(origin: Origin, features: Features, labels: Option<Vec<u32>>, k: usize) -> Result<Reference> {
        let moments = Moments::of(&features)?;
        let near = neighbours(&features, k)?;
        Ok(Reference { origin, features, labels, moments, k, near })
    }

    /// The same with another number of neighbours, taken from the features anew.
    pub fn with_neighbours(self, k: usize) -> Result<Reference> {
        let near = neighbours(&self.features, k)?;
        Ok(Reference { k, near, ..self })
    }

    /// Writes all of it as safetensors: `features` f32, `mean`, `covariance` and `near` f64, `labels` i64; where it comes from as
    /// metadata.
    pub fn save(&self, path: &Path) -> Result<()> {
        let (n, dim) = (self.features.n(), self.features.dim());
        let f64s = |x: &[f64]| x.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let features = self.features.data().iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut tensors: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> = vec![
            ("features", Dtype::F32, vec![n, dim], features),
            ("mean", Dtype::F64, vec![dim], f64s(&self.moments.mean)),
            ("covariance", Dtype::F64, vec![dim, dim], f64s(&self.moments.covariance)),
        ];
        if let Some(near) = &self.near {
            tensors.push(("near", Dtype::F64, vec![n, self.k], f64s(near)));
        }
        if let Some(labels) = &self.labels {
            let bytes = labels.iter().flat_map(|l| (*l as i64).to_le_bytes()).collect();
            tensors.push(("labels", Dtype::I64, vec![n], bytes));
        }
        let views: Result<Vec<_>, _> = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| Ok((*name, TensorView::new(*dtype, shape.clone(), bytes)?)))
            .collect();
        let origin = &self.origin;
        let k = self.k.to_string();
        let metadata = [("format", FORMAT), ("network", &origin.network), ("data", &origin.data), ("k", &k)]
            .map(|(k, v)| (k.into(), v.into()));
        let written = views.and_then(|v| safetensors::serialize(v, Some(HashMap::from(metadata))));
        write_atomic(path, &written.map_err(|e: safetensors::SafeTensorError| Error::format(path, e.to_string()))?)
    }

    /// Reads a file that [`Reference::save`] wrote.
    pub fn open(path: &Path) -> Result<Reference> {
        let file = Weights::open(path)?;
        let note = |key: &str| file.metadata().get(key).cloned().unwrap_or_default();
        if note("format") != FORMAT {
            let reason = "is not a file of reference statistics that this version's `langevin eval` wrote; name another \
                          file for --cache, or remove this one";
            return Err(Error::format(path, reason));
        }
        let k = note("k").parse().ok().filter(|k| *k > 0);
        let k = k.ok_or_else(|| Error::format(path, "its metadata have no number of neighbours `k`"))?;
        read(path, &file, Origin { network: note("network"), data: note("data") }, k)
    }

    /// Why this is not what `network` makes of `data`, if it is not. Both are fingerprints; without data only the network counts.
    pub fn mismatch(&self, network: &str, data: Option<&str>) -> Option<String> {
        let origin = &self.origin;
        if origin.network != network {
            return Some(format!("was made by the network {}, this is {network}", origin.network));
        }
        let data = data.filter(|data| *data != origin.data)?;
        Some(format!("was made of other data ({}, these are {data})", origin.data))
    }
}

/// The distances to the `k` nearest others, if there are as many.
fn neighbours(features: &Features, k: usize) -> Result<Option<Vec<f64>>> {
    if features.n() > k { Ok(Some(nearest_others(features, k)?)) } else { Ok(None) }
}

fn read(path: &Path, file: &Weights, origin: Origin, k: usize) -> Result<Reference> {
    let wrong = |name: &str| Error::tensor(path, name, "does not fit the others");
    let shape = |name: &str| file.info(name).map(|t| t.shape.clone()).unwrap_or_default();
    let [n, dim] = shape("features")[..] else { return Err(wrong("features")) };
    let f64s = |name: &str, wanted: &[usize]| {
        let fits = file.info(name).is_some_and(|t| t.shape == wanted && t.dtype == Dtype::F64);
        let bytes = if fits { file.bytes(name)? } else { return Err(wrong(name)) };
        let numbers: Vec<f64> = bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
        if numbers.iter().all(|v| v.is_finite()) { Ok(numbers) } else { Err(wrong(name)) }
    };
    if n < 2 {
        return Err(wrong("features"));
    }
    let features = Features::new("the reference", file.read_f32("features")?, dim)?;
    let moments = Moments { n, mean: f64s("mean", &[dim])?, covariance: f64s("covariance", &[dim, dim])? };
    let near = if n > k { Some(f64s("near", &[n, k])?) } else { None };
    let labels = match file.info("labels") {
        None => None,
        Some(info) if info.shape == [n] => {
            let labels: Option<Vec<u32>> =
                file.read_i64("labels")?.into_iter().map(|l| u32::try_from(l).ok()).collect();
            Some(labels.ok_or_else(|| wrong("labels"))?)
        }
        Some(_) => return Err(wrong("labels")),
    };
    Ok(Reference { origin, features, labels, moments, k, near })
}
