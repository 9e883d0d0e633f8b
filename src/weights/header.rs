//! The header of a safetensors file: 8 bytes of little-endian length, then that many bytes of JSON, then the data.
//!
//! Nothing in it is believed before it is checked: every number is compared with the bytes that are really there, and
//! every tensor's bytes lie inside the file, belong to no other tensor and are as many as its shape needs.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::de::{DeserializeSeed, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{Dtype, MAX_HEADER_BYTES};
use crate::{Error, Result};

/// What a file says about one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The type of the elements as stored.
    pub dtype: Dtype,
    /// The dimensions, in the file's order; none for a scalar.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// How many elements there are.
    pub fn element_count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A checked header.
#[derive(Clone, Debug, Default)]
pub struct Header {
    /// Every tensor, with where its bytes lie in the file.
    pub tensors: BTreeMap<String, (TensorInfo, Range<usize>)>,
    /// The file's free-form notes, for example `{"format": "pt"}`.
    pub metadata: BTreeMap<String, String>,
}

impl Header {
    /// Reads and checks the header of a whole file in memory; `path` is only used to name the file in errors.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let json = header_json(bytes).map_err(|reason| Error::format(path, reason))?;
        let raw = parse_json(path, json)?;
        let (start, length) = (8 + json.len(), bytes.len() - 8 - json.len());
        let mut tensors = BTreeMap::new();
        for (name, tensor) in raw.tensors {
            let checked = check(tensor, length).map_err(|reason| Error::tensor(path, shown(&name), reason))?;
            tensors.insert(name, checked);
        }
        check_cover(path, &tensors, length)?;
        for (_, range) in tensors.values_mut() {
            *range = start + range.start..start + range.end;
        }
        Ok(Header { tensors, metadata: raw.metadata })
    }
}

/// The JSON text, after checking its declared length against the bytes that there are.
fn header_json(bytes: &[u8]) -> Result<&str, String> {
    if bytes.is_empty() {
        return Err("the file is empty".into());
    }
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!("cut off: {} bytes, where even an empty safetensors file has 10", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES as u64 {
        return Err(format!(
            "the header claims {length} bytes, over the limit of {MAX_HEADER_BYTES}; not safetensors?"
        ));
    }
    let length = length as usize;
    if length > rest.len() {
        return Err(format!("cut off: the header claims {length} bytes, but only {} follow", rest.len()));
    }
    std::str::from_utf8(&rest[..length]).map_err(|e| format!("the header is not UTF-8: {e}"))
}

/// Checks a tensor by itself: dtype, shape, and a range of the right length inside the data.
fn check(tensor: RawTensor, data_length: usize) -> Result<(TensorInfo, Range<usize>), String> {
    let RawTensor { dtype, shape, data_offsets: [begin, end] } = tensor;
    let Some(dtype) = Dtype::from_name(&dtype) else {
        return Err(format!("unknown dtype `{}`", shown(&dtype)));
    };
    let bytes = byte_length(dtype, &shape)
        .ok_or_else(|| format!("shape {} has more elements than can be addressed", shown_shape(&shape)))?;
    if begin > end {
        return Err(format!("data offsets {begin}..{end} run backwards"));
    }
    if end > data_length as u64 {
        return Err(format!(
            "data offsets {begin}..{end} are out of range: the file holds {data_length} bytes of data"
        ));
    }
    if end - begin != bytes as u64 {
        let shape = shown_shape(&shape);
        return Err(format!("{dtype} of shape {shape} needs {bytes} bytes, but has {}", end - begin));
    }
    // Both are at most the data's length, and the dimensions' product was checked: nothing is lost here.
    let shape = shape.into_iter().map(|d| d as usize).collect();
    Ok((TensorInfo { dtype, shape }, begin as usize..end as usize))
}

/// Bytes of a tensor; `None` on overflow, also where a zero dimension hides the overflow of the others, because strides
/// are products of the others.
fn byte_length(dtype: Dtype, shape: &[u64]) -> Option<usize> {
    let nonzero = shape.iter().try_fold(dtype.size(), |n, d| n.checked_mul(usize::try_from((*d).max(1)).ok()?))?;
    if nonzero > isize::MAX as usize {
        return None;
    }
    Some(if shape.contains(&0) { 0 } else { nonzero })
}

/// The tensors must cover the data exactly: no byte twice, none left over.
fn check_cover(path: &Path, tensors: &BTreeMap<String, (TensorInfo, Range<usize>)>, length: usize) -> Result<()> {
    let mut ranges: Vec<_> = tensors.iter().map(|(name, (_, range))| (range.start, range.end, name)).collect();
    ranges.sort_unstable();
    let mut covered = 0;
    let mut previous: Option<&String> = None;
    for (start, end, name) in ranges {
        if start > covered {
            let reason = format!("a hole: bytes {covered}..{start} before it belong to no tensor");
            return Err(Error::tensor(path, shown(name), reason));
        }
        if start < covered {
            let other = previous.map_or_else(String::new, |p| shown(p));
            return Err(Error::tensor(
                path,
                shown(name),
                format!("overlaps tensor `{other}` in bytes {start}..{covered}"),
            ));
        }
        (covered, previous) = (end, Some(name));
    }
    if covered != length {
        return Err(Error::format(
            path,
            format!("{} bytes after the last tensor belong to no tensor", length - covered),
        ));
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

#[derive(Default)]
struct RawHeader {
    tensors: BTreeMap<String, RawTensor>,
    metadata: BTreeMap<String, String>,
}

fn parse_json(path: &Path, json: &str) -> Result<RawHeader> {
    let mut current = None;
    let mut reader = serde_json::Deserializer::from_str(json);
    let parsed = HeaderSeed { current: &mut current }.deserialize(&mut reader).and_then(|raw| {
        reader.end()?;
        Ok(raw)
    });
    parsed.map_err(|e| match current {
        Some(name) => Error::tensor(path, shown(&name), format!("bad entry in the header: {e}")),
        None => Error::format(path, format!("bad JSON header: {e}")),
    })
}

/// Reads the header entry by entry, because serde_json's maps keep the last of two equal keys without a word.
struct HeaderSeed<'a> {
    /// The entry being read, for the error message.
    current: &'a mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = RawHeader;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<RawHeader, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut header = RawHeader::default();
        let mut metadata = None;
        while let Some(name) = map.next_key::<String>()? {
            *self.current = Some(name.clone());
            let duplicate = if name == "__metadata__" {
                metadata.replace(map.next_value::<UniqueMap>()?.0).is_some()
            } else {
                header.tensors.insert(name, map.next_value()?).is_some()
            };
            if duplicate {
                return Err(A::Error::custom("the name appears twice"));
            }
            *self.current = None;
        }
        header.metadata = metadata.unwrap_or_default();
        Ok(header)
    }
}

/// A JSON object of strings whose keys must differ.
pub(super) struct UniqueMap(pub BTreeMap<String, String>);

impl<'de> Deserialize<'de> for UniqueMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueMapVisitor).map(UniqueMap)
    }
}

struct UniqueMapVisitor;

impl<'de> Visitor<'de> for UniqueMapVisitor {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            if entries.contains_key(&key) {
                return Err(A::Error::custom(format!("`{}` appears twice", shown(&key))));
            }
            entries.insert(key, value);
        }
        Ok(entries)
    }
}

/// A name from an untrusted file, fit for an error message: short, and without control characters.
pub(crate) fn shown(name: &str) -> String {
    const LONGEST: usize = 120;
    let short: String = name.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if name.chars().nth(LONGEST).is_some() { short + "…" } else { short }
}

fn shown_shape(shape: &[u64]) -> String {
    match shape.split_at_checked(8) {
        Some((head, rest)) if !rest.is_empty() => format!("{head:?} and {} more", rest.len()),
        _ => format!("{shape:?}"),
    }
}
