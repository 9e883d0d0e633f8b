//! Integer arithmetic.

use super::super::count::Class;
use super::super::module::{Operand, Type};
use super::{Decode, Opcode, alu};

pub(super) fn decode(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    match op.name {
        "mul" | "mad" | "mul24" | "mad24" => return product(op, operands),
        "dp4a" => return dp4a(op, operands),
        "popc" | "clz" | "brev" | "bfind" => return bits(op, operands),
        _ => {}
    }
    let saturate = op.flag("sat");
    let ty = op.ty()?;
    if !matches!(ty, Type::U(16 | 32 | 64) | Type::S(16 | 32 | 64)) || saturate && ty != Type::S(32) {
        return Err(op.unknown());
    }
    let signed = matches!(ty, Type::S(_));
    let integer = Class::Integer;
    match (op.name, ty) {
        _ if saturate => {}
        // What lies above the type's bits is cut when it is read.
        ("add", _) => return alu(op, integer, 0, operands, &[ty; 2], |[a, b, _]| a.wrapping_add(b)),
        ("sub", _) => return alu(op, integer, 0, operands, &[ty; 2], |[a, b, _]| a.wrapping_sub(b)),
        ("min", Type::S(32)) => {
            return alu(op, integer, 0, operands, &[ty; 2], |[a, b, _]| (a as i32).min(b as i32) as u64);
        }
        ("max", Type::S(32)) => {
            return alu(op, integer, 0, operands, &[ty; 2], |[a, b, _]| (a as i32).max(b as i32) as u64);
        }
        ("min", Type::U(_)) => return alu(op, integer, 0, operands, &[ty; 2], |[a, b, _]| a.min(b)),
        ("max", Type::U(_)) => return alu(op, integer, 0, operands, &[ty; 2], |[a, b, _]| a.max(b)),
        // By zero: all ones, and the dividend.
        ("div", Type::U(_)) => {
            return alu(op, integer, 0, operands, &[ty; 2], |[a, b, _]| a.checked_div(b).unwrap_or(u64::MAX));
        }
        ("rem", Type::U(_)) => {
            return alu(op, integer, 0, operands, &[ty; 2], |[a, b, _]| a.checked_rem(b).unwrap_or(a));
        }
        _ => {}
    }
    // Sums and differences of 64 bits wrap like those of fewer, cut when they are read.
    let s = move |v: u64| i128::from(ty.extend(v) as i64);
    let u = move |v: u64| i128::from(v);
    let number = move |v: u64| if signed { s(v) } else { u(v) };
    let function: Box<dyn Fn([i128; 3]) -> i128 + Send + Sync> = match op.name {
        "add" if saturate => Box::new(|[a, b, _]| (a + b).clamp(i32::MIN.into(), i32::MAX.into())),
        "sub" if saturate => Box::new(|[a, b, _]| (a - b).clamp(i32::MIN.into(), i32::MAX.into())),
        "add" => Box::new(|[a, b, _]| a + b),
        "sub" => Box::new(|[a, b, _]| a - b),
        // By zero: all ones, as hardware does.
        "div" => Box::new(|[a, b, _]| if b == 0 { -1 } else { a / b }),
        "rem" => Box::new(|[a, b, _]| if b == 0 { a } else { a % b }),
        "min" => Box::new(|[a, b, _]| a.min(b)),
        "max" => Box::new(|[a, b, _]| a.max(b)),
        "sad" => Box::new(|[a, b, c]| c + (a - b).abs()),
        "abs" if signed => Box::new(|[a, ..]| a.abs()),
        "neg" if signed => Box::new(|[a, ..]| -a),
        _ => return Err(op.unknown()),
    };
    let count = match op.name {
        "abs" | "neg" => 1,
        "sad" => 3,
        _ => 2,
    };
    alu(op, Class::Integer, 0, operands, &[ty; 3][..count], move |values| {
        ty.extend(function(values.map(number)) as u64)
    })
}

fn product(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    let part = op.one_of(&["lo", "hi", "wide"]).ok_or_else(|| op.unknown())?;
    let ty = op.ty()?;
    let short = op.name.ends_with("24");
    let (bits, signed) = match ty {
        Type::U(bits @ (16 | 32 | 64)) => (bits, false),
        Type::S(bits @ (16 | 32 | 64)) => (bits, true),
        _ => return Err(op.unknown()),
    };
    if short && (bits != 32 || part == "wide") || part == "wide" && bits == 64 {
        return Err(op.unknown());
    }
    // The whole product is in reach of i128 but for two unsigned numbers of 64 bits, where wrapping leaves the right bits.
    let number = move |v: u64| {
        let width = if short { 24 } else { bits };
        let cut = if signed { Type::S(width) } else { Type::U(width) };
        if signed { i128::from(cut.extend(v) as i64) } else { i128::from(cut.truncate(v)) }
    };
    let (result, shift) = match (part, short, signed) {
        ("wide", _, true) => (Type::S(2 * bits), 0),
        ("wide", _, false) => (Type::U(2 * bits), 0),
        ("hi", true, _) => (ty, 16),
        ("hi", false, _) => (ty, bits),
        _ => (ty, 0),
    };
    let adds = op.name.starts_with("mad");
    let types = [ty, ty, result];
    let types = &types[..if adds { 3 } else { 2 }];
    match (part, ty) {
        _ if short => {}
        // Without a third operand c is zero.
        ("lo", Type::U(32) | Type::S(32)) => {
            return alu(op, Class::Integer, 0, operands, types, |[a, b, c]| {
                u64::from((a as u32).wrapping_mul(b as u32).wrapping_add(c as u32))
            });
        }
        ("lo", _) => {
            return alu(op, Class::Integer, 0, operands, types, |[a, b, c]| a.wrapping_mul(b).wrapping_add(c));
        }
        ("wide", Type::U(32)) => {
            return alu(op, Class::Integer, 0, operands, types, |[a, b, c]| {
                u64::from(a as u32).wrapping_mul(u64::from(b as u32)).wrapping_add(c)
            });
        }
        ("wide", Type::S(32)) => {
            return alu(op, Class::Integer, 0, operands, types, |[a, b, c]| {
                i64::from(a as i32).wrapping_mul(i64::from(b as i32)).wrapping_add(c as i64) as u64
            });
        }
        ("hi", Type::U(32)) => {
            return alu(op, Class::Integer, 0, operands, types, |[a, b, c]| {
                (u64::from(a as u32).wrapping_mul(u64::from(b as u32)) >> 32).wrapping_add(c)
            });
        }
        _ => {}
    }
    alu(op, Class::Integer, 0, operands, types, move |[a, b, c]| {
        let product = number(a).wrapping_mul(number(b)) as u128 >> shift;
        result.extend((product as u64).wrapping_add(c))
    })
}

/// The dot product of four bytes with four bytes, and a sum.
fn dp4a(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    let (a_ty, b_ty) = (op.ty()?, op.ty()?);
    let signed = |ty| match ty {
        Type::S(32) => Ok(true),
        Type::U(32) => Ok(false),
        _ => Err(op.unknown()),
    };
    let (a_signed, b_signed) = (signed(a_ty)?, signed(b_ty)?);
    let byte = |v: u64, i: u32, signed: bool| {
        let b = (v >> (8 * i)) as u8;
        if signed { i64::from(b as i8) } else { i64::from(b) }
    };
    alu(op, Class::Integer, 0, operands, &[a_ty, b_ty, Type::B(32)], move |[a, b, c]| {
        let dot: i64 = (0..4).map(|i| byte(a, i, a_signed) * byte(b, i, b_signed)).sum();
        Type::U(32).truncate(c.wrapping_add(dot as u64))
    })
}

fn bits(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    let shift_amount = op.flag("shiftamt");
    let ty = op.ty()?;
    let width = ty.bits();
    if !matches!(width, 32 | 64) || ty.is_float() {
        return Err(op.unknown());
    }
    let signed = matches!(ty, Type::S(_));
    let name = op.name.to_owned();
    let top = 64 - width;
    alu(op, Class::Integer, 0, operands, &[ty], move |[a, ..]| match name.as_str() {
        "popc" => a.count_ones().into(),
        "clz" => u64::from(a.leading_zeros() - top),
        "brev" => a.reverse_bits() >> top,
        _ => {
            // The highest bit that differs from the sign.
            let a = if signed && ty.extend(a) >> 63 == 1 { ty.truncate(!a) } else { a };
            match a.checked_ilog2() {
                None => u64::from(u32::MAX),
                Some(bit) if shift_amount => u64::from(width - 1 - bit),
                Some(bit) => bit.into(),
            }
        }
    })
}
