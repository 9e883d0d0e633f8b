//! Rounding as the hardware does it: once.
//!
//! Sums, products and quotients of formats up to f32 are computed in f64 rounded to odd (Boldo and Melquiond, "Emulation of
//! FMA and Correctly Rounded Sums: Proved Algorithms Using Rounding to Odd"), which a second rounding to 24 bits or fewer,
//! in any direction, cannot spoil.

use super::super::module::Type;

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Round {
    /// To nearest, ties to even.
    Nearest,
    Zero,
    Down,
    Up,
    /// To nearest, ties away from zero.
    Away,
}

impl Round {
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "rn" | "rni" => Round::Nearest,
            "rz" | "rzi" => Round::Zero,
            "rm" | "rmi" => Round::Down,
            "rp" | "rpi" => Round::Up,
            "rna" => Round::Away,
            _ => return None,
        })
    }

    /// To an integer.
    pub fn integer(self, x: f64) -> f64 {
        match self {
            Round::Nearest => x.round_ties_even(),
            Round::Zero => x.trunc(),
            Round::Down => x.floor(),
            Round::Up => x.ceil(),
            Round::Away => x.round(),
        }
    }
}

/// Explicit bits of the mantissa, least and greatest exponent of normal numbers.
fn format(ty: Type) -> (i32, i32, i32) {
    match ty {
        Type::F(16) | Type::F16x2 => (10, -14, 15),
        Type::Bf16 | Type::Bf16x2 => (7, -126, 127),
        Type::Tf32 => (10, -126, 127),
        _ => (23, -126, 127),
    }
}

/// The nearest number of the type in a direction; f64 stays as it is.
pub(super) fn round(x: f64, ty: Type, mode: Round) -> f64 {
    if ty == Type::F(64) || x == 0.0 || !x.is_finite() {
        return x;
    }
    if ty == Type::F(32) && mode == Round::Nearest {
        return f64::from(x as f32);
    }
    let (mantissa, least, greatest) = format(ty);
    let exponent = ((x.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(least);
    let ulp = 2f64.powi(exponent - mantissa);
    let rounded = mode.integer(x / ulp) * ulp;
    let largest = (2.0 - 2f64.powi(-mantissa)) * 2f64.powi(greatest);
    if rounded.abs() <= largest {
        return rounded.copysign(x);
    }
    let stays = match mode {
        Round::Nearest | Round::Away => false,
        Round::Zero => true,
        Round::Down => x > 0.0,
        Round::Up => x < 0.0,
    };
    (if stays { largest } else { f64::INFINITY }).copysign(x)
}

/// The bits of a number that the type has exactly; a NaN becomes the one that hardware makes.
pub(super) fn to_bits(x: f64, ty: Type) -> u64 {
    match ty {
        Type::F(64) => x.to_bits(),
        Type::F(16) | Type::Bf16 if x.is_nan() => 0x7fff,
        Type::F(16) => half::f16::from_f64(x).to_bits().into(),
        Type::Bf16 => u64::from((x as f32).to_bits() >> 16),
        _ if x.is_nan() => 0x7fff_ffff,
        _ => (x as f32).to_bits().into(),
    }
}

/// The number that bits of the type mean.
pub(super) fn from_bits(bits: u64, ty: Type) -> f64 {
    match ty {
        Type::F(64) => f64::from_bits(bits),
        Type::F(16) => half::f16::from_bits(bits as u16).to_f64(),
        Type::Bf16 => f64::from(f32::from_bits((bits as u32) << 16)),
        // The multiplier does not look at the low bits.
        Type::Tf32 => f64::from(f32::from_bits(bits as u32 & 0xffff_e000)),
        _ => f64::from(f32::from_bits(bits as u32)),
    }
}

/// Zero of the same sign for a number below the normal ones of the type.
pub(super) fn flush(x: f64, ty: Type) -> f64 {
    let (_, least, _) = format(ty);
    if x.abs() < 2f64.powi(least) { 0f64.copysign(x) } else { x }
}

/// `rounded`, which is `error` away from the true value, rounded to odd instead of to nearest.
fn odd(rounded: f64, error: f64) -> f64 {
    if error == 0.0 || !rounded.is_finite() || error.is_nan() || rounded.to_bits() & 1 == 1 {
        return rounded;
    }
    let outwards = (error > 0.0) == (rounded > 0.0);
    f64::from_bits(if outwards { rounded.to_bits() + 1 } else { rounded.to_bits().wrapping_sub(1) })
}

/// a + b, rounded to odd.
pub(super) fn sum(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let b_part = sum - a;
    odd(sum, (a - (sum - b_part)) + (b - b_part))
}

/// a / b, rounded to odd.
pub(super) fn quotient(a: f64, b: f64) -> f64 {
    let quotient = a / b;
    odd(quotient, (-quotient).mul_add(b, a) * b.signum())
}

/// √a, rounded to odd.
pub(super) fn root(a: f64) -> f64 {
    let root = a.sqrt();
    odd(root, (-root).mul_add(root, a))
}

/// An integer, rounded to odd.
pub(super) fn from_integer(n: i128) -> f64 {
    let rounded = n as f64;
    odd(rounded, (n - rounded as i128) as f64)
}
