//! PNG, JPEG and WebP entries of a dataset, decoded in parallel to images of one size.

use std::borrow::Cow;
use std::io::Cursor;
use std::path::Path;

use fast_image_resize::Resizer;
use rayon::prelude::*;

use super::{Dataset, DatasetOptions, Skipped, channels, choose_labels, reserve, resize};
use crate::weights::shown;
use crate::{Error, Result};

/// Longest side of an image that is decoded.
pub const MAX_SIDE: usize = 16_384;
/// Most bytes of one image file in an archive.
pub(super) const MAX_ENTRY_BYTES: u64 = 64 << 20;
/// Most bytes of one decoded image.
const MAX_IMAGE_BYTES: usize = 256 << 20;
/// Decoded bytes per step: memory is only touched as fast as images turn out to be real.
const STEP_BYTES: usize = 64 << 20;

/// A named image file inside a zip, a tar or a folder.
pub(super) trait Entry: Sync {
    /// The name, for errors.
    fn name(&self) -> &str;
    /// The file's bytes; the reason of a failure says what is wrong with them.
    fn read(&self) -> Result<Cow<'_, [u8]>, String>;
}

/// Whether an extension, in lower case, is that of an image file.
pub(super) fn is_image_extension(extension: &str) -> bool {
    matches!(extension, "png" | "jpg" | "jpeg" | "webp")
}

/// Whether a name is one of an image file. Hidden files, such as those that macOS adds to zips, are not.
pub(super) fn is_image_name(name: &str) -> bool {
    let file = name.rsplit(['/', '\\']).next().unwrap_or(name);
    let extension = file.rsplit_once('.').map_or("", |(_, extension)| extension).to_ascii_lowercase();
    !file.starts_with('.') && is_image_extension(&extension)
}

/// Decodes the chosen entries into a dataset. Without resizing, the first good one sets the size, and all others must
/// have the same. Without a number of channels in the options it is RGB if any good one is.
pub(super) fn decode_all<E: Entry>(
    path: &Path,
    entries: &[E],
    labels: Option<Vec<u32>>,
    options: &DatasetOptions,
) -> Result<Dataset> {
    if entries.is_empty() {
        return Err(Error::format(path, "holds no PNG, JPEG or WebP images"));
    }
    let chosen = options.select(entries.len(), labels.as_deref())?;
    let size = common_size(path, entries, &chosen, options)?;
    let mut images = reserve(path, chosen.len(), size.bytes(), options)?;
    let mut kept = Vec::with_capacity(chosen.len());
    let mut skipped = Skipped::default();
    let step = (STEP_BYTES / size.bytes()).max(1);
    for indices in chosen.chunks(step) {
        let start = images.len();
        images.resize(start + indices.len() * size.bytes(), 0);
        let faults = decode_step(entries, indices, size, options, &mut images[start..]);
        let mut end = start;
        for (at, (index, fault)) in indices.iter().zip(faults).enumerate() {
            let name = entries[*index].name();
            match fault {
                Some(reason) if options.strict => return Err(in_image(path, name, &reason)),
                Some(reason) => skipped.add(name, reason),
                None => {
                    // Closes the gaps that skipped images leave.
                    let from = start + at * size.bytes();
                    if from != end {
                        images.copy_within(from..from + size.bytes(), end);
                    }
                    end += size.bytes();
                    kept.push(*index);
                }
            }
        }
        images.truncate(end);
    }
    images.shrink_to_fit();
    let (labels, class_count) = choose_labels(labels, &kept);
    let ImageSize { height, width, channels } = size;
    Ok(Dataset { images, n: kept.len(), height, width, channels, labels, class_count, skipped })
}

/// Decodes entries into `out`, one image after the other; for each, what was wrong with it.
fn decode_step<E: Entry>(
    entries: &[E],
    indices: &[usize],
    size: ImageSize,
    options: &DatasetOptions,
    out: &mut [u8],
) -> Vec<Option<String>> {
    let work = indices.par_iter().zip(out.par_chunks_exact_mut(size.bytes()));
    work.map_init(Workspace::default, |workspace, (index, out)| {
        let decode = |bytes: Cow<[u8]>| workspace.decode(&bytes, size, options.resize, out);
        entries[*index].read().and_then(decode).err()
    })
    .collect()
}

/// The size that images of this dataset have after decoding.
fn common_size<E: Entry>(path: &Path, entries: &[E], chosen: &[usize], options: &DatasetOptions) -> Result<ImageSize> {
    let first = first_size(path, entries, chosen, options)?;
    let channels = match options.channels {
        Some(channels) => channels,
        None if first.channels == 1 && any_rgb(entries, chosen, first, options) => 3,
        None => first.channels,
    };
    let [height, width] = options.resize.map_or([first.height, first.width], |side| [side; 2]);
    Ok(ImageSize { height, width, channels })
}

/// The size of the first image, or, where broken images are skipped, of the first one that can be decoded.
fn first_size<E: Entry>(path: &Path, entries: &[E], chosen: &[usize], options: &DatasetOptions) -> Result<ImageSize> {
    let mut first_fault = None;
    for index in chosen {
        match entries[*index].read().and_then(|bytes| usable_size(&bytes, options)) {
            Ok(size) => return Ok(size),
            Err(reason) if options.strict => return Err(in_image(path, entries[*index].name(), &reason)),
            Err(reason) => {
                first_fault.get_or_insert_with(|| format!("`{}`: {reason}", shown(entries[*index].name())));
            }
        }
    }
    let (n, fault) = (chosen.len(), first_fault.unwrap_or_default());
    Err(Error::format(path, format!("none of {n} images can be used; the first is {fault}")))
}

/// Whether RGB images are among those that go with the first one, which is grey. Only headers are read, but for those of RGB
/// images where broken ones are skipped: such a one makes no dataset RGB.
fn any_rgb<E: Entry>(entries: &[E], chosen: &[usize], first: ImageSize, options: &DatasetOptions) -> bool {
    let is_rgb = |bytes: &[u8]| match open(bytes) {
        Ok((_, size))
            if size == (ImageSize { channels: 3, ..first }) || (size.channels == 3 && options.resize.is_some()) =>
        {
            options.strict || usable_size(bytes, options).is_ok()
        }
        _ => false,
    };
    chosen.par_iter().any(|index| entries[*index].read().is_ok_and(|bytes| is_rgb(&bytes)))
}

fn usable_size(bytes: &[u8], options: &DatasetOptions) -> Result<ImageSize, String> {
    let (opened, size) = open(bytes)?;
    if !options.strict {
        if options.resize.is_none() && size.bytes() > options.max_bytes {
            return Err(format!("{size} is over the limit of {} bytes (max_bytes)", options.max_bytes));
        }
        opened.decode(size, &mut vec![0; size.bytes()])?;
    }
    Ok(size)
}

fn in_image(path: &Path, name: &str, reason: &str) -> Error {
    Error::format(path, format!("image `{}`: {reason}", shown(name)))
}

/// What a thread keeps between images.
#[derive(Default)]
struct Workspace {
    resizer: Resizer,
    /// An image as its file has it.
    pixels: Vec<u8>,
    /// The same in the dataset's number of channels.
    converted: Vec<u8>,
}

impl Workspace {
    fn decode(
        &mut self,
        bytes: &[u8],
        expected: ImageSize,
        resize: Option<usize>,
        out: &mut [u8],
    ) -> Result<(), String> {
        let (opened, size) = open(bytes)?;
        if size == expected {
            return opened.decode(size, out);
        }
        let resize = resize.filter(|_| [size.height, size.width] != [expected.height, expected.width]);
        let here = ImageSize { channels: expected.channels, ..size };
        if resize.is_none() && here != expected {
            let [own, first] = [here, expected].map(|s| format!("{}x{}", s.width, s.height));
            return Err(format!("is {own}, but the first image is {first} (resizing would make sizes agree)"));
        }
        self.pixels.resize(size.bytes(), 0);
        opened.decode(size, &mut self.pixels)?;
        if here != size {
            self.converted.resize(here.bytes(), 0);
            channels::convert(&self.pixels, size.channels, &mut self.converted, here.channels);
            std::mem::swap(&mut self.pixels, &mut self.converted);
        }
        match resize {
            Some(side) => resize::to_square(&mut self.resizer, &self.pixels, here, side, out),
            None => {
                out.copy_from_slice(&self.pixels);
                Ok(())
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ImageSize {
    pub height: usize,
    pub width: usize,
    pub channels: usize,
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

    pub fn bytes(&self) -> usize {
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
type WebPDecoder<'a> = image_webp::WebPDecoder<Cursor<&'a [u8]>>;

/// An image whose header was read and found acceptable.
enum Opened<'a> {
    Png(Box<PngReader<'a>>),
    Jpeg(Box<JpegDecoder<'a>>),
    WebP(Box<WebPDecoder<'a>>),
}

fn open(bytes: &[u8]) -> Result<(Opened<'_>, ImageSize), String> {
    if bytes.is_empty() {
        return Err("is empty".into());
    }
    if bytes.starts_with(b"\x89PNG") {
        let (reader, size) = open_png(bytes)?;
        return Ok((Opened::Png(Box::new(reader)), size));
    }
    if bytes.starts_with(&[0xff, 0xd8]) {
        let (decoder, size) = open_jpeg(bytes)?;
        return Ok((Opened::Jpeg(Box::new(decoder)), size));
    }
    if bytes.starts_with(b"RIFF") {
        let (decoder, size) = open_webp(bytes)?;
        return Ok((Opened::WebP(Box::new(decoder)), size));
    }
    Err("is none of PNG, JPEG and WebP".into())
}

impl Opened<'_> {
    fn decode(self, size: ImageSize, out: &mut [u8]) -> Result<(), String> {
        match self {
            Opened::Png(reader) => decode_png(*reader, size, out),
            Opened::Jpeg(decoder) => decode_jpeg(*decoder, out),
            Opened::WebP(decoder) => decode_webp(*decoder, size, out),
        }
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
    without_alpha(&pixels, size.channels, out)
}

/// Leaves out the alpha channel, which comes after the others and must be opaque.
fn without_alpha(pixels: &[u8], channels: usize, out: &mut [u8]) -> Result<(), String> {
    for (pixel, out) in pixels.chunks_exact(channels + 1).zip(out.chunks_exact_mut(channels)) {
        if pixel[channels] != u8::MAX {
            return Err("is partly transparent, which training data cannot be".into());
        }
        out.copy_from_slice(&pixel[..channels]);
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

fn open_webp(bytes: &[u8]) -> Result<(WebPDecoder<'_>, ImageSize), String> {
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(|e| format!("broken WebP: {e}"))?;
    decoder.set_memory_limit(MAX_IMAGE_BYTES);
    if decoder.is_animated() {
        return Err("is an animation".into());
    }
    let (width, height) = decoder.dimensions();
    Ok((decoder, ImageSize::checked(height as usize, width as usize, 3)?))
}

fn decode_webp(mut decoder: WebPDecoder<'_>, size: ImageSize, out: &mut [u8]) -> Result<(), String> {
    let broken = |e: image_webp::DecodingError| format!("broken WebP: {e}");
    if !decoder.has_alpha() {
        return decoder.read_image(out).map_err(broken);
    }
    let mut pixels = vec![0; size.height * size.width * 4];
    decoder.read_image(&mut pixels).map_err(broken)?;
    without_alpha(&pixels, size.channels, out)
}
