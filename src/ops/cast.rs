//! Numbers in another type.

use super::expect_inputs;
use crate::cpu::threads::{Ptr, ranges};
use crate::graph::{Arg, Args, Cost, Launch, Op, Ptx, Shader, Signature, Target, ptx, wgsl};
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// y = x, f32 as f16 or bf16 or the other way; any shape and layout. To 16 bits it rounds to nearest, ties to even; what f16 cannot
/// hold becomes infinite. For inference: it has no gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cast(pub DType);

impl Op for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        match (inputs[0].dtype, self.0) {
            (DType::F32, DType::F16 | DType::Bf16) | (DType::F16 | DType::Bf16, DType::F32) => {
                Ok(vec![TensorType { dtype: self.0, ..inputs[0].clone() }])
            }
            (_, to) => {
                Err(Error::shape(self.name(), format!("between f32 and f16 or bf16 only, got {} to {to}", inputs[0])))
            }
        }
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 0, bytes: io.bytes() }
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        (matches!(target, Target::Cpu) && dtype == DType::F16) || target.stores(dtype)
    }

    fn equals(&self, other: &dyn Op) -> bool {
        other.downcast::<Self>() == Some(self)
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        Ok(vec![match (target, self.0) {
            (Target::Cuda(_), to) => {
                let (from, n) = (io.inputs[0].dtype, io.outputs[0].stored());
                let kernel = Ptx::new(self.name(), ptx!("cast"), from).entry(format!("cast_{from}_{to}"));
                Launch::ptx_flat(kernel, DType::F32, n, [Arg::Input(0), Arg::Output(0)])
            }
            (Target::Cpu, DType::F16) => Launch::cpu(self.name(), narrow, 1, 1),
            (Target::Cpu, _) => Launch::cpu(self.name(), widen, 1, 1),
            (Target::Wgpu(target), to) => {
                let shader = Shader::new(self.name(), wgsl!(DType::F16; "lib/flat", "cast"));
                let shader = shader.entry(if to == DType::F16 { "narrow" } else { "widen" });
                Launch::flat(shader, target, io.outputs[0].stored(), 1)
            }
        }])
    }
}

fn narrow(args: &Args) {
    convert(args.slice(0), args.slice_mut(1), |x: &[f32], y: &mut [f16]| y.convert_from_f32_slice(x));
}

fn widen(args: &Args) {
    convert(args.slice(0), args.slice_mut(1), |x: &[f16], y: &mut [f32]| x.convert_to_f32_slice(y));
}

/// Has `f` convert stretches of x.
fn convert<X: Sync, Y>(x: &[X], y: &mut [Y], f: impl Fn(&[X], &mut [Y]) + Sync) {
    let (n, y) = (x.len(), Ptr::new(y));
    ranges(n, 16, |start, end| {
        // SAFETY: ranges lie inside y, which is as long as x, and do not overlap.
        f(&x[start..end], unsafe { y.part(start, end - start) })
    });
}
