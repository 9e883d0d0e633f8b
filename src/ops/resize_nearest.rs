//! Nearest-neighbour resizing of NHWC images to any size.

use super::lines::{self, by_pack, by_unit, divisor};
use super::{expect_inputs, expect_real};
use crate::cpu::threads::{Ptr, stretches, tasks};
use crate::graph::{Arg, Args, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, WgpuTarget, ptx, wgsl};
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// x `[B, H, W, C]` → y `[B, height, width, C]`, y[o, p] = x[⌊o·H/height⌋, ⌊p·W/width⌋]: PyTorch's `nearest` (whose division
/// is in f32; here it is exact).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResizeNearest {
    pub height: usize,
    pub width: usize,
}

/// The sides of an image.
fn sides(op: &str, what: &str, ty: &TensorType) -> Result<[usize; 4]> {
    expect_real(op, what, ty)?;
    match ty.shape[..] {
        [b, h, w, c] if h > 0 && w > 0 => Ok([b, h, w, c]),
        _ => Err(Error::shape(op, format!("{what} must be [B, H, W, C], is {ty}"))),
    }
}

/// A launch of a shader of `lib/line` over an output `[B, H, W, C]`. Its first scalar is the number of lines.
fn by_line(shader: Shader, target: &WgpuTarget, out: &[usize]) -> Launch {
    let (lines, line) = (out[0] * out[1], out[2] * out[3]);
    Launch::wgsl(shader, target.grid(lines * line.div_ceil(1024)), [Arg::Input(0), Arg::Output(0)]).scalar(lines)
}

impl Op for ResizeNearest {
    fn name(&self) -> &'static str {
        "resize_nearest"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        let [b, _, _, c] = sides(self.name(), "x", inputs[0])?;
        Ok(vec![inputs[0].with_shape([b, self.height, self.width, c])])
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        let shape = g.shape(node.inputs[0]);
        let op = ResizeNearestGrad { height: shape[1], width: shape[2] };
        Ok(vec![Some(g.apply(op, &[dy])?)])
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        target.stores(dtype)
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let launch = match target {
            Target::Cuda(_) => {
                let (x, y) = (&io.inputs[0], &io.outputs[0]);
                let unit = lines::unit(x.dtype, [x.cols()]);
                let args = [Arg::Input(0), Arg::Output(0)];
                let launch = by_unit(self.name(), ptx!("resize_nearest"), unit, y.bytes(), args);
                let launch = launch.scalars([x.shape[1], x.shape[2]]);
                let sizes = [x.cols() * x.dtype.size() / unit, self.height, self.width];
                return Ok(vec![launch.scalars(sizes.map(divisor).into_iter().flatten())]);
            }
            Target::Cpu => Launch::cpu(self.name(), kernel, 1, 1),
            Target::Wgpu(target) => {
                let text = wgsl!(io.inputs[0].dtype; "lib/line", "resize_nearest");
                by_line(Shader::new(self.name(), text), target, &io.outputs[0].shape)
            }
        };
        let x = &io.inputs[0].shape;
        Ok(vec![launch.scalars([x[1], x[2], x[3], self.height, self.width])])
    }
}

fn kernel(args: &Args) {
    let [h, w, c, height, width] = [0, 1, 2, 3, 4].map(|i| args.int(i));
    let x = args.slice::<f32>(0);
    // Stretches are of one output line, seen as pixels.
    stretches(args.slice_mut(1), width * c, |row, col, part| {
        let line = row / height * h + row % height * h / height;
        let line = &x[line * w * c..][..w * c];
        let (mut at, mut to) = (col, part);
        while !to.is_empty() {
            let (pixel, channel) = (at / c, at % c);
            let len = (c - channel).min(to.len());
            let (out, rest) = to.split_at_mut(len);
            out.copy_from_slice(&line[pixel * w / width * c + channel..][..len]);
            (at, to) = (at + len, rest);
        }
    });
}

/// dx of [`ResizeNearest`]: dy → `[B, height, width, C]`, the sum over the pixels that each one went to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResizeNearestGrad {
    pub height: usize,
    pub width: usize,
}

impl Op for ResizeNearestGrad {
    fn name(&self) -> &'static str {
        "resize_nearest_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        let [b, h, w, c] = sides(self.name(), "dy", inputs[0])?;
        if self.height == 0 || self.width == 0 {
            return Err(Error::shape(self.name(), format!("{h}×{w} pixels do not come from {self:?}")));
        }
        Ok(vec![inputs[0].with_shape([b, self.height, self.width, c])])
    }

    fn takes(&self, _: DType, target: &Target) -> bool {
        matches!(target, Target::Cuda(_))
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let launch = match target {
            Target::Cuda(_) => {
                let (dy, dx) = (&io.inputs[0].shape, &io.outputs[0]);
                let kernel = Ptx::new(self.name(), ptx!("resize_nearest_grad"), dx.dtype);
                let args = [Arg::Input(0), Arg::Output(0)];
                let launch = by_pack(kernel, dx.dtype, dx.elements(), dx.cols(), args);
                let launch = launch.scalars([dy[1], dy[2]]);
                return Ok(vec![launch.scalars([self.height, self.width].map(divisor).into_iter().flatten())]);
            }
            Target::Cpu => Launch::cpu(self.name(), grad_kernel, 1, 1),
            Target::Wgpu(target) => by_line(
                Shader::new(self.name(), wgsl!("lib/line", "resize_nearest_grad")),
                target,
                &io.outputs[0].shape,
            ),
        };
        let dy = &io.inputs[0].shape;
        Ok(vec![launch.scalars([dy[1], dy[2], dy[3], self.height, self.width])])
    }
}

fn grad_kernel(args: &Args) {
    let [h, w, c, height, width] = [0, 1, 2, 3, 4].map(|i| args.int(i));
    let (dy, out) = (args.slice::<f32>(0), args.slice_mut::<f32>(1));
    let (rows, work) = (out.len() / (width * c).max(1), dy.len().max(out.len()));
    let out = Ptr::new(out);
    // Pixel i of n goes to those from ⌈i·m/n⌉ up to, not including, ⌈(i + 1)·m/n⌉ of m.
    let covered = |i: usize, n: usize, m: usize| (i * m).div_ceil(n)..((i + 1) * m).div_ceil(n);
    tasks(rows, work, |row| {
        // SAFETY: one line of pixels a task.
        let out = unsafe { out.part(row * width * c, width * c) };
        out.fill(0.0);
        for y in covered(row % height, height, h) {
            let line = &dy[(row / height * h + y) * w * c..][..w * c];
            for (p, out) in out.chunks_exact_mut(c.max(1)).enumerate() {
                for x in covered(p, width, w) {
                    out.iter_mut().zip(&line[x * c..][..c]).for_each(|(o, d)| *o += d);
                }
            }
        }
    });
}
