//! The cuda device's side of a session.

use super::engine::{Engine, foreign, place};
use super::order::{Access, dependencies};
use super::{Command, Schedule};
use crate::Result;
use crate::device::cuda::{Arena, Gpu, Graph, Launch, Node};
use crate::device::{HostWork, ptx};
use crate::graph::Kernel;
use std::ops::Range;
use std::time::Instant;

/// Launches whose parameters never change: kernels read the current row from the arena. So a program becomes a graph when it first runs as a
/// whole, and is then launched at once. What does not touch the same memory runs side by side.
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

impl Cuda {
    pub(super) fn new(gpu: &Gpu, schedule: &Schedule) -> Result<Cuda> {
        let arena = Arena::new(gpu, schedule.arena_bytes())?;
        let launches = |commands: &[Command]| {
            commands.iter().map(|command| launch(gpu, &arena, schedule, command)).collect::<Result<Vec<_>>>()
        };
        let programs = schedule.programs.iter().map(|p| launches(&p.commands)).collect::<Result<Vec<_>>>()?;
        let graphs = programs.iter().map(|_| None).collect();
        let (work, last) = (HostWork::default(), "nothing".into());
        Ok(Cuda { programs, graphs, arena, rows: None, gpu: gpu.clone(), work, last })
    }

    /// All launches of a program, each behind those that it has to wait for.
    fn graph(&self, accesses: &[Access], launches: &[Launch]) -> Result<Graph> {
        let plan = self.gpu.plan()?;
        let mut nodes = Vec::with_capacity(launches.len());
        for (launch, waits) in launches.iter().zip(dependencies(accesses)) {
            let after: Vec<Node> = waits.iter().map(|i| nodes[*i]).collect();
            nodes.push(plan.launch(launch, &after)?);
        }
        plan.finish()
    }

    fn wait(&self) -> Result<()> {
        self.gpu.wait(&format!("while the GPU ran {}", self.last))
    }
}

fn launch(gpu: &Gpu, arena: &Arena, schedule: &Schedule, command: &Command) -> Result<Launch> {
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

/// The places in the arena that each launch of a program touches. What it does not only read counts as written: `Command::writes` leaves out what
/// launches of one op hand on to each other.
fn accesses(schedule: &Schedule, program: usize) -> Vec<Access> {
    let of = |command: &Command| {
        let mut access = Access::default();
        for (i, slice) in command.args.iter().enumerate() {
            let start = place(schedule, slice);
            let places = if command.reads.contains(&i) { &mut access.reads } else { &mut access.writes };
            places.push(start..start + slice.bytes);
        }
        access
    };
    schedule.programs[program].commands.iter().map(of).collect()
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
                None => self.graph(&accesses(schedule, program), launches)?,
            };
            graph.launch()?;
            self.graphs[program] = Some(graph);
            self.work.submit_seconds += start.elapsed().as_secs_f64();
            return Ok(());
        }
        launches[commands].iter().try_for_each(|launch| self.gpu.launch(launch))?;
        self.work.encode_seconds += start.elapsed().as_secs_f64();
        Ok(())
    }

    fn time(&mut self, schedule: &Schedule, program: usize, timing: &mut dyn FnMut(usize, f64)) -> Result<()> {
        self.last.clone_from(&schedule.programs[program].name);
        let launches = &self.programs[program];
        let events = self.gpu.events(launches.len() + 1)?;
        // Launched one by one, small kernels would wait for the host, and times be its own.
        let plan = self.gpu.plan()?;
        let mut last = plan.record(&events, 0, &[])?;
        for (i, launch) in launches.iter().enumerate() {
            last = plan.record(&events, i + 1, &[plan.launch(launch, &[last])?])?;
        }
        plan.finish()?.launch()?;
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
