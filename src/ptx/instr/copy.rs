//! Copies to shared memory that run beside the threads: `cp.async` by groups, `cp.async.bulk` by barrier objects.
//!
//! The machine reads the source when the copy is issued, and writes the destination when somebody waits for it; in between
//! whoever touches the destination is at fault.

use std::collections::VecDeque;

use super::super::check::{FaultKind, Mark, Shadow, Trap};
use super::super::count::Class;
use super::super::machine::{Context, Warp};
use super::super::module::{Operand, Space, Type};
use super::data::{Place, aligned, locate, place, space};
use super::{Decode, Execute, Flow, Opcode, decoded, is_scalar};

/// The copies that one thread has issued.
#[derive(Default)]
pub struct Copies {
    open: Vec<Copy>,
    groups: VecDeque<Vec<Copy>>,
}

/// A copy on its way.
struct Copy {
    to: usize,
    data: Vec<u8>,
}

/// A bulk copy on its way.
pub struct BulkCopy {
    /// What goes where in shared memory.
    pub parts: Vec<(usize, Vec<u8>)>,
    pub bytes: usize,
    pub mark: Mark,
}

impl BulkCopy {
    /// Writes the destination; it is ordered by the tick `clock` of bulk copies.
    pub fn land(self, shared: &mut [u8], shadow: &mut Shadow, clock: u32) {
        for (to, data) in self.parts {
            shared[to..to + data.len()].copy_from_slice(&data);
            shadow.land(to, data.len(), Mark { clock, ..self.mark });
        }
    }
}

pub(super) fn decode(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    if !op.flag("async") {
        return Err(op.unknown());
    }
    if op.flag("bulk") {
        return bulk(op, operands);
    }
    match op.one_of(&["commit_group", "wait_group", "wait_all"]) {
        Some("commit_group") => {
            op.operands::<0>(operands)?;
            decoded(Class::Async, Commit)
        }
        Some("wait_all") => {
            op.operands::<0>(operands)?;
            decoded(Class::Async, Wait { all: true, leave: 0 })
        }
        Some(_) => match op.operands(operands)? {
            [Operand::Integer(leave)] => decoded(Class::Async, Wait { all: false, leave }),
            _ => Err(op.unknown()),
        },
        None => issue(op, operands),
    }
}

fn issue(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    let cache = op.one_of(&["ca", "cg"]).ok_or_else(|| op.unknown())?;
    let spaces = (space(op), space(op));
    op.one_of(&["L2::64B", "L2::128B", "L2::256B"]);
    let mut operands = operands.into_iter();
    let mut next = || operands.next().ok_or_else(|| format!("`{}` lacks an operand", op.text));
    let (to, from, bytes) = (place(op, next()?)?, place(op, next()?)?, next()?);
    let source_bytes = operands.next().filter(is_scalar);
    let Operand::Integer(bytes) = bytes else { return Err(op.unknown()) };
    let sizes = if cache == "cg" { &[16][..] } else { &[4, 8, 16] };
    if spaces != (Some(Space::Shared), Some(Space::Global)) || !sizes.contains(&bytes) || operands.next().is_some() {
        return Err(op.unknown());
    }
    decoded(Class::Async, Issue { to, from, bytes, source_bytes })
}

/// `cp.async`: bytes beyond the source's are zero.
struct Issue {
    to: Place,
    from: Place,
    bytes: u64,
    source_bytes: Option<Operand>,
}

impl Execute for Issue {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        let (mut loads, mut stores) = (Vec::new(), Vec::new());
        for lane in cx.lanes() {
            let (from, to) = self.lane(cx, lane).map_err(|kind| Trap::new(lane, kind))?;
            loads.extend(from);
            stores.push(to);
        }
        cx.count(Space::Global, &loads, self.bytes, false);
        cx.count(Space::Shared, &stores, self.bytes, true);
        Ok(Flow::Next)
    }
}

type Access = (u64, u64);

impl Issue {
    /// What the lane reads, if anything, and writes.
    fn lane(&self, cx: &mut Context<'_>, lane: usize) -> Result<(Option<Access>, Access), FaultKind> {
        let (_, to) = locate(cx, &self.to, Space::Shared, lane);
        let (_, from) = locate(cx, &self.from, Space::Global, lane);
        aligned("cp.async", Space::Shared, to, self.bytes)?;
        aligned("cp.async", Space::Global, from, self.bytes)?;
        let source = self.source_bytes.as_ref().map_or(self.bytes, |s| cx.value(s, Type::U(32), lane));
        if source > self.bytes {
            return Err(FaultKind::Misuse(format!("copies {source} bytes into a place of {}", self.bytes)));
        }
        let mut data = vec![0; self.bytes as usize];
        if source > 0 {
            cx.load(lane, Space::Global, from, &mut data[..source as usize], false)?;
        }
        let start = cx.take_off(lane, to, self.bytes)?;
        cx.warp.copies[lane].open.push(Copy { to: start, data });
        Ok(((source > 0).then_some((from, source)), (to, self.bytes)))
    }
}

impl Context<'_> {
    /// The bytes at a shared address are being filled from now on; where they begin.
    fn take_off(&mut self, lane: usize, address: u64, bytes: u64) -> Result<usize, FaultKind> {
        let start = self.shared_place("asynchronous copy", address, bytes)?;
        let (mark, clocks) = (self.mark(lane, false), &self.block.clocks[self.warp.index]);
        let done = self.block.shadow.take_off(start, bytes as usize, mark, clocks);
        done.map_err(|(at, conflict)| self.conflict(at, bytes, conflict))?;
        Ok(start)
    }

    /// A copy that the lane waited for is done.
    fn land(&mut self, lane: usize, copy: &Copy) {
        let mark = self.mark(lane, false);
        self.block.shared[copy.to..copy.to + copy.data.len()].copy_from_slice(&copy.data);
        self.block.shadow.land(copy.to, copy.data.len(), mark);
    }
}

struct Commit;

impl Execute for Commit {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        for lane in cx.lanes() {
            let copies = &mut cx.warp.copies[lane];
            let group = std::mem::take(&mut copies.open);
            copies.groups.push_back(group);
        }
        Ok(Flow::Next)
    }
}

struct Wait {
    /// Also for copies that no group has.
    all: bool,
    /// How many of the newest groups may be left.
    leave: u64,
}

impl Execute for Wait {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        for lane in cx.lanes() {
            while cx.warp.copies[lane].groups.len() as u64 > self.leave
                && let Some(group) = cx.warp.copies[lane].groups.pop_front()
            {
                group.iter().for_each(|copy| cx.land(lane, copy));
            }
            if self.all {
                let open = std::mem::take(&mut cx.warp.copies[lane].open);
                open.iter().for_each(|copy| cx.land(lane, copy));
            }
        }
        Ok(Flow::Next)
    }
}

/// `cp.async.bulk` from global to shared memory.
fn bulk(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    let spaces = (space(op), space(op));
    let fits = op.flag("mbarrier::complete_tx::bytes");
    if operands.len() != 4 {
        return Err(op.unknown());
    }
    let [to, from, bytes, object] = op.operands(operands)?;
    if spaces != (Some(Space::Shared), Some(Space::Global)) || !fits || !is_scalar(&bytes) {
        return Err(op.unknown());
    }
    decoded(Class::Async, Bulk { to: place(op, to)?, from: place(op, from)?, bytes, object: place(op, object)? })
}

struct Bulk {
    to: Place,
    from: Place,
    bytes: Operand,
    object: Place,
}

impl Execute for Bulk {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        for lane in cx.lanes() {
            self.lane(cx, lane).map_err(|kind| Trap::new(lane, kind))?;
        }
        Ok(Flow::Next)
    }
}

impl Bulk {
    fn lane(&self, cx: &mut Context<'_>, lane: usize) -> Result<(), FaultKind> {
        let [(_, to), (_, object)] = [&self.to, &self.object].map(|p| locate(cx, p, Space::Shared, lane));
        let (_, from) = locate(cx, &self.from, Space::Global, lane);
        let bytes = cx.value(&self.bytes, Type::U(32), lane);
        aligned("cp.async.bulk", Space::Shared, to, 16)?;
        aligned("cp.async.bulk", Space::Global, from, 16)?;
        if bytes == 0 || !bytes.is_multiple_of(16) {
            return Err(FaultKind::Misuse(format!("a bulk copy of {bytes} bytes is not possible: 16 at a time")));
        }
        // The destination bounds the size before anything is made for it.
        let start = cx.take_off(lane, to, bytes)?;
        let mut data = vec![0; bytes as usize];
        cx.load(lane, Space::Global, from, &mut data, false)?;
        cx.count(Space::Global, &[(from, bytes)], bytes, false);
        let warp = Warp::bulk_index(cx.block) as u16;
        let mark = Mark { warp, ..cx.mark(lane, false) };
        cx.start_bulk(object, BulkCopy { parts: vec![(start, data)], bytes: bytes as usize, mark })
    }
}
