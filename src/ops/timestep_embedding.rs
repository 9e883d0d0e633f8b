//! Sinusoidal embeddings of times and noise levels.

use super::lines::divisor;
use super::pieces::along;
use super::{expect_inputs, expect_shape};
use crate::cpu::threads::{Ptr, tasks};
use crate::graph::{
    Arg, Args, Cost, FLAT_THREADS, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, WgpuTarget, ptx,
    wgsl,
};
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// FLOPs counted for a sine or cosine.
const SINE: u64 = 20;

/// t `[B]` → `[B, dim]`: sin(aⱼ) for j < half, then cos(aⱼ) (the cosines first if `flip_sin_to_cos`), and a zero if dim is odd;
/// aⱼ = scale · t · max_period^(−j/(half − freq_shift)), half = ⌊dim/2⌋. The positional embedding of Vaswani et al. 2017 as
/// diffusers' `get_timestep_embedding` has it, and EDM's `PositionalEmbedding` with freq_shift 1 and max_period 10⁴. Angles are
/// formed in f64: they reach thousands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimestepEmbedding {
    pub dim: usize,
    pub flip_sin_to_cos: bool,
    pub freq_shift: f32,
    pub max_period: f32,
    pub scale: f32,
}

impl TimestepEmbedding {
    /// Number of frequencies, and the exponent's denominator.
    fn check(&self, op: &str) -> Result<()> {
        let half = self.dim / 2;
        if self.dim == 0 || self.max_period <= 0.0 || (half > 1 && half as f32 <= self.freq_shift) {
            return Err(Error::shape(op, format!("{self:?} has no frequencies")));
        }
        Ok(())
    }

    /// The logarithm of the quotient of neighbouring frequencies.
    fn exponent(&self) -> f64 {
        -(self.max_period as f64).ln() / ((self.dim / 2) as f64 - self.freq_shift as f64)
    }

    /// What kernels on devices make frequencies of: their quotient, and the turns a unit of t at the first.
    fn frequencies(&self) -> [f64; 2] {
        [self.exponent().exp(), self.scale as f64 / std::f64::consts::TAU]
    }

    /// The turns at the first frequency and the quotient as `kernels/lib/wave.cuh` takes numbers of f64: their lower and upper halves.
    pub(crate) fn f64_scalars(&self) -> [usize; 4] {
        let [quotient, first] = self.frequencies().map(|v| v.to_bits() as usize);
        let low = |bits: usize| bits & u32::MAX as usize;
        [low(first), first >> 32, low(quotient), quotient >> 32]
    }

    /// How `wave` of `shaders/lib/wave.wgsl` gets its frequencies.
    pub(crate) fn wide_scalars(&self) -> [[usize; 4]; 2] {
        self.frequencies().map(wide)
    }

    /// Appends its fields to a launch; read back by [`TimestepEmbedding::of`].
    pub(crate) fn scalars(&self, launch: Launch) -> Launch {
        let floats = [self.freq_shift, self.max_period, self.scale];
        launch.scalar(self.dim).scalar(self.flip_sin_to_cos).scalars(floats)
    }

    /// The embedding of a running kernel, from scalar `at`.
    pub(crate) fn of(args: &Args, at: usize) -> Self {
        TimestepEmbedding {
            dim: args.int(at),
            flip_sin_to_cos: args.flag(at + 1),
            freq_shift: args.float(at + 2),
            max_period: args.float(at + 3),
            scale: args.float(at + 4),
        }
    }

    /// The embedding of every time of `t`.
    pub(crate) fn embed(&self, t: &[f32], out: &mut [f32]) {
        let half = self.dim / 2;
        let exponent = self.exponent();
        let frequency = |j: usize| if j == 0 { 1.0 } else { (exponent * j as f64).exp() };
        let frequencies: Vec<f64> = (0..half).map(|j| frequency(j) * self.scale as f64).collect();
        waves(t, &frequencies, self.dim, self.flip_sin_to_cos, |t| t, out);
    }
}

/// The launch of a PTX kernel that takes a thread for each of `times` rows and `width` columns.
fn by_wave(kernel: Ptx, times: usize, width: usize, args: impl IntoIterator<Item = Arg>) -> Launch {
    let (threads, divisor) = (times * width, divisor(width));
    let blocks = threads.div_ceil(FLAT_THREADS).max(1);
    Launch::ptx(kernel, [blocks, 1, 1], FLAT_THREADS, args).scalar(threads).scalars(divisor)
}

/// A normal number or zero as the `Wide` of `shaders/lib/wide.wgsl`.
fn wide(v: f64) -> [usize; 4] {
    let bits = v.to_bits();
    let exponent = (bits >> 52 & 0x7ff) as i32 - 1022;
    let mantissa = if v == 0.0 { 0 } else { bits << 11 | 1 << 63 };
    [(mantissa >> 32) as u32, mantissa as u32, exponent as u32, v.is_sign_negative() as u32].map(|w| w as usize)
}

/// Rows of `dim`: the sines and cosines of frequency · f(t), zeros behind them.
fn waves(
    t: &[f32],
    frequencies: &[f64],
    dim: usize,
    cosines_first: bool,
    f: impl Fn(f64) -> f64 + Sync,
    out: &mut [f32],
) {
    let half = frequencies.len();
    let work = out.len() * SINE as usize;
    let out = Ptr::new(out);
    tasks(t.len(), work, |b| {
        // SAFETY: one row a task.
        let row = unsafe { out.part(b * dim, dim) };
        let (waves, rest) = row.split_at_mut(2 * half);
        rest.fill(0.0);
        let (first, second) = waves.split_at_mut(half);
        let (sines, cosines) = if cosines_first { (second, first) } else { (first, second) };
        let t = f(t[b] as f64);
        for ((s, c), frequency) in sines.iter_mut().zip(cosines).zip(frequencies) {
            let (sin, cos) = (t * frequency).sin_cos();
            (*s, *c) = (sin as f32, cos as f32);
        }
    });
}

/// Checks t `[B]`; B.
pub(crate) fn expect_times(op: &str, t: &TensorType) -> Result<usize> {
    let [samples] = t.shape[..] else { return Err(Error::shape(op, format!("t must be [B], is {t}"))) };
    expect_shape(op, "t", t, &[samples])?;
    Ok(samples)
}

impl Op for TimestepEmbedding {
    fn name(&self) -> &'static str {
        "timestep_embedding"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        self.check(self.name())?;
        Ok(vec![TensorType::f32([expect_times(self.name(), inputs[0])?, self.dim])])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: SINE * io.out_elements(), bytes: io.bytes() }
    }

    /// Times are data: nothing flows back.
    fn grad(&self, _: &mut Graph, _: &Node, _: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        Ok(vec![None])
    }

    fn equals(&self, other: &dyn Op) -> bool {
        other.downcast::<Self>() == Some(self)
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        Ok(vec![match target {
            Target::Cuda(_) => {
                let kernel = Ptx::new(self.name(), ptx!("timestep_embedding"), DType::F32);
                // A thread has a sine and its cosine, or the zero of an odd dim.
                let width = self.dim.div_ceil(2);
                let launch = by_wave(kernel, io.outputs[0].rows(), width, [Arg::Input(0), Arg::Output(0)]);
                launch.scalars([self.dim, self.flip_sin_to_cos as usize]).scalars(self.f64_scalars())
            }
            Target::Cpu => self.scalars(Launch::cpu(self.name(), kernel, 1, 1)),
            Target::Wgpu(target) => return along(0, &[], io, target, |io| Ok(vec![self.shader_launch(io, target)])),
        }])
    }
}

impl TimestepEmbedding {
    fn shader_launch(&self, io: &Signature, target: &WgpuTarget) -> Launch {
        let source = wgsl!("lib/flat", "lib/multiply", "lib/wide", "lib/turn", "lib/wave", "timestep_embedding");
        // A sine and a cosine at a time; the zero of an odd dim counts as well.
        let pairs = io.outputs[0].rows() * self.dim.div_ceil(2);
        let args = [Arg::Input(0), Arg::Output(0)];
        Launch::over(Shader::new(self.name(), source), target, pairs, args, [])
            .scalars([self.dim, self.flip_sin_to_cos as usize])
            .scalars(self.wide_scalars().into_iter().flatten())
    }
}

fn kernel(args: &Args) {
    TimestepEmbedding::of(args, 0).embed(args.slice(0), args.slice_mut(1));
}

/// t `[B]`, freqs `[half]` → `[B, 2·half]`: sin(aⱼ), then cos(aⱼ) (the cosines first if `flip_sin_to_cos`), aⱼ = 2π·freqsⱼ·t,
/// or 2π·freqsⱼ·ln t if `log`. Random Fourier features (Tancik et al. 2020; Song et al. 2021): diffusers'
/// `GaussianFourierProjection`, and EDM's `FourierEmbedding` with the cosines first. Frequencies are not trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FourierEmbedding {
    pub log: bool,
    pub flip_sin_to_cos: bool,
}

impl Op for FourierEmbedding {
    fn name(&self) -> &'static str {
        "fourier_embedding"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 2)?;
        let samples = expect_times(self.name(), inputs[0])?;
        expect_shape(self.name(), "freqs", inputs[1], &[inputs[1].elements()])?;
        Ok(vec![TensorType::f32([samples, 2 * inputs[1].elements()])])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: SINE * io.out_elements(), bytes: io.bytes() }
    }

    /// Times are data and frequencies are fixed: nothing flows back.
    fn grad(&self, _: &mut Graph, _: &Node, _: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        Ok(vec![None, None])
    }

    fn equals(&self, other: &dyn Op) -> bool {
        other.downcast::<Self>() == Some(self)
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        Ok(vec![match target {
            Target::Cuda(_) => {
                let kernel = Ptx::new(self.name(), ptx!("fourier_embedding"), DType::F32);
                let args = [Arg::Input(0), Arg::Input(1), Arg::Output(0)];
                let launch = by_wave(kernel, io.inputs[0].elements(), io.inputs[1].elements(), args);
                launch.scalars([self.log, self.flip_sin_to_cos])
            }
            Target::Cpu => {
                let launch = Launch::cpu(self.name(), fourier_kernel, 2, 1);
                launch.scalar(self.log).scalar(self.flip_sin_to_cos)
            }
            Target::Wgpu(target) => {
                let source = wgsl!("lib/flat", "lib/multiply", "lib/wide", "lib/turn", "lib/wave", "fourier_embedding");
                let shader =
                    Shader::new(self.name(), source).flag("LOG", self.log).flag("COSINES_FIRST", self.flip_sin_to_cos);
                let half = io.inputs[1].elements();
                let args = [Arg::Input(0), Arg::Input(1), Arg::Output(0)];
                Launch::over(shader, target, io.inputs[0].elements() * half, args, []).scalar(half)
            }
        }])
    }
}

fn fourier_kernel(args: &Args) {
    let (log, flip) = (args.flag(0), args.flag(1));
    let frequencies: Vec<f64> = args.slice::<f32>(1).iter().map(|f| *f as f64 * std::f64::consts::TAU).collect();
    let dim = 2 * frequencies.len();
    waves(args.slice(0), &frequencies, dim, flip, |t| if log { t.ln() } else { t }, args.slice_mut(2));
}
