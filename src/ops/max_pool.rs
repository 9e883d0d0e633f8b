//! The largest pixel under a window, and its gradient.

use super::pool::{PoolWindow, Pooling};
use super::{expect_inputs, expect_shape};
use crate::Result;
use crate::cpu::threads::{Ptr, tasks};
use crate::graph::{Arg, Args, Cost, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, ptx, wgsl};
use crate::simd;
use crate::tensor::{DType, TensorType};

/// y = the largest pixel under each window, every channel by itself; padding is below every number.
/// x `[B, H, W, C]` → y `[B, H', W', C]`
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaxPool(pub PoolWindow);

impl Op for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        Ok(vec![self.0.infer(self.name(), inputs)?])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: self.0.flops(io.out_elements()), bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        Ok(vec![Some(g.apply(MaxPoolGrad(self.0), &[node.inputs[0], dy])?)])
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let (x, windows) = (&io.inputs[0], io.outputs[0].elements());
        Ok(vec![match target {
            Target::Cuda(_) => {
                let kernel = Ptx::new(self.name(), ptx!("max_pool"), DType::F32);
                self.0.ptx(kernel, x, &io.outputs[0], [Arg::Input(0), Arg::Output(0)])?
            }
            Target::Cpu => self.0.scalars(self.name(), Launch::cpu(self.name(), forward, 1, 1), x)?,
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!("lib/flat", "lib/pool", "lib/peak", "max_pool"));
                self.0.shader(shader, target, x, windows, 0, [Arg::Input(0), Arg::Output(0)])?
            }
        }])
    }
}

fn forward(args: &Args) {
    let p = Pooling::of(args);
    let (x, out) = (args.slice::<f32>(0), args.slice_mut::<f32>(1));
    let (image, line, work) = (p.size[0] * p.line(), p.out_line(), x.len());
    let (rows, out) = (out.len() / line.max(1), Ptr::new(out));
    tasks(rows, work, |row| {
        // SAFETY: one line of windows a task.
        let out = unsafe { out.part(row * line, line) };
        largest(&x[row / p.out[0] * image..][..image], &p, row % p.out[0], out);
    });
}

simd! {
    /// Line `o` of the windows over one image.
    fn largest(x: &[f32], p: &Pooling, o: usize, out: &mut [f32]) {
        let c = p.channels;
        for (at, out) in out.chunks_exact_mut(c).enumerate() {
            let cols = p.pixels(1, at);
            out.fill(f32::NEG_INFINITY);
            for row in p.pixels(0, o) {
                let line = &x[row * p.line()..][..p.line()];
                for pixel in line[cols.start * c..cols.end * c].chunks_exact(c) {
                    // NaN is larger than all: it must not vanish.
                    for (y, v) in out.iter_mut().zip(pixel) { *y = if *v > *y || v.is_nan() { *v } else { *y }; }
                }
            }
        }
    }
}

/// dx of [`MaxPool`]: x, dy → dx like x. Of equal pixels the first, row by row, has the gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaxPoolGrad(pub PoolWindow);

impl Op for MaxPoolGrad {
    fn name(&self) -> &'static str {
        "max_pool_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 2)?;
        let y = self.0.infer(self.name(), &inputs[..1])?;
        expect_shape(self.name(), "dy", inputs[1], &y.shape)?;
        Ok(vec![inputs[0].clone()])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: self.0.flops(io.inputs[1].elements() as u64), bytes: io.bytes() }
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let (x, windows) = (&io.inputs[0], io.inputs[1].elements());
        Ok(match target {
            Target::Cuda(_) => {
                let kernel = |name| Ptx::new(name, ptx!("max_pool_grad"), DType::F32);
                let peaks = self.0.ptx(kernel("max_pool_grad_peaks"), x, &io.inputs[1], [Arg::Input(0)])?;
                let args = [Arg::Left(0, 0), Arg::Input(1), Arg::Output(0)];
                vec![peaks.with_scratch(windows), self.0.ptx(kernel(self.name()), x, x, args)?]
            }
            Target::Cpu => vec![self.0.scalars(self.name(), Launch::cpu(self.name(), backward, 2, 1), x)?],
            Target::Wgpu(target) => {
                let peaks = wgsl!("lib/flat", "lib/pool", "lib/peak", "max_pool_grad_peaks");
                let peaks = Shader::new("max_pool_grad_peaks", peaks);
                let peaks = self.0.shader(peaks, target, x, windows, 0, [Arg::Input(0)])?.with_scratch(windows);
                let shader = Shader::new(self.name(), wgsl!("lib/flat", "lib/pool", "max_pool_grad"));
                let args = [Arg::Left(0, 0), Arg::Input(1), Arg::Output(0)];
                vec![peaks, self.0.shader(shader, target, x, x.elements(), 0, args)?]
            }
        })
    }
}

fn backward(args: &Args) {
    let p = Pooling::of(args);
    let (x, dy, dx) = (args.slice::<f32>(0), args.slice::<f32>(1), args.slice_mut::<f32>(2));
    let (image, windows) = (p.size[0] * p.line(), p.out[0] * p.out_line());
    let dx = Ptr::new(dx);
    tasks(x.len() / image.max(1), x.len(), |i| {
        // SAFETY: one image a task.
        let dx = unsafe { dx.part(i * image, image) };
        dx.fill(0.0);
        let (x, dy) = (&x[i * image..][..image], &dy[i * windows..][..windows]);
        for (at, dy) in dy.chunks_exact(p.channels).enumerate() {
            let (rows, cols) = (p.pixels(0, at / p.out[1]), p.pixels(1, at % p.out[1]));
            for (channel, dy) in dy.iter().enumerate() {
                let pixels = rows.clone().flat_map(|r| cols.clone().map(move |c| r * p.size[1] + c));
                let places = pixels.map(|pixel| pixel * p.channels + channel);
                let first = places.reduce(|best, at| if x[at] > x[best] || x[at].is_nan() { at } else { best });
                if let Some(first) = first {
                    dx[first] += dy;
                }
            }
        }
    });
}
