//! The norm of all gradients.

use super::{expect_inputs, expect_plain};
use crate::cpu::simd;
use crate::cpu::threads::{Ptr, tasks};
use crate::graph::{
    Arg, Args, Cost, FLAT_THREADS, Flat, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, ptx,
    wgsl_with_sums,
};
use crate::simd;
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// x, any shape → ‖x‖₂ `[1]`: f32 sums of 4096 squares, f64 above, the same on any number of threads. Numbers beyond 10¹⁹ and
/// NaN make it infinite or NaN, which [`super::Optimizer`] takes as a step to leave out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GradNorm;

/// Elements in one partial sum.
const CHUNK: usize = 1 << 16;

/// Elements of a workgroup of the shader.
const STRETCH: usize = 1 << 14;

impl Op for GradNorm {
    fn name(&self) -> &'static str {
        "grad_norm"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        expect_plain(self.name(), "x", inputs[0])?;
        Ok(vec![TensorType::f32([1])])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 2 * io.inputs[0].elements() as u64, bytes: io.bytes() }
    }

    fn grad(&self, _: &mut Graph, _: &Node, _: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        Err(Error::unsupported("the gradient of grad_norm", "training steps are not differentiated"))
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let elements = io.inputs[0].elements();
        Ok(match target {
            Target::Cuda(_) => {
                let count = elements.div_ceil(STRETCH).max(1);
                let kernel = |entry: &str| Ptx::new(self.name(), ptx!("grad_norm"), DType::F32).entry(entry);
                let squares =
                    Launch::ptx(kernel("grad_norm_squares_f32"), [count, 1, 1], FLAT_THREADS, [Arg::Input(0)]);
                let squares = squares.with_scratch(count).scalars([elements, STRETCH]);
                let args = [Arg::Left(0, 0), Arg::Output(0)];
                vec![squares, Launch::ptx(kernel("grad_norm_f32"), [1; 3], FLAT_THREADS, args).scalar(count)]
            }
            Target::Cpu => {
                // Two f32 hold one f64.
                let partial = 2 * elements.div_ceil(CHUNK).max(1);
                vec![Launch::cpu(self.name(), kernel, 1, 1).with_scratch(partial)]
            }
            Target::Wgpu(target) => {
                let count = elements.div_ceil(STRETCH);
                let shader = Shader::new("grad_norm_squares", wgsl_with_sums!(target, DType::F32; "grad_norm_squares"));
                let sums = Launch::wgsl(shader, target.grid(count), [Arg::Input(0)]);
                let flat = Flat { elements, per_group: STRETCH, arguments: vec![0] };
                let sums = Launch { flat: Some(flat), ..sums.scalars([elements, 0]).anywhere([0]) };
                let shader = Shader::new(self.name(), wgsl_with_sums!(target, DType::F32; "grad_norm"));
                let root = Launch::wgsl(shader, [1; 3], [Arg::Left(0, 0), Arg::Output(0)]).scalar(count);
                vec![sums.with_scratch(count), root]
            }
        })
    }
}

fn kernel(args: &Args) {
    let (x, partial) = (args.slice::<f32>(0), args.slice_mut::<f64>(2));
    partial.fill(0.0);
    let sums = Ptr::new(partial);
    tasks(x.len().div_ceil(CHUNK), x.len(), |i| {
        // SAFETY: one sum a task.
        let sum = unsafe { sums.part(i, 1) };
        sum[0] = sum_of_squares(&x[i * CHUNK..((i + 1) * CHUNK).min(x.len())]);
    });
    args.slice_mut::<f32>(1)[0] = partial.iter().sum::<f64>().sqrt() as f32;
}

simd! {
    fn sum_of_squares(x: &[f32]) -> f64 {
        x.chunks(4096).map(|c| simd::sum(c, |v| v * v) as f64).sum()
    }
}
