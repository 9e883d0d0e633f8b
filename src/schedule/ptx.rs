//! The ptx device's side of a session: the machine runs the kernels over an arena in host memory.

use super::engine::{Engine, foreign, place};
use super::{Command, Schedule};
use crate::Result;
use crate::device::{Arena, ptx};
use crate::graph::{Kernel, Region};
use crate::ptx::{Counters, Launch, Memory};
use std::ops::Range;
use std::time::Instant;

#[derive(Debug)]
pub(super) struct Ptx {
    arena: Arena,
    machine: ptx::Machine,
}

impl Ptx {
    /// Parses all modules that the schedule needs.
    pub(super) fn new(schedule: &Schedule) -> Result<Ptx> {
        let mut machine = ptx::Machine::default();
        for command in schedule.programs.iter().flat_map(|p| &p.commands) {
            match &command.kernel {
                Kernel::Ptx(kernel) => machine.entry(kernel)?,
                other => return Err(foreign("ptx", other)),
            };
        }
        Ok(Ptx { arena: Arena::new(schedule.arena_bytes())?, machine })
    }

    fn command(&mut self, schedule: &Schedule, command: &Command) -> Result<Counters> {
        let Kernel::Ptx(kernel) = &command.kernel else { return Err(foreign("ptx", &command.kernel)) };
        // Arguments that share bytes, as those of a launch in place do, lie in one allocation; each of the others has its own, so
        // that the machine sees an access behind its end.
        let mut spans: Vec<(usize, usize)> =
            command.args.iter().map(|a| (place(schedule, a), place(schedule, a) + a.bytes)).collect();
        let starts: Vec<usize> = spans.iter().map(|s| s.0).collect();
        spans.sort_unstable();
        spans.dedup_by(|b, a| {
            let shared = b.0 < a.1;
            if shared {
                a.1 = a.1.max(b.1);
            }
            shared
        });
        let mut memory = Memory::new();
        let mut bases = Vec::with_capacity(spans.len());
        for &(start, end) in &spans {
            bases.push(memory.allocate_with("an argument", self.arena.slice_mut(start, end - start)?)?);
        }
        let address = |start: &usize| {
            let span = spans.partition_point(|s| s.0 <= *start).saturating_sub(1);
            bases[span] + (start - spans[span].0) as u64
        };
        let addresses: Vec<u64> = starts.iter().map(address).collect();
        let mut launch = Launch::new(command.grid, command.block);
        launch.shared_bytes = kernel.shared_bytes;
        launch.arguments = ptx::parameters(&addresses, &command.scalars)?;
        let counters = self.machine.run(kernel, &launch, &mut memory)?;
        for (&(start, end), base) in spans.iter().zip(&bases) {
            if let Some((bytes, _)) = memory.bytes(*base) {
                self.arena.slice_mut(start, end - start)?.copy_from_slice(bytes);
            }
        }
        Ok(counters)
    }
}

impl Engine for Ptx {
    fn bytes(&self) -> usize {
        self.arena.bytes()
    }

    fn look(&mut self, offset: usize, bytes: usize, see: &mut dyn FnMut(&[u8])) -> Result<()> {
        see(self.arena.slice_mut(offset, bytes)?);
        Ok(())
    }

    fn fill(&mut self, offset: usize, bytes: usize, make: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        make(self.arena.slice_mut(offset, bytes)?);
        Ok(())
    }

    fn memory(&mut self, offset: usize, bytes: usize) -> Result<Region> {
        self.arena.region(offset, bytes)
    }

    fn copy(&mut self, from: usize, to: usize, bytes: usize) -> Result<()> {
        self.arena.copy(from, to, bytes)
    }

    fn load_row(&mut self, schedule: &Schedule, row: usize) -> Result<()> {
        let Some(id) = schedule.row else { return Ok(()) };
        let offset = schedule.buffers.get(id).offset;
        self.arena.slice_mut(offset, schedule.rows.columns)?.copy_from_slice(schedule.rows.row(row));
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
