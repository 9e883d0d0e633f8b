//! A folder of images: with a `dataset.json` (an unpacked EDM zip), or with one folder a class, or without labels. Or a
//! folder of WebDataset shards.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use super::decode::{Entry, decode_all, is_image_name};
use super::{Dataset, DatasetOptions, labels, webdataset};
use crate::files::Bytes;
use crate::{Error, Result};

/// Folders inside folders inside … that are looked into; more is a mistake, or a loop of links.
const MAX_DEPTH: usize = 8;

struct FolderEntry {
    path: PathBuf,
    /// The path below the dataset's folder, with forward slashes.
    name: String,
}

impl Entry for FolderEntry {
    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self) -> Result<Cow<'_, [u8]>, String> {
        fs::read(&self.path).map(Cow::from).map_err(|e| e.to_string())
    }
}

pub(super) fn open(folder: &Path, options: &DatasetOptions) -> Result<Dataset> {
    let (mut entries, mut shards) = (Vec::new(), Vec::new());
    collect(folder, "", 0, &mut |path, name| {
        if is_image_name(&name) {
            entries.push(FolderEntry { path, name });
        } else if webdataset::is_shard_name(&name) {
            shards.push((path, name));
        }
    })?;
    if entries.is_empty() && !shards.is_empty() {
        shards.sort_by(|a, b| a.1.cmp(&b.1));
        return webdataset::load_shards(folder, &shards, options);
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let labels = labels(folder, &entries)?;
    decode_all(folder, &entries, labels, options)
}

fn labels(folder: &Path, entries: &[FolderEntry]) -> Result<Option<Vec<u32>>> {
    let json = folder.join(labels::FILE_NAME);
    if json.is_file() {
        let bytes = Bytes::open(&json)?;
        if bytes.len() > labels::MAX_BYTES {
            return Err(Error::format(
                &json,
                format!("{} bytes are over the limit of {}", bytes.len(), labels::MAX_BYTES),
            ));
        }
        let names: Vec<&str> = entries.iter().map(Entry::name).collect();
        return labels::parse(folder, &bytes, &names);
    }
    Ok(class_folders(entries))
}

/// Classes are numbered in the sorted order of their folders, if every image is in one.
fn class_folders(entries: &[FolderEntry]) -> Option<Vec<u32>> {
    let mut label = 0;
    let mut previous: Option<&str> = None;
    let mut labels = Vec::with_capacity(entries.len());
    for entry in entries {
        let (class, _) = entry.name.split_once('/')?;
        if previous.is_some_and(|p| p != class) {
            label += 1;
        }
        previous = Some(class);
        labels.push(label);
    }
    Some(labels)
}

/// Shows every file below a folder, with its path from there.
fn collect(folder: &Path, prefix: &str, depth: usize, show: &mut dyn FnMut(PathBuf, String)) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::format(folder, format!("folders are nested deeper than {MAX_DEPTH}")));
    }
    for item in fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = item.map_err(|e| Error::io(folder, e))?.path();
        let Some(file) = path.file_name().and_then(|n| n.to_str()) else {
            return Err(Error::format(&path, "its name is not UTF-8"));
        };
        let name = format!("{prefix}{file}");
        if path.is_dir() {
            collect(&path, &format!("{name}/"), depth + 1, show)?;
        } else {
            show(path, name);
        }
    }
    Ok(())
}
