//! Moves, loads and stores.

use super::super::check::{FaultKind, MANY, Trap};
use super::super::count::Class;
use super::super::machine::{Context, Row, address_type, class_of, window};
use super::super::memory::{CALL_PARAMETERS, CLUSTER_STEP, resolve};
use super::super::module::{Operand, Space, Type};
use super::{Decode, Execute, Flow, Opcode, Source, alu, decoded, is_scalar};

pub(super) fn decode(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    match op.name {
        "mov" => mov(op, operands),
        "cvta" => {
            let to = op.flag("to");
            let base = window(space(op).ok_or_else(|| op.unknown())?);
            let ty = op.ty()?;
            if ty != Type::U(64) {
                return Err(op.unknown());
            }
            let change = move |a: u64| if to { a.wrapping_sub(base) } else { a.wrapping_add(base) };
            alu(op, Class::Integer, 0, operands, &[ty], move |[a, ..]| change(a))
        }
        "isspacep" => {
            let wanted = space(op).ok_or_else(|| op.unknown())?;
            alu(op, Class::Integer, 0, operands, &[Type::U(64)], move |[a, ..]| u64::from(resolve(a).0 == wanted))
        }
        "mapa" => {
            let ty = match space(op) {
                Some(Space::Shared) | None => op.ty()?,
                Some(_) => return Err(op.unknown()),
            };
            if !matches!(ty, Type::U(32 | 64)) {
                return Err(op.unknown());
            }
            // Ranks beyond any cluster's stay such ones in 32 bits.
            let map = |[a, rank, ..]: [u64; 3]| {
                let own = a - a / CLUSTER_STEP % 256 * CLUSTER_STEP;
                own.wrapping_add((rank.min(254) + 1) * CLUSTER_STEP)
            };
            alu(op, Class::Integer, 0, operands, &[ty, Type::U(32)], map)
        }
        "prefetch" | "prefetchu" => {
            space(op);
            op.one_of(&["L1", "L2", "tensormap"]).ok_or_else(|| op.unknown())?;
            op.operands::<1>(operands)?;
            decoded(Class::Global, super::control::Nothing)
        }
        _ => transfer(op, operands),
    }
}

/// The modifier of a state space.
pub(super) fn space(op: &Opcode<'_>) -> Option<Space> {
    op.find(|m| {
        Some(match m {
            "global" => Space::Global,
            "shared" | "shared::cta" | "shared::cluster" => Space::Shared,
            "local" => Space::Local,
            "const" => Space::Const,
            "param" | "param::entry" => Space::Param,
            _ => return None,
        })
    })
}

/// Takes the modifiers of memory order; whether the access is one that does not race with its like.
pub(super) fn is_strong(op: &Opcode<'_>) -> bool {
    let order = op.one_of(&["weak", "volatile", "relaxed", "acquire", "release", "acq_rel"]);
    op.one_of(&["cta", "cluster", "gpu", "sys"]);
    order.is_some_and(|o| o != "weak")
}

/// A memory operand.
pub(super) struct Place {
    pub base: Operand,
    pub offset: i64,
}

/// A memory operand without coordinates.
pub(super) fn place(op: &Opcode<'_>, operand: Operand) -> Result<Place, String> {
    match operand {
        Operand::Memory { base, offset, coordinates } if coordinates.is_empty() && (is_scalar(&base)) => {
            Ok(Place { base: *base, offset })
        }
        _ => Err(format!("`{}` needs an address in brackets", op.text)),
    }
}

fn mov(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    let ty = op.ty()?;
    let [to, from] = op.operands(operands)?;
    match (to, from) {
        (Operand::Vector(to), from) if is_scalar(&from) => {
            let part = part(op, ty, to.len())?;
            decoded(Class::Move, Unpack { to, from, ty, part })
        }
        (to, Operand::Vector(from)) => {
            let part = part(op, ty, from.len())?;
            decoded(Class::Move, Pack { to, from, part })
        }
        (to, from) => alu(op, Class::Move, 0, vec![to, from], &[ty], |[a, ..]| a),
    }
}

/// The type of one of `count` parts.
fn part(op: &Opcode<'_>, ty: Type, count: usize) -> Result<Type, String> {
    match (ty, count) {
        (Type::B(bits @ (16 | 32 | 64)), 2 | 4) if bits / count as u32 >= 8 => Ok(Type::B(bits / count as u32)),
        _ => Err(op.unknown()),
    }
}

struct Unpack {
    to: Vec<Operand>,
    from: Operand,
    ty: Type,
    part: Type,
}

impl Execute for Unpack {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        for lane in cx.lanes() {
            let value = cx.value(&self.from, self.ty, lane);
            for (i, to) in self.to.iter().enumerate() {
                cx.set(to, lane, self.part.truncate(value >> (self.part.bits() * i as u32)));
            }
        }
        Ok(Flow::Next)
    }
}

struct Pack {
    to: Operand,
    from: Vec<Operand>,
    part: Type,
}

impl Execute for Pack {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        for lane in cx.lanes() {
            let parts = self.from.iter().enumerate();
            let shifted = parts.map(|(i, from)| cx.value(from, self.part, lane) << (self.part.bits() * i as u32));
            let value = shifted.fold(0, |v, p| v | p);
            cx.set(&self.to, lane, value);
        }
        Ok(Flow::Next)
    }
}

/// `ld` and `st`.
fn transfer(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    let store = op.name == "st";
    let strong = is_strong(op);
    let space = space(op).unwrap_or(Space::Generic);
    op.one_of(if store { &["wb", "cg", "cs", "wt"] } else { &["ca", "cg", "cs", "lu", "cv"] });
    if !store {
        op.flag("nc");
    }
    for hints in [
        &["L1::evict_normal", "L1::evict_unchanged", "L1::evict_first", "L1::evict_last", "L1::no_allocate"][..],
        &["L2::64B", "L2::128B", "L2::256B"],
    ] {
        op.one_of(hints);
    }
    let count = op.one_of(&["v2", "v4"]).map_or(1, |v| if v == "v2" { 2 } else { 4 });
    let ty = op.ty()?;
    if matches!(ty, Type::Pred | Type::Tf32) || ty.bytes() * count > 16 {
        return Err(op.unknown());
    }
    let [first, second] = op.operands(operands)?;
    let (address, values) = if store { (first, second) } else { (second, first) };
    let place = place(op, address)?;
    let values = match values {
        Operand::Vector(values) if count > 1 => values,
        value if count == 1 && (is_scalar(&value) || !store) => vec![value],
        _ => return Err(format!("`{}` needs {count} values", op.text)),
    };
    if values.len() != count {
        return Err(format!("`{}` needs {count} values", op.text));
    }
    let sources = if store { values.iter().map(|v| Source::new(v.clone(), ty)).collect() } else { Vec::new() };
    decoded(class_of(space), Transfer { space, place, values, sources, ty, strong, store })
}

struct Transfer {
    space: Space,
    place: Place,
    values: Vec<Operand>,
    /// The values of a store.
    sources: Vec<Source>,
    ty: Type,
    strong: bool,
    store: bool,
}

/// Neighbouring lanes whose accesses follow each other in memory, or are the same.
struct Run {
    lanes: u32,
    address: u64,
    /// From one lane to the next.
    step: u64,
    /// From the first byte to the last.
    bytes: u64,
}

/// The lanes of a mask cut into runs of accesses of `bytes`.
struct Runs<'a> {
    addresses: &'a Row,
    left: u32,
    bytes: u64,
}

impl Iterator for Runs<'_> {
    type Item = Run;

    #[inline]
    fn next(&mut self) -> Option<Run> {
        if self.left == 0 {
            return None;
        }
        let mut take = || {
            let lane = self.left.trailing_zeros();
            self.left &= self.left - 1;
            (1u32 << lane, self.addresses[lane as usize])
        };
        let (mut lanes, address) = take();
        let (mut last, mut step, mut alone) = (address, 0, true);
        while self.left != 0 {
            let next = self.addresses[self.left.trailing_zeros() as usize].wrapping_sub(last);
            if !(next == step || alone && next == self.bytes) {
                break;
            }
            (step, alone) = (next, false);
            last = last.wrapping_add(step);
            lanes |= 1 << self.left.trailing_zeros();
            self.left &= self.left - 1;
        }
        Some(Run { lanes, address, step, bytes: self.bytes + last.wrapping_sub(address) })
    }
}

/// The lanes of a mask, in order.
struct Lanes(u32);

impl Iterator for Lanes {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let lane = self.0.trailing_zeros() as usize;
        self.0 &= self.0 - 1;
        Some(lane)
    }
}

impl Execute for Transfer {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        let space = if self.space == Space::Generic { cx.space_of(&self.place.base) } else { Some(self.space) };
        let mut addresses = [0; 32];
        if let (Some(space), Operand::Register(slot)) = (space, &self.place.base) {
            let mask = address_type(space).truncate(u64::MAX);
            let row = &cx.warp.registers[*slot as usize];
            for lane in 0..32 {
                addresses[lane] = row[lane].wrapping_add_signed(self.place.offset) & mask;
            }
            self.access(cx, space, &addresses, cx.mask)?;
            return Ok(Flow::Next);
        }
        if let (Some(space), Operand::Variable(..) | Operand::Integer(_)) = (space, &self.place.base) {
            let address = cx.address(&self.place.base, self.place.offset, 0, space);
            self.access(cx, space, &[address; 32], cx.mask)?;
            return Ok(Flow::Next);
        }
        let mut spaces = [self.space; 32];
        for lane in cx.lanes() {
            (spaces[lane], addresses[lane]) = locate(cx, &self.place, self.space, lane);
        }
        let mut left = cx.mask;
        while left != 0 {
            let space = spaces[left.trailing_zeros() as usize];
            let mask = Lanes(left).filter(|l| spaces[*l] == space).fold(0, |m, l| m | 1 << l);
            self.access(cx, space, &addresses, mask)?;
            left &= !mask;
        }
        Ok(Flow::Next)
    }
}

impl Transfer {
    /// The lanes of `mask`, all of which go to one space.
    fn access(&self, cx: &mut Context<'_>, space: Space, addresses: &Row, mask: u32) -> Result<(), Trap> {
        let bytes = (self.ty.bytes() * self.values.len()) as u64;
        let name = if self.store { "store" } else { "load" };
        let mut accesses = [(0, 0); 32];
        let (mut odd, mut high, mut count) = (0, 0, 0);
        for lane in Lanes(mask) {
            odd |= addresses[lane] & (bytes - 1);
            high |= addresses[lane];
            accesses[count] = (addresses[lane], bytes);
            count += 1;
        }
        if odd != 0 {
            for lane in Lanes(mask) {
                aligned(name, space, addresses[lane], bytes).map_err(|kind| Trap::new(lane, kind))?;
            }
        }
        if space == Space::Shared && high >= CLUSTER_STEP {
            for lane in Lanes(mask) {
                self.of_cluster(cx, addresses[lane], lane, bytes).map_err(|kind| Trap::new(lane, kind))?;
            }
            cx.count(space, &accesses[..count], bytes, self.store);
            return Ok(());
        }
        for run in (Runs { addresses, left: mask, bytes }) {
            if self.together(cx, space, &run).is_ok() {
                continue;
            }
            // Bounds may lie between the lanes, or one of them is at fault.
            for lane in Lanes(run.lanes) {
                let one = Run { lanes: 1 << lane, address: addresses[lane], step: 0, bytes };
                self.together(cx, space, &one).map_err(|kind| Trap::new(lane, kind))?;
            }
        }
        cx.count(space, &accesses[..count], bytes, self.store);
        Ok(())
    }

    /// One lane's access to shared memory of any block of the cluster.
    fn of_cluster(&self, cx: &mut Context<'_>, address: u64, lane: usize, bytes: u64) -> Result<(), FaultKind> {
        cx.visit(address, |cx, address| {
            self.together(cx, Space::Shared, &Run { lanes: 1 << lane, address, step: 0, bytes })
        })
    }

    fn together(&self, cx: &mut Context<'_>, space: Space, run: &Run) -> Result<(), FaultKind> {
        match (space, self.store) {
            (Space::Global | Space::Const, false) => {
                let data = cx.memory.load(run.address, run.bytes)?;
                self.spread(&mut cx.warp.registers, run, data);
            }
            (Space::Global, true) => {
                // A fault shows before anything is written.
                cx.memory.store(run.address, run.bytes)?;
                for (i, source) in self.sources.iter().enumerate() {
                    let row = *source.row(cx);
                    self.gather(cx.memory.store(run.address, run.bytes)?, run, i, &row);
                }
            }
            (Space::Shared, store) => {
                let name = if store { "store" } else { "load" };
                let start = cx.shared_place(name, run.address, run.bytes)?;
                self.mark(cx, run, start)?;
                let end = start + run.bytes as usize;
                if store {
                    for (i, source) in self.sources.iter().enumerate() {
                        let row = *source.row(cx);
                        self.gather(&mut cx.block.shared[start..end], run, i, &row);
                    }
                } else {
                    self.spread(&mut cx.warp.registers, run, &cx.block.shared[start..end]);
                }
            }
            (Space::Param, false) if run.step == 0 && run.address < CALL_PARAMETERS => {
                let mut buffer = [0u8; 16];
                let data = &mut buffer[..run.bytes as usize];
                cx.load(run.lanes.trailing_zeros() as usize, space, run.address, data, self.strong)?;
                self.spread(&mut cx.warp.registers, run, data);
            }
            (space, false) => {
                let mut buffer = [0u8; 16];
                let bytes = self.ty.bytes() * self.values.len();
                for (i, lane) in Lanes(run.lanes).enumerate() {
                    cx.load(lane, space, run.address + i as u64 * run.step, &mut buffer[..bytes], self.strong)?;
                    let one = Run { lanes: 1 << lane, ..*run };
                    self.spread(&mut cx.warp.registers, &one, &buffer[..bytes]);
                }
            }
            (space, true) => {
                let mut buffer = [0u8; 16];
                let bytes = self.ty.bytes() * self.values.len();
                for (i, lane) in Lanes(run.lanes).enumerate() {
                    for (out, source) in buffer.chunks_mut(self.ty.bytes()).zip(&self.sources) {
                        let value = cx.value(&source.operand, self.ty, lane);
                        out.copy_from_slice(&value.to_le_bytes()[..self.ty.bytes()]);
                    }
                    cx.store(lane, space, run.address + i as u64 * run.step, &buffer[..bytes], self.strong)?;
                }
            }
        }
        Ok(())
    }

    /// Notes the accesses of a run to shared memory.
    fn mark(&self, cx: &mut Context<'_>, run: &Run, start: usize) -> Result<(), FaultKind> {
        let each = self.ty.bytes() * self.values.len();
        let same = run.step == 0 && run.lanes.count_ones() > 1;
        let mut who = cx.mark(0, self.strong);
        for (i, lane) in Lanes(run.lanes).enumerate() {
            who.lane = if same && !self.store { MANY } else { lane as u8 };
            let at = start + i * run.step as usize;
            if self.store {
                cx.write_shared(at, each, who)?;
            } else {
                cx.read_shared(at, each, who)?;
            }
            if same {
                break;
            }
        }
        Ok(())
    }

    /// Puts what a run has read into the registers.
    fn spread(&self, registers: &mut [Row], run: &Run, data: &[u8]) {
        for (value, data) in self.values.iter().zip(data.chunks(self.ty.bytes())) {
            let Operand::Register(slot) = value else { continue };
            let row = &mut registers[*slot as usize];
            let number = self.ty.extend(any_number(data));
            if run.step == 0 && run.lanes == u32::MAX {
                row.fill(number);
            } else if run.step == 0 {
                Lanes(run.lanes).for_each(|lane| row[lane] = number);
            }
        }
        if run.step == 0 {
            return;
        }
        for (i, value) in self.values.iter().enumerate() {
            let Operand::Register(slot) = value else { continue };
            let (row, data) = (&mut registers[*slot as usize], &data[i * self.ty.bytes()..]);
            match self.ty.bytes() {
                1 => spread::<1>(row, run, data),
                2 => spread::<2>(row, run, data),
                4 => spread::<4>(row, run, data),
                _ => spread::<8>(row, run, data),
            }
            if let Type::S(8 | 16 | 32) = self.ty {
                Lanes(run.lanes).for_each(|lane| row[lane] = self.ty.extend(row[lane]));
            }
        }
    }

    /// Puts the value with the number `i` of a run's lanes where it is written.
    fn gather(&self, data: &mut [u8], run: &Run, i: usize, row: &Row) {
        let data = &mut data[i * self.ty.bytes()..];
        match self.ty.bytes() {
            1 => gather::<1>(row, run, data),
            2 => gather::<2>(row, run, data),
            4 => gather::<4>(row, run, data),
            _ => gather::<8>(row, run, data),
        }
    }
}

/// Numbers of `N` bytes at the steps of a run, into its lanes.
fn spread<const N: usize>(row: &mut Row, run: &Run, mut data: &[u8]) {
    let step = run.step as usize;
    for lane in Lanes(run.lanes) {
        let Some(bytes) = data.first_chunk::<N>() else { return };
        row[lane] = number(bytes);
        data = data.get(step..).unwrap_or(&[]);
    }
}

/// The low `N` bytes of a run's lanes, at its steps. Where all go to one place, the last one stays.
fn gather<const N: usize>(row: &Row, run: &Run, mut data: &mut [u8]) {
    let step = run.step as usize;
    for lane in Lanes(run.lanes) {
        let value = row[lane].to_le_bytes();
        let (Some(to), Some(from)) = (data.first_chunk_mut::<N>(), value.first_chunk::<N>()) else { return };
        *to = *from;
        data = data.get_mut(step..).unwrap_or(&mut []);
    }
}

#[inline]
fn number<const N: usize>(bytes: &[u8; N]) -> u64 {
    let (mut value, mut at) = (0, N);
    while at > 0 {
        at -= 1;
        value = value << 8 | u64::from(bytes[at]);
    }
    value
}

/// Little-endian bytes, eight at most.
pub(super) fn any_number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// The space and address of a place for one lane, generic addresses resolved.
#[inline]
pub(super) fn locate(cx: &Context<'_>, place: &Place, space: Space, lane: usize) -> (Space, u64) {
    let known = if space == Space::Generic { cx.space_of(&place.base) } else { None };
    match known.unwrap_or(space) {
        Space::Generic => resolve(cx.address(&place.base, place.offset, lane, Space::Generic)),
        space => (space, cx.address(&place.base, place.offset, lane, space)),
    }
}

/// Whether the address is a multiple of the access's size.
#[inline]
pub(super) fn aligned(access: &'static str, space: Space, address: u64, bytes: u64) -> Result<(), FaultKind> {
    match address % bytes {
        0 => Ok(()),
        _ => Err(FaultKind::Misaligned { access, space, address, bytes }),
    }
}
