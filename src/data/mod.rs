//! Image datasets: the EDM zip, folders, WebDataset's tars, MNIST's IDX and CIFAR's binary files, decoded once into one
//! block of bytes; in which order a run sees them ([`Order`]); and batches made ahead on a thread ([`Loader`]).

mod channels;
mod cifar;
mod decode;
mod folder;
mod idx;
mod labels;
mod loader;
mod order;
mod resize;
mod shuffle;
mod skipped;
mod webdataset;
mod zip;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

use crate::files::Bytes;
use crate::{Error, Result};

pub use decode::MAX_SIDE;
pub use loader::{Batch, Loader, LoaderConfig};
pub use order::{Order, Sequence};
pub use shuffle::permute;
pub use skipped::{Skipped, SkippedImage};

/// Decoded images of one size, channels last, with their classes.
#[derive(Clone, Debug, Default)]
pub struct Dataset {
    /// The pixels, NHWC.
    pub images: Vec<u8>,
    /// How many images.
    pub n: usize,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// The class of each image, if the dataset has classes.
    pub labels: Option<Vec<u32>>,
    /// One more than the largest label in the whole dataset, also when only a part of it was loaded; 0 without labels.
    pub class_count: usize,
    /// Images that were left out because they are broken or of another size.
    pub skipped: Skipped,
}

/// Which part of a dataset to load, in which form, and how much memory it may take.
#[derive(Clone, Debug)]
pub struct DatasetOptions {
    /// Load at most this many images, the first ones, counted after `classes`.
    pub limit: Option<usize>,
    /// Load only images of these classes, of each the first so many. Labels keep their numbers.
    pub classes: Option<Vec<ClassLimit>>,
    /// Most bytes of decoded pixels; 16 GiB by default.
    pub max_bytes: usize,
    /// Side of the square, 1 to [`MAX_SIDE`], that every image becomes: the shorter side is resized to it (Lanczos),
    /// and of the longer one the centre is kept. Without it all images must have one size already.
    pub resize: Option<usize>,
    /// Convert every image to 1 channel (grey) or 3 (RGB). Without it a dataset is RGB if any of its images is, and its grey
    /// images are converted.
    pub channels: Option<usize>,
    /// Refuse a dataset with an image that is broken or has another size than the first one that is not. Otherwise such images are left out and reported in [`Dataset::skipped`]. Mistakes in labels are always
    /// refused. True by default: a program that does not look at `skipped` should not lose images unnoticed.
    pub strict: bool,
}

/// A class of which images are loaded, and how many of them at most. As text `7`, or `7:500` for the first 500.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassLimit {
    pub class: u32,
    pub most: usize,
}

impl ClassLimit {
    /// Reads several, separated by commas; `None` from an empty text.
    pub fn list(text: &str) -> Result<Option<Vec<ClassLimit>>> {
        let limits = text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(str::parse);
        let limits = limits.collect::<Result<Vec<ClassLimit>>>()?;
        Ok((!limits.is_empty()).then_some(limits))
    }
}

impl From<u32> for ClassLimit {
    /// All images of a class.
    fn from(class: u32) -> Self {
        ClassLimit { class, most: usize::MAX }
    }
}

impl FromStr for ClassLimit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (class, most) = text.split_once(':').map_or((text, None), |(class, most)| (class, Some(most)));
        match (class.parse(), most.map_or(Ok(usize::MAX), str::parse)) {
            (Ok(class), Ok(most)) if most > 0 => Ok(ClassLimit { class, most }),
            _ => Err(Error::invalid(
                "classes",
                format!("`{text}` is neither a class (7) nor a class and a number (7:500)"),
            )),
        }
    }
}

impl Default for DatasetOptions {
    fn default() -> Self {
        DatasetOptions { limit: None, classes: None, max_bytes: 16 << 30, resize: None, channels: None, strict: true }
    }
}

impl DatasetOptions {
    fn check(&self) -> Result<()> {
        if let Some(side) = self.resize.filter(|side| *side == 0 || *side > MAX_SIDE) {
            return Err(Error::invalid("resize", format!("{side} is not a side of 1 to {MAX_SIDE} pixels")));
        }
        match self.channels {
            None | Some(1 | 3) => Ok(()),
            Some(other) => Err(Error::invalid("channels", format!("{other} is neither 1 (grey) nor 3 (RGB)"))),
        }
    }

    /// The indices of the images to load, of `n` with these labels.
    fn select(&self, n: usize, labels: Option<&[u32]>) -> Result<Vec<usize>> {
        let limit = self.limit.unwrap_or(usize::MAX);
        let chosen: Vec<usize> = match (&self.classes, labels) {
            (None, _) => (0..n.min(limit)).collect(),
            (Some(_), None) => return Err(Error::invalid("classes", "this dataset has no labels to choose by")),
            (Some(classes), Some(labels)) => {
                let mut left: HashMap<u32, usize> = classes.iter().map(|c| (c.class, c.most)).collect();
                let wanted = |i: &usize| match labels.get(*i).and_then(|label| left.get_mut(label)) {
                    Some(left) if *left > 0 => {
                        *left -= 1;
                        true
                    }
                    _ => false,
                };
                (0..n).filter(wanted).take(limit).collect()
            }
        };
        if chosen.is_empty() && n > 0 {
            let classes: Vec<u32> = self.classes.iter().flatten().map(|c| c.class).collect();
            let reason = format!("limit {:?} and classes {classes:?} leave no image of {n}", self.limit);
            let option = if limit == 0 { "limit" } else { "classes" };
            return Err(Error::invalid(option, reason));
        }
        Ok(chosen)
    }
}

impl Dataset {
    /// Loads a dataset, recognising its kind by what is in the file:
    ///
    /// * a zip of PNG, JPEG and WebP files, with classes in `dataset.json` as EDM's tools write it;
    /// * a folder of the same, or a folder of class folders;
    /// * a tar in WebDataset's layout, gzipped or not, or a folder of such shards: samples are files that share a name
    ///   up to its first dot, with their classes in `.cls`, or in `.json` as `label`, `class` or `cls`;
    /// * IDX images (MNIST), gzipped or not; the labels file is found beside them by its usual name;
    /// * a CIFAR-10 `.bin` batch.
    pub fn open(path: impl AsRef<Path>, options: &DatasetOptions) -> Result<Self> {
        let data = Self::open_kind(path.as_ref(), options);
        release_freed_memory();
        data
    }

    fn open_kind(path: &Path, options: &DatasetOptions) -> Result<Self> {
        options.check()?;
        if path.is_dir() {
            return folder::open(path, options);
        }
        let bytes = Bytes::open(path)?;
        if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
            return Self::from_zip(path, &bytes, options);
        }
        if webdataset::is_tar(&bytes) {
            return Self::from_tar(path, &bytes, options);
        }
        if bytes.starts_with(&[0x1f, 0x8b]) || bytes.starts_with(&[0, 0, 8]) {
            let labels = idx::labels_beside(path)?;
            return in_form(path, idx::load(path, &bytes, labels, options)?, options);
        }
        if path.extension().is_some_and(|e| e == "bin") {
            return in_form(path, cifar::load(path, &bytes, options)?, options);
        }
        Err(Error::format(
            path,
            "not a dataset: neither a zip, nor a tar, nor IDX (.gz or raw), nor a CIFAR-10 .bin, nor a folder",
        ))
    }

    /// Reads a zip in memory; `path` is only used to name it in errors.
    pub fn from_zip(path: &Path, bytes: &[u8], options: &DatasetOptions) -> Result<Self> {
        options.check()?;
        zip::load(path, bytes, options)
    }

    /// Reads a WebDataset tar in memory, gzipped or not; `path` is only used to name it in errors.
    pub fn from_tar(path: &Path, bytes: &[u8], options: &DatasetOptions) -> Result<Self> {
        options.check()?;
        webdataset::load(path, bytes, options)
    }

    /// Reads IDX images and, if given, IDX labels in memory, each gzipped or not.
    pub fn from_idx(path: &Path, images: &[u8], labels: Option<&[u8]>, options: &DatasetOptions) -> Result<Self> {
        options.check()?;
        let labels = labels.map(|bytes| idx::parse_labels(path, bytes)).transpose()?;
        in_form(path, idx::load(path, images, labels, options)?, options)
    }

    /// A hash of sizes, pixels and labels (XXH3, 128 bits): the same on every machine, another one after any change. Not
    /// made to withstand someone who wants two data sets of one fingerprint.
    pub fn fingerprint(&self) -> u128 {
        let mut hash = twox_hash::xxhash3_128::Hasher::new();
        let labelled = usize::from(self.labels.is_some());
        for size in [self.n, self.height, self.width, self.channels, self.class_count, labelled] {
            hash.write(&(size as u64).to_le_bytes());
        }
        hash.write(&self.images);
        for label in self.labels.iter().flatten() {
            hash.write(&label.to_le_bytes());
        }
        hash.finish_128()
    }

    /// Bytes, which is also elements, of one image.
    pub fn image_len(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// The pixels of an image, if there is one of that index.
    pub fn image(&self, index: usize) -> Option<&[u8]> {
        let start = index.checked_mul(self.image_len())?;
        self.images.get(start..start.checked_add(self.image_len())?)
    }

    /// Its images from the first of a range up to before its end, which must not exceed their number.
    pub fn part(&self, range: Range<usize>) -> Result<Dataset> {
        if range.start > range.end || range.end > self.n {
            return Err(self.out_of_range(range.end));
        }
        Ok(Dataset {
            images: self.images[range.start * self.image_len()..range.end * self.image_len()].to_vec(),
            n: range.len(),
            labels: self.labels.as_ref().map(|labels| labels[range].to_vec()),
            skipped: Skipped::default(),
            ..*self
        })
    }

    /// Writes images as f32 in [-1, 1], NHWC, into `out`, which must have room for exactly these images.
    pub fn batch_f32_into(&self, indices: &[usize], out: &mut [f32]) -> Result<()> {
        let wanted = indices.len() * self.image_len();
        if out.len() != wanted {
            return Err(Error::shape(
                "batch",
                format!("{wanted} elements are needed, but the buffer has {}", out.len()),
            ));
        }
        for (index, out) in indices.iter().zip(out.chunks_exact_mut(self.image_len().max(1))) {
            let image = self.image(*index).ok_or_else(|| self.out_of_range(*index))?;
            to_f32(image, out);
        }
        Ok(())
    }

    fn out_of_range(&self, index: usize) -> Error {
        Error::invalid("index", format!("{index} is not below the number of images, {}", self.n))
    }
}

/// Gives memory that is free back to the system. The directory of a large zip takes as much as a tenth of its pixels in small
/// pieces while it is read, and glibc's allocator would keep that for good: it raises its bound for giving back with the size of
/// large pieces that were freed.
fn release_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: may be called at any time, by any thread; it touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Raw images in the number of channels and the size that the options say.
fn in_form(path: &Path, data: Dataset, options: &DatasetOptions) -> Result<Dataset> {
    resize::all(path, channels::all(path, data, options)?, options)
}

/// Maps bytes to [-1, 1].
pub fn to_f32(pixels: &[u8], out: &mut [f32]) {
    for (o, p) in out.iter_mut().zip(pixels) {
        *o = f32::from(*p) / 127.5 - 1.0;
    }
}

/// The largest class number that is believed: far above any dataset, far below what would exhaust memory as a one-hot.
const MAX_LABEL: u32 = 1 << 20;

/// Keeps only the labels of the chosen images, and counts the classes of all.
fn choose_labels(labels: Option<Vec<u32>>, chosen: &[usize]) -> (Option<Vec<u32>>, usize) {
    let class_count = labels.iter().flatten().max().map_or(0, |max| *max as usize + 1);
    (labels.map(|all| chosen.iter().filter_map(|i| all.get(*i).copied()).collect()), class_count)
}

/// An empty vector with room for `count` items of `item` bytes, if that is within the limit and the machine has it.
fn reserve(path: &Path, count: usize, item: usize, options: &DatasetOptions) -> Result<Vec<u8>> {
    let total = count.checked_mul(item).filter(|total| *total <= options.max_bytes).ok_or_else(|| {
        let limit = options.max_bytes;
        Error::format(path, format!("{count} images of {item} bytes are over the limit of {limit} bytes (max_bytes)"))
    })?;
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(total)
        .map_err(|_| Error::format(path, format!("no memory for {total} bytes of images")))?;
    Ok(bytes)
}
