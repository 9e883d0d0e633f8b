//! Images to squares: the shorter side resized to the square's, the centre of the longer one kept.

use std::path::Path;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use rayon::prelude::*;

use super::decode::ImageSize;
use super::{Dataset, DatasetOptions, reserve};
use crate::Result;

/// Cuts the largest square out of the middle of an image and resizes it to `side` with the Lanczos filter (a = 3), in the
/// bytes' own scale, as PIL does. An image of that size is copied.
pub(super) fn to_square(
    resizer: &mut Resizer,
    image: &[u8],
    size: ImageSize,
    side: usize,
    out: &mut [u8],
) -> Result<(), String> {
    let pixels = if size.channels == 1 { PixelType::U8 } else { PixelType::U8x3 };
    let from = ImageRef::new(size.width as u32, size.height as u32, image, pixels).map_err(|e| e.to_string())?;
    let mut to = Image::from_slice_u8(side as u32, side as u32, out, pixels).map_err(|e| e.to_string())?;
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3))
        .fit_into_destination(None)
        .use_alpha(false);
    resizer.resize(&from, &mut to, &options).map_err(|e| e.to_string())
}

/// A dataset of raw images, resized if the options say so.
pub(super) fn all(path: &Path, data: Dataset, options: &DatasetOptions) -> Result<Dataset> {
    let Some(side) = options.resize.filter(|side| [*side; 2] != [data.height, data.width]) else { return Ok(data) };
    let size = ImageSize { height: data.height, width: data.width, channels: data.channels };
    let bytes = side * side * data.channels;
    let mut images = reserve(path, data.n, bytes, options)?;
    images.resize(data.n * bytes, 0);
    data.images
        .par_chunks_exact(size.bytes())
        .zip(images.par_chunks_exact_mut(bytes))
        .try_for_each_init(Resizer::new, |resizer, (image, out)| to_square(resizer, image, size, side, out))
        .map_err(|reason| crate::Error::format(path, reason))?;
    Ok(Dataset { images, height: side, width: side, ..data })
}
