//! Which vector instructions there are, and functions compiled once for each.

use std::sync::OnceLock;

/// Vector instruction sets that kernels are compiled for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// Whatever the build's target has.
    Portable,
    /// 8 lanes and fused multiply-add.
    Avx2,
    /// 16 lanes.
    Avx512,
}

impl Level {
    /// The level in words.
    pub fn describe(self) -> &'static str {
        match self {
            Level::Portable => "portable SIMD",
            Level::Avx2 => "AVX2 + FMA",
            Level::Avx512 => "AVX-512",
        }
    }

    /// Rows of a register tile of the matrix product.
    pub fn tile_rows(self) -> usize {
        match self {
            Level::Portable => 4,
            Level::Avx2 => 6,
            Level::Avx512 => 12,
        }
    }
}

/// The best level of this processor. `LANGEVIN_SIMD=portable|avx2` lowers it.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let ceiling = match std::env::var("LANGEVIN_SIMD").as_deref() {
            Ok("portable") => Level::Portable,
            Ok("avx2") => Level::Avx2,
            _ => Level::Avx512,
        };
        detect().min(ceiling)
    })
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    if is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
    {
        Level::Avx512
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        Level::Avx2
    } else {
        Level::Portable
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Portable
}

/// Defines a function whose body is compiled for every [`Level`] and chosen at run time. Generics go in brackets:
/// `simd! { pub fn map[F: Fn(f32) -> f32](x: &mut [f32], f: F) { … } }`. Bodies are plain loops that the compiler vectorises.
#[macro_export]
macro_rules! simd {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $([$($g:tt)*])? ($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name $(<$($g)*>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body $(<$($g)*>)? ($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512 $(<$($g)*>)? ($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2 $(<$($g)*>)? ($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                match $crate::cpu::simd::level() {
                    // SAFETY: the level says that the processor has these features.
                    $crate::cpu::simd::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    $crate::cpu::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::cpu::simd::Level::Portable => {}
                }
            }
            body($($arg),*)
        }
    };
}

/// Lanes that elementwise loops work on at a time.
pub const LANES: usize = 16;

/// Sums of a slice's elements under `f`, in 16 partial sums: fast, and the same on every thread count.
#[inline(always)]
pub fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for c in chunks {
        for (l, v) in lanes.iter_mut().zip(c) {
            *l += f(*v);
        }
    }
    for (l, v) in lanes.iter_mut().zip(rest) {
        *l += f(*v);
    }
    lanes.iter().sum()
}

/// Σ xᵢ·yᵢ in 16 partial sums.
#[inline(always)]
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest = xs.remainder().iter().zip(ys.remainder());
    for (x, y) in xs.zip(ys) {
        for i in 0..LANES {
            lanes[i] += x[i] * y[i];
        }
    }
    for (lane, (x, y)) in lanes.iter_mut().zip(rest) {
        *lane += x * y;
    }
    lanes.iter().sum()
}

/// e^x to 2 ulp without branches, so that loops over it vectorise; below −87.3 and above 88.3 it stays what it is there. NaN
/// passes. Cody–Waite reduction and a degree-6 polynomial, in fused multiply-adds: a third faster where the processor has
/// them (every level but a portable build for old x86).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Within these bounds 2ⁿ is a normal number.
    let x = x.clamp(-87.336_54, 88.376_26);
    // Adding and subtracting 1.5·2²³ rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, x));
    let mut p = 1.987_569_1e-4_f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 5.0e-1);
    let y = p.mul_add(r * r, r) + 1.0;
    // n stands in the low bits of `shifted`; a cast to an integer would not vectorise.
    y * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// The logistic function 1/(1 + e^-x).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// tanh through the exponential, accurate near zero as well.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let a = x.abs();
    let e = exp(-2.0 * a);
    let large = (1.0 - e) / (1.0 + e);
    let x2 = x * x;
    // Below 0.3 the quotient loses digits: the odd series to x¹¹.
    let small = a
        * (1.0
            + x2 * (-0.333_333_34
                + x2 * (0.133_333_34 + x2 * (-0.053_968_254 + x2 * (0.021_869_488 - x2 * 0.008_863_235)))));
    let t = if a < 0.3 { small } else { large };
    if x < 0.0 { -t } else { t }
}

/// erf to about 1e-7 absolute: Abramowitz & Stegun 7.1.26 is too coarse, so a series below 1 and a rational form above.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let a = x.abs();
    let x2 = a * a;
    // Maclaurin series of erf, good to 1e-8 for |x| < 1.
    let series = a
        * std::f32::consts::FRAC_2_SQRT_PI
        * (1.0
            + x2 * (-0.333_333_34
                + x2 * (0.1
                    + x2 * (-0.023_809_524
                        + x2 * (0.004_629_63
                            + x2 * (-7.575_758e-4
                                + x2 * (1.068_376_1e-4
                                    + x2 * (-1.322_751_3e-5 + x2 * (1.458_916_9e-6 - x2 * 1.450_385_3e-7)))))))));
    // erfc as a Chebyshev fit in t = 2/(2 + |x|) (Numerical Recipes, erfcc), relative error below 1.2e-7.
    let t = 1.0 / (1.0 + 0.5 * a);
    let poly = -1.265_512_2
        + t * (1.000_023_7
            + t * (0.374_091_96
                + t * (0.096_784_18
                    + t * (-0.186_288_06
                        + t * (0.278_868_07
                            + t * (-1.135_204 + t * (1.488_515_9 + t * (-0.822_152_23 + t * 0.170_872_77))))))));
    let tail = 1.0 - t * exp(-x2 + poly);
    let y = if a < 1.0 { series } else { tail };
    if x < 0.0 { -y } else { y }
}

/// ln x to 2 ulp for normal x > 0, without branches. x = 2ᵉ·m with m in [√½, √2), ln m = 2 artanh((m − 1)/(m + 1)) by its
/// series to the 11th power.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    const SQRT_HALF_BITS: i32 = 0x3F35_04F3;
    let bits = x.to_bits() as i32;
    let e = bits.wrapping_sub(SQRT_HALF_BITS) >> 23;
    let m = f32::from_bits(bits.wrapping_sub(e << 23) as u32);
    let s = (m - 1.0) / (m + 1.0);
    let s2 = s * s;
    let series = s2 * (1.0 / 3.0 + s2 * (1.0 / 5.0 + s2 * (1.0 / 7.0 + s2 * (1.0 / 9.0 + s2 * (1.0 / 11.0)))));
    // ln 2 in two parts, the first of them short, so that e·LN2_HI is exact.
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    let e = e as f32;
    e * LN2_HI + (2.0 * (s + s * series) + e * LN2_LO)
}

/// (cos 2πu, sin 2πu) to 1e-7 absolute for |u| ≤ 2²⁰, without branches. The reduction to an eighth of a turn is exact; Taylor
/// series after it.
#[inline(always)]
pub fn cos_sin_turn(u: f32) -> (f32, f32) {
    const ROUND: f32 = 12_582_912.0;
    let quarters = 4.0 * u;
    let shifted = quarters + ROUND;
    let a = (quarters - (shifted - ROUND)) * std::f32::consts::FRAC_PI_2;
    let a2 = a * a;
    let sin = a + a * a2 * (-1.0 / 6.0 + a2 * (1.0 / 120.0 + a2 * (-1.0 / 5040.0 + a2 * (1.0 / 362_880.0))));
    let cos =
        1.0 + a2 * (-0.5 + a2 * (1.0 / 24.0 + a2 * (-1.0 / 720.0 + a2 * (1.0 / 40_320.0 - a2 * (1.0 / 3_628_800.0)))));
    // The last bits of the shifted number are those of the whole quarter turns.
    let n = shifted.to_bits();
    let (c, s) = if n & 1 == 0 { (cos, sin) } else { (sin, cos) };
    (if (n + 1) & 2 == 0 { c } else { -c }, if n & 2 == 0 { s } else { -s })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_accurate() {
        for i in -4000..=4000 {
            let x = i as f32 * 0.02;
            let reference = (x as f64).exp();
            assert!(((exp(x) as f64 - reference) / reference).abs() < 3e-7, "exp({x})");
            assert!(
                (tanh(x) as f64 - (x as f64).tanh()).abs() <= 3e-7 * (x as f64).tanh().abs().max(1e-30),
                "tanh({x})"
            );
        }
        // erf against its integral, by Simpson's rule in f64.
        for i in 0..60 {
            let x = i as f64 * 0.07;
            let n = 2000;
            let f = |t: f64| (-t * t).exp();
            let s: f64 = (0..=n)
                .map(|k| {
                    f(x * k as f64 / n as f64)
                        * if k == 0 || k == n {
                            1.0
                        } else if k % 2 == 1 {
                            4.0
                        } else {
                            2.0
                        }
                })
                .sum();
            let reference = s * x / n as f64 / 3.0 * 2.0 / std::f64::consts::PI.sqrt();
            assert!((erf(x as f32) as f64 - reference).abs() < 3e-7, "erf({x})");
            assert_eq!(erf(-x as f32), -erf(x as f32));
        }
        assert_eq!(exp(-200.0), exp(-87.4));
        assert!(exp(89.0).is_finite());
        assert!(exp(f32::NAN).is_nan() && exp(f32::from_bits(u32::MAX)).is_nan());
    }

    #[test]
    fn logarithm_and_turn_are_accurate() {
        for i in 1..200_000u32 {
            let x = i as f32 * 5e-6 * (i % 7 + 1) as f32;
            let reference = (x as f64).ln();
            assert!((ln(x) as f64 - reference).abs() <= 2.5e-7 * reference.abs(), "ln({x})");
            let u = i as f32 * 1.3e-5 - 1.0;
            let (c, s) = cos_sin_turn(u);
            let angle = u as f64 * std::f64::consts::TAU;
            assert!((c as f64 - angle.cos()).abs() < 1.5e-7 && (s as f64 - angle.sin()).abs() < 1.5e-7, "turn {u}");
        }
        assert_eq!(ln(1.0), 0.0);
        assert!((ln(f32::MIN_POSITIVE) as f64 - (f32::MIN_POSITIVE as f64).ln()).abs() < 1e-5);
        assert!((ln(1e30) as f64 - (1e30f32 as f64).ln()).abs() < 1e-5);
    }
}
