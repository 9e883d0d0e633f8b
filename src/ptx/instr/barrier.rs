//! Barriers of a block, of a warp, and in shared memory; fences.

use super::super::check::{FaultKind, Trap};
use super::super::count::Class;
use super::super::machine::{Block, Context, Warp};
use super::super::module::{Operand, Space, Type};
use super::control::Nothing;
use super::copy::BulkCopy;
use super::data::{Place, aligned, is_strong, locate, place, space};
use super::warp::missing;
use super::{Decode, Execute, Flow, Opcode, decoded, is_scalar};

/// The number of the barrier of the cluster, behind a block's sixteen.
pub const CLUSTER_BARRIER: usize = 16;

/// One of a block's sixteen barriers.
pub struct Barrier {
    /// Warps that have arrived since it last completed.
    arrived: u32,
    /// Threads that it waits for, where the instructions say so; else all that live.
    threads: Option<u32>,
    clock: Vec<u32>,
    /// The clock of the last completion.
    pub done: Vec<u32>,
    /// Predicates of `bar.red` so far: how many of how many hold.
    votes: (u32, u32),
    result: (u32, u32),
    pub completions: u64,
}

impl Barrier {
    pub fn new(clocks: usize) -> Self {
        let (clock, done) = (vec![0; clocks], vec![0; clocks]);
        Barrier { arrived: 0, threads: None, clock, done, votes: (0, 0), result: (0, 0), completions: 0 }
    }

    fn is_complete(&self, live: u32) -> bool {
        match self.threads {
            Some(threads) => 32 * self.arrived.count_ones() >= threads,
            None => self.arrived != 0 && live & !self.arrived == 0,
        }
    }

    fn complete(&mut self) {
        self.arrived = 0;
        self.threads = None;
        self.completions += 1;
        self.done = std::mem::replace(&mut self.clock, vec![0; self.done.len()]);
        self.result = std::mem::take(&mut self.votes);
    }
}

/// A barrier object in shared memory.
pub struct Mbarrier {
    /// Arrivals that a phase takes.
    count: u32,
    pending: u32,
    /// Bytes that copies have yet to bring.
    bytes: i64,
    phase: u64,
    clock: Vec<u32>,
    done: Vec<u32>,
    /// Copies under way, which arrive when somebody looks.
    pub copies: Vec<BulkCopy>,
    /// Arrivals of threads whose copies are among them.
    behind: u32,
}

impl Mbarrier {
    fn settle(&mut self) {
        if self.pending == 0 && self.bytes == 0 {
            self.pending = self.count;
            self.phase += 1;
            self.done = self.clock.clone();
        }
    }
}

impl Block {
    /// The place among the clocks of what copies do by themselves: behind the warps.
    pub fn bulk_column(&self) -> usize {
        self.columns.end - 1
    }

    /// Completes the barriers that waited for a warp that has ended.
    pub fn complete_barriers(&mut self) {
        let live = self.live;
        let own = &mut self.barriers[..CLUSTER_BARRIER];
        own.iter_mut().filter(|b| b.threads.is_none() && b.is_complete(live)).for_each(Barrier::complete);
    }

    /// Completes the cluster's barrier if all warps of this block and of the others have arrived that have not ended.
    pub fn complete_cluster(&mut self, others: &mut [Block]) {
        let arrived = |block: &Block| block.live == 0 || block.barriers[CLUSTER_BARRIER].is_complete(block.live);
        if !arrived(self) || !others.iter().all(arrived) {
            return;
        }
        // Behind it is what all blocks have released, also one whose warps arrived and ended.
        let mut clock = vec![0; self.barriers[CLUSTER_BARRIER].clock.len()];
        // What stands for this block among the others has no barriers.
        let blocks = others.iter_mut().chain([self]);
        let barriers: Vec<_> = blocks.filter_map(|block| block.barriers.get_mut(CLUSTER_BARRIER)).collect();
        barriers.iter().for_each(|barrier| join(&mut clock, &barrier.clock));
        for barrier in barriers {
            barrier.clock.clone_from(&clock);
            barrier.complete();
        }
    }
}

impl Warp {
    /// Ticks the warp's clock: what it does from now on is not ordered by what it has released.
    pub fn tick(&mut self) {
        self.clock[self.column] += 1;
    }

    fn acquire(&mut self, from: &[u32]) {
        join(&mut self.clock, from);
    }
}

fn join(clock: &mut [u32], other: &[u32]) {
    clock.iter_mut().zip(other).for_each(|(a, b)| *a = (*a).max(*b));
}

pub(super) fn decode(op: &Opcode<'_>, mut operands: Vec<Operand>) -> Decode {
    match op.name {
        "membar" | "fence" => return fence(op, operands),
        "mbarrier" => return mbarrier(op, operands),
        _ => {}
    }
    if op.flag("warp") {
        op.flag("sync").then_some(()).ok_or_else(|| op.unknown())?;
        let [members] = op.operands(operands)?;
        return decoded(Class::Barrier, WarpSync(members));
    }
    if op.flag("cluster") {
        return cluster(op, operands);
    }
    op.flag("cta");
    let kind = op.one_of(&["sync", "arrive", "red"]).ok_or_else(|| op.unknown())?;
    op.flag("aligned");
    let reduce = if kind == "red" {
        let name = op.one_of(&["popc", "and", "or"]).ok_or_else(|| op.unknown())?;
        let ty = op.ty()?;
        if operands.len() < 3 || ty != (if name == "popc" { Type::U(32) } else { Type::Pred }) {
            return Err(op.unknown());
        }
        let result = operands.remove(0);
        operands.pop().map(|vote| Reduction { name: name.to_owned(), result, vote })
    } else {
        None
    };
    let mut operands = operands.into_iter();
    let id = operands.next().filter(is_scalar).ok_or_else(|| format!("`{}` lacks the barrier's number", op.text))?;
    let threads = operands.next();
    if operands.next().is_some() || kind == "arrive" && threads.is_none() {
        return Err(format!("the operands of `{}` do not fit", op.text));
    }
    decoded(Class::Barrier, BlockBarrier { waits: kind != "arrive", id, threads, reduce })
}

fn fence(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    op.operands::<0>(operands)?;
    if op.flag("proxy") {
        op.one_of(&["async", "async::generic", "alias"]).ok_or_else(|| op.unknown())?;
        space(op);
    } else {
        op.one_of(&["sc", "acq_rel", "mbarrier_init"]);
        op.flag("release");
        op.one_of(&["cta", "cluster", "gpu", "sys", "gl"]);
    }
    decoded(Class::Barrier, Nothing)
}

/// `barrier.cluster`.
fn cluster(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    let arrives = op.one_of(&["arrive", "wait"]).ok_or_else(|| op.unknown())? == "arrive";
    let releases = op.one_of(if arrives { &["release", "relaxed"] } else { &["acquire"] }) != Some("relaxed");
    op.flag("aligned");
    op.operands::<0>(operands)?;
    decoded(Class::Barrier, ClusterBarrier { arrives, releases })
}

struct ClusterBarrier {
    arrives: bool,
    /// Whether what the warp did before is behind the barrier too.
    releases: bool,
}

impl Execute for ClusterBarrier {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        if cx.mask != cx.warp.live {
            return Ok(Flow::Missing(cx.warp.live & !cx.mask));
        }
        let barrier = &mut cx.block.barriers[CLUSTER_BARRIER];
        match (self.arrives, cx.warp.arrived) {
            (true, None) if cx.warp.away && !self.releases => {
                let reason = "arrives without a release behind what it did in another block's shared memory";
                Err(cx.fault(FaultKind::Misuse(reason.into())))
            }
            (true, None) => {
                cx.warp.arrived = Some(barrier.completions);
                barrier.arrived |= 1 << cx.warp.index;
                if self.releases {
                    join(&mut barrier.clock, &cx.warp.clock);
                }
                cx.block.complete_cluster(cx.cluster);
                cx.warp.tick();
                Ok(Flow::Next)
            }
            (false, Some(completions)) if barrier.completions == completions => {
                cx.warp.waiting = Some((CLUSTER_BARRIER, completions));
                Ok(Flow::Wait)
            }
            (false, Some(_)) => {
                (cx.warp.waiting, cx.warp.arrived, cx.warp.away) = (None, None, false);
                cx.warp.acquire(&barrier.done);
                Ok(Flow::Next)
            }
            (true, Some(_)) => Err(cx.fault(FaultKind::Misuse("arrives twice at the cluster's barrier".into()))),
            (false, None) => {
                Err(cx.fault(FaultKind::Misuse("waits at the cluster's barrier without an arrival".into())))
            }
        }
    }
}

struct WarpSync(Operand);

impl Execute for WarpSync {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        let missing = missing(cx, &self.0)?;
        if missing != 0 {
            return Ok(Flow::Missing(missing));
        }
        cx.warp.tick();
        Ok(Flow::Next)
    }
}

struct Reduction {
    name: String,
    result: Operand,
    vote: Operand,
}

struct BlockBarrier {
    waits: bool,
    id: Operand,
    threads: Option<Operand>,
    reduce: Option<Reduction>,
}

impl Execute for BlockBarrier {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        let lane = cx.mask.trailing_zeros() as usize;
        if let Some((id, _)) = cx.warp.waiting.take() {
            self.leave(cx, id);
            return Ok(Flow::Next);
        }
        if cx.mask != cx.warp.live {
            return Ok(Flow::Missing(cx.warp.live & !cx.mask));
        }
        let id = cx.value(&self.id, Type::U(32), lane) as usize;
        let threads = self.threads.as_ref().map(|t| cx.value(t, Type::U(32), lane) as u32);
        let misuse = |reason| Err(Trap::new(lane, FaultKind::Misuse(reason)));
        if id >= CLUSTER_BARRIER {
            return misuse(format!("there is no barrier {id}: a block has 16"));
        }
        if let Some(threads) = threads.filter(|t| *t == 0 || t % 32 != 0) {
            return misuse(format!("a barrier of {threads} threads is not possible: whole warps take part"));
        }
        let live = cx.block.live;
        let votes = self.reduce.as_ref().map(|r| {
            let holds = |l: &usize| cx.value(&r.vote, Type::Pred, *l) == 1;
            (cx.lanes().filter(holds).count() as u32, cx.mask.count_ones())
        });
        let bit = 1u32 << cx.warp.index;
        let barrier = &mut cx.block.barriers[id];
        if barrier.arrived != 0 && barrier.threads != threads || barrier.arrived & bit != 0 {
            let reason = format!("barrier {id} is used with different counts of threads, or twice by one warp");
            return Err(Trap::new(lane, FaultKind::BarrierDivergence(reason)));
        }
        barrier.arrived |= bit;
        barrier.threads = threads;
        join(&mut barrier.clock, &cx.warp.clock);
        if let Some((yes, all)) = votes {
            barrier.votes.0 += yes;
            barrier.votes.1 += all;
        }
        let completions = barrier.completions;
        let complete = barrier.is_complete(live);
        if complete {
            barrier.complete();
        }
        cx.warp.tick();
        match (self.waits, complete) {
            (false, _) => Ok(Flow::Next),
            (true, true) => {
                self.leave(cx, id);
                Ok(Flow::Next)
            }
            (true, false) => {
                cx.warp.waiting = Some((id, completions));
                Ok(Flow::Wait)
            }
        }
    }
}

impl BlockBarrier {
    /// What the others did before the barrier is ordered before what follows.
    fn leave(&self, cx: &mut Context<'_>, id: usize) {
        cx.warp.acquire(&cx.block.barriers[id].done);
        if let Some(reduce) = &self.reduce {
            let (yes, all) = cx.block.barriers[id].result;
            let value = match reduce.name.as_str() {
                "popc" => yes.into(),
                "and" => u64::from(yes == all),
                _ => u64::from(yes > 0),
            };
            cx.lanes().for_each(|lane| cx.set(&reduce.result, lane, value));
        }
    }
}

// --- barriers in shared memory -------------------------------------------------------------------------------------

fn mbarrier(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    let name =
        op.one_of(&["init", "inval", "arrive", "expect_tx", "test_wait", "try_wait"]).ok_or_else(|| op.unknown())?;
    let expects = name == "expect_tx" || op.flag("expect_tx");
    let parity = op.flag("parity");
    is_strong(op);
    let space = space(op).unwrap_or(Space::Generic);
    if op.ty()? != Type::B(64) {
        return Err(op.unknown());
    }
    let mut operands = operands.into_iter();
    let result = if matches!(name, "arrive" | "test_wait" | "try_wait") { operands.next() } else { None };
    let place = place(op, operands.next().unwrap_or(Operand::Sink))?;
    let value = operands.next();
    // How long to try is up to the machine.
    let time = if name == "try_wait" { operands.next() } else { None };
    let needs = matches!(name, "init" | "test_wait" | "try_wait") || expects;
    if needs && value.is_none() || operands.next().is_some() || ![&value, &time].into_iter().flatten().all(is_scalar) {
        return Err(format!("the operands of `{}` do not fit", op.text));
    }
    let action = match name {
        "init" => Action::Init,
        "inval" => Action::Invalidate,
        "arrive" if expects => Action::ArriveExpecting,
        "arrive" => Action::Arrive,
        "expect_tx" => Action::Expect,
        name => Action::Wait { parity, tries: name == "try_wait" },
    };
    decoded(Class::Barrier, SharedBarrier { action, space, place, result, value })
}

#[derive(Clone, Copy)]
enum Action {
    Init,
    Invalidate,
    Arrive,
    ArriveExpecting,
    Expect,
    Wait { parity: bool, tries: bool },
}

struct SharedBarrier {
    action: Action,
    space: Space,
    place: Place,
    result: Option<Operand>,
    value: Option<Operand>,
}

impl Execute for SharedBarrier {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        let mut waits = false;
        for lane in cx.lanes() {
            let done = self.lane(cx, lane).map_err(|kind| Trap::new(lane, kind))?;
            waits |= !done;
        }
        if !matches!(self.action, Action::Wait { .. }) {
            cx.warp.tick();
        }
        Ok(if waits { Flow::Yield } else { Flow::Next })
    }
}

impl SharedBarrier {
    /// Whether the lane need not wait.
    fn lane(&self, cx: &mut Context<'_>, lane: usize) -> Result<bool, FaultKind> {
        let (space, address) = locate(cx, &self.place, self.space, lane);
        if space != Space::Shared {
            return Err(FaultKind::Misuse(format!("there is no barrier object in {space} memory")));
        }
        aligned("mbarrier", space, address, 8)?;
        let ty = if matches!(self.action, Action::Wait { parity: false, .. }) { Type::B(64) } else { Type::U(32) };
        let value = self.value.as_ref().map(|v| cx.value(v, ty, lane));
        if let Action::Init = self.action {
            let count = value.unwrap_or(0) as u32;
            if count == 0 || count >= 1 << 20 {
                return Err(FaultKind::Misuse(format!("a barrier object of {count} arrivals is not possible")));
            }
            cx.store(lane, space, address, &[0; 8], true)?;
            let clocks = cx.warp.clock.len();
            let (clock, done) = (vec![0; clocks], vec![0; clocks]);
            let new =
                Mbarrier { count, pending: count, bytes: 0, phase: 0, clock, done, copies: Vec::new(), behind: 0 };
            cx.block.mbarriers.insert(address, new);
            return Ok(true);
        }
        // Who has not seen the initialisation races with it.
        cx.load(lane, space, address, &mut [0; 8], false)?;
        // Who looks first finds them still under way, so that one look is not enough.
        let landed = matches!(self.action, Action::Wait { .. }) && cx.land_bulk(address);
        let Some(object) = cx.block.mbarriers.get_mut(&address) else {
            return Err(FaultKind::Misuse(format!("there is no barrier object at shared address {address:#x}")));
        };
        let mut arrive = |count: u32, bytes: i64| {
            if count > object.pending - object.behind {
                return Err(FaultKind::Misuse("more arrive at the barrier object than its count".into()));
            }
            let phase = object.phase;
            object.bytes += bytes;
            object.pending -= count;
            join(&mut object.clock, &cx.warp.clock);
            object.settle();
            Ok(phase)
        };
        match self.action {
            Action::Init => {}
            Action::Invalidate => drop(cx.block.mbarriers.remove(&address)),
            Action::Expect => drop(arrive(0, value.unwrap_or(0) as i64)?),
            Action::Arrive | Action::ArriveExpecting => {
                let expecting = matches!(self.action, Action::ArriveExpecting);
                let value = value.unwrap_or(if expecting { 0 } else { 1 });
                let phase = if expecting { arrive(1, value as i64)? } else { arrive(value as u32, 0)? };
                if let Some(result) = &self.result {
                    cx.set(result, lane, phase);
                }
            }
            Action::Wait { parity, tries } => {
                let (phase, given) = (object.phase, value.unwrap_or(0));
                let complete = !landed && if parity { phase & 1 != given & 1 } else { phase != given };
                if complete {
                    cx.warp.acquire(&object.done);
                }
                if let Some(result) = &self.result {
                    cx.set(result, lane, complete.into());
                }
                return Ok(complete || !tries);
            }
        }
        Ok(true)
    }
}

impl Context<'_> {
    /// The bulk copies of a barrier object arrive; whether there are any.
    fn land_bulk(&mut self, address: u64) -> bool {
        let column = self.block.bulk_column();
        let Some(object) = self.block.mbarriers.get_mut(&address) else { return false };
        let copies = std::mem::take(&mut object.copies);
        let any = !copies.is_empty() || object.behind > 0;
        object.pending -= std::mem::take(&mut object.behind);
        for copy in copies {
            object.bytes -= copy.data.len() as i64;
            let clock = self.block.bulk_clock;
            object.clock[column] = clock;
            copy.land(&mut self.block.shared, &mut self.block.shadow, clock);
            self.block.bulk_clock += 1;
        }
        object.settle();
        any
    }

    /// A bulk copy that a barrier object counts begins.
    pub(super) fn start_bulk(&mut self, object: u64, copy: BulkCopy) -> Result<(), FaultKind> {
        let missing = || FaultKind::Misuse(format!("there is no barrier object at shared address {object:#x}"));
        self.block.mbarriers.get_mut(&object).ok_or_else(missing)?.copies.push(copy);
        Ok(())
    }

    /// A thread arrives at a barrier object when these copies are there.
    pub(super) fn arrive_behind(&mut self, object: u64, copies: Vec<BulkCopy>) -> Result<(), FaultKind> {
        let missing = || FaultKind::Misuse(format!("there is no barrier object at shared address {object:#x}"));
        let object = self.block.mbarriers.get_mut(&object).ok_or_else(missing)?;
        if object.behind == object.pending {
            return Err(FaultKind::Misuse("more arrive at the barrier object than its count".into()));
        }
        object.behind += 1;
        object.bytes += copies.iter().map(|copy| copy.data.len() as i64).sum::<i64>();
        object.copies.extend(copies);
        Ok(())
    }

    /// All lanes that live take part in a barrier-like instruction; else those that are missing.
    pub(super) fn whole_warp(&self) -> Result<u32, Trap> {
        if self.warp.live == u32::MAX {
            return Ok(!self.mask);
        }
        Err(self.fault(FaultKind::BarrierDivergence(format!(
            "only the lanes {:#010x} of the warp are left",
            self.warp.live
        ))))
    }
}
