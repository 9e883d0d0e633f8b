//! What the poolings share: windows over NHWC images, and which pixels lie under which window.

use super::lines::{by_pack, divisor};
use super::{Padding, expect_inputs, expect_real};
use crate::graph::{Arg, Args, FLAT_GROUP, Launch, Ptx, Shader, WgpuTarget};
use crate::tensor::TensorType;
use crate::{Error, Result};
use std::ops::Range;

/// A window that slides over an image: x `[B, H, W, C]` → `[B, H', W', C]`, H' = ⌊(H + top + bottom − k₀)/stride⌋ + 1, W'
/// likewise with k₁. Padding is less than the kernel on every side, so that each window holds a pixel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PoolWindow {
    /// Rows and columns.
    pub kernel: [usize; 2],
    pub stride: usize,
    pub padding: Padding,
}

impl PoolWindow {
    /// A square kernel without padding.
    pub fn valid(kernel: usize, stride: usize) -> Self {
        PoolWindow { kernel: [kernel; 2], stride, padding: Padding::default() }
    }

    /// An odd square kernel that keeps the size.
    pub fn same(kernel: usize) -> Self {
        PoolWindow { kernel: [kernel; 2], stride: 1, padding: Padding::same(kernel / 2) }
    }

    /// The window over images of type x.
    pub(crate) fn over(&self, op: &str, x: &TensorType) -> Result<Pooling> {
        expect_real(op, "x", x)?;
        let [_, height, width, channels] = x.shape[..] else {
            return Err(Error::shape(op, format!("x must be [B, H, W, C], is {x}")));
        };
        let (p, [rows, cols]) = (self.padding, self.kernel);
        let size = |n: usize, kernel: usize, near: usize, far: usize| {
            let valid = near < kernel && far < kernel && self.stride > 0;
            (n + near + far).checked_sub(kernel).filter(|_| valid).map(|rest| rest / self.stride + 1)
        };
        let (Some(out_height), Some(out_width)) =
            (size(height, rows, p.top, p.bottom), size(width, cols, p.left, p.right))
        else {
            return Err(Error::shape(op, format!("{self:?} does not fit {x}")));
        };
        let (size, out) = ([height, width], [out_height, out_width]);
        Ok(Pooling { size, out, channels, kernel: self.kernel, stride: self.stride, near: [p.top, p.left] })
    }

    /// The type of the output for one input.
    pub(crate) fn infer(&self, op: &str, inputs: &[&TensorType]) -> Result<TensorType> {
        expect_inputs(op, inputs, 1)?;
        let p = self.over(op, inputs[0])?;
        Ok(inputs[0].with_shape([inputs[0].shape[0], p.out[0], p.out[1], p.channels]))
    }

    /// One operation for each pixel under each window.
    pub(crate) fn flops(&self, windows: u64) -> u64 {
        windows * (self.kernel[0] * self.kernel[1]) as u64
    }

    /// Appends the window over x to a launch; read back by [`Pooling::of`].
    pub(crate) fn scalars(&self, op: &str, launch: Launch, x: &TensorType) -> Result<Launch> {
        let p = self.over(op, x)?;
        let pairs = [p.size, p.out, p.kernel, p.near].into_iter().flatten();
        Ok(launch.scalars(pairs).scalars([p.channels, p.stride]))
    }

    /// The launch of a PTX kernel that makes `made` with the window over x: windows, or pixels; `kernels/lib/pool.cuh`.
    pub(crate) fn ptx(
        &self,
        kernel: Ptx,
        x: &TensorType,
        made: &TensorType,
        args: impl IntoIterator<Item = Arg>,
    ) -> Result<Launch> {
        let p = self.over(kernel.name, x)?;
        let of = |pair: [usize; 2]| pair.into_iter().flat_map(divisor);
        let (size, read) = if made.shape[1..3] == p.size { (p.size, p.out) } else { (p.out, p.size) };
        let launch = by_pack(kernel, made.dtype, made.elements(), p.channels, args).scalars(of(size));
        Ok(launch.scalars([read, p.kernel, p.near].into_iter().flatten()).scalars(divisor(p.stride)))
    }

    /// The launch of a shader that makes `elements` numbers with the window over x, means divided by `divisor` or else by the
    /// pixels of each; `shaders/lib/pool.wgsl`.
    pub(crate) fn shader(
        &self,
        shader: Shader,
        target: &WgpuTarget,
        x: &TensorType,
        elements: usize,
        divisor: usize,
        args: impl IntoIterator<Item = Arg>,
    ) -> Result<Launch> {
        let name = shader.name;
        let launch = Launch::wgsl(shader, target.grid(elements.div_ceil(FLAT_GROUP)), args);
        Ok(self.scalars(name, launch, x)?.scalars([elements, divisor]))
    }
}

/// A window over images of a known size; pairs are (rows, columns).
pub(crate) struct Pooling {
    pub size: [usize; 2],
    pub out: [usize; 2],
    pub channels: usize,
    kernel: [usize; 2],
    stride: usize,
    /// Padding before the first row and column.
    near: [usize; 2],
}

/// How many scalars a window takes.
pub(crate) const WINDOW_SCALARS: usize = 10;

impl Pooling {
    /// The window of a running kernel, from its first scalars.
    pub fn of(args: &Args) -> Self {
        let pair = |i: usize| [args.int(2 * i), args.int(2 * i + 1)];
        let (channels, stride) = (args.int(8), args.int(9));
        Pooling { size: pair(0), out: pair(1), kernel: pair(2), near: pair(3), channels, stride }
    }

    /// Pixels under window `o` along an axis.
    #[inline(always)]
    pub fn pixels(&self, axis: usize, o: usize) -> Range<usize> {
        let (start, near) = (o * self.stride, self.near[axis]);
        start.saturating_sub(near)..(start + self.kernel[axis] - near).min(self.size[axis])
    }

    /// Windows over pixel `i` along an axis.
    #[inline(always)]
    pub fn windows(&self, axis: usize, i: usize) -> Range<usize> {
        let at = i + self.near[axis];
        let first = (at + 1).saturating_sub(self.kernel[axis]).div_ceil(self.stride);
        first..(at / self.stride + 1).min(self.out[axis])
    }

    /// Elements of one line of inputs.
    pub fn line(&self) -> usize {
        self.size[1] * self.channels
    }

    /// Elements of one line of outputs.
    pub fn out_line(&self) -> usize {
        self.out[1] * self.channels
    }
}
