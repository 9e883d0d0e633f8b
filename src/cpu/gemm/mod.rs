//! Matrix products: the one inner kernel under linear layers, convolutions, their gradients and attention.
//!
//! C[m, n] = Σ_k A[m, k] · B[k, n], B in panels of 16 columns ([`crate::tensor::Layout::Panels`]). A is read where it lies: the
//! rows of a convolution are lists of pointers to pixels, one for each tap, so no column matrix is written anywhere ("implicit
//! GEMM"). Registers hold 6×16 (AVX2) or 12×32 (AVX-512) of C; a k-block of B stays in L1.

mod pack;
mod rows;
mod tiles;
mod weight_grad;

pub use pack::{pack_cols, pack_rows};
pub use rows::{Im2col, Matrix, Rows, Window};
pub use tiles::{Left, Tiles};
pub use weight_grad::{weight_grad, weight_grad_part};

use super::Activation;
use super::threads::{Ptr, tasks};
use crate::simd;
use crate::tensor::PANEL;
use rows::MIN_LINE;
use std::cell::RefCell;

/// Depth of a k-block: 256 × 16 floats of B are 16 KiB, half of the smallest L1 in use.
const K_BLOCK: usize = 256;
/// Rows of A in a task: 288 × 256 floats are 288 KiB of L2. The more rows, the fewer times B comes through the caches; 288 takes
/// the 256 tokens of a DiT or the 16×16 pixels of a UNet's middle whole.
const M_BLOCK: usize = 288;
/// Pointers to stretches of A for one task and k-block.
const LINES: usize = M_BLOCK * (K_BLOCK / MIN_LINE);
/// Rows of packed A are this much longer than their k-block, so that they do not share cache sets.
const A_PAD: usize = 16;

thread_local! {
    static PACK: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Lends this thread's two packing buffers, at least `a` and `b` floats long.
pub fn with_buffers<T>(a: usize, b: usize, f: impl FnOnce(&mut [f32], &mut [f32]) -> T) -> T {
    PACK.with_borrow_mut(|(x, y)| {
        x.resize(x.len().max(a), 0.0);
        y.resize(y.len().max(b), 0.0);
        f(&mut x[..a], &mut y[..b])
    })
}

/// What happens to C before it is stored: `y = (act(C + bias + sample_bias) · gate + residual) · scale`.
#[derive(Clone, Copy)]
pub struct Epilogue<'a> {
    /// `[n]`
    pub bias: Option<&'a [f32]>,
    /// One row for every `rows_per_sample` rows of C.
    pub sample_bias: Option<SampleRows<'a>>,
    pub rows_per_sample: usize,
    pub activation: Activation,
    /// Factors, one row for every `rows_per_sample` rows of C.
    pub gate: Option<SampleRows<'a>>,
    /// `[m, n]`
    pub residual: Option<&'a [f32]>,
    pub scale: f32,
}

/// Rows of n columns from `first` on in an array whose rows are `stride` numbers apart.
#[derive(Clone, Copy)]
pub struct SampleRows<'a> {
    pub data: &'a [f32],
    pub first: usize,
    pub stride: usize,
}

impl SampleRows<'_> {
    /// `len` numbers of row `row` from column `col` on.
    fn at(&self, row: usize, col: usize, len: usize) -> &[f32] {
        &self.data[self.first + row * self.stride + col..][..len]
    }
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        let activation = Activation::Identity;
        Epilogue {
            bias: None,
            sample_bias: None,
            rows_per_sample: 1,
            activation,
            gate: None,
            residual: None,
            scale: 1.0,
        }
    }
}

simd! {
    /// One row of the epilogue over columns `n0..`.
    fn finish_row(c: &mut [f32], e: &Epilogue, row: usize, n: usize, n0: usize) {
        let len = c.len();
        if let Some(bias) = e.bias {
            for (c, b) in c.iter_mut().zip(&bias[n0..n0 + len]) { *c += b; }
        }
        if let Some(bias) = e.sample_bias {
            for (c, b) in c.iter_mut().zip(bias.at(row / e.rows_per_sample, n0, len)) { *c += b; }
        }
        // One loop for each: with the choice inside the loop nothing vectorises.
        match e.activation {
            Activation::Identity => {}
            Activation::Silu => for c in c.iter_mut() { *c = Activation::Silu.eval(*c); },
            Activation::Gelu => for c in c.iter_mut() { *c = Activation::Gelu.eval(*c); },
            Activation::GeluTanh => for c in c.iter_mut() { *c = Activation::GeluTanh.eval(*c); },
            Activation::Relu => for c in c.iter_mut() { *c = Activation::Relu.eval(*c); },
        }
        if let Some(gate) = e.gate {
            for (c, g) in c.iter_mut().zip(gate.at(row / e.rows_per_sample, n0, len)) { *c *= g; }
        }
        if let Some(r) = e.residual {
            let at = row * n + n0;
            for (c, r) in c.iter_mut().zip(&r[at..at + len]) { *c = (*c + r) * e.scale; }
        } else if e.scale != 1.0 {
            for c in c.iter_mut() { *c *= e.scale; }
        }
    }
}

/// `out[m, n] = epilogue(A · B)`; B has `k` rows and ⌈n/16⌉ panels, `out` is row-major.
pub fn gemm<R: Rows>(rows: &R, b: &[f32], dims: [usize; 3], epilogue: &Epilogue, out: &mut [f32]) {
    gemm_part(rows, b, dims[2], dims, epilogue, out);
}

/// [`gemm`] with `k` rows out of a larger matrix, whose panels have `b_rows` rows; `b` starts at the first of them.
pub fn gemm_part<R: Rows>(
    rows: &R,
    b: &[f32],
    b_rows: usize,
    [m, n, k]: [usize; 3],
    epilogue: &Epilogue,
    out: &mut [f32],
) {
    if m == 0 || n == 0 {
        return;
    }
    let panels = n.div_ceil(PANEL);
    let blocks = m.div_ceil(M_BLOCK);
    let block_rows = m.div_ceil(blocks);
    // Enough tasks to balance threads; few rows (one image, deep levels) are split by columns instead.
    let wanted = rayon::current_num_threads() * 2;
    let splits = if blocks >= wanted { 1 } else { wanted.div_ceil(blocks).min(panels.div_ceil(2)).max(1) };
    let split_panels = panels.div_ceil(splits).next_multiple_of(2);
    let splits = panels.div_ceil(split_panels);
    let out = Ptr::new(out);
    tasks(blocks * splits, m * n * k / 64, |task| {
        let (row0, panel0) = (task / splits * block_rows, task % splits * split_panels);
        let (count, panel_count) = (block_rows.min(m - row0.min(m)), split_panels.min(panels - panel0));
        if count == 0 {
            return;
        }
        let product = |a: Left, k0: usize, depth: usize, again: bool| {
            let tiles = Tiles {
                a,
                b: b[(panel0 * b_rows + k0) * PANEL..].as_ptr(),
                b_panel: b_rows * PANEL,
                // SAFETY: inside `out`; tasks own disjoint rows or columns.
                c: unsafe { out.raw().add(row0 * n + panel0 * PANEL) },
                c_row: n,
                c_panel: PANEL,
            };
            let cols = (panel_count * PANEL).min(n - panel0 * PANEL);
            // SAFETY: `b` holds k rows of every panel, `a` [count, depth], C as above.
            unsafe { tiles.run([count, cols, depth], again) };
        };
        if rows.in_place() {
            by_lines(rows, [row0, count], k, product);
        } else {
            by_copies(rows, [row0, count], k, product);
        }
        let (n0, cols) = (panel0 * PANEL, (panel_count * PANEL).min(n - panel0 * PANEL));
        for row in row0..row0 + count {
            // SAFETY: this task's own part of `out`.
            finish_row(unsafe { out.part(row * n + n0, cols) }, epilogue, row, n, n0);
        }
    });
}

/// Calls `product(A, first row of B, depth, again)` for k-blocks of runs that are read where they lie. Long runs are cut; of short
/// ones several go together.
fn by_lines<R: Rows>(rows: &R, [row0, count]: [usize; 2], k: usize, product: impl Fn(Left, usize, usize, bool)) {
    static ZEROS: [f32; K_BLOCK] = [0.0; K_BLOCK];
    let run = rows.run();
    let len = run.div_ceil(run.div_ceil(K_BLOCK)).next_multiple_of(8);
    let mut lines = [ZEROS.as_ptr(); LINES];
    for from in (0..run).step_by(len) {
        let len = len.min(run - from);
        // Runs of a block must lie beside each other in B.
        let step = if len == run { (K_BLOCK / run).max(1) * run } else { run };
        for k0 in (0..k).step_by(step) {
            let pieces = step.min(k - k0) / run;
            for (s, lines) in lines.chunks_exact_mut(count).take(pieces).enumerate() {
                let at = k0 + s * run + from;
                rows.lines(row0, count, at, |i, line| lines[i] = line.map_or(ZEROS.as_ptr(), |l| l[..len].as_ptr()));
            }
            product(Left::Lines { lines: lines.as_ptr(), rows: count, len }, k0 + from, pieces * len, from + k0 > 0);
        }
    }
}

/// Calls `product(A, first row of B, depth, again)` for k-blocks of copied rows.
fn by_copies<R: Rows>(rows: &R, [row0, count]: [usize; 2], k: usize, product: impl Fn(Left, usize, usize, bool)) {
    let stride = K_BLOCK + A_PAD;
    with_buffers(count * stride, 0, |pack, _| {
        for k0 in (0..k.max(1)).step_by(K_BLOCK) {
            let depth = K_BLOCK.min(k - k0);
            for (i, line) in pack.chunks_exact_mut(stride).enumerate() {
                rows.gather(row0 + i, k0, k0 + depth, &mut line[..depth]);
            }
            product(Left::Rows { a: pack.as_ptr(), stride }, k0, depth, k0 > 0);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32)
            .map(|i| ((i.wrapping_mul(2654435761).wrapping_add(seed * 97) >> 8) % 2001) as f32 / 1000.0 - 1.0)
            .collect()
    }

    #[test]
    fn gemm_and_weight_grad_match_f64() {
        for (m, n, k) in [
            (1, 1, 1),
            (5, 7, 3),
            (1, 300, 70),
            (6, 16, 256),
            (100, 33, 300),
            (13, 64, 1024),
            (300, 48, 17),
            (97, 40, 513),
        ] {
            let (a, b) = (noise(m * k, 1), noise(k * n, 2));
            let mut panels = vec![0.0; k * n.next_multiple_of(PANEL)];
            pack_rows(&b, n, n, &mut panels);
            let bias = noise(n, 3);
            let mut c = vec![f32::NAN; m * n];
            let epilogue = Epilogue { bias: Some(&bias), scale: 0.5, ..Default::default() };
            gemm(&Matrix { data: &a, stride: k }, &panels, [m, n, k], &epilogue, &mut c);
            for i in 0..m {
                for j in 0..n {
                    let s: f64 = (0..k).map(|l| a[i * k + l] as f64 * b[l * n + j] as f64).sum();
                    let expected = (s + bias[j] as f64) * 0.5;
                    assert!((c[i * n + j] as f64 - expected).abs() < 1e-4, "{m}x{n}x{k} at {i},{j}");
                }
            }
            let dy = noise(m * n, 4);
            let mut dw = vec![f32::NAN; k * n.next_multiple_of(PANEL)];
            weight_grad(&Matrix { data: &a, stride: k }, &dy, [m, n, 1, k], &mut dw);
            for l in 0..k {
                for j in 0..n {
                    let s: f64 = (0..m).map(|i| a[i * k + l] as f64 * dy[i * n + j] as f64).sum();
                    let at = (j / PANEL) * k * PANEL + l * PANEL + j % PANEL;
                    assert!((dw[at] as f64 - s).abs() < 1e-4, "dw {m}x{n}x{k} at {l},{j}");
                }
            }
            assert!(dw.iter().all(|v| v.is_finite()));
        }
    }

    /// Element (row, k) of the column matrix, by its definition.
    fn column(x: &[f32], w: &Window, row: usize, k: usize) -> f64 {
        let (pixels, c) = (w.out_height * w.out_width, w.channels);
        let (image, at, tap) = (row / pixels, row % pixels, k / c);
        let inside = |out: usize, tap: usize, pad: usize, size: usize| {
            let at = (out * w.stride + tap).checked_sub(pad)?;
            (at % w.dilation == 0 && at / w.dilation < size).then_some(at / w.dilation)
        };
        let y = inside(at / w.out_width, tap / w.kernel[1], w.pad_top, w.height);
        let x_at = inside(at % w.out_width, tap % w.kernel[1], w.pad_left, w.width);
        let (Some(y), Some(x_at)) = (y, x_at) else { return 0.0 };
        x[((image * w.height + y) * w.width + x_at) * c + k % c] as f64
    }

    #[test]
    fn convolutions_match_f64_on_any_number_of_threads() {
        let same = |height, width, channels| Window {
            height,
            width,
            channels,
            out_height: height,
            out_width: width,
            kernel: [3, 3],
            stride: 1,
            pad_top: 1,
            pad_left: 1,
            dilation: 1,
        };
        let down = |height: usize, width: usize, channels| Window {
            out_height: height / 2,
            out_width: width / 2,
            stride: 2,
            pad_top: 0,
            pad_left: 0,
            ..same(height, width, channels)
        };
        // Runs that are copied, that go several to a k-block, whole, and in parts; rows beyond one task and one block of dy.
        let cases = [
            (2, same(13, 14, 3), 19),
            (2, same(13, 14, 66), 19),
            (1, same(5, 7, 130), 33),
            (1, same(4, 3, 301), 16),
            (3, down(6, 9, 65), 17),
            (1, down(2, 2, 270), 5),
            (1, Window { out_height: 8, out_width: 6, dilation: 2, ..same(4, 3, 64) }, 20),
            (1, same(2, 2, 1024), 3),
        ];
        for (images, w, n) in cases {
            let (m, k) = (images * w.out_height * w.out_width, 9 * w.channels);
            let (x, b, dy) = (noise(images * w.height * w.width * w.channels, 1), noise(k * n, 2), noise(m * n, 3));
            let mut panels = vec![0.0; k * n.next_multiple_of(PANEL)];
            pack_rows(&b, n, n, &mut panels);
            let rows = Im2col { data: &x, window: w };
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let (mut y, mut dw) = (vec![f32::NAN; m * n], vec![f32::NAN; panels.len()]);
                pool.install(|| {
                    gemm(&rows, &panels, [m, n, k], &Epilogue::default(), &mut y);
                    weight_grad(&rows, &dy, [m, n, 9, w.channels], &mut dw);
                });
                (y, dw)
            };
            let (y, dw) = run(1);
            for threads in [2, 5] {
                assert!(run(threads) == (y.clone(), dw.clone()), "{w:?} on {threads} threads");
            }
            let a: Vec<f64> = (0..m * k).map(|i| column(&x, &w, i / k, i % k)).collect();
            for j in 0..n {
                for i in 0..m {
                    let s: f64 = (0..k).map(|l| a[i * k + l] * b[l * n + j] as f64).sum();
                    assert!((y[i * n + j] as f64 - s).abs() < 3e-4, "{w:?} at {i},{j}");
                }
                for l in 0..k {
                    let s: f64 = (0..m).map(|i| a[i * k + l] * dy[i * n + j] as f64).sum();
                    let at = (j / PANEL) * k * PANEL + l * PANEL + j % PANEL;
                    assert!((dw[at] as f64 - s).abs() < 3e-4, "dw {w:?} at {l},{j}");
                }
            }
        }
    }
}
