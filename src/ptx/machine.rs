//! The machine: a grid is run cluster by cluster, a cluster of one block where nothing else is said; the warps of its blocks take turns, a warp's
//! lanes go in step.

use super::check::{Conflict, Failure, Fault, FaultKind, Mark, Shadow, Trap};
use super::count::{Class, Counters};
use super::instr::Flow;
use super::instr::barrier::{Barrier, CLUSTER_BARRIER, Mbarrier};
use super::instr::copy::Copies;
use super::instr::wgmma::Products;
use super::memory::{
    CALL_PARAMETERS, CLUSTER_STEP, LOCAL_WINDOW, Local, Memory, PARAM_WINDOW, SHARED_START, Window, resolve,
};
use super::module::{Entry, Operand, Space, Special, Type};
use super::parse::MAX_SHARED;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Instructions that a warp issues before the next one has its turn.
const TURN: usize = 1000;
/// Most threads of a block, and blocks of a cluster on any GPU.
const MAX_THREADS: u64 = 1024;
const MAX_CLUSTER: u64 = 8;
/// Bytes of local memory of all threads that run at a time, at most.
const MAX_LOCAL_OF_ALL: u64 = 1 << 30;

/// A value of every lane.
pub(super) type Row = [u64; 32];

/// How a kernel is launched.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z: 1024 at most.
    pub block: [u32; 3],
    /// Bytes of `.extern .shared` memory.
    pub shared_bytes: u32,
    /// The bytes of each parameter.
    pub arguments: Vec<Vec<u8>>,
    /// What it may touch of global memory besides the module's variables; all allocations if the list is empty.
    pub windows: Vec<Window>,
    /// Instructions of warps after which the launch fails, so that an endless loop ends.
    pub budget: u64,
}

impl Launch {
    /// A launch without dynamic shared memory and arguments, and a budget of 10⁹ instructions.
    pub fn new(grid: [u32; 3], block: [u32; 3]) -> Self {
        Launch { grid, block, shared_bytes: 0, arguments: Vec::new(), windows: Vec::new(), budget: 1_000_000_000 }
    }

    /// Adds an argument: an address, or a scalar.
    pub fn argument(mut self, value: impl bytemuck::NoUninit) -> Self {
        self.arguments.push(bytemuck::bytes_of(&value).to_vec());
        self
    }

    /// Adds a window that may be read, and written if `writable`.
    pub fn window(mut self, name: &str, address: u64, bytes: u64, writable: bool) -> Self {
        self.windows.push(Window { name: name.to_owned(), address, bytes, writable });
        self
    }
}

impl Entry {
    /// Runs the kernel over `memory` until all of its threads have ended.
    ///
    /// # Errors
    /// [`Failure::Request`] if the launch does not fit the kernel, [`Failure::Fault`] at the first thing that the kernel
    /// does wrong.
    pub fn launch(&self, memory: &mut Memory, launch: &Launch) -> Result<Counters, Failure> {
        let parameters = self.check(launch).map_err(Failure::Request)?;
        let addresses = self.place(memory).map_err(|e| Failure::Request(e.to_string()))?;
        memory.begin_launch(&launch.windows).map_err(|e| Failure::Request(e.to_string()))?;
        let counters = self.run(memory, launch, &parameters, &addresses);
        let distinct = memory.end_launch();
        let mut counters = counters?;
        [counters.loads.distinct_bytes, counters.stores.distinct_bytes] = distinct;
        Ok(counters)
    }

    fn run(
        &self,
        memory: &mut Memory,
        launch: &Launch,
        parameters: &[u8],
        addresses: &[u64],
    ) -> Result<Counters, Failure> {
        let blocks = self.limits.cluster.iter().product::<u32>() as usize;
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

    /// The bytes of all parameters, if the launch fits.
    fn check(&self, launch: &Launch) -> Result<Vec<u8>, String> {
        let name = &self.name;
        let threads: u64 = launch.block.iter().map(|n| u64::from(*n)).product();
        let [x, y, z] = launch.grid;
        let grid = (1..1 << 31).contains(&x) && (1..1 << 16).contains(&y) && (1..1 << 16).contains(&z);
        if !grid || threads == 0 || threads > MAX_THREADS {
            return Err(format!("a grid of {:?} blocks of {:?} threads is not possible", launch.grid, launch.block));
        }
        if let Some(required) = self.limits.threads.filter(|r| *r != launch.block) {
            return Err(format!("`{name}` requires blocks of {required:?} threads, not {:?}", launch.block));
        }
        if let Some(most) = self.limits.most_threads.filter(|most| threads > u64::from(*most)) {
            return Err(format!("`{name}` takes {most} threads a block at most, not {threads}"));
        }
        let cluster = self.limits.cluster;
        let blocks = cluster.iter().fold(1, |all: u64, n| all.saturating_mul(u64::from(*n)));
        let whole = (0..3).all(|axis| cluster[axis] > 0 && launch.grid[axis].is_multiple_of(cluster[axis]));
        if !whole || blocks > MAX_CLUSTER {
            return Err(format!("a grid of {:?} blocks cannot be in clusters of {cluster:?}", launch.grid));
        }
        if self.local_bytes * threads * blocks > MAX_LOCAL_OF_ALL {
            let local = self.local_bytes;
            return Err(format!(
                "`{name}` has {local} bytes of local memory a thread, {threads} threads and {blocks} blocks at once: too much"
            ));
        }
        if self.shared_bytes(launch) > MAX_SHARED {
            return Err(format!(
                "`{name}` has {} bytes of static shared memory, and {} more are asked for, where {MAX_SHARED} \
                 are possible",
                self.static_shared, launch.shared_bytes
            ));
        }
        let expected = || self.parameters.iter().map(|p| p.to_string()).collect::<Vec<_>>().join(", ");
        if launch.arguments.len() != self.parameters.len() {
            let (given, wanted) = (launch.arguments.len(), self.parameters.len());
            return Err(format!("`{name}` takes {wanted} arguments ({}), and {given} were given", expected()));
        }
        let mut bytes = Vec::new();
        for (i, (parameter, argument)) in self.parameters.iter().zip(&launch.arguments).enumerate() {
            if argument.len() as u64 != parameter.bytes {
                return Err(format!(
                    "argument {i} of `{name}` has {} bytes where `{parameter}` takes {}; all parameters: {}",
                    argument.len(),
                    parameter.bytes,
                    expected()
                ));
            }
            bytes.resize(parameter.offset as usize, 0);
            bytes.extend(argument);
        }
        Ok(bytes)
    }

    /// All bytes of a block's shared memory.
    fn shared_bytes(&self, launch: &Launch) -> u64 {
        let dynamic = self.variables.iter().filter(|v| v.dynamic).map(|v| v.offset - SHARED_START).max();
        dynamic.unwrap_or(self.static_shared) + u64::from(launch.shared_bytes)
    }

    /// The address of every variable in its space.
    fn place(&self, memory: &mut Memory) -> crate::Result<Vec<u64>> {
        let place = |v: &super::module::Variable| match v.space {
            Space::Global | Space::Const => memory.variable(self.module, v),
            _ => Ok(v.offset),
        };
        self.variables.iter().map(place).collect()
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
    index: [u32; 3],
    /// Its number in its cluster.
    rank: usize,
    pub shared: Vec<u8>,
    pub shadow: Shadow,
    /// By warp what it knows of all warps, see [`super::check`]; the last column is of bulk copies.
    pub clocks: Vec<Vec<u32>>,
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
        let mut warps: Vec<Vec<Warp>> = self.shadows.iter().map(|_| self.warps()).collect();
        let bytes = self.entry.shared_bytes(self.launch) as usize;
        if self.ticks > u32::MAX / 2 {
            // One column a warp, and one of what comes by itself or from other blocks.
            let columns = warps[0].len() + 1;
            self.shadows.iter_mut().for_each(|shadow| *shadow = Shadow::new(bytes, columns));
            self.ticks = 0;
        }
        let cluster = self.entry.limits.cluster;
        let indices = places(cluster).map(|at| std::array::from_fn(|axis| place[axis] * cluster[axis] + at[axis]));
        self.blocks = indices.enumerate().map(|(rank, index)| self.begin(rank, index, warps[rank].len())).collect();
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
        let ticks = |block: &Block| block.clocks.iter().flatten().copied().fold(block.bulk_clock, u32::max);
        self.ticks = self.blocks.iter().map(ticks).fold(self.ticks, u32::max);
        let blocks = std::mem::take(&mut self.blocks);
        self.shadows = blocks.into_iter().map(|block| block.shadow).collect();
        Ok(())
    }

    /// The block at `index` before it runs.
    fn begin(&mut self, rank: usize, index: [u32; 3], warps: usize) -> Block {
        let start = self.ticks;
        let mut shadow = std::mem::take(&mut self.shadows[rank]);
        shadow.next_block(start);
        // Every warp's own clock begins one later: what is not is of another block.
        let clock = |w: usize| (0..=warps).map(|other| start + u32::from(other == w)).collect();
        Block {
            index,
            rank,
            shared: vec![0; self.entry.shared_bytes(self.launch) as usize],
            shadow,
            clocks: (0..warps).map(clock).collect(),
            bulk_clock: start + 1,
            barriers: (0..=CLUSTER_BARRIER).map(|_| Barrier::new(warps + 1)).collect(),
            mbarriers: BTreeMap::new(),
            live: u32::MAX >> (32 - warps),
            visited: None,
        }
    }

    fn warps(&self) -> Vec<Warp> {
        let threads: Vec<[u32; 3]> = places(self.launch.block).collect();
        let chunks = threads.chunks(32).enumerate();
        chunks
            .map(|(index, chunk)| {
                let live = u32::MAX >> (32 - chunk.len());
                let place = |axis: usize, lane: usize| chunk.get(lane).map_or(0, |t: &[u32; 3]| t[axis].into());
                let threads = std::array::from_fn(|axis| std::array::from_fn(|lane| place(axis, lane)));
                let frame = Frame { pc: 0, reconverge: self.entry.code.len(), mask: live, parked: false };
                Warp {
                    index,
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
                Err(trap) => return Err(self.fault(block, warp, pc, trap)),
            }
        }
        if warp.live == 0 {
            block.live &= !(1 << warp.index);
            if block.live == 0 && block.visited == Some(block.barriers[CLUSTER_BARRIER].completions) {
                let reason = "ends, and nothing holds it until other blocks are done with its shared memory";
                let trap = Trap::new(0, FaultKind::Misuse(reason.into()));
                return Err(self.fault(block, warp, self.entry.code.len().saturating_sub(1), trap));
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
            away: false,
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

    fn fault(&self, block: &Block, warp: &Warp, pc: usize, trap: Trap) -> Failure {
        let (line, opcode) = self.entry.code.get(pc).map_or((0, ""), |i| (i.line, i.opcode.as_str()));
        Failure::Fault(Box::new(Fault {
            kernel: self.entry.name.clone(),
            block: block.index,
            thread: warp.threads.map(|axis| axis[trap.lane % 32] as u32),
            line,
            opcode: opcode.to_owned(),
            kind: trap.kind,
        }))
    }

    /// Every warp waits.
    fn deadlock(&self, warps: &[Vec<Warp>]) -> Failure {
        let rank = self.blocks.iter().position(|block| block.live != 0).unwrap_or(0);
        let (block, warps) = (&self.blocks[rank], &warps[rank]);
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
        self.fault(block, first, pc, Trap::new(lane, FaultKind::BarrierDivergence(reason)))
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
    /// Whether the warp's barrier has yet to complete.
    fn is_waiting(&self, warp: &Warp) -> bool {
        warp.waiting.is_some_and(|(id, completions)| self.barriers[id].completions == completions)
    }
}

/// What an instruction sees.
pub(super) struct Context<'a> {
    pub entry: &'a Entry,
    launch: &'a Launch,
    parameters: &'a [u8],
    addresses: &'a [u64],
    pub memory: &'a mut Memory,
    pub counters: &'a mut Counters,
    pub block: &'a mut Block,
    /// The blocks of the cluster; in place of `block` one without warps.
    pub cluster: &'a mut [Block],
    /// Whether `block` is another one than the warp's, see [`Context::visit`].
    away: bool,
    pub warp: &'a mut Warp,
    /// The lanes that execute it.
    pub mask: u32,
    pc: usize,
}

impl Context<'_> {
    /// The lanes that execute the instruction, in order.
    #[inline]
    pub fn lanes(&self) -> impl Iterator<Item = usize> + use<> {
        let mask = self.mask;
        (0..32).filter(move |l| mask >> l & 1 == 1)
    }

    /// A fault of the first lane.
    pub fn fault(&self, kind: FaultKind) -> Trap {
        Trap::new(self.mask.trailing_zeros() as usize, kind)
    }

    /// The operand's bits for one lane, cut to the type's width.
    #[inline]
    pub fn value(&self, operand: &Operand, ty: Type, lane: usize) -> u64 {
        let bits = match operand {
            Operand::Register(slot) => self.warp.registers[*slot as usize][lane],
            Operand::Predicate(slot) => (self.warp.predicates[*slot as usize] >> lane & 1).into(),
            Operand::Not(slot) => (!self.warp.predicates[*slot as usize] >> lane & 1).into(),
            Operand::Special(special) => self.special(*special, lane),
            Operand::Variable(index, offset) => self.addresses[*index].wrapping_add_signed(*offset),
            other => immediate(other, ty).unwrap_or(0),
        };
        ty.truncate(bits)
    }

    /// [`Context::value`] of all lanes.
    pub fn values(&self, operand: &Operand, ty: Type) -> [u64; 32] {
        match operand {
            Operand::Register(slot) => {
                let mask = ty.truncate(u64::MAX);
                let mut row = self.warp.registers[*slot as usize];
                row.iter_mut().for_each(|v| *v &= mask);
                row
            }
            Operand::Special(Special::Tid(_) | Special::LaneId | Special::LaneMask(..))
            | Operand::Predicate(_)
            | Operand::Not(_) => std::array::from_fn(|lane| self.value(operand, ty, lane)),
            // The same for all.
            _ => [self.value(operand, ty, 0); 32],
        }
    }

    /// Sets a result.
    pub fn set(&mut self, operand: &Operand, lane: usize, value: u64) {
        match operand {
            Operand::Register(slot) => self.warp.registers[*slot as usize][lane] = value,
            Operand::Predicate(slot) => {
                let all = &mut self.warp.predicates[*slot as usize];
                *all = *all & !(1 << lane) | (value as u32 & 1) << lane;
            }
            _ => {}
        }
    }

    /// Sets a result of all active lanes.
    #[inline]
    pub fn set_row(&mut self, operand: &Operand, row: &Row) {
        match operand {
            Operand::Register(slot) if self.mask == u32::MAX => self.warp.registers[*slot as usize] = *row,
            operand => self.lanes().for_each(|lane| self.set(operand, lane, row[lane])),
        }
    }

    /// A predicate, or whether a value is 1, as a bit a lane.
    pub fn holds(&self, operand: &Operand) -> u32 {
        match operand {
            Operand::Predicate(slot) => self.warp.predicates[*slot as usize],
            Operand::Not(slot) => !self.warp.predicates[*slot as usize],
            other => (0..32).fold(0, |bits, lane| bits | (self.value(other, Type::Pred, lane) as u32) << lane),
        }
    }

    /// Sets a predicate of all active lanes.
    pub fn set_holds(&mut self, operand: &Operand, bits: u32) {
        match operand {
            Operand::Predicate(slot) => {
                let all = &mut self.warp.predicates[*slot as usize];
                *all = *all & !self.mask | bits & self.mask;
            }
            operand => self.lanes().for_each(|lane| self.set(operand, lane, (bits >> lane & 1).into())),
        }
    }

    /// The address that a memory operand means for one lane.
    pub fn address(&self, base: &Operand, offset: i64, lane: usize, space: Space) -> u64 {
        let ty = address_type(space);
        let base = match base {
            Operand::Integer(n) => *n,
            other => self.value(other, Type::U(64), lane),
        };
        ty.truncate(base.wrapping_add_signed(offset))
    }

    /// The space of the variable that an address begins with, for `ld` and `st` without one.
    pub fn space_of(&self, base: &Operand) -> Option<Space> {
        match base {
            Operand::Variable(index, _) => Some(self.entry.variables[*index].space),
            _ => None,
        }
    }

    fn special(&self, special: Special, lane: usize) -> u64 {
        let (warp, cluster) = (&self.warp, self.entry.limits.cluster);
        match special {
            Special::Tid(axis) => warp.threads[axis][lane],
            Special::Ntid(axis) => self.launch.block[axis].into(),
            Special::Ctaid(axis) => self.block.index[axis].into(),
            Special::Nctaid(axis) => self.launch.grid[axis].into(),
            Special::LaneId => lane as u64,
            Special::WarpId => warp.index as u64,
            Special::NwarpId => self.block.clocks.len() as u64,
            Special::LaneMask(order, equal) => {
                let has = |l: &usize| l.cmp(&lane) == order || (equal && *l == lane && order != Ordering::Equal);
                (0..32).filter(has).fold(0, |m, l| m | 1 << l)
            }
            Special::Clock => warp.time.into(),
            Special::DynamicShared => self.launch.shared_bytes.into(),
            Special::TotalShared => self.block.shared.len() as u64,
            Special::ClusterCtaid(axis) => (self.block.index[axis] % cluster[axis]).into(),
            Special::ClusterRank => self.block.rank as u64,
            Special::ClusterNctaid(axis) => cluster[axis].into(),
            Special::ClusterBlocks => self.cluster.len() as u64,
            Special::Clusterid(axis) => (self.block.index[axis] / cluster[axis]).into(),
            Special::Nclusterid(axis) => (self.launch.grid[axis] / cluster[axis]).into(),
            Special::Zero => 0,
            Special::One => 1,
        }
    }

    /// Does what `f` does in the block whose shared memory an address lies in, at the address there. In another block of the cluster, accesses are
    /// those of its last column: ordered behind what its warps did before the cluster met last, and seen by them when it has met again.
    ///
    /// # Errors
    /// Where there is no such block, or it may not have begun or have ended; those of `f`.
    pub fn visit<R>(
        &mut self,
        address: u64,
        f: impl FnOnce(&mut Self, u64) -> Result<R, FaultKind>,
    ) -> Result<R, FaultKind> {
        let own = address % CLUSTER_STEP;
        let Some(rank) = (address / CLUSTER_STEP).checked_sub(1).map(|rank| rank as usize) else { return f(self, own) };
        if rank == self.block.rank {
            return f(self, own);
        }
        let misuse = |reason: String| Err(FaultKind::Misuse(reason));
        match self.cluster.get(rank) {
            None => return misuse(format!("the cluster has no block {rank}")),
            Some(other) if other.live == 0 => {
                return misuse(format!("touches shared memory of block {rank} of the cluster, which may have ended"));
            }
            _ if self.warp.arrived.is_some() || self.block.barriers[CLUSTER_BARRIER].completions == 0 => {
                let reason = "before it has waited for the cluster, whose other blocks may not be there yet";
                return misuse(format!("touches shared memory of block {rank} {reason}"));
            }
            _ => {}
        }
        self.warp.away = true;
        std::mem::swap(self.block, &mut self.cluster[rank]);
        self.block.visited = Some(self.block.barriers[CLUSTER_BARRIER].completions);
        self.away = true;
        let done = f(self, own);
        self.away = false;
        std::mem::swap(self.block, &mut self.cluster[rank]);
        done
    }

    /// The shadow of the block's shared memory, and the clocks that the warp knows of the block.
    #[inline]
    pub fn shadow(&mut self) -> (&mut Shadow, &[u32]) {
        let Block { shadow, clocks, barriers, .. } = &mut *self.block;
        (shadow, if self.away { &barriers[CLUSTER_BARRIER].done } else { &clocks[self.warp.index] })
    }

    /// The mark of an access that the lane does now.
    #[inline]
    pub fn mark(&self, lane: usize, strong: bool) -> Mark {
        let (index, clock) = match (self.away, self.warp.index) {
            (true, _) => (self.block.bulk_index(), self.block.bulk_clock),
            (false, index) => (index, self.block.clocks[index][index]),
        };
        let (pc, time) = (self.pc as u32, self.warp.time);
        Mark { clock, time, pc, warp: index as u16, lane: lane as u8, strong }
    }

    /// Where an access to shared memory begins, if it lies inside.
    #[inline]
    pub fn shared_place(&self, access: &'static str, address: u64, bytes: u64) -> Result<usize, FaultKind> {
        let (space, size) = (Space::Shared, self.block.shared.len() as u64);
        let start = address.checked_sub(SHARED_START);
        if let Some(start) = start.filter(|s| s.checked_add(bytes).is_some_and(|end| end <= size)) {
            return Ok(start as usize);
        }
        let near = format!("the block has {size} bytes from {SHARED_START:#x} on");
        Err(FaultKind::OutOfBounds { access, space, address, bytes, near })
    }

    /// Notes a read of shared memory.
    #[inline]
    pub fn read_shared(&mut self, start: usize, bytes: usize, who: Mark) -> Result<(), FaultKind> {
        let (shadow, clocks) = self.shadow();
        let done = shadow.read(start, bytes, who, clocks);
        done.map_err(|(at, conflict)| self.conflict(at, bytes as u64, conflict))
    }

    /// Notes a write to shared memory.
    #[inline]
    pub fn write_shared(&mut self, start: usize, bytes: usize, who: Mark) -> Result<(), FaultKind> {
        let (shadow, clocks) = self.shadow();
        let done = shadow.write(start, bytes, who, clocks);
        done.map_err(|(at, conflict)| self.conflict(at, bytes as u64, conflict))
    }

    /// The fault that a conflict at byte `at` of shared memory amounts to.
    pub fn conflict(&self, at: usize, bytes: u64, conflict: Conflict) -> FaultKind {
        let address = SHARED_START + at as u64;
        let line = |mark: &Mark| self.entry.code.get(mark.pc as usize).map_or(0, |i| i.line);
        match conflict {
            Conflict::Unwritten => {
                FaultKind::Unwritten { space: Space::Shared, address, bytes, place: self.shared_name(address) }
            }
            Conflict::InFlight(mark) => FaultKind::InFlight { address, line: line(&mark) },
            // It has come, and whoever touches it has not waited for it.
            Conflict::Race { mark, .. } if usize::from(mark.warp) == self.block.bulk_index() => {
                FaultKind::InFlight { address, line: line(&mark) }
            }
            Conflict::Race { here, there, mark } => {
                let linear = u32::from(mark.warp) * 32 + u32::from(mark.lane) % 32;
                let [x, y, _] = self.launch.block;
                let thread = [linear % x, linear / x % y, linear / (x * y)];
                FaultKind::Race { address, here, there, thread, line: line(&mark) }
            }
        }
    }

    fn shared_name(&self, address: u64) -> String {
        let inside = |v: &&super::module::Variable| {
            v.space == Space::Shared && v.offset <= address && (v.dynamic || address < v.offset + v.bytes)
        };
        let found = self.entry.variables.iter().filter(inside).max_by_key(|v| v.offset);
        found.map_or("no variable".into(), |v| format!("byte {} of `{}`", address - v.offset, v.name))
    }

    /// Reads memory for one lane; `strong` accesses do not race with each other.
    pub fn load(
        &mut self,
        lane: usize,
        space: Space,
        address: u64,
        out: &mut [u8],
        strong: bool,
    ) -> Result<(), FaultKind> {
        match space {
            Space::Generic => {
                let (space, address) = resolve(address);
                self.load(lane, space, address, out, strong)
            }
            Space::Global | Space::Const => {
                out.copy_from_slice(self.memory.load(address, out.len() as u64)?);
                Ok(())
            }
            Space::Local => self.warp.local.get(lane).ok_or_else(|| no_local(address))?.load(address, out),
            Space::Shared => {
                let start = self.shared_place("load", address, out.len() as u64)?;
                self.read_shared(start, out.len(), self.mark(lane, strong))?;
                out.copy_from_slice(&self.block.shared[start..start + out.len()]);
                Ok(())
            }
            Space::Param if address >= CALL_PARAMETERS => {
                self.load(lane, Space::Local, address - CALL_PARAMETERS, out, strong)
            }
            Space::Param => {
                let size = self.parameters.len() as u64;
                let bytes = out.len() as u64;
                if address.checked_add(bytes).is_none_or(|end| end > size) {
                    let near = format!("the parameters have {size} bytes");
                    return Err(FaultKind::OutOfBounds { access: "load", space, address, bytes, near });
                }
                out.copy_from_slice(&self.parameters[address as usize..][..out.len()]);
                Ok(())
            }
        }
    }

    /// Writes memory for one lane.
    pub fn store(
        &mut self,
        lane: usize,
        space: Space,
        address: u64,
        data: &[u8],
        strong: bool,
    ) -> Result<(), FaultKind> {
        match space {
            Space::Generic => {
                let (space, address) = resolve(address);
                self.store(lane, space, address, data, strong)
            }
            Space::Global => {
                self.memory.store(address, data.len() as u64)?.copy_from_slice(data);
                Ok(())
            }
            Space::Local => self.warp.local.get_mut(lane).ok_or_else(|| no_local(address))?.store(address, data),
            Space::Shared => {
                let start = self.shared_place("store", address, data.len() as u64)?;
                self.write_shared(start, data.len(), self.mark(lane, strong))?;
                self.block.shared[start..start + data.len()].copy_from_slice(data);
                Ok(())
            }
            Space::Param if address >= CALL_PARAMETERS => {
                self.store(lane, Space::Local, address - CALL_PARAMETERS, data, strong)
            }
            Space::Const | Space::Param => Err(FaultKind::ReadOnly { place: format!("{space} memory") }),
        }
    }

    /// Counts what a request's lanes touched in one space.
    pub fn count(&mut self, space: Space, accesses: &[(u64, u64)], width: u64, store: bool) {
        match space {
            Space::Shared => self.counters.shared(accesses, width),
            Space::Global if store => self.counters.stores.request(accesses),
            Space::Global => self.counters.loads.request(accesses),
            Space::Const | Space::Local | Space::Param | Space::Generic => {}
        }
    }

    /// Counts operations of all active lanes.
    #[inline]
    pub fn count_flops(&mut self, each: u64) {
        self.counters.flops += each * u64::from(self.mask.count_ones());
    }
}

fn no_local(address: u64) -> FaultKind {
    let near = "the kernel has none".to_owned();
    FaultKind::OutOfBounds { access: "access", space: Space::Local, address, bytes: 1, near }
}

/// A literal's bits in a type.
pub(super) fn immediate(operand: &Operand, ty: Type) -> Option<u64> {
    Some(ty.truncate(match (operand, ty) {
        (Operand::Integer(n), _) => *n,
        (Operand::F32(bits), Type::F(64)) => f64::from(f32::from_bits(*bits)).to_bits(),
        (Operand::F32(bits), _) => (*bits).into(),
        (Operand::F64(x), Type::F(64) | Type::B(64)) => x.to_bits(),
        (Operand::F64(x), Type::F(16)) => half::f16::from_f64(*x).to_bits().into(),
        (Operand::F64(x), Type::Bf16) => half::bf16::from_f64(*x).to_bits().into(),
        (Operand::F64(x), _) => (*x as f32).to_bits().into(),
        _ => return None,
    }))
}

/// The width of addresses in a space.
pub(super) fn address_type(space: Space) -> Type {
    if matches!(space, Space::Shared | Space::Local) { Type::U(32) } else { Type::U(64) }
}

/// The class of instructions that touch a space.
pub(super) fn class_of(space: Space) -> Class {
    match space {
        Space::Global | Space::Generic => Class::Global,
        Space::Shared => Class::Shared,
        Space::Local => Class::Local,
        Space::Const | Space::Param => Class::Constant,
    }
}

/// The base of a space's window among generic addresses.
pub(super) fn window(space: Space) -> u64 {
    match space {
        Space::Shared => super::memory::SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Param => PARAM_WINDOW,
        Space::Global | Space::Const | Space::Generic => 0,
    }
}
