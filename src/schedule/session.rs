//! The executor: one arena, and a schedule run over it.

use super::{BufferId, Command, Mark, Program, Schedule, Slice, Space, Step};
use crate::device::{Arena, Device};
use crate::graph::{Args, Kernel, Region};
use crate::{Error, Result};
use bytemuck::Pod;
use std::ops::Range;
use std::time::Instant;

/// What the host is told while a schedule runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A row of a `Repeat` is about to run.
    Row(usize),
    /// A `Host` step with its number.
    Host(u32),
    /// A program has come to a [`Mark`](super::Mark) with this number.
    Mark(usize),
}

/// A schedule with its arena on a device.
#[derive(Debug)]
pub struct Session {
    schedule: Schedule,
    device: Device,
    arena: Arena,
    poison: bool,
    check: bool,
}

/// Fills guard zones in a poisoned run.
const GUARD_BYTE: u8 = 0xA5;

impl Session {
    /// Checks the schedule and makes its arena; buffers are zero, constants are written.
    pub fn new(device: Device, schedule: Schedule) -> Result<Session> {
        schedule.verify()?;
        let mut arena = Arena::new(schedule.arena_bytes())?;
        for (id, data) in schedule.buffers.constants() {
            let offset = schedule.buffers.get(*id).offset;
            arena.slice_mut(offset, data.len())?.copy_from_slice(data);
        }
        Ok(Session { schedule, device, arena, poison: false, check: false })
    }

    /// Poisons every run from now on: what a launch is to write is NaN before it, and guard zones behind scratch values
    /// (see [`super::Options::guard`]) must stay untouched. Slow; for tests and for finding bugs.
    pub fn poisoned(mut self) -> Self {
        self.poison = true;
        self
    }

    /// From now on a launch that leaves NaN or infinity stops the run with [`Error::NotFinite`], which names the op. Reads
    /// everything once more.
    pub fn check_numerics(&mut self, check: bool) {
        self.check = check;
    }

    /// The schedule.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes of the arena.
    pub fn arena_bytes(&self) -> usize {
        self.arena.bytes()
    }

    /// A buffer's numbers, in its layout.
    pub fn read<T: Pod>(&mut self, id: BufferId) -> Result<Vec<T>> {
        self.read_part(id, 0, self.elements::<T>(id))
    }

    /// `count` of a buffer's numbers from number `skip` on.
    pub fn read_part<T: Pod>(&mut self, id: BufferId, skip: usize, count: usize) -> Result<Vec<T>> {
        let offset = self.place::<T>(id, skip, count)?;
        Ok(self.arena.slice_mut::<T>(offset, count)?.to_vec())
    }

    /// A buffer's memory, for who reads and writes it while programs run that do not touch it. Only devices whose arena is host
    /// memory have it.
    pub fn memory(&mut self, id: BufferId) -> Result<Region> {
        let b = self.schedule.buffers.get(id);
        self.arena.region(b.offset, b.bytes())
    }

    /// Writes a buffer. `data` must have its size.
    pub fn write<T: Pod>(&mut self, id: BufferId, data: &[T]) -> Result<()> {
        let elements = self.elements::<T>(id);
        if elements != data.len() {
            let name = &self.schedule.buffers.get(id).name;
            let reason = format!("buffer `{name}` holds {elements} numbers, got {}", data.len());
            return Err(Error::Verify { pass: "session", reason });
        }
        self.write_part(id, 0, data)
    }

    /// Writes a buffer from number `skip` on.
    pub fn write_part<T: Pod>(&mut self, id: BufferId, skip: usize, data: &[T]) -> Result<()> {
        self.fill_part(id, skip, data.len(), |place| place.copy_from_slice(data))
    }

    /// Has `make` write a buffer's numbers straight to where the device takes them from. It must write all of them; what it
    /// finds there is of no meaning.
    pub fn fill<T: Pod, R>(&mut self, id: BufferId, make: impl FnOnce(&mut [T]) -> R) -> Result<R> {
        self.fill_part(id, 0, self.elements::<T>(id), make)
    }

    /// [`Session::fill`] for `count` numbers from number `skip` on.
    pub fn fill_part<T: Pod, R>(
        &mut self,
        id: BufferId,
        skip: usize,
        count: usize,
        make: impl FnOnce(&mut [T]) -> R,
    ) -> Result<R> {
        let offset = self.place::<T>(id, skip, count)?;
        Ok(make(self.arena.slice_mut(offset, count)?))
    }

    /// How many numbers a buffer holds.
    fn elements<T: Pod>(&self, id: BufferId) -> usize {
        self.schedule.buffers.get(id).bytes() / size_of::<T>()
    }

    /// Where in the arena `count` numbers of a buffer lie, the first being number `skip`.
    fn place<T: Pod>(&self, id: BufferId, skip: usize, count: usize) -> Result<usize> {
        let (buffer, elements) = (self.schedule.buffers.get(id), self.elements::<T>(id));
        if skip.checked_add(count).is_none_or(|end| end > elements) {
            let reason = format!("numbers {skip}+{count} of buffer `{}`, which holds {elements}", buffer.name);
            return Err(Error::Verify { pass: "session", reason });
        }
        Ok(buffer.offset + skip * size_of::<T>())
    }

    /// Replaces the row table, e.g. for the next stretch of a training run. It must fit the schedule.
    pub fn set_rows(&mut self, data: Vec<f32>) -> Result<()> {
        if data.len() != self.schedule.rows.data.len() {
            let reason = format!("{} numbers for rows that hold {}", data.len(), self.schedule.rows.data.len());
            return Err(Error::Verify { pass: "session", reason });
        }
        self.schedule.rows.data = data;
        Ok(())
    }

    /// Runs all steps. `host` is called before every row, at every `Host` step and at every mark; an error from it stops the run.
    pub fn run(&mut self, host: &mut dyn FnMut(&mut Session, Event) -> Result<()>) -> Result<()> {
        // The steps leave the session while they run, so that `host` may have all of it.
        let steps = std::mem::take(&mut self.schedule.steps);
        let result = self.run_steps(&steps, host);
        self.schedule.steps = steps;
        result
    }

    /// Runs one program.
    pub fn run_program(&mut self, index: usize) -> Result<()> {
        self.run_commands(index, 0..usize::MAX, &mut |_, _| {})
    }

    /// Runs one program; `timing` is told every command's number and seconds.
    pub fn time_program(&mut self, index: usize, timing: &mut dyn FnMut(usize, f64)) -> Result<()> {
        self.run_commands(index, 0..usize::MAX, timing)
    }

    /// Runs one program, and calls the host at its marks.
    fn run_marked(&mut self, index: usize, host: &mut dyn FnMut(&mut Session, Event) -> Result<()>) -> Result<()> {
        let mut done = 0;
        let mark = |session: &Session, i| session.schedule.programs.get(index).and_then(|p| p.marks.get(i)).copied();
        for i in 0.. {
            let Some(Mark { after, number }) = mark(self, i) else { break };
            self.run_commands(index, done..after, &mut |_, _| {})?;
            host(self, Event::Mark(number))?;
            done = after;
        }
        self.run_commands(index, done..usize::MAX, &mut |_, _| {})
    }

    /// Runs those commands of a program whose numbers lie in `range`.
    fn run_commands(&mut self, index: usize, range: Range<usize>, timing: &mut dyn FnMut(usize, f64)) -> Result<()> {
        let Some(program) = self.schedule.programs.get(index) else {
            return Err(Error::Verify { pass: "session", reason: format!("there is no program {index}") });
        };
        let base = self.schedule.buffers.bytes();
        let guard = if self.poison { program.guard } else { 0 };
        let mut regions = Vec::new();
        for (number, command) in program.commands.iter().enumerate().take(range.end).skip(range.start) {
            regions.clear();
            for slice in &command.args {
                regions.push(region(&mut self.arena, base, slice)?);
            }
            if self.poison {
                poison(command, &regions, guard);
            }
            let start = Instant::now();
            match command.kernel {
                Kernel::Cpu { run, .. } => run(&Args { regions: &regions, scalars: &command.scalars }),
            }
            timing(number, start.elapsed().as_secs_f64());
            if self.poison {
                check_guards(program, command, &regions, guard)?;
            }
            if self.check {
                check_finite(program, command, &regions)?;
            }
        }
        Ok(())
    }

    fn run_steps(&mut self, steps: &[Step], host: &mut dyn FnMut(&mut Session, Event) -> Result<()>) -> Result<()> {
        for step in steps {
            match step {
                Step::Run(program) => self.run_marked(*program, host)?,
                Step::Host(hook) => host(self, Event::Host(*hook))?,
                Step::Copy { from, to } => self.copy(*from, *to)?,
                Step::Repeat { rows, body } => {
                    for row in rows.clone() {
                        host(self, Event::Row(row))?;
                        self.load_row(row)?;
                        self.run_steps(body, host)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn copy(&mut self, from: BufferId, to: BufferId) -> Result<()> {
        let (from, to) = (self.schedule.buffers.get(from), self.schedule.buffers.get(to));
        let bytes = from.bytes();
        let (from, to) = (self.arena.region(from.offset, bytes)?, self.arena.region(to.offset, bytes)?);
        // SAFETY: both lie in the arena, `verify` compared their sizes; views may overlap, which `copy` allows.
        unsafe { std::ptr::copy(from.ptr, to.ptr, bytes) };
        Ok(())
    }

    /// Makes `row` the current one.
    pub fn load_row(&mut self, row: usize) -> Result<()> {
        let Some(id) = self.schedule.row else { return Ok(()) };
        let offset = self.schedule.buffers.get(id).offset;
        let columns = self.schedule.rows.columns;
        self.arena.slice_mut(offset, columns)?.copy_from_slice(self.schedule.rows.row(row));
        Ok(())
    }
}

fn region(arena: &mut Arena, base: usize, slice: &Slice) -> Result<Region> {
    match slice.space {
        Space::Buffers => arena.region(slice.offset, slice.bytes),
        Space::Scratch => arena.region(base + slice.offset, slice.bytes),
    }
}

/// Scratch arguments that the launch writes and does not read.
fn fresh<'a>(command: &'a Command, regions: &'a [Region]) -> impl Iterator<Item = &'a Region> {
    let overlaps =
        |a: &Slice, b: &Slice| a.space == b.space && a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
    command.writes.iter().filter_map(move |w| {
        let slice = &command.args[*w];
        let read = command.args.iter().enumerate().any(|(i, a)| !command.writes.contains(&i) && overlaps(a, slice));
        (slice.space == Space::Scratch && !read).then_some(&regions[*w])
    })
}

/// The zone behind a scratch value.
fn guard_zone(r: &Region, guard: usize) -> Region {
    let skip = r.bytes.next_multiple_of(crate::device::ALIGN);
    // SAFETY: the planner left `guard` bytes behind the rounded-up value, inside the arena.
    Region { ptr: unsafe { r.ptr.add(skip) }, bytes: guard }
}

fn poison(command: &Command, regions: &[Region], guard: usize) {
    for r in fresh(command, regions) {
        let zone = guard_zone(r, guard);
        // 0xFF in every byte is NaN as f32, f16 and bf16, and -1 as i32.
        // SAFETY: both regions lie in the arena and nothing runs.
        unsafe {
            r.ptr.write_bytes(0xFF, r.bytes);
            zone.ptr.write_bytes(GUARD_BYTE, zone.bytes);
        }
    }
}

/// Fails if a launch left a number that is none. Indices, seeds and labels are small integers or hashes that launches only
/// read; what they write are f32.
fn check_finite(program: &Program, command: &Command, regions: &[Region]) -> Result<()> {
    for r in command.outputs.iter().filter_map(|w| regions.get(*w)) {
        // SAFETY: the region lies in the arena, aligned for f32, nothing runs, and every bit pattern is an f32.
        let numbers = unsafe { std::slice::from_raw_parts(r.ptr.cast::<f32>(), r.bytes / 4) };
        if let Some(value) = numbers.iter().find(|v| !v.is_finite()) {
            let what = format!("{}: the output of {} ({})", program.name, command.op, command.scope);
            return Err(Error::NotFinite { what, value: *value, step: 0 });
        }
    }
    Ok(())
}

fn check_guards(program: &Program, command: &Command, regions: &[Region], guard: usize) -> Result<()> {
    let scratch = command.args.iter().zip(regions).filter(|(s, _)| s.space == Space::Scratch);
    for (_, r) in scratch {
        let zone = guard_zone(r, guard);
        // SAFETY: the zone lies in the arena, nothing runs, and bytes have no invalid values.
        let bytes = unsafe { std::slice::from_raw_parts(zone.ptr, zone.bytes) };
        if bytes.iter().any(|b| *b != GUARD_BYTE) {
            let reason = format!("{}: {} ({}) wrote past the end of a value", program.name, command.op, command.scope);
            return Err(Error::Verify { pass: "guard zones", reason });
        }
    }
    Ok(())
}
