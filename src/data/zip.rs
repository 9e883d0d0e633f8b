//! Zip archives of images, unpacked from bytes in memory by the `zip` crate.
//!
//! The crate stops unpacking an entry above its declared size and compares its checksum. Here the declared size has a
//! limit, and an archive whose entries share bytes (the trick of zip bombs), share names or are not all listed is
//! refused. Names are only compared, never opened as files, so one such as `../x.png` does no harm.

use std::borrow::Cow;
use std::io::{Cursor, Read};
use std::path::Path;

use zip::ZipArchive;
use zip::read::{ArchiveOffset, Config, ZipReadOptions};

use super::decode::{Entry, MAX_ENTRY_BYTES, decode_all, is_image_name};
use super::{Dataset, DatasetOptions, labels};
use crate::weights::shown;
use crate::{Error, Result};

type Archive<'a> = ZipArchive<Cursor<&'a [u8]>>;

/// Reads the images and labels of an archive.
pub(super) fn load(path: &Path, bytes: &[u8], options: &DatasetOptions) -> Result<Dataset> {
    let (archive, names) = open(bytes).map_err(|reason| Error::format(path, reason))?;
    let mut json = None;
    let mut images = Vec::new();
    for (index, name) in names.into_iter().enumerate() {
        if name == labels::FILE_NAME {
            json = Some(ZipEntry { archive: &archive, index, name, limit: labels::MAX_BYTES as u64 });
        } else if is_image_name(&name) {
            images.push(ZipEntry { archive: &archive, index, name, limit: MAX_ENTRY_BYTES });
        }
    }
    // The order that EDM's loader uses.
    images.sort_by(|a, b| a.name.cmp(&b.name));
    let names: Vec<&str> = images.iter().map(|entry| entry.name()).collect();
    let labels = match json {
        Some(entry) => {
            let text = entry.read().map_err(|r| Error::format(path, format!("{}: {r}", labels::FILE_NAME)))?;
            labels::parse(path, &text, &names)?
        }
        None => None,
    };
    decode_all(path, &images, labels, options)
}

/// An archive whose directory was compared with what is there, and the names of its entries.
fn open(bytes: &[u8]) -> Result<(Archive<'_>, Vec<String>), String> {
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let mut archive = ZipArchive::with_config(config, Cursor::new(bytes))
        .map_err(|e| format!("not a complete zip, perhaps cut off: {e}"))?;
    if archive.has_duplicate_names() {
        return Err("two entries of the zip have the same name".into());
    }
    let names = archive.file_names().map(|name| name.map(Into::into)).collect::<Result<Vec<String>, _>>();
    let names = names.map_err(|e| e.to_string())?;
    for (index, name) in names.iter().enumerate() {
        let options = ZipReadOptions::new().enforce_header_consistency(true).ignore_encryption_flag(true);
        archive.by_index_with_options(index, options).map_err(|e| format!("entry `{}`: {e}", shown(name)))?;
    }
    // Once more, and whether entries overlap or are missing from the directory.
    archive.validate_header_consistency().map_err(|e| e.to_string())?;
    Ok((archive, names))
}

struct ZipEntry<'a> {
    archive: &'a Archive<'a>,
    index: usize,
    name: String,
    limit: u64,
}

impl Entry for ZipEntry<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self) -> Result<Cow<'_, [u8]>, String> {
        // A cursor for this thread; the directory is shared.
        let mut archive = self.archive.clone();
        let mut file = archive.by_index(self.index).map_err(|e| e.to_string())?;
        let declared = file.size();
        if declared > self.limit {
            return Err(format!("unpacks to {declared} bytes, over the limit of {}", self.limit));
        }
        let mut unpacked = Vec::new();
        file.read_to_end(&mut unpacked).map_err(|e| format!("broken zip entry of {declared} bytes: {e}"))?;
        if unpacked.len() as u64 != declared {
            return Err(format!("unpacks to {} bytes, but declares {declared}", unpacked.len()));
        }
        Ok(unpacked.into())
    }
}
