//! Optimisers: one launch over all parameters at once, moving averages of them included.

use super::{expect_inputs, expect_shape};
use crate::cpu::threads::{Ptr, ranges};
use crate::graph::{
    Arg, Args, Cost, FLAT_GROUP, FLAT_THREADS, Flat, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value,
    WgpuTarget, ptx, wgsl,
};
use crate::simd;
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// How parameters follow gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay   (Loshchilov & Hutter 2019)
    AdamW,
    /// Adam, weight decay added to the gradient   (Kingma & Ba 2015)
    Adam,
    /// Rectified Adam, weight decay added to the gradient   (Liu et al. 2020). Rectified from ρₜ > 5, as in the authors' code
    /// and PyTorch.
    RAdam,
}

/// One step over a region of P numbers. Inputs: params, grads, m, v `[P]`, `emas` averages `[P]`, hyper `[8 + emas]`,
/// grad_norm `[1]`; outputs: params, m, v, averages. Bound to the buffers of their inputs, outputs are updated in place.
///
/// hyper = lr, β₁, β₂, ε, weight decay λ, step t (from 1), grad_scale s, max_grad_norm (0: none), then a decay for each average.
/// With n = |s|·grad_norm, the norm of the scaled gradient, and g = s·min(1, max_grad_norm/(n + 10⁻⁶))·grads:
///
/// Adam, RAdam: g ← g + λ·p.  AdamW: p ← (1 − lr·λ)·p.
/// m ← β₁·m + (1 − β₁)·g,  v ← β₂·v + (1 − β₂)·g²,  m̂ = m/(1 − β₁ᵗ),  c₂ = 1 − β₂ᵗ
/// AdamW, Adam: p ← p − lr·m̂/(√(v/c₂) + ε)
/// RAdam: ρ∞ = 2/(1 − β₂) − 1, ρₜ = ρ∞ − 2t·β₂ᵗ/c₂; if ρₜ > 5, p ← p − lr·m̂·r·√c₂/(√v + ε),
/// r² = (ρₜ − 4)(ρₜ − 2)ρ∞/((ρ∞ − 4)(ρ∞ − 2)ρₜ); else p ← p − lr·m̂.
/// average ← average + (1 − decay)·(p − average)
///
/// Where grad_norm is not finite nothing changes. Corrections are formed in f64 from the f32 row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Optimizer {
    pub kind: OptimizerKind,
    pub emas: usize,
}

/// Packs of 16 bytes that a thread of `kernels/optimizer.cu` takes.
const OPTIMIZER_PACKS: usize = 16;

impl Optimizer {
    /// The most averages that one optimiser keeps.
    pub const MAX_EMAS: usize = 4;
    /// Numbers of `hyper` before the decays of the averages.
    pub const HYPER: usize = 8;
}

/// Decay of the power-function average at step t ≥ 1: (1 − 1/t)^(γ + 1)   (Karras et al. 2024)
pub fn power_ema_decay(step: u64, gamma: f64) -> f64 {
    (1.0 - 1.0 / step.max(1) as f64).powf(gamma + 1.0)
}

/// The γ of a power-function average whose profile has relative standard deviation `std`:
/// std² = (γ + 1)/((γ + 2)²(γ + 3))   (Karras et al. 2024, appendix C)
pub fn power_ema_gamma(std: f64) -> Result<f64> {
    let variance = |gamma: f64| (gamma + 1.0) / ((gamma + 2.0).powi(2) * (gamma + 3.0));
    if !(std > 0.0 && std * std <= variance(0.0)) {
        let reason = format!("the relative standard deviation must lie in (0, {:.4}], is {std}", variance(0.0).sqrt());
        return Err(Error::invalid("ema std", reason));
    }
    // The variance falls with γ ≥ 0 and is below 1/γ².
    let (mut low, mut high) = (0.0, 1.0 / std);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if variance(middle) > std * std { low = middle } else { high = middle }
    }
    Ok(0.5 * (low + high))
}

impl Op for Optimizer {
    fn name(&self) -> &'static str {
        "optimizer"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        if self.emas > Self::MAX_EMAS {
            let reason = format!("{} averages; it keeps {} at most", self.emas, Self::MAX_EMAS);
            return Err(Error::shape(self.name(), reason));
        }
        expect_inputs(self.name(), inputs, 6 + self.emas)?;
        let [count] = inputs[0].shape[..] else {
            return Err(Error::shape(self.name(), format!("params must be [P], is {}", inputs[0])));
        };
        let names = ["params", "grads", "m", "v"].into_iter().chain(std::iter::repeat_n("average", self.emas));
        names.zip(inputs).try_for_each(|(what, ty)| expect_shape(self.name(), what, ty, &[count]))?;
        expect_shape(self.name(), "hyper", inputs[4 + self.emas], &[Self::HYPER + self.emas])?;
        expect_shape(self.name(), "grad_norm", inputs[5 + self.emas], &[1])?;
        Ok(vec![inputs[0].clone(); 3 + self.emas])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: (16 + 3 * self.emas as u64) * io.out_elements(), bytes: io.bytes() }
    }

    fn grad(&self, _: &mut Graph, _: &Node, _: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        Err(Error::unsupported("the gradient of optimizer", "training steps are not differentiated"))
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (2, 1), (3, 2), (4, 3), (5, 4), (6, 5), (7, 6)]
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        Ok(match target {
            Target::Cuda(_) => {
                let n = io.inputs[0].elements();
                // The parameters stand for averages that are absent.
                let average = |i: usize, first: usize| if i < self.emas { first + i } else { 0 };
                let inputs =
                    (0..4).chain((0..Self::MAX_EMAS).map(|i| average(i, 4))).chain([4, 5].map(|i| i + self.emas));
                let outputs = (0..3).chain((0..Self::MAX_EMAS).map(|i| average(i, 3)));
                let args = inputs.map(Arg::Input).chain(outputs.map(Arg::Output));
                let kernel = Ptx::new(self.name(), ptx!("optimizer"), DType::F32);
                let blocks = n.div_ceil(FLAT_THREADS * 4 * OPTIMIZER_PACKS).max(1);
                let launch = Launch::ptx(kernel, [blocks, 1, 1], FLAT_THREADS, args);
                vec![launch.scalars([n, self.kind as usize, self.emas])]
            }
            Target::Cpu => {
                let launch = Launch::cpu(self.name(), kernel, 6 + self.emas, 3 + self.emas);
                vec![launch.scalars([self.emas, self.kind as usize])]
            }
            Target::Wgpu(target) => self.shaders(target, io.inputs[0].elements()),
        })
    }
}

impl Optimizer {
    /// Coefficients, then the step, then each average: no launch has more than eight arguments.
    fn shaders(&self, target: &WgpuTarget, elements: usize) -> Vec<Launch> {
        // All arguments but the coefficients, which are argument `of`, are regions.
        let region = |shader, args: &[Arg], of: usize| {
            let launch = Launch::wgsl(shader, target.grid(elements.div_ceil(FLAT_GROUP)), args.iter().copied());
            let arguments: Vec<usize> = (0..args.len()).filter(|i| *i != of).collect();
            let flat = Flat { elements, per_group: FLAT_GROUP, arguments: arguments.clone() };
            Launch { flat: Some(flat), ..launch.scalars([elements, 0]).anywhere(arguments) }
        };
        let shader = Shader::new("optimizer_coefficients", wgsl!("optimizer_coefficients"));
        let shader = shader.constant("KIND", self.kind as u32).constant("AVERAGES", self.emas as u32);
        let [hyper, norm] = [4, 5].map(|i| Arg::Input(i + self.emas));
        let coefficients = Launch::wgsl(shader, [1; 3], [hyper, norm]).anywhere([0, 1]).with_scratch(11 + self.emas);
        let left = Arg::Left(0, 0);
        let [params, grads, m, v] = [0, 1, 2, 3].map(Arg::Input);
        let args = [params, grads, m, v, left, Arg::Output(0), Arg::Output(1), Arg::Output(2)];
        let step = region(Shader::new(self.name(), wgsl!("lib/flat", "optimizer")), &args, 4);
        let average = |i: usize| {
            let args = [Arg::Output(0), Arg::Input(4 + i), left, Arg::Output(3 + i)];
            region(Shader::new("optimizer_average", wgsl!("lib/flat", "optimizer_average")), &args, 2).scalar(i)
        };
        [coefficients, step].into_iter().chain((0..self.emas).map(average)).collect()
    }
}

/// The step as one formula for every kind: g ← scale·g + l2·p, p ← keep·p − rate·m/(root·√v + floor).
#[derive(Clone, Copy)]
struct Coefficients {
    scale: f32,
    l2: f32,
    keep: f32,
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    rate: f32,
    root: f32,
    floor: f32,
}

impl Coefficients {
    /// `None` if there must be no update.
    fn new(kind: usize, hyper: &[f32], norm: f32) -> Option<Self> {
        let [lr, beta1, beta2, eps, decay, step, scale, max_norm] = std::array::from_fn(|i| hyper[i] as f64);
        if !norm.is_finite() {
            return None;
        }
        let clip = if max_norm > 0.0 { (max_norm / (scale.abs() * norm as f64 + 1e-6)).min(1.0) } else { 1.0 };
        let (c1, c2) = (1.0 - beta1.powf(step), 1.0 - beta2.powf(step));
        let adam = (lr / c1, 1.0 / c2.sqrt(), eps);
        let (rate, root, floor) = if kind == OptimizerKind::RAdam as usize {
            let limit = 2.0 / (1.0 - beta2) - 1.0;
            let length = limit - 2.0 * step * beta2.powf(step) / c2;
            if length > 5.0 {
                let r = (length - 4.0) * (length - 2.0) * limit / ((limit - 4.0) * (limit - 2.0) * length);
                (lr / c1 * r.sqrt() * c2.sqrt(), 1.0, eps)
            } else {
                (lr / c1, 0.0, 1.0)
            }
        } else {
            adam
        };
        let decoupled = kind == OptimizerKind::AdamW as usize;
        Some(Coefficients {
            scale: (scale * clip) as f32,
            l2: if decoupled { 0.0 } else { decay as f32 },
            keep: if decoupled { (1.0 - lr * decay) as f32 } else { 1.0 },
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            rest1: (1.0 - beta1) as f32,
            rest2: (1.0 - beta2) as f32,
            rate: rate as f32,
            root: root as f32,
            floor: floor as f32,
        })
    }
}

fn kernel(args: &Args) {
    match args.int(0) {
        0 => step::<0>(args),
        1 => step::<1>(args),
        2 => step::<2>(args),
        3 => step::<3>(args),
        _ => step::<4>(args),
    }
}

/// What a thread works on: where its part of every region is.
#[derive(Clone, Copy)]
struct Part<const E: usize> {
    grads: *const f32,
    /// params, m, v
    from: [*const f32; 3],
    to: [*mut f32; 3],
    averages: [*const f32; E],
    averages_to: [*mut f32; E],
}

fn step<const E: usize>(args: &Args) {
    let hyper = args.slice::<f32>(4 + E);
    let coefficients = Coefficients::new(args.int(1), hyper, args.slice::<f32>(5 + E)[0]);
    let follow: [f32; E] = std::array::from_fn(|e| (1.0 - hyper[Optimizer::HYPER + e] as f64) as f32);
    let at = |i: usize| Ptr::from_raw(args.ptr(i).0);
    let (grads, from, to) = (at(1), [at(0), at(2), at(3)], [0, 1, 2].map(|i| at(6 + E + i)));
    let averages: [Ptr<f32>; E] = std::array::from_fn(|e| at(4 + e));
    let averages_to: [Ptr<f32>; E] = std::array::from_fn(|e| at(9 + E + e));
    ranges(args.ptr(0).1, 16, |start, end| {
        let part = Part {
            grads: grads.raw().wrapping_add(start),
            from: from.map(|p| p.raw().wrapping_add(start) as *const f32),
            to: to.map(|p| p.raw().wrapping_add(start)),
            averages: averages.map(|p| p.raw().wrapping_add(start) as *const f32),
            averages_to: averages_to.map(|p| p.raw().wrapping_add(start)),
        };
        match coefficients {
            Some(c) => step_range(part, end - start, c, follow),
            None => {
                let pairs = part.from.into_iter().zip(part.to).chain(part.averages.into_iter().zip(part.averages_to));
                for (from, to) in pairs.filter(|(from, to)| !std::ptr::eq(*from, *to)) {
                    // SAFETY: `end - start` elements lie at every pointer; outputs are their inputs or apart from them.
                    unsafe { std::ptr::copy(from, to, end - start) };
                }
            }
        }
    });
}

simd! {
    fn step_range[const E: usize](part: Part<E>, n: usize, c: Coefficients, follow: [f32; E]) {
        let mut i = 0;
        while i + 16 <= n {
            // SAFETY: `n` elements lie at every pointer; each is read before it is written.
            unsafe {
                let read = |p: *const f32| (p.add(i) as *const [f32; 16]).read_unaligned();
                let write = |p: *mut f32, x: [f32; 16]| (p.add(i) as *mut [f32; 16]).write_unaligned(x);
                let ([mut p, mut m, mut v], g) = (part.from.map(read), read(part.grads));
                for l in 0..16 {
                    (p[l], m[l], v[l]) = element(p[l], g[l], m[l], v[l], &c);
                }
                write(part.to[0], p);
                write(part.to[1], m);
                write(part.to[2], v);
                for (e, follow) in follow.iter().enumerate() {
                    let mut a = read(part.averages[e]);
                    for l in 0..16 {
                        a[l] += follow * (p[l] - a[l]);
                    }
                    write(part.averages_to[e], a);
                }
            }
            i += 16;
        }
        while i < n {
            // SAFETY: as above.
            unsafe {
                let [p, m, v] = part.from.map(|x| *x.add(i));
                let (p, m, v) = element(p, *part.grads.add(i), m, v, &c);
                *part.to[0].add(i) = p;
                *part.to[1].add(i) = m;
                *part.to[2].add(i) = v;
                for (e, follow) in follow.iter().enumerate() {
                    let a = *part.averages[e].add(i);
                    *part.averages_to[e].add(i) = a + follow * (p - a);
                }
            }
            i += 1;
        }
    }
}

/// p, m, v after the step.
#[inline(always)]
fn element(p: f32, g: f32, m: f32, v: f32, c: &Coefficients) -> (f32, f32, f32) {
    let g = g * c.scale + c.l2 * p;
    let m = c.beta1 * m + c.rest1 * g;
    let v = c.beta2 * v + c.rest2 * g * g;
    (c.keep * p - c.rate * m / (v.sqrt() * c.root + c.floor), m, v)
}
