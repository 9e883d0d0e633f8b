//! Comparisons and choices.

use super::super::check::Trap;
use super::super::count::Class;
use super::super::machine::{Context, Row};
use super::super::module::{Operand, Type};
use super::rounding::{flush, from_bits};
use super::{Decode, Execute, Flow, Opcode, Source, alu, decoded, is_scalar};
use std::cmp::Ordering::{Equal, Greater, Less};

const COMPARISONS: &[&str] = &[
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan",
];

/// Compares two values of every lane; a bit a lane.
type Comparison = Box<dyn Fn(&Row, &Row) -> u32 + Send + Sync>;

pub(super) fn decode(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    match op.name {
        "selp" => {
            let ty = op.ty()?;
            let [to, a, b, by] = op.operands(operands)?;
            if ![&a, &b, &by].into_iter().all(is_scalar) {
                return Err(op.unknown());
            }
            let [a, b] = [a, b].map(|o| Source::new(o, ty));
            decoded(Class::Move, Select { to, a, b, by })
        }
        "slct" => {
            let flushes = op.flag("ftz");
            let (ty, by) = (op.ty()?, op.ty()?);
            if !matches!(by, Type::S(32) | Type::F(32)) || flushes && by != Type::F(32) {
                return Err(op.unknown());
            }
            // -0 is not less than zero, and NaN is not at least zero.
            let chosen = move |c: u64| {
                if by == Type::S(32) {
                    by.extend(c) as i64 >= 0
                } else {
                    (if flushes { flush(from_bits(c, by), by) } else { from_bits(c, by) }) >= 0.0
                }
            };
            alu(op, Class::Move, 0, operands, &[ty, ty, by], move |[a, b, c]| if chosen(c) { a } else { b })
        }
        _ => set(op, operands),
    }
}

/// `setp` and `set`.
fn set(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    let name = op.one_of(COMPARISONS).ok_or_else(|| op.unknown())?;
    let combine = op.one_of(&["and", "or", "xor"]);
    let flushes = op.flag("ftz");
    let result = if op.name == "set" { op.ty()? } else { Type::Pred };
    let ty = op.ty()?;
    if let (Type::F16x2 | Type::Bf16x2, "set", None, false) = (ty, op.name, combine, flushes) {
        return set_pair(op, operands, name, result, ty);
    }
    let holds = comparison(name, ty, flushes).ok_or_else(|| op.unknown())?;
    let (to, a, b, c) = match combine {
        None => {
            let [to, a, b] = op.operands(operands)?;
            (to, a, b, None)
        }
        Some(_) => {
            let [to, a, b, c] = op.operands(operands)?;
            (to, a, b, Some(c))
        }
    };
    let one = match result {
        Type::Pred => 1,
        Type::F(32) => 1f32.to_bits().into(),
        Type::F(16) => half::f16::ONE.to_bits().into(),
        Type::Bf16 => half::bf16::ONE.to_bits().into(),
        Type::U(32) | Type::S(32) => 0xffff_ffff,
        _ => return Err(op.unknown()),
    };
    if ![Some(&a), Some(&b), c.as_ref()].into_iter().flatten().all(is_scalar) {
        return Err(op.unknown());
    }
    let combine: fn(u32, u32) -> u32 = match combine {
        Some("and") => |x, y| x & y,
        Some("or") => |x, y| x | y,
        Some(_) => |x, y| x ^ y,
        None => |x, _| x,
    };
    let [a, b] = [a, b].map(|o| Source::new(o, ty));
    decoded(Class::Integer, Set { to, a, b, c, one, holds, combine })
}

/// `set` of two halves at once: a one of their type, or all bits of a half.
fn set_pair(op: &Opcode<'_>, operands: Vec<Operand>, name: &str, result: Type, ty: Type) -> Decode {
    let half = if ty == Type::F16x2 { Type::F(16) } else { Type::Bf16 };
    let one: u64 = match result {
        Type::U(32) | Type::S(32) => 0xffff,
        _ if result == ty && ty == Type::F16x2 => half::f16::ONE.to_bits().into(),
        _ if result == ty => half::bf16::ONE.to_bits().into(),
        _ => return Err(op.unknown()),
    };
    let holds = comparison(name, half, false).ok_or_else(|| op.unknown())?;
    let [to, a, b] = op.operands(operands)?;
    if ![&a, &b].into_iter().all(is_scalar) {
        return Err(op.unknown());
    }
    let [a, b] = [a, b].map(|o| Source::new(o, ty));
    decoded(Class::Integer, SetPair { to, a, b, one, holds })
}

struct SetPair {
    to: Operand,
    a: Source,
    b: Source,
    one: u64,
    holds: Comparison,
}

impl Execute for SetPair {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        let (a, b) = (*self.a.row(cx), *self.b.row(cx));
        let low = (self.holds)(&a, &b);
        let high = (self.holds)(&a.map(|v| v >> 16), &b.map(|v| v >> 16));
        let bit = |bits: u32, lane: usize| u64::from(bits >> lane & 1) * self.one;
        cx.set_row(&self.to, &std::array::from_fn(|lane| bit(high, lane) << 16 | bit(low, lane)));
        Ok(Flow::Next)
    }
}

struct Set {
    to: Operand,
    a: Source,
    b: Source,
    c: Option<Operand>,
    one: u64,
    holds: Comparison,
    combine: fn(u32, u32) -> u32,
}

impl Execute for Set {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        let holds = (self.holds)(&self.a.row(cx), &self.b.row(cx));
        let c = self.c.as_ref().map_or(0, |c| cx.holds(c));
        let [yes, no] = [holds, !holds].map(|h| (self.combine)(h, c));
        match &self.to {
            Operand::Pair(both) => {
                cx.set_holds(&both[0], yes);
                cx.set_holds(&both[1], no);
            }
            to if self.one == 1 => cx.set_holds(to, yes),
            to => cx.set_row(to, &std::array::from_fn(|lane| u64::from(yes >> lane & 1) * self.one)),
        }
        Ok(Flow::Next)
    }
}

/// `selp`.
struct Select {
    to: Operand,
    a: Source,
    b: Source,
    by: Operand,
}

impl Execute for Select {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        let by = cx.holds(&self.by);
        let (a, b) = (self.a.row(cx), self.b.row(cx));
        let mut out = [0; 32];
        for lane in 0..32 {
            out[lane] = if by >> lane & 1 == 1 { a[lane] } else { b[lane] };
        }
        drop((a, b));
        cx.set_row(&self.to, &out);
        Ok(Flow::Next)
    }
}

/// A comparison lane by lane.
fn rows(f: impl Fn(u64, u64) -> bool + Send + Sync + 'static) -> Option<Comparison> {
    Some(Box::new(move |a, b| {
        let mut bytes = [0u8; 32];
        for lane in 0..32 {
            bytes[lane] = f(a[lane], b[lane]).into();
        }
        let mut bits = 0;
        for i in 0..4 {
            let mut eight = [0; 8];
            eight.copy_from_slice(&bytes[8 * i..8 * i + 8]);
            // The low bits of eight bytes go to the top one.
            let gathered = u64::from_le_bytes(eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
            bits |= (gathered as u32) << (8 * i);
        }
        bits
    }))
}

/// The comparison of numbers that `read` finds in the bits.
fn ordered<T: PartialOrd>(name: &str, read: impl Fn(u64) -> T + Send + Sync + 'static) -> Option<Comparison> {
    match name {
        "eq" => rows(move |a, b| read(a) == read(b)),
        "ne" => rows(move |a, b| {
            let (a, b) = (read(a), read(b));
            (a < b) | (a > b)
        }),
        "lt" | "lo" => rows(move |a, b| read(a) < read(b)),
        "le" | "ls" => rows(move |a, b| read(a) <= read(b)),
        "gt" | "hi" => rows(move |a, b| read(a) > read(b)),
        "ge" | "hs" => rows(move |a, b| read(a) >= read(b)),
        // The same, or one is not a number.
        "equ" => rows(move |a, b| {
            let (a, b) = (read(a), read(b));
            !((a < b) | (a > b))
        }),
        "neu" => rows(move |a, b| read(a) != read(b)),
        "ltu" => rows(move |a, b| !matches!(read(a).partial_cmp(&read(b)), Some(Greater | Equal))),
        "leu" => rows(move |a, b| !matches!(read(a).partial_cmp(&read(b)), Some(Greater))),
        "gtu" => rows(move |a, b| !matches!(read(a).partial_cmp(&read(b)), Some(Less | Equal))),
        "geu" => rows(move |a, b| !matches!(read(a).partial_cmp(&read(b)), Some(Less))),
        "num" => rows(move |a, b| read(a).partial_cmp(&read(b)).is_some()),
        "nan" => rows(move |a, b| read(a).partial_cmp(&read(b)).is_none()),
        _ => None,
    }
}

fn comparison(name: &str, ty: Type, flushes: bool) -> Option<Comparison> {
    let unsigned = matches!(name, "lo" | "ls" | "hi" | "hs");
    match ty {
        Type::F16x2 | Type::Bf16x2 | Type::Tf32 | Type::Pred => None,
        _ if ty.is_float() && unsigned || !ty.is_float() && name.len() == 3 || unsigned && matches!(ty, Type::S(_)) => {
            None
        }
        Type::F(32) if !flushes => ordered(name, |v| f32::from_bits(v as u32)),
        Type::F(64) => ordered(name, f64::from_bits),
        _ if ty.is_float() => ordered(name, move |v| {
            let x = from_bits(ty.truncate(v), ty);
            if flushes { flush(x, ty) } else { x }
        }),
        Type::S(32) => ordered(name, |v| v as i32),
        Type::U(32) | Type::B(32) => ordered(name, |v| v as u32),
        Type::U(64) | Type::B(64) => ordered(name, |v| v),
        _ => ordered(name, move |v| if matches!(ty, Type::S(_)) { ty.extend(v) as i64 } else { ty.truncate(v) as i64 }),
    }
}
