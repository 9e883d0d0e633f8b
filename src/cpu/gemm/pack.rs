//! Right-hand sides in panels of 16 columns.

use crate::tensor::PANEL;

/// Packs row-major `[rows, n]` with row stride `stride` into panels `[⌈n/16⌉, rows, 16]`, zeros beyond column n.
pub fn pack_rows(x: &[f32], stride: usize, n: usize, out: &mut [f32]) {
    let rows = out.len() / n.next_multiple_of(PANEL);
    pack_panels(x, stride, [rows, n], rows, out);
}

/// [`pack_rows`] into panels whose starts are `pitch` rows apart.
pub(super) fn pack_panels(x: &[f32], stride: usize, [rows, n]: [usize; 2], pitch: usize, out: &mut [f32]) {
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
