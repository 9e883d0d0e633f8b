//! Losses of a prediction, one number for each sample.

use super::lanes::Samples;
use super::{Affine, Binary, expect_inputs, expect_plain, expect_shape};
use crate::cpu::simd;
use crate::cpu::threads::{Ptr, tasks};
use crate::graph::{
    Arg, Args, Cost, FLAT_THREADS, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, WgpuTarget, ptx,
    wgsl_with_sums,
};
use crate::simd;
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// What is summed; d = prediction − target, w the sample's weight, n the elements of a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LossKind {
    /// w · ‖d‖²/n
    Mse,
    /// w · ‖d‖₂
    L2,
    /// w · (√(‖d‖² + c²) − c)   (Song & Dhariwal 2023)
    PseudoHuber { c: f32 },
}

impl LossKind {
    /// (kind, c) as a launch carries them.
    fn code(self) -> (usize, f32) {
        match self {
            LossKind::Mse => (0, 0.0),
            LossKind::L2 => (1, 0.0),
            LossKind::PseudoHuber { c } => (2, c),
        }
    }

    fn shader(self, name: &'static str, source: &'static str) -> Shader {
        Shader::new(name, source).constant("KIND", self.code().0 as u32)
    }
}

/// The launch that leaves ‖d‖² of every stretch of prediction and target, inputs 0 and 1.
fn squares(kind: LossKind, target: &WgpuTarget, over: Samples) -> Launch {
    let shader = kind.shader("loss", wgsl_with_sums!(target, DType::F32; "loss")).entry("sum_squares");
    let launch = over.launch(shader, target, over.all(), [Arg::Input(0), Arg::Input(1)]);
    launch.scalar(kind.code().1).with_scratch(over.all())
}

/// The same in PTX.
fn ptx_squares(over: Samples) -> Launch {
    let kernel = Ptx::new("loss", ptx!("loss"), DType::F32).entry("loss_squares_f32");
    over.ptx(kernel, over.all(), [Arg::Input(0), Arg::Input(1)]).with_scratch(over.all())
}

/// prediction `[B, …]`, target `[B, …]`, weight `[B]` → the weighted loss of each sample `[B]`. Sums are in f64 across blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    pub kind: LossKind,
}

/// Checks prediction, target and weight; B.
fn expect_samples(op: &str, inputs: &[&TensorType]) -> Result<usize> {
    expect_plain(op, "prediction", inputs[0])?;
    let Some(samples) = inputs[0].shape.first() else {
        return Err(Error::shape(op, "the prediction must be [B, ..], is a scalar"));
    };
    expect_shape(op, "target", inputs[1], &inputs[0].shape)?;
    expect_shape(op, "weight", inputs[2], &[*samples])?;
    Ok(*samples)
}

impl Op for Loss {
    fn name(&self) -> &'static str {
        "loss"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 3)?;
        Ok(vec![TensorType::f32([expect_samples(self.name(), inputs)?])])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 3 * io.inputs[0].elements() as u64, bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], wanted: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None; 3]) };
        let [prediction, target, weight] = [0, 1, 2].map(|i| node.inputs[i]);
        let mut grads = vec![None; 3];
        if wanted[0] || wanted[1] {
            let d = g.apply(LossGrad { kind: self.kind }, &[prediction, target, weight, dy])?;
            grads[0] = Some(d);
            if wanted[1] {
                grads[1] = Some(g.apply(Affine::scale(-1.0), &[d])?);
            }
        }
        if wanted[2] {
            // The loss is linear in its weight.
            let ty = g.ty(weight).clone();
            let ones = vec![1.0; ty.elements()];
            let ones = g.constant(ty, ones)?;
            let unit = g.apply(*self, &[prediction, target, ones])?;
            grads[2] = Some(g.apply(Binary::Mul, &[unit, dy])?);
        }
        Ok(grads)
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let n: usize = io.inputs[0].shape[1..].iter().product();
        let (kind, c) = self.kind.code();
        Ok(match target {
            Target::Cuda(_) => {
                let (samples, over) = (io.inputs[0].shape[0], Samples::new(io.inputs[0].shape[0], n));
                let kernel = Ptx::new(self.name(), ptx!("loss"), DType::F32);
                let args = [Arg::Left(0, 0), Arg::Input(2), Arg::Output(0)];
                let sum = Launch::ptx(kernel, [samples.max(1), 1, 1], FLAT_THREADS, args);
                let sum = sum.scalars([n, over.all() / samples.max(1), kind]).scalar(c);
                vec![ptx_squares(over), sum]
            }
            Target::Cpu => vec![Launch::cpu(self.name(), kernel, 3, 1).scalars([n, kind]).scalar(c)],
            Target::Wgpu(target) => {
                let samples = io.inputs[0].shape[0];
                let args = [Arg::Left(0, 0), Arg::Input(2), Arg::Output(0)];
                let over = Samples::new(samples, n);
                let launch = over
                    .launch(
                        self.kind.shader(self.name(), wgsl_with_sums!(target, DType::F32; "loss")),
                        target,
                        samples,
                        args,
                    )
                    .scalar(c);
                vec![squares(self.kind, target, over), launch]
            }
        })
    }
}

simd! {
    /// ‖p − t‖², blocks of 4096 in f32, their sum in f64.
    fn squared_distance(p: &[f32], t: &[f32]) -> f64 {
        let mut total = 0.0;
        for (p, t) in p.chunks(4096).zip(t.chunks(4096)) {
            let mut lanes = [0.0f32; simd::LANES];
            for (p, t) in p.chunks(simd::LANES).zip(t.chunks(simd::LANES)) {
                for ((l, p), t) in lanes.iter_mut().zip(p).zip(t) {
                    let d = p - t;
                    *l += d * d;
                }
            }
            total += lanes.iter().sum::<f32>() as f64;
        }
        total
    }
}

fn kernel(args: &Args) {
    let (n, kind, c) = (args.int(0), args.int(1), args.float(2) as f64);
    let (p, t, w) = (args.slice::<f32>(0), args.slice::<f32>(1), args.slice::<f32>(2));
    let out = Ptr::new(args.slice_mut::<f32>(3));
    tasks(w.len(), p.len(), |b| {
        let square = squared_distance(&p[b * n..][..n], &t[b * n..][..n]);
        let loss = match kind {
            0 => square / n as f64,
            1 => square.sqrt(),
            // √(s + c²) − c without the cancellation.
            _ => square / ((square + c * c).sqrt() + c).max(f64::MIN_POSITIVE),
        };
        // SAFETY: one sample a task.
        let out = unsafe { out.part(b, 1) };
        out[0] = (w[b] as f64 * loss) as f32;
    });
}

/// dprediction of [`Loss`]: prediction, target `[B, …]`, weight, dy `[B]` → `[B, …]`, zero where a sample has no difference.
///
/// Mse: 2·w·dy·d/n, L2: w·dy·d/‖d‖, PseudoHuber: w·dy·d/√(‖d‖² + c²).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossGrad {
    pub kind: LossKind,
}

impl Op for LossGrad {
    fn name(&self) -> &'static str {
        "loss_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 4)?;
        let samples = expect_samples(self.name(), inputs)?;
        expect_shape(self.name(), "dy", inputs[3], &[samples])?;
        Ok(vec![inputs[0].clone()])
    }

    fn cost(&self, io: &Signature) -> Cost {
        let each = if self.kind == LossKind::Mse { 2 } else { 5 };
        Cost { flops: each * io.out_elements(), bytes: io.bytes() }
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (1, 0)]
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let n: usize = io.inputs[0].shape[1..].iter().product();
        let (kind, c) = self.kind.code();
        Ok(match target {
            Target::Cuda(_) => {
                let over = Samples::new(io.inputs[0].shape[0], n);
                let mut launches = vec![];
                // Not read for the mean square, which needs no sums.
                let mut sums = Arg::Input(2);
                if self.kind != LossKind::Mse {
                    launches.push(ptx_squares(over));
                    sums = Arg::Left(0, 0);
                }
                let args = (0..4).map(Arg::Input).chain([Arg::Output(0), sums]);
                let kernel = Ptx::new(self.name(), ptx!("loss_grad"), DType::F32);
                launches.push(over.ptx(kernel, over.all(), args).scalar(kind).scalar(c));
                launches
            }
            Target::Cpu => vec![Launch::cpu(self.name(), grad_kernel, 4, 1).scalars([n, kind]).scalar(c)],
            Target::Wgpu(target) => {
                let over = Samples::new(io.inputs[0].shape[0], n);
                let mut launches = vec![];
                // Not read for the mean square, which needs no sums.
                let mut sums = Arg::Input(2);
                if self.kind != LossKind::Mse {
                    launches.push(squares(self.kind, target, over));
                    sums = Arg::Left(0, 0);
                }
                let shader = self.kind.shader(self.name(), wgsl_with_sums!(target, DType::F32; "loss_grad"));
                let args = (0..4).map(Arg::Input).chain([Arg::Output(0), sums]);
                launches.push(over.launch(shader, target, over.all(), args).scalar(c));
                launches
            }
        })
    }
}

fn grad_kernel(args: &Args) {
    let (n, kind, c) = (args.int(0), args.int(1), args.float(2) as f64);
    let (p, t, out) = (args.ptr(0).0, args.ptr(1).0, args.ptr(4).0);
    let (p, t, out) = (Ptr::from_raw(p), Ptr::from_raw(t), Ptr::from_raw(out));
    let (w, dy) = (args.slice::<f32>(2), args.slice::<f32>(3));
    tasks(w.len(), w.len() * n, |b| {
        let [p, t] = [p, t].map(|x| x.raw().wrapping_add(b * n) as *const f32);
        // SAFETY: one sample of n elements a task; these views end before anything is written.
        let square = || unsafe { squared_distance(std::slice::from_raw_parts(p, n), std::slice::from_raw_parts(t, n)) };
        let slope = match kind {
            0 => 2.0 / n as f64,
            1 => 1.0 / square().sqrt(),
            _ => 1.0 / (square() + c * c).sqrt(),
        };
        let scale = w[b] as f64 * dy[b] as f64 * slope;
        // At no difference the norm has a corner: its gradient is taken as zero.
        let scale = if slope.is_infinite() { 0.0 } else { scale as f32 };
        scaled_difference(p, t, out.raw().wrapping_add(b * n), n, scale);
    });
}

simd! {
    fn scaled_difference(p: *const f32, t: *const f32, out: *mut f32, n: usize, scale: f32) {
        for i in 0..n {
            // SAFETY: `n` elements lie at every pointer; each is read before it is written.
            unsafe { *out.add(i) = (*p.add(i) - *t.add(i)) * scale };
        }
    }
}
