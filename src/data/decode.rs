//! PNG and JPEG entries of a dataset, all of one size, decoded in parallel.

use std::io::Cursor;
use std::path::Path;

use rayon::prelude::*;

use super::{Dataset, DatasetOptions, choose_labels, reserve};
use crate::weights::shown;
use crate::{Error, Result};

/// Longest side of an image that is decoded.
pub const MAX_SIDE: usize = 16_384;
/// Most bytes of one decoded image.
const MAX_IMAGE_BYTES: usize = 256 << 20;
/// Decoded bytes per step: memory is only touched as fast as images turn out to be real.
const STEP_BYTES: usize = 256 << 20;

/// A named image file inside a zip or a folder.
pub(super) trait Entry: Sync {
    /// The name, for errors.
    fn name(&self) -> &str;
    /// The file's bytes; the reason of a failure says what is wrong with them.
    fn read(&self) -> Result<Vec<u8>, String>;
}

/// Whether a name is one of an image file. Hidden files, such as those that macOS adds to zips, are not.
pub(super) fn is_image_name(name: &str) -> bool {
    let file = name.rsplit(['/', '\\']).next().unwrap_or(name);
    let extension = file.rsplit_once('.').map_or("", |(_, extension)| extension).to_ascii_lowercase();
    !file.starts_with('.') && matches!(extension.as_str(), "png" | "jpg" | "jpeg")
}

/// Decodes the chosen entries into a dataset. The first one sets the size; all others must have the same.
pub(super) fn decode_all<E: Entry>(
    path: &Path,
    entries: &[E],
    labels: Option<Vec<u32>>,
    options: &DatasetOptions,
) -> Result<Dataset> {
    if entries.is_empty() {
        return Err(Error::format(path, "holds no PNG or JPEG images"));
    }
    let chosen = options.select(entries.len(), labels.as_deref())?;
    let size = in_entry(path, &entries[chosen[0]], size_of)?;
    let mut images = reserve(path, chosen.len(), size.bytes(), options)?;
    let step = (STEP_BYTES / size.bytes()).max(1);
    for indices in chosen.chunks(step) {
        let start = images.len();
        images.resize(start + indices.len() * size.bytes(), 0);
        let outputs = images[start..].par_chunks_exact_mut(size.bytes());
        indices
            .par_iter()
            .zip(outputs)
            .try_for_each(|(index, out)| in_entry(path, &entries[*index], |bytes| decode_into(bytes, size, out)))?;
    }
    let (labels, class_count) = choose_labels(labels, &chosen);
    let ImageSize { height, width, channels } = size;
    Ok(Dataset { images, n: chosen.len(), height, width, channels, labels, class_count })
}

/// Reads an entry and does something with it; failures name the entry.
fn in_entry<T, E: Entry>(path: &Path, entry: &E, act: impl FnOnce(&[u8]) -> Result<T, String>) -> Result<T> {
    entry
        .read()
        .and_then(|bytes| act(&bytes))
        .map_err(|reason| Error::format(path, format!("image `{}`: {reason}", shown(entry.name()))))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ImageSize {
    height: usize,
    width: usize,
    channels: usize,
}

impl ImageSize {
    fn checked(height: usize, width: usize, channels: usize) -> Result<Self, String> {
        let size = ImageSize { height, width, channels };
        if height == 0 || width == 0 || height > MAX_SIDE || width > MAX_SIDE {
            return Err(format!("{size} is absurd: sides must be 1 to {MAX_SIDE}"));
        }
        if size.bytes() > MAX_IMAGE_BYTES {
            return Err(format!("{size} takes more than {MAX_IMAGE_BYTES} bytes"));
        }
        Ok(size)
    }

    fn bytes(&self) -> usize {
        self.height * self.width * self.channels
    }
}

impl std::fmt::Display for ImageSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{} with {} channels", self.width, self.height, self.channels)
    }
}

type PngReader<'a> = png::Reader<Cursor<&'a [u8]>>;
type JpegDecoder<'a> = jpeg_decoder::Decoder<Cursor<&'a [u8]>>;

/// An image whose header was read and found acceptable.
enum Opened<'a> {
    Png(Box<PngReader<'a>>),
    Jpeg(Box<JpegDecoder<'a>>),
}

fn open(bytes: &[u8]) -> Result<(Opened<'_>, ImageSize), String> {
    if bytes.starts_with(b"\x89PNG") {
        let (reader, size) = open_png(bytes)?;
        return Ok((Opened::Png(Box::new(reader)), size));
    }
    if bytes.starts_with(&[0xff, 0xd8]) {
        let (decoder, size) = open_jpeg(bytes)?;
        return Ok((Opened::Jpeg(Box::new(decoder)), size));
    }
    Err("is neither a PNG nor a JPEG".into())
}

fn size_of(bytes: &[u8]) -> Result<ImageSize, String> {
    open(bytes).map(|(_, size)| size)
}

fn decode_into(bytes: &[u8], expected: ImageSize, out: &mut [u8]) -> Result<(), String> {
    let (opened, size) = open(bytes)?;
    if size != expected {
        return Err(format!("is {size}, but the first image is {expected}"));
    }
    match opened {
        Opened::Png(reader) => decode_png(*reader, size, out),
        Opened::Jpeg(decoder) => decode_jpeg(*decoder, out),
    }
}

fn open_png(bytes: &[u8]) -> Result<(PngReader<'_>, ImageSize), String> {
    let limits = png::Limits { bytes: MAX_IMAGE_BYTES };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    // The dimensions are checked before the decoder makes room for a row.
    let header = decoder.read_header_info().map_err(|e| format!("broken PNG: {e}"))?;
    let (height, width) = (header.height as usize, header.width as usize);
    ImageSize::checked(height, width, 1)?;
    let reader = decoder.read_info().map_err(|e| format!("broken PNG: {e}"))?;
    let channels = match reader.output_color_type().0 {
        png::ColorType::Grayscale | png::ColorType::GrayscaleAlpha => 1,
        _ => 3,
    };
    Ok((reader, ImageSize::checked(height, width, channels)?))
}

fn decode_png(mut reader: PngReader<'_>, size: ImageSize, out: &mut [u8]) -> Result<(), String> {
    let broken = |e: png::DecodingError| format!("broken PNG: {e}");
    let samples = reader.output_color_type().0.samples();
    if samples == size.channels {
        return reader.next_frame(out).map(|_| ()).map_err(broken);
    }
    let mut pixels = vec![0; size.height * size.width * samples];
    reader.next_frame(&mut pixels).map_err(broken)?;
    for (pixel, out) in pixels.chunks_exact(samples).zip(out.chunks_exact_mut(size.channels)) {
        if pixel[size.channels] != u8::MAX {
            return Err("is partly transparent, which training data cannot be".into());
        }
        out.copy_from_slice(&pixel[..size.channels]);
    }
    Ok(())
}

fn open_jpeg(bytes: &[u8]) -> Result<(JpegDecoder<'_>, ImageSize), String> {
    let mut decoder = jpeg_decoder::Decoder::new(Cursor::new(bytes));
    decoder.set_max_decoding_buffer_size(MAX_IMAGE_BYTES);
    decoder.read_info().map_err(|e| format!("broken JPEG: {e}"))?;
    let info = decoder.info().ok_or("broken JPEG: no header")?;
    let channels = match info.pixel_format {
        jpeg_decoder::PixelFormat::L8 => 1,
        jpeg_decoder::PixelFormat::RGB24 => 3,
        other => return Err(format!("{other:?} JPEGs are not supported; convert it to RGB or 8-bit grey")),
    };
    let size = ImageSize::checked(info.height.into(), info.width.into(), channels)?;
    Ok((decoder, size))
}

fn decode_jpeg(mut decoder: JpegDecoder<'_>, out: &mut [u8]) -> Result<(), String> {
    let pixels = decoder.decode().map_err(|e| format!("broken JPEG: {e}"))?;
    if pixels.len() != out.len() {
        return Err(format!("broken JPEG: {} bytes decoded, {} expected", pixels.len(), out.len()));
    }
    out.copy_from_slice(&pixels);
    Ok(())
}
