//! A reader for zip archives of images: stored or deflated entries, zip64, over bytes in memory.
//!
//! It is stricter than an unpacker: entries must not share bytes (the trick of zip bombs), must not be encrypted, and
//! must unpack to exactly the size and checksum that the directory declares.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use super::decode::{Entry, decode_all, is_image_name};
use super::{Dataset, DatasetOptions, labels};
use crate::weights::shown;
use crate::{Error, Result};

/// Most bytes of one unpacked image file.
const MAX_ENTRY_BYTES: usize = 64 << 20;
const END_SIZE: usize = 22;
const CENTRAL_SIZE: usize = 46;
const LOCAL_SIZE: usize = 30;

/// Reads the images and labels of an archive.
pub(super) fn load(path: &Path, bytes: &[u8], options: &DatasetOptions) -> Result<Dataset> {
    let archive = Archive::parse(bytes).map_err(|reason| Error::format(path, reason))?;
    let mut images: Vec<ZipEntry> = Vec::new();
    let mut json = None;
    for record in &archive.records {
        let entry = ZipEntry { archive: &archive, record, limit: MAX_ENTRY_BYTES };
        if record.name == labels::FILE_NAME {
            json = Some(ZipEntry { limit: labels::MAX_BYTES, ..entry });
        } else if is_image_name(&record.name) {
            images.push(entry);
        }
    }
    // The order that EDM's loader uses.
    images.sort_by(|a, b| a.record.name.cmp(&b.record.name));
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

/// An entry as the central directory describes it.
#[derive(Debug)]
struct Record {
    name: String,
    flags: u16,
    method: u16,
    crc: u32,
    packed: u64,
    unpacked: u64,
    /// Where the entry's own header begins.
    offset: u64,
}

struct Archive<'a> {
    bytes: &'a [u8],
    records: Vec<Record>,
    /// Where the central directory begins, and so the entries end.
    directory: usize,
}

struct ZipEntry<'a> {
    archive: &'a Archive<'a>,
    record: &'a Record,
    limit: usize,
}

impl Entry for ZipEntry<'_> {
    fn name(&self) -> &str {
        &self.record.name
    }

    fn read(&self) -> Result<Cow<'_, [u8]>, String> {
        let record = self.record;
        if record.flags & 1 != 0 {
            return Err("is encrypted".into());
        }
        if record.unpacked > self.limit as u64 {
            return Err(format!("unpacks to {} bytes, over the limit of {}", record.unpacked, self.limit));
        }
        let packed = self.archive.packed_bytes(record)?;
        let unpacked = match record.method {
            0 => Cow::Borrowed(packed),
            8 => Cow::Owned(inflate(packed, record.unpacked as usize)?),
            method => return Err(format!("compression method {method} is not supported, only stored and deflate")),
        };
        if unpacked.len() as u64 != record.unpacked {
            return Err(format!("unpacks to {} bytes, but declares {}", unpacked.len(), record.unpacked));
        }
        let mut crc = flate2::Crc::new();
        crc.update(&unpacked);
        if crc.sum() != record.crc {
            return Err(format!("checksum {:08x} differs from the declared {:08x}", crc.sum(), record.crc));
        }
        Ok(unpacked)
    }
}

/// Unpacks at most one byte more than declared, enough for the caller to see that there is too much.
fn inflate(packed: &[u8], declared: usize) -> Result<Vec<u8>, String> {
    let mut unpacked = Vec::new();
    let mut reader = flate2::read::DeflateDecoder::new(packed).take(declared as u64 + 1);
    reader.read_to_end(&mut unpacked).map_err(|e| format!("broken compressed data: {e}"))?;
    if unpacked.len() > declared {
        return Err(format!("unpacks to more than the declared {declared} bytes"));
    }
    Ok(unpacked)
}

impl<'a> Archive<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let (count, directory) = find_directory(bytes)?;
        let records = parse_directory(&bytes[directory.clone()], count)?;
        let archive = Archive { bytes, records, directory: directory.start };
        archive.check_names()?;
        archive.check_overlaps()?;
        Ok(archive)
    }

    fn check_names(&self) -> Result<(), String> {
        let mut seen = HashMap::new();
        match self.records.iter().find(|r| seen.insert(&r.name, ()).is_some()) {
            Some(record) => Err(format!("entry `{}` appears twice", shown(&record.name))),
            None => Ok(()),
        }
    }

    /// Each entry must end before the next begins, and the last before the directory.
    fn check_overlaps(&self) -> Result<(), String> {
        let mut sorted: Vec<&Record> = self.records.iter().collect();
        sorted.sort_by_key(|r| r.offset);
        for (i, record) in sorted.iter().enumerate() {
            let least = (LOCAL_SIZE + record.name.len()) as u64;
            let end = record.offset.checked_add(least).and_then(|n| n.checked_add(record.packed));
            let next = sorted.get(i + 1).map_or(self.directory as u64, |next| next.offset);
            if end.is_none_or(|end| end > next) {
                let name = shown(&record.name);
                return Err(format!("entry `{name}` does not end before byte {next}, where the next part begins"));
            }
        }
        Ok(())
    }

    /// The packed bytes of an entry, found behind its own header.
    fn packed_bytes(&self, record: &Record) -> Result<&'a [u8], String> {
        let find = || {
            let start = usize::try_from(record.offset).ok()?;
            let header = self.bytes.get(start..start.checked_add(LOCAL_SIZE)?)?;
            if !header.starts_with(b"PK\x03\x04") {
                return None;
            }
            let (name, extra) = (usize::from(u16_at(header, 26)?), usize::from(u16_at(header, 28)?));
            let data = start.checked_add(LOCAL_SIZE + name + extra)?;
            let end = data.checked_add(usize::try_from(record.packed).ok()?)?;
            (end <= self.directory).then(|| self.bytes.get(data..end))?
        };
        find().ok_or_else(|| format!("its data is not at byte {} where the directory says it is", record.offset))
    }
}

/// The number of entries and the bytes of the central directory.
fn find_directory(bytes: &[u8]) -> Result<(u64, Range<usize>), String> {
    let end = find_end(bytes).ok_or("not a complete zip: its end record is missing; cut off?")?;
    let (count, size, offset) = end_record(bytes, end).ok_or("broken zip: bad end record")?;
    let range = usize::try_from(offset).ok().and_then(|start| {
        let stop = start.checked_add(usize::try_from(size).ok()?)?;
        (stop <= end).then_some(start..stop)
    });
    match range {
        Some(range) => Ok((count, range)),
        None => Err(format!("broken zip: its directory, {size} bytes at {offset}, lies outside the file")),
    }
}

/// The end record is followed by nothing but its comment, of up to 64 KiB.
fn find_end(bytes: &[u8]) -> Option<usize> {
    let last = bytes.len().checked_sub(END_SIZE)?;
    let first = last.saturating_sub(usize::from(u16::MAX));
    (first..=last).rev().find(|at| {
        let comment = u16_at(bytes, at + 20).map(usize::from);
        bytes[*at..].starts_with(b"PK\x05\x06") && comment == Some(bytes.len() - at - END_SIZE)
    })
}

/// Count of entries, size and offset of the directory; from the zip64 record where the plain one is saturated.
fn end_record(bytes: &[u8], end: usize) -> Option<(u64, u64, u64)> {
    let plain = (u16_at(bytes, end + 10)?, u32_at(bytes, end + 12)?, u32_at(bytes, end + 16)?);
    if plain.0 != u16::MAX && plain.1 != u32::MAX && plain.2 != u32::MAX {
        return Some((plain.0.into(), plain.1.into(), plain.2.into()));
    }
    let locator = end.checked_sub(20).filter(|at| bytes[*at..].starts_with(b"PK\x06\x07"));
    let Some(locator) = locator else {
        // Exactly 65,535 entries need no zip64.
        return (plain.1 != u32::MAX && plain.2 != u32::MAX).then_some((
            plain.0.into(),
            plain.1.into(),
            plain.2.into(),
        ));
    };
    let record = usize::try_from(u64_at(bytes, locator + 8)?).ok()?;
    if !bytes.get(record..)?.starts_with(b"PK\x06\x06") {
        return None;
    }
    let at = |offset| u64_at(bytes, record.checked_add(offset)?);
    Some((at(32)?, at(40)?, at(48)?))
}

fn parse_directory(mut rest: &[u8], count: u64) -> Result<Vec<Record>, String> {
    let mut records = Vec::new();
    while !rest.is_empty() {
        let (record, size) =
            parse_record(rest).map_err(|reason| format!("broken zip: directory entry {}: {reason}", records.len()))?;
        records.push(record);
        rest = &rest[size..];
    }
    if records.len() as u64 != count {
        return Err(format!("broken zip: {count} entries declared, {} found", records.len()));
    }
    Ok(records)
}

/// One record of the directory, and its length there.
fn parse_record(bytes: &[u8]) -> Result<(Record, usize), String> {
    if !bytes.starts_with(b"PK\x01\x02") {
        return Err("bad signature".into());
    }
    let lengths = [28, 30, 32].map(|at| u16_at(bytes, at).map(usize::from));
    let [Some(name), Some(extra), Some(comment)] = lengths else { return Err("cut off".into()) };
    let size = CENTRAL_SIZE + name + extra + comment;
    let Some(record) = bytes.get(..size) else { return Err("cut off".into()) };
    let (name, rest) = record[CENTRAL_SIZE..].split_at(name);
    let name = std::str::from_utf8(name).map_err(|_| format!("name `{}` is not UTF-8", name.escape_ascii()))?;
    let parsed = read_fields(record, &rest[..extra], name);
    Ok((parsed.ok_or_else(|| format!("`{}` has a bad zip64 extension", shown(name)))?, size))
}

fn read_fields(record: &[u8], extra: &[u8], name: &str) -> Option<Record> {
    let (unpacked, packed, offset) = (u32_at(record, 24)?, u32_at(record, 20)?, u32_at(record, 42)?);
    // The extension holds, in this order, only the fields that are saturated.
    let mut wide = zip64_extension(extra).unwrap_or(&[]);
    let mut widen = |narrow: u32| {
        if narrow != u32::MAX {
            return Some(u64::from(narrow));
        }
        let (value, rest) = wide.split_first_chunk::<8>()?;
        wide = rest;
        Some(u64::from_le_bytes(*value))
    };
    Some(Record {
        name: name.to_owned(),
        flags: u16_at(record, 8)?,
        method: u16_at(record, 10)?,
        crc: u32_at(record, 16)?,
        unpacked: widen(unpacked)?,
        packed: widen(packed)?,
        offset: widen(offset)?,
    })
}

/// The extra field with id 1.
fn zip64_extension(mut extra: &[u8]) -> Option<&[u8]> {
    loop {
        let (id, size) = (u16_at(extra, 0)?, usize::from(u16_at(extra, 2)?));
        let field = extra.get(4..4 + size)?;
        if id == 1 {
            return Some(field);
        }
        extra = &extra[4 + size..];
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}
