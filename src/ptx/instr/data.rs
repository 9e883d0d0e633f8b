//! Moves, loads and stores.

use super::super::check::{FaultKind, Trap};
use super::super::count::Class;
use super::super::machine::{Context, class_of, window};
use super::super::memory::resolve;
use super::super::module::{Operand, Space, Type};
use super::{Decode, Execute, Flow, Opcode, alu, decoded, is_scalar};

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
        "prefetch" | "prefetchu" => {
            space(op);
            op.one_of(&["L1", "L2"]).ok_or_else(|| op.unknown())?;
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
            // A cluster has one block.
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
    decoded(class_of(space), Transfer { space, place, values, ty, strong, store })
}

struct Transfer {
    space: Space,
    place: Place,
    values: Vec<Operand>,
    ty: Type,
    strong: bool,
    store: bool,
}

impl Execute for Transfer {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        let size = self.ty.bytes();
        let bytes = size * self.values.len();
        let mut accesses = Vec::with_capacity(32);
        let mut counted = self.space;
        for lane in cx.lanes() {
            let (space, address) = locate(cx, &self.place, self.space, lane);
            counted = space;
            let access = if self.store { "store" } else { "load" };
            aligned(access, space, address, bytes as u64).map_err(|kind| Trap::new(lane, kind))?;
            accesses.push((address, bytes as u64));
            let mut buffer = [0u8; 16];
            let buffer = &mut buffer[..bytes];
            if self.store {
                for (value, out) in self.values.iter().zip(buffer.chunks_mut(size)) {
                    out.copy_from_slice(&cx.value(value, self.ty, lane).to_le_bytes()[..size]);
                }
                cx.store(lane, space, address, buffer, self.strong)
            } else {
                cx.load(lane, space, address, buffer, self.strong)
            }
            .map_err(|kind| Trap::new(lane, kind))?;
            if !self.store {
                for (value, part) in self.values.iter().zip(buffer.chunks(size)) {
                    cx.set(value, lane, self.ty.extend(number(part)));
                }
            }
        }
        cx.count(counted, &accesses, bytes as u64, self.store);
        Ok(Flow::Next)
    }
}

/// Little-endian bytes, eight at most.
pub(super) fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// The space and address of a place for one lane, generic addresses resolved.
pub(super) fn locate(cx: &Context<'_>, place: &Place, space: Space, lane: usize) -> (Space, u64) {
    let known = if space == Space::Generic { cx.space_of(&place.base) } else { None };
    match known.unwrap_or(space) {
        Space::Generic => resolve(cx.address(&place.base, place.offset, lane, Space::Generic)),
        space => (space, cx.address(&place.base, place.offset, lane, space)),
    }
}

/// Whether the address is a multiple of the access's size.
pub(super) fn aligned(access: &'static str, space: Space, address: u64, bytes: u64) -> Result<(), FaultKind> {
    match address % bytes {
        0 => Ok(()),
        _ => Err(FaultKind::Misaligned { access, space, address, bytes }),
    }
}
