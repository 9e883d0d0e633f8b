//! One allocation on the GPU, and the way there from host memory.

use super::driver::checked;
use super::{Gpu, driver};
use crate::{Error, Result};
use cudarc::driver::sys::{self, CUresult};
use std::ffi::c_void;

/// Most bytes of host memory that the GPU reads and writes directly; more go in pieces.
const STAGING: usize = 64 << 20;

/// An arena in the GPU's memory, zero at first.
#[derive(Debug)]
pub struct Arena {
    gpu: Gpu,
    base: sys::CUdeviceptr,
    bytes: usize,
    staging: Staging,
}

/// Pinned host memory, which the GPU copies at full speed; grown when it is too small.
#[derive(Debug)]
struct Staging {
    at: *mut c_void,
    bytes: usize,
}

// SAFETY: host memory that only its owner touches.
unsafe impl Send for Arena {}

impl Arena {
    /// Reserves `bytes`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with what is free.
    pub fn new(gpu: &Gpu, bytes: usize) -> Result<Arena> {
        gpu.enter()?;
        let mut base = 0;
        // SAFETY: an out parameter.
        let result = unsafe { sys::cuMemAlloc_v2(&mut base, bytes.max(1)) };
        if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let free = gpu.free_bytes()? as f64 / 1048576.0;
            let what = format!("arena ({free:.1} MiB are free)");
            return Err(Error::OutOfMemory { device: "cuda", what, bytes: bytes as u64 });
        }
        checked(result, "allocating the arena")?;
        let arena = Arena { gpu: gpu.clone(), base, bytes, staging: Staging { at: std::ptr::null_mut(), bytes: 0 } };
        // SAFETY: the arena's own bytes.
        unsafe { checked(sys::cuMemsetD8Async(base, 0, bytes, gpu.stream()), "clearing the arena")? };
        Ok(arena)
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of a place.
    ///
    /// # Errors
    /// [`Error::Verify`] if the bytes do not lie inside.
    pub fn at(&self, offset: usize, bytes: usize) -> Result<u64> {
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            let reason = format!("bytes {offset}+{bytes} lie outside of an arena of {}", self.bytes);
            return Err(Error::Verify { pass: "memory", reason });
        }
        Ok(self.base + offset as u64)
    }

    /// Shows `see` bytes, in pieces.
    pub fn look(&mut self, offset: usize, bytes: usize, see: &mut dyn FnMut(&[u8])) -> Result<()> {
        let mut done = 0;
        while done < bytes {
            let count = (bytes - done).min(STAGING);
            let (from, place) = (self.at(offset + done, count)?, self.staging(count)?);
            // SAFETY: both places have `count` bytes; the copy is over when the stream is.
            unsafe {
                checked(
                    sys::cuMemcpyDtoHAsync_v2(place.cast(), from, count, self.gpu.stream()),
                    "copying from the GPU",
                )?;
                self.gpu.wait("what ran before a copy from the GPU")?;
                see(std::slice::from_raw_parts(place, count));
            }
            done += count;
        }
        Ok(())
    }

    /// Has `make` write bytes, all of them.
    pub fn fill(&mut self, offset: usize, bytes: usize, make: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        if bytes == 0 {
            make(&mut []);
            return Ok(());
        }
        let to = self.at(offset, bytes)?;
        if bytes <= STAGING {
            let place = self.staging(bytes)?;
            // SAFETY: the staging memory has so many bytes and is zero or was written; nothing copies from it now.
            make(unsafe { std::slice::from_raw_parts_mut(place, bytes) });
            return self.send(place, to, bytes);
        }
        // Words, so that a caller may see aligned numbers in it.
        let mut whole = vec![0u64; bytes.div_ceil(8)];
        let whole: &mut [u8] = bytemuck::cast_slice_mut(&mut whole);
        make(&mut whole[..bytes]);
        for (i, piece) in whole[..bytes].chunks(STAGING).enumerate() {
            let place = self.staging(piece.len())?;
            // SAFETY: as above.
            unsafe { std::slice::from_raw_parts_mut(place, piece.len()) }.copy_from_slice(piece);
            self.send(place, to + (i * STAGING) as u64, piece.len())?;
        }
        Ok(())
    }

    /// Copies bytes of the arena; the two places may overlap.
    pub fn copy(&mut self, from: usize, to: usize, bytes: usize) -> Result<()> {
        if from.abs_diff(to) < bytes {
            let mut kept = Vec::with_capacity(bytes);
            self.look(from, bytes, &mut |piece| kept.extend_from_slice(piece))?;
            return self.fill(to, bytes, &mut |place| place.copy_from_slice(&kept));
        }
        let (from, to) = (self.at(from, bytes)?, self.at(to, bytes)?);
        self.gpu.copy(from, to, bytes)
    }

    fn send(&self, from: *const u8, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: both places have so many bytes; the copy is over before the host's place is used again.
        unsafe {
            checked(sys::cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, self.gpu.stream()), "copying to the GPU")?;
        }
        self.gpu.wait("what ran before a copy to the GPU")
    }

    /// Pinned memory of at least `bytes`.
    fn staging(&mut self, bytes: usize) -> Result<*mut u8> {
        self.gpu.enter()?;
        if self.staging.bytes < bytes {
            let (mut at, bytes) = (std::ptr::null_mut(), bytes.next_power_of_two().max(1 << 16));
            self.staging.free();
            // SAFETY: an out parameter; nothing uses the old memory any more.
            unsafe {
                checked(sys::cuMemHostAlloc(&mut at, bytes, 0), "pinning host memory")?;
                std::ptr::write_bytes(at.cast::<u8>(), 0, bytes);
            }
            self.staging = Staging { at, bytes };
        }
        Ok(self.staging.at.cast())
    }
}

impl Staging {
    fn free(&mut self) {
        if !self.at.is_null() {
            // SAFETY: allocated by `cuMemHostAlloc`, and every copy is waited for.
            unsafe { sys::cuMemFreeHost(self.at) };
        }
        *self = Staging { at: std::ptr::null_mut(), bytes: 0 };
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.gpu.enter().is_err() {
            return;
        }
        let _ = self.gpu.wait("what ran when an arena went");
        self.staging.free();
        // SAFETY: nothing runs any more.
        unsafe { sys::cuMemFree_v2(self.base) };
    }
}

impl Gpu {
    /// Copies between two places of its memory that do not overlap.
    pub fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: the callers' places are inside of their arenas.
        unsafe { checked(sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream()), "copying on the GPU") }
    }

    /// Waits until all is done; `what` is named if something failed.
    pub fn wait(&self, what: &str) -> Result<()> {
        self.enter()?;
        // SAFETY: the stream lives as long as the GPU.
        unsafe { driver::checked(sys::cuStreamSynchronize(self.stream()), what) }
    }
}
