//! Grey to RGB and back.

use std::path::Path;

use rayon::prelude::*;

use super::{Dataset, DatasetOptions, reserve};
use crate::Result;

/// Writes pixels of `from` channels, 1 or 3, as pixels of `to`, 1 or 3. Grey is luma as Rec. 601 weighs it, rounded as PIL does
/// for its mode `L`.
pub(super) fn convert(pixels: &[u8], from: usize, out: &mut [u8], to: usize) {
    match (from, to) {
        (1, 3) => out.as_chunks_mut().0.iter_mut().zip(pixels).for_each(|(out, grey)| *out = [*grey; 3]),
        (3, 1) => out.iter_mut().zip(pixels.as_chunks().0).for_each(|(out, rgb)| *out = luma(*rgb)),
        _ => out.copy_from_slice(pixels),
    }
}

/// 0.299 R + 0.587 G + 0.114 B in 16-bit fixed point.
fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
}

/// A dataset of raw images, converted if the options say so.
pub(super) fn all(path: &Path, data: Dataset, options: &DatasetOptions) -> Result<Dataset> {
    let Some(channels) = options.channels.filter(|channels| *channels != data.channels) else { return Ok(data) };
    let pixels = data.height * data.width;
    let mut images = reserve(path, data.n, pixels * channels, options)?;
    images.resize(data.n * pixels * channels, 0);
    let work = data.images.par_chunks_exact(pixels * data.channels).zip(images.par_chunks_exact_mut(pixels * channels));
    work.for_each(|(image, out)| convert(image, data.channels, out, channels));
    Ok(Dataset { images, channels, ..data })
}
