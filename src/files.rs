//! Files that are mapped rather than read, and files that appear whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// The bytes of a file: mapped into memory, or part of the program.
#[derive(Debug)]
pub enum Bytes {
    /// A read-only map of a file. Truncating the file while it is mapped is undefined for every program that maps it.
    Mapped(memmap2::Mmap),
    /// Bytes that live as long as the program, for example from `include_bytes!`.
    Static(&'static [u8]),
}

impl Bytes {
    /// Maps a regular file; anything else (a folder, a pipe) is an error rather than a wait.
    pub fn open(path: &Path) -> Result<Self> {
        let kind = fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if !kind.is_file() {
            return Err(Error::format(path, "is not a regular file"));
        }
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        // Some systems refuse to map nothing.
        if kind.len() == 0 {
            return Ok(Bytes::Static(&[]));
        }
        // SAFETY: the map is private to this value and only ever read as plain bytes, each check being made on the same
        // map that is read later; the documented contract is that nobody truncates the file meanwhile.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        Ok(Bytes::Mapped(map))
    }

    /// Tells the kernel that the whole pages inside `range` are no longer needed. Reading them again still works.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = self {
            let Some(pages) = whole_pages(map.as_ptr() as usize, range, page_size()) else { return };
            // SAFETY: the map is a read-only, shared map of a file, so dropped pages come back from the file unchanged.
            // Failure only means that the pages stay resident.
            let advice = memmap2::UncheckedAdvice::DontNeed;
            let _ = unsafe { map.unchecked_advise_range(advice, pages.start, pages.len()) };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
        }
    }
}

/// A granularity that is a multiple of the page size of every system this runs on (4, 16 and 64 KiB pages exist).
#[cfg(unix)]
const fn page_size() -> usize {
    64 * 1024
}

/// The part of `range` that covers whole pages only, so that neighbours which share a page keep theirs.
#[cfg(unix)]
fn whole_pages(base: usize, range: Range<usize>, page: usize) -> Option<Range<usize>> {
    let start = (base + range.start).next_multiple_of(page) - base;
    let end = ((base + range.end) / page * page).checked_sub(base)?;
    (start < end).then_some(start..end)
}

/// A file that is written beside its final place and takes that place only in [`AtomicFile::commit`].
///
/// A crash at any moment leaves the old file, or the new one, never half of one. Dropping it without a commit removes
/// the temporary file.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    committed: bool,
}

impl AtomicFile {
    /// Starts a new version of `path`; its folder must exist.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let Some(name) = path.file_name() else {
            return Err(Error::invalid("path", format!("`{}` does not name a file", path.display())));
        };
        if path.is_dir() {
            return Err(Error::invalid("path", format!("`{}` is a folder, not a file", path.display())));
        }
        // A killed process with the same id may have left its temporary files behind: take the next free name.
        loop {
            let temporary = path.with_file_name(temporary_name(name));
            match OpenOptions::new().read(true).write(true).create_new(true).open(&temporary) {
                Ok(file) => return Ok(AtomicFile { file, temporary, path: path.to_owned(), committed: false }),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(Error::io(path, e)),
            }
        }
    }

    /// Where the file will be after the commit.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Flushes the contents to the disk without putting the file in place yet.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io(&self.path, e))
    }

    /// Flushes the file to the disk and puts it in place of whatever was there.
    pub fn commit(mut self) -> Result<()> {
        self.sync()?;
        fs::rename(&self.temporary, &self.path).map_err(|e| Error::io(&self.path, e))?;
        self.committed = true;
        sync_folder(&self.path);
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Writes a whole file atomically.
pub fn write_atomic(path: impl AsRef<Path>, contents: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(&path)?;
    file.write_all(contents).map_err(|e| Error::io(&path, e))?;
    file.commit()
}

/// Removes a file; that it was not there is fine.
pub(crate) fn remove_if_present(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}

fn temporary_name(name: &std::ffi::OsStr) -> std::ffi::OsString {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let unique = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}-{unique}.tmp", std::process::id()));
    temporary
}

/// The rename itself is only safe from a power cut once the folder is on the disk. Not every file system can do this.
fn sync_folder(path: &Path) {
    #[cfg(unix)]
    if let Some(folder) = path.parent() {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let _ = File::open(folder).and_then(|f| f.sync_all());
    }
    #[cfg(not(unix))]
    let _ = path;
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn only_whole_pages_are_released() {
        let base = 0x10000;
        assert_eq!(whole_pages(base, 0..0x8000, 0x1000), Some(0..0x8000));
        assert_eq!(whole_pages(base, 1..0x8000, 0x1000), Some(0x1000..0x8000));
        assert_eq!(whole_pages(base, 1..0x7fff, 0x1000), Some(0x1000..0x7000));
        assert_eq!(whole_pages(base, 1..0x1fff, 0x1000), None);
        assert_eq!(whole_pages(base, 5..5, 0x1000), None);
        assert_eq!(whole_pages(base + 8, 0..0x2000, 0x1000), Some(0xff8..0x1ff8));
    }
}
