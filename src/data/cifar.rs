//! CIFAR-10's binary batches: 10,000 times one label byte and 32×32 pixels, channel by channel.

use std::path::Path;

use super::{Dataset, DatasetOptions, Skipped, choose_labels, reserve};
use crate::{Error, Result};

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
const IMAGE: usize = 3 * PLANE;
const RECORD: usize = 1 + IMAGE;
const CLASSES: u8 = 10;

pub(super) fn load(path: &Path, bytes: &[u8], options: &DatasetOptions) -> Result<Dataset> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(RECORD) {
        let reason = format!("not a CIFAR-10 batch: {} bytes are not a multiple of {RECORD}; cut off?", bytes.len());
        return Err(Error::format(path, reason));
    }
    let records: Vec<&[u8]> = bytes.chunks_exact(RECORD).collect();
    if let Some(index) = records.iter().position(|r| r[0] >= CLASSES) {
        let reason = format!("image {index} has label {}, but CIFAR-10 has {CLASSES} classes", records[index][0]);
        return Err(Error::format(path, reason));
    }
    let labels: Vec<u32> = records.iter().map(|r| r[0].into()).collect();
    let chosen = options.select(records.len(), Some(&labels))?;
    let mut images = reserve(path, chosen.len(), IMAGE, options)?;
    for index in &chosen {
        let planes = &records[*index][1..];
        images.extend((0..PLANE).flat_map(|i| [planes[i], planes[PLANE + i], planes[2 * PLANE + i]]));
    }
    let (labels, _) = choose_labels(Some(labels), &chosen);
    let class_count = CLASSES.into();
    Ok(Dataset {
        images,
        n: chosen.len(),
        height: SIDE,
        width: SIDE,
        channels: 3,
        labels,
        class_count,
        skipped: Skipped::default(),
    })
}
