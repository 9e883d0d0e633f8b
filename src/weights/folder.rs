//! A model's weights: one safetensors file, the shards that an index lists, or bytes inside the program.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::header::{UniqueMap, shown};
use super::write::is_any_shard_name;
use super::{Header, MAX_HEADER_BYTES, TensorInfo, convert};
use crate::files::Bytes;
use crate::{Error, Result};

/// File names of a model folder, best first: full precision before half, one file before shards.
const KNOWN_FILES: [&str; 10] = [
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.safetensors.index.fp16.json",
    "model.safetensors.index.fp16.json",
    "diffusion_pytorch_model.fp16.safetensors.index.json",
    "model.fp16.safetensors.index.json",
];
/// Endings of pickled checkpoints, which can run any code when loaded and are therefore not read.
const PICKLES: [&str; 4] = ["bin", "ckpt", "pt", "pth"];

/// The tensors of a model, read on demand from mapped files.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    files: Vec<TensorFile>,
    tensors: BTreeMap<String, Location>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug)]
struct TensorFile {
    path: PathBuf,
    bytes: Bytes,
}

#[derive(Debug)]
struct Location {
    file: usize,
    info: TensorInfo,
    range: Range<usize>,
}

impl Weights {
    /// Opens a `.safetensors` file, an index of shards (`….safetensors.index.json`), or a model folder that holds
    /// either.
    ///
    /// In a folder, the usual diffusers and transformers names come first, an `fp16` variant is taken only where
    /// there is nothing better, and any other name is fine if it is the only one.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = if path.is_dir() { find_in_folder(path)? } else { path.to_owned() };
        match file.extension() {
            Some(extension) if extension == "json" => Self::open_sharded(&file),
            Some(extension) if PICKLES.iter().any(|p| extension == *p) => Err(pickle(&file)),
            _ => Self::from_file(&file, Bytes::open(&file)?),
        }
    }

    /// Weights that are part of the program.
    pub fn from_bytes(bytes: &'static [u8]) -> Result<Self> {
        Self::from_file(Path::new("<embedded weights>"), Bytes::Static(bytes))
    }

    fn from_file(path: &Path, bytes: Bytes) -> Result<Self> {
        let mut weights = Self::empty(path);
        let header = Header::parse(path, &bytes)?;
        weights.files.push(TensorFile { path: path.to_owned(), bytes });
        weights.metadata = header.metadata;
        let located = header.tensors.into_iter().map(|(name, (info, range))| (name, Location { file: 0, info, range }));
        weights.tensors.extend(located);
        Ok(weights)
    }

    fn open_sharded(path: &Path) -> Result<Self> {
        let index = ShardIndex::parse(path, &Bytes::open(path)?)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut weights = Self::empty(path);
        for shard in index.shards() {
            weights.add_shard(path, &index, folder, shard)?;
        }
        match index.weight_map.iter().find(|(name, _)| !weights.tensors.contains_key(*name)) {
            Some((name, shard)) => Err(Error::tensor(
                path,
                shown(name),
                format!("is not in `{}`, where the index says it is", shown(shard)),
            )),
            None => Ok(weights),
        }
    }

    /// Adds what a shard holds, except for tensors that the index expects in another shard.
    fn add_shard(&mut self, index_path: &Path, index: &ShardIndex, folder: &Path, shard: &str) -> Result<()> {
        let path = folder.join(shard);
        if !path.is_file() {
            return Err(Error::format(index_path, format!("the shard `{}` is missing", shown(shard))));
        }
        let bytes = Bytes::open(&path)?;
        let header = Header::parse(&path, &bytes)?;
        let file = self.files.len();
        self.metadata.extend(header.metadata);
        for (name, (info, range)) in header.tensors {
            if index.weight_map.get(&name).is_some_and(|expected| expected != shard) {
                continue;
            }
            if let Some(other) = self.tensors.get(&name) {
                let other = self.files[other.file].path.display();
                return Err(Error::tensor(
                    path,
                    shown(&name),
                    format!("is in `{other}` too, and the index lists neither"),
                ));
            }
            self.tensors.insert(name, Location { file, info, range });
        }
        self.files.push(TensorFile { path, bytes });
        Ok(())
    }

    fn empty(path: &Path) -> Self {
        Weights { path: path.to_owned(), files: Vec::new(), tensors: BTreeMap::new(), metadata: BTreeMap::new() }
    }

    /// The file, or the index of the shards, that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Dtype and shape of a tensor, if there is one of that name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|location| &location.info)
    }

    /// The files' free-form notes.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Bytes of all tensors as stored.
    pub fn byte_count(&self) -> usize {
        self.tensors.values().map(|location| location.range.len()).sum()
    }

    /// A tensor's bytes as stored: little-endian, in row-major order, aligned to nothing.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        let location = self.locate(name)?;
        Ok(&self.files[location.file].bytes[location.range.clone()])
    }

    /// Reads a tensor of any dtype as f32 into `out`, which must have as many elements as the tensor.
    pub fn read_f32_into(&self, name: &str, out: &mut [f32]) -> Result<()> {
        let location = self.locate(name)?;
        let count = location.info.element_count();
        if count != out.len() {
            let reason = format!("shape {:?} has {count} elements, but {} are wanted", location.info.shape, out.len());
            return Err(Error::tensor(self.path_of(location), name, reason));
        }
        convert::to_f32(location.info.dtype, self.bytes(name)?, out)
            .map_err(|reason| Error::tensor(self.path_of(location), name, reason))
    }

    /// Reads a tensor of any dtype as f32.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let mut values = self.buffer(name, 0.0)?;
        self.read_f32_into(name, &mut values)?;
        Ok(values)
    }

    /// Reads a tensor of an integer dtype.
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>> {
        let mut values = self.buffer(name, 0)?;
        let location = self.locate(name)?;
        convert::to_i64(location.info.dtype, self.bytes(name)?, &mut values)
            .map_err(|reason| Error::tensor(self.path_of(location), name, reason))?;
        Ok(values)
    }

    /// CRC-32 of all names and bytes, to find out whether two files hold the same weights.
    pub fn checksum(&self) -> Result<u32> {
        let mut crc = flate2::Crc::new();
        for name in self.names() {
            crc.update(name.as_bytes());
            crc.update(self.bytes(name)?);
            self.release(name);
        }
        Ok(crc.sum())
    }

    /// Lets the system take back the memory behind a tensor that was copied elsewhere, so that file and copy are not
    /// both resident. The tensor can still be read again. Unknown names are ignored: there is nothing to release.
    pub fn release(&self, name: &str) {
        if let Some(location) = self.tensors.get(name) {
            self.files[location.file].bytes.release(location.range.clone());
        }
    }

    fn locate(&self, name: &str) -> Result<&Location> {
        self.tensors.get(name).ok_or_else(|| Error::tensor(&self.path, name, "is not in the file"))
    }

    fn path_of(&self, location: &Location) -> &Path {
        &self.files[location.file].path
    }

    /// Elements for a tensor; the count was checked against the file's length, but an f8 file may be huge on its own.
    fn buffer<T: Clone>(&self, name: &str, zero: T) -> Result<Vec<T>> {
        let location = self.locate(name)?;
        let count = location.info.element_count();
        let mut values = Vec::new();
        values
            .try_reserve_exact(count)
            .map_err(|_| Error::tensor(self.path_of(location), name, format!("no memory for its {count} elements")))?;
        values.resize(count, zero);
        Ok(values)
    }
}

/// The index of a model that is split over several files.
#[derive(Clone, Debug)]
pub struct ShardIndex {
    /// Which shard holds each tensor: tensor name → name of a file beside the index.
    pub weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// Reads and checks an index; `path` is only used to name the file in errors.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Raw {
            weight_map: UniqueMap<String>,
        }
        if json.len() > MAX_HEADER_BYTES {
            let reason = format!("an index of {} bytes is over the limit of {MAX_HEADER_BYTES}", json.len());
            return Err(Error::format(path, reason));
        }
        let raw: Raw = serde_json::from_slice(json).map_err(|e| Error::format(path, format!("bad index: {e}")))?;
        let weight_map = raw.weight_map.0;
        if weight_map.is_empty() {
            return Err(Error::format(path, "bad index: `weight_map` is empty"));
        }
        for (name, shard) in &weight_map {
            if !is_plain_file_name(shard) {
                let reason = format!("the shard `{}` must be the name of a file beside the index", shown(shard));
                return Err(Error::tensor(path, shown(name), reason));
            }
        }
        Ok(ShardIndex { weight_map })
    }

    /// The names of the shards, each once, sorted.
    pub fn shards(&self) -> impl Iterator<Item = &str> {
        let names: std::collections::BTreeSet<_> = self.weight_map.values().map(String::as_str).collect();
        names.into_iter()
    }
}

/// Whether joining this name to a folder stays in that folder, on every system.
fn is_plain_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let single = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    single && !name.contains(['/', '\\', ':', '\0'])
}

fn find_in_folder(folder: &Path) -> Result<PathBuf> {
    if let Some(known) = KNOWN_FILES.iter().map(|name| folder.join(name)).find(|path| path.is_file()) {
        return Ok(known);
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let entry = entry.map_err(|e| Error::io(folder, e))?;
        // A shard without its index is a part of a model: the rest was never written, or has been lost.
        names.extend(entry.file_name().into_string().ok().filter(|name| !is_any_shard_name(name)));
    }
    for ending in [".safetensors.index.json", ".safetensors"] {
        match only(&names, ending) {
            Ok(Some(name)) => return Ok(folder.join(name)),
            Ok(None) => {}
            Err(many) => {
                let reason = format!("holds several models, none with a usual name ({many}): give the file");
                return Err(Error::format(folder, reason));
            }
        }
    }
    if let Some(name) = names.iter().find(|n| PICKLES.iter().any(|p| n.ends_with(&format!(".{p}")))) {
        return Err(pickle(&folder.join(name)));
    }
    Err(Error::format(
        folder,
        format!("no weights here: looked for {} and any other *.safetensors", KNOWN_FILES.join(", ")),
    ))
}

/// The one name with this ending; all of them, for the error message, if there are several.
fn only<'a>(names: &'a [String], ending: &str) -> Result<Option<&'a str>, String> {
    let mut found: Vec<&str> = names.iter().map(String::as_str).filter(|n| n.ends_with(ending)).collect();
    found.sort_unstable();
    match found[..] {
        [] => Ok(None),
        [name] => Ok(Some(name)),
        _ => Err(found.iter().take(4).copied().collect::<Vec<_>>().join(", ")),
    }
}

fn pickle(path: &Path) -> Error {
    let reason = "pickled checkpoints can run any code when loaded; convert it to safetensors first";
    Error::unsupported(path.display().to_string(), reason)
}
