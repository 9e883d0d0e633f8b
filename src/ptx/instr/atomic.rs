//! `atom` and `red`: read, change and write in one. The lanes of a warp take turns.

use super::super::check::Trap;
use super::super::machine::{Context, class_of};
use super::super::module::{Operand, Space, Type};
use super::data::{Place, aligned, any_number, is_strong, locate, place, space};
use super::rounding::{Round, from_bits, round, sum, to_bits};
use super::{Decode, Execute, Flow, Opcode, decoded, is_scalar};

type Change = Box<dyn Fn(u64, u64, u64) -> u64 + Send + Sync>;

pub(super) fn decode(op: &Opcode<'_>, mut operands: Vec<Operand>) -> Decode {
    is_strong(op);
    let space = space(op).unwrap_or(Space::Generic);
    let name = op
        .one_of(&["add", "min", "max", "inc", "dec", "and", "or", "xor", "exch", "cas"])
        .ok_or_else(|| op.unknown())?;
    op.flag("noftz");
    let ty = op.ty()?;
    let change = change(name, ty).ok_or_else(|| op.unknown())?;
    let result = if op.name == "atom" && !operands.is_empty() { Some(operands.remove(0)) } else { None };
    if op.name == "red" && matches!(name, "exch" | "cas") {
        return Err(op.unknown());
    }
    let third = if name == "cas" && operands.len() == 3 { operands.pop() } else { None };
    if name == "cas" && third.is_none() {
        return Err(format!("`{}` takes 4 operands", op.text));
    }
    let [address, value] = op.operands(operands)?;
    if !is_scalar(&value) {
        return Err(op.unknown());
    }
    decoded(class_of(space), Atomic { space, place: place(op, address)?, result, value, third, ty, change })
}

struct Atomic {
    space: Space,
    place: Place,
    result: Option<Operand>,
    value: Operand,
    third: Option<Operand>,
    ty: Type,
    change: Change,
}

impl Execute for Atomic {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        let bytes = self.ty.bytes();
        let mut accesses = Vec::with_capacity(32);
        let mut counted = self.space;
        for lane in cx.lanes() {
            let (space, address) = locate(cx, &self.place, self.space, lane);
            counted = space;
            accesses.push((address, bytes as u64));
            let mut buffer = [0u8; 8];
            let old = aligned("atomic", space, address, bytes as u64)
                .and_then(|()| cx.load(lane, space, address, &mut buffer[..bytes], true))
                .map(|()| any_number(&buffer[..bytes]))
                .map_err(|kind| Trap::new(lane, kind))?;
            let value = cx.value(&self.value, self.ty, lane);
            let third = self.third.as_ref().map_or(0, |t| cx.value(t, self.ty, lane));
            let new = (self.change)(old, value, third);
            cx.store(lane, space, address, &new.to_le_bytes()[..bytes], true).map_err(|kind| Trap::new(lane, kind))?;
            if let Some(result) = &self.result {
                cx.set(result, lane, self.ty.extend(old));
            }
        }
        if self.ty.is_float() {
            cx.count_flops(1);
        }
        cx.count(counted, &accesses, bytes as u64, true);
        Ok(Flow::Next)
    }
}

/// What becomes of the old value with the operands b and c.
fn change(name: &str, ty: Type) -> Option<Change> {
    let signed = move |v| ty.extend(v) as i64;
    Some(match (name, ty) {
        ("add", Type::U(32 | 64) | Type::S(32 | 64)) => Box::new(|a, b, _| a.wrapping_add(b)),
        ("add", Type::F(64)) => Box::new(|a, b, _| (f64::from_bits(a) + f64::from_bits(b)).to_bits()),
        ("add", Type::F(16 | 32) | Type::Bf16) => Box::new(move |a, b, _| add(a, b, ty)),
        ("add", Type::F16x2 | Type::Bf16x2) => {
            let half = if ty == Type::F16x2 { Type::F(16) } else { Type::Bf16 };
            Box::new(move |a, b, _| add(a >> 16, b >> 16, half) << 16 | add(a & 0xffff, b & 0xffff, half))
        }
        ("min", Type::U(32 | 64)) => Box::new(|a, b, _| a.min(b)),
        ("max", Type::U(32 | 64)) => Box::new(|a, b, _| a.max(b)),
        ("min", Type::S(32 | 64)) => Box::new(move |a, b, _| signed(a).min(signed(b)) as u64),
        ("max", Type::S(32 | 64)) => Box::new(move |a, b, _| signed(a).max(signed(b)) as u64),
        ("inc", Type::U(32)) => Box::new(|a, b, _| if a >= b { 0 } else { a + 1 }),
        ("dec", Type::U(32)) => Box::new(|a, b, _| if a == 0 || a > b { b } else { a - 1 }),
        ("and", Type::B(32 | 64)) => Box::new(|a, b, _| a & b),
        ("or", Type::B(32 | 64)) => Box::new(|a, b, _| a | b),
        ("xor", Type::B(32 | 64)) => Box::new(|a, b, _| a ^ b),
        ("exch", Type::B(32 | 64)) => Box::new(|_, b, _| b),
        ("cas", Type::B(16 | 32 | 64)) => Box::new(|a, b, c| if a == b { c } else { a }),
        _ => return None,
    })
}

fn add(a: u64, b: u64, ty: Type) -> u64 {
    to_bits(round(sum(from_bits(a, ty), from_bits(b, ty)), ty, Round::Nearest), ty)
}
