//! A residual sum with a gate by sample and channel.

use super::lines::{by_pack, divisor};
use super::norm::{Chunks, Tiles};
use super::{expect_inputs, expect_real, expect_typed};
use crate::cpu::threads::{Ptr, tasks};
use crate::graph::{
    Arg, Args, Cost, CudaTarget, FLAT_THREADS, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, ptx,
    wgsl,
};
use crate::simd;
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// y = residual + gate · x   x `[B, …, C]`, gate `[B, C]`, residual like x → y like x   (adaLN-Zero, Peebles & Xie 2022)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate;

/// Checks x and the gate.
fn check(op: &str, x: &TensorType, gate: &TensorType) -> Result<()> {
    expect_real(op, "x", x)?;
    if x.shape.len() < 2 || x.cols() == 0 {
        return Err(Error::shape(op, format!("x must be [B, .., C], is {x}")));
    }
    expect_typed(op, "gate", gate, x.dtype, &[x.shape[0], x.cols()])
}

fn chunks(x: &TensorType) -> Chunks {
    let samples = x.shape[0];
    Chunks::new(samples, x.rows() / samples.max(1), x.cols())
}

impl Op for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 3)?;
        check(self.name(), inputs[0], inputs[1])?;
        expect_typed(self.name(), "residual", inputs[2], inputs[0].dtype, &inputs[0].shape)?;
        Ok(vec![inputs[0].clone()])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 2 * io.out_elements(), bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], wanted: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None; 3]) };
        if !wanted[0] && !wanted[1] {
            return Ok(vec![None, None, Some(dy)]);
        }
        let grads = g.apply_all(GateGrad, &[node.inputs[0], node.inputs[1], dy])?;
        Ok(vec![Some(grads[0]), Some(grads[1]), Some(dy)])
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(2, 0), (0, 0)]
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        target.stores(dtype)
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let c = chunks(&io.inputs[0]);
        Ok(vec![match target {
            Target::Cuda(_) => {
                let (dtype, n) = (io.inputs[0].dtype, io.outputs[0].elements());
                let args = (0..3).map(Arg::Input).chain([Arg::Output(0)]);
                let kernel = Ptx::new(self.name(), ptx!("gate"), dtype);
                by_pack(kernel, dtype, n, c.channels, args).scalars(divisor(c.rows * c.channels))
            }
            Target::Cpu => Launch::cpu(self.name(), forward, 3, 1).scalars([c.samples, c.rows, c.channels]),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!(io.inputs[0].dtype; "lib/flat", "gate"));
                let args = (0..3).map(Arg::Input).chain([Arg::Output(0)]);
                Launch::over(shader, target, io.outputs[0].elements(), args, [0, 2, 3])
                    .scalars([c.channels, c.rows * c.channels])
            }
        }])
    }
}

/// The backward of [`Gate`]: x, gate, dy → dx = gate · dy, dgate = Σ dy · x over each sample's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateGrad;

impl Op for GateGrad {
    fn name(&self) -> &'static str {
        "gate_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 3)?;
        check(self.name(), inputs[0], inputs[1])?;
        expect_typed(self.name(), "dy", inputs[2], inputs[0].dtype, &inputs[0].shape)?;
        Ok(vec![inputs[0].clone(), inputs[1].clone()])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 3 * io.out_elements(), bytes: io.bytes() }
    }

    fn takes(&self, _: DType, target: &Target) -> bool {
        matches!(target, Target::Cuda(_))
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let c = chunks(&io.inputs[0]);
        let sizes = [c.samples, c.rows, c.channels];
        Ok(vec![match target {
            Target::Cuda(target) => return Ok(self.kernels(io.inputs[0].dtype, sizes, target)),
            Target::Cpu => {
                // A sum a channel of every chunk.
                let sums = c.samples * c.count * c.channels;
                Launch::cpu(self.name(), backward, 3, 2).with_scratch(sums).scalars(sizes)
            }
            Target::Wgpu(target) => {
                let parts = c.channels.div_ceil(32);
                let args = (0..3).map(Arg::Input).chain((0..2).map(Arg::Output));
                let shader = Shader::new(self.name(), wgsl!("gate_grad"));
                Launch::wgsl(shader, target.grid(c.samples * parts), args).scalars(sizes).scalar(parts)
            }
        }])
    }
}

impl GateGrad {
    /// The launches of the PTX kernels: dx and the sums of stretches of rows, then their sums.
    fn kernels(&self, dtype: DType, [samples, rows, channels]: [usize; 3], target: &CudaTarget) -> Vec<Launch> {
        let tiles = Tiles::of_columns([samples, rows, channels], dtype, target);
        let kernel =
            |part: String| Ptx::new(self.name(), ptx!("gate_grad"), dtype).entry(format!("gate_grad_{part}_{dtype}"));
        let args = [Arg::Input(0), Arg::Input(1), Arg::Input(2), Arg::Output(0)];
        let sums = tiles.launch(kernel(tiles.pack.to_string()), args);
        let blocks = [samples * channels.div_ceil(32), 1, 1];
        let join = Launch::ptx(kernel("join".into()), blocks, FLAT_THREADS, [Arg::Left(0, 0), Arg::Output(1)]);
        let join = join.scalars([tiles.count, channels]).scalars(divisor(channels.div_ceil(32)));
        vec![sums.with_scratch(samples * tiles.count * channels), join]
    }
}

fn forward(args: &Args) {
    let [samples, rows, channels] = [0, 1, 2].map(|i| args.int(i));
    let c = Chunks::new(samples, rows, channels);
    let gate = args.slice::<f32>(1);
    let [x, residual, out] = [0, 2, 3].map(|i| Ptr::from_raw(args.ptr(i).0));
    tasks(samples * c.count, c.elements(), |t| {
        let b = t / c.count;
        let (start, len) = c.elements_of(b, t % c.count);
        let [x, residual, out] = [x, residual, out].map(|p| p.raw().wrapping_add(start));
        forward_rows(x, &gate[b * channels..(b + 1) * channels], residual, out, len / channels);
    });
}

simd! {
    fn forward_rows(x: *const f32, gate: &[f32], residual: *const f32, out: *mut f32, rows: usize) {
        let c = gate.len();
        for row in 0..rows {
            let (whole, rest) = gate.as_chunks::<16>();
            for (k, gate) in whole.iter().enumerate() {
                let at = row * c + k * 16;
                // SAFETY: `rows · c` elements lie at every pointer; all 16 are read before they are written.
                unsafe {
                    let x = (x.add(at) as *const [f32; 16]).read_unaligned();
                    let mut y = (residual.add(at) as *const [f32; 16]).read_unaligned();
                    for i in 0..16 { y[i] += gate[i] * x[i]; }
                    (out.add(at) as *mut [f32; 16]).write_unaligned(y);
                }
            }
            for (k, gate) in rest.iter().enumerate() {
                let at = row * c + whole.len() * 16 + k;
                // SAFETY: as above.
                unsafe { *out.add(at) = *residual.add(at) + gate * *x.add(at) };
            }
        }
    }
}

fn backward(args: &Args) {
    let [samples, rows, channels] = [0, 1, 2].map(|i| args.int(i));
    let c = Chunks::new(samples, rows, channels);
    let (x, gate, dy) = (args.slice::<f32>(0), args.slice::<f32>(1), args.slice::<f32>(2));
    let (dx, dgate) = (Ptr::new(args.slice_mut::<f32>(3)), args.slice_mut::<f32>(4));
    let partial = Ptr::new(args.slice_mut::<f32>(5));
    tasks(samples * c.count, c.elements(), |t| {
        let b = t / c.count;
        let (start, len) = c.elements_of(b, t % c.count);
        // SAFETY: one chunk a task.
        let (dx, sums) = unsafe { (dx.part(start, len), partial.part(t * channels, channels)) };
        let gate = &gate[b * channels..(b + 1) * channels];
        backward_rows(&x[start..start + len], gate, &dy[start..start + len], dx, sums);
    });
    for (b, dgate) in dgate.chunks_exact_mut(channels).enumerate() {
        dgate.fill(0.0);
        // SAFETY: all tasks are done.
        for part in unsafe { partial.part(b * c.count * channels, c.count * channels) }.chunks_exact(channels) {
            dgate.iter_mut().zip(part).for_each(|(s, v)| *s += v);
        }
    }
}

simd! {
    fn backward_rows(x: &[f32], gate: &[f32], dy: &[f32], dx: &mut [f32], sums: &mut [f32]) {
        let c = gate.len();
        let sums = &mut sums[..c];
        sums.fill(0.0);
        for ((x, dy), dx) in x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dx.chunks_exact_mut(c)) {
            for i in 0..c {
                sums[i] += dy[i] * x[i];
                dx[i] = dy[i] * gate[i];
            }
        }
    }
}
