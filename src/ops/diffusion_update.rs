//! Every step of every sampler: a linear combination of tensors with coefficients from the schedule's row.

use super::{expect_inputs, expect_plain, expect_shape};
use crate::cpu::threads::{Ptr, ranges};
use crate::graph::{Arg, Args, Cost, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, ptx, wgsl};
use crate::simd;
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// y = clamp(Σᵢ cᵢ · xᵢ, −clip, clip), up to [`DiffusionUpdate::MAX_TERMS`] tensors of one shape; inputs: the coefficients
/// `[terms]`, then the tensors. Denoising and inversion (DDIM), CFG combination, Euler, Heun, multistep solvers, re-noising
/// and reflection are rows of it: predictions of ε, x₀, v and flow all are linear in (x, model output). f32 always.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DiffusionUpdate {
    pub terms: usize,
    pub clip: Option<f32>,
}

impl DiffusionUpdate {
    /// The most tensors that one update combines.
    pub const MAX_TERMS: usize = 6;
}

impl Op for DiffusionUpdate {
    fn name(&self) -> &'static str {
        "diffusion_update"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        if self.terms == 0 || self.terms > Self::MAX_TERMS {
            return Err(Error::shape(self.name(), format!("{} terms; it takes 1 to {}", self.terms, Self::MAX_TERMS)));
        }
        expect_inputs(self.name(), inputs, 1 + self.terms)?;
        expect_shape(self.name(), "coefficients", inputs[0], &[self.terms])?;
        expect_plain(self.name(), "x", inputs[1])?;
        inputs[2..].iter().try_for_each(|ty| expect_shape(self.name(), "x", ty, &inputs[1].shape))?;
        Ok(vec![inputs[1].clone()])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 2 * self.terms as u64 * io.out_elements(), bytes: io.bytes() }
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0)]
    }

    fn grad(&self, _: &mut Graph, _: &Node, _: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        Err(Error::unsupported("the gradient of diffusion_update", "samplers are not differentiated"))
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let clip = self.clip.unwrap_or(f32::INFINITY);
        Ok(vec![match target {
            Target::Cuda(_) => {
                // The first tensor stands for those that are absent.
                let x = (1..=Self::MAX_TERMS).map(|i| Arg::Input(if i <= self.terms { i } else { 1 }));
                let args = [Arg::Input(0)].into_iter().chain(x).chain([Arg::Output(0)]);
                let kernel = Ptx::new(self.name(), ptx!("diffusion_update"), DType::F32);
                let launch = Launch::ptx_flat(kernel, DType::F32, io.outputs[0].elements(), args);
                launch.scalar(self.terms).scalar(clip)
            }
            Target::Cpu => Launch::cpu(self.name(), kernel, 1 + self.terms, 1).scalar(clip),
            Target::Wgpu(target) => {
                // The first tensor stands for those that are absent.
                let x = (1..=Self::MAX_TERMS).map(|i| Arg::Input(if i <= self.terms { i } else { 1 }));
                let args = [Arg::Input(0)].into_iter().chain(x).chain([Arg::Output(0)]);
                let elements = io.outputs[0].elements();
                let launch = if !target.software && elements.is_multiple_of(4) {
                    let shader = Shader::new(self.name(), wgsl!("diffusion_update_fours"));
                    let launch = Launch::over(shader, target, elements, args, 1..Self::MAX_TERMS + 2);
                    // Only coefficients are parts of rows.
                    Launch { anywhere: vec![0], ..launch }
                } else {
                    let shader = Shader::new(self.name(), wgsl!("lib/flat", "diffusion_update"));
                    Launch::over(shader, target, elements, args, 1..Self::MAX_TERMS + 2)
                };
                launch.scalar(self.terms).scalar(clip)
            }
        }])
    }
}

fn kernel(args: &Args) {
    match args.len() - 2 {
        1 => combine::<1>(args),
        2 => combine::<2>(args),
        3 => combine::<3>(args),
        4 => combine::<4>(args),
        5 => combine::<5>(args),
        _ => combine::<6>(args),
    }
}

fn combine<const N: usize>(args: &Args) {
    let clip = args.float(0);
    let c: [f32; N] = std::array::from_fn(|i| args.slice::<f32>(0)[i]);
    let x: [Ptr<f32>; N] = std::array::from_fn(|i| Ptr::from_raw(args.ptr(i + 1).0));
    let (out, n) = args.ptr(N + 1);
    let out = Ptr::from_raw(out);
    ranges(n, 16, |start, end| {
        combine_range(c, x.map(|p| p.raw().wrapping_add(start)), out.raw().wrapping_add(start), end - start, clip)
    });
}

simd! {
    fn combine_range[const N: usize](c: [f32; N], x: [*mut f32; N], out: *mut f32, n: usize, clip: f32) {
        let mut i = 0;
        while i < n {
            let len = 16.min(n - i);
            let mut y = [0.0f32; 16];
            for k in 0..N {
                // A zero coefficient drops its term, whatever it holds: memory that nothing wrote yet, say.
                if c[k] == 0.0 { continue; }
                // SAFETY: `n` elements lie at every pointer; all of a chunk is read before it is written.
                unsafe {
                    if len == 16 {
                        let v = (x[k].add(i) as *const [f32; 16]).read_unaligned();
                        for (y, v) in y.iter_mut().zip(v) { *y += c[k] * v; }
                    } else {
                        for (l, y) in y.iter_mut().enumerate().take(len) { *y += c[k] * *x[k].add(i + l); }
                    }
                }
            }
            for (l, y) in y.iter().enumerate().take(len) {
                // NaN passes: the caller must see it.
                let y = if *y > clip { clip } else if *y < -clip { -clip } else { *y };
                // SAFETY: as above.
                unsafe { *out.add(i + l) = y };
            }
            i += len;
        }
    }
}
