//! The wgpu device's side of a session.

use super::engine::{Engine, foreign, place};
use super::{Program, Schedule};
use crate::Result;
use crate::device::HostWork;
use crate::device::wgpu::{Arena, Bound, Gpu, Recording, Stream};
use crate::graph::Kernel;
use std::ops::Range;
use wgpu::{Buffer, BufferUsages};

/// Launches are recorded once, and encoded as often as they run.
#[derive(Debug)]
pub(super) struct Wgpu {
    stream: Stream,
    arena: Arena,
    recordings: Vec<Option<Recording>>,
    /// The table of rows on the device.
    rows: Option<Buffer>,
    /// Every access of a launch is checked.
    checked: bool,
}

impl Wgpu {
    pub(super) fn new(gpu: &Gpu, schedule: &Schedule) -> Result<Wgpu> {
        let arena = Arena::new(gpu, schedule.arena_bytes(), &cuts(schedule))?;
        let programs = schedule.programs.iter().map(|p| bound(schedule, p)).collect::<Result<Vec<_>>>()?;
        // Shaders of all programs at once: the more there are, the better they share the processor's cores.
        Recording::compile(gpu, programs.iter().flatten())?;
        let recordings = programs.iter().map(|launches| Recording::new(gpu, &arena, launches, None).map(Some));
        let recordings = recordings.collect::<Result<_>>()?;
        Ok(Wgpu { stream: Stream::new(gpu.clone()), arena, recordings, rows: None, checked: false })
    }

    /// Records a program, if it has no recording or one of another kind.
    fn record(&mut self, schedule: &Schedule, program: usize) -> Result<()> {
        if self.recordings[program].is_some() {
            return Ok(());
        }
        let all = &schedule.programs[program];
        let launches = bound(schedule, all)?;
        let guard = self.checked.then_some(all.guard);
        self.recordings[program] = Some(Recording::new(self.stream.gpu(), &self.arena, &launches, guard)?);
        Ok(())
    }
}

/// Where the arena may be cut into buffers: between two buffers of the schedule, and before the scratch region.
fn cuts(schedule: &Schedule) -> Vec<usize> {
    let mut spans: Vec<(usize, usize)> =
        schedule.buffers.all().iter().map(|b| (b.offset, b.offset + b.bytes())).collect();
    spans.sort_unstable();
    let (mut cuts, mut end) = (Vec::new(), 0);
    for (start, stop) in spans {
        // A view lies inside of what came before.
        if start >= end {
            cuts.push(start);
        }
        end = end.max(stop);
    }
    cuts.push(schedule.buffers.bytes());
    cuts
}

/// The launches of a program at their places.
fn bound<'a>(schedule: &'a Schedule, program: &'a Program) -> Result<Vec<Bound<'a>>> {
    let bound = program.commands.iter().map(|c| match &c.kernel {
        Kernel::Wgsl(shader) => Ok(Bound {
            shader,
            grid: c.grid,
            places: c.args.iter().map(|slice| (place(schedule, slice), slice.bytes)).collect(),
            scalars: &c.scalars,
            flat: c.flat.as_ref(),
            what: format!("{} ({} in {})", c.op, c.scope, program.name),
        }),
        other => Err(foreign("wgpu", other)),
    });
    bound.collect()
}

impl Engine for Wgpu {
    fn bytes(&self) -> usize {
        self.arena.bytes()
    }

    fn look(&mut self, offset: usize, bytes: usize, see: &mut dyn FnMut(&[u8])) -> Result<()> {
        self.stream.look(&self.arena, offset, bytes, see)
    }

    fn fill(&mut self, offset: usize, bytes: usize, make: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        self.stream.fill(&self.arena, offset, bytes, make)
    }

    fn copy(&mut self, from: usize, to: usize, bytes: usize) -> Result<()> {
        self.stream.copy(&self.arena, from, to, bytes)
    }

    fn load_row(&mut self, schedule: &Schedule, row: usize) -> Result<()> {
        let Some(id) = schedule.row else { return Ok(()) };
        let rows = match self.rows.take() {
            Some(rows) => rows,
            None => {
                let data: &[u8] = bytemuck::cast_slice(&schedule.rows.data);
                let usage = BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
                let rows = self.stream.gpu().buffer("rows", data.len() as u64, usage)?;
                self.stream.gpu().queue().write_buffer(&rows, 0, data);
                rows
            }
        };
        let (bytes, offset) = (4 * schedule.rows.columns, schedule.buffers.get(id).offset);
        self.stream.load(&rows, (row * bytes) as u64, &self.arena, offset, bytes)?;
        self.rows = Some(rows);
        Ok(())
    }

    fn forget_rows(&mut self) {
        // What was encoded keeps the old table alive.
        self.rows = None;
    }

    fn check_accesses(&mut self) {
        self.checked = true;
        self.recordings.iter_mut().for_each(|r| *r = None);
    }

    fn run(&mut self, schedule: &Schedule, program: usize, commands: Range<usize>) -> Result<()> {
        self.record(schedule, program)?;
        let recording = self.recordings[program].as_ref();
        recording.map_or(Ok(()), |recording| self.stream.run(recording, commands))
    }

    fn time(&mut self, schedule: &Schedule, program: usize, timing: &mut dyn FnMut(usize, f64)) -> Result<()> {
        self.record(schedule, program)?;
        let recording = self.recordings[program].as_ref();
        recording.map_or(Ok(()), |recording| self.stream.time(recording, timing))
    }

    fn start(&mut self) -> Result<()> {
        self.stream.submit()
    }

    fn host_work(&self) -> Option<HostWork> {
        Some(self.stream.work())
    }

    fn wgpu_buffer(&self, offset: usize, bytes: usize) -> Result<(Buffer, u64)> {
        self.arena.find(offset, bytes).map(|(buffer, at)| (buffer.clone(), at))
    }

    fn finish(&mut self) -> Result<()> {
        self.stream.finish()
    }
}
