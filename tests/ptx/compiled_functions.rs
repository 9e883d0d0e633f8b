//! What the compiler makes of functions of floats, doubles, integers and halves, against f64 references.

use super::support::{bytes, floats_at, launch, noise};
use half::{bf16, f16};
use langevin::ptx::{Launch, Memory};

const MATH: &str = include_str!("math.ptx");
const DOUBLES: &str = include_str!("doubles.ptx");
const INTEGERS: &str = include_str!("integers.ptx");
const HALVES: &str = include_str!("halves.ptx");

/// The error function by its power series: good to 1e-12 up to 3.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..80 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

/// Holds `out[f, n]` against each function of the `x[n]`, relatively or absolutely, whichever is larger.
#[track_caller]
fn hold(x: &[f64], out: &[f64], relative: f64, functions: &[fn(f64) -> f64]) {
    assert_eq!(out.len(), x.len() * functions.len());
    for (k, f) in functions.iter().enumerate() {
        for (x, y) in x.iter().zip(&out[k * x.len()..]) {
            let exact = f(*x);
            assert!((y - exact).abs() <= relative * exact.abs().max(0.01), "function {k} of {x}: {y}, not {exact}");
        }
    }
}

#[test]
fn functions_of_floats() {
    let x: Vec<f32> = noise(200).iter().map(|v| 3.0 * v).collect();
    let mut memory = Memory::new();
    let (n, count) = (x.len(), 30);
    let px = memory.allocate_with("x", bytes(&x)).unwrap();
    let out = memory.allocate("out", 4 * n * count).unwrap();
    let arguments = Launch::new([2, 1, 1], [128, 1, 1]).argument(n as u32).argument(px).argument(out);
    launch(MATH, "math", &mut memory, &arguments).unwrap();
    let out: Vec<f64> = floats_at(&memory, out).iter().map(|v| f64::from(*v)).collect();
    let x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
    const SEVENTH: f64 = 0.7f32 as f64;
    hold(
        &x,
        &out,
        4e-6,
        &[
            f64::exp,
            |x| x.abs().ln(),
            f64::sin,
            f64::cos,
            erf,
            f64::tanh,
            |x| x.abs().powf(1.7),
            |x| 1.0 / x.abs().sqrt(),
            |x| x / 3.0,
            |x| x / 7.1,
            |x| x.abs().sqrt(),
            f64::exp2,
            |x| x.abs().ln_1p(),
            f64::exp_m1,
            f64::floor,
            f64::round_ties_even,
            |x| x % SEVENTH,
            |x| x.atan2(0.3f32.into()),
            |x| 1.5f64.copysign(x),
            f64::exp,
            |x| x.abs().ln(),
            f64::sin,
            |x| 1.0 / x,
            |x| x.abs().log2(),
            f64::cbrt,
            |x| x.min(0.0),
            |x| 0.5 * (1.0 + erf(x / 2f64.sqrt())),
            |x| x.hypot(2.0),
            // The argument is rounded to f32 first; most are beyond the reach of the fast reduction.
            |x| f64::from(x as f32 * 1e6).sin(),
            f64::round,
        ],
    );
}

#[test]
fn functions_of_doubles() {
    let x: Vec<f64> = noise(100).iter().map(|v| 3.0 * f64::from(*v)).collect();
    let mut memory = Memory::new();
    let (n, count) = (x.len(), 22);
    let px = memory.allocate_with("x", bytemuck::cast_slice(&x)).unwrap();
    let out = memory.allocate("out", 8 * n * count).unwrap();
    let arguments = Launch::new([1, 1, 1], [128, 1, 1]).argument(n as u32).argument(px).argument(out);
    launch(DOUBLES, "doubles", &mut memory, &arguments).unwrap();
    let out: Vec<f64> = bytemuck::pod_collect_to_vec(memory.bytes(out).unwrap().0);
    hold(
        &x,
        &out,
        1e-14,
        &[
            |x| x + 0.1,
            |x| x * x,
            |x| x / 7.1,
            |x| 1.0 / x,
            |x| x.abs().sqrt(),
            |x| 1.0 / x.abs().sqrt(),
            f64::exp,
            |x| x.abs().ln(),
            f64::sin,
            f64::cos,
            f64::tanh,
            |x| x.abs().powf(1.7),
            f64::floor,
            |x| f64::from(x as f32),
            |x| (x * 1e6).trunc(),
            |x| x.mul_add(x, -1.0),
            |x| x.min(0.5),
            |x| (x * 1e10).sin(),
            |x| 3.0 / (x * x),
            |x| (x.abs() * 1e6).trunc(),
            |x| 32.0 * x,
            f64::round_ties_even,
        ],
    );
}

/// Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3").
fn philox(mut c: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [a, b] = [(c[0], 0xD251_1F53u64), (c[2], 0xCD9E_8D57)].map(|(c, m)| u64::from(c) * m);
        c = [(b >> 32) as u32 ^ c[1] ^ key[0], b as u32, (a >> 32) as u32 ^ c[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

#[test]
fn functions_of_integers() {
    let (n, seed, d, m) = (64usize, 0x1234_5678u32, -13i32, 0x1_2345_6789u64);
    let mut memory = Memory::new();
    let out = memory.allocate("out", 8 * n * 37).unwrap();
    let arguments =
        Launch::new([1, 1, 1], [64, 1, 1]).argument(n as u32).argument(seed).argument(d).argument(m).argument(out);
    launch(INTEGERS, "integers", &mut memory, &arguments).unwrap();
    let out: Vec<u64> = bytemuck::pod_collect_to_vec(memory.bytes(out).unwrap().0);
    for i in 0..n {
        let c = philox([i as u32, 0, 0, 0], [seed, 7]);
        let (a, b, w) = (c[0] as i32, c[1] as i32, u64::from(c[2]) << 32 | u64::from(c[3]));
        let (s, u) = (w as i64, |v: i32| i64::from(v) as u64);
        let both = u64::from(b as u32) << 32 | u64::from(a as u32);
        let byte = |n: u32| (both >> (8 * n)) as u8;
        let expected = [
            c[0].into(),
            c[1].into(),
            c[2].into(),
            c[3].into(),
            u(a / d),
            u(a % d),
            (c[0] / d as u32).into(),
            (c[0] % d as u32).into(),
            w / m,
            w % m,
            (s / m as i64) as u64,
            (s % m as i64) as u64,
            ((u128::from(w) * u128::from(m)) >> 64) as u64,
            ((i128::from(s) * -i128::from(m)) >> 64) as u64,
            a.count_ones().into(),
            a.leading_zeros().into(),
            if a == 0 { 0 } else { u64::from(a.trailing_zeros()) + 1 },
            (a.reverse_bits() as u32).into(),
            u32::from_le_bytes([5, 3, 7, 1].map(byte)).into(),
            ((both >> 32) << 13 | u64::from(a as u32 >> 19)) & 0xffff_ffff,
            (both >> (d & 31)) & 0xffff_ffff,
            (c[0] >> 5 & 0x3ff).into(),
            w >> (d & 63),
            (s >> (d & 63)) as u64,
            u(a.min(b)),
            u(a.wrapping_abs()),
            w.leading_zeros().into(),
            w.wrapping_mul(m).wrapping_add(3),
            c[0].abs_diff(c[1]).wrapping_add(5).into(),
            u(((i64::from(a) * i64::from(b)) >> 32) as i32),
            u((a as i16).into()),
            u((b as i8).into()),
            (a as f32).to_bits().into(),
            (i64::from(a) * i64::from(b)) as u64,
            w / 10,
            u(a / 7),
            (c[0] % 1000).into(),
        ];
        for (k, expected) in expected.iter().enumerate() {
            let got = out[k * n + i];
            assert!(got == *expected, "{k} of {i}: {got:#x}, not {expected:#x}");
        }
    }
}

#[test]
fn functions_of_halves() {
    let n = 96usize;
    let x: Vec<f16> = noise(n).iter().map(|v| f16::from_f32(2.0 * v)).collect();
    let y: Vec<bf16> = noise(n).iter().map(|v| bf16::from_f32(2.0 * v)).collect();
    let mut memory = Memory::new();
    let px = memory.allocate_with("x", bytemuck::cast_slice(&x)).unwrap();
    let py = memory.allocate_with("y", bytemuck::cast_slice(&y)).unwrap();
    let out = memory.allocate("out", 4 * n * 19).unwrap();
    let arguments = Launch::new([1, 1, 1], [96, 1, 1]).argument(n as u32).argument(px).argument(py).argument(out);
    launch(HALVES, "halves", &mut memory, &arguments).unwrap();
    let out: Vec<f64> = floats_at(&memory, out).iter().map(|v| f64::from(*v)).collect();
    let (of_x, of_y) = out.split_at(11 * n);
    let x64: Vec<f64> = x.iter().map(|v| v.to_f64()).collect();
    let y64: Vec<f64> = y.iter().map(|v| v.to_f64()).collect();
    hold(
        &x64,
        of_x,
        6e-4,
        &[
            |x| x,
            |x| 2.0 * x,
            |x| x * x,
            |x| x * x + x,
            |x| x.max(0.25),
            |x| f64::from(u8::from(x > 0.25)),
            |x| x / 3.0,
            |x| x.abs().sqrt(),
            f64::exp,
            f64::round_ties_even,
            |x| 1.1 * x,
        ],
    );
    hold(
        &y64,
        of_y,
        5e-3,
        &[|y| y, |y| 2.0 * y, |y| y * y, |y| y * y + y, |y| y.max(0.25), |y| -y, f64::exp, |y| 1.1 * y],
    );

    let [u, v] = ["u", "v"].map(|name| memory.allocate(name, 2 * n).unwrap());
    let arguments = Launch::new([1, 1, 1], [64, 1, 1]).argument(n as u32 / 2).argument(px).argument(py);
    launch(HALVES, "pairs", &mut memory, &arguments.argument(u).argument(v)).unwrap();
    let u: Vec<f16> = bytemuck::pod_collect_to_vec(memory.bytes(u).unwrap().0);
    let v: Vec<bf16> = bytemuck::pod_collect_to_vec(memory.bytes(v).unwrap().0);
    for i in 0..n {
        assert_eq!(u[i], f16::from_f64(2.0 * x64[i] + x64[i ^ 1]));
        assert_eq!(v[i], bf16::from_f64(2.0 * y64[i] + y64[i ^ 1]));
    }
}
