//! `dataset.json` as EDM's and StyleGAN's tools write it: `{"labels": [["00/00000.jpg", 6], …]}`, or `null` for labels.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use super::MAX_LABEL;
use crate::weights::shown;
use crate::{Error, Result};

/// The name of the file.
pub(super) const FILE_NAME: &str = "dataset.json";
/// Longest `dataset.json` that is read: 20 bytes an image for some ten million images.
pub(super) const MAX_BYTES: usize = 256 << 20;

#[derive(Deserialize)]
struct DatasetJson {
    labels: Option<Vec<(String, serde_json::Value)>>,
}

/// The label of each of `names`, in their order; `None` if the file has no labels.
pub(super) fn parse(path: &Path, json: &[u8], names: &[&str]) -> Result<Option<Vec<u32>>> {
    let fault = |reason: String| Error::format(path, format!("{FILE_NAME}: {reason}"));
    let parsed: DatasetJson = serde_json::from_slice(json).map_err(|e| fault(e.to_string()))?;
    let Some(entries) = parsed.labels else { return Ok(None) };
    let mut by_name = HashMap::with_capacity(entries.len());
    for (name, label) in entries {
        let number =
            label.as_u64().and_then(|l| u32::try_from(l).ok()).filter(|l| *l <= MAX_LABEL).ok_or_else(|| {
                fault(format!(
                    "the label of `{}` must be a whole number up to {MAX_LABEL}, not {}",
                    shown(&name),
                    shown(&label.to_string())
                ))
            })?;
        if by_name.insert(name.replace('\\', "/"), number).is_some() {
            return Err(fault(format!("`{}` has two labels", shown(&name))));
        }
    }
    let labels: Result<Vec<u32>> = names
        .iter()
        .map(|name| by_name.remove(*name).ok_or_else(|| fault(format!("image `{}` has no label", shown(name)))))
        .collect();
    // A label without an image means that images are missing.
    match by_name.into_keys().min() {
        Some(name) => Err(fault(format!("`{}` has a label, but there is no such image", shown(&name)))),
        None => labels.map(Some),
    }
}
