//! Guidance that keeps the contrast of the conditional prediction.

use super::lanes::Samples;
use super::{expect_inputs, expect_plain, expect_shape};
use crate::cpu::threads::{Ptr, tasks};
use crate::graph::{
    Arg, Args, Cost, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, ptx, wgsl_with_sums,
};
use crate::simd;
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// y = combined · (φ·std(cond)/std(combined) + 1 − φ)   cond, combined `[B, …]`; std over each sample, n − 1 in the denominator
/// (Lin et al. 2024, "Common diffusion noise schedules and sample steps are flawed", equations 15 and 16). A constant
/// `combined` stays as it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GuidanceRescale {
    pub phi: f32,
}

impl Op for GuidanceRescale {
    fn name(&self) -> &'static str {
        "guidance_rescale"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 2)?;
        expect_plain(self.name(), "cond", inputs[0])?;
        expect_shape(self.name(), "combined", inputs[1], &inputs[0].shape)?;
        if inputs[0].shape.is_empty() {
            return Err(Error::shape(self.name(), "predictions must be [B, ..], are scalars"));
        }
        Ok(vec![inputs[0].clone()])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 9 * io.out_elements(), bytes: io.bytes() }
    }

    fn grad(&self, _: &mut Graph, _: &Node, _: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        Err(Error::unsupported("the gradient of guidance_rescale", "samplers are not differentiated"))
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(1, 0), (0, 0)]
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let samples = io.inputs[0].shape[0];
        Ok(match target {
            Target::Cuda(_) => {
                let over = Samples::new(samples, io.inputs[0].shape[1..].iter().product());
                let kernel = |entry: &str| Ptx::new(self.name(), ptx!("guidance_rescale"), DType::F32).entry(entry);
                let (cond, combined) = (Arg::Input(0), Arg::Input(1));
                let spreads = kernel("guidance_rescale_spreads_f32");
                let spreads = over.ptx(spreads, over.all(), [cond, combined]).with_scratch(4 * over.all());
                let args = [combined, Arg::Left(0, 0), Arg::Output(0)];
                vec![spreads, over.ptx(kernel("guidance_rescale_f32"), over.all(), args).scalar(self.phi)]
            }
            Target::Cpu => vec![Launch::cpu(self.name(), kernel, 2, 1).scalar(samples).scalar(self.phi)],
            Target::Wgpu(target) => {
                let over = Samples::new(samples, io.inputs[0].shape[1..].iter().product());
                let shader = Shader::new(self.name(), wgsl_with_sums!(target, DType::F32; "guidance_rescale"));
                let launch = |entry, args| over.launch(shader.clone().entry(entry), target, over.all(), args);
                let (cond, combined) = (Arg::Input(0), Arg::Input(1));
                let spreads = launch("spreads", [combined, Arg::Scratch(0), cond]).scalar(self.phi);
                let main = launch("main", [combined, Arg::Left(0, 0), Arg::Output(0)]).scalar(self.phi);
                vec![Launch { scratch: vec![16 * over.all()], ..spreads }, main]
            }
        })
    }
}

fn kernel(args: &Args) {
    let (samples, phi) = (args.int(0), args.float(1) as f64);
    let (out, len) = args.ptr(2);
    let [cond, combined, out] = [args.ptr(0).0, args.ptr(1).0, out].map(Ptr::from_raw);
    let n = len / samples.max(1);
    tasks(samples, len, |b| {
        // SAFETY: one sample of n elements a task; these views end before anything is written.
        let [cond, of] = [cond, combined].map(|x| spread(unsafe { x.part(b * n, n) }));
        let ratio = if of > 0.0 { (cond / of).sqrt() } else { 1.0 };
        let factor = (phi * ratio + 1.0 - phi) as f32;
        scale(combined.raw().wrapping_add(b * n), out.raw().wrapping_add(b * n), n, factor);
    });
}

simd! {
    /// Σ (x − mean)², in f64 across blocks of 4096.
    fn spread(x: &[f32]) -> f64 {
        use crate::cpu::simd::sum;
        let mean = x.chunks(4096).map(|c| sum(c, |v| v) as f64).sum::<f64>() / x.len().max(1) as f64;
        let mean = mean as f32;
        x.chunks(4096).map(|c| sum(c, |v| (v - mean) * (v - mean)) as f64).sum()
    }
}

simd! {
    fn scale(x: *const f32, out: *mut f32, n: usize, factor: f32) {
        for i in 0..n {
            // SAFETY: `n` elements lie at both pointers; each is read before it is written.
            unsafe { *out.add(i) = *x.add(i) * factor };
        }
    }
}
