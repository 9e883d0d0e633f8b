//! What a session asks of a device: memory, and launches run over it.

use super::{Command, Schedule, Slice, Space};
use crate::device::{Arena, Device, HostWork};
use crate::graph::{Args, Kernel, Region};
use crate::ptx::Counters;
use crate::{Error, Result};
use std::fmt::Debug;
use std::ops::Range;
use std::time::Instant;

/// A device's side of a session. Calls take effect in their order; only `look` and `finish` must wait for what came before.
pub(super) trait Engine: Debug + Send {
    /// Bytes of the arena.
    fn bytes(&self) -> usize;

    /// Shows `see` bytes of the arena, in one or several pieces, each but the last a multiple of 8 bytes.
    fn look(&mut self, offset: usize, bytes: usize, see: &mut dyn FnMut(&[u8])) -> Result<()>;

    /// Has `make` write bytes of the arena, all of them, at once.
    fn fill(&mut self, offset: usize, bytes: usize, make: &mut dyn FnMut(&mut [u8])) -> Result<()>;

    /// Bytes of the arena in host memory.
    fn memory(&mut self, _offset: usize, _bytes: usize) -> Result<Region> {
        Err(Error::unsupported("a buffer in host memory", "the device has memory of its own"))
    }

    /// Copies bytes of the arena; the two places may overlap.
    fn copy(&mut self, from: usize, to: usize, bytes: usize) -> Result<()>;

    /// Copies row `row` of the schedule's table to where the current row lies.
    fn load_row(&mut self, schedule: &Schedule, row: usize) -> Result<()>;

    /// The table of rows has changed.
    fn forget_rows(&mut self) {}

    /// Checks every access of every launch from now on.
    fn check_accesses(&mut self) {}

    /// Runs commands of a program.
    fn run(&mut self, schedule: &Schedule, program: usize, commands: Range<usize>) -> Result<()>;

    /// Runs a program; `timing` is told every command's number and seconds.
    fn time(&mut self, schedule: &Schedule, program: usize, timing: &mut dyn FnMut(usize, f64)) -> Result<()>;

    /// Runs a program; `counting` is told every command's number and what it counts.
    fn count(
        &mut self,
        _schedule: &Schedule,
        _program: usize,
        _counting: &mut dyn FnMut(usize, Counters),
    ) -> Result<()> {
        Err(Error::unsupported("counting what kernels do", "only the ptx device does"))
    }

    /// Lets the device start on what it was given, before the host is asked something.
    fn start(&mut self) -> Result<()> {
        Ok(())
    }

    /// What the host has done so far to have launches run; `None` where it runs them itself.
    fn host_work(&self) -> Option<HostWork> {
        None
    }

    /// The wgpu buffer that holds bytes of the arena, and where in it they begin.
    #[cfg(feature = "wgpu")]
    fn wgpu_buffer(&self, _offset: usize, _bytes: usize) -> Result<(wgpu::Buffer, u64)> {
        Err(Error::unsupported("a wgpu buffer", "the session does not run on the wgpu device"))
    }

    /// Waits until all is done, and says what failed on the way.
    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

/// The engine of a device, with an arena for the schedule.
pub(super) fn engine(device: &Device, schedule: &Schedule) -> Result<Box<dyn Engine>> {
    Ok(match device {
        Device::Cpu => Box::new(Cpu { arena: Arena::new(schedule.arena_bytes())? }),
        #[cfg(feature = "cuda")]
        Device::Cuda(gpu) => Box::new(super::cuda::Cuda::new(gpu, schedule)?),
        Device::Ptx(_) => Box::new(super::ptx::Ptx::new(schedule)?),
        #[cfg(feature = "wgpu")]
        Device::Wgpu(gpu) => Box::new(super::gpu::Wgpu::new(gpu, schedule)?),
    })
}

/// An argument's offset in the arena.
pub(super) fn place(schedule: &Schedule, slice: &Slice) -> usize {
    match slice.space {
        Space::Buffers => slice.offset,
        Space::Scratch => schedule.buffers.bytes() + slice.offset,
    }
}

/// Launches are calls.
#[derive(Debug)]
struct Cpu {
    arena: Arena,
}

impl Cpu {
    fn command(&mut self, schedule: &Schedule, command: &Command, regions: &mut Vec<Region>) -> Result<()> {
        regions.clear();
        for slice in &command.args {
            regions.push(self.arena.region(place(schedule, slice), slice.bytes)?);
        }
        match &command.kernel {
            Kernel::Cpu { run, .. } => run(&Args { regions, scalars: &command.scalars }),
            other => return Err(foreign("cpu", other)),
        }
        Ok(())
    }
}

/// A program was lowered for another device than it is run on.
pub(super) fn foreign(device: &'static str, kernel: &Kernel) -> Error {
    Error::Verify { pass: "session", reason: format!("{kernel:?} cannot run on the device {device}") }
}

impl Engine for Cpu {
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
        let mut regions = Vec::new();
        let all = &schedule.programs[program].commands[commands];
        all.iter().try_for_each(|command| self.command(schedule, command, &mut regions))
    }

    fn time(&mut self, schedule: &Schedule, program: usize, timing: &mut dyn FnMut(usize, f64)) -> Result<()> {
        let mut regions = Vec::new();
        for (number, command) in schedule.programs[program].commands.iter().enumerate() {
            let start = Instant::now();
            self.command(schedule, command, &mut regions)?;
            timing(number, start.elapsed().as_secs_f64());
        }
        Ok(())
    }
}
