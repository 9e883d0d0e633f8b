//! Kernels that stand in for langevin's own, so that somebody can try one without building anything.

use super::{Kernel, PtxFile};
use crate::{Error, Result};
use std::path::Path;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};

struct Replacement {
    kernel: String,
    file: &'static str,
    text: &'static str,
    is_ptx: bool,
    used: AtomicBool,
}

static REPLACED: RwLock<Vec<Replacement>> = RwLock::new(Vec::new());

/// From now on the process runs the module in a file, `.ptx` or `.wgsl`, wherever it would run its own module of that kernel. Entries,
/// parameters, constants and grids stay as they are, so the file must have the same.
///
/// # Errors
/// [`Error::Io`] for a file that cannot be read, [`Error::Invalid`] for another kind of file.
pub fn replace_kernel(kernel: &str, path: &Path) -> Result<()> {
    let is_ptx = match path.extension().and_then(|e| e.to_str()) {
        Some("ptx") => true,
        Some("wgsl") => false,
        _ => return Err(Error::invalid("--replace", format!("{} ends neither in .ptx nor in .wgsl", path.display()))),
    };
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    // They live as long as the process, as what is built in does.
    let leak = |text: String| &*Box::leak(text.into_boxed_str());
    let (file, text) = (leak(path.display().to_string()), leak(text));
    let replacement = Replacement { kernel: kernel.into(), file, text, is_ptx, used: AtomicBool::new(false) };
    REPLACED.write().unwrap_or_else(|e| e.into_inner()).push(replacement);
    Ok(())
}

/// The first replaced kernel that no program has had.
pub fn unused_replacement() -> Option<String> {
    let replaced = REPLACED.read().unwrap_or_else(|e| e.into_inner());
    replaced.iter().find(|r| !r.used.load(Ordering::Relaxed)).map(|r| r.kernel.clone())
}

impl Kernel {
    /// What runs in its place.
    pub(crate) fn replaced(mut self) -> Kernel {
        let replaced = REPLACED.read().unwrap_or_else(|e| e.into_inner());
        let name = self.name();
        for r in replaced.iter().filter(|r| r.kernel == name) {
            match &mut self {
                Kernel::Ptx(ptx) if r.is_ptx => ptx.file = PtxFile { folder: "", name: r.file, text: r.text },
                Kernel::Wgsl(shader) if !r.is_ptx => shader.source = r.text,
                _ => continue,
            }
            r.used.store(true, Ordering::Relaxed);
        }
        self
    }
}
