//! Tar archives in WebDataset's layout: `KEY.png` with `KEY.cls` or `KEY.json`, where KEY is the path up to the first dot of
//! the file's name. Samples keep their order in the archive, archives the order of their names.
//!
//! The `tar` crate lists an archive; images are decoded from where they lie in it. Names are only compared, never opened
//! as files. A gzipped archive is unpacked into memory first, up to a limit.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tar::EntryType;

use super::decode::{Entry, MAX_ENTRY_BYTES, decode_all, is_image_extension};
use super::{Dataset, DatasetOptions, MAX_LABEL};
use crate::files::Bytes;
use crate::weights::shown;
use crate::{Error, Result};

const BLOCK: usize = 512;
/// Bytes that a byte of gzip may become, beyond the first MiB: tars of small images come to about 50.
const MAX_RATIO: usize = 256;
/// Longest `.json` of a sample that is read.
const MAX_JSON_BYTES: usize = 1 << 20;

/// Whether this is a tar, gzipped or not.
pub(super) fn is_tar(bytes: &[u8]) -> bool {
    let mut header = Vec::with_capacity(BLOCK);
    // What cannot be unpacked is no tar.
    let _ = match bytes {
        [0x1f, 0x8b, ..] => flate2::read::MultiGzDecoder::new(bytes).take(BLOCK as u64).read_to_end(&mut header),
        _ => bytes.take(BLOCK as u64).read_to_end(&mut header),
    };
    header.get(257..262) == Some(b"ustar")
}

/// Whether a name is one of a shard, for folders of them.
pub(super) fn is_shard_name(name: &str) -> bool {
    let name = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    !name.starts_with('.') && [".tar", ".tar.gz", ".tgz"].iter().any(|end| name.ends_with(end))
}

/// Reads one archive.
pub(super) fn load(path: &Path, bytes: &[u8], options: &DatasetOptions) -> Result<Dataset> {
    let bytes = unpack(bytes, options.max_bytes).map_err(|reason| Error::format(path, reason))?;
    decode(path, samples(path, "", &bytes)?, options)
}

/// Reads the archives of a folder, given by their paths and their names in the folder.
pub(super) fn load_shards(folder: &Path, shards: &[(PathBuf, String)], options: &DatasetOptions) -> Result<Dataset> {
    let mapped = shards.iter().map(|(path, _)| Bytes::open(path)).collect::<Result<Vec<_>>>()?;
    let mut room = options.max_bytes;
    let mut unpacked = Vec::with_capacity(shards.len());
    for ((path, _), bytes) in shards.iter().zip(&mapped) {
        let bytes = unpack(bytes, room).map_err(|reason| Error::format(path, reason))?;
        if let Cow::Owned(bytes) = &bytes {
            room -= bytes.len();
        }
        unpacked.push(bytes);
    }
    let mut all = Vec::new();
    for ((path, name), bytes) in shards.iter().zip(&unpacked) {
        all.append(&mut samples(path, &format!("{name}/"), bytes)?);
    }
    decode(folder, all, options)
}

fn decode(path: &Path, samples: Vec<Sample>, options: &DatasetOptions) -> Result<Dataset> {
    let labels = labels(path, &samples)?;
    let images: Vec<Image> = samples.into_iter().filter_map(|sample| sample.image).collect();
    decode_all(path, &images, labels, options)
}

/// The classes of all samples, or of none.
fn labels(path: &Path, samples: &[Sample]) -> Result<Option<Vec<u32>>> {
    let labels: Vec<u32> = samples.iter().filter_map(|sample| sample.class).collect();
    match samples.iter().find(|sample| sample.class.is_none()) {
        None => Ok(Some(labels)),
        Some(_) if labels.is_empty() => Ok(None),
        Some(sample) => {
            Err(Error::format(path, format!("sample `{}` has no class, but others have", shown(&sample.key))))
        }
    }
}

/// The archive itself, or what its gzip holds, if that is at most `limit` bytes.
fn unpack(bytes: &[u8], limit: usize) -> Result<Cow<'_, [u8]>, String> {
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes.into());
    }
    let limit = limit.min(bytes.len().saturating_mul(MAX_RATIO).saturating_add(1 << 20));
    let mut unpacked = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes)
        .take(limit as u64 + 1)
        .read_to_end(&mut unpacked)
        .map_err(|e| format!("broken gzip after {} bytes: {e}", unpacked.len()))?;
    if unpacked.len() > limit {
        return Err(format!("unpacks to more than {limit} bytes"));
    }
    Ok(unpacked.into())
}

/// An image file where it lies in the archive.
struct Image<'a> {
    name: String,
    bytes: &'a [u8],
}

impl Entry for Image<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self) -> Result<Cow<'_, [u8]>, String> {
        match self.bytes.len() {
            n if n as u64 > MAX_ENTRY_BYTES => {
                Err(format!("is a file of {n} bytes, over the limit of {MAX_ENTRY_BYTES}"))
            }
            _ => Ok(self.bytes.into()),
        }
    }
}

/// Files that share a key.
#[derive(Default)]
struct Sample<'a> {
    key: String,
    image: Option<Image<'a>>,
    cls: Option<&'a [u8]>,
    json: Option<&'a [u8]>,
    class: Option<u32>,
}

/// The samples with images of an archive, with their classes. `prefix` is put before their names.
fn samples<'a>(path: &Path, prefix: &str, bytes: &'a [u8]) -> Result<Vec<Sample<'a>>> {
    let fault = |reason: String| Error::format(path, reason);
    let mut samples: Vec<Sample> = Vec::new();
    let mut by_key = HashMap::new();
    for (name, bytes) in files(bytes).map_err(fault)? {
        let Some((key, extension)) = split(&name) else { continue };
        if !is_image_extension(&extension) && !matches!(extension.as_str(), "cls" | "json") {
            continue;
        }
        let at = *by_key.entry(key.to_owned()).or_insert(samples.len());
        if at == samples.len() {
            samples.push(Sample { key: format!("{prefix}{key}"), ..Sample::default() });
        }
        let sample = &mut samples[at];
        let twice = match extension.as_str() {
            "cls" => sample.cls.replace(bytes).is_some(),
            "json" => sample.json.replace(bytes).is_some(),
            _ => sample.image.replace(Image { name: format!("{prefix}{name}"), bytes }).is_some(),
        };
        if twice {
            let what = if is_image_extension(&extension) { "image" } else { extension.as_str() };
            return Err(fault(format!("sample `{}` has more than one {what}", shown(key))));
        }
    }
    for sample in &mut samples {
        sample.class = class(sample).map_err(|reason| fault(format!("sample `{}`: {reason}", shown(&sample.key))))?;
        if sample.image.is_none() && sample.class.is_some() {
            // An image is missing.
            return Err(fault(format!("sample `{}` has a class, but no image", shown(&sample.key))));
        }
    }
    samples.retain(|sample| sample.image.is_some());
    Ok(samples)
}

/// `a/0001.seg.png` → `a/0001` and `seg.png`. Hidden files have no key.
fn split(name: &str) -> Option<(&str, String)> {
    let start = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = start + name[start..].find('.').filter(|dot| *dot > 0)?;
    Some((&name[..dot], name[dot + 1..].to_ascii_lowercase()))
}

/// Names and contents of the regular files of a tar.
fn files(bytes: &[u8]) -> Result<Vec<(String, &[u8])>, String> {
    let mut archive = tar::Archive::new(Cursor::new(bytes));
    // Archives that were put one behind the other have end marks in the middle.
    archive.set_ignore_zeros(true);
    let mut files = Vec::new();
    let mut end = 0;
    for entry in archive.entries_with_seek().map_err(|e| e.to_string())? {
        let entry = entry.map_err(|e| format!("not a complete tar, perhaps cut off: {e}"))?;
        let name = String::from_utf8(entry.path_bytes().into_owned()).map_err(|e| {
            format!("the name of entry `{}` is not UTF-8", shown(&String::from_utf8_lossy(e.as_bytes())))
        })?;
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::Link | EntryType::Symlink | EntryType::GNUSparse) {
            return Err(format!("entry `{}` is a link or a sparse file", shown(&name)));
        }
        let contents = usize::try_from(entry.raw_file_position())
            .ok()
            .and_then(|start| bytes.get(start..start.checked_add(entry.size().try_into().ok()?)?));
        let Some(contents) = contents else {
            return Err(format!("cut off: entry `{}` declares {} bytes", shown(&name), entry.size()));
        };
        end = (entry.raw_file_position() as usize + contents.len()).next_multiple_of(BLOCK);
        if kind.is_file() {
            files.push((name, contents));
        }
    }
    match bytes.get(end..end + BLOCK) {
        Some(mark) if mark.iter().all(|b| *b == 0) => Ok(files),
        _ => Err("not a complete tar, perhaps cut off: the mark at its end is missing".into()),
    }
}

/// The keys of a sample's `.json` that may hold its class.
#[derive(Deserialize)]
struct SampleJson {
    label: Option<Value>,
    class: Option<Value>,
    cls: Option<Value>,
}

/// The class of a sample: the number in its `.cls`, else the first number among `label`, `class` and `cls` of its `.json`.
fn class(sample: &Sample) -> Result<Option<u32>, String> {
    let wrong =
        |what: &str, found: &str| format!("{what} must be a whole number up to {MAX_LABEL}, not `{}`", shown(found));
    let checked = |class: u64| u32::try_from(class).ok().filter(|class| *class <= MAX_LABEL);
    if let Some(text) = sample.cls {
        let text = String::from_utf8_lossy(&text[..text.len().min(200)]);
        return text.trim().parse().ok().and_then(checked).map(Some).ok_or_else(|| wrong(".cls", &text));
    }
    let Some(json) = sample.json else { return Ok(None) };
    if json.len() > MAX_JSON_BYTES {
        return Err(format!(".json has {} bytes, over the limit of {MAX_JSON_BYTES}", json.len()));
    }
    let json: SampleJson = serde_json::from_slice(json).map_err(|e| format!(".json: {e}"))?;
    let keys = [("label", json.label), ("class", json.class), ("cls", json.cls)];
    let number = keys.into_iter().find_map(|(key, value)| value.filter(Value::is_number).map(|value| (key, value)));
    let Some((key, value)) = number else { return Ok(None) };
    let found = value.as_u64().and_then(checked).map(Some);
    found.ok_or_else(|| wrong(&format!("`{key}` in .json"), &value.to_string()))
}
