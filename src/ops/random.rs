//! Random tensors that depend on seeds and counters alone.

use super::embedding::expect_i32;
use super::lines::divisor;
use super::{expect_inputs, expect_shape};
use crate::cpu::philox;
use crate::cpu::simd::{cos_sin_turn, ln};
use crate::cpu::threads::{Ptr, tasks};
use crate::graph::{Arg, Args, Cost, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, ptx, wgsl};
use crate::simd;
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// A distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RandomKind {
    /// Mean 0, variance 1, by Box & Muller (1958).
    Normal,
    /// Uniform in [0, 1), multiples of 2⁻²⁴.
    Uniform,
}

/// Random numbers of `shape` `[B, …]`; inputs: seeds i32 `[B, 2]`, one 64-bit seed (low word first) for each sample, and draw
/// `[1]`, a whole number below 2²⁴ from the schedule's row. Element e of a sample comes from word e mod 4 of
/// Philox 4x32-10 with the seed as key and (⌊e/4⌋, draw, `stream`, 0) as counter: it does not depend on the batch or on threads.
///
/// Normal: words w₀, w₁ give r = √(−2 ln u), u = (⌊w₀/2⁸⌋ + 1)/2²⁴, and the pair r·cos θ, r·sin θ, θ = 2π⌊w₁/2⁸⌋/2²⁴; words
/// w₂, w₃ the next pair. Within 1e-6·(1 + |y|) of the exact function of the words on every device, |y| ≤ 5.77.
#[derive(Clone, Debug, PartialEq)]
pub struct Random {
    pub kind: RandomKind,
    pub shape: Vec<usize>,
    pub stream: u32,
}

/// Elements that come from one call of [`philox::block`].
pub(crate) const BLOCK: usize = 4 * philox::LANES;

/// Checks seeds and draw, the inputs of every random op, for `samples` samples of `elements`.
pub(crate) fn expect_seeds(op: &str, seeds: &TensorType, draw: &TensorType, shape: &[usize]) -> Result<()> {
    let [samples, rest @ ..] = shape else { return Err(Error::shape(op, "a scalar has no samples")) };
    if rest.iter().product::<usize>().div_ceil(4) > u32::MAX as usize {
        return Err(Error::shape(op, format!("a sample of {rest:?} has more elements than the counter counts")));
    }
    expect_i32(op, "seeds", seeds, &[*samples, 2])?;
    expect_shape(op, "draw", draw, &[1])
}

/// Splits `samples` samples of `n` elements into tasks of whole blocks: `f(sample, key, first element, length)`.
pub(crate) fn sample_blocks(seeds: &[i32], n: usize, f: impl Fn(usize, [u32; 2], usize, usize) + Sync) {
    const SHARE: usize = 64 * BLOCK;
    let samples = seeds.len() / 2;
    let pieces = n.div_ceil(SHARE);
    // A random number is worth some eight plain elements.
    tasks(samples * pieces, samples * n * 8, |task| {
        let (sample, first) = (task / pieces, task % pieces * SHARE);
        let key = [seeds[2 * sample] as u32, seeds[2 * sample + 1] as u32];
        f(sample, key, first, SHARE.min(n - first));
    });
}

impl Op for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 2)?;
        expect_seeds(self.name(), inputs[0], inputs[1], &self.shape)?;
        Ok(vec![TensorType::f32(self.shape.clone())])
    }

    fn cost(&self, io: &Signature) -> Cost {
        // Ten rounds of two products and four exclusive ors make four words; a normal pair takes about 40 more.
        let each = if self.kind == RandomKind::Normal { 35 } else { 16 };
        Cost { flops: each * io.out_elements(), bytes: io.bytes() }
    }

    /// Nothing flows back into seeds.
    fn grad(&self, _: &mut Graph, _: &Node, _: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        Ok(vec![None, None])
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let n: usize = io.outputs[0].shape[1..].iter().product();
        let sizes = [n, self.stream as usize];
        let normal = self.kind == RandomKind::Normal;
        Ok(vec![match target {
            Target::Cuda(_) => {
                let args = [Arg::Input(0), Arg::Input(1), Arg::Output(0)];
                let kernel = Ptx::new(self.name(), ptx!("random"), DType::F32);
                let launch = Launch::ptx_flat(kernel, DType::F32, io.outputs[0].elements(), args);
                launch.scalars(divisor(n)).scalar(self.stream as usize).scalar(normal)
            }
            Target::Cpu => Launch::cpu(self.name(), kernel, 2, 1).scalars(sizes).scalar(normal),
            Target::Wgpu(target) => {
                let source = wgsl!("lib/flat", "lib/multiply", "lib/philox", "lib/turn", "random");
                let shader = Shader::new(self.name(), source).flag("NORMAL", normal);
                let args = [Arg::Input(0), Arg::Input(1), Arg::Output(0)];
                Launch::over(shader, target, io.outputs[0].elements(), args, [2]).scalars(sizes)
            }
        }])
    }
}

fn kernel(args: &Args) {
    let (n, stream, normal) = (args.int(0), args.int(1) as u32, args.flag(2));
    let (seeds, draw) = (args.slice::<i32>(0), args.slice::<f32>(1)[0] as u32);
    let out = Ptr::new(args.slice_mut::<f32>(2));
    sample_blocks(seeds, n, |sample, key, first, len| {
        // SAFETY: tasks have parts of their own.
        let out = unsafe { out.part(sample * n + first, len) };
        fill(normal, key, first as u32 / 4, [draw, stream, 0], out);
    });
}

simd! {
    fn fill(normal: bool, key: [u32; 2], first: u32, rest: [u32; 3], out: &mut [f32]) {
        for (i, out) in out.chunks_mut(BLOCK).enumerate() {
            let words = philox::block(key, first + (i * philox::LANES) as u32, rest);
            let numbers = if normal {
                let ([a, b], [c, d]) = (normal_pairs(&words[0], &words[1]), normal_pairs(&words[2], &words[3]));
                [a, b, c, d]
            } else {
                words.each_ref().map(uniforms)
            };
            for (l, out) in out.chunks_mut(4).enumerate() {
                for (word, y) in out.iter_mut().enumerate() { *y = numbers[word][l]; }
            }
        }
    }
}

/// The uniform number of every lane.
#[inline(always)]
fn uniforms(words: &[u32; philox::LANES]) -> [f32; philox::LANES] {
    let mut numbers = [0.0; philox::LANES];
    for (x, w) in numbers.iter_mut().zip(words) {
        *x = philox::uniform(*w);
    }
    numbers
}

/// r·cos θ and r·sin θ of a word for r and a word for θ, lane by lane.
#[inline(always)]
fn normal_pairs(radius: &[u32; philox::LANES], angle: &[u32; philox::LANES]) -> [[f32; philox::LANES]; 2] {
    let mut pairs = [[0.0; philox::LANES]; 2];
    for l in 0..philox::LANES {
        let r = (-2.0 * ln(philox::uniform(radius[l]) + 1.0 / 16_777_216.0)).sqrt();
        let (cos, sin) = cos_sin_turn(philox::uniform(angle[l]));
        pairs[0][l] = r * cos;
        pairs[1][l] = r * sin;
    }
    pairs
}
