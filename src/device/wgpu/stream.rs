//! What goes to the queue: dispatches and copies in order, with as few submissions as do.

use super::adapter::Gpu;
use super::arena::Arena;
use super::recording::Recording;
use crate::Result;
use crate::device::HostWork;
use std::collections::VecDeque;
use std::ops::Range;
use std::time::Instant;
use wgpu::{Buffer, BufferUsages, CommandEncoder, ComputePass, ComputePassTimestampWrites, Features, SubmissionIndex};

/// Dispatches that make a submission: the adapter starts while the rest is encoded, and no submission runs so long that a
/// driver takes it for a hang.
const SUBMIT: usize = 256;
/// Submissions under way before the host waits.
const AHEAD: usize = 4;
/// Bytes that a read-back or a bounced copy moves at a time, at most.
const PIECE: usize = 1 << 26;
/// Copies and writes of a queue are of whole words. Values are padded to more, so that the bytes behind them are free.
const WORD: usize = wgpu::COPY_BUFFER_ALIGNMENT as usize;
/// Launches timed in one submission: a query set holds 4096 timestamps.
const TIMED: usize = 2048;

/// Encodes commands and submits them.
#[derive(Debug)]
pub struct Stream {
    gpu: Gpu,
    // Dropped in this order: a pass ends before its encoder.
    pass: Option<ComputePass<'static>>,
    encoder: Option<CommandEncoder>,
    encoded: usize,
    under_way: VecDeque<SubmissionIndex>,
    /// For read-backs.
    mapped: Option<Buffer>,
    /// For copies within one buffer, which WebGPU does not allow.
    bounce: Option<Buffer>,
    /// What the host writes before it goes to the queue.
    host: Vec<u64>,
    work: HostWork,
}

impl Stream {
    /// A stream to a device's queue.
    pub fn new(gpu: Gpu) -> Stream {
        Stream {
            gpu,
            pass: None,
            encoder: None,
            encoded: 0,
            under_way: VecDeque::new(),
            mapped: None,
            bounce: None,
            host: vec![],
            work: HostWork::default(),
        }
    }

    /// What was encoded and submitted so far, but for [`Stream::time`].
    pub fn work(&self) -> HostWork {
        self.work
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Bytes that a read-back or a bounced copy moves at a time.
    fn piece(&self) -> usize {
        PIECE.min(self.gpu.device().limits().max_buffer_size as usize / 8 * 8)
    }

    /// The encoder, outside of a pass.
    fn encoder(&mut self) -> &mut CommandEncoder {
        self.pass = None;
        let gpu = &self.gpu;
        self.encoder.get_or_insert_with(|| gpu.device().create_command_encoder(&Default::default()))
    }

    fn pass(&mut self) -> &mut ComputePass<'static> {
        let (gpu, encoder) = (&self.gpu, &mut self.encoder);
        self.pass.get_or_insert_with(|| {
            let encoder = encoder.get_or_insert_with(|| gpu.device().create_command_encoder(&Default::default()));
            encoder.begin_compute_pass(&Default::default()).forget_lifetime()
        })
    }

    /// Runs launches of a recording.
    pub fn run(&mut self, recording: &Recording, launches: Range<usize>) -> Result<()> {
        let mut dispatches = recording.dispatches(launches);
        while !dispatches.is_empty() {
            let count = (SUBMIT - self.encoded).min(dispatches.len());
            let begin = Instant::now();
            recording.encode(self.pass(), dispatches.start..dispatches.start + count);
            self.work.encode_seconds += begin.elapsed().as_secs_f64();
            self.work.dispatches += count;
            dispatches.start += count;
            self.encoded += count;
            if self.encoded == SUBMIT {
                self.submit()?;
            }
        }
        Ok(())
    }

    /// Hands everything so far to the queue. Waits if too much is under way.
    pub fn submit(&mut self) -> Result<()> {
        self.pass = None;
        self.encoded = 0;
        if let Some(encoder) = self.encoder.take() {
            let begin = Instant::now();
            let commands = encoder.finish();
            let encoded = Instant::now();
            let submission = self.gpu.queue().submit([commands]);
            self.work.encode_seconds += (encoded - begin).as_secs_f64();
            self.work.submit_seconds += encoded.elapsed().as_secs_f64();
            self.work.submissions += 1;
            self.under_way.push_back(submission);
        }
        while self.under_way.len() > AHEAD {
            let oldest = self.under_way.pop_front();
            self.gpu.wait(oldest)?;
        }
        self.gpu.check()
    }

    /// Submits, and waits until all is done.
    pub fn finish(&mut self) -> Result<()> {
        self.submit()?;
        self.under_way.clear();
        self.gpu.wait(None)
    }

    /// Copies bytes from a buffer that is no part of the arena.
    pub fn load(&mut self, from: &Buffer, skip: u64, arena: &Arena, offset: usize, bytes: usize) -> Result<()> {
        let (to, at) = arena.find(offset, bytes)?;
        self.encoder().copy_buffer_to_buffer(from, skip, to, at, bytes as u64);
        Ok(())
    }

    /// Copies bytes of the arena to another place in it; the two may overlap.
    pub fn copy(&mut self, arena: &Arena, from: usize, to: usize, bytes: usize) -> Result<()> {
        let bytes = bytes.next_multiple_of(WORD);
        let ((source, start), (target, end)) = (arena.find(from, bytes)?, arena.find(to, bytes)?);
        if source != target {
            self.encoder().copy_buffer_to_buffer(source, start, target, end, bytes as u64);
            return Ok(());
        }
        let usage = BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let piece = self.piece();
        let bounce = take(&mut self.bounce, &self.gpu, "bounce", bytes.min(piece), usage)?;
        let mut pieces: Vec<usize> = (0..bytes).step_by(piece).collect();
        if to > from {
            pieces.reverse();
        }
        for skip in pieces {
            let count = (bytes - skip).min(piece) as u64;
            let encoder = self.encoder();
            encoder.copy_buffer_to_buffer(source, start + skip as u64, &bounce, 0, count);
            encoder.copy_buffer_to_buffer(&bounce, 0, target, end + skip as u64, count);
        }
        self.bounce = Some(bounce);
        Ok(())
    }

    /// Shows `see` bytes of the arena, piece by piece, after all that came before.
    pub fn look(&mut self, arena: &Arena, offset: usize, bytes: usize, see: &mut dyn FnMut(&[u8])) -> Result<()> {
        let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
        let piece = self.piece();
        for skip in (0..bytes).step_by(piece) {
            let shown = (bytes - skip).min(piece);
            let count = shown.next_multiple_of(WORD);
            let mapped = take(&mut self.mapped, &self.gpu, "read-back", count, usage)?;
            let (from, at) = arena.find(offset + skip, count)?;
            self.encoder().copy_buffer_to_buffer(from, at, &mapped, 0, count as u64);
            self.submit()?;
            let slice = mapped.slice(..count as u64);
            slice.map_async(wgpu::MapMode::Read, |_| {});
            self.under_way.clear();
            self.gpu.wait(None)?;
            let failed = |e| crate::Error::Device { device: super::NAME, reason: format!("reading back: {e}") };
            see(&slice.get_mapped_range().map_err(failed)?[..shown]);
            mapped.unmap();
            self.mapped = Some(mapped);
        }
        Ok(())
    }

    /// Has `make` write bytes of the arena, after all that came before.
    pub fn fill(&mut self, arena: &Arena, offset: usize, bytes: usize, make: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        self.host.resize(bytes.div_ceil(8), 0);
        let data = &mut bytemuck::cast_slice_mut(&mut self.host)[..bytes];
        make(data);
        self.write(arena, offset, bytes)
    }

    /// Writes the first `bytes` of `host`.
    fn write(&mut self, arena: &Arena, offset: usize, bytes: usize) -> Result<()> {
        let bytes = bytes.next_multiple_of(WORD);
        // What the queue writes comes before what is submitted later.
        self.submit()?;
        let (buffer, at) = arena.find(offset, bytes)?;
        self.gpu.queue().write_buffer(buffer, at, &bytemuck::cast_slice(&self.host)[..bytes]);
        self.gpu.check()
    }

    /// Runs all launches of a recording one by one; `timing` is told every launch's number and seconds.
    pub fn time(&mut self, recording: &Recording, timing: &mut dyn FnMut(usize, f64)) -> Result<()> {
        self.finish()?;
        let stamps = self.gpu.device().features().contains(Features::TIMESTAMP_QUERY);
        for start in (0..recording.len()).step_by(TIMED) {
            let launches = start..(start + TIMED).min(recording.len());
            if stamps {
                self.time_by_stamps(recording, launches, timing)?;
            } else {
                for i in launches {
                    let begin = Instant::now();
                    self.run(recording, i..i + 1)?;
                    self.finish()?;
                    timing(i, begin.elapsed().as_secs_f64());
                }
            }
        }
        Ok(())
    }

    fn time_by_stamps(
        &mut self,
        recording: &Recording,
        launches: Range<usize>,
        timing: &mut dyn FnMut(usize, f64),
    ) -> Result<()> {
        let count = 2 * launches.len() as u32;
        let description = wgpu::QuerySetDescriptor { label: Some("times"), ty: wgpu::QueryType::Timestamp, count };
        let (gpu, first) = (self.gpu.clone(), launches.start);
        let queries = gpu.device().create_query_set(&description);
        let bytes = 8 * count as u64;
        let resolved = gpu.buffer("times", bytes, BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC)?;
        let mapped = gpu.buffer("times", bytes, BufferUsages::MAP_READ | BufferUsages::COPY_DST)?;
        for i in launches {
            let stamp = 2 * (i - first) as u32;
            let writes = ComputePassTimestampWrites {
                query_set: &queries,
                beginning_of_pass_write_index: Some(stamp),
                end_of_pass_write_index: Some(stamp + 1),
            };
            let label = Some("timed");
            let description = wgpu::ComputePassDescriptor { label, timestamp_writes: Some(writes) };
            let mut pass = self.encoder().begin_compute_pass(&description);
            recording.encode(&mut pass, recording.dispatches(i..i + 1));
        }
        let encoder = self.encoder();
        encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, &mapped, 0, bytes);
        self.submit()?;
        mapped.slice(..).map_async(wgpu::MapMode::Read, |_| {});
        self.finish()?;
        let failed = |e| crate::Error::Device { device: super::NAME, reason: format!("reading times: {e}") };
        let view = mapped.slice(..).get_mapped_range().map_err(failed)?;
        let period = gpu.queue().get_timestamp_period() as f64 * 1e-9;
        for (i, pair) in bytemuck::pod_collect_to_vec::<u8, u64>(&view).chunks_exact(2).enumerate() {
            timing(first + i, pair[1].saturating_sub(pair[0]) as f64 * period);
        }
        Ok(())
    }
}

/// The buffer that `slot` keeps, or a larger one if it is too small.
fn take(slot: &mut Option<Buffer>, gpu: &Gpu, label: &str, bytes: usize, usage: BufferUsages) -> Result<Buffer> {
    match slot.take() {
        Some(buffer) if buffer.size() >= bytes as u64 => Ok(buffer),
        _ => {
            let most = gpu.device().limits().max_buffer_size;
            gpu.buffer(label, (bytes.next_power_of_two() as u64).min(most), usage)
        }
    }
}
