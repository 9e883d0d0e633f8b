//! The inner kernel: products of blocks on one thread, with AVX-512, AVX2 or neither.

use crate::cpu::simd::{Level, level};
use crate::tensor::PANEL;

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
