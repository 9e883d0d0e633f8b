//! One arena, in as few buffers as the adapter forces.

use super::Gpu;
use crate::{Error, Result};
use wgpu::{Buffer, BufferUsages};

/// The arena of the wgpu device.
#[derive(Debug)]
pub struct Arena {
    parts: Vec<Part>,
    bytes: usize,
}

/// A buffer that holds the arena's bytes from `start` on.
#[derive(Debug)]
struct Part {
    start: usize,
    bytes: usize,
    buffer: Buffer,
}

impl Arena {
    /// An arena of `bytes`, zero. `cuts`, ascending, are the offsets at which it may go on in another buffer.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if what lies between two cuts is more than a buffer may hold, [`Error::OutOfMemory`].
    pub fn new(gpu: &Gpu, bytes: usize, cuts: &[usize]) -> Result<Arena> {
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        // A binding must not be larger either, but launches may see a part of a buffer.
        let most = gpu.device().limits().max_buffer_size as usize;
        let mut parts = Vec::new();
        let mut start = 0;
        while start < bytes || parts.is_empty() {
            let last = cuts.iter().copied().rfind(|c| *c > start && *c - start <= most);
            let end = if bytes - start <= most { bytes } else { last.unwrap_or(bytes) };
            let buffer = gpu.buffer("arena", (end - start) as u64, usage)?;
            parts.push(Part { start, bytes: end - start, buffer });
            start = end;
        }
        Ok(Arena { parts, bytes })
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The buffer that holds `bytes` from `offset` on, and where in it they begin.
    pub fn find(&self, offset: usize, bytes: usize) -> Result<(&Buffer, u64)> {
        let part = &self.parts[self.parts.partition_point(|p| p.start <= offset).saturating_sub(1)];
        let at = offset - part.start;
        if at.checked_add(bytes).is_none_or(|end| end > part.bytes) {
            let reason = format!("bytes {offset}+{bytes} lie in no buffer of an arena of {}", self.bytes);
            return Err(Error::Verify { pass: "memory", reason });
        }
        Ok((&part.buffer, at as u64))
    }

    /// How many bytes of the buffer that holds `offset` lie behind it.
    pub(super) fn behind(&self, offset: usize) -> usize {
        let part = &self.parts[self.parts.partition_point(|p| p.start <= offset).saturating_sub(1)];
        (part.start + part.bytes).saturating_sub(offset)
    }
}
