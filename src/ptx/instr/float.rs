//! Arithmetic in f64, f32, f16 and bf16.

use super::super::count::Class;
use super::super::module::{Operand, Type};
use super::rounding::{Round, flush, from_bits, quotient, root, round, sum, to_bits};
use super::{Decode, Opcode, alu};

/// How results are finished.
#[derive(Clone, Copy)]
struct Finish {
    ty: Type,
    round: Round,
    flush: bool,
    saturate: bool,
    relu: bool,
}

impl Finish {
    fn result(self, x: f64) -> u64 {
        let mut x = round(x, self.ty, self.round);
        if self.flush {
            x = flush(x, self.ty);
        }
        if self.saturate {
            // NaN becomes zero.
            x = if x > 0.0 { x.min(1.0) } else { 0.0 };
        }
        if self.relu && x <= 0.0 {
            x = 0.0;
        }
        to_bits(x, self.ty)
    }

    fn operand(self, bits: u64) -> f64 {
        let x = from_bits(bits, self.ty);
        if self.flush { flush(x, self.ty) } else { x }
    }
}

pub(super) fn decode(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    match op.name {
        "testp" => return testp(op, operands),
        "copysign" => {
            let ty = op.ty()?;
            let sign = 1u64 << (ty.bits() - 1);
            return alu(op, Class::Float, 0, operands, &[ty; 2], move |[a, b, _]| b & !sign | a & sign);
        }
        "abs" | "neg" => return sign(op, operands),
        _ => {}
    }
    let approximate = op.one_of(&["approx", "full"]).is_some();
    let direction = op.find(|m| Round::parse(m).filter(|_| m.len() == 2));
    let finish = Finish {
        flush: op.flag("ftz"),
        saturate: op.flag("sat"),
        relu: op.flag("relu"),
        round: direction.unwrap_or(Round::Nearest),
        ty: Type::F(64),
    };
    let nan = op.flag("NaN");
    let ty = op.ty()?;
    let double = ty == Type::F(64);
    if !ty.is_float()
        || ty == Type::Tf32
        || double && finish.round != Round::Nearest
        || nan && !matches!(op.name, "min" | "max")
    {
        return Err(op.unknown());
    }
    // What is rounded twice in f64 would be f64 itself; there the first rounding is the only one.
    let (count, flops, f): (usize, u64, fn([f64; 3]) -> f64) = match (op.name, double, finish.round) {
        ("add", true, _) => (2, 1, |[a, b, _]| a + b),
        ("sub", true, _) => (2, 1, |[a, b, _]| a - b),
        ("add", false, Round::Down) => (2, 1, |[a, b, _]| zero_down(sum(a, b), a)),
        ("sub", false, Round::Down) => (2, 1, |[a, b, _]| zero_down(sum(a, -b), a)),
        ("add", false, _) => (2, 1, |[a, b, _]| sum(a, b)),
        ("sub", false, _) => (2, 1, |[a, b, _]| sum(a, -b)),
        ("mul", ..) => (2, 1, |[a, b, _]| a * b),
        ("fma" | "mad", true, _) => (3, 2, |[a, b, c]| a.mul_add(b, c)),
        ("fma" | "mad", false, Round::Down) => (3, 2, |[a, b, c]| zero_down(sum(a * b, c), c)),
        ("fma" | "mad", false, _) => (3, 2, |[a, b, c]| sum(a * b, c)),
        ("div", true, _) => (2, 1, |[a, b, _]| a / b),
        ("div", false, _) => (2, 1, |[a, b, _]| quotient(a, b)),
        ("rcp", true, _) => (1, 1, |[a, ..]| 1.0 / a),
        ("rcp", false, _) => (1, 1, |[a, ..]| quotient(1.0, a)),
        ("sqrt", true, _) => (1, 1, |[a, ..]| a.sqrt()),
        ("sqrt", false, _) => (1, 1, |[a, ..]| root(a)),
        ("rsqrt", ..) => (1, 1, |[a, ..]| 1.0 / a.sqrt()),
        ("sin", ..) => (1, 1, |[a, ..]| a.sin()),
        ("cos", ..) => (1, 1, |[a, ..]| a.cos()),
        ("lg2", ..) => (1, 1, |[a, ..]| a.log2()),
        ("ex2", ..) => (1, 1, |[a, ..]| a.exp2()),
        ("tanh", ..) => (1, 1, |[a, ..]| a.tanh()),
        ("min", ..) if nan => (2, 1, |[a, b, _]| if a.is_nan() || b.is_nan() { f64::NAN } else { least(a, b) }),
        ("max", ..) if nan => (2, 1, |[a, b, _]| if a.is_nan() || b.is_nan() { f64::NAN } else { -least(-a, -b) }),
        ("min", ..) => (2, 1, |[a, b, _]| least(a, b)),
        ("max", ..) => (2, 1, |[a, b, _]| -least(-a, -b)),
        _ => return Err(op.unknown()),
    };
    let special = matches!(op.name, "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh" | "div");
    if special && !approximate && direction.is_none() {
        return Err(format!("`{}` lacks .approx or a rounding", op.text));
    }
    let class = if special { Class::Special } else { Class::Float };
    if ty == Type::F(32) && finish.round == Round::Nearest && !finish.saturate && !finish.relu && !nan {
        return single(op, class, flops, operands, count, finish.flush, f);
    }
    if double && !nan {
        match op.name {
            "add" => return alu(op, class, flops, operands, &[ty; 2], doubles(|[a, b, _]| a + b)),
            "sub" => return alu(op, class, flops, operands, &[ty; 2], doubles(|[a, b, _]| a - b)),
            "mul" => return alu(op, class, flops, operands, &[ty; 2], doubles(|[a, b, _]| a * b)),
            "fma" => return alu(op, class, flops, operands, &[ty; 3], doubles(|[a, b, c]| a.mul_add(b, c))),
            _ => {}
        }
    }
    elementwise(op, class, flops, operands, ty, count, finish, f)
}

/// A function of numbers as one of their bits.
fn doubles(f: impl Fn([f64; 3]) -> f64) -> impl Fn([u64; 3]) -> u64 {
    move |[a, b, c]| f([f64::from_bits(a), f64::from_bits(b), f64::from_bits(c)]).to_bits()
}

/// An instruction in f32 that rounds to nearest: what the CPU does itself, it does in f32. `flushes` turns subnormal operands
/// and results into zeros; `f` is the exact function of those that the CPU does not do.
fn single(
    op: &Opcode<'_>,
    class: Class,
    flops: u64,
    operands: Vec<Operand>,
    count: usize,
    flushes: bool,
    f: fn([f64; 3]) -> f64,
) -> Decode {
    let types = &[Type::F(32); 3][..count];
    macro_rules! with {
        ($f:expr) => {
            if flushes {
                alu(op, class, flops, operands, types, singles::<true>($f))
            } else {
                alu(op, class, flops, operands, types, singles::<false>($f))
            }
        };
    }
    match op.name {
        "add" => with!(|[a, b, _]: [f32; 3]| a + b),
        "sub" => with!(|[a, b, _]: [f32; 3]| a - b),
        "mul" => with!(|[a, b, _]: [f32; 3]| a * b),
        "fma" | "mad" => with!(|[a, b, c]: [f32; 3]| a.mul_add(b, c)),
        "div" => with!(|[a, b, _]: [f32; 3]| a / b),
        "rcp" => with!(|[a, ..]: [f32; 3]| 1.0 / a),
        "sqrt" => with!(|[a, ..]: [f32; 3]| a.sqrt()),
        "min" => with!(|[a, b, _]: [f32; 3]| least(a.into(), b.into()) as f32),
        "max" => with!(|[a, b, _]: [f32; 3]| -least((-a).into(), (-b).into()) as f32),
        _ => with!(move |[a, b, c]: [f32; 3]| f([a.into(), b.into(), c.into()]) as f32),
    }
}

/// A function of numbers as one of their bits; NaN is the one that hardware makes.
fn singles<const FLUSHES: bool>(f: impl Fn([f32; 3]) -> f32) -> impl Fn([u64; 3]) -> u64 {
    let flush = |x: f32| if FLUSHES && x.abs() < f32::MIN_POSITIVE { 0f32.copysign(x) } else { x };
    let read = move |v: u64| flush(f32::from_bits(v as u32));
    move |[a, b, c]| {
        let x = flush(f([read(a), read(b), read(c)]));
        if x.is_nan() { 0x7fff_ffff } else { x.to_bits().into() }
    }
}

/// An instruction that does the same to each element of its operands, of which packed types have two.
#[allow(clippy::too_many_arguments)]
fn elementwise(
    op: &Opcode<'_>,
    class: Class,
    flops: u64,
    operands: Vec<Operand>,
    ty: Type,
    count: usize,
    finish: Finish,
    f: fn([f64; 3]) -> f64,
) -> Decode {
    let types = [ty; 3];
    let types = &types[..count];
    match ty {
        Type::F16x2 | Type::Bf16x2 => {
            let half = if ty == Type::F16x2 { Type::F(16) } else { Type::Bf16 };
            let finish = Finish { ty: half, ..finish };
            alu(op, class, 2 * flops, operands, types, move |values| {
                let part = |shift: u32| finish.result(f(values.map(|v| finish.operand(v >> shift & 0xffff))));
                part(16) << 16 | part(0)
            })
        }
        _ => {
            let finish = Finish { ty, ..finish };
            alu(op, class, flops, operands, types, move |values| finish.result(f(values.map(|v| finish.operand(v)))))
        }
    }
}

/// x + (-x) is -0 when rounding down.
fn zero_down(sum: f64, a: f64) -> f64 {
    if sum == 0.0 && a != 0.0 { -0.0 } else { sum }
}

/// The lesser number; NaN only if both are. -0 is less than +0.
fn least(a: f64, b: f64) -> f64 {
    if a.is_nan() {
        b
    } else if b.is_nan() || a < b || (a == b && a.is_sign_negative()) {
        a
    } else {
        b
    }
}

/// `abs` and `neg`: signs are bits.
fn sign(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    let (flushes, negate) = (op.flag("ftz"), op.name == "neg");
    let ty = op.ty()?;
    let bits = match ty {
        Type::F16x2 | Type::Bf16x2 => 0x8000_8000,
        _ => 1u64 << (ty.bits() - 1),
    };
    if flushes && ty != Type::F(32) {
        return Err(format!("{}: .ftz is known with f32 only", op.unknown()));
    }
    alu(op, Class::Float, 0, operands, &[ty], move |[a, ..]| {
        let a = if flushes && from_bits(a, ty).abs() < f64::from(f32::MIN_POSITIVE) { a & bits } else { a };
        if negate { a ^ bits } else { a & !bits }
    })
}

fn testp(op: &Opcode<'_>, operands: Vec<Operand>) -> Decode {
    let test = op
        .one_of(&["finite", "infinite", "number", "notanumber", "normal", "subnormal"])
        .ok_or_else(|| op.unknown())?;
    let ty = op.ty()?;
    let normal = move |x: f64| if ty == Type::F(64) { x.is_normal() } else { (x as f32).is_normal() };
    alu(op, Class::Float, 0, operands, &[ty], move |[a, ..]| {
        let x = from_bits(a, ty);
        u64::from(match test {
            "finite" => x.is_finite(),
            "infinite" => x.is_infinite(),
            "number" => !x.is_nan(),
            "notanumber" => x.is_nan(),
            "normal" => normal(x),
            _ => x.is_finite() && x != 0.0 && !normal(x),
        })
    })
}
