//! What a set of real images comes down to, and the file that keeps it.

use super::{Features, Moments, NEIGHBOURS, nearest_others};
use crate::files::write_atomic;
use crate::weights::Weights;
use crate::{Error, Result};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::path::Path;

/// The `format` that a file's metadata names.
const FORMAT: &str = "langevin-reference-1";

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
    /// Distances to the [`NEIGHBOURS`] nearest other images, `[n, k]`; none with too few images.
    pub near: Option<Vec<f64>>,
}

impl Reference {
    /// Moments and neighbours of these features.
    pub fn new(origin: Origin, features: Features, labels: Option<Vec<u32>>) -> Result<Reference> {
        let moments = Moments::of(&features)?;
        let near = if features.n() > NEIGHBOURS { Some(nearest_others(&features, NEIGHBOURS)?) } else { None };
        Ok(Reference { origin, features, labels, moments, near })
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
            tensors.push(("near", Dtype::F64, vec![n, NEIGHBOURS], f64s(near)));
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
        let metadata = [("format", FORMAT), ("network", &origin.network), ("data", &origin.data)]
            .map(|(k, v)| (k.into(), v.into()));
        let written = views.and_then(|v| safetensors::serialize(v, Some(HashMap::from(metadata))));
        write_atomic(path, &written.map_err(|e: safetensors::SafeTensorError| Error::format(path, e.to_string()))?)
    }

    /// Reads a file that [`Reference::save`] wrote. Fails if it was made by another network, or of other data where `data` is the
    /// fingerprint of some.
    pub fn open(path: &Path, network: &str, data: Option<&str>) -> Result<Reference> {
        let file = Weights::open(path)?;
        let note = |key: &str| file.metadata().get(key).cloned().unwrap_or_default();
        if note("format") != FORMAT {
            return Err(Error::format(path, "is not a file of reference statistics that `langevin eval` wrote"));
        }
        let origin = Origin { network: note("network"), data: note("data") };
        let other = "; name another file for --cache, or remove this one";
        if origin.network != network {
            let reason = format!("was made by the network {}, this is {network}{other}", origin.network);
            return Err(Error::format(path, reason));
        }
        if let Some(data) = data.filter(|d| *d != origin.data) {
            let reason = format!("was made of other data ({}, these are {data}){other}", origin.data);
            return Err(Error::format(path, reason));
        }
        read(path, &file, origin)
    }
}

fn read(path: &Path, file: &Weights, origin: Origin) -> Result<Reference> {
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
    let near = if n > NEIGHBOURS { Some(f64s("near", &[n, NEIGHBOURS])?) } else { None };
    let labels = match file.info("labels") {
        None => None,
        Some(info) if info.shape == [n] => {
            let labels: Option<Vec<u32>> =
                file.read_i64("labels")?.into_iter().map(|l| u32::try_from(l).ok()).collect();
            Some(labels.ok_or_else(|| wrong("labels"))?)
        }
        Some(_) => return Err(wrong("labels")),
    };
    Ok(Reference { origin, features, labels, moments, near })
}
