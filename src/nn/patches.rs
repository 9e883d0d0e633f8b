//! What diffusion transformers do around their blocks: an image becomes a sequence of patches, and the other way round.

use super::layers::{Builder, Layer, Window};
use crate::graph::Value;
use crate::ops::{Broadcast, Padding, Permute};
use crate::tensor::TensorType;
use crate::{Error, Result};

/// The most elements of the position table: 1 GiB.
const MAX_POSITIONS: usize = 1 << 28;

/// How an image is cut.
#[derive(Clone, Copy, Debug)]
pub struct Patches {
    /// Height and width of a patch.
    pub patch: usize,
    /// Width of the sequence's rows, a multiple of 4.
    pub width: usize,
    /// Patches along a side of the images that the model was trained at.
    pub base: usize,
}

impl Patches {
    /// Patches along both sides.
    pub fn grid(&self, b: &Builder) -> Result<[usize; 2]> {
        for (what, n) in [("height", b.spec.height), ("width", b.spec.width)] {
            if n % self.patch != 0 {
                return Err(Error::invalid(what, format!("{n} is not a multiple of the patch size {}", self.patch)));
            }
        }
        let [rows, cols] = [b.spec.height / self.patch, b.spec.width / self.patch];
        if rows * cols > MAX_POSITIONS / self.width {
            return Err(Error::invalid("height", format!("{rows} × {cols} patches are too many")));
        }
        Ok([rows, cols])
    }

    /// x `[B, H, W, C]` → patches, projected, plus their positions: `[B, N, D]`
    pub fn embed(&self, b: &mut Builder, x: Value, [rows, cols]: [usize; 2]) -> Result<Value> {
        let (batch, n) = (b.spec.batch, rows * cols);
        let table = b.graph.constant(TensorType::f32([rows, cols, self.width]), self.positions([rows, cols]))?;
        let spread = Broadcast::rows(batch, b.graph.ty(table));
        let table = b.graph.apply(spread, &[table])?;
        let window = Window { kernel: [self.patch; 2], stride: self.patch, padding: Padding::default() };
        let x = b.conv("proj", x, window, Layer::new(self.width).residual(table, 1.0))?;
        b.reshape(x, [batch, n, self.width])
    }

    /// Fixed positions `[rows, cols, width]`: a quarter each of sin and cos of the column, then of the row, both counted in
    /// the grid that the model was trained at.
    pub fn positions(&self, [rows, cols]: [usize; 2]) -> Vec<f32> {
        let quarter = self.width / 4;
        let frequency = |j: usize| 10_000f64.powf(-(j as f64) / quarter as f64);
        let scaled = |i: usize, n: usize| (i as f64 * self.base as f64 / n as f64) as f32 as f64;
        let mut table = Vec::with_capacity(rows * cols * self.width);
        for row in 0..rows {
            for col in 0..cols {
                for at in [scaled(col, cols), scaled(row, rows)] {
                    table.extend((0..quarter).map(|j| (at * frequency(j)).sin() as f32));
                    table.extend((0..quarter).map(|j| (at * frequency(j)).cos() as f32));
                }
            }
        }
        table
    }

    /// `[B, rows·cols, p·p·C]` → `[B, rows·p, cols·p, C]`
    pub fn join(&self, b: &mut Builder, x: Value, [rows, cols]: [usize; 2], channels: usize) -> Result<Value> {
        let (batch, p) = (b.spec.batch, self.patch);
        let x = b.reshape(x, [batch, rows, cols, p, p, channels])?;
        let x = b.graph.apply(Permute(vec![0, 1, 3, 2, 4, 5]), &[x])?;
        b.reshape(x, [batch, rows * p, cols * p, channels])
    }
}
