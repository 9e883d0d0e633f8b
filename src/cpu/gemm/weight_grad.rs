//! Gradients of weights.

use super::pack::pack_panels;
use super::{Left, Rows, Tiles, with_buffers};
use crate::cpu::simd::level;
use crate::cpu::threads::{Ptr, tasks};
use crate::tensor::PANEL;

/// Rows of dy in one block of the weight gradient: a panel of them is 16 KiB of L1.
const GRAD_BLOCK: usize = 256;
/// Packed panels and tiles of the weight gradient start this many rows further apart than they are deep, so that what is written
/// to all of them in turn does not share cache sets.
const GRAD_PAD: usize = 4;
/// Columns of dy in a task of the weight gradient: 256 packed rows of them are half of the smallest L2 in use.
const GRAD_COLUMNS: usize = 256;
/// Channels of a piece of the weight gradient: packed, an eighth of that L2.
const GRAD_CHANNELS: usize = 64;

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
