//! The ptx device's side of a session: the machine runs the kernels over an arena in host memory.

use super::engine::{Engine, foreign, place};
use super::{Command, Schedule};
use crate::Result;
use crate::device::ptx;
use crate::graph::Kernel;
use crate::ptx::memory::Window;
use crate::ptx::{Counters, Launch, Memory, TensorMap};
use std::ops::Range;
use std::time::Instant;

#[derive(Debug)]
pub(super) struct Ptx {
    memory: Memory,
    /// The arena's address.
    arena: u64,
    bytes: usize,
    machine: ptx::Machine,
}

impl Ptx {
    /// Parses all modules that the schedule needs. Buffers count as written: they are zero.
    pub(super) fn new(schedule: &Schedule) -> Result<Ptx> {
        let mut machine = ptx::Machine::default();
        for command in schedule.programs.iter().flat_map(|p| &p.commands) {
            match &command.kernel {
                Kernel::Ptx(kernel) => machine.entry(kernel)?,
                other => return Err(foreign("ptx", other)),
            };
        }
        let (mut memory, bytes) = (Memory::new(), schedule.arena_bytes());
        let arena = memory.allocate("the arena", bytes)?;
        memory.slice_mut(arena, schedule.buffers.bytes())?.fill(0);
        Ok(Ptx { memory, arena, bytes, machine })
    }

    /// The address of a place in the arena.
    fn at(&self, offset: usize) -> u64 {
        self.arena + offset as u64
    }

    /// Runs a launch, which may touch its arguments and nothing else. What it is to write into scratch memory is unwritten before it, whatever
    /// lay there.
    fn command(&mut self, schedule: &Schedule, command: &Command) -> Result<Counters> {
        let Kernel::Ptx(kernel) = &command.kernel else { return Err(foreign("ptx", &command.kernel)) };
        for (_, slice) in command.fresh() {
            self.memory.forget(self.at(place(schedule, slice)), slice.bytes)?;
        }
        let addresses: Vec<u64> = command.args.iter().map(|slice| self.at(place(schedule, slice))).collect();
        let mut launch = Launch::new(command.grid, command.block);
        for (i, (slice, address)) in command.args.iter().zip(&addresses).enumerate() {
            let name = format!("argument {i}");
            let writable = !command.reads.contains(&i);
            launch.windows.push(Window { name, address: *address, bytes: slice.bytes as u64, writable });
        }
        launch.shared_bytes = kernel.shared_bytes;
        launch.arguments = ptx::parameters(&addresses, &command.boxes, &command.scalars, TensorMap::encode)?;
        self.machine.run(kernel, &launch, &mut self.memory)
    }
}

impl Engine for Ptx {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn look(&mut self, offset: usize, bytes: usize, see: &mut dyn FnMut(&[u8])) -> Result<()> {
        see(self.memory.slice(self.at(offset), bytes)?);
        Ok(())
    }

    fn fill(&mut self, offset: usize, bytes: usize, make: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        make(self.memory.slice_mut(self.at(offset), bytes)?);
        Ok(())
    }

    fn copy(&mut self, from: usize, to: usize, bytes: usize) -> Result<()> {
        let copied = self.memory.slice(self.at(from), bytes)?.to_vec();
        self.memory.slice_mut(self.at(to), bytes)?.copy_from_slice(&copied);
        Ok(())
    }

    fn load_row(&mut self, schedule: &Schedule, row: usize) -> Result<()> {
        let Some(id) = schedule.row else { return Ok(()) };
        let offset = schedule.buffers.get(id).offset;
        let row: &[u8] = bytemuck::cast_slice(schedule.rows.row(row));
        self.memory.slice_mut(self.at(offset), row.len())?.copy_from_slice(row);
        Ok(())
    }

    fn run(&mut self, schedule: &Schedule, program: usize, commands: Range<usize>) -> Result<()> {
        let all = &schedule.programs[program].commands[commands];
        all.iter().try_for_each(|command| self.command(schedule, command).map(drop))
    }

    fn count(&mut self, schedule: &Schedule, program: usize, counting: &mut dyn FnMut(usize, Counters)) -> Result<()> {
        for (number, command) in schedule.programs[program].commands.iter().enumerate() {
            counting(number, self.command(schedule, command)?);
        }
        Ok(())
    }

    fn time(&mut self, schedule: &Schedule, program: usize, timing: &mut dyn FnMut(usize, f64)) -> Result<()> {
        for (number, command) in schedule.programs[program].commands.iter().enumerate() {
            let start = Instant::now();
            self.command(schedule, command)?;
            timing(number, start.elapsed().as_secs_f64());
        }
        Ok(())
    }
}
