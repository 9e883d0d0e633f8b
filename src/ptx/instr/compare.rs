//! Comparisons and choices.

use super::super::check::Trap;
use super::super::count::Class;
use super::super::machine::Context;
use super::super::module::{Operand, Type};
use super::rounding::{flush, from_bits};
use super::{Decode, Execute, Flow, Opcode, alu, decoded, is_scalar};

const COMPARISONS: &[&str] = &[
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan",
];

type Comparison = Box<dyn Fn(u64, u64) -> bool + Send + Sync>;

pub(super) fn decode(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    match op.name {
        "selp" => {
            let ty = op.ty()?;
            alu(op, Class::Move, 0, operands, &[ty, ty, Type::Pred], |[a, b, p]| if p == 1 { a } else { b })
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
        Type::U(32) | Type::S(32) => 0xffff_ffff,
        _ => return Err(op.unknown()),
    };
    if ![Some(&a), Some(&b), c.as_ref()].into_iter().flatten().all(is_scalar) {
        return Err(op.unknown());
    }
    let combine: fn(bool, bool) -> bool = match combine {
        Some("and") => |x, y| x & y,
        Some("or") => |x, y| x | y,
        Some(_) => |x, y| x ^ y,
        None => |x, _| x,
    };
    decoded(Class::Integer, Set { to, a, b, c, ty, one, holds, combine })
}

struct Set {
    to: Operand,
    a: Operand,
    b: Operand,
    c: Option<Operand>,
    ty: Type,
    one: u64,
    holds: Comparison,
    combine: fn(bool, bool) -> bool,
}

impl Execute for Set {
    fn run(&self, cx: &mut Context<'_>) -> Result<Flow, Trap> {
        for lane in cx.lanes() {
            let [a, b] = [&self.a, &self.b].map(|o| cx.value(o, self.ty, lane));
            let holds = (self.holds)(a, b);
            let c = self.c.as_ref().is_some_and(|c| cx.value(c, Type::Pred, lane) == 1);
            let [yes, no] = [holds, !holds].map(|h| u64::from((self.combine)(h, c)) * self.one);
            match &self.to {
                Operand::Pair(both) => {
                    cx.set(&both[0], lane, yes);
                    cx.set(&both[1], lane, no);
                }
                to => cx.set(to, lane, yes),
            }
        }
        Ok(Flow::Next)
    }
}

fn comparison(name: &'static str, ty: Type, flushes: bool) -> Option<Comparison> {
    use std::cmp::Ordering::*;
    if ty.is_float() {
        if matches!(ty, Type::F16x2 | Type::Bf16x2 | Type::Tf32) || matches!(name, "lo" | "ls" | "hi" | "hs") {
            return None;
        }
        let number = move |bits| if flushes { flush(from_bits(bits, ty), ty) } else { from_bits(bits, ty) };
        return Some(Box::new(move |a, b| {
            // `equ` and the like hold if there is a NaN.
            match (number(a).partial_cmp(&number(b)), name) {
                (None, name) => name == "nan" || name.ends_with('u'),
                (Some(_), "num") => true,
                (Some(_), "nan") => false,
                (Some(order), name) => ordered(&name[..2], order),
            }
        }));
    }
    if name.len() == 3 {
        return None;
    }
    Some(match ty {
        Type::S(_) => Box::new(move |a, b| ordered(name, (ty.extend(a) as i64).cmp(&(ty.extend(b) as i64)))),
        Type::U(_) | Type::B(_) => Box::new(move |a, b| {
            let name = match name {
                "lo" => "lt",
                "ls" => "le",
                "hi" => "gt",
                "hs" => "ge",
                name => name,
            };
            ordered(
                name,
                if a < b {
                    Less
                } else if a > b {
                    Greater
                } else {
                    Equal
                },
            )
        }),
        _ => return None,
    })
}

fn ordered(name: &str, order: std::cmp::Ordering) -> bool {
    match name {
        "eq" => order.is_eq(),
        "ne" => order.is_ne(),
        "lt" => order.is_lt(),
        "le" => order.is_le(),
        "gt" => order.is_gt(),
        _ => order.is_ge(),
    }
}
