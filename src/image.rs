//! Images to look at: samples as PNG files, alone or in a grid.

use std::path::Path;

use crate::files::write_atomic;
use crate::{Error, Result};

/// Longest side of an image that is made.
const MAX_SIDE: usize = 1 << 16;

/// An 8-bit image, channels last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    width: usize,
    height: usize,
    channels: usize,
    pixels: Vec<u8>,
}

/// The order of the dimensions of a batch of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageLayout {
    /// Channels before rows, as PyTorch has them.
    Nchw,
    /// Channels last, as the engine has them.
    Nhwc,
}

/// The size of a batch of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShape {
    /// How many images.
    pub n: usize,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// The order in memory.
    pub layout: ImageLayout,
}

impl BatchShape {
    /// A batch in the engine's own layout.
    pub fn nhwc(n: usize, height: usize, width: usize, channels: usize) -> Self {
        BatchShape { n, height, width, channels, layout: ImageLayout::Nhwc }
    }

    /// A batch in PyTorch's layout.
    pub fn nchw(n: usize, channels: usize, height: usize, width: usize) -> Self {
        BatchShape { n, height, width, channels, layout: ImageLayout::Nchw }
    }

    fn element_count(&self) -> Option<usize> {
        [self.n, self.height, self.width, self.channels].iter().try_fold(1usize, |n, d| n.checked_mul(*d))
    }

    fn index(&self, image: usize, y: usize, x: usize, channel: usize) -> usize {
        match self.layout {
            ImageLayout::Nchw => ((image * self.channels + channel) * self.height + y) * self.width + x,
            ImageLayout::Nhwc => ((image * self.height + y) * self.width + x) * self.channels + channel,
        }
    }
}

impl Image {
    /// An image from its bytes, channels last; 1 or 3 channels.
    pub fn new(width: usize, height: usize, channels: usize, pixels: Vec<u8>) -> Result<Self> {
        let bytes = checked_size(width, height, channels)?;
        if bytes != pixels.len() {
            let reason = format!("{width}x{height} with {channels} channels needs {bytes} bytes, not {}", pixels.len());
            return Err(Error::shape("image", reason));
        }
        Ok(Image { width, height, channels, pixels })
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// 1 (grey) or 3 (RGB).
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The bytes, channels last.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// Enlarges by a whole factor, each pixel becoming a square.
    pub fn upscale(&self, factor: usize) -> Result<Image> {
        let fault = || {
            Error::invalid("upscale", format!("{factor} times {}x{} is too large or nothing", self.width, self.height))
        };
        let (width, height) = self.width.checked_mul(factor).zip(self.height.checked_mul(factor)).ok_or_else(fault)?;
        let mut pixels = Vec::with_capacity(checked_size(width, height, self.channels).map_err(|_| fault())?);
        for row in self.pixels.chunks_exact(self.width * self.channels) {
            let start = pixels.len();
            for pixel in row.chunks_exact(self.channels) {
                (0..factor).for_each(|_| pixels.extend_from_slice(pixel));
            }
            let end = pixels.len();
            (1..factor).for_each(|_| pixels.extend_from_within(start..end));
        }
        Image::new(width, height, self.channels, pixels)
    }

    /// Enlarges by the least whole factor that makes the shorter side at least `side` pixels; large images stay as
    /// they are.
    pub fn upscale_to(&self, side: usize) -> Result<Image> {
        self.upscale(side.div_ceil(self.width.min(self.height)).max(1))
    }

    /// This image and another of the same height, side by side, with white between them.
    pub fn beside(&self, right: &Image, gap: usize) -> Result<Image> {
        if (self.height, self.channels) != (right.height, right.channels) {
            let [a, b] = [self, right].map(|i| format!("{}x{}x{}", i.width, i.height, i.channels));
            return Err(Error::shape("image", format!("{a} and {b} cannot stand side by side")));
        }
        let mut pixels = Vec::new();
        let rows = |image: &Image| image.width * image.channels;
        for (a, b) in self.pixels.chunks_exact(rows(self)).zip(right.pixels.chunks_exact(rows(right))) {
            pixels.extend_from_slice(a);
            pixels.resize(pixels.len() + gap * self.channels, u8::MAX);
            pixels.extend_from_slice(b);
        }
        Image::new(self.width + gap + right.width, self.height, self.channels, pixels)
    }

    /// The bytes of a PNG file.
    pub fn encode_png(&self) -> Result<Vec<u8>> {
        let fault = |e: png::EncodingError| Error::invalid("image", e.to_string());
        let mut bytes = Vec::new();
        // Both sides are at most MAX_SIDE.
        let mut encoder = png::Encoder::new(&mut bytes, self.width as u32, self.height as u32);
        encoder.set_color(if self.channels == 1 { png::ColorType::Grayscale } else { png::ColorType::Rgb });
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header().map_err(fault)?;
        writer.write_image_data(&self.pixels).map_err(fault)?;
        writer.finish().map_err(fault)?;
        Ok(bytes)
    }

    /// Writes a PNG file atomically.
    pub fn save_png(&self, path: impl AsRef<Path>) -> Result<()> {
        write_atomic(path, &self.encode_png()?)
    }
}

/// Arranges a batch of images with values in [-1, 1] in rows of `columns`, with `padding` black pixels around each.
///
/// Values outside of the range are clamped; NaN is an error. A batch of one without padding is just that image.
pub fn grid(images: &[f32], shape: BatchShape, columns: usize, padding: usize) -> Result<Image> {
    if shape.n == 0 || columns == 0 {
        return Err(Error::invalid("grid", format!("{} images in {columns} columns make no picture", shape.n)));
    }
    if shape.element_count() != Some(images.len()) {
        return Err(Error::shape("grid", format!("{shape:?} does not have {} elements", images.len())));
    }
    if let Some(at) = images.iter().position(|v| v.is_nan()) {
        return Err(Error::invalid("grid", format!("image {} holds NaN", at / (images.len() / shape.n))));
    }
    let columns = columns.min(shape.n);
    let extent = |side: usize, count: usize| side.checked_add(padding)?.checked_mul(count)?.checked_add(padding);
    let (width, height) = extent(shape.width, columns)
        .zip(extent(shape.height, shape.n.div_ceil(columns)))
        .ok_or_else(|| Error::invalid("grid", format!("padding {padding} is too large")))?;
    let pixels = vec![0; checked_size(width, height, shape.channels)?];
    let mut image = Image::new(width, height, shape.channels, pixels)?;
    for index in 0..shape.n {
        let left = padding + index % columns * (shape.width + padding);
        let top = padding + index / columns * (shape.height + padding);
        image.paste(images, &shape, index, left, top);
    }
    Ok(image)
}

impl Image {
    fn paste(&mut self, images: &[f32], shape: &BatchShape, index: usize, left: usize, top: usize) {
        for y in 0..shape.height {
            for x in 0..shape.width {
                let at = ((top + y) * self.width + left + x) * self.channels;
                for channel in 0..shape.channels {
                    self.pixels[at + channel] = to_byte(images[shape.index(index, y, x, channel)]);
                }
            }
        }
    }
}

/// The inverse of the datasets' x / 127.5 − 1, rounded to the nearest.
pub(crate) fn to_byte(value: f32) -> u8 {
    ((value + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8
}

fn checked_size(width: usize, height: usize, channels: usize) -> Result<usize> {
    if !matches!(channels, 1 | 3) {
        return Err(Error::shape("image", format!("{channels} channels cannot be shown, only 1 (grey) or 3 (RGB)")));
    }
    if width == 0 || height == 0 || width > MAX_SIDE || height > MAX_SIDE {
        return Err(Error::shape("image", format!("{width}x{height} is not a size of 1 to {MAX_SIDE} pixels a side")));
    }
    Ok(width * height * channels)
}
