//! Root-mean-square normalisation over the last dimension.

use super::lanes::{Stretches, add_sums, by_row};
use super::norm::{self, Chunks};
use super::pieces::along;
use super::reduce::sum_few;
use super::{expect_inputs, expect_real, expect_shape, expect_typed};
use crate::cpu::gemm::with_buffers;
use crate::cpu::simd::{dot, sum};
use crate::cpu::threads::{Ptr, tasks};
use crate::graph::{
    Arg, Args, Cost, CudaTarget, Graph, Launch, Node, Op, Shader, Signature, Target, Value, WgpuTarget, ptx, wgsl,
};
use crate::simd;
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// y = x·rstd, with `affine` x·rstd·gamma, where rstd = 1/√(mean(x²) + eps) over the last dimension   (Zhang & Sennrich 2019)
/// x `[…, C]` (gamma `[C]`) → y like x, rstd `[rows]`
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNorm {
    pub eps: f32,
    pub affine: bool,
}

impl RmsNorm {
    fn inputs(&self) -> usize {
        1 + self.affine as usize
    }

    /// Checks x and gamma; the type of rstd.
    fn check(&self, op: &str, inputs: &[&TensorType]) -> Result<TensorType> {
        let x = inputs[0];
        expect_real(op, "x", x)?;
        if x.shape.is_empty() || x.cols() == 0 {
            return Err(Error::shape(op, format!("x must be [.., C], is {x}")));
        }
        if self.affine {
            expect_typed(op, "gamma", inputs[1], x.dtype, &[x.cols()])?;
        }
        Ok(TensorType::f32([x.rows()]))
    }

    /// gamma as an argument of a shader; x stands for it where it is absent, and is not read there.
    fn gamma(&self) -> Arg {
        Arg::Input(self.affine as usize)
    }

    fn scalars(&self, launch: Launch, x: &TensorType) -> Launch {
        launch.scalars([x.rows(), x.cols()]).scalar(self.affine).scalar(self.eps)
    }
}

impl Op for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, self.inputs())?;
        let rstd = self.check(self.name(), inputs)?;
        Ok(vec![inputs[0].clone(), rstd])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 4 * io.out_elements(), bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None; node.inputs.len()]) };
        let inputs = [&node.inputs[..], &[node.outputs[1], dy]].concat();
        Ok(g.apply_all(RmsNormGrad(*self), &inputs)?.into_iter().map(Some).collect())
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        target.stores(dtype)
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let x = &io.inputs[0];
        Ok(vec![match target {
            Target::Cuda(target) => {
                let (dims, args) =
                    ([x.rows(), x.cols()], [Arg::Input(0), self.gamma(), Arg::Output(0), Arg::Output(1)]);
                let launch = norm::by_row(self.name(), ptx!("rms_norm"), x.dtype, target, dims, args);
                self.scalars(launch, x)
            }
            Target::Cpu => self.scalars(Launch::cpu(self.name(), forward, self.inputs(), 2), x),
            Target::Wgpu(target) => {
                let shared: &[usize] = if self.affine { &[1] } else { &[] };
                return along(0, shared, io, target, |io| {
                    let dims = [io.inputs[0].rows(), io.inputs[0].cols()];
                    let text = wgsl!(x.dtype; "lib/lanes", "rms_norm");
                    let shader = Shader::new(self.name(), text).flag("AFFINE", self.affine);
                    let args = [Arg::Input(0), self.gamma(), Arg::Output(0), Arg::Output(1)];
                    Ok(vec![by_row(shader, target, dims, args).scalars(dims).scalar(self.eps)])
                });
            }
        }])
    }
}

/// The backward of [`RmsNorm`]: its inputs, its rstd, dy → the gradients of its inputs, in their order.
/// With g = dy·gamma, n = x·rstd: dx = rstd·(g − n·mean(g·n)), dgamma = Σ dy·n.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNormGrad(pub RmsNorm);

impl Op for RmsNormGrad {
    fn name(&self) -> &'static str {
        "rms_norm_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let n = self.0.inputs();
        expect_inputs(self.name(), inputs, n + 2)?;
        let rstd = self.0.check(self.name(), inputs)?;
        expect_shape(self.name(), "rstd", inputs[n], &rstd.shape)?;
        expect_typed(self.name(), "dy", inputs[n + 1], inputs[0].dtype, &inputs[0].shape)?;
        Ok(norm::gradient_types(&inputs[..n], self.0.affine))
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 10 * io.out_elements(), bytes: io.bytes() }
    }

    fn takes(&self, _: DType, target: &Target) -> bool {
        matches!(target, Target::Cuda(_))
    }

    fn stays_f32(&self, input: usize) -> bool {
        input == self.0.inputs()
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let (x, n) = (&io.inputs[0], self.0.inputs());
        if let Target::Cuda(target) = target {
            return Ok(self.kernels(target, x.dtype, [x.rows(), x.cols()]));
        }
        if let Target::Wgpu(target) = target {
            return Ok(self.shaders(target, [x.rows(), x.cols()]));
        }
        let launch = Launch::cpu(self.name(), backward, n + 2, n);
        // A sum a channel of every chunk.
        let sums = Chunks::new(1, x.rows(), x.cols()).count * x.cols();
        let launch = if self.0.affine { launch.with_scratch(sums) } else { launch };
        Ok(vec![self.0.scalars(launch, x)])
    }
}

impl RmsNormGrad {
    fn kernels(&self, target: &CudaTarget, dtype: DType, [rows, channels]: [usize; 2]) -> Vec<Launch> {
        let (affine, n) = (self.0.affine, self.0.inputs());
        let [x, rstd, dy] = [0, n, n + 1].map(Arg::Input);
        let (file, args) = (ptx!("rms_norm_grad"), [x, self.0.gamma(), rstd, dy, Arg::Output(0)]);
        let (dims, values) = ([1, rows, channels], affine as usize);
        let (launch, count) = norm::by_stretch(self.name(), file, dtype, target, dims, args, values);
        let mut launches = vec![launch.scalar(affine)];
        if affine {
            launches.push(sum_few([1, count, channels], Arg::Left(0, 0)).arg(Arg::Output(1)));
        }
        launches
    }

    fn shaders(&self, target: &WgpuTarget, [rows, channels]: [usize; 2]) -> Vec<Launch> {
        let (affine, n) = (self.0.affine, self.0.inputs());
        let [x, rstd, dy] = [0, n, n + 1].map(Arg::Input);
        let shader = Shader::new(self.name(), wgsl!("lib/lanes", "rms_norm_grad")).flag("AFFINE", affine);
        let args = [x, self.0.gamma(), rstd, dy, Arg::Output(0)];
        let mut launches = vec![by_row(shader, target, [rows, channels], args).scalars([rows, channels])];
        if affine {
            let stretches = Stretches::new([1, rows, channels]);
            let shader = Shader::new("rms_norm_grad_sums", wgsl!("lib/lanes", "lib/stretch", "rms_norm_grad_sums"));
            let dims = [1, stretches.count, channels];
            let launch = stretches.launch(shader, target, [x, rstd, dy], 1, 1.0);
            launches.push(launch.with_scratch(dims.iter().product()));
            add_sums(&mut launches, target, Arg::Left(1, 0), dims, 1.0, Some(Arg::Output(1)));
        }
        launches
    }
}

fn setting<'a>(args: &'a Args) -> (Chunks, Option<&'a [f32]>) {
    (Chunks::new(1, args.int(0), args.int(1)), args.flag(2).then(|| args.slice::<f32>(1)))
}

/// Lends gamma, or ones.
fn with_gamma(gamma: Option<&[f32]>, channels: usize, f: impl FnOnce(&[f32], &mut [f32])) {
    with_buffers(channels, channels, |ones, buffer| match gamma {
        Some(gamma) => f(gamma, buffer),
        None => {
            ones.fill(1.0);
            f(ones, buffer)
        }
    });
}

fn forward(args: &Args) {
    let (c, gamma) = setting(args);
    let x = args.slice::<f32>(0);
    let y = Ptr::new(args.slice_mut::<f32>(args.len() - 2));
    let rstd = Ptr::new(args.slice_mut::<f32>(args.len() - 1));
    tasks(c.count, c.elements(), |i| {
        let ((start, len), (row, rows)) = (c.elements_of(0, i), c.rows_of(i));
        // SAFETY: one chunk a task.
        let (y, rstd) = unsafe { (y.part(start, len), rstd.part(row, rows)) };
        with_gamma(gamma, c.channels, |gamma, _| forward_rows(&x[start..start + len], gamma, args.float(3), y, rstd));
    });
}

simd! {
    fn forward_rows(x: &[f32], gamma: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
        let c = gamma.len();
        for ((x, y), rstd) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)).zip(rstd) {
            *rstd = 1.0 / (sum(x, |v| v * v) / c as f32 + eps).sqrt();
            for i in 0..c {
                y[i] = x[i] * *rstd * gamma[i];
            }
        }
    }
}

fn backward(args: &Args) {
    let (c, gamma) = setting(args);
    let n = 1 + gamma.is_some() as usize;
    let (x, rstd, dy) = (args.slice::<f32>(0), args.slice::<f32>(n), args.slice::<f32>(n + 1));
    let dx = Ptr::new(args.slice_mut::<f32>(n + 2));
    let partial = gamma.is_some().then(|| Ptr::new(args.slice_mut::<f32>(2 * n + 2)));
    tasks(c.count, c.elements(), |i| {
        let ((start, len), (row, rows)) = (c.elements_of(0, i), c.rows_of(i));
        // SAFETY: one chunk a task.
        let dx = unsafe { dx.part(start, len) };
        with_gamma(gamma, c.channels, |gamma, unused| {
            // SAFETY: as above.
            let sums = partial.as_ref().map_or(unused, |p| unsafe { p.part(i * c.channels, c.channels) });
            backward_rows(&x[start..start + len], &rstd[row..row + rows], &dy[start..start + len], gamma, dx, sums);
        });
    });
    let Some(partial) = partial else { return };
    let dgamma = args.slice_mut::<f32>(n + 3);
    dgamma.fill(0.0);
    // SAFETY: all tasks are done.
    for part in unsafe { partial.part(0, c.count * c.channels) }.chunks_exact(c.channels) {
        dgamma.iter_mut().zip(part).for_each(|(s, v)| *s += v);
    }
}

simd! {
    /// dx of some rows, and the sums over them of dy·n.
    fn backward_rows(x: &[f32], rstd: &[f32], dy: &[f32], gamma: &[f32], dx: &mut [f32], sums: &mut [f32]) {
        let c = gamma.len();
        let sums = &mut sums[..c];
        sums.fill(0.0);
        for (((x, dy), dx), rstd) in x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dx.chunks_exact_mut(c)).zip(rstd) {
            for i in 0..c {
                sums[i] += dy[i] * (x[i] * rstd);
                dx[i] = dy[i] * gamma[i];
            }
            let slope = dot(x, dx) * rstd * rstd / c as f32;
            for i in 0..c {
                dx[i] = (dx[i] - x[i] * slope) * rstd;
            }
        }
    }
}
