//! The machine: a grid is run cluster by cluster, a cluster of one block where nothing else is said; the warps of its blocks take turns, a warp's
//! lanes go in step.

mod context;
mod launch;

use super::check::{Failure, Fault, FaultKind, Shadow, Trap};
use super::count::{Class, Counters};
use super::instr::Flow;
use super::instr::barrier::{Barrier, CLUSTER_BARRIER, Mbarrier};
use super::instr::copy::Copies;
use super::instr::wgmma::Products;
use super::memory::{Local, Memory};
use super::module::Entry;
use std::collections::BTreeMap;
use std::ops::Range;

pub(super) use context::{Context, address_type, class_of, immediate, window};
pub use launch::Launch;

/// Instructions that a warp issues before the next one has its turn.
const TURN: usize = 1000;

/// A value of every lane.
pub(super) type Row = [u64; 32];

impl Entry {
    fn run(
        &self,
        memory: &mut Memory,
        launch: &Launch,
        parameters: &[u8],
        addresses: &[u64],
    ) -> Result<Counters, Failure> {
        let blocks = self.limits.cluster.iter().product::<u32>() as usize;
        let warps = launch.block.iter().product::<u32>().div_ceil(32) as usize;
        let mut machine = Machine {
            entry: self,
            launch,
            parameters,
            addresses,
            memory,
            counters: Counters::default(),
            classes: [0; Class::ALL.len()],
            issued: 0,
            blocks: Vec::new(),
            columns: warps + 1,
            shadows: (0..blocks).map(|_| Shadow::default()).collect(),
            ticks: u32::MAX,
        };
        for cluster in places(std::array::from_fn(|axis| launch.grid[axis] / self.limits.cluster[axis])) {
            machine.cluster(cluster)?;
        }
        let mut counters = machine.counters;
        let issued = Class::ALL.into_iter().zip(machine.classes);
        counters.instructions = issued.filter(|(_, count)| *count > 0).collect();
        Ok(counters)
    }
}

/// All places of a grid, x first.
fn places([x, y, z]: [u32; 3]) -> impl Iterator<Item = [u32; 3]> {
    (0..z).flat_map(move |z| (0..y).flat_map(move |y| (0..x).map(move |x| [x, y, z])))
}

/// Lanes that are at one place, and where they wait for the others.
#[derive(Clone, Copy, Debug)]
struct Frame {
    pc: usize,
    /// The instruction before which the frame ends; the length of the code if none.
    reconverge: usize,
    mask: u32,
    /// Waits for lanes of the warp that are elsewhere.
    parked: bool,
}

/// 32 threads.
pub(super) struct Warp {
    pub index: usize,
    /// The place of its block in the grid, and that block's number in the cluster.
    block: [u32; 3],
    rank: usize,
    /// What it knows of all warps of the cluster, see [`super::check`], and which of these columns is its own.
    pub clock: Vec<u32>,
    pub column: usize,
    /// Lanes that have not ended.
    pub live: u32,
    stack: Vec<Frame>,
    /// By slot and lane.
    pub registers: Vec<Row>,
    /// By slot, a bit a lane.
    pub predicates: Vec<u32>,
    /// The carry flag, a bit a lane.
    pub carry: u32,
    /// Places in the block, by axis.
    pub threads: [Row; 3],
    local: Vec<Local>,
    /// Instructions issued so far.
    pub time: u32,
    /// The barrier that it waits at and the count of that barrier's completions when it came.
    pub waiting: Option<(usize, u64)>,
    /// By lane; empty until there are any.
    pub copies: Vec<Copies>,
    /// Products of matrices under way.
    pub products: Products,
    /// The count of completions of the cluster's barrier when it arrived there last.
    pub arrived: Option<u64>,
    /// Whether it has touched another block's shared memory since it waited there.
    pub away: bool,
}

/// A block that runs.
#[derive(Default)]
pub(super) struct Block {
    /// Its number in its cluster.
    rank: usize,
    pub shared: Vec<u8>,
    pub shadow: Shadow,
    /// Of its warps among all clocks of the cluster, and the last one of its bulk copies.
    pub columns: Range<usize>,
    pub bulk_clock: u32,
    pub barriers: Vec<Barrier>,
    /// By address.
    pub mbarriers: BTreeMap<u64, Mbarrier>,
    /// Warps that have not ended.
    pub live: u32,
    /// The count of completions of the cluster's barrier when another block last touched its shared memory.
    visited: Option<u64>,
}

struct Machine<'a> {
    entry: &'a Entry,
    launch: &'a Launch,
    parameters: &'a [u8],
    addresses: &'a [u64],
    memory: &'a mut Memory,
    counters: Counters,
    /// Instructions by class.
    classes: [u64; Class::ALL.len()],
    issued: u64,
    /// The blocks of the cluster that runs; in place of the one whose turn it is there is one without warps.
    blocks: Vec<Block>,
    /// Of a block among the clocks: one a warp, and one of the copies that come by themselves.
    columns: usize,
    /// Of shared memory by rank, and the last tick of the blocks so far.
    shadows: Vec<Shadow>,
    ticks: u32,
}

/// Whether a warp can go on at once.
enum Turn {
    Again,
    /// Others should run first.
    Over,
}

impl Machine<'_> {
    fn cluster(&mut self, place: [u32; 3]) -> Result<(), Failure> {
        let blocks = self.shadows.len();
        if self.ticks > u32::MAX / 2 {
            let bytes = self.entry.shared_bytes(self.launch) as usize;
            self.shadows = (0..blocks).map(|rank| Shadow::new(bytes, self.columns(rank))).collect();
            self.ticks = 0;
        }
        let cluster = self.entry.limits.cluster;
        let indices = places(cluster).map(|at| std::array::from_fn(|axis| place[axis] * cluster[axis] + at[axis]));
        let mut warps: Vec<Vec<Warp>> = indices.enumerate().map(|(rank, index)| self.warps(rank, index)).collect();
        self.blocks = (0..blocks).map(|rank| self.begin(rank)).collect();
        while self.blocks.iter().any(|block| block.live != 0) {
            let mut idle = true;
            for (rank, warps) in warps.iter_mut().enumerate() {
                let mut block = std::mem::take(&mut self.blocks[rank]);
                for warp in warps {
                    if warp.live == 0 || block.is_waiting(warp) {
                        continue;
                    }
                    idle = false;
                    self.turn(&mut block, warp)?;
                }
                self.blocks[rank] = block;
            }
            if idle {
                return Err(self.deadlock(&warps));
            }
        }
        let bulk = self.blocks.iter().map(|block| block.bulk_clock);
        self.ticks = warps.iter().flatten().map(|warp| warp.clock[warp.column]).chain(bulk).fold(self.ticks, u32::max);
        let blocks = std::mem::take(&mut self.blocks);
        self.shadows = blocks.into_iter().map(|block| block.shadow).collect();
        Ok(())
    }

    /// The columns of the block with a number in the cluster.
    fn columns(&self, rank: usize) -> Range<usize> {
        rank * self.columns..(rank + 1) * self.columns
    }

    /// Of all blocks of the cluster.
    fn all_columns(&self) -> usize {
        self.shadows.len() * self.columns
    }

    /// The block with a number in the cluster before it runs.
    fn begin(&mut self, rank: usize) -> Block {
        let mut shadow = std::mem::take(&mut self.shadows[rank]);
        shadow.next_block(self.ticks);
        Block {
            rank,
            shared: vec![0; self.entry.shared_bytes(self.launch) as usize],
            shadow,
            columns: self.columns(rank),
            bulk_clock: self.ticks + 1,
            barriers: (0..=CLUSTER_BARRIER).map(|_| Barrier::new(self.all_columns())).collect(),
            mbarriers: BTreeMap::new(),
            live: u32::MAX >> (33 - self.columns),
            visited: None,
        }
    }

    /// The warps of the block with a number in the cluster, at a place of the grid.
    fn warps(&self, rank: usize, block: [u32; 3]) -> Vec<Warp> {
        let (start, columns) = (self.ticks, self.columns(rank));
        let threads: Vec<[u32; 3]> = places(self.launch.block).collect();
        let chunks = threads.chunks(32).enumerate();
        chunks
            .map(|(index, chunk)| {
                let live = u32::MAX >> (32 - chunk.len());
                let place = |axis: usize, lane: usize| chunk.get(lane).map_or(0, |t: &[u32; 3]| t[axis].into());
                let threads = std::array::from_fn(|axis| std::array::from_fn(|lane| place(axis, lane)));
                let frame = Frame { pc: 0, reconverge: self.entry.code.len(), mask: live, parked: false };
                let column = columns.start + index;
                Warp {
                    index,
                    block,
                    rank,
                    // Its own begins one later: a mark that is not later than `start` is of a cluster before.
                    clock: (0..self.all_columns()).map(|other| start + u32::from(other == column)).collect(),
                    column,
                    live,
                    stack: vec![frame],
                    // Not a number in any type: a register that is read before it is written shows.
                    registers: vec![[0x7ff7_ffff_7fb7_7fb7; 32]; self.entry.registers],
                    predicates: vec![u32::MAX; self.entry.predicates],
                    carry: 0,
                    threads,
                    local: vec![Local::new(self.entry.local_bytes); if self.entry.local_bytes > 0 { 32 } else { 0 }],
                    time: 0,
                    waiting: None,
                    copies: Vec::new(),
                    products: Products::default(),
                    arrived: None,
                    away: false,
                }
            })
            .collect()
    }

    fn turn(&mut self, block: &mut Block, warp: &mut Warp) -> Result<(), Failure> {
        for _ in 0..TURN {
            let pc = warp.stack.last().map_or(0, |f| f.pc);
            match self.step(block, warp) {
                Ok(Turn::Again) if warp.live != 0 => {}
                Ok(_) => break,
                Err(trap) => return Err(self.fault(warp, pc, trap)),
            }
        }
        if warp.live == 0 {
            block.live &= !(1 << warp.index);
            if block.live == 0 && block.visited == Some(block.barriers[CLUSTER_BARRIER].completions) {
                let reason = "ends, and nothing holds it until other blocks are done with its shared memory";
                let trap = Trap::new(0, FaultKind::Misuse(reason.into()));
                return Err(self.fault(warp, self.entry.code.len().saturating_sub(1), trap));
            }
            block.complete_barriers();
            block.complete_cluster(&mut self.blocks);
        }
        Ok(())
    }

    fn step(&mut self, block: &mut Block, warp: &mut Warp) -> Result<Turn, Trap> {
        let Some(frame) = warp.stack.last().copied() else {
            warp.live = 0;
            return Ok(Turn::Over);
        };
        let end = self.entry.code.len();
        if frame.pc >= end {
            warp.end(frame.mask);
            return Ok(Turn::Again);
        }
        if frame.pc == frame.reconverge {
            warp.stack.pop();
            return Ok(Turn::Again);
        }
        let instruction = &self.entry.code[frame.pc];
        let mut mask = frame.mask;
        if let Some((slot, negated)) = instruction.guard {
            let holds = warp.predicates[slot as usize];
            mask &= if negated { !holds } else { holds };
        }
        self.issued += 1;
        if self.issued > self.launch.budget {
            return Err(Trap::new(frame.mask.trailing_zeros() as usize, FaultKind::Budget(self.launch.budget)));
        }
        self.classes[instruction.class as usize] += 1;
        self.counters.lanes += u64::from(mask.count_ones());
        warp.time = warp.time.wrapping_add(1);
        if mask == 0 {
            warp.advance();
            return Ok(Turn::Again);
        }
        let mut context = Context {
            entry: self.entry,
            launch: self.launch,
            parameters: self.parameters,
            addresses: self.addresses,
            memory: self.memory,
            counters: &mut self.counters,
            block,
            cluster: &mut self.blocks,
            warp,
            mask,
            pc: frame.pc,
        };
        match instruction.action.run(&mut context)? {
            Flow::Next => warp.advance(),
            Flow::Yield => {
                warp.advance();
                return Ok(Turn::Over);
            }
            Flow::Wait => return Ok(Turn::Over),
            Flow::Jump(label) => self.jump(warp, frame, mask, self.entry.labels[label]),
            Flow::End => {
                warp.advance();
                warp.end(mask);
            }
            Flow::Missing(lanes) => warp.park(lanes)?,
        }
        Ok(Turn::Again)
    }

    /// Moves the lanes of `mask` to `target` and the others of the frame on.
    fn jump(&mut self, warp: &mut Warp, frame: Frame, mask: u32, target: usize) {
        let rest = frame.mask & !mask;
        let code = &self.entry.code;
        let next = frame.pc + 1;
        if rest == 0 {
            warp.go(target);
            return;
        }
        self.counters.divergent_branches += 1;
        // Whoever goes straight to a `ret` has ended: nobody must wait for it.
        let ends = |pc: usize| code.get(pc).is_none_or(|i| i.action.ends() && i.guard.is_none());
        match (ends(target), ends(next)) {
            (true, _) => {
                warp.go(next);
                warp.end(mask);
            }
            (_, true) => {
                warp.go(target);
                warp.end(rest);
            }
            _ => {
                // Lanes that have nowhere of their own to meet need no frame to meet in.
                let reconverge = match self.entry.reconverge[frame.pc] {
                    at if at == code.len() => {
                        warp.stack.pop();
                        frame.reconverge
                    }
                    at => {
                        warp.go(at);
                        at
                    }
                };
                let sides = [(next, rest), (target, mask)].into_iter().filter(|(pc, _)| *pc != reconverge);
                warp.stack.extend(sides.map(|(pc, mask)| Frame { pc, reconverge, mask, parked: false }));
            }
        }
    }

    fn fault(&self, warp: &Warp, pc: usize, trap: Trap) -> Failure {
        let (line, opcode) = self.entry.code.get(pc).map_or((0, ""), |i| (i.line, i.opcode.as_str()));
        Failure::Fault(Box::new(Fault {
            kernel: self.entry.name.clone(),
            block: warp.block,
            thread: warp.threads.map(|axis| axis[trap.lane % 32] as u32),
            line,
            opcode: opcode.to_owned(),
            kind: trap.kind,
        }))
    }

    /// Every warp waits.
    fn deadlock(&self, warps: &[Vec<Warp>]) -> Failure {
        let rank = self.blocks.iter().position(|block| block.live != 0).unwrap_or(0);
        let warps = &warps[rank];
        let place = |warp: &Warp| {
            let (id, _) = warp.waiting?;
            let line = self.entry.code.get(warp.stack.last()?.pc)?.line;
            Some(format!("warp {} waits at barrier {id} in line {line}", warp.index))
        };
        let places: Vec<String> = warps.iter().filter(|w| w.live != 0).filter_map(place).collect();
        let reason = format!("{}, and nobody else comes", places.join(", "));
        let first = warps.iter().find(|w| w.live != 0).unwrap_or(&warps[0]);
        let pc = first.stack.last().map_or(0, |f| f.pc);
        let lane = first.live.trailing_zeros() as usize;
        self.fault(first, pc, Trap::new(lane, FaultKind::BarrierDivergence(reason)))
    }
}

impl Warp {
    fn go(&mut self, pc: usize) {
        if let Some(frame) = self.stack.last_mut() {
            frame.pc = pc;
        }
    }

    fn advance(&mut self) {
        if let Some(frame) = self.stack.last_mut() {
            frame.pc += 1;
        }
    }

    fn end(&mut self, lanes: u32) {
        self.live &= !lanes;
        self.stack.iter_mut().for_each(|f| f.mask &= !lanes);
        self.stack.retain(|f| f.mask != 0);
    }

    /// Lets the lanes that are missing here come first, if they are on a way of their own.
    fn park(&mut self, missing: u32) -> Result<(), Trap> {
        let [.., below, top] = self.stack.as_mut_slice() else { return Err(self.diverged(missing)) };
        if below.reconverge != top.reconverge || below.parked {
            return Err(self.diverged(missing));
        }
        top.parked = true;
        std::mem::swap(below, top);
        Ok(())
    }

    fn diverged(&self, missing: u32) -> Trap {
        let lane = self.stack.last().map_or(0, |f| f.mask.trailing_zeros());
        let reason = format!("the lanes {missing:#010x} of the warp are elsewhere");
        Trap::new(lane as usize, FaultKind::BarrierDivergence(reason))
    }
}

impl Block {
    /// Its warps, ended ones too.
    pub fn warps(&self) -> usize {
        self.columns.len() - 1
    }

    /// Whether the warp's barrier has yet to complete.
    fn is_waiting(&self, warp: &Warp) -> bool {
        warp.waiting.is_some_and(|(id, completions)| self.barriers[id].completions == completions)
    }
}
