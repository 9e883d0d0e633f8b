//! What a tensor is, without its data: dtype, shape, layout.

use std::fmt;

/// Element types. Sums, norms and latents are `F32` everywhere; the others are storage.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DType {
    F32,
    F16,
    Bf16,
    /// Class labels, indices, random seeds.
    I32,
}

impl DType {
    /// Bytes an element takes.
    pub fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::Bf16 => 2,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::I32 => "i32",
        })
    }
}

/// Columns in one panel of [`Layout::Panels`].
pub const PANEL: usize = 16;

/// How the elements of a tensor lie in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Layout {
    /// Row-major, the last dimension contiguous.
    #[default]
    Plain,
    /// A weight matrix `[K, N]` (every dimension but the last is K) cut into panels of 16 columns: `[⌈N/16⌉, K, 16]`, the
    /// columns beyond N zero. A GEMM reads it without packing, and optimisers need not know of it.
    Panels,
}

/// Dtype, shape and layout of a tensor.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TensorType {
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub layout: Layout,
}

impl TensorType {
    /// A row-major f32 tensor.
    pub fn f32(shape: impl Into<Vec<usize>>) -> Self {
        TensorType { dtype: DType::F32, shape: shape.into(), layout: Layout::Plain }
    }

    /// A row-major i32 tensor.
    pub fn i32(shape: impl Into<Vec<usize>>) -> Self {
        TensorType { dtype: DType::I32, shape: shape.into(), layout: Layout::Plain }
    }

    /// A weight matrix in panels, see [`Layout::Panels`]. The last dimension of `shape` is N.
    pub fn panels(shape: impl Into<Vec<usize>>) -> Self {
        TensorType { dtype: DType::F32, shape: shape.into(), layout: Layout::Panels }
    }

    /// Same dtype, another shape, row-major.
    pub fn with_shape(&self, shape: impl Into<Vec<usize>>) -> Self {
        TensorType { dtype: self.dtype, shape: shape.into(), layout: Layout::Plain }
    }

    /// Number of elements, padding not counted.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of elements in memory, padding counted.
    pub fn stored(&self) -> usize {
        match self.layout {
            Layout::Plain => self.elements(),
            Layout::Panels => self.rows() * self.cols().next_multiple_of(PANEL),
        }
    }

    /// Bytes in memory, padding counted.
    pub fn bytes(&self) -> usize {
        self.stored() * self.dtype.size()
    }

    /// The last dimension; 1 for a scalar.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The product of every dimension but the last.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len().saturating_sub(1)].iter().product()
    }

    /// Where element (row, col) of the matrix `[rows, cols]` lies, in elements.
    pub fn index(&self, row: usize, col: usize) -> usize {
        match self.layout {
            Layout::Plain => row * self.cols() + col,
            Layout::Panels => (col / PANEL) * self.rows() * PANEL + row * PANEL + col % PANEL,
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)?;
        if self.layout == Layout::Panels { f.write_str("/panels") } else { Ok(()) }
    }
}

/// Rearranges a row-major `[rows, cols]` matrix into the layout of `ty`; `out` has `ty.stored()` elements.
pub fn to_layout(ty: &TensorType, plain: &[f32], out: &mut [f32]) {
    match ty.layout {
        Layout::Plain => out.copy_from_slice(plain),
        Layout::Panels => {
            let (rows, cols) = (ty.rows(), ty.cols());
            for (panel, chunk) in out.chunks_exact_mut(rows * PANEL).enumerate() {
                let width = (cols - panel * PANEL).min(PANEL);
                for (row, line) in chunk.chunks_exact_mut(PANEL).enumerate() {
                    let from = row * cols + panel * PANEL;
                    line[..width].copy_from_slice(&plain[from..from + width]);
                    line[width..].fill(0.0);
                }
            }
        }
    }
}

/// The inverse of [`to_layout`].
pub fn from_layout(ty: &TensorType, stored: &[f32]) -> Vec<f32> {
    match ty.layout {
        Layout::Plain => stored.to_vec(),
        Layout::Panels => {
            let (rows, cols) = (ty.rows(), ty.cols());
            let mut plain = vec![0.0; rows * cols];
            for (panel, chunk) in stored.chunks_exact(rows * PANEL).enumerate() {
                let width = (cols - panel * PANEL).min(PANEL);
                for (row, line) in chunk.chunks_exact(PANEL).enumerate() {
                    let to = row * cols + panel * PANEL;
                    plain[to..to + width].copy_from_slice(&line[..width]);
                }
            }
            plain
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_round_trip_and_pad_with_zeros() {
        for (rows, cols) in [(3, 5), (4, 16), (2, 33), (1, 1)] {
            let ty = TensorType::panels([rows, cols]);
            let plain: Vec<f32> = (0..rows * cols).map(|i| i as f32 + 1.0).collect();
            let mut stored = vec![f32::NAN; ty.stored()];
            to_layout(&ty, &plain, &mut stored);
            assert_eq!(from_layout(&ty, &stored), plain);
            assert_eq!(stored[ty.index(rows - 1, cols - 1)], plain[rows * cols - 1]);
            assert_eq!(stored.iter().filter(|v| **v == 0.0).count(), ty.stored() - rows * cols);
        }
    }
}
