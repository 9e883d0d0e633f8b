//! The executor: one arena, and a schedule run over it.

use super::engine::{Engine, engine, place};
use super::{BufferId, Mark, Program, Schedule, Slice, Space, Step};
use crate::device::{ALIGN, Device, HostWork};
use crate::graph::Region;
use crate::ptx::Counters;
use crate::tensor::DType;
use crate::{Error, Result};
use bytemuck::Pod;
use half::{bf16, f16};
use std::ops::Range;

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
    engine: Box<dyn Engine>,
    poison: bool,
    check: bool,
}

/// Fills guard zones in a poisoned run.
const GUARD_BYTE: u8 = 0xA5;

impl Session {
    /// Checks the schedule and makes its arena; buffers are zero, constants are written, shaders are compiled.
    pub fn new(device: Device, schedule: Schedule) -> Result<Session> {
        schedule.verify()?;
        let mut engine = engine(&device, &schedule)?;
        for (id, data) in schedule.buffers.constants() {
            let (offset, data) = (schedule.buffers.get(*id).offset, bytemuck::cast_slice::<f32, u8>(data));
            engine.fill(offset, data.len(), &mut |place| place.copy_from_slice(data))?;
        }
        Ok(Session { schedule, device, engine, poison: false, check: false })
    }

    /// Poisons every run from now on: what a launch is to write is NaN before it, and guard zones behind scratch values
    /// (see [`super::Options::guard`]) must stay untouched. Slow; for tests and for finding bugs.
    pub fn poisoned(mut self) -> Self {
        self.poison = true;
        self.engine.check_accesses();
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
        self.engine.bytes()
    }

    /// What the host has done so far to have the device run launches; `None` where it runs them itself.
    pub fn host_work(&self) -> Option<HostWork> {
        self.engine.host_work()
    }

    /// A buffer's numbers, in its layout.
    pub fn read<T: Pod>(&mut self, id: BufferId) -> Result<Vec<T>> {
        self.read_part(id, 0, self.elements::<T>(id))
    }

    /// `count` of a buffer's numbers from number `skip` on.
    pub fn read_part<T: Pod>(&mut self, id: BufferId, skip: usize, count: usize) -> Result<Vec<T>> {
        let offset = self.place::<T>(id, skip, count)?;
        let mut numbers = vec![T::zeroed(); count];
        let (bytes, mut done) = (bytemuck::cast_slice_mut::<T, u8>(&mut numbers), 0);
        self.engine.look(offset, bytes.len(), &mut |piece| {
            bytes[done..done + piece.len()].copy_from_slice(piece);
            done += piece.len();
        })?;
        Ok(numbers)
    }

    /// A buffer's memory, for who reads and writes it while programs run that do not touch it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on devices whose arena is not host memory.
    pub fn memory(&mut self, id: BufferId) -> Result<Region> {
        let buffer = self.schedule.buffers.get(id);
        self.engine.memory(buffer.offset, buffer.bytes())
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
        let (mut make, mut made) = (Some(make), None);
        self.engine.fill(offset, count * size_of::<T>(), &mut |place| {
            // Buffers begin at multiples of a number's size, and so does what an engine gives for them.
            made = make.take().map(|make| make(bytemuck::cast_slice_mut(place)));
        })?;
        made.ok_or_else(|| Error::Verify { pass: "session", reason: "the device gave no place to write to".into() })
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
        self.engine.forget_rows();
        Ok(())
    }

    /// Runs all steps. `host` is called before every row, at every `Host` step and at every mark; an error from it stops
    /// the run. On return all is done.
    pub fn run(&mut self, host: &mut dyn FnMut(&mut Session, Event) -> Result<()>) -> Result<()> {
        // The steps leave the session while they run, so that `host` may have all of it.
        let steps = std::mem::take(&mut self.schedule.steps);
        let result = self.run_steps(&steps, host);
        self.schedule.steps = steps;
        let finished = self.engine.finish();
        result.and(finished)
    }

    /// Runs one program.
    pub fn run_program(&mut self, index: usize) -> Result<()> {
        self.run_commands(index, 0..self.program(index)?.commands.len())?;
        self.engine.finish()
    }

    /// Runs one program; `timing` is told every command's number and seconds.
    pub fn time_program(&mut self, index: usize, timing: &mut dyn FnMut(usize, f64)) -> Result<()> {
        self.program(index)?;
        self.engine.time(&self.schedule, index, timing)
    }

    /// Runs one program on the ptx device; `counting` is told every command's number and what it counts.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on other devices.
    pub fn count_program(&mut self, index: usize, counting: &mut dyn FnMut(usize, Counters)) -> Result<()> {
        self.program(index)?;
        self.engine.count(&self.schedule, index, counting)
    }

    fn program(&self, index: usize) -> Result<&Program> {
        let missing = || Error::Verify { pass: "session", reason: format!("there is no program {index}") };
        self.schedule.programs.get(index).ok_or_else(missing)
    }

    /// Runs one program, and calls the host at its marks.
    fn run_marked(&mut self, index: usize, host: &mut dyn FnMut(&mut Session, Event) -> Result<()>) -> Result<()> {
        let commands = self.program(index)?.commands.len();
        let mut done = 0;
        for i in 0..self.program(index)?.marks.len() {
            let Mark { after, number } = self.schedule.programs[index].marks[i];
            self.run_commands(index, done..after)?;
            host(self, Event::Mark(number))?;
            done = after;
        }
        self.run_commands(index, done..commands)
    }

    fn run_commands(&mut self, index: usize, commands: Range<usize>) -> Result<()> {
        if !self.poison && !self.check {
            return self.engine.run(&self.schedule, index, commands);
        }
        for number in commands {
            if self.poison {
                self.poison_command(index, number)?;
            }
            self.engine.run(&self.schedule, index, number..number + 1)?;
            if self.poison {
                self.check_guards(index, number)?;
            }
            if self.check {
                self.check_finite(index, number)?;
            }
        }
        Ok(())
    }

    fn run_steps(&mut self, steps: &[Step], host: &mut dyn FnMut(&mut Session, Event) -> Result<()>) -> Result<()> {
        for step in steps {
            match step {
                Step::Run(program) => self.run_marked(*program, host)?,
                Step::Host(hook) => {
                    self.engine.start()?;
                    host(self, Event::Host(*hook))?;
                }
                Step::Copy { from, to } => self.copy(*from, *to)?,
                Step::Repeat { rows, body } => {
                    for row in rows.clone() {
                        self.engine.start()?;
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
        self.engine.copy(from.offset, to.offset, from.bytes())
    }

    /// Makes `row` the current one.
    pub fn load_row(&mut self, row: usize) -> Result<()> {
        self.engine.load_row(&self.schedule, row)
    }

    /// Fills what a launch is to write, and the zones behind it.
    fn poison_command(&mut self, program: usize, number: usize) -> Result<()> {
        let (schedule, engine) = (&self.schedule, &mut self.engine);
        let (command, guard) = (&schedule.programs[program].commands[number], schedule.programs[program].guard);
        for (argument, slice) in command.fresh() {
            let (offset, end) = (place(schedule, slice), guard_zone(schedule, slice));
            // 0xFF in every byte is NaN as f32, f16 and bf16, and -1 as i32.
            engine.fill(offset, slice.bytes, &mut |bytes| bytes.fill(0xFF))?;
            if !command.partial.contains(&argument) {
                engine.fill(end, guard, &mut |bytes| bytes.fill(GUARD_BYTE))?;
            }
        }
        Ok(())
    }

    /// Fails if a launch wrote behind a scratch value.
    fn check_guards(&mut self, program: usize, number: usize) -> Result<()> {
        let (schedule, engine) = (&self.schedule, &mut self.engine);
        let (program, command) = (&schedule.programs[program], &schedule.programs[program].commands[number]);
        let whole =
            command.args.iter().enumerate().filter(|(i, _)| !command.partial.contains(i)).map(|(_, slice)| slice);
        for slice in whole.filter(|s| s.space == Space::Scratch) {
            let mut intact = true;
            let zone = guard_zone(schedule, slice);
            engine.look(zone, program.guard, &mut |bytes| intact &= bytes.iter().all(|b| *b == GUARD_BYTE))?;
            if !intact {
                let place = format!("{}: {} ({})", program.name, command.op, command.scope);
                let reason = format!("{place} wrote past the end of a value");
                return Err(Error::Verify { pass: "guard zones", reason });
            }
        }
        Ok(())
    }

    /// Fails if a launch left a number that is none. Indices, seeds and labels are small integers or hashes that launches
    /// only read; what they write are f32 or f16.
    fn check_finite(&mut self, program: usize, number: usize) -> Result<()> {
        let (schedule, engine) = (&self.schedule, &mut self.engine);
        let (program, command) = (&schedule.programs[program], &schedule.programs[program].commands[number]);
        for (argument, dtype) in &command.outputs {
            let (slice, mut bad) = (&command.args[*argument], None);
            engine.look(place(schedule, slice), slice.bytes, &mut |bytes| {
                bad = bad.or_else(|| not_finite(*dtype, bytes));
            })?;
            if let Some(value) = bad {
                let what = format!("{}: the output of {} ({})", program.name, command.op, command.scope);
                return Err(Error::NotFinite { what, value, step: 0 });
            }
        }
        Ok(())
    }

    /// The wgpu buffer that holds a buffer's numbers on the wgpu device, and where in it they begin, in bytes: a result
    /// without a copy to the host. It holds them once [`Session::run`] has returned, until the session writes there again.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on another device.
    #[cfg(feature = "wgpu")]
    pub fn wgpu_buffer(&self, id: BufferId) -> Result<(wgpu::Buffer, u64)> {
        let buffer = self.schedule.buffers.get(id);
        self.engine.wgpu_buffer(buffer.offset, buffer.bytes())
    }
}

/// The first number that is none.
fn not_finite(dtype: DType, bytes: &[u8]) -> Option<f32> {
    match dtype {
        DType::F16 => bytemuck::cast_slice::<u8, f16>(bytes).iter().map(|v| v.to_f32()).find(|v| !v.is_finite()),
        DType::Bf16 => bytemuck::cast_slice::<u8, bf16>(bytes).iter().map(|v| v.to_f32()).find(|v| !v.is_finite()),
        _ => bytemuck::cast_slice::<u8, f32>(bytes).iter().copied().find(|v| !v.is_finite()),
    }
}

/// Where the zone behind a scratch value begins.
fn guard_zone(schedule: &Schedule, slice: &Slice) -> usize {
    place(schedule, slice) + slice.bytes.next_multiple_of(ALIGN)
}
