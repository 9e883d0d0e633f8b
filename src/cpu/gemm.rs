//! Matrix products: the one inner kernel under linear layers, convolutions, their gradients and attention.
//!
//! C[m, n] = Σ_k A[m, k] · B[k, n], B in panels of 16 columns ([`crate::tensor::Layout::Panels`]). A is read where it lies: the
//! rows of a convolution are lists of pointers to pixels, one for each tap, so no column matrix is written anywhere ("implicit
//! GEMM"). Registers hold 6×16 (AVX2) or 12×32 (AVX-512) of C; a k-block of B stays in L1.

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
/// Shorter stretches of a row of A are gathered: the kernel would spend its time on the pointers.
const MIN_LINE: usize = 64;
/// Pointers to stretches of A for one task and k-block.
const LINES: usize = M_BLOCK * (K_BLOCK / MIN_LINE);
/// Rows of dy in one block of the weight gradient: a panel of them is 16 KiB of L1.
const GRAD_BLOCK: usize = 256;
/// Packed panels and tiles of the weight gradient start this many rows further apart than they are deep, so that what is written
/// to all of them in turn does not share cache sets.
const GRAD_PAD: usize = 4;
/// Columns of dy in a task of the weight gradient: 256 packed rows of them are half of the smallest L2 in use.
const GRAD_COLUMNS: usize = 256;
/// Channels of a piece of the weight gradient: packed, an eighth of that L2.
const GRAD_CHANNELS: usize = 64;
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

/// The rows of A. A row consists of runs: elements that lie beside each other in memory, or are all zero.
pub trait Rows: Sync {
    /// Length of a run.
    fn run(&self) -> usize;

    /// Calls `f(i, line)` for the rows `row0 + i`, i < count: A[row0 + i, k0..] up to the end of the run, `None` for zeros.
    fn lines<'a>(&'a self, row0: usize, count: usize, k0: usize, f: impl FnMut(usize, Option<&'a [f32]>));

    /// Writes A[row, k0..k1] to `out`.
    fn gather(&self, row: usize, k0: usize, k1: usize, out: &mut [f32]);

    /// Whether runs should be read where they lie.
    fn in_place(&self) -> bool {
        // Rows a multiple of 4 KiB apart fall into one cache set each: copying them is cheaper.
        self.run() >= MIN_LINE && !self.run().is_multiple_of(1024)
    }
}

/// A plain matrix with contiguous rows of `stride`.
pub struct Matrix<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

impl Rows for Matrix<'_> {
    fn run(&self) -> usize {
        self.stride
    }

    #[inline]
    fn lines<'a>(&'a self, row0: usize, count: usize, k0: usize, mut f: impl FnMut(usize, Option<&'a [f32]>)) {
        for i in 0..count {
            let row = (row0 + i) * self.stride;
            f(i, Some(&self.data[row + k0..row + self.stride]));
        }
    }

    #[inline]
    fn gather(&self, row: usize, k0: usize, k1: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.data[row * self.stride + k0..row * self.stride + k1]);
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
    /// A 1×1 convolution of images of one pixel: a plain matrix product.
    pub fn matrix(channels: usize) -> Self {
        let (kernel, one) = ([1, 1], 1);
        Window {
            height: one,
            width: one,
            channels,
            out_height: one,
            out_width: one,
            kernel,
            stride: one,
            pad_top: 0,
            pad_left: 0,
            dilation: one,
        }
    }

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
    fn run(&self) -> usize {
        self.window.channels
    }

    #[inline]
    fn lines<'a>(&'a self, row0: usize, count: usize, k0: usize, mut f: impl FnMut(usize, Option<&'a [f32]>)) {
        let (w, c) = (&self.window, self.window.channels);
        let (tap, from) = (k0 / c, k0 % c);
        let (ky, kx) = (tap / w.kernel[1], tap % w.kernel[1]);
        let [mut image, mut y, mut x] = w.corner(row0);
        for i in 0..count {
            f(i, w.pixel([image, y, x], ky, kx).map(|at| &self.data[at + from..at + c]));
            x += w.stride;
            if x == w.out_width * w.stride {
                (x, y) = (0, y + w.stride);
                if y == w.out_height * w.stride {
                    (y, image) = (0, image + 1);
                }
            }
        }
    }

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

/// The weight gradient: `out[(tap, c), n] = Σ_rows A[row, (tap, c)] · dy[row, n]`, `out` in panels; A has `taps · channels` columns.
///
/// A is cut into pieces, some channels of one tap each. A task owns a few pieces and some columns. It walks down A and dy; what it
/// packed of dy serves all its pieces. Each sum runs over the same blocks in the same order however the work is cut.
pub fn weight_grad<R: Rows>(rows: &R, dy: &[f32], dims: [usize; 4], out: &mut [f32]) {
    weight_grad_part(rows, dy, dims, dims[2] * dims[3], out);
}

/// [`weight_grad`] into some rows of a larger matrix, whose panels have `out_rows` rows; `out` starts at the first of them.
pub fn weight_grad_part<R: Rows>(
    rows: &R,
    dy: &[f32],
    [m, n, taps, channels]: [usize; 4],
    out_rows: usize,
    out: &mut [f32],
) {
    let (k, panels) = (taps * channels, n.div_ceil(PANEL));
    let threads = rayon::current_num_threads();
    let n_blocks = n.div_ceil(GRAD_COLUMNS);
    let n_panels = panels.div_ceil(n_blocks.max(1));
    // Enough tasks to balance threads, but no more: each packs dy anew.
    let splits = if threads == 1 { 1 } else { (2 * threads).div_ceil(n_blocks.max(1)).max(2) };
    let c_blocks = channels.div_ceil(GRAD_CHANNELS).max(splits.div_ceil(taps).min(channels.div_ceil(24)));
    let block = channels.div_ceil(c_blocks.max(1)).next_multiple_of(4);
    let pieces = channels.div_ceil(block.max(1)) * taps;
    let splits = splits.min(pieces);
    let (tile, pitch) = (level().tile_rows(), GRAD_BLOCK.min(m) + GRAD_PAD);
    let out = Ptr::new(out);
    tasks(n_blocks * splits, m * n * k / 64, |task| {
        let (p0, split) = (task / splits * n_panels, task % splits);
        let count = n_panels.min(panels - p0.min(panels));
        let (n0, cols) = (p0 * PANEL, (count * PANEL).min(n - (p0 * PANEL).min(n)));
        let columns = (split * pieces / splits..(split + 1) * pieces / splits).map(|piece| {
            let c0 = piece / taps * block;
            [piece % taps * channels + c0, block.min(channels - c0)]
        });
        with_buffers(block.next_multiple_of(tile) * pitch, count * PANEL * pitch, |a, b| {
            for row0 in (0..m).step_by(GRAD_BLOCK) {
                let depth = GRAD_BLOCK.min(m - row0);
                pack_panels(&dy[row0 * n + n0..], n, [depth, cols], pitch, b);
                for [k0, width] in columns.clone() {
                    pack_tiles(rows, [row0, depth], [k0, width], pitch, a);
                    let tiles = Tiles {
                        a: Left::Packed { a: a.as_ptr(), pitch },
                        b: b.as_ptr(),
                        b_panel: pitch * PANEL,
                        // SAFETY: rows k0..k0+width of these panels of `out` belong to this task alone.
                        c: unsafe { out.raw().add((p0 * out_rows + k0) * PANEL) },
                        c_row: PANEL,
                        c_panel: out_rows * PANEL,
                    };
                    // SAFETY: as above; columns beyond n are zero in the packed dy and so in `out`.
                    unsafe { tiles.run([width, count * PANEL, depth], row0 > 0) };
                }
            }
            if m == 0 {
                for (p, [k0, width]) in (p0..p0 + count).flat_map(|p| columns.clone().map(move |c| (p, c))) {
                    // SAFETY: as above.
                    unsafe { out.part((p * out_rows + k0) * PANEL, width * PANEL) }.fill(0.0);
                }
            }
        });
    });
}

/// Packs the transpose of A[row0..row0 + depth, k0..k0 + width], a part of one run, as [`Left::Packed`].
fn pack_tiles<R: Rows>(rows: &R, block: [usize; 2], columns: [usize; 2], pitch: usize, out: &mut [f32]) {
    match level().tile_rows() {
        12 => pack_tiles_of::<12, R>(rows, block, columns, pitch, out),
        6 => pack_tiles_of::<6, R>(rows, block, columns, pitch, out),
        _ => pack_tiles_of::<4, R>(rows, block, columns, pitch, out),
    }
}

fn pack_tiles_of<const T: usize, R: Rows>(
    rows: &R,
    [row0, depth]: [usize; 2],
    [k0, width]: [usize; 2],
    pitch: usize,
    out: &mut [f32],
) {
    let (full, rest) = (width / T, width % T);
    let (out, _) = out.as_chunks_mut::<T>();
    rows.lines(row0, depth, k0, |i, line| match line {
        Some(line) => {
            let (from, _) = line[..width].as_chunks::<T>();
            for (t, from) in from.iter().enumerate() {
                out[t * pitch + i] = *from;
            }
            if rest > 0 {
                out[full * pitch + i][..rest].copy_from_slice(&line[full * T..width]);
            }
        }
        None => {
            for t in 0..width.div_ceil(T) {
                out[t * pitch + i] = [0.0; T];
            }
        }
    });
}

/// Packs row-major `[rows, n]` with row stride `stride` into panels `[⌈n/16⌉, rows, 16]`, zeros beyond column n.
pub fn pack_rows(x: &[f32], stride: usize, n: usize, out: &mut [f32]) {
    let rows = out.len() / n.next_multiple_of(PANEL);
    pack_panels(x, stride, [rows, n], rows, out);
}

/// [`pack_rows`] into panels whose starts are `pitch` rows apart.
fn pack_panels(x: &[f32], stride: usize, [rows, n]: [usize; 2], pitch: usize, out: &mut [f32]) {
    let (out, _) = out.as_chunks_mut::<PANEL>();
    for r in 0..rows {
        let (full, rest) = x[r * stride..r * stride + n].as_chunks::<PANEL>();
        for (p, from) in full.iter().enumerate() {
            out[p * pitch + r] = *from;
        }
        if !rest.is_empty() {
            let line = &mut out[full.len() * pitch + r];
            *line = [0.0; PANEL];
            line[..rest.len()].copy_from_slice(rest);
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

/// How the left-hand side of a block product lies.
#[derive(Clone, Copy)]
pub enum Left {
    /// Row i at `a + i·stride`.
    Rows { a: *const f32, stride: usize },
    /// Column k at `a + k·stride`.
    Columns { a: *const f32, stride: usize },
    /// Tiles of [`Level::tile_rows`] rows, each by columns, and `pitch` columns apart.
    Packed { a: *const f32, pitch: usize },
    /// Row i is the stretches of `len` elements at `lines[i]`, `lines[rows + i]`, and so on.
    Lines { lines: *const *const f32, rows: usize, len: usize },
}

impl Left {
    /// The rows from `i` on, a multiple of [`Level::tile_rows`].
    unsafe fn skip_rows(self, i: usize) -> Left {
        unsafe {
            match self {
                Left::Rows { a, stride } => Left::Rows { a: a.add(i * stride), stride },
                Left::Columns { a, stride } => Left::Columns { a: a.add(i), stride },
                Left::Packed { a, pitch } => Left::Packed { a: a.add(i * pitch), pitch },
                Left::Lines { lines, rows, len } => Left::Lines { lines: lines.add(i), rows, len },
            }
        }
    }

    /// Element (row, k), k < `depth`.
    unsafe fn element(self, row: usize, k: usize) -> f32 {
        let tile = level().tile_rows();
        unsafe {
            match self {
                Left::Rows { a, stride } => *a.add(row * stride + k),
                Left::Columns { a, stride } => *a.add(k * stride + row),
                Left::Packed { a, pitch } => *a.add((row / tile * pitch + k) * tile + row % tile),
                Left::Lines { lines, rows, len } => *(*lines.add(k / len * rows + row)).add(k % len),
            }
        }
    }
}

/// A block product on one thread: C (+)= A · B with every operand where it lies.
pub struct Tiles {
    pub a: Left,
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
                    a: self.a.skip_rows(i),
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
                            let a = self.a.element(i + r, kk);
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
    use super::{Left, Tiles};
    use crate::tensor::PANEL;
    use std::arch::x86_64::*;

    /// Calls `$lanes::<rows, …>` for the whole tiles of `$max` rows and then for what is left.
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

    /// Calls `$step!(r => pointer to A[i + r, ·])` for each of the k columns of A.
    macro_rules! walk {
        ($t:ident, $i:ident, $k:ident, $M:ident, $tile:literal, $step:ident) => {
            let by_columns = match $t.a {
                Left::Columns { a, stride } => Some((a.add($i), stride)),
                Left::Packed { a, pitch } => Some((a.add($i * pitch), $tile)),
                _ => None,
            };
            if let Some((mut a, stride)) = by_columns {
                for _ in 0..$k {
                    $step!(r => a.add(r));
                    a = a.wrapping_add(stride);
                }
            } else {
                let len = if let Left::Lines { len, .. } = $t.a { len } else { $k };
                let mut start = [std::ptr::null(); $M];
                for s in 0..$k / len.max(1) {
                    for r in 0..$M {
                        start[r] = match $t.a {
                            Left::Lines { lines, rows, .. } => *lines.add(s * rows + $i + r),
                            Left::Rows { a, stride } | Left::Columns { a, stride } => a.add(($i + r) * stride),
                            Left::Packed { a, .. } => a,
                        };
                    }
                    for kk in 0..len {
                        $step!(r => start[r].add(kk));
                    }
                }
            }
        };
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
            let mut b = t.b.add(p * t.b_panel);
            let c = t.c.add(i * t.c_row + p * t.c_panel);
            for r in 0..M {
                _mm_prefetch::<_MM_HINT_T0>(c.add(r * t.c_row) as *const i8);
            }
            macro_rules! step {
                ($r:ident => $x:expr) => {{
                    let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
                    for $r in 0..M {
                        let x = _mm256_broadcast_ss(&*$x);
                        acc[$r][0] = _mm256_fmadd_ps(x, b0, acc[$r][0]);
                        acc[$r][1] = _mm256_fmadd_ps(x, b1, acc[$r][1]);
                    }
                    b = b.wrapping_add(PANEL);
                }};
            }
            walk!(t, i, k, M, 6, step);
            for r in 0..M {
                let c = c.add(r * t.c_row);
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
            let mut b = t.b.add(p * t.b_panel);
            for r in 0..M {
                for q in 0..P {
                    _mm_prefetch::<_MM_HINT_T0>(t.c.add((i + r) * t.c_row + (p + q) * t.c_panel) as *const i8);
                }
            }
            macro_rules! step {
                ($r:ident => $x:expr) => {{
                    let mut columns = [_mm512_setzero_ps(); P];
                    for (q, column) in columns.iter_mut().enumerate() {
                        *column = _mm512_loadu_ps(b.wrapping_add(q * t.b_panel));
                    }
                    for $r in 0..M {
                        let x = _mm512_set1_ps(*$x);
                        for q in 0..P {
                            acc[$r][q] = _mm512_fmadd_ps(x, columns[q], acc[$r][q]);
                        }
                    }
                    b = b.wrapping_add(PANEL);
                }};
            }
            walk!(t, i, k, M, 12, step);
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
