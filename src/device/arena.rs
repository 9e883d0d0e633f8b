//! One allocation that everything of a run lives in.

use crate::graph::Region;
use crate::{Error, Result};
use memmap2::{MmapMut, MmapOptions};

/// Arena offsets are multiples of it: what WebGPU asks of bindings at most. Kernels may rely on it, but for views inside of
/// a buffer.
pub const ALIGN: usize = 256;

/// The arena of the CPU device: anonymous pages, zero until touched.
#[derive(Debug)]
pub struct Arena {
    map: Option<MmapMut>,
    bytes: usize,
}

impl Arena {
    /// Reserves `bytes`; pages are only taken when written.
    pub fn new(bytes: usize) -> Result<Arena> {
        let failed = |e: std::io::Error| Error::Device {
            device: "cpu",
            reason: format!("the arena needs {:.1} MiB: {e}", bytes as f64 / 1048576.0),
        };
        if bytes == 0 {
            return Ok(Arena { map: None, bytes });
        }
        let map = MmapOptions::new().len(bytes).map_anon().map_err(failed)?;
        // Fewer TLB misses on large weights; only a hint, so its failure changes nothing but speed.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Arena { map: Some(map), bytes })
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The region at `offset`, or an error if it does not lie inside.
    pub fn region(&mut self, offset: usize, bytes: usize) -> Result<Region> {
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            let reason = format!("bytes {offset}+{bytes} lie outside of an arena of {}", self.bytes);
            return Err(Error::Verify { pass: "memory", reason });
        }
        let base =
            self.map.as_mut().map_or(std::ptr::NonNull::<u64>::dangling().as_ptr() as *mut u8, |m| m.as_mut_ptr());
        // SAFETY: checked above to lie inside the mapping.
        Ok(Region { ptr: unsafe { base.add(offset) }, bytes })
    }

    /// Copies bytes; the two places may overlap.
    pub fn copy(&mut self, from: usize, to: usize, bytes: usize) -> Result<()> {
        let (from, to) = (self.region(from, bytes)?, self.region(to, bytes)?);
        // SAFETY: both lie in the arena; they may overlap, which `copy` allows.
        unsafe { std::ptr::copy(from.ptr, to.ptr, bytes) };
        Ok(())
    }

    /// Numbers at `offset`.
    pub fn slice_mut<T: bytemuck::Pod>(&mut self, offset: usize, elements: usize) -> Result<&mut [T]> {
        let r = self.region(offset, elements * size_of::<T>())?;
        // SAFETY: inside the mapping, aligned by the planner, and borrowed from `self` for as long as the slice lives.
        Ok(unsafe { std::slice::from_raw_parts_mut(r.ptr as *mut T, elements) })
    }
}
