//! Layer normalisation over the last dimension, with a modulation by sample.

use super::lanes::{Stretches, add_sums, by_row};
use super::norm::{self, Chunks, Parameters, expect_parameters, parameter_args, parameter_count, parameters_grad};
use super::pieces::along;
use super::{expect_inputs, expect_real, expect_shape, expect_typed};
use crate::cpu::gemm::with_buffers;
use crate::cpu::simd::{LANES, sum};
use crate::cpu::threads::{Ptr, tasks};
use crate::graph::{
    Arg, Args, Cost, CudaTarget, Graph, Launch, Node, Op, Shader, Signature, Target, Value, WgpuTarget, ptx, wgsl,
};
use crate::simd;
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// y = n, with `affine` n·gamma + beta, with `modulate` (what that gives)·(1 + scale) + shift (adaLN, Peebles & Xie 2022),
/// where n = (x − mean)·rstd over the last dimension, rstd = 1/√(variance + eps)   (Ba et al. 2016)
/// x `[B, …, C]` (gamma `[C]`, beta `[C]`) (scale `[B, C]`, shift `[B, C]`) → y like x, stats `[rows, 2]`: mean, rstd
/// Scale and shift may be columns of wider operands, both as wide.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerNorm {
    pub eps: f32,
    pub affine: bool,
    pub modulate: bool,
    /// The columns at which scale and shift begin.
    pub first: [usize; 2],
}

impl LayerNorm {
    fn inputs(&self) -> usize {
        1 + parameter_count(self.affine, self.modulate)
    }

    /// Checks x and the parameters, which may be columns of others if `wide`; the type of the statistics.
    fn check(&self, op: &str, inputs: &[&TensorType], wide: bool) -> Result<TensorType> {
        let x = inputs[0];
        expect_real(op, "x", x)?;
        if x.shape.len() < 2 || x.cols() == 0 {
            return Err(Error::shape(op, format!("x must be [B, .., C], is {x}")));
        }
        expect_parameters(op, inputs, self.affine, self.modulate, wide.then_some(self.first))?;
        Ok(TensorType::f32([x.rows(), 2]))
    }

    /// Without parameters by sample, all rows are one sample.
    fn chunks(&self, x: &TensorType) -> Chunks {
        let samples = if self.modulate { x.shape[0] } else { 1 };
        Chunks::new(samples, x.rows() / samples.max(1), x.cols())
    }

    /// Numbers from a sample's scale or shift to the next one's, and where the first ones begin.
    fn columns(&self, io: &Signature) -> [usize; 3] {
        let wide = if self.modulate { io.inputs[self.inputs() - 1].cols() } else { io.outputs[0].cols() };
        [wide, self.first[0], self.first[1]]
    }

    fn scalars(&self, launch: Launch, c: &Chunks) -> Launch {
        let launch = launch.scalars([c.samples, c.rows, c.channels]);
        launch.scalars([self.affine, self.modulate]).scalar(self.eps)
    }

    fn shader(&self, shader: Shader) -> Shader {
        shader.flag("AFFINE", self.affine).flag("MODULATE", self.modulate)
    }

    /// On the wgpu device.
    fn shader_launch(&self, io: &Signature, target: &WgpuTarget) -> Launch {
        let (dtype, c, columns) = (io.inputs[0].dtype, self.chunks(&io.inputs[0]), self.columns(io));
        let parameters = parameter_args(self.affine, self.modulate, Arg::Input(0));
        let args = [Arg::Input(0)].into_iter().chain(parameters).chain([Arg::Output(0), Arg::Output(1)]);
        let (rows, fours) =
            (c.samples * c.rows, columns.iter().all(|n| n.is_multiple_of(4)) && c.channels.is_multiple_of(4));
        let launch = if fours {
            // Half as many lanes: each reads four numbers at once.
            let text = wgsl!(dtype; "lib/lanes", "layer_norm_fours");
            by_row(self.shader(Shader::new(self.name(), text)), target, [rows, c.channels / 2], args)
        } else {
            let text = wgsl!(dtype; "lib/lanes", "layer_norm");
            by_row(self.shader(Shader::new(self.name(), text)), target, [rows, c.channels], args)
        };
        launch.scalars([rows, c.channels, c.rows.max(1)]).scalar(self.eps).scalars(columns)
    }

    /// A launch with a line of lanes a row; its scalars: rows, channels, rows of a sample.
    fn by_row(&self, shader: Shader, target: &WgpuTarget, c: &Chunks, args: impl IntoIterator<Item = Arg>) -> Launch {
        let rows = c.samples * c.rows;
        by_row(shader, target, [rows, c.channels], args).scalars([rows, c.channels, c.rows.max(1)])
    }
}

impl Op for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, self.inputs())?;
        let stats = self.check(self.name(), inputs, true)?;
        Ok(vec![inputs[0].clone(), stats])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 8 * io.out_elements(), bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None; node.inputs.len()]) };
        let inputs = [&node.inputs[..], &[node.outputs[1], dy]].concat();
        Ok(g.apply_all(LayerNormGrad(*self), &inputs)?.into_iter().map(Some).collect())
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        target.stores(dtype)
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let c = self.chunks(&io.inputs[0]);
        Ok(vec![match target {
            Target::Cuda(target) => {
                let parameters = parameter_args(self.affine, self.modulate, Arg::Input(0));
                let args = [Arg::Input(0)].into_iter().chain(parameters).chain([Arg::Output(0), Arg::Output(1)]);
                let (dtype, dims) = (io.inputs[0].dtype, [c.samples * c.rows, c.channels]);
                let (name, file) = (self.name(), ptx!("layer_norm"));
                // Two rows of a thread are of one sample.
                let paired = !self.modulate || c.rows.is_multiple_of(2);
                let whole = self.columns(io).iter().all(|n| n.is_multiple_of(8));
                let pair = || norm::by_pair(name, file, dtype, target, dims, args.clone());
                let launch = (paired && whole).then(pair).flatten();
                let launch = launch.unwrap_or_else(|| norm::by_row(name, file, dtype, target, dims, args.clone()));
                let launch = launch.scalars([c.samples * c.rows, c.channels, c.rows.max(1)]);
                launch.scalars([self.affine, self.modulate]).scalar(self.eps).scalars(self.columns(io))
            }
            Target::Cpu => {
                self.scalars(Launch::cpu(self.name(), forward, self.inputs(), 2), &c).scalars(self.columns(io))
            }
            Target::Wgpu(target) => {
                let shared: &[usize] = if self.affine { &[1, 2] } else { &[] };
                return along(0, shared, io, target, |io| Ok(vec![self.shader_launch(io, target)]));
            }
        }])
    }
}

/// The backward of [`LayerNorm`]: its inputs, its stats, dy → the gradients of its inputs, in their order.
/// With g = dy·gamma·(1 + scale): dx = rstd·(g − mean(g) − n·mean(g·n)).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerNormGrad(pub LayerNorm);

impl Op for LayerNormGrad {
    fn name(&self) -> &'static str {
        "layer_norm_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let n = self.0.inputs();
        expect_inputs(self.name(), inputs, n + 2)?;
        let stats = self.0.check(self.name(), inputs, false)?;
        expect_shape(self.name(), "stats", inputs[n], &stats.shape)?;
        expect_typed(self.name(), "dy", inputs[n + 1], inputs[0].dtype, &inputs[0].shape)?;
        Ok(norm::gradient_types(&inputs[..n], self.0.affine))
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 14 * io.out_elements(), bytes: io.bytes() }
    }

    fn takes(&self, _: DType, target: &Target) -> bool {
        matches!(target, Target::Cuda(_))
    }

    fn stays_f32(&self, input: usize) -> bool {
        input == self.0.inputs()
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let c = self.0.chunks(&io.inputs[0]);
        let n = self.0.inputs();
        if let Target::Cuda(target) = target {
            return Ok(self.kernels(target, io.inputs[0].dtype, &c));
        }
        if let Target::Wgpu(target) = target {
            return Ok(self.shaders(target, &c));
        }
        let launch = Launch::cpu(self.name(), backward, n + 2, n);
        // Two sums a channel, of every chunk and of every sample, if there are parameters.
        let sums = if n > 1 { 2 * c.samples * c.channels } else { 0 };
        let launch = if n > 1 { launch.with_scratch(sums * c.count).with_scratch(sums) } else { launch };
        Ok(vec![self.0.scalars(launch, &c)])
    }
}

impl LayerNormGrad {
    fn kernels(&self, target: &CudaTarget, dtype: DType, c: &Chunks) -> Vec<Launch> {
        let LayerNorm { affine, modulate, .. } = self.0;
        let n = self.0.inputs();
        let [x, stats, dy] = [0, n, n + 1].map(Arg::Input);
        let [gamma, _, scale, _] = parameter_args(affine, modulate, x);
        let file = ptx!("layer_norm_grad");
        let (dims, args) = ([c.samples, c.rows, c.channels], [x, gamma, scale, stats, dy, Arg::Output(0)]);
        let (launch, count) = norm::by_stretch(self.name(), file, dtype, target, dims, args, if n > 1 { 2 } else { 0 });
        let launch = launch.scalars([affine, modulate, n > 1]);
        if n == 1 {
            return vec![launch];
        }
        let mut launches = vec![];
        let sums = norm::add_stretches(&mut launches, launch, [c.samples, count, 2 * c.channels]);
        launches.push(norm::parameters_grad_ptx(dtype, [c.samples, c.channels], affine, modulate, sums));
        launches
    }

    fn shaders(&self, target: &WgpuTarget, c: &Chunks) -> Vec<Launch> {
        let LayerNorm { affine, modulate, .. } = self.0;
        let n = self.0.inputs();
        let [x, stats, dy] = [0, n, n + 1].map(Arg::Input);
        let shader = self.0.shader(Shader::new(self.name(), wgsl!("lib/lanes", "layer_norm_grad")));
        let [gamma, _, scale, _] = parameter_args(affine, modulate, x);
        let mut launches = vec![self.0.by_row(shader, target, c, [x, gamma, scale, stats, dy, Arg::Output(0)])];
        if n > 1 {
            let stretches = Stretches::new([c.samples, c.rows, c.channels]);
            let shader = Shader::new("layer_norm_grad_sums", wgsl!("lib/lanes", "lib/stretch", "layer_norm_grad_sums"));
            let dims = [c.samples, stretches.count, 2 * c.channels];
            let launch = stretches.launch(shader, target, [x, stats, dy], 1, 1.0);
            launches.push(launch.with_scratch(dims.iter().product()));
            let sums = add_sums(&mut launches, target, Arg::Left(1, 0), dims, 1.0, None);
            launches.push(parameters_grad(target, [c.samples, c.channels], affine, modulate, sums));
        }
        launches
    }
}

fn setting<'a>(args: &'a Args) -> (Chunks, Parameters<'a>) {
    let [samples, rows, channels] = [0, 1, 2].map(|i| args.int(i));
    (Chunks::new(samples, rows, channels), Parameters::of(args, channels, args.flag(3), args.flag(4)))
}

fn forward(args: &Args) {
    let (c, parameters) = setting(args);
    let parameters = parameters.of_columns(args.int(6), [args.int(7), args.int(8)]);
    let x = args.slice::<f32>(0);
    let y = Ptr::new(args.slice_mut::<f32>(args.len() - 2));
    let stats = Ptr::new(args.slice_mut::<f32>(args.len() - 1));
    tasks(c.samples * c.count, c.elements(), |t| {
        let (b, i) = (t / c.count, t % c.count);
        let ((start, len), (row, rows)) = (c.elements_of(b, i), c.rows_of(i));
        // SAFETY: one chunk a task.
        let (y, stats) = unsafe { (y.part(start, len), stats.part((b * c.rows + row) * 2, rows * 2)) };
        with_buffers(c.channels, c.channels, |factor, offset| {
            parameters.fill(b, factor, offset);
            forward_rows(&x[start..start + len], factor, offset, args.float(5), y, stats);
        });
    });
}

simd! {
    fn forward_rows(x: &[f32], factor: &[f32], offset: &[f32], eps: f32, y: &mut [f32], stats: &mut [f32]) {
        let c = factor.len();
        let offset = &offset[..c];
        let rows = x.chunks_exact(c).zip(y.chunks_exact_mut(c)).zip(stats.chunks_exact_mut(2));
        for ((x, y), stats) in rows {
            // The mean, then what rounding left of it, so that large means cost no digits.
            let mean = sum(x, |v| v) / c as f32;
            let (rest, square) = deviations(x, mean);
            let rest = rest / c as f32;
            let variance = (square / c as f32 - rest * rest).max(0.0);
            let rstd = 1.0 / (variance + eps).sqrt();
            (stats[0], stats[1]) = (mean + rest, rstd);
            for i in 0..c {
                y[i] = ((x[i] - mean) - rest) * rstd * factor[i] + offset[i];
            }
        }
    }
}

/// Σ (x − mean), Σ (x − mean)²
#[inline(always)]
fn deviations(x: &[f32], mean: f32) -> (f32, f32) {
    let (mut sums, mut squares) = ([0.0f32; LANES], [0.0f32; LANES]);
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for x in chunks {
        for i in 0..LANES {
            let d = x[i] - mean;
            sums[i] += d;
            squares[i] += d * d;
        }
    }
    for (i, x) in rest.iter().enumerate() {
        let d = x - mean;
        sums[i] += d;
        squares[i] += d * d;
    }
    (sums.iter().sum(), squares.iter().sum())
}

fn backward(args: &Args) {
    let (c, parameters) = setting(args);
    let n = 1 + parameter_count(args.flag(3), args.flag(4));
    let (x, stats, dy) = (args.slice::<f32>(0), args.slice::<f32>(n), args.slice::<f32>(n + 1));
    let dx = Ptr::new(args.slice_mut::<f32>(n + 2));
    let partial = (n > 1).then(|| Ptr::new(args.slice_mut::<f32>(2 * n + 2)));
    tasks(c.samples * c.count, c.elements(), |t| {
        let (b, i) = (t / c.count, t % c.count);
        let ((start, len), (row, rows)) = (c.elements_of(b, i), c.rows_of(i));
        let (x, dy, stats) =
            (&x[start..start + len], &dy[start..start + len], &stats[(b * c.rows + row) * 2..][..rows * 2]);
        // SAFETY: one chunk a task.
        let dx = unsafe { dx.part(start, len) };
        with_buffers(2 * c.channels, 2 * c.channels, |coefficients, unused| {
            let (factor, offset) = coefficients.split_at_mut(c.channels);
            parameters.fill(b, factor, offset);
            // SAFETY: as above.
            let sums = partial.as_ref().map_or(unused, |p| unsafe { p.part(t * 2 * c.channels, 2 * c.channels) });
            backward_rows(x, stats, dy, factor, dx, sums);
        });
    });
    let Some(partial) = partial else { return };
    let sums = args.slice_mut::<f32>(2 * n + 3);
    let width = 2 * c.channels;
    for (b, sums) in sums.chunks_exact_mut(width).enumerate() {
        sums.fill(0.0);
        // SAFETY: all tasks are done.
        for part in unsafe { partial.part(b * c.count * width, c.count * width) }.chunks_exact(width) {
            sums.iter_mut().zip(part).for_each(|(s, v)| *s += v);
        }
    }
    parameters.gradients(sums, args, n + 3);
}

simd! {
    /// dx of some rows, and the sums over them of dy and dy·n, `[2, C]`.
    fn backward_rows(x: &[f32], stats: &[f32], dy: &[f32], factor: &[f32], dx: &mut [f32], sums: &mut [f32]) {
        let c = factor.len();
        sums.fill(0.0);
        let (total, product) = sums.split_at_mut(c);
        let product = &mut product[..c];
        let rows = x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dx.chunks_exact_mut(c)).zip(stats.chunks_exact(2));
        for (((x, dy), dx), stats) in rows {
            let (mean, rstd) = (stats[0], stats[1]);
            for i in 0..c {
                let n = (x[i] - mean) * rstd;
                total[i] += dy[i];
                product[i] += dy[i] * n;
                dx[i] = dy[i] * factor[i];
            }
            let (constant, slope) = upstream_means(x, dx, mean, rstd);
            for i in 0..c {
                dx[i] = (dx[i] - constant - (x[i] - mean) * rstd * slope) * rstd;
            }
        }
    }
}

/// mean(g), mean(g·n)
#[inline(always)]
fn upstream_means(x: &[f32], g: &[f32], mean: f32, rstd: f32) -> (f32, f32) {
    let (mut sums, mut products) = ([0.0f32; LANES], [0.0f32; LANES]);
    let (xs, gs) = (x.chunks_exact(LANES), g.chunks_exact(LANES));
    let rest = xs.remainder().iter().zip(gs.remainder());
    for (x, g) in xs.zip(gs) {
        for i in 0..LANES {
            sums[i] += g[i];
            products[i] += g[i] * (x[i] - mean);
        }
    }
    for (i, (x, g)) in rest.enumerate() {
        sums[i] += g;
        products[i] += g * (x - mean);
    }
    let count = x.len() as f32;
    (sums.iter().sum::<f32>() / count, products.iter().sum::<f32>() * rstd / count)
}
