//! Group norms on the CPU: moments of chunks in f64, coefficients of channels, and what they make of x.

use crate::cpu::Activation;
use crate::cpu::gemm::with_buffers;
use crate::cpu::simd::LANES;
use crate::cpu::threads::{Ptr, tasks};
use crate::graph::Args;
use crate::ops::norm::{Chunks, Parameters, parameter_count};
use crate::simd;

/// Runs `first` on all chunks of a sample, `between` on the sample, `second` on its chunks: a sample a task where there are
/// enough of them, so that it stays in cache, or else a chunk a task.
fn phases(
    c: &Chunks,
    first: impl Fn(usize, usize) + Sync,
    between: impl Fn(usize) + Sync,
    second: impl Fn(usize, usize) + Sync,
) {
    if c.samples >= rayon::current_num_threads() {
        tasks(c.samples, c.elements(), |b| {
            (0..c.count).for_each(|i| first(b, i));
            between(b);
            (0..c.count).for_each(|i| second(b, i));
        });
    } else {
        tasks(c.samples * c.count, c.elements(), |t| first(t / c.count, t % c.count));
        (0..c.samples).for_each(between);
        tasks(c.samples * c.count, c.elements(), |t| second(t / c.count, t % c.count));
    }
}

/// What both kernels are told.
struct Setting<'a> {
    chunks: Chunks,
    groups: usize,
    activation: Activation,
    eps: f32,
    parameters: Parameters<'a>,
}

impl<'a> Setting<'a> {
    fn of(args: &'a Args) -> Self {
        let [samples, rows, channels, groups, activation] = [0, 1, 2, 3, 4].map(|i| args.int(i));
        Setting {
            chunks: Chunks::new(samples, rows, channels),
            groups,
            activation: Activation::from_code(activation),
            eps: args.float(6),
            parameters: Parameters::of(args, channels, true, args.flag(5)),
        }
    }
}

pub(super) fn forward(args: &Args) {
    let s = Setting::of(args);
    let (c, channels, groups) = (s.chunks, s.chunks.channels, s.groups);
    let at = 1 + parameter_count(true, s.parameters.modulate.is_some());
    let x = args.slice::<f32>(0);
    let (y, stats) = (Ptr::new(args.slice_mut::<f32>(at)), Ptr::new(args.slice_mut::<f32>(at + 1)));
    let (moments, coefficients) = (Ptr::new(args.slice_mut::<f64>(at + 2)), Ptr::new(args.slice_mut::<f32>(at + 3)));
    let first = |b: usize, i: usize| {
        let (start, len) = c.elements_of(b, i);
        // SAFETY: one chunk a call.
        let out = unsafe { moments.part((b * c.count + i) * groups * 2, groups * 2) };
        with_buffers(3 * channels, 0, |work, _| chunk_moments(&x[start..start + len], channels, work, out));
    };
    let between = |b: usize| {
        // SAFETY: one sample a call, after all its chunks.
        let (moments, stats, coefficients) = unsafe {
            let moments = moments.part(b * c.count * groups * 2, c.count * groups * 2);
            (moments, stats.part(b * groups * 2, groups * 2), coefficients.part(b * 3 * channels, 3 * channels))
        };
        let width = channels / groups;
        let elements = (c.rows * width) as f64;
        for g in 0..groups {
            let chunk = |i: usize| {
                let weight = (c.rows_of(i).1 * width) as f64;
                (weight, moments[(i * groups + g) * 2], moments[(i * groups + g) * 2 + 1])
            };
            let mean = (0..c.count).map(chunk).map(|(n, mean, _)| n * mean).sum::<f64>() / elements;
            let squares: f64 =
                (0..c.count).map(chunk).map(|(n, m, squares)| squares + n * (m - mean) * (m - mean)).sum();
            let rstd = 1.0 / (squares / elements + s.eps as f64).sqrt();
            let rounded = mean as f32;
            (stats[2 * g], stats[2 * g + 1]) = (rounded, rstd as f32);
            for k in g * width..(g + 1) * width {
                let (factor, offset) = s.parameters.linear(b, k);
                let a = factor as f64 * rstd;
                // What rounding took from the mean goes into the offset: large means cost no digits.
                let offset = offset as f64 + (rounded as f64 - mean) * a;
                (coefficients[k], coefficients[channels + k], coefficients[2 * channels + k]) =
                    (rounded, a as f32, offset as f32);
            }
        }
    };
    let second = |b: usize, i: usize| {
        let (start, len) = c.elements_of(b, i);
        // SAFETY: one chunk a call; the sample's coefficients are complete and only read.
        let (coefficients, y) = unsafe { (coefficients.part(b * 3 * channels, 3 * channels), y.part(start, len)) };
        let x = &x[start..start + len];
        match s.activation {
            Activation::Identity => apply(x, coefficients, y, |v| v),
            Activation::Silu => apply(x, coefficients, y, |v| Activation::Silu.eval(v)),
            Activation::Gelu => apply(x, coefficients, y, |v| Activation::Gelu.eval(v)),
            Activation::GeluTanh => apply(x, coefficients, y, |v| Activation::GeluTanh.eval(v)),
            Activation::Relu => apply(x, coefficients, y, |v| Activation::Relu.eval(v)),
        }
    };
    phases(&c, first, between, second);
}

simd! {
    /// Mean and sum of squared deviations of every group over the rows of `x`, two numbers a group. Sums run over x less the
    /// group's mean over the first rows: an estimate does, as it is corrected for, and nothing large is subtracted.
    fn chunk_moments(x: &[f32], channels: usize, work: &mut [f32], out: &mut [f64]) {
        let width = channels / (out.len() / 2);
        let (shift, work) = work.split_at_mut(channels);
        let (sum, square) = work.split_at_mut(channels);
        let head = &x[..x.len().min(8 * channels)];
        sum.fill(0.0);
        for row in head.chunks_exact(channels) {
            for (s, v) in sum.iter_mut().zip(row) { *s += v; }
        }
        for (shift, sum) in shift.chunks_exact_mut(width).zip(sum.chunks_exact(width)) {
            shift.fill(sum.iter().sum::<f32>() / (head.len() / channels * width) as f32);
        }
        sum.fill(0.0);
        square.fill(0.0);
        deviations(x, shift, sum, square);
        let elements = (x.len() / channels * width) as f64;
        for (g, out) in out.chunks_exact_mut(2).enumerate() {
            let of = |v: &[f32]| v[g * width..(g + 1) * width].iter().map(|v| *v as f64).sum::<f64>();
            let (sum, square) = (of(sum), of(square));
            out[0] = shift[g * width] as f64 + sum / elements;
            out[1] = (square - sum * sum / elements).max(0.0);
        }
    }
}

/// Adds the rows of x − shift, and their squares, four rows at a time.
#[inline(always)]
fn deviations(x: &[f32], shift: &[f32], sum: &mut [f32], square: &mut [f32]) {
    let c = shift.len();
    let (sum, square) = (&mut sum[..c], &mut square[..c]);
    let fours = x.chunks_exact(4 * c);
    for row in fours.remainder().chunks_exact(c) {
        for i in 0..c {
            let d = row[i] - shift[i];
            sum[i] += d;
            square[i] += d * d;
        }
    }
    for rows in fours {
        // Written out: closures over arrays are not inlined here, and then nothing vectorises.
        let (r0, rest) = rows.split_at(c);
        let (r1, rest) = rest.split_at(c);
        let (r2, r3) = rest.split_at(c);
        for i in 0..c {
            let d = [r0[i] - shift[i], r1[i] - shift[i], r2[i] - shift[i], r3[i] - shift[i]];
            sum[i] += (d[0] + d[1]) + (d[2] + d[3]);
            square[i] += (d[0] * d[0] + d[1] * d[1]) + (d[2] * d[2] + d[3] * d[3]);
        }
    }
}

simd! {
    /// y = f((x − mean)·a + b), coefficients `[3, C]`: mean, a, b.
    fn apply[F: Fn(f32) -> f32](x: &[f32], coefficients: &[f32], y: &mut [f32], f: F) {
        let c = coefficients.len() / 3;
        let (mean, a, b) = (&coefficients[..c], &coefficients[c..2 * c], &coefficients[2 * c..3 * c]);
        for (x, y) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
            let whole = x.as_chunks::<LANES>().0.iter().zip(y.as_chunks_mut::<LANES>().0);
            let coefficients = mean.as_chunks::<LANES>().0.iter().zip(a.as_chunks::<LANES>().0).zip(b.as_chunks::<LANES>().0);
            for ((x, y), ((mean, a), b)) in whole.zip(coefficients) {
                for i in 0..LANES {
                    y[i] = f((x[i] - mean[i]) * a[i] + b[i]);
                }
            }
            for i in c - c % LANES..c {
                y[i] = f((x[i] - mean[i]) * a[i] + b[i]);
            }
        }
    }
}

/// With h the argument of the activation and e = dy · act'(h), both computed again: dshift = Σ e and dn = Σ e·n over the rows;
/// with factor = gamma·(1 + scale), dx = rstd·(e·factor − mean(e·factor) − n·mean(e·factor·n)), the means over the group.
/// The first phase leaves e in dx.
pub(super) fn backward(args: &Args) {
    let s = Setting::of(args);
    let (c, channels, groups) = (s.chunks, s.chunks.channels, s.groups);
    let n = 1 + parameter_count(true, s.parameters.modulate.is_some());
    let (x, stats, dy) = (args.slice::<f32>(0), args.slice::<f32>(n), args.slice::<f32>(n + 1));
    let (dx, scratch) = (Ptr::new(args.slice_mut::<f32>(n + 2)), 2 * n + 2);
    let partial = Ptr::new(args.slice_mut::<f32>(scratch));
    let sums = Ptr::new(args.slice_mut::<f32>(scratch + 1));
    let coefficients = Ptr::new(args.slice_mut::<f32>(scratch + 2));
    let width = channels / groups;
    // Mean, a, b as in the forward; the last two follow from the sums.
    for (b, stats) in stats.chunks_exact(2 * groups).enumerate() {
        // SAFETY: nothing else runs yet.
        let coefficients = unsafe { coefficients.part(b * 5 * channels, 5 * channels) };
        for k in 0..channels {
            let (mean, rstd) = (stats[k / width * 2], stats[k / width * 2 + 1]);
            let (factor, offset) = s.parameters.linear(b, k);
            (coefficients[k], coefficients[channels + k], coefficients[2 * channels + k]) =
                (mean, factor * rstd, offset);
        }
    }
    let first = |b: usize, i: usize| {
        let (start, len) = c.elements_of(b, i);
        // SAFETY: one chunk a call; the first three coefficients of each channel are only read.
        let (coefficients, dx, sums) = unsafe {
            let sums = partial.part((b * c.count + i) * 2 * channels, 2 * channels);
            (coefficients.part(b * 5 * channels, 3 * channels), dx.part(start, len), sums)
        };
        let (x, dy) = (&x[start..start + len], &dy[start..start + len]);
        match s.activation {
            Activation::Identity => upstream(x, dy, coefficients, dx, sums, |_| 1.0),
            Activation::Silu => upstream(x, dy, coefficients, dx, sums, |h| Activation::Silu.derivative(h)),
            Activation::Gelu => upstream(x, dy, coefficients, dx, sums, |h| Activation::Gelu.derivative(h)),
            Activation::GeluTanh => upstream(x, dy, coefficients, dx, sums, |h| Activation::GeluTanh.derivative(h)),
            Activation::Relu => upstream(x, dy, coefficients, dx, sums, |h| Activation::Relu.derivative(h)),
        }
    };
    let between = |b: usize| {
        // SAFETY: one sample a call, after all its chunks.
        let (partial, sums, coefficients) = unsafe {
            let partial = partial.part(b * c.count * 2 * channels, c.count * 2 * channels);
            (partial, sums.part(b * 2 * channels, 2 * channels), coefficients.part(b * 5 * channels, 5 * channels))
        };
        sums.fill(0.0);
        for part in partial.chunks_exact(2 * channels) {
            sums.iter_mut().zip(part).for_each(|(s, v)| *s += v);
        }
        let elements = (c.rows * width) as f64;
        for g in 0..groups {
            let rstd = stats[(b * groups + g) * 2 + 1];
            let (mut mean, mut slope) = (0.0, 0.0);
            for k in g * width..(g + 1) * width {
                sums[channels + k] *= rstd;
                let (factor, _) = s.parameters.linear(b, k);
                mean += (factor * sums[k]) as f64;
                slope += (factor * sums[channels + k]) as f64;
            }
            let rstd = rstd as f64;
            let (constant, slope) = ((-rstd * mean / elements) as f32, (-rstd * rstd * slope / elements) as f32);
            coefficients[3 * channels + g * width..3 * channels + (g + 1) * width].fill(constant);
            coefficients[4 * channels + g * width..4 * channels + (g + 1) * width].fill(slope);
        }
    };
    let second = |b: usize, i: usize| {
        let (start, len) = c.elements_of(b, i);
        // SAFETY: one chunk a call; the sample's coefficients are complete and only read.
        let (coefficients, dx) = unsafe { (coefficients.part(b * 5 * channels, 5 * channels), dx.part(start, len)) };
        downstream(&x[start..start + len], coefficients, dx);
    };
    phases(&c, first, between, second);
    // SAFETY: all tasks are done.
    let sums = unsafe { sums.part(0, c.samples * 2 * channels) };
    s.parameters.gradients(sums, args, n + 3);
}

simd! {
    /// e = dy · f((x − mean)·a + b), and its sums over the rows: Σ e, Σ e·(x − mean), `[2, C]`.
    fn upstream[F: Fn(f32) -> f32](x: &[f32], dy: &[f32], coefficients: &[f32], e: &mut [f32], sums: &mut [f32], f: F) {
        let c = coefficients.len() / 3;
        let (mean, a, b) = (&coefficients[..c], &coefficients[c..2 * c], &coefficients[2 * c..3 * c]);
        sums.fill(0.0);
        let (sum, product) = sums.split_at_mut(c);
        let product = &mut product[..c];
        for ((x, dy), e) in x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(e.chunks_exact_mut(c)) {
            for i in 0..c {
                let d = x[i] - mean[i];
                let v = dy[i] * f(d * a[i] + b[i]);
                e[i] = v;
                sum[i] += v;
                product[i] += v * d;
            }
        }
    }
}

simd! {
    /// dx = e·a + constant + (x − mean)·slope, e read from `dx`.
    fn downstream(x: &[f32], coefficients: &[f32], dx: &mut [f32]) {
        let c = coefficients.len() / 5;
        let [mean, a, _, constant, slope]: [&[f32]; 5] = std::array::from_fn(|k| &coefficients[k * c..(k + 1) * c]);
        for (x, dx) in x.chunks_exact(c).zip(dx.chunks_exact_mut(c)) {
            for i in 0..c {
                dx[i] = dx[i] * a[i] + constant[i] + (x[i] - mean[i]) * slope[i];
            }
        }
    }
}
