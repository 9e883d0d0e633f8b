//! Writing safetensors: the header is known before the data, so tensors can be written one at a time, in any order.
//!
//! The `safetensors` crate cannot do this: it wants the bytes of all tensors in memory at once. Its header is not used
//! either, because the notes in it come in a random order, and equal models should be equal files.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::header::shown;
use super::{Dtype, MAX_HEADER_BYTES, convert};
use crate::files::{AtomicFile, remove_if_present, write_atomic};
use crate::{Error, Result};

/// Elements that are converted and written at a time.
const BLOCK: usize = 1 << 16;

/// What will be written: a tensor's name, dtype in the file, and shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name, unique in the model.
    pub name: String,
    /// F32, F16, BF16 or I64.
    pub dtype: Dtype,
    /// The dimensions, in the file's order.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A spec from its parts.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: impl Into<Vec<usize>>) -> Self {
        TensorSpec { name: name.into(), dtype, shape: shape.into() }
    }

    fn element_count(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))
    }
}

/// How to write a model.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// Notes in the header. PyTorch's loaders want `{"format": "pt"}`, the default.
    pub metadata: BTreeMap<String, String>,
    /// Data bytes after which a new shard begins; diffusers' 10 GB by default.
    pub max_shard_bytes: u64,
}

impl Default for WriteOptions {
    fn default() -> Self {
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        WriteOptions { metadata, max_shard_bytes: 10_000_000_000 }
    }
}

/// Writes a model's tensors, asking for the values of one tensor at a time.
///
/// `fill` gets a zeroed buffer with room for the tensor's elements. See [`Writer`] for how files take their places.
pub fn write(
    path: impl AsRef<Path>,
    specs: Vec<TensorSpec>,
    options: &WriteOptions,
    mut fill: impl FnMut(&TensorSpec, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let mut writer = Writer::create(path, specs.clone(), options)?;
    let mut values = Vec::new();
    for spec in &specs {
        values.clear();
        values.resize(spec.element_count().unwrap_or(0), 0.0);
        fill(spec, &mut values)?;
        writer.put_f32(&spec.name, &values)?;
    }
    writer.finish()
}

/// A model that is being written: `x.safetensors`, or, above the shard size, `x-00001-of-0000n.safetensors` and so on
/// with `x.safetensors.index.json`.
///
/// Tensors are put in any order. Nothing is visible under the final names before [`Writer::finish`]; dropping the
/// writer earlier leaves no trace. A single file replaces an older one atomically. Where old and new shards share
/// names, the old index goes first: a crash in between leaves a folder without a model, never a mixture of two.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    shards: Vec<AtomicFile>,
    slots: HashMap<String, Slot>,
    scratch: Vec<u8>,
}

#[derive(Debug)]
struct Slot {
    shard: usize,
    offset: u64,
    spec: TensorSpec,
    written: bool,
}

impl Writer {
    /// Starts writing to `path`, which must end in `.safetensors`, the tensors of `specs`.
    pub fn create(path: impl AsRef<Path>, specs: Vec<TensorSpec>, options: &WriteOptions) -> Result<Self> {
        let path = path.as_ref();
        if path.extension().is_none_or(|e| e != "safetensors") || path.file_stem().and_then(|s| s.to_str()).is_none() {
            return Err(Error::invalid("path", format!("`{}` must be a UTF-8 name.safetensors", path.display())));
        }
        if options.max_shard_bytes == 0 {
            return Err(Error::invalid("max_shard_bytes", "must be more than 0"));
        }
        check_specs(path, &specs)?;
        let mut writer =
            Writer { path: path.to_owned(), shards: Vec::new(), slots: HashMap::new(), scratch: Vec::new() };
        let groups = split(specs, options.max_shard_bytes);
        let count = groups.len();
        for (index, group) in groups.into_iter().enumerate() {
            let shard_path = if count == 1 { path.to_owned() } else { shard_path(path, index, count) };
            writer.start_shard(&shard_path, group, options)?;
        }
        Ok(writer)
    }

    /// Creates a shard's temporary file and writes its header.
    fn start_shard(&mut self, path: &Path, mut specs: Vec<TensorSpec>, options: &WriteOptions) -> Result<()> {
        // Widest first keeps every tensor aligned for readers that use the map in place.
        specs.sort_by_key(|spec| std::cmp::Reverse(spec.dtype.bitsize()));
        let header = header_bytes(path, &specs, &options.metadata)?;
        let mut file = AtomicFile::create(path)?;
        file.write_all(&header).map_err(|e| Error::io(path, e))?;
        let mut offset = header.len() as u64;
        for spec in specs {
            let bytes = byte_count(&spec).unwrap_or(0);
            self.slots.insert(spec.name.clone(), Slot { shard: self.shards.len(), offset, spec, written: false });
            offset += bytes;
        }
        self.shards.push(file);
        Ok(())
    }

    /// Writes a tensor's values, converted to the dtype of its spec.
    pub fn put_f32(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let dtype = self.begin(name, values.len())?;
        for block in values.chunks(BLOCK) {
            self.scratch.clear();
            convert::from_f32(dtype, block, &mut self.scratch).map_err(|r| Error::tensor(&self.path, name, r))?;
            self.write_scratch(name)?;
        }
        self.end(name);
        Ok(())
    }

    /// Writes an I64 tensor's values exactly.
    pub fn put_i64(&mut self, name: &str, values: &[i64]) -> Result<()> {
        let dtype = self.begin(name, values.len())?;
        if dtype != Dtype::I64 {
            return Err(Error::tensor(&self.path, name, format!("was declared {dtype}, but i64 values were given")));
        }
        for block in values.chunks(BLOCK) {
            self.scratch.clear();
            self.scratch.extend(block.iter().flat_map(|v| v.to_le_bytes()));
            self.write_scratch(name)?;
        }
        self.end(name);
        Ok(())
    }

    /// Checks that every tensor was written, and puts the files in their places.
    pub fn finish(mut self) -> Result<()> {
        if let Some(name) = self.slots.values().filter(|s| !s.written).map(|s| &s.spec.name).min() {
            return Err(Error::tensor(&self.path, name, "was declared, but never written"));
        }
        let index_path = index_path(&self.path);
        let shards = std::mem::take(&mut self.shards);
        let kept: Vec<PathBuf> = shards.iter().map(|file| file.path().to_owned()).collect();
        if kept.len() == 1 {
            for file in shards {
                file.commit()?;
            }
            remove_if_present(&index_path)?;
        } else {
            // All data is on the disk before the old model is touched.
            shards.iter().try_for_each(AtomicFile::sync)?;
            remove_if_present(&index_path)?;
            shards.into_iter().try_for_each(AtomicFile::commit)?;
            write_atomic(&index_path, &self.index_json(&kept)?)?;
            remove_if_present(&self.path)?;
        }
        remove_stale_shards(&self.path, &kept)
    }

    /// Finds the tensor, checks the number of values, and moves to its place in the file.
    fn begin(&mut self, name: &str, count: usize) -> Result<Dtype> {
        let Some(slot) = self.slots.get(name) else {
            return Err(Error::tensor(&self.path, name, "was not declared before writing"));
        };
        if slot.written {
            return Err(Error::tensor(&self.path, name, "was written twice"));
        }
        if slot.spec.element_count() != Some(count) {
            let reason = format!("shape {:?} does not have {count} elements", slot.spec.shape);
            return Err(Error::tensor(&self.path, name, reason));
        }
        let file = &mut self.shards[slot.shard];
        file.seek(SeekFrom::Start(slot.offset)).map_err(|e| Error::io(&self.path, e))?;
        Ok(slot.spec.dtype)
    }

    fn write_scratch(&mut self, name: &str) -> Result<()> {
        let Some(slot) = self.slots.get(name) else { return Ok(()) };
        self.shards[slot.shard].write_all(&self.scratch).map_err(|e| Error::io(&self.path, e))
    }

    fn end(&mut self, name: &str) {
        if let Some(slot) = self.slots.get_mut(name) {
            slot.written = true;
        }
    }

    fn index_json(&self, shards: &[PathBuf]) -> Result<Vec<u8>> {
        let names: Vec<_> = shards.iter().map(|p| p.file_name().unwrap_or_default().to_string_lossy()).collect();
        let total: u64 = self.slots.values().filter_map(|slot| byte_count(&slot.spec)).sum();
        let map: BTreeMap<_, _> = self.slots.iter().map(|(name, slot)| (name, &names[slot.shard])).collect();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        let mut text = serde_json::to_vec_pretty(&index).map_err(|e| Error::format(&self.path, e.to_string()))?;
        text.push(b'\n');
        Ok(text)
    }
}

fn byte_count(spec: &TensorSpec) -> Option<u64> {
    Some(spec.element_count()?.checked_mul(spec.dtype.bitsize())? as u64 / 8)
}

fn check_specs(path: &Path, specs: &[TensorSpec]) -> Result<()> {
    let mut seen = std::collections::HashSet::new();
    let mut total = 0u64;
    for spec in specs {
        let fault = |reason: String| Err(Error::tensor(path, shown(&spec.name), reason));
        if spec.name.is_empty() || spec.name == "__metadata__" {
            return fault("cannot be a tensor's name".into());
        }
        if !seen.insert(&spec.name) {
            return fault("is declared twice".into());
        }
        if !matches!(spec.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::I64) {
            return fault(format!("writing {} is not supported; use F32, F16, BF16 or I64", spec.dtype));
        }
        match byte_count(spec).and_then(|bytes| total.checked_add(bytes)) {
            Some(sum) => total = sum,
            None => return fault(format!("shape {:?} has more elements than can be addressed", spec.shape)),
        }
    }
    Ok(())
}

/// Groups tensors, in their order, into shards of at most `max` bytes; a larger tensor has a shard of its own.
fn split(specs: Vec<TensorSpec>, max: u64) -> Vec<Vec<TensorSpec>> {
    let mut groups = vec![Vec::new()];
    let mut size = 0;
    for spec in specs {
        let bytes = byte_count(&spec).unwrap_or(0);
        if size > 0 && size + bytes > max {
            groups.push(Vec::new());
            size = 0;
        }
        size += bytes;
        if let Some(group) = groups.last_mut() {
            group.push(spec);
        }
    }
    groups
}

/// The length and the JSON, padded with spaces so that the data begin at a multiple of 8.
fn header_bytes(path: &Path, specs: &[TensorSpec], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut entries = Map::new();
    if !metadata.is_empty() {
        entries.insert("__metadata__".into(), json!(metadata));
    }
    let mut offset = 0u64;
    for spec in specs {
        let end = offset + byte_count(spec).unwrap_or(0);
        let entry = json!({ "dtype": spec.dtype, "shape": spec.shape, "data_offsets": [offset, end] });
        entries.insert(spec.name.clone(), entry);
        offset = end;
    }
    let mut json = Value::Object(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    if json.len() > MAX_HEADER_BYTES {
        return Err(Error::format(
            path,
            format!("the header would take {} bytes, over the format's limit", json.len()),
        ));
    }
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    Ok(header)
}

fn shard_path(path: &Path, index: usize, count: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{:05}-of-{count:05}.safetensors", index + 1))
}

fn index_path(path: &Path) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}.safetensors.index.json"))
}

/// Removes the shards of an older save under the same name, which would otherwise lie there for ever.
fn remove_stale_shards(path: &Path, kept: &[PathBuf]) -> Result<()> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let entry = entry.map_err(|e| Error::io(folder, e))?;
        let name = entry.file_name();
        let is_kept = kept.iter().any(|k| k.file_name() == Some(&name));
        if !is_kept && name.to_str().is_some_and(|n| is_shard_name(n, &stem)) {
            remove_if_present(&entry.path())?;
        }
    }
    Ok(())
}

/// Whether a name is `stem-ddddd-of-ddddd.safetensors`.
fn is_shard_name(name: &str, stem: &str) -> bool {
    shard_stem(name) == Some(stem)
}

/// Whether a name is that of a shard of whatever model.
pub(super) fn is_any_shard_name(name: &str) -> bool {
    shard_stem(name).is_some()
}

/// What comes before `-ddddd-of-ddddd.safetensors`.
fn shard_stem(name: &str) -> Option<&str> {
    let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    let (rest, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, index) = rest.rsplit_once('-')?;
    (digits(index) && digits(count)).then_some(stem)
}
