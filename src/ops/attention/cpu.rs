//! Attention on the CPU.
//!
//! Scores are computed transposed, panels of 16 queries (forward) or keys (backward) beside each other: the softmax runs
//! along vector lanes, and what it leaves is a packed right-hand side of the next product as it lies. K and V are only
//! copied, a block at a time.

use super::Sizes;
use crate::cpu::gemm::{Left, Tiles, pack_cols, pack_rows, with_buffers};
use crate::cpu::simd::{dot, exp};
use crate::cpu::threads::{Ptr, ranges, tasks};
use crate::graph::Args;
use crate::simd;
use crate::tensor::PANEL;

/// Sizes of blocks: elements that fit into a part of L2, then the rows that a block has at least and at most. First queries of a task of the
/// forward, which copies K and V once.
const QUERIES: (usize, [usize; 2]) = (1 << 15, [96, 256]);
/// Keys of a block of both kernels.
const KEYS: (usize, [usize; 2]) = (1 << 14, [32, 128]);
/// Queries of a block of the backward.
const QUERIES_BACK: (usize, [usize; 2]) = (1 << 14, [36, 72]);
/// Copied rows are this much longer than a head, so that they do not share cache sets.
const PAD: usize = 16;
/// The backward cuts keys so that there are this many tasks, but no more than [`MAX_SPLITS`] times: each cut of several
/// needs a dq of its own.
const TASKS: usize = 16;
const MAX_SPLITS: usize = 4;

impl Sizes {
    /// Rows in a block, see [`QUERIES`].
    fn block(&self, (elements, [least, most]): (usize, [usize; 2])) -> usize {
        (elements / self.d.max(self.dv)).clamp(least, most)
    }

    /// Keys in a block, a multiple of 16.
    fn key_block(&self) -> usize {
        self.block(KEYS).min(self.keys).next_multiple_of(PANEL)
    }

    /// Pieces that the backward cuts the keys into, and key blocks in a piece. They depend on the shape alone.
    pub(super) fn splits(&self) -> (usize, usize) {
        let blocks = self.keys.div_ceil(self.key_block());
        let wanted = TASKS.div_ceil(self.pairs()).min(MAX_SPLITS).min(blocks);
        let size = blocks.div_ceil(wanted);
        (blocks.div_ceil(size), size)
    }

    /// Work in units of [`tasks`].
    fn work(&self) -> usize {
        (self.scores() as usize).saturating_mul(self.d + self.dv) / 32
    }
}

/// The rows of one head of one sample.
#[derive(Clone, Copy)]
struct Head<'a> {
    data: &'a [f32],
    stride: usize,
    width: usize,
}

impl<'a> Head<'a> {
    /// Head `pair % heads` of sample `pair / heads` of x `[B, rows, heads·width]`.
    fn of(x: &'a [f32], pair: usize, heads: usize, rows: usize, width: usize) -> Self {
        let start = (pair / heads * rows * heads + pair % heads) * width;
        Head { data: &x[start..], stride: heads * width, width }
    }

    fn row(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.stride..i * self.stride + self.width]
    }

    /// The rows from `first` on.
    fn from(&self, first: usize) -> &'a [f32] {
        &self.data[first * self.stride..]
    }

    /// Copies `scale` · rows `first..first + count`, each [`PAD`] longer than a head.
    fn copy(&self, first: usize, count: usize, scale: f32, out: &mut [f32]) {
        for (i, line) in out.chunks_exact_mut(self.width + PAD).take(count).enumerate() {
            line.iter_mut().zip(self.row(first + i)).for_each(|(o, v)| *o = v * scale);
        }
    }
}

/// Lends thread-local pieces of these lengths, each on a cache line of its own.
fn with_pieces<const N: usize>(lengths: [usize; N], f: impl FnOnce([&mut [f32]; N])) {
    let lengths = lengths.map(|n| n.next_multiple_of(PANEL));
    with_buffers(lengths.iter().sum::<usize>() + PANEL, 0, |buffer, _| {
        let skip = buffer.as_ptr().align_offset(64).min(PANEL);
        let mut rest = &mut buffer[skip..];
        f(lengths.map(|n| {
            let (piece, tail) = std::mem::take(&mut rest).split_at_mut(n);
            rest = tail;
            piece
        }));
    });
}

pub(super) fn forward(args: &Args) {
    let s = Sizes::of(args);
    let scale = args.float(6);
    let (q, k, v) = (args.slice::<f32>(0), args.slice::<f32>(1), args.slice::<f32>(2));
    let (y, lse) = (Ptr::new(args.slice_mut::<f32>(3)), Ptr::new(args.slice_mut::<f32>(4)));
    // Every query's result is the same however they are cut.
    let wanted = (2 * rayon::current_num_threads()).div_ceil(s.pairs());
    let size = s.queries.div_ceil(wanted).min(s.block(QUERIES)).next_multiple_of(2 * PANEL);
    let blocks = s.queries.div_ceil(size);
    tasks(s.pairs() * blocks, s.work(), |task| {
        let (pair, first) = (task / blocks, task % blocks * size);
        let count = size.min(s.queries - first);
        let q = Head::of(q, pair, s.heads, s.queries, s.d);
        let (k, v) = (Head::of(k, pair, s.heads, s.keys, s.d), Head::of(v, pair, s.heads, s.keys, s.dv));
        let panels = count.div_ceil(PANEL);
        let (block, wide) = (s.key_block(), panels * PANEL);
        let lengths =
            [wide * s.d, wide * s.dv, wide, wide, block * (s.d + PAD), block * (s.dv + PAD), block * 2 * PANEL];
        with_pieces(lengths, |[qt, out, top, total, kb, vb, scores]| {
            pack_cols(q.from(first), q.stride, count, s.d, qt);
            qt.iter_mut().for_each(|v| *v *= scale);
            top.fill(f32::NEG_INFINITY);
            for key in (0..s.keys).step_by(block) {
                let keys = block.min(s.keys - key);
                k.copy(key, keys, 1.0, kb);
                v.copy(key, keys, 1.0, vb);
                for p in (0..panels).step_by(2) {
                    let pair = 2.min(panels - p);
                    let products = Tiles {
                        a: Left::Rows { a: kb.as_ptr(), stride: s.d + PAD },
                        b: qt[p * s.d * PANEL..].as_ptr(),
                        b_panel: s.d * PANEL,
                        c: scores.as_mut_ptr(),
                        c_row: PANEL,
                        c_panel: block * PANEL,
                    };
                    // SAFETY: `keys` rows of K, `pair` panels of q, and room for two panels of `block` rows.
                    unsafe { products.run([keys, pair * PANEL, s.d], false) };
                    for i in 0..pair {
                        let lanes = (p + i) * PANEL..(p + i + 1) * PANEL;
                        let scores = &mut scores[i * block * PANEL..][..keys * PANEL];
                        let out = &mut out[(p + i) * s.dv * PANEL..][..s.dv * PANEL];
                        exponentials(scores, &mut top[lanes.clone()], &mut total[lanes], out, key == 0);
                    }
                    let sums = Tiles {
                        a: Left::Columns { a: vb.as_ptr(), stride: s.dv + PAD },
                        b: scores.as_ptr(),
                        b_panel: block * PANEL,
                        c: out[p * s.dv * PANEL..].as_mut_ptr(),
                        c_row: PANEL,
                        c_panel: s.dv * PANEL,
                    };
                    // SAFETY: `keys` rows of V and of each panel of scores; `pair` panels of out.
                    unsafe { sums.run([s.dv, pair * PANEL, keys], key > 0) };
                }
            }
            for i in 0..count {
                let row = (pair / s.heads * s.queries + first + i) * s.heads + pair % s.heads;
                // SAFETY: this query's part of this head.
                let (y, lse) = unsafe { (y.part(row * s.dv, s.dv), lse.part(pair * s.queries + first + i, 1)) };
                lse[0] = top[i] + total[i].ln();
                let (out, scale) = (&out[i / PANEL * s.dv * PANEL + i % PANEL..], 1.0 / total[i]);
                y.iter_mut().zip(out.iter().step_by(PANEL)).for_each(|(y, v)| *y = v * scale);
            }
        });
    });
}

simd! {
    /// Scores `[keys, 16]` → exp(score − the largest so far), 16 queries beside each other. What earlier blocks left in
    /// `total` and `out` `[dv, 16]` is scaled to the new largest.
    fn exponentials(scores: &mut [f32], top: &mut [f32], total: &mut [f32], out: &mut [f32], first: bool) {
        let (scores, _) = scores.as_chunks_mut::<PANEL>();
        let mut largest = [f32::NEG_INFINITY; PANEL];
        largest.copy_from_slice(&top[..PANEL]);
        for line in scores.iter() {
            for i in 0..PANEL { largest[i] = if line[i] > largest[i] { line[i] } else { largest[i] }; }
        }
        let mut sum = [0.0f32; PANEL];
        for line in scores {
            for i in 0..PANEL {
                line[i] = exp(line[i] - largest[i]);
                sum[i] += line[i];
            }
        }
        if !first {
            let mut factor = [0.0f32; PANEL];
            for i in 0..PANEL {
                factor[i] = exp(top[i] - largest[i]);
                sum[i] += total[i] * factor[i];
            }
            for line in out.as_chunks_mut::<PANEL>().0 {
                for i in 0..PANEL { line[i] *= factor[i]; }
            }
        }
        top[..PANEL].copy_from_slice(&largest);
        total[..PANEL].copy_from_slice(&sum);
    }
}

pub(super) fn backward(args: &Args) {
    let s = Sizes::of(args);
    let (splits, _) = s.splits();
    let dq = args.slice_mut::<f32>(6);
    let elements = dq.len();
    let dq = Ptr::new(dq);
    let partial = if splits > 1 { Ptr::new(args.slice_mut::<f32>(9)) } else { dq };
    let (dk, dv) = (Ptr::new(args.slice_mut::<f32>(7)), Ptr::new(args.slice_mut::<f32>(8)));
    tasks(s.pairs() * splits, s.work(), |task| {
        let (pair, split) = (task / splits, task % splits);
        // SAFETY: `elements` for each split.
        let dq = Ptr::from_raw(unsafe { partial.raw().add(split * elements) });
        backward_keys(args, &s, pair, split, dq, dk, dv);
    });
    if splits > 1 {
        ranges(elements, 16, |start, end| {
            // SAFETY: one range a task; the partial sums are complete.
            let sum = unsafe { dq.part(start, end - start) };
            sum.fill(0.0);
            for i in 0..splits {
                // SAFETY: as above.
                let part = unsafe { partial.part(i * elements + start, end - start) };
                sum.iter_mut().zip(part).for_each(|(s, v)| *s += *v);
            }
        });
    }
}

/// One head's dk and dv of piece `split` of the keys, and what these keys add to dq.
fn backward_keys(args: &Args, s: &Sizes, pair: usize, split: usize, dq: Ptr<f32>, dk: Ptr<f32>, dv: Ptr<f32>) {
    let scale = args.float(6);
    let head = |i: usize, rows: usize, width: usize| Head::of(args.slice::<f32>(i), pair, s.heads, rows, width);
    let (q, k, v) = (head(0, s.queries, s.d), head(1, s.keys, s.d), head(2, s.keys, s.dv));
    let (y, dy) = (head(3, s.queries, s.dv), head(5, s.queries, s.dv));
    let lse = &args.slice::<f32>(4)[pair * s.queries..(pair + 1) * s.queries];
    let (sample, column) = (pair / s.heads, pair % s.heads);
    let (block, rows) = (s.key_block(), s.block(QUERIES_BACK).min(s.queries));
    let (start, end) = (split * s.splits().1 * block, ((split + 1) * s.splits().1 * block).min(s.keys));
    let lengths = [
        block * s.d,
        block * s.dv,
        block * s.d.next_multiple_of(PANEL),
        block * s.d,
        block * s.dv,
        rows * (s.d + PAD),
        rows * (s.dv + PAD),
        block * rows,
        block * rows,
        (block + PAD) * rows,
        rows,
    ];
    with_pieces(lengths, |[kt, vt, kr, dkt, dvt, qb, dyb, weights, slopes, by_row, delta]| {
        for key in (start..end).step_by(block) {
            let keys = block.min(end - key);
            let panels = keys.div_ceil(PANEL);
            pack_cols(k.from(key), k.stride, keys, s.d, kt);
            pack_cols(v.from(key), v.stride, keys, s.dv, vt);
            let kr = &mut kr[..keys * s.d.next_multiple_of(PANEL)];
            pack_rows(k.from(key), k.stride, s.d, kr);
            kr.iter_mut().for_each(|v| *v *= scale);
            for query in (0..s.queries).step_by(rows) {
                let count = rows.min(s.queries - query);
                q.copy(query, count, scale, qb);
                dy.copy(query, count, 1.0, dyb);
                dots(dy, y, query, &mut delta[..count]);
                let again = query > 0;
                // Panels of 16 keys, a row for each query, `rows` rows apart.
                let right = |a: &[f32], width: usize, b: &[f32], c: &mut [f32]| {
                    let a = Left::Rows { a: a.as_ptr(), stride: width + PAD };
                    let (b_panel, c_panel) = (width * PANEL, rows * PANEL);
                    let tiles = Tiles { a, b: b.as_ptr(), b_panel, c: c.as_mut_ptr(), c_row: PANEL, c_panel };
                    // SAFETY: `count` rows of A, `panels` panels of B and of C.
                    unsafe { tiles.run([count, panels * PANEL, width], false) };
                };
                right(qb, s.d, kt, weights);
                right(dyb, s.dv, vt, slopes);
                for p in 0..panels {
                    let panel = p * rows * PANEL..(p * rows + count) * PANEL;
                    let by_row = &mut by_row[p * PANEL..];
                    let (weights, slopes) = (&mut weights[panel.clone()], &mut slopes[panel]);
                    slopes_of(weights, slopes, &lse[query..query + count], &delta[..count], by_row, block + PAD);
                }
                // Transposed sums over the queries: `[width, keys]` in panels.
                let left = |a: &[f32], width: usize, b: &[f32], c: &mut [f32]| {
                    let a = Left::Columns { a: a.as_ptr(), stride: width + PAD };
                    let (b_panel, c_panel) = (rows * PANEL, width * PANEL);
                    let tiles = Tiles { a, b: b.as_ptr(), b_panel, c: c.as_mut_ptr(), c_row: PANEL, c_panel };
                    // SAFETY: as above.
                    unsafe { tiles.run([width, panels * PANEL, count], again) };
                };
                left(dyb, s.dv, weights, dvt);
                left(qb, s.d, slopes, dkt);
                let tiles = Tiles {
                    a: Left::Rows { a: by_row.as_ptr(), stride: block + PAD },
                    b: kr.as_ptr(),
                    b_panel: keys * PANEL,
                    // SAFETY: these queries' part of this head in this task's own dq.
                    c: unsafe { dq.raw().add(((sample * s.queries + query) * s.heads + column) * s.d) },
                    c_row: s.heads * s.d,
                    c_panel: PANEL,
                };
                // SAFETY: `count` rows of A with `keys` columns, as many rows of B; C as above.
                unsafe { tiles.run([count, s.d, keys], key > start) };
            }
            for i in 0..keys {
                let row = (sample * s.keys + key + i) * s.heads + column;
                // SAFETY: this key's part of this head.
                let (dk, dv) = unsafe { (dk.part(row * s.d, s.d), dv.part(row * s.dv, s.dv)) };
                dk.iter_mut()
                    .zip(dkt[i / PANEL * s.d * PANEL + i % PANEL..].iter().step_by(PANEL))
                    .for_each(|(o, v)| *o = *v);
                dv.iter_mut()
                    .zip(dvt[i / PANEL * s.dv * PANEL + i % PANEL..].iter().step_by(PANEL))
                    .for_each(|(o, v)| *o = *v);
            }
        }
    });
}

simd! {
    /// The products of rows of x with rows of y, from row `first` on.
    fn dots(x: Head, y: Head, first: usize, out: &mut [f32]) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = dot(x.row(first + i), y.row(first + i));
        }
    }
}

simd! {
    /// One panel of 16 keys, a line for each query: scores → P = exp(score − lse), dP → dS = P·(dP − delta), which also goes
    /// to `by_row`, whose rows are `stride` apart.
    fn slopes_of(weights: &mut [f32], slopes: &mut [f32], lse: &[f32], delta: &[f32], by_row: &mut [f32], stride: usize) {
        let lines = weights.as_chunks_mut::<PANEL>().0.iter_mut().zip(slopes.as_chunks_mut::<PANEL>().0).zip(lse).zip(delta);
        for ((((weights, slopes), lse), delta), by_row) in lines.zip(by_row.chunks_mut(stride)) {
            for i in 0..PANEL {
                weights[i] = exp(weights[i] - lse);
                slopes[i] = weights[i] * (slopes[i] - delta);
            }
            by_row[..PANEL].copy_from_slice(slopes);
        }
    }
}
