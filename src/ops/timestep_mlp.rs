//! A time's embedding through two linear layers, in one launch.

use super::chain::Chain;
use super::linear::expect_weight;
use super::timestep_embedding::expect_times;
use super::{Activate, Activation, Cast, Epilogue, Linear, TimestepEmbedding, expect_inputs, expect_typed};
use crate::cpu::gemm::{self, Matrix, gemm};
use crate::graph::{Arg, Args, Cost, CudaTarget, Graph, Launch, Node, Op, Ptx, Signature, Target, Value, ptx};
use crate::tensor::{DType, PANEL, TensorType};
use crate::{Error, Result};

/// y = last(act(embedding(t)·W₁ + b₁)·W₂ + b₂ (+ label))   t `[B]`, W₁ `[dim, E]` in panels, b₁ `[E]`, W₂ `[E, E₂]` in panels,
/// b₂ `[E₂]`, label `[B, E₂]` if `label` → y `[B, E₂]`. The embedding and the hidden layer stay in scratch. t is f32; on the CPU and in PTX, what
/// stays in scratch is so too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimestepMlp {
    pub embedding: TimestepEmbedding,
    pub act: Activation,
    pub label: bool,
    pub last: Activation,
}

impl Op for TimestepMlp {
    fn name(&self) -> &'static str {
        "timestep_mlp"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 5 + self.label as usize)?;
        self.embedding.infer(&inputs[..1])?;
        let samples = expect_times(self.name(), inputs[0])?;
        let dtype = if inputs[1].dtype == DType::I32 { DType::F32 } else { inputs[1].dtype };
        let [dim, hidden] = expect_weight(self.name(), inputs[1], dtype)?;
        let [rows, n] = expect_weight(self.name(), inputs[3], dtype)?;
        if dim != self.embedding.dim || rows != hidden {
            let (reason, d) = (format!("weights {} and {}", inputs[1], inputs[3]), self.embedding.dim);
            return Err(Error::shape(self.name(), format!("{reason} do not follow on an embedding of {d}")));
        }
        expect_typed(self.name(), "bias 1", inputs[2], dtype, &[hidden])?;
        expect_typed(self.name(), "bias 2", inputs[4], dtype, &[n])?;
        if self.label {
            expect_typed(self.name(), "label", inputs[5], dtype, &[samples, n])?;
        }
        Ok(vec![TensorType { dtype, ..TensorType::f32([samples, n]) }])
    }

    fn cost(&self, io: &Signature) -> Cost {
        let weights = (io.inputs[1].elements() + io.inputs[3].elements() + 10 * self.embedding.dim) as u64;
        Cost { flops: 2 * io.outputs[0].rows() as u64 * weights, bytes: io.bytes() }
    }

    /// The layers one by one again, and their gradients.
    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], wanted: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None; node.inputs.len()]) };
        let [t, w1, b1] = [0, 1, 2].map(|i| node.inputs[i]);
        let embedded = g.apply(self.embedding, &[t])?;
        let first = Linear(Epilogue::bias());
        let hidden = g.apply(first, &[embedded, w1, b1])?;
        let active = g.apply(Activate(self.act), &[hidden])?;
        let second = Linear(Epilogue { sample_bias: self.label, ..Epilogue::bias() });
        let inputs = [&[active], &node.inputs[3..]].concat();
        let scope = node.scope.clone();
        let layer = |inputs: Vec<Value>| Node { inputs, outputs: vec![], scope: scope.clone(), ..node.clone() };
        let mut dy = Some(dy);
        if self.last != Activation::Identity {
            let inner = g.apply(second, &inputs)?;
            dy = Activate(self.last).grad(g, &layer(vec![inner]), &[dy], &[true])?[0];
        }
        let through = wanted[1] || wanted[2];
        let wanted_second = [&[through], &wanted[3..]].concat();
        let mut grads = second.grad(g, &layer(inputs), &[dy], &wanted_second)?;
        let d_active = grads.remove(0);
        let mut all = vec![None; 3];
        if through {
            let d_hidden = Activate(self.act).grad(g, &layer(vec![hidden]), &[d_active], &[true])?;
            all = first.grad(g, &layer(vec![embedded, w1, b1]), &d_hidden, &[false, wanted[1], wanted[2]])?;
        }
        all.extend(grads);
        Ok(all)
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        target.stores(dtype)
    }

    fn stays_f32(&self, input: usize) -> bool {
        input == 0
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        if let Target::Cuda(target) = target {
            return self.lower_ptx(io, target);
        }
        if let Target::Wgpu(_) = target {
            return self.launches(io, target);
        }
        let (samples, hidden, n) = (io.outputs[0].rows(), io.inputs[1].cols(), io.outputs[0].cols());
        let launch = Launch::cpu(self.name(), kernel, io.inputs.len(), 1);
        let launch = launch.with_scratch(samples * self.embedding.dim).with_scratch(samples * hidden);
        let launch = launch.scalars([samples, hidden, n, self.act as usize]).scalar(self.label);
        let launch = launch.scalar(self.last as usize);
        Ok(vec![self.embedding.scalars(launch)])
    }
}

impl TimestepMlp {
    /// Threads of a block of the PTX kernels, and the samples that it takes.
    const THREADS: usize = 512;
    const SAMPLES: usize = 4;
    /// Bytes of the first weight up to which every block may read it.
    const SMALL: usize = 1 << 18;

    /// One launch if the first weight is small, and a block of outputs for each multiprocessor at most; else one for each layer.
    fn lower_ptx(&self, io: &Signature, target: &CudaTarget) -> Result<Vec<Launch>> {
        let (samples, n) = (io.outputs[0].rows(), io.outputs[0].cols());
        let (dim, hidden) = (self.embedding.dim, io.inputs[1].cols());
        let (tiles, dtype) = (samples.div_ceil(Self::SAMPLES), io.inputs[1].dtype);
        let grid = |cols: usize| [cols.div_ceil(PANEL), tiles, 1];
        let kernel = |entry: &str, shared: usize| {
            Ptx::new(self.name(), ptx!("timestep_mlp"), dtype).entry(format!("{entry}_{dtype}")).shared(shared)
        };
        let launch = |kernel: Ptx, cols: usize, args: &[Arg]| {
            Launch::ptx(kernel, grid(cols), Self::THREADS, args.iter().copied())
        };
        let scalars = |launch: Launch| {
            let launch = launch.scalars([samples, dim, hidden, self.act as usize]);
            launch.scalar(self.embedding.flip_sin_to_cos).scalars(self.embedding.f64_scalars())
        };
        // What four samples have at one place.
        let place = 4 * Self::SAMPLES;
        // Sums of the warps of a block lie there as well.
        let limit = (target.shared_bytes as usize).saturating_sub(place * PANEL * Self::THREADS / 32);
        if place * dim.max(hidden) > limit {
            let reason = format!("layers of {dim} and {hidden}; there is room for {}", limit / place);
            return Err(Error::unsupported(format!("`{}` on the cuda device", self.name()), reason));
        }
        let label = Arg::Input(if self.label { 5 } else { 0 });
        let blocks = n.div_ceil(PANEL) * tiles;
        let one = io.inputs[1].bytes() <= Self::SMALL && blocks <= target.multiprocessors as usize;
        if one && place * (dim + hidden) <= limit {
            let args = [0, 1, 2, 3, 4].map(Arg::Input);
            let args = [&args[..], &[label, Arg::Output(0)]].concat();
            let all = launch(kernel("timestep_mlp", place * (dim + hidden)), n, &args);
            return Ok(vec![scalars(all).scalar(n).scalar(self.label).scalar(self.last as usize)]);
        }
        let first = launch(kernel("timestep_mlp_hidden", place * dim), hidden, &[0, 1, 2].map(Arg::Input));
        let args = [Arg::Left(0, 0), Arg::Input(3), Arg::Input(4), label, Arg::Output(0)];
        let second = launch(kernel("timestep_mlp_out", place * hidden), n, &args);
        let first = scalars(first.with_scratch(tiles * hidden * Self::SAMPLES));
        let second = second.scalars([samples, hidden, n]).scalar(self.label).scalar(self.last as usize);
        Ok(vec![first, second])
    }

    /// Its ops one after the other.
    fn launches(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let input = |i: usize| (Arg::Input(i), io.inputs[i].clone());
        let first = Linear(Epilogue { activation: self.act, ..Epilogue::bias() });
        let second = Linear(Epilogue { sample_bias: self.label, activation: self.last, ..Epilogue::bias() });
        let mut chain = Chain::new(target);
        let embedded = chain.add(&self.embedding, vec![input(0)])?;
        let embedded = match io.outputs[0].dtype {
            DType::F32 => embedded,
            dtype => chain.add(&Cast(dtype), vec![embedded])?,
        };
        let hidden = chain.add(&first, vec![embedded, input(1), input(2)])?;
        let operands = (3..io.inputs.len()).map(input);
        chain.end(&second, [hidden].into_iter().chain(operands).collect())
    }
}

fn kernel(args: &Args) {
    let [samples, hidden, n] = [0, 1, 2].map(|i| args.int(i));
    let (activation, label) = (Activation::from_code(args.int(3)), args.flag(4));
    let (last, embedding) = (Activation::from_code(args.int(5)), TimestepEmbedding::of(args, 6));
    let out = 5 + label as usize;
    let x = args.slice_mut::<f32>(out + 1);
    embedding.embed(args.slice(0), x);
    let h = args.slice_mut::<f32>(out + 2);
    let first = gemm::Epilogue { bias: Some(args.slice(2)), activation, ..Default::default() };
    gemm(&Matrix { data: x, stride: embedding.dim }, args.slice(1), [samples, hidden, embedding.dim], &first, h);
    let sample_bias = label.then(|| gemm::SampleRows { data: args.slice(5), first: 0, stride: n });
    let bias = Some(args.slice(4));
    let second = gemm::Epilogue { bias, sample_bias, rows_per_sample: 1, activation: last, ..Default::default() };
    gemm(&Matrix { data: h, stride: hidden }, args.slice(3), [samples, n, hidden], &second, args.slice_mut(out));
}
