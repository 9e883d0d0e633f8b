//! Logic, shifts, and moving bits about.

use super::super::count::Class;
use super::super::module::{Operand, Type};
use super::{Context, Decode, Execute, Flow, Opcode, Trap, alu, decoded, is_scalar};

pub(super) fn decode(op: &Opcode<'_>, mut operands: Vec<Operand>) -> Decode {
    const B32: Type = Type::B(32);
    let integer = Class::Integer;
    match op.name {
        "lop3" => {
            let ty = op.ty()?;
            let Some(&Operand::Integer(table)) = operands.last().filter(|_| ty == B32 && operands.len() == 5) else {
                return Err(op.unknown());
            };
            operands.pop();
            alu(op, integer, 0, operands, &[ty; 3], move |v| lop3(v, table))
        }
        "shf" => {
            let left = op.one_of(&["l", "r"]).ok_or_else(|| op.unknown())? == "l";
            let wrap = op.one_of(&["wrap", "clamp"]).ok_or_else(|| op.unknown())? == "wrap";
            let ty = op.ty()?;
            if ty != B32 {
                return Err(op.unknown());
            }
            alu(op, integer, 0, operands, &[ty; 3], move |[low, high, by]| {
                let by = if wrap { by & 31 } else { by.min(32) };
                let both = high << 32 | low;
                // A shift by 32 at most.
                if left { (u128::from(both) << by >> 32) as u64 & 0xffff_ffff } else { both >> by & 0xffff_ffff }
            })
        }
        "bfe" => {
            let ty = op.ty()?;
            if !matches!(ty, Type::U(32 | 64) | Type::S(32 | 64)) {
                return Err(op.unknown());
            }
            alu(op, integer, 0, operands, &[ty, B32, B32], move |[a, at, length]| bfe(ty, a, at & 0xff, length & 0xff))
        }
        "bfi" => bfi(op, operands),
        "prmt" => {
            let mode = op.one_of(&["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"]);
            if op.ty()? != B32 || mode.is_some() {
                return Err(op.unknown());
            }
            alu(op, integer, 0, operands, &[B32; 3], |[a, b, selectors]| prmt(b << 32 | a, selectors))
        }
        "shl" | "shr" => {
            let ty = op.ty()?;
            let width = u64::from(ty.bits());
            if width < 16 || ty.is_float() {
                return Err(op.unknown());
            }
            let left = op.name == "shl";
            match (left, ty) {
                (true, Type::B(32)) => {
                    return alu(op, integer, 0, operands, &[ty, B32], |[a, by, _]| if by > 31 { 0 } else { a << by });
                }
                (false, Type::U(32) | Type::B(32)) => {
                    return alu(op, integer, 0, operands, &[ty, B32], |[a, by, _]| if by > 31 { 0 } else { a >> by });
                }
                (false, Type::S(32)) => {
                    return alu(op, integer, 0, operands, &[ty, B32], |[a, by, _]| (a as i32 >> by.min(31)) as u64);
                }
                _ => {}
            }
            alu(op, integer, 0, operands, &[ty, B32], move |[a, by, _]| match by.min(width) {
                // Beyond the width nothing is left, or the sign alone.
                64 if left || !matches!(ty, Type::S(_)) => 0,
                by if left => ty.truncate(a << by),
                by => match ty {
                    Type::S(_) => (ty.extend(a) as i64 >> by.min(63)) as u64,
                    _ => a >> by,
                },
            })
        }
        _ => logic(op, operands),
    }
}

fn logic(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    let ty = op.ty()?;
    let integer = Class::Integer;
    match (op.name, ty) {
        ("cnot", Type::Pred) => Err(op.unknown()),
        (_, Type::Pred) => predicates(op, operands),
        ("and", Type::B(_)) => alu(op, integer, 0, operands, &[ty; 2], |[a, b, _]| a & b),
        ("or", Type::B(_)) => alu(op, integer, 0, operands, &[ty; 2], |[a, b, _]| a | b),
        ("xor", Type::B(_)) => alu(op, integer, 0, operands, &[ty; 2], |[a, b, _]| a ^ b),
        ("not", Type::B(_)) => alu(op, integer, 0, operands, &[ty], |[a, ..]| !a),
        ("cnot", Type::B(_)) => alu(op, integer, 0, operands, &[ty], |[a, ..]| u64::from(a == 0)),
        _ => Err(op.unknown()),
    }
}

fn predicates(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    let (count, f): (usize, fn(u32, u32) -> u32) = match op.name {
        "and" => (2, |a, b| a & b),
        "or" => (2, |a, b| a | b),
        "xor" => (2, |a, b| a ^ b),
        _ => (1, |a, _| !a),
    };
    let mut operands = operands.into_iter();
    let to = operands.next().unwrap_or(Operand::Sink);
    let from: Vec<Operand> = operands.collect();
    if from.len() != count || !from.iter().all(is_scalar) {
        return Err(format!("`{}` takes {} operands", op.text, count + 1));
    }
    decoded(Class::Integer, Predicates { to, from, f })
}

/// Logic of predicates, of all lanes at once.
struct Predicates {
    to: Operand,
    from: Vec<Operand>,
    f: fn(u32, u32) -> u32,
}

impl Execute for Predicates {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        let [a, b] = [0, 1].map(|i| self.from.get(i).map_or(0, |o| cx.holds(o)));
        cx.set_holds(&self.to, (self.f)(a, b));
        Ok(Flow::Next)
    }
}

/// Any function of three bits, bit by bit: bit 4 a + 2 b + c of the table.
fn lop3([a, b, c]: [u64; 3], table: u64) -> u64 {
    let term = |i: u64| {
        let pick = |v: u64, bit: u64| if i >> bit & 1 == 1 { v } else { !v };
        pick(a, 2) & pick(b, 1) & pick(c, 0)
    };
    (0..8).filter(|i| table >> i & 1 == 1).fold(0, |r, i| r | term(i)) & 0xffff_ffff
}

/// `length` bits of `a` from bit `at` on; a signed type fills up with the highest bit of the field.
fn bfe(ty: Type, a: u64, at: u64, length: u64) -> u64 {
    let width = u64::from(ty.bits());
    let field = a.checked_shr(at as u32).unwrap_or(0);
    let known = length.min(width.saturating_sub(at));
    let ones = |n: u64| if n >= 64 { u64::MAX } else { (1 << n) - 1 };
    let negative = match ty {
        Type::S(_) if length > 0 => a >> (at + length - 1).min(width - 1) & 1 == 1,
        _ => false,
    };
    let above = if negative { !ones(known) } else { 0 };
    ty.truncate(field & ones(known) | above)
}

/// The low bits of `a` over those of `b` from a place on.
fn bfi(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    let ty = op.ty()?;
    let [result, a, b, at, length] = op.operands(operands)?;
    if !matches!(ty, Type::B(32 | 64)) {
        return Err(op.unknown());
    }
    let width = u64::from(ty.bits());
    let field = move |at: u64, length: u64| {
        let (at, length) = (at & 0xff, length & 0xff);
        if at < width { (((1u128 << length.min(width - at)) - 1) << at) as u64 } else { 0 }
    };
    super::decoded(Class::Integer, Bfi { result, a, b, at, length, ty, field })
}

struct Bfi<F> {
    result: Operand,
    a: Operand,
    b: Operand,
    at: Operand,
    length: Operand,
    ty: Type,
    field: F,
}

impl<F: Fn(u64, u64) -> u64 + Send + Sync> super::Execute for Bfi<F> {
    fn run(&self, cx: &mut super::Context<'_>) -> Result<super::Flow, super::Trap> {
        for lane in cx.lanes() {
            let [at, length] = [&self.at, &self.length].map(|o| cx.value(o, Type::B(32), lane));
            let mask = (self.field)(at, length);
            let a = cx.value(&self.a, self.ty, lane).checked_shl(at as u32 & 0xff).unwrap_or(0);
            let b = cx.value(&self.b, self.ty, lane);
            cx.set(&self.result, lane, b & !mask | a & mask);
        }
        Ok(super::Flow::Next)
    }
}

/// Four bytes out of eight; a selector's high bit asks for the byte's sign instead.
fn prmt(bytes: u64, selectors: u64) -> u64 {
    let byte = |i: u64| {
        let selector = selectors >> (4 * i) & 0xf;
        let b = bytes >> (8 * (selector & 7)) & 0xff;
        if selector & 8 == 0 { b } else { (b >> 7) * 0xff }
    };
    (0..4).fold(0, |r, i| r | byte(i) << (8 * i))
}
