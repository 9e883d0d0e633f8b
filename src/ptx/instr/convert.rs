//! `cvt`: between types, with rounding and saturation.

use half::{bf16, f16};

use super::super::count::Class;
use super::super::module::{Operand, Type};
use super::rounding::{Round, flush, from_bits, from_integer, round, to_bits};
use super::{Decode, Opcode, alu};

pub(super) fn decode(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    let direction = op.find(|m| Round::parse(m).map(|r| (r, m.len() == 3 && m != "rna")));
    let (relu, flushes, saturate) = (op.flag("relu"), op.flag("ftz"), op.flag("sat"));
    let (to, from) = (op.ty()?, op.ty()?);
    let rounding = direction.map_or(Round::Nearest, |d| d.0);
    let whole = direction.is_some_and(|d| d.1);
    let lacks = || format!("`{}` lacks a rounding", op.text);
    if relu && !matches!(to, Type::F(16) | Type::Bf16 | Type::F16x2 | Type::Bf16x2 | Type::Tf32) {
        return Err(op.unknown());
    }
    let float = move |x: f64| {
        let x = round(x, to, rounding);
        let x = if flushes && to == Type::F(32) { flush(x, to) } else { x };
        let x = if relu && x <= 0.0 { 0.0 } else { x };
        if !saturate {
            x
        } else if x > 0.0 {
            x.min(1.0)
        } else {
            0.0
        }
    };
    let read = move |bits: u64| {
        let x = from_bits(bits, from);
        if flushes && from == Type::F(32) { flush(x, from) } else { x }
    };
    if !(relu || saturate || flushes)
        && let Some(fast) = common(op, to, from, direction)
    {
        return fast(operands);
    }
    match (to, from) {
        (Type::Pred, _) | (_, Type::Pred | Type::F16x2 | Type::Bf16x2 | Type::Tf32) => Err(op.unknown()),
        (Type::F16x2 | Type::Bf16x2, _) => {
            if direction.is_none() || from != Type::F(32) {
                return Err(lacks());
            }
            let half = if to == Type::F16x2 { Type::F(16) } else { Type::Bf16 };
            alu(op, Class::Convert, 0, operands, &[from; 2], move |[a, b, _]| {
                let [high, low] = [a, b].map(|v| to_bits(float(read(v)), half));
                high << 16 | low
            })
        }
        (to, from) if to.is_float() && from.is_float() => {
            let narrows =
                to.bits() < from.bits() || to == Type::Tf32 || matches!((to, from), (Type::Bf16, Type::F(16)));
            if narrows && direction.is_none() {
                return Err(lacks());
            }
            alu(op, Class::Convert, 0, operands, &[from], move |[a, ..]| {
                let x = read(a);
                to_bits(float(if whole { rounding.integer(x) } else { x }), to)
            })
        }
        (to, from) if from.is_float() => {
            if !whole {
                return Err(lacks());
            }
            let (least, most) = range(to);
            alu(op, Class::Convert, 0, operands, &[from], move |[a, ..]| {
                let x = rounding.integer(read(a));
                // NaN becomes zero, or the highest bit alone where 64 bits are involved.
                let value = match x {
                    x if !x.is_nan() => (x as i128).clamp(least, most),
                    _ if from == Type::F(64) || to.bits() == 64 => 1 << (to.bits() - 1),
                    _ => 0,
                };
                to.extend(value as u64)
            })
        }
        (to, from) if to.is_float() => {
            if direction.is_none() {
                return Err(lacks());
            }
            let double = to == Type::F(64);
            alu(op, Class::Convert, 0, operands, &[from], move |[a, ..]| {
                let n = integer(from, a);
                to_bits(float(if double { n as f64 } else { from_integer(n) }), to)
            })
        }
        (to, from) => {
            let (least, most) = range(to);
            alu(op, Class::Convert, 0, operands, &[from], move |[a, ..]| {
                let n = integer(from, a);
                to.extend((if saturate { n.clamp(least, most) } else { n }) as u64)
            })
        }
    }
}

type Decoder<'a> = Box<dyn FnOnce(Vec<Operand>) -> Decode + 'a>;

/// The conversions that are in every kernel, as the CPU does them.
fn common<'a>(op: &'a Opcode<'_>, to: Type, from: Type, direction: Option<(Round, bool)>) -> Option<Decoder<'a>> {
    fn with<'a>(op: &'a Opcode<'_>, from: Type, f: impl Fn(u64) -> u64 + Send + Sync + 'static) -> Option<Decoder<'a>> {
        Some(Box::new(move |operands| alu(op, Class::Convert, 0, operands, &[from], move |[a, ..]| f(a))))
    }
    let float = |x: f32| if x.is_nan() { 0x7fff_ffff } else { u64::from(x.to_bits()) };
    let half = |x: f16| if x.is_nan() { 0x7fff } else { u64::from(x.to_bits()) };
    let brain = |x: bf16| if x.is_nan() { 0x7fff } else { u64::from(x.to_bits()) };
    let number = |bits: u64| f32::from_bits(bits as u32);
    match (to, from, direction) {
        (Type::F(32), Type::F(16), None) => with(op, from, move |a| float(f16::from_bits(a as u16).to_f32())),
        (Type::F(32), Type::Bf16, None) => with(op, from, move |a| float(number(a << 16))),
        (Type::F(16), Type::F(32), Some((Round::Nearest, false))) => {
            with(op, from, move |a| half(f16::from_f32(number(a))))
        }
        (Type::Bf16, Type::F(32), Some((Round::Nearest, false))) => {
            with(op, from, move |a| brain(bf16::from_f32(number(a))))
        }
        (Type::F(32), Type::S(32), Some((Round::Nearest, false))) => with(op, from, move |a| float(a as i32 as f32)),
        (Type::F(32), Type::U(32), Some((Round::Nearest, false))) => with(op, from, move |a| float(a as u32 as f32)),
        (Type::S(32), Type::F(32), Some((Round::Zero, true))) => with(op, from, move |a| number(a) as i32 as u64),
        (Type::U(32 | 64) | Type::S(32 | 64), Type::U(32 | 64), None) => with(op, from, |a| a),
        (Type::U(32 | 64) | Type::S(32 | 64), Type::S(32), None) => with(op, from, |a| a as i32 as u64),
        (Type::U(32 | 64) | Type::S(32 | 64), Type::S(64), None) => with(op, from, |a| a),
        _ => None,
    }
}

fn integer(ty: Type, bits: u64) -> i128 {
    match ty {
        Type::S(_) => i128::from(ty.extend(bits) as i64),
        _ => i128::from(bits),
    }
}

fn range(ty: Type) -> (i128, i128) {
    match ty {
        Type::S(bits) => (-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
        _ => (0, (1 << ty.bits()) - 1),
    }
}
