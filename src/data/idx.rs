//! IDX, the format of MNIST: big-endian magic (0, 0, type, rank), one u32 a dimension, then the elements; often
//! gzipped.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::decode::MAX_SIDE;
use super::{Dataset, DatasetOptions, MAX_LABEL, Skipped, choose_labels, reserve};
use crate::files::Bytes;
use crate::{Error, Result};

const UNSIGNED_BYTE: u8 = 8;
/// Most labels that are read; gzip could otherwise unpack without end.
const MAX_LABELS: usize = 1 << 28;

/// Images, with labels that were read before.
pub(super) fn load(path: &Path, bytes: &[u8], labels: Option<Vec<u32>>, options: &DatasetOptions) -> Result<Dataset> {
    let fault = |reason: String| Error::format(path, reason);
    let (dims, mut elements) = open::<3>(bytes).map_err(fault)?;
    let [n, height, width] = dims;
    if height == 0 || width == 0 || height > MAX_SIDE || width > MAX_SIDE {
        return Err(fault(format!("images of {width}x{height} are absurd: sides must be 1 to {MAX_SIDE}")));
    }
    if n == 0 {
        return Err(fault("holds no images".into()));
    }
    if let Some(labels) = labels.as_ref().filter(|l| l.len() != n) {
        return Err(fault(format!("{n} images, but {} labels", labels.len())));
    }
    let size = height * width;
    // Whatever the header claims, memory only grows as elements arrive.
    let limit = options.max_bytes;
    let total = n
        .checked_mul(size)
        .filter(|total| *total <= limit)
        .ok_or_else(|| fault(format!("{n} images of {size} bytes are over the limit of {limit} bytes (max_bytes)")))?;
    let all = read_exactly(&mut elements, total).map_err(fault)?;
    let chosen = options.select(n, labels.as_deref())?;
    let (labels, class_count) = choose_labels(labels, &chosen);
    let images = if chosen.len() == n { all } else { gather(path, &all, size, &chosen, options)? };
    Ok(Dataset {
        images,
        n: chosen.len(),
        height,
        width,
        channels: 1,
        labels,
        class_count,
        skipped: Skipped::default(),
    })
}

fn gather(path: &Path, all: &[u8], size: usize, chosen: &[usize], options: &DatasetOptions) -> Result<Vec<u8>> {
    let mut images = reserve(path, chosen.len(), size, options)?;
    for index in chosen {
        images.extend_from_slice(&all[index * size..(index + 1) * size]);
    }
    Ok(images)
}

/// A labels file.
pub(super) fn parse_labels(path: &Path, bytes: &[u8]) -> Result<Vec<u32>> {
    let fault = |reason: String| Error::format(path, format!("labels: {reason}"));
    let ([n], mut elements) = open::<1>(bytes).map_err(fault)?;
    if n > MAX_LABELS {
        return Err(fault(format!("{n} labels are over the limit of {MAX_LABELS}")));
    }
    let labels = read_exactly(&mut elements, n).map_err(fault)?;
    const { assert!(u8::MAX as u32 <= MAX_LABEL) };
    Ok(labels.into_iter().map(u32::from).collect())
}

/// Reads the labels file that belongs to an images file, if it is there.
pub(super) fn labels_beside(images: &Path) -> Result<Option<Vec<u32>>> {
    let Some(path) = labels_path(images) else { return Ok(None) };
    parse_labels(&path, &Bytes::open(&path)?).map(Some)
}

/// `t10k-images-idx3-ubyte.gz` → `t10k-labels-idx1-ubyte.gz`, gzipped or not, with `.` or `-` before `idx`.
fn labels_path(images: &Path) -> Option<PathBuf> {
    let name = images.file_name()?.to_str()?;
    let name = name.strip_suffix(".gz").unwrap_or(name);
    if !name.contains("images") {
        return None;
    }
    let labels = name.replace("images", "labels").replace("idx3", "idx1");
    let candidates = [labels.clone(), format!("{labels}.gz")].map(|name| images.with_file_name(name));
    candidates.into_iter().find(|path| fs::metadata(path).is_ok_and(|m| m.is_file()))
}

/// The dimensions, and a reader of the elements. The reader of raw bytes and that of gzipped ones behave the same.
fn open<const RANK: usize>(bytes: &[u8]) -> Result<([usize; RANK], Box<dyn Read + '_>), String> {
    let mut reader: Box<dyn Read> = match bytes {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(bytes)),
        _ => Box::new(bytes),
    };
    let mut magic = [0; 4];
    reader.read_exact(&mut magic).map_err(|e| format!("not an IDX file: {e}"))?;
    if magic != [0, 0, UNSIGNED_BYTE, RANK as u8] {
        return Err(format!("not an IDX file of unsigned bytes with {RANK} dimensions: it begins with {magic:02x?}"));
    }
    let mut dims = [0; RANK];
    for dim in &mut dims {
        let mut bytes = [0; 4];
        reader.read_exact(&mut bytes).map_err(|e| format!("cut off in the dimensions: {e}"))?;
        *dim = u32::from_be_bytes(bytes) as usize;
    }
    Ok((dims, reader))
}

/// Exactly `count` bytes: fewer or more are errors.
fn read_exactly(reader: &mut dyn Read, count: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    reader
        .take(count as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| format!("broken after {} bytes: {e}", bytes.len()))?;
    match bytes.len() {
        found if found < count => Err(format!("cut off: {count} elements declared, {found} found")),
        found if found > count => Err(format!("more than the {count} declared elements")),
        _ => Ok(bytes),
    }
}
