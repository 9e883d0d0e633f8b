//! The answers of a token's experts, added up.

use super::dispatch_tokens::check_pairs;
use super::embedding::expect_i32;
use super::lanes::by_row;
use super::lines::by_pack;
use super::{DispatchTokens, expect_inputs, expect_plain, expect_shape};
use crate::cpu::threads::{Ptr, ranges, stretches};
use crate::graph::{
    Arg, Args, Cost, FLAT_THREADS, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, ptx, wgsl,
};
use crate::simd;
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// `y[t] = Σ_j x[places[t, j]]`, or if `weighted` each times weights\[t, j\]   x `[T·k, D]`, order i32 `[T·k]` and places i32
/// `[T, k]` of [`GroupByExpert`](super::GroupByExpert) (weights `[T, k]`) → y `[T, D]`. A number out of range gives NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CombineTokens {
    pub weighted: bool,
}

impl Op for CombineTokens {
    fn name(&self) -> &'static str {
        "combine_tokens"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let [tokens, chosen] = check_pairs(self.name(), inputs, self.weighted)?;
        let width = inputs[0].cols();
        expect_shape(self.name(), "x", inputs[0], &[tokens * chosen, width])?;
        Ok(vec![TensorType::f32([tokens, width])])
    }

    fn cost(&self, io: &Signature) -> Cost {
        let flops = (1 + self.weighted as u64) * io.inputs[0].elements() as u64;
        Cost { flops, bytes: io.bytes() - io.inputs[1].bytes() as u64 }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], wanted: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None; node.inputs.len()]) };
        let mut grads = vec![None; node.inputs.len()];
        if wanted[0] {
            let inputs = [&[dy], &node.inputs[1..]].concat();
            grads[0] = Some(g.apply(DispatchTokens { weighted: self.weighted }, &inputs)?);
        }
        if self.weighted && wanted[3] {
            grads[3] = Some(g.apply(CombineWeightsGrad, &[dy, node.inputs[0], node.inputs[2]])?);
        }
        Ok(grads)
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let [tokens, chosen] = io.inputs[2].shape[..] else { return Ok(vec![]) };
        let launch = match target {
            Target::Cuda(_) => {
                let kernel = Ptx::new(self.name(), ptx!("combine_tokens"), DType::F32);
                let weights = Arg::Input(if self.weighted { 3 } else { 0 });
                let args = [Arg::Input(0), Arg::Input(2), weights, Arg::Output(0)];
                let launch = by_pack(kernel, DType::F32, io.outputs[0].elements(), io.inputs[0].cols(), args);
                return Ok(vec![launch.scalars([tokens * chosen, chosen]).scalar(self.weighted)]);
            }
            Target::Cpu => Launch::cpu(self.name(), kernel, io.inputs.len(), 1),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!("lib/flat", "combine_tokens"));
                let weights = Arg::Input(if self.weighted { 3 } else { 0 });
                let args = [Arg::Input(0), Arg::Input(2), weights, Arg::Output(0)];
                Launch::over(shader.flag("WEIGHTED", self.weighted), target, io.outputs[0].elements(), args, [3])
            }
        };
        Ok(vec![launch.scalars([tokens, chosen, io.inputs[0].cols()])])
    }
}

fn kernel(args: &Args) {
    let [tokens, chosen, width] = [0, 1, 2].map(|i| args.int(i));
    let (x, places) = (args.slice::<f32>(0), args.slice::<i32>(2));
    let weights = (args.len() == 5).then(|| args.slice::<f32>(3));
    stretches(args.slice_mut(args.len() - 1), width, |token, col, part| {
        part.fill(0.0);
        for pair in token * chosen..(token + 1) * chosen {
            let Some(row) = usize::try_from(places[pair]).ok().filter(|p| *p < tokens * chosen) else {
                return part.fill(f32::NAN);
            };
            let from = &x[row * width + col..][..part.len()];
            let weight = weights.map_or(1.0, |w| w[pair]);
            part.iter_mut().zip(from).for_each(|(y, x)| *y += weight * x);
        }
    });
}

/// The gradient of the weights of [`CombineTokens`] and [`DispatchTokens`]: `dw[t, j] = a[t] · b[places[t, j]]`   a `[T, D]` by token,
/// b `[T·k, D]` by place, places i32 `[T, k]` → `[T, k]`. A number out of range gives NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CombineWeightsGrad;

impl Op for CombineWeightsGrad {
    fn name(&self) -> &'static str {
        "combine_weights_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 3)?;
        expect_plain(self.name(), "a", inputs[0])?;
        let ([tokens, width], [_, chosen]) = (&inputs[0].shape[..], &inputs[2].shape[..]) else {
            let reason = format!("takes a [T, D] and places [T, k], got {} and {}", inputs[0], inputs[2]);
            return Err(Error::shape(self.name(), reason));
        };
        expect_i32(self.name(), "places", inputs[2], &[*tokens, *chosen])?;
        expect_shape(self.name(), "b", inputs[1], &[tokens * chosen, *width])?;
        Ok(vec![TensorType::f32([*tokens, *chosen])])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 2 * io.inputs[1].elements() as u64, bytes: io.bytes() }
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let [tokens, chosen] = io.inputs[2].shape[..] else { return Ok(vec![]) };
        let (pairs, width) = (tokens * chosen, io.inputs[0].cols());
        Ok(vec![match target {
            Target::Cuda(_) => {
                let kernel = Ptx::new(self.name(), ptx!("combine_weights_grad"), DType::F32);
                let args = [Arg::Input(0), Arg::Input(1), Arg::Input(2), Arg::Output(0)];
                // A warp a pair.
                let blocks = pairs.div_ceil(FLAT_THREADS / 32).max(1);
                Launch::ptx(kernel, [blocks, 1, 1], FLAT_THREADS, args).scalars([pairs, width, chosen])
            }
            Target::Cpu => Launch::cpu(self.name(), weights_kernel, 3, 1).scalars([chosen, width]),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!("lib/lanes", "combine_weights_grad"));
                let args = [Arg::Input(0), Arg::Input(1), Arg::Input(2), Arg::Output(0)];
                by_row(shader, target, [pairs, width], args).scalars([pairs, chosen, width])
            }
        }])
    }
}

fn weights_kernel(args: &Args) {
    let [chosen, width] = [0, 1].map(|i| args.int(i));
    let (a, b, places) = (args.slice::<f32>(0), args.slice::<f32>(1), args.slice::<i32>(2));
    let out = args.slice_mut::<f32>(3);
    let (pairs, out) = (out.len(), Ptr::new(out));
    ranges(pairs, 1, |start, end| {
        // SAFETY: ranges do not overlap.
        let out = unsafe { out.part(start, end - start) };
        for (out, pair) in out.iter_mut().zip(start..end) {
            let row = usize::try_from(places[pair]).ok().filter(|p| *p < pairs);
            *out = row.map_or(f32::NAN, |row| dot(&a[pair / chosen * width..][..width], &b[row * width..][..width]));
        }
    });
}

simd! {
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        let mut sums = [0.0f32; 16];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
        for (a, b) in a.iter().zip(b) {
            for i in 0..16 { sums[i] += a[i] * b[i]; }
        }
        sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
    }
}
