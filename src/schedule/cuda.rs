//! The cuda device's side of a session.

use super::engine::{Engine, foreign, place};
use super::{Command, Schedule};
use crate::Result;
use crate::device::cuda::{Arena, Function, Gpu, Graph};
use crate::device::{HostWork, ptx};
use crate::graph::Kernel;
use std::ops::Range;
use std::time::Instant;

/// Launches whose parameters never change: kernels read the current row from the arena. So a program is captured as a graph when it first
/// runs as a whole, and then launched at once.
#[derive(Debug)]
pub(super) struct Cuda {
    programs: Vec<Vec<Launch>>,
    graphs: Vec<Option<Graph>>,
    arena: Arena,
    /// The table of rows on the device.
    rows: Option<Arena>,
    gpu: Gpu,
    work: HostWork,
    /// What ran last, for messages.
    last: String,
}

#[derive(Debug)]
struct Launch {
    function: Function,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    parameters: Vec<Vec<u8>>,
    what: String,
}

impl Cuda {
    pub(super) fn new(gpu: &Gpu, schedule: &Schedule) -> Result<Cuda> {
        let arena = Arena::new(gpu, schedule.arena_bytes())?;
        let launches = |commands: &[Command]| {
            commands.iter().map(|command| Launch::new(gpu, &arena, schedule, command)).collect::<Result<Vec<_>>>()
        };
        let programs = schedule.programs.iter().map(|p| launches(&p.commands)).collect::<Result<Vec<_>>>()?;
        let graphs = programs.iter().map(|_| None).collect();
        let (work, last) = (HostWork::default(), "nothing".into());
        Ok(Cuda { programs, graphs, arena, rows: None, gpu: gpu.clone(), work, last })
    }

    fn wait(&self) -> Result<()> {
        self.gpu.wait(&format!("while the GPU ran {}", self.last))
    }
}

impl Launch {
    fn new(gpu: &Gpu, arena: &Arena, schedule: &Schedule, command: &Command) -> Result<Launch> {
        let Kernel::Ptx(kernel) = &command.kernel else { return Err(foreign("cuda", &command.kernel)) };
        let addresses = command.args.iter().map(|slice| arena.at(place(schedule, slice), slice.bytes));
        let addresses = addresses.collect::<Result<Vec<_>>>()?;
        let encode = |map: &_| gpu.encode(map);
        Ok(Launch {
            function: gpu.function(kernel)?,
            grid: command.grid,
            block: command.block,
            shared_bytes: kernel.shared_bytes,
            parameters: ptx::parameters(&addresses, &command.boxes, &command.scalars, encode)?,
            what: format!("{} for {} ({})", kernel.entry, command.op, command.scope),
        })
    }

    fn run(&self, gpu: &Gpu) -> Result<()> {
        gpu.launch(&self.function, self.grid, self.block, self.shared_bytes, &self.parameters, &self.what)
    }
}

impl Engine for Cuda {
    fn bytes(&self) -> usize {
        self.arena.bytes()
    }

    fn look(&mut self, offset: usize, bytes: usize, see: &mut dyn FnMut(&[u8])) -> Result<()> {
        self.wait()?;
        self.arena.look(offset, bytes, see)
    }

    fn fill(&mut self, offset: usize, bytes: usize, make: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        self.arena.fill(offset, bytes, make)
    }

    fn copy(&mut self, from: usize, to: usize, bytes: usize) -> Result<()> {
        self.arena.copy(from, to, bytes)
    }

    fn load_row(&mut self, schedule: &Schedule, row: usize) -> Result<()> {
        let Some(id) = schedule.row else { return Ok(()) };
        let (table, bytes): (&[u8], usize) = (bytemuck::cast_slice(&schedule.rows.data), 4 * schedule.rows.columns);
        let rows = match self.rows.take() {
            Some(rows) => rows,
            None => {
                let mut rows = Arena::new(&self.gpu, table.len())?;
                rows.fill(0, table.len(), &mut |place| place.copy_from_slice(table))?;
                rows
            }
        };
        let (from, to) = (rows.at(row * bytes, bytes)?, self.arena.at(schedule.buffers.get(id).offset, bytes)?);
        self.gpu.copy(from, to, bytes)?;
        self.rows = Some(rows);
        Ok(())
    }

    fn forget_rows(&mut self) {
        self.rows = None;
    }

    fn run(&mut self, schedule: &Schedule, program: usize, commands: Range<usize>) -> Result<()> {
        let start = Instant::now();
        let launches = &self.programs[program];
        self.last.clone_from(&schedule.programs[program].name);
        self.work.dispatches += commands.len();
        self.work.submissions += 1;
        if commands.len() > 1 && commands.len() == launches.len() {
            let graph = match self.graphs[program].take() {
                Some(graph) => graph,
                None => self.gpu.capture(|| launches.iter().try_for_each(|launch| launch.run(&self.gpu)))?,
            };
            graph.launch()?;
            self.graphs[program] = Some(graph);
            self.work.submit_seconds += start.elapsed().as_secs_f64();
            return Ok(());
        }
        launches[commands].iter().try_for_each(|launch| launch.run(&self.gpu))?;
        self.work.encode_seconds += start.elapsed().as_secs_f64();
        Ok(())
    }

    fn time(&mut self, schedule: &Schedule, program: usize, timing: &mut dyn FnMut(usize, f64)) -> Result<()> {
        self.last.clone_from(&schedule.programs[program].name);
        let launches = &self.programs[program];
        let events = self.gpu.events(launches.len() + 1)?;
        // Launched one by one, small kernels would wait for the host, and times be its own.
        let graph = self.gpu.capture(|| {
            events.record(0)?;
            launches.iter().enumerate().try_for_each(|(i, launch)| {
                launch.run(&self.gpu)?;
                events.record(i + 1)
            })
        })?;
        graph.launch()?;
        self.wait()?;
        (0..launches.len()).try_for_each(|i| events.seconds(i).map(|seconds| timing(i, seconds)))
    }

    fn host_work(&self) -> Option<HostWork> {
        Some(self.work)
    }

    fn finish(&mut self) -> Result<()> {
        self.wait()
    }
}
