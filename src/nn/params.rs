//! Parameters: how a tensor of a public file becomes a tensor of the arena, and back.

use crate::tensor::{DType, Layout, PANEL, TensorType};
use crate::{Error, Result};
use half::{bf16, f16};
use rayon::prelude::*;

/// How the elements of a file's tensor are ordered in the arena.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Import {
    /// As they are: biases, gains, embedding tables.
    Plain,
    /// A matrix `[N, K]` (or a 1×1 convolution `[N, K, 1, 1]`) → `[K, N]`.
    Transpose,
    /// A convolution `[O, I, k₀, k₁]` → `[k₀·k₁, I, O]`.
    Conv,
    /// The weight `[3·C, K, 1, 1]` or bias `[3·C]` of EDM's attention, whose rows are interleaved: within a head, row
    /// 3·c + j belongs to q, k, v for j = 0, 1, 2 → columns q | k | v.
    Qkv { heads: usize },
    /// A matrix `[N, K]` of each of E experts, a tensor each → `[E, K, N]`, see [`Parameter::tensors`].
    Experts,
}

/// What a parameter is before training, where it is not read from a file.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Init {
    Zeros,
    Ones,
    /// Uniform in ±bound.
    Uniform(f32),
    /// Normal with this standard deviation.
    Normal(f32),
}

/// A weight of a network: its public name and shape, its place's type in the arena, and the way between them.
#[derive(Clone, PartialEq, Debug)]
pub struct Parameter {
    /// The name in the safetensors file: `down_blocks.0.resnets.0.conv1.weight`. That of all experts' weights has a `*` in the
    /// place of the expert's number: `blocks.0.moe.experts.*.up_proj.weight`.
    pub name: String,
    /// The shape in the file; `[E, N, K]` for the weights of E experts.
    pub shape: Vec<usize>,
    /// The type in the arena.
    pub ty: TensorType,
    pub import: Import,
    pub init: Init,
    /// False for random frequencies that are drawn once and never trained.
    pub trainable: bool,
}

impl Parameter {
    /// Number of elements in the file.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The names of the file's tensors that hold it, one after the other: its own, or one for each expert.
    pub fn tensors(&self) -> Vec<String> {
        match self.import {
            Import::Experts => (0..self.shape[0]).map(|e| self.name.replacen('*', &e.to_string(), 1)).collect(),
            _ => vec![self.name.clone()],
        }
    }

    /// The shape of each of [`Parameter::tensors`].
    pub fn tensor_shape(&self) -> &[usize] {
        if self.import == Import::Experts { &self.shape[1..] } else { &self.shape }
    }

    /// True if a tensor of that shape holds this parameter, or one expert's part of it: the same shape, or one that differs in dimensions of size 1
    /// only (files disagree on whether a 1×1 convolution is `[N, K]` or `[N, K, 1, 1]`).
    pub fn accepts(&self, shape: &[usize]) -> bool {
        let kept = |s: &[usize]| s.iter().copied().filter(|n| *n != 1).collect::<Vec<_>>();
        kept(shape) == kept(self.tensor_shape())
    }

    /// The name under which files written before diffusers 0.12 hold it, if that differs:
    /// attention blocks had `query`, `key`, `value`, `proj_attn`.
    pub fn former_name(&self) -> Option<String> {
        const RENAMED: [(&str, &str); 4] =
            [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")];
        let (new, old) = RENAMED.iter().find(|(new, _)| self.name.contains(new))?;
        Some(self.name.replace(new, old))
    }

    /// Where the element at (row, col) of the arena's matrix `[rows, cols]` stands in the file.
    fn source(&self, row: usize, col: usize) -> usize {
        let (rows, cols) = (self.ty.rows(), self.ty.cols());
        match self.import {
            Import::Plain => row * cols + col,
            Import::Transpose => col * rows + row,
            Import::Conv => {
                let [_, inputs, kh, kw] = self.shape[..] else { return row * cols + col };
                (col * inputs + row % inputs) * kh * kw + row / inputs
            }
            Import::Qkv { heads } => {
                let channels = cols / 3;
                let per_head = channels / heads;
                let (which, c) = (col / channels, col % channels);
                let from = c / per_head * 3 * per_head + 3 * (c % per_head) + which;
                from * rows + row
            }
            Import::Experts => {
                let k = rows / self.shape[0];
                (row / k * cols + col) * k + row % k
            }
        }
    }

    /// File order → arena order. `file` has [`Parameter::elements`] numbers, `out` as many as `ty` stores.
    pub fn to_arena<T: Copy + Default + Send + Sync>(&self, file: &[T], out: &mut [T]) {
        let (rows, cols) = (self.ty.rows(), self.ty.cols());
        match self.ty.layout {
            Layout::Plain => {
                for (i, v) in out.iter_mut().enumerate() {
                    *v = file[self.source(i / cols, i % cols)];
                }
            }
            Layout::Panels => out.par_chunks_mut((rows * PANEL).max(1)).enumerate().for_each(|(panel, chunk)| {
                let lanes = PANEL.min(cols - panel * PANEL);
                let starts: [usize; PANEL] = std::array::from_fn(|l| self.source(0, (panel * PANEL + l).min(cols - 1)));
                // Along a column the file's index grows by the same steps whatever the column. Rows go in the file's order.
                let taps =
                    if let (Import::Conv, [_, _, kh, kw]) = (self.import, &self.shape[..]) { kh * kw } else { 1 };
                for row in (0..rows / taps).flat_map(|i| (0..taps).map(move |tap| tap * (rows / taps) + i)) {
                    let step = self.source(row, 0) - self.source(0, 0);
                    let line = &mut chunk[row * PANEL..(row + 1) * PANEL];
                    for (v, start) in line.iter_mut().zip(&starts[..lanes]) {
                        *v = file[start + step];
                    }
                    line[lanes..].fill(T::default());
                }
            }),
        }
    }

    /// File order → the bytes of its place in the arena, in the type that it has there.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if it holds a number that f16 cannot hold and is stored so.
    pub fn write(&self, file: &[f32], place: &mut [u8]) -> Result<()> {
        match self.ty.dtype {
            DType::F16 => return self.write_f16(file, place),
            DType::Bf16 => {
                let short: Vec<bf16> = file.par_iter().map(|v| bf16::from_f32(*v)).collect();
                self.to_arena(&short, bytemuck::cast_slice_mut(place));
            }
            DType::F32 | DType::I32 => self.to_arena(file, bytemuck::cast_slice_mut(place)),
        }
        Ok(())
    }

    fn write_f16(&self, file: &[f32], place: &mut [u8]) -> Result<()> {
        let short: Vec<f16> = file.par_iter().map(|v| f16::from_f32(*v)).collect();
        if let Some(i) = short.par_iter().zip(file).position_first(|(short, v)| short.is_infinite() && v.is_finite()) {
            let what = format!("`{}` in f16", self.name);
            return Err(Error::unsupported(what, format!("it holds {}, f16 ends at 65504; take f32", file[i])));
        }
        self.to_arena(&short, bytemuck::cast_slice_mut(place));
        Ok(())
    }

    /// Arena order → file order, the inverse of [`Parameter::to_arena`].
    pub fn from_arena(&self, stored: &[f32]) -> Vec<f32> {
        let (rows, cols) = (self.ty.rows(), self.ty.cols());
        let mut file = vec![0.0; self.elements()];
        for col in 0..cols {
            for row in 0..rows {
                file[self.source(row, col)] = stored[self.ty.index(row, col)];
            }
        }
        file
    }
}

/// A tensor that the public file holds although it follows from the configuration (resampling filters): read over,
/// written back.
#[derive(Clone, PartialEq, Debug)]
pub struct FixedTensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

/// `[B, C, H, W]` → `[B, H, W, C]`; `shape` is that of the input.
pub fn nchw_to_nhwc(x: &[f32], shape: [usize; 4]) -> Vec<f32> {
    let [b, c, h, w] = shape;
    swap_inner(x, b, c, h * w)
}

/// `[B, H, W, C]` → `[B, C, H, W]`; `shape` is that of the input.
pub fn nhwc_to_nchw(x: &[f32], shape: [usize; 4]) -> Vec<f32> {
    let [b, h, w, c] = shape;
    swap_inner(x, b, h * w, c)
}

/// `[batch, rows, cols]` → `[batch, cols, rows]`
fn swap_inner(x: &[f32], batch: usize, rows: usize, cols: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for image in x.chunks_exact((rows * cols).max(1)).take(batch) {
        for col in 0..cols {
            out.extend((0..rows).map(|row| image[row * cols + col]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameter(shape: &[usize], ty: TensorType, import: Import) -> Parameter {
        let (name, init) = ("block.to_q.weight".to_string(), Init::Zeros);
        Parameter { name, shape: shape.to_vec(), ty, import, init, trainable: true }
    }

    #[test]
    fn imports_invert_exactly() {
        let cases = [
            parameter(&[5], TensorType::f32([5]), Import::Plain),
            parameter(&[4, 3], TensorType::f32([4, 3]), Import::Plain),
            parameter(&[4, 3], TensorType::f32([3, 4]), Import::Transpose),
            parameter(&[18, 3], TensorType::panels([3, 18]), Import::Transpose),
            parameter(&[18, 3, 1, 1], TensorType::panels([3, 18]), Import::Transpose),
            parameter(&[5, 7, 3, 3], TensorType::panels([9, 7, 5]), Import::Conv),
            parameter(&[24, 5, 1, 1], TensorType::panels([5, 24]), Import::Qkv { heads: 2 }),
            parameter(&[3, 18, 5], TensorType::panels([3, 5, 18]), Import::Experts),
            parameter(&[24], TensorType::f32([24]), Import::Qkv { heads: 4 }),
        ];
        for p in cases {
            let file: Vec<f32> = (0..p.elements()).map(|i| i as f32 + 1.0).collect();
            let mut stored = vec![f32::NAN; p.ty.stored()];
            p.to_arena(&file, &mut stored);
            assert_eq!(p.from_arena(&stored), file, "{p:?}");
            assert_eq!(stored.iter().filter(|v| **v == 0.0).count(), p.ty.stored() - p.elements(), "{p:?}");
        }
    }

    #[test]
    fn conv_and_qkv_weights_land_where_the_kernels_look() {
        let conv = parameter(&[2, 3, 3, 3], TensorType::panels([9, 3, 2]), Import::Conv);
        let file: Vec<f32> = (0..54).map(|i| i as f32).collect();
        let mut stored = vec![0.0; conv.ty.stored()];
        conv.to_arena(&file, &mut stored);
        // Output 1, input 2, tap (1, 0).
        assert_eq!(stored[conv.ty.index(3 * 3 + 2, 1)], ((3 + 2) * 9 + 3) as f32);

        let bias = parameter(&[12], TensorType::f32([12]), Import::Qkv { heads: 2 });
        let file: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let mut stored = vec![0.0; 12];
        bias.to_arena(&file, &mut stored);
        assert_eq!(stored, [0., 3., 6., 9., 1., 4., 7., 10., 2., 5., 8., 11.]);
    }

    #[test]
    fn experts_have_a_tensor_each() {
        let ty = TensorType::panels([2, 3, 4]);
        let p = Parameter { name: "experts.*.up.weight".into(), ..parameter(&[2, 4, 3], ty, Import::Experts) };
        assert_eq!(p.tensors(), ["experts.0.up.weight", "experts.1.up.weight"]);
        assert!(p.accepts(&[4, 3]) && !p.accepts(&[2, 4, 3]));
        let file: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let mut stored = vec![0.0; p.ty.stored()];
        p.to_arena(&file, &mut stored);
        // Expert 1, output 3, input 2.
        assert_eq!(stored[p.ty.index(3 + 2, 3)], (12 + 3 * 3 + 2) as f32);
    }

    #[test]
    fn weights_are_written_in_the_arenas_type() {
        let ty = TensorType { dtype: DType::F16, ..TensorType::panels([3, 2]) };
        let p = parameter(&[2, 3], ty, Import::Transpose);
        let mut place = vec![0xFF; p.ty.bytes()];
        p.write(&[1.0, 2.0, 3.0, -0.5, 1e-9, f32::INFINITY], &mut place).unwrap();
        let stored: &[f16] = bytemuck::cast_slice(&place);
        assert_eq!([0, 1, 2].map(|row| stored[p.ty.index(row, 0)].to_f32()), [1.0, 2.0, 3.0]);
        assert_eq!([0, 1, 2].map(|row| stored[p.ty.index(row, 1)].to_f32()), [-0.5, 0.0, f32::INFINITY]);
        let refused = p.write(&[1.0, 7e4, 3.0, 4.0, 5.0, 6.0], &mut place).unwrap_err().to_string();
        assert!(["block.to_q.weight", "70000", "65504"].iter().all(|w| refused.contains(w)), "{refused}");
    }

    #[test]
    fn shapes_and_former_names() {
        let p = parameter(&[18, 3], TensorType::panels([3, 18]), Import::Transpose);
        assert!(p.accepts(&[18, 3, 1, 1]) && !p.accepts(&[3, 18]));
        assert_eq!(p.former_name().as_deref(), Some("block.query.weight"));
    }

    #[test]
    fn images_turn_and_turn_back() {
        let x: Vec<f32> = (0..2 * 3 * 4 * 5).map(|i| i as f32).collect();
        let nhwc = nchw_to_nhwc(&x, [2, 3, 4, 5]);
        assert_eq!(nhwc[..3], [0.0, 20.0, 40.0]);
        assert_eq!(nhwc_to_nchw(&nhwc, [2, 4, 5, 3]), x);
    }
}
