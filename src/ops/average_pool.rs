//! The mean of the pixels under a window, and its gradient.

use super::expect_inputs;
use super::pool::{PoolWindow, Pooling, WINDOW_SCALARS};
use crate::cpu::threads::{Ptr, tasks};
use crate::graph::{Arg, Args, Cost, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, ptx, wgsl};
use crate::simd;
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// y = the mean of the pixels under each window, every channel by itself; padding counts as pixels of value 0 or not at all.
/// x `[B, H, W, C]` → y `[B, H', W', C]`
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AveragePool {
    pub window: PoolWindow,
    /// Divide by the size of the kernel, not by the number of pixels under it.
    pub count_padding: bool,
}

impl Op for AveragePool {
    fn name(&self) -> &'static str {
        "average_pool"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        Ok(vec![self.window.infer(self.name(), inputs)?])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: self.window.flops(io.out_elements()), bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        let shape = g.shape(node.inputs[0]).to_vec();
        Ok(vec![Some(g.apply(AveragePoolGrad { pool: *self, shape }, &[dy])?)])
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        target.stores(dtype)
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let (x, windows) = (&io.inputs[0], io.outputs[0].elements());
        Ok(vec![match target {
            Target::Cuda(_) => {
                let kernel = Ptx::new(self.name(), ptx!("average_pool"), x.dtype);
                let args = [Arg::Input(0), Arg::Output(0)];
                self.window.ptx(kernel, x, &io.outputs[0], args)?.scalar(self.fixed())
            }
            Target::Cpu => {
                let launch = Launch::cpu(self.name(), forward, 1, 1);
                self.window.scalars(self.name(), launch, x)?.scalar(self.fixed())
            }
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!(x.dtype; "lib/flat", "lib/pool", "average_pool"));
                let args = [Arg::Input(0), Arg::Output(0)];
                self.window.shader(shader, target, x, windows, self.fixed(), args)?
            }
        }])
    }
}

impl AveragePool {
    /// What every window is divided by; 0 if each by its own pixels.
    fn fixed(&self) -> usize {
        if self.count_padding { self.window.kernel[0] * self.window.kernel[1] } else { 0 }
    }
}

/// 1 / what a window over so many rows and columns of the image is divided by.
#[inline(always)]
fn weight(fixed: usize, rows: usize, cols: usize) -> f32 {
    1.0 / if fixed > 0 { fixed } else { rows * cols } as f32
}

fn forward(args: &Args) {
    let (p, fixed) = (Pooling::of(args), args.int(WINDOW_SCALARS));
    let (x, out) = (args.slice::<f32>(0), args.slice_mut::<f32>(1));
    let (image, line, work) = (p.size[0] * p.line(), p.out_line(), x.len());
    let (rows, out) = (out.len() / line.max(1), Ptr::new(out));
    tasks(rows, work, |row| {
        // SAFETY: one line of windows a task.
        let out = unsafe { out.part(row * line, line) };
        means(&x[row / p.out[0] * image..][..image], &p, fixed, row % p.out[0], out);
    });
}

simd! {
    /// Line `o` of the windows over one image.
    fn means(x: &[f32], p: &Pooling, fixed: usize, o: usize, out: &mut [f32]) {
        let (c, rows) = (p.channels, p.pixels(0, o));
        for (at, out) in out.chunks_exact_mut(c).enumerate() {
            let cols = p.pixels(1, at);
            out.fill(0.0);
            for row in rows.clone() {
                let line = &x[row * p.line()..][..p.line()];
                for pixel in line[cols.start * c..cols.end * c].chunks_exact(c) {
                    for (y, v) in out.iter_mut().zip(pixel) { *y += v; }
                }
            }
            let weight = weight(fixed, rows.len(), cols.len());
            for y in out.iter_mut() { *y *= weight; }
        }
    }
}

/// dx of [`AveragePool`]: dy → dx of `shape`, each pixel the weighted sum over the windows that hold it.
#[derive(Clone, Debug, PartialEq)]
pub struct AveragePoolGrad {
    pub pool: AveragePool,
    pub shape: Vec<usize>,
}

impl Op for AveragePoolGrad {
    fn name(&self) -> &'static str {
        "average_pool_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        let dx = inputs[0].with_shape(self.shape.clone());
        let y = self.pool.window.infer(self.name(), &[&dx])?;
        if y != *inputs[0] {
            return Err(Error::shape(self.name(), format!("dy must be {y} for {dx}, is {}", inputs[0])));
        }
        Ok(vec![dx])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: self.pool.window.flops(2 * io.inputs[0].elements() as u64), bytes: io.bytes() }
    }

    fn takes(&self, _: DType, target: &Target) -> bool {
        matches!(target, Target::Cuda(_))
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        // The window lies over dx, the output.
        let (window, fixed, dx) = (self.pool.window, self.pool.fixed(), &io.outputs[0]);
        Ok(vec![match target {
            Target::Cuda(_) => {
                let kernel = Ptx::new(self.name(), ptx!("average_pool_grad"), dx.dtype);
                window.ptx(kernel, dx, dx, [Arg::Input(0), Arg::Output(0)])?.scalar(fixed)
            }
            Target::Cpu => {
                let launch = Launch::cpu(self.name(), backward, 1, 1);
                window.scalars(self.name(), launch, dx)?.scalar(fixed)
            }
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!("lib/flat", "lib/pool", "average_pool_grad"));
                window.shader(shader, target, dx, dx.elements(), fixed, [Arg::Input(0), Arg::Output(0)])?
            }
        }])
    }
}

fn backward(args: &Args) {
    let (p, fixed) = (Pooling::of(args), args.int(WINDOW_SCALARS));
    let (dy, dx) = (args.slice::<f32>(0), args.slice_mut::<f32>(1));
    let (windows, line, work) = (p.out[0] * p.out_line(), p.line(), dx.len());
    let (rows, dx) = (dx.len() / line.max(1), Ptr::new(dx));
    tasks(rows, work, |row| {
        // SAFETY: one line of pixels a task.
        let dx = unsafe { dx.part(row * line, line) };
        spread(&dy[row / p.size[0] * windows..][..windows], &p, fixed, row % p.size[0], dx);
    });
}

simd! {
    /// The gradient of line `i` of one image.
    fn spread(dy: &[f32], p: &Pooling, fixed: usize, i: usize, dx: &mut [f32]) {
        let c = p.channels;
        for (at, dx) in dx.chunks_exact_mut(c).enumerate() {
            dx.fill(0.0);
            for row in p.windows(0, i) {
                for col in p.windows(1, at) {
                    let weight = weight(fixed, p.pixels(0, row).len(), p.pixels(1, col).len());
                    let dy = &dy[(row * p.out[1] + col) * c..][..c];
                    for (d, v) in dx.iter_mut().zip(dy) { *d += v * weight; }
                }
            }
        }
    }
}
