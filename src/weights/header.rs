//! The header of a safetensors file: 8 bytes of little-endian length, then that many bytes of JSON, then the data.
//!
//! The `safetensors` crate parses it, and makes sure that the tensors cover the data without holes or overlaps. It does
//! so in few words and lets equal names pass, the last one winning; hence the checks here, which come first.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::Path;

use safetensors::{SafeTensorError, SafeTensors};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{Dtype, MAX_HEADER_BYTES};
use crate::{Error, Result};

/// Most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 16;

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
        let start = 8 + json.len();
        check_entries(path, json, bytes.len() - start)?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| match e {
            SafeTensorError::MetadataIncompleteBuffer => {
                Error::format(path, "there are bytes after the last tensor that belong to no tensor")
            }
            other => Error::format(path, other.to_string()),
        })?;
        let locate = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
            let range = start + info.data_offsets.0..start + info.data_offsets.1;
            (name, (TensorInfo { dtype: info.dtype, shape: info.shape.clone() }, range))
        };
        let tensors = header.tensors().into_iter().map(locate).collect();
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Header { tensors, metadata })
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

/// Checks each entry by itself, so that errors name it, that no name comes twice, and that the tensors lie one after the
/// other. The safetensors crate checks the last too, but which of two tensors at one place it names is chance.
fn check_entries(path: &Path, json: &str, data_length: usize) -> Result<()> {
    let entries: UniqueMap<&RawValue> =
        serde_json::from_str(json).map_err(|e| Error::format(path, format!("bad JSON header: {e}")))?;
    let mut places = Vec::new();
    for (name, entry) in entries.0 {
        let checked = if name == "__metadata__" {
            serde_json::from_str::<UniqueMap<String>>(entry.get()).map(|_| Ok(None))
        } else {
            serde_json::from_str::<Entry>(entry.get()).map(|entry| entry.check(data_length).map(Some))
        };
        let place = checked
            .unwrap_or_else(|e| Err(format!("bad entry in the header: {}", shown(&e.to_string()))))
            .map_err(|reason| Error::tensor(path, shown(&name), reason))?;
        places.extend(place.map(|(begin, end)| (begin, end, name)));
    }
    places.sort();
    let mut free = 0;
    for (begin, end, name) in places {
        if begin != free {
            return Err(Error::tensor(path, shown(&name), "overlaps another tensor, or follows a hole in the data"));
        }
        free = end;
    }
    Ok(())
}

/// The crate's `TensorInfo`, without room for fields that it would ignore.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl Entry {
    /// Where its data begin and end.
    fn check(&self, data_length: usize) -> Result<(usize, usize), String> {
        let Entry { dtype, shape, data_offsets: (begin, end) } = self;
        if shape.len() > MAX_DIMENSIONS {
            return Err(format!("{} dimensions are over the limit of {MAX_DIMENSIONS}", shape.len()));
        }
        // Without zeros, which would hide the overflow of the others: strides are products of the others.
        let bits = shape.iter().try_fold(dtype.bitsize(), |n, d| n.checked_mul((*d).max(1)));
        let bits = bits.ok_or_else(|| format!("shape {shape:?} has more elements than can be addressed"))?;
        if begin > end {
            return Err(format!("data offsets {begin}..{end} run backwards"));
        }
        if *end > data_length {
            return Err(format!(
                "data offsets {begin}..{end} are out of range: the file holds {data_length} bytes of data"
            ));
        }
        let bytes = if shape.contains(&0) { 0 } else { bits / 8 };
        if end - begin != bytes {
            return Err(format!("{dtype} of shape {shape:?} needs {bytes} bytes, but has {}", end - begin));
        }
        Ok((*begin, *end))
    }
}

/// A JSON object whose keys must differ: serde's own maps keep the last of two equal keys without a word.
pub(super) struct UniqueMap<V>(pub BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueMapVisitor(PhantomData)).map(UniqueMap)
    }
}

struct UniqueMapVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for UniqueMapVisitor<V> {
    type Value = BTreeMap<String, V>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some((key, value)) = map.next_entry::<String, V>()? {
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
