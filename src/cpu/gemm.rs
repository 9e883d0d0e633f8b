//! Matrix products: the one inner kernel under linear layers, convolutions, their gradients and attention.
//!
//! C[m, n] = Σ_k A[m, k] · B[k, n], B in panels of 16 columns ([`crate::tensor::Layout::Panels`]). A is gathered row by row:
//! for a convolution the gather *is* the im2col, a few rows of a k-block at a time into L2, so no column matrix is written
//! to memory ("implicit GEMM"). Registers hold 6×16 (AVX2) or 12×32 (AVX-512) of C; a k-block of B stays in L1.

use super::Activation;
use super::simd::{Level, level};
use super::threads::{Ptr, tasks};
use crate::simd;
use crate::tensor::PANEL;
use std::cell::RefCell;

/// Depth of a k-block: 256 × 16 floats of B are 16 KiB, half of the smallest L1 in use.
const K_BLOCK: usize = 256;
/// Rows of A in a task: 288 × 256 floats are 288 KiB of L2. The more rows, the fewer times B comes through the caches; 288 takes
/// the 256 tokens of a DiT or the 16×16 pixels of a UNet's middle whole.
const M_BLOCK: usize = 288;
/// Rows of dy in one block of the weight gradient. There A is read down its columns, a cache line a row: 128 lines leave room
/// in L1 for as many rows of a panel.
const GRAD_BLOCK: usize = 128;
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

/// The rows of A.
pub trait Rows: Sync {
    /// Writes A[row, k0..k1] to `out`.
    fn gather(&self, row: usize, k0: usize, k1: usize, out: &mut [f32]);

    /// A as pointer and row stride, if it can be read where it lies.
    fn direct(&self) -> Option<(*const f32, usize)> {
        None
    }
}

/// A plain matrix with contiguous rows.
pub struct Matrix<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

impl Rows for Matrix<'_> {
    #[inline]
    fn gather(&self, row: usize, k0: usize, k1: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.data[row * self.stride + k0..row * self.stride + k1]);
    }

    fn direct(&self) -> Option<(*const f32, usize)> {
        // Rows a multiple of 4 KiB apart fall into one cache set each: copying them is cheaper.
        (!self.stride.is_multiple_of(1024)).then_some((self.data.as_ptr(), self.stride))
    }
}

/// Geometry of a 2-D convolution over NHWC images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    pub out_height: usize,
    pub out_width: usize,
    /// Rows and columns.
    pub kernel: [usize; 2],
    pub stride: usize,
    pub pad_top: usize,
    pub pad_left: usize,
    /// Zeros put between input pixels, plus one: 2 for the data gradient of a stride-2 convolution.
    pub dilation: usize,
}

impl Window {
    /// Pixels under the kernel.
    pub fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Image, and the row and column of the padded, dilated input under tap (0, 0), of output pixel `row`.
    #[inline]
    fn corner(&self, row: usize) -> [usize; 3] {
        let pixels = self.out_height * self.out_width;
        let (image, at) = (row / pixels, row % pixels);
        [image, at / self.out_width * self.stride, at % self.out_width * self.stride]
    }

    /// Offset of the input pixel under tap (ky, kx) of a corner; `None` where that is padding.
    #[inline]
    fn pixel(&self, [image, y, x]: [usize; 3], ky: usize, kx: usize) -> Option<usize> {
        let (mut y, mut x) = ((y + ky).wrapping_sub(self.pad_top), (x + kx).wrapping_sub(self.pad_left));
        if self.dilation > 1 {
            // A padding row wraps to a huge number, which no division brings inside.
            if y % self.dilation != 0 || x % self.dilation != 0 {
                return None;
            }
            (y, x) = (y / self.dilation, x / self.dilation);
        }
        (y < self.height && x < self.width).then(|| ((image * self.height + y) * self.width + x) * self.channels)
    }
}

/// The rows of a convolution's implicit column matrix: k runs over taps, then channels.
pub struct Im2col<'a> {
    pub data: &'a [f32],
    pub window: Window,
}

impl Rows for Im2col<'_> {
    #[inline]
    fn gather(&self, row: usize, k0: usize, k1: usize, out: &mut [f32]) {
        let (w, c) = (&self.window, self.window.channels);
        let corner = w.corner(row);
        let (tap, mut from) = (k0 / c, k0 % c);
        let (mut ky, mut kx) = (tap / w.kernel[1], tap % w.kernel[1]);
        let mut rest = &mut out[..k1 - k0];
        while !rest.is_empty() {
            let (to, after) = rest.split_at_mut((c - from).min(rest.len()));
            match w.pixel(corner, ky, kx) {
                Some(at) => to.copy_from_slice(&self.data[at + from..at + from + to.len()]),
                None => to.fill(0.0),
            }
            (rest, from, kx) = (after, 0, kx + 1);
            if kx == w.kernel[1] {
                (kx, ky) = (0, ky + 1);
            }
        }
    }
}

/// What happens to C before it is stored: `y = (act(C + bias + sample_bias) + residual) · scale`.
#[derive(Clone, Copy)]
pub struct Epilogue<'a> {
    /// `[n]`
    pub bias: Option<&'a [f32]>,
    /// `[samples, n]`, one row for every `rows_per_sample` rows of C.
    pub sample_bias: Option<&'a [f32]>,
    pub rows_per_sample: usize,
    pub activation: Activation,
    /// `[m, n]`
    pub residual: Option<&'a [f32]>,
    pub scale: f32,
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        let activation = Activation::Identity;
        Epilogue { bias: None, sample_bias: None, rows_per_sample: 1, activation, residual: None, scale: 1.0 }
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
            let at = row / e.rows_per_sample * n + n0;
            for (c, b) in c.iter_mut().zip(&bias[at..at + len]) { *c += b; }
        }
        // One loop for each: with the choice inside the loop nothing vectorises.
        match e.activation {
            Activation::Identity => {}
            Activation::Silu => for c in c.iter_mut() { *c = Activation::Silu.eval(*c); },
            Activation::Gelu => for c in c.iter_mut() { *c = Activation::Gelu.eval(*c); },
            Activation::GeluTanh => for c in c.iter_mut() { *c = Activation::GeluTanh.eval(*c); },
            Activation::Relu => for c in c.iter_mut() { *c = Activation::Relu.eval(*c); },
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
pub fn gemm<R: Rows>(rows: &R, b: &[f32], [m, n, k]: [usize; 3], epilogue: &Epilogue, out: &mut [f32]) {
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
        with_buffers(count * (K_BLOCK + A_PAD), 0, |pack, _| {
            for k0 in (0..k.max(1)).step_by(K_BLOCK) {
                let depth = K_BLOCK.min(k - k0);
                let (a, a_stride) = match rows.direct() {
                    // SAFETY: row0 + count ≤ m rows of the matrix.
                    Some((a, stride)) => (unsafe { a.add(row0 * stride + k0) }, stride),
                    None => {
                        for (i, line) in pack.chunks_exact_mut(K_BLOCK + A_PAD).enumerate() {
                            rows.gather(row0 + i, k0, k0 + depth, &mut line[..depth]);
                        }
                        (pack.as_ptr(), K_BLOCK + A_PAD)
                    }
                };
                let tiles = Tiles {
                    a,
                    a_row: a_stride,
                    a_col: 1,
                    b: b[(panel0 * k + k0) * PANEL..].as_ptr(),
                    b_panel: k * PANEL,
                    // SAFETY: inside `out`; tasks own disjoint rows or columns.
                    c: unsafe { out.raw().add(row0 * n + panel0 * PANEL) },
                    c_row: n,
                    c_panel: PANEL,
                };
                let cols = (panel_count * PANEL).min(n - panel0 * PANEL);
                // SAFETY: `b` holds k rows of every panel, A was gathered or lies in place, C as above.
                unsafe { tiles.run([count, cols, depth], k0 > 0) };
            }
        });
        let (n0, cols) = (panel0 * PANEL, (panel_count * PANEL).min(n - panel0 * PANEL));
        for row in row0..row0 + count {
            // SAFETY: this task's own part of `out`.
            finish_row(unsafe { out.part(row * n + n0, cols) }, epilogue, row, n, n0);
        }
    });
}

/// The weight gradient: `out[(tap, c), n] = Σ_rows A[row, (tap, c)] · dy[row, n]`, `out` in panels; A has `taps · channels` columns.
pub fn weight_grad<R: Rows>(rows: &R, dy: &[f32], [m, n, taps, channels]: [usize; 4], out: &mut [f32]) {
    let k = taps * channels;
    let panels = n.div_ceil(PANEL);
    let wanted = rayon::current_num_threads() * 2;
    let blocks = wanted.div_ceil(taps).max(channels.div_ceil(256)).min(channels.div_ceil(24)).max(1);
    let block = channels.div_ceil(blocks).next_multiple_of(12);
    let blocks = channels.div_ceil(block);
    let out = Ptr::new(out);
    tasks(taps * blocks, m * n * k / 64, |task| {
        let (tap, c0) = (task / blocks, task % blocks * block);
        let (width, k0) = (block.min(channels - c0), tap * channels + c0);
        with_buffers(GRAD_BLOCK * (block + A_PAD), GRAD_BLOCK * panels * PANEL, |a, b| {
            for row0 in (0..m).step_by(GRAD_BLOCK) {
                let depth = GRAD_BLOCK.min(m - row0);
                for (i, line) in a.chunks_exact_mut(block + A_PAD).take(depth).enumerate() {
                    rows.gather(row0 + i, k0, k0 + width, &mut line[..width]);
                }
                pack_rows(&dy[row0 * n..(row0 + depth) * n], n, n, &mut b[..depth * panels * PANEL]);
                let tiles = Tiles {
                    a: a.as_ptr(),
                    a_row: 1,
                    a_col: block + A_PAD,
                    b: b.as_ptr(),
                    b_panel: depth * PANEL,
                    // SAFETY: rows k0..k0+width of every panel of `out` belong to this task alone.
                    c: unsafe { out.raw().add(k0 * PANEL) },
                    c_row: PANEL,
                    c_panel: k * PANEL,
                };
                // SAFETY: as above; columns beyond n are zero in the packed dy and so in `out`.
                unsafe { tiles.run([width, panels * PANEL, depth], row0 > 0) };
            }
            if m == 0 {
                for p in 0..panels {
                    // SAFETY: as above.
                    unsafe { out.part((p * k + k0) * PANEL, width * PANEL) }.fill(0.0);
                }
            }
        });
    });
}

/// Packs row-major `[rows, n]` with row stride `stride` into panels `[⌈n/16⌉, rows, 16]`, zeros beyond column n.
pub fn pack_rows(x: &[f32], stride: usize, n: usize, out: &mut [f32]) {
    let rows = out.len() / n.next_multiple_of(PANEL);
    for (p, panel) in out.chunks_exact_mut(rows * PANEL).enumerate() {
        let (c0, width) = (p * PANEL, PANEL.min(n - p * PANEL));
        for (r, line) in panel.chunks_exact_mut(PANEL).enumerate() {
            let from = &x[r * stride + c0..r * stride + c0 + width];
            line[..width].copy_from_slice(from);
            line[width..].fill(0.0);
        }
    }
}

/// Packs the transpose of row-major `[n, k]` (row stride `stride`) into panels `[⌈n/16⌉, k, 16]`, zeros beyond n.
pub fn pack_cols(x: &[f32], stride: usize, n: usize, k: usize, out: &mut [f32]) {
    for (p, panel) in out[..n.div_ceil(PANEL) * k * PANEL].chunks_exact_mut(k * PANEL).enumerate() {
        for lane in 0..PANEL {
            let row = p * PANEL + lane;
            if row < n {
                for (i, v) in x[row * stride..row * stride + k].iter().enumerate() {
                    panel[i * PANEL + lane] = *v;
                }
            } else {
                panel.iter_mut().skip(lane).step_by(PANEL).for_each(|v| *v = 0.0);
            }
        }
    }
}

/// A block product on one thread: C (+)= A · B with every operand where it lies.
pub struct Tiles {
    pub a: *const f32,
    /// Elements between rows, and between columns, of A.
    pub a_row: usize,
    pub a_col: usize,
    /// Panels of `[k, 16]`, `b_panel` elements apart.
    pub b: *const f32,
    pub b_panel: usize,
    /// Element (i, 16·p + lane) of C lies at `c + i·c_row + p·c_panel + lane`.
    pub c: *mut f32,
    pub c_row: usize,
    pub c_panel: usize,
}

impl Tiles {
    /// C[m, n] = A·B, or C += A·B if `accumulate`. Only the first n columns of C are written.
    ///
    /// # Safety
    /// A must hold [m, k], B ⌈n/16⌉ panels of k rows, and C [m, n], which nothing else touches meanwhile.
    pub unsafe fn run(&self, [m, n, k]: [usize; 3], accumulate: bool) {
        let (full, rest) = (n / PANEL, n % PANEL);
        unsafe {
            match level() {
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => x86::avx512(self, m, full, k, accumulate),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => x86::avx2(self, m, full, k, accumulate),
                _ => self.portable(m, full, k, accumulate),
            }
            if rest > 0 {
                self.ragged(m, full, rest, k, accumulate);
            }
        }
    }

    /// The last panel when it is not full: through a buffer of whole panels.
    unsafe fn ragged(&self, m: usize, panel: usize, width: usize, k: usize, accumulate: bool) {
        let mut buffer = [0.0f32; 12 * PANEL];
        for i in (0..m).step_by(12) {
            let rows = 12.min(m - i);
            unsafe {
                let part = Tiles {
                    a: self.a.add(i * self.a_row),
                    b: self.b.add(panel * self.b_panel),
                    c: buffer.as_mut_ptr(),
                    c_row: PANEL,
                    ..*self
                };
                part.run([rows, PANEL, k], false);
                for r in 0..rows {
                    let c = self.c.add((i + r) * self.c_row + panel * self.c_panel);
                    let c = std::slice::from_raw_parts_mut(c, width);
                    for (c, v) in c.iter_mut().zip(&buffer[r * PANEL..]) {
                        *c = if accumulate { *c + v } else { *v };
                    }
                }
            }
        }
    }

    unsafe fn portable(&self, m: usize, panels: usize, k: usize, accumulate: bool) {
        for p in 0..panels {
            for i in (0..m).step_by(4) {
                let rows = 4.min(m - i);
                let mut acc = [[0.0f32; PANEL]; 4];
                for kk in 0..k {
                    unsafe {
                        let b = &*(self.b.add(p * self.b_panel + kk * PANEL) as *const [f32; PANEL]);
                        for (r, acc) in acc.iter_mut().enumerate().take(rows) {
                            let a = *self.a.add((i + r) * self.a_row + kk * self.a_col);
                            for (acc, b) in acc.iter_mut().zip(b) {
                                *acc += a * b;
                            }
                        }
                    }
                }
                for (r, acc) in acc.iter().enumerate().take(rows) {
                    unsafe {
                        let c = &mut *(self.c.add((i + r) * self.c_row + p * self.c_panel) as *mut [f32; PANEL]);
                        for (c, v) in c.iter_mut().zip(acc) {
                            *c = if accumulate { *c + v } else { *v };
                        }
                    }
                }
            }
        }
    }
}

// Rows and columns of a tile are numbers of registers: indices say which, and unroll whole.
#[expect(clippy::needless_range_loop)]
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Tiles;
    use crate::tensor::PANEL;
    use std::arch::x86_64::*;

    /// Calls `$tile::<rows, …>` for the whole tiles of `$max` rows and then for what is left.
    macro_rules! rows_of {
        ($t:ident, $m:ident, $max:literal, $call:ident, [$($rest:literal)*], $p:ident, $k:ident, $accumulate:ident) => {{
            let mut i = 0;
            while i + $max <= $m {
                $call::<$max>($t, i, $p, $k, $accumulate);
                i += $max;
            }
            match $m - i {
                $($rest => $call::<$rest>($t, i, $p, $k, $accumulate),)*
                _ => {}
            }
        }};
    }

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn avx2(t: &Tiles, m: usize, panels: usize, k: usize, accumulate: bool) {
        for p in 0..panels {
            unsafe { rows_of!(t, m, 6, tile_avx2, [1 2 3 4 5], p, k, accumulate) }
        }
    }

    /// Rows i..i+M of panel p: 2·M accumulators, two loads of B and M broadcasts of A a step.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn tile_avx2<const M: usize>(t: &Tiles, i: usize, p: usize, k: usize, accumulate: bool) {
        unsafe {
            let mut acc = [[_mm256_setzero_ps(); 2]; M];
            let (mut a, mut b) = (t.a.add(i * t.a_row), t.b.add(p * t.b_panel));
            for _ in 0..k {
                let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
                for r in 0..M {
                    let x = _mm256_broadcast_ss(&*a.add(r * t.a_row));
                    acc[r][0] = _mm256_fmadd_ps(x, b0, acc[r][0]);
                    acc[r][1] = _mm256_fmadd_ps(x, b1, acc[r][1]);
                }
                a = a.wrapping_add(t.a_col);
                b = b.wrapping_add(PANEL);
            }
            for r in 0..M {
                let c = t.c.add((i + r) * t.c_row + p * t.c_panel);
                if accumulate {
                    acc[r][0] = _mm256_add_ps(acc[r][0], _mm256_loadu_ps(c));
                    acc[r][1] = _mm256_add_ps(acc[r][1], _mm256_loadu_ps(c.add(8)));
                }
                _mm256_storeu_ps(c, acc[r][0]);
                _mm256_storeu_ps(c.add(8), acc[r][1]);
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    pub unsafe fn avx512(t: &Tiles, m: usize, panels: usize, k: usize, accumulate: bool) {
        let mut p = 0;
        while p + 2 <= panels {
            unsafe { rows_of!(t, m, 12, tile_avx512_pair, [1 2 3 4 5 6 7 8 9 10 11], p, k, accumulate) }
            p += 2;
        }
        if p < panels {
            unsafe { rows_of!(t, m, 12, tile_avx512_single, [1 2 3 4 5 6 7 8 9 10 11], p, k, accumulate) }
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn tile_avx512_pair<const M: usize>(t: &Tiles, i: usize, p: usize, k: usize, accumulate: bool) {
        unsafe { tile_avx512::<M, 2>(t, i, p, k, accumulate) }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn tile_avx512_single<const M: usize>(t: &Tiles, i: usize, p: usize, k: usize, accumulate: bool) {
        unsafe { tile_avx512::<M, 1>(t, i, p, k, accumulate) }
    }

    /// Rows i..i+M of panels p..p+P: M·P accumulators of 16 lanes.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn tile_avx512<const M: usize, const P: usize>(t: &Tiles, i: usize, p: usize, k: usize, accumulate: bool) {
        unsafe {
            let mut acc = [[_mm512_setzero_ps(); P]; M];
            let (mut a, mut b) = (t.a.add(i * t.a_row), t.b.add(p * t.b_panel));
            for _ in 0..k {
                let mut columns = [_mm512_setzero_ps(); P];
                for (q, column) in columns.iter_mut().enumerate() {
                    *column = _mm512_loadu_ps(b.wrapping_add(q * t.b_panel));
                }
                for r in 0..M {
                    let x = _mm512_set1_ps(*a.add(r * t.a_row));
                    for q in 0..P {
                        acc[r][q] = _mm512_fmadd_ps(x, columns[q], acc[r][q]);
                    }
                }
                a = a.wrapping_add(t.a_col);
                b = b.wrapping_add(PANEL);
            }
            for r in 0..M {
                for q in 0..P {
                    let c = t.c.add((i + r) * t.c_row + (p + q) * t.c_panel);
                    if accumulate {
                        acc[r][q] = _mm512_add_ps(acc[r][q], _mm512_loadu_ps(c));
                    }
                    _mm512_storeu_ps(c, acc[r][q]);
                }
            }
        }
    }
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
        for (m, n, k) in
            [(1, 1, 1), (5, 7, 3), (6, 16, 256), (100, 33, 300), (13, 64, 1024), (200, 48, 17), (97, 40, 513)]
        {
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
}
