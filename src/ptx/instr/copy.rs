//! Copies that run beside the threads: `cp.async` by groups or barrier objects, `cp.async.bulk` to shared memory by barrier objects and from it by
//! groups of their own, of bytes or of tiles of a tensor.
//!
//! The machine reads the source when the copy is issued, and writes the destination when somebody waits for it; in between
//! whoever touches the destination is at fault. What goes to global memory is there at once; when somebody waits for it, its
//! source is looked at again, so that whoever changed it in the meantime is found.

use std::collections::VecDeque;

use super::super::check::{FaultKind, Mark, Shadow, Trap};
use super::super::count::Class;
use super::super::machine::Context;
use super::super::module::{Operand, Space, Type};
use super::super::tensor::{TENSOR_MAP_BYTES, TensorMap};
use super::data::{Place, aligned, locate, place, space};
use super::wgmma::swizzle;
use super::{Decode, Execute, Flow, Opcode, decoded, is_scalar};

/// The copies that one thread has issued.
#[derive(Default)]
pub struct Copies {
    open: Vec<Copy>,
    groups: VecDeque<Vec<Copy>>,
    /// What bulk copies still read of shared memory: start and length.
    reads: Vec<(usize, usize)>,
    read_groups: VecDeque<Vec<(usize, usize)>>,
}

/// A copy on its way.
struct Copy {
    to: usize,
    data: Vec<u8>,
}

/// A bulk copy on its way.
pub struct BulkCopy {
    /// Where it goes in shared memory.
    pub to: usize,
    pub data: Vec<u8>,
    pub mark: Mark,
}

impl BulkCopy {
    /// Writes the destination; it is ordered by the tick `clock` of bulk copies.
    pub fn land(self, shared: &mut [u8], shadow: &mut Shadow, clock: u32) {
        shared[self.to..self.to + self.data.len()].copy_from_slice(&self.data);
        shadow.land(self.to, self.data.len(), Mark { clock, ..self.mark });
    }
}

pub(super) fn decode(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    if !op.flag("async") {
        return Err(op.unknown());
    }
    if op.flag("bulk") {
        return bulk(op, operands);
    }
    if op.flag("mbarrier") {
        return arrive(op, operands);
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
        cx.copies(lane).open.push(Copy { to: start, data });
        Ok(((source > 0).then_some((from, source)), (to, self.bytes)))
    }
}

impl Context<'_> {
    /// The copies of a lane.
    fn copies(&mut self, lane: usize) -> &mut Copies {
        if self.warp.copies.is_empty() {
            self.warp.copies.resize_with(32, Copies::default);
        }
        &mut self.warp.copies[lane]
    }

    /// The bytes at a shared address are being filled from now on; where they begin.
    fn take_off(&mut self, lane: usize, address: u64, bytes: u64) -> Result<usize, FaultKind> {
        let start = self.shared_place("asynchronous copy", address, bytes)?;
        let mark = self.mark(lane, false);
        let (shadow, clocks) = self.shadow();
        let done = shadow.take_off(start, bytes as usize, mark, clocks);
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
            let copies = cx.copies(lane);
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
            while cx.copies(lane).groups.len() as u64 > self.leave
                && let Some(group) = cx.copies(lane).groups.pop_front()
            {
                group.iter().for_each(|copy| cx.land(lane, copy));
            }
            if self.all {
                let open = std::mem::take(&mut cx.copies(lane).open);
                open.iter().for_each(|copy| cx.land(lane, copy));
            }
        }
        Ok(Flow::Next)
    }
}

/// `cp.async.mbarrier.arrive.noinc`.
fn arrive(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    let space = (op.flag("arrive") & op.flag("noinc")).then(|| space(op)).ok_or_else(|| op.unknown())?;
    if op.ty()? != Type::B(64) {
        return Err(op.unknown());
    }
    let [object] = op.operands(operands)?;
    decoded(Class::Async, Arrive { space: space.unwrap_or(Space::Generic), object: place(op, object)? })
}

/// Has the thread arrive at a barrier object when all is there that it has asked for and not waited for.
struct Arrive {
    space: Space,
    object: Place,
}

impl Execute for Arrive {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        let warp = cx.block.bulk_column() as u16;
        for lane in cx.lanes() {
            let (_, object) = locate(cx, &self.object, self.space, lane);
            let mark = Mark { warp, ..cx.mark(lane, false) };
            let copies = cx.copies(lane);
            let groups = std::mem::take(&mut copies.groups).into_iter().flatten();
            let all = groups.chain(std::mem::take(&mut copies.open));
            let all = all.map(|Copy { to, data }| BulkCopy { to, data, mark }).collect();
            cx.arrive_behind(object, all).map_err(|kind| Trap::new(lane, kind))?;
        }
        Ok(Flow::Next)
    }
}

/// `cp.async.bulk` between global and shared memory.
fn bulk(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    match op.one_of(&["commit_group", "wait_group"]) {
        Some("commit_group") => {
            op.operands::<0>(operands)?;
            return decoded(Class::Async, BulkCommit);
        }
        Some(_) => {
            // For what is read to have been read is all that can be seen here.
            op.flag("read");
            return match op.operands(operands)? {
                [Operand::Integer(leave)] => decoded(Class::Async, BulkWait(leave)),
                _ => Err(op.unknown()),
            };
        }
        None => {}
    }
    let tensor = op.flag("tensor");
    let axes = if tensor { op.one_of(&["1d", "2d", "3d", "4d", "5d"]).ok_or_else(|| op.unknown())? } else { "" };
    let spaces = (space(op), space(op));
    op.flag("tile");
    let mut operands = operands;
    // A hint for the cache is the last operand.
    if op.flag("L2::cache_hint") {
        operands.pop();
    }
    let mut operands = operands.into_iter();
    let mut next = || operands.next().ok_or_else(|| format!("`{}` lacks an operand", op.text));
    let axes = axes.trim_end_matches('d').parse().unwrap_or(0);
    let action: (Decode, bool) = match spaces {
        (Some(Space::Shared), Some(Space::Global)) => {
            if !op.flag("mbarrier::complete_tx::bytes") {
                return Err(op.unknown());
            }
            let to = place(op, next()?)?;
            let from = source(op, next()?, axes)?;
            let bytes = if tensor { Operand::Sink } else { next()? };
            let object = place(op, next()?)?;
            (decoded(Class::Async, Fetch { to, from, bytes, object }), operands.next().is_none())
        }
        (Some(Space::Global), Some(Space::Shared)) => {
            if !op.flag("bulk_group") {
                return Err(op.unknown());
            }
            let to = source(op, next()?, axes)?;
            let from = place(op, next()?)?;
            let bytes = if tensor { Operand::Sink } else { next()? };
            (decoded(Class::Async, Send { to, from, bytes }), operands.next().is_none())
        }
        _ => return Err(op.unknown()),
    };
    if action.1 { action.0 } else { Err(format!("`{}` has too many operands", op.text)) }
}

/// The place in global memory: bytes from an address on, or a tile of a tensor.
struct Outside {
    /// An address, or that of a tensor map.
    place: Place,
    /// None of bytes.
    coordinates: Vec<Operand>,
}

fn source(op: &Opcode<'_>, operand: Operand, axes: usize) -> Result<Outside, String> {
    let Operand::Memory { base, offset, coordinates } = operand else {
        return Err(format!("`{}` needs a place in brackets", op.text));
    };
    if coordinates.len() != axes || !coordinates.iter().all(is_scalar) {
        return Err(format!("`{}` needs {axes} coordinates", op.text));
    }
    let place = place(op, Operand::Memory { base, offset, coordinates: Vec::new() })?;
    Ok(Outside { place, coordinates })
}

/// What a bulk copy moves.
struct Move {
    bytes: u64,
    /// Where a part begins in shared memory, before chunks change places, its address in global memory and its length.
    parts: Vec<(u64, u64, u64)>,
    /// The length of rows within which chunks change places; 16 if they do not.
    span: u64,
}

impl Outside {
    /// What one lane moves; `bytes` of a copy that is not of a tensor, `inside` its address in shared memory.
    fn find(&self, cx: &mut Context<'_>, bytes: &Operand, inside: u64, lane: usize) -> Result<Move, FaultKind> {
        if self.coordinates.is_empty() {
            let (_, address) = locate(cx, &self.place, Space::Global, lane);
            let bytes = cx.value(bytes, Type::U(32), lane);
            aligned("cp.async.bulk", Space::Shared, inside, 16)?;
            aligned("cp.async.bulk", Space::Global, address, 16)?;
            if bytes == 0 || !bytes.is_multiple_of(16) {
                return Err(FaultKind::Misuse(format!("a bulk copy of {bytes} bytes is not possible: 16 at a time")));
            }
            return Ok(Move { bytes, parts: vec![(0, address, bytes)], span: 16 });
        }
        let (space, address) = locate(cx, &self.place, Space::Generic, lane);
        aligned("tensor map", space, address, 64)?;
        aligned("cp.async.bulk.tensor", Space::Shared, inside, 128)?;
        let mut map = [0; TENSOR_MAP_BYTES];
        cx.load(lane, space, address, &mut map, false)?;
        let map = TensorMap::decode(&map).filter(|m| m.shape.len() == self.coordinates.len());
        let Some(map) = map else {
            let reason = format!("at {address:#x} there is no tensor map of {} axes", self.coordinates.len());
            return Err(FaultKind::Misuse(reason));
        };
        let bytes = map.tile_bytes();
        cx.shared_place("bulk copy", inside, bytes)?;
        let at: Vec<i64> =
            self.coordinates.iter().map(|c| i64::from(cx.value(c, Type::U(32), lane) as u32 as i32)).collect();
        Ok(Move { bytes, parts: map.rows(&at), span: map.swizzle.bytes() })
    }
}

/// `cp.async.bulk` to shared memory.
struct Fetch {
    to: Place,
    from: Outside,
    bytes: Operand,
    object: Place,
}

impl Execute for Fetch {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        for lane in cx.lanes() {
            self.lane(cx, lane).map_err(|kind| Trap::new(lane, kind))?;
        }
        Ok(Flow::Next)
    }
}

impl Fetch {
    fn lane(&self, cx: &mut Context<'_>, lane: usize) -> Result<(), FaultKind> {
        let [(_, to), (_, object)] = [&self.to, &self.object].map(|p| locate(cx, p, Space::Shared, lane));
        let Move { bytes, parts, span } = self.from.find(cx, &self.bytes, to, lane)?;
        // The destination bounds the size before anything is made for it.
        let start = cx.take_off(lane, to, bytes)?;
        let mut rows = vec![0; bytes as usize];
        for &(at, address, length) in &parts {
            let row = &mut rows[at as usize..(at + length) as usize];
            cx.load(lane, Space::Global, address, row, false)?;
        }
        let mut data = vec![0; bytes as usize];
        for (at, chunk) in rows.chunks_exact(16).enumerate() {
            let at = (swizzle(to + 16 * at as u64, span) - to) as usize;
            data[at..at + 16].copy_from_slice(chunk);
        }
        let accesses: Vec<Access> = parts.iter().map(|p| (p.1, p.2)).collect();
        cx.count(Space::Global, &accesses, bytes, false);
        let warp = cx.block.bulk_column() as u16;
        let mark = Mark { warp, ..cx.mark(lane, false) };
        cx.start_bulk(object, BulkCopy { to: start, data, mark })
    }
}

/// `cp.async.bulk` from shared memory.
struct Send {
    to: Outside,
    from: Place,
    bytes: Operand,
}

impl Execute for Send {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        for lane in cx.lanes() {
            self.lane(cx, lane).map_err(|kind| Trap::new(lane, kind))?;
        }
        Ok(Flow::Next)
    }
}

impl Send {
    fn lane(&self, cx: &mut Context<'_>, lane: usize) -> Result<(), FaultKind> {
        let (_, from) = locate(cx, &self.from, Space::Shared, lane);
        let Move { bytes, parts, span } = self.to.find(cx, &self.bytes, from, lane)?;
        let start = cx.shared_place("bulk copy", from, bytes)?;
        for &(at, address, length) in &parts {
            let mut row = Vec::with_capacity(length as usize);
            let end = at + length;
            // The chunks of which the row has a part.
            for chunk in (at / 16..end.div_ceil(16)).map(|chunk| 16 * chunk) {
                let place = start + (swizzle(from + chunk, span) - from) as usize;
                cx.read_shared(place, 16, cx.mark(lane, false))?;
                cx.copies(lane).reads.push((place, 16));
                let (first, last) = (at.max(chunk) - chunk, end.min(chunk + 16) - chunk);
                row.extend(&cx.block.shared[place + first as usize..place + last as usize]);
            }
            cx.store(lane, Space::Global, address, &row, false)?;
        }
        let accesses: Vec<Access> = parts.iter().map(|p| (p.1, p.2)).collect();
        cx.count(Space::Global, &accesses, bytes, true);
        Ok(())
    }
}

struct BulkCommit;

impl Execute for BulkCommit {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        for lane in cx.lanes() {
            let copies = cx.copies(lane);
            let group = std::mem::take(&mut copies.reads);
            copies.read_groups.push_back(group);
        }
        Ok(Flow::Next)
    }
}

/// Waits until no more than so many of the newest groups may still read.
struct BulkWait(u64);

impl Execute for BulkWait {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        for lane in cx.lanes() {
            while cx.copies(lane).read_groups.len() as u64 > self.0
                && let Some(group) = cx.copies(lane).read_groups.pop_front()
            {
                for (start, bytes) in group {
                    let mark = cx.mark(lane, false);
                    cx.read_shared(start, bytes, mark).map_err(|kind| Trap::new(lane, kind))?;
                }
            }
        }
        Ok(Flow::Next)
    }
}
