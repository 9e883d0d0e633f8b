//! y = s · x with a number known at run time.

use super::{Binary, Reduce, expect_inputs, expect_real, expect_shape};
use crate::Result;
use crate::cpu::threads::{Ptr, ranges};
use crate::graph::{Arg, Args, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, ptx, wgsl};
use crate::simd;
use crate::tensor::{DType, TensorType};

/// y = s₀ · x   x any shape, s `[1]`
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScaleBy;

impl Op for ScaleBy {
    fn name(&self) -> &'static str {
        "scale_by"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 2)?;
        expect_real(self.name(), "x", inputs[0])?;
        expect_shape(self.name(), "s", inputs[1], &[1])?;
        Ok(vec![inputs[0].clone()])
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], wanted: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None, None]) };
        let (x, s) = (node.inputs[0], node.inputs[1]);
        let dx = if wanted[0] { Some(g.apply(ScaleBy, &[dy, s])?) } else { None };
        let ds = if wanted[1] {
            let products = g.apply(Binary::Mul, &[x, dy])?;
            let sum = Reduce::sum_middle(1, g.ty(products).elements(), 1);
            Some(g.apply(sum.to_shape([1]), &[products])?)
        } else {
            None
        };
        Ok(vec![dx, ds])
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn takes(&self, _: DType, target: &Target) -> bool {
        matches!(target, Target::Cuda(_))
    }

    fn stays_f32(&self, input: usize) -> bool {
        input == 1
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        Ok(vec![match target {
            Target::Cuda(_) => {
                let (dtype, n) = (io.inputs[0].dtype, io.outputs[0].stored());
                let kernel = Ptx::new(self.name(), ptx!("scale_by"), dtype);
                Launch::ptx_flat(kernel, dtype, n, [Arg::Input(0), Arg::Input(1), Arg::Output(0)])
            }
            Target::Cpu => Launch::cpu(self.name(), kernel, 2, 1),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!("lib/flat", "scale_by"));
                Launch::flat(shader, target, io.outputs[0].stored(), 2).whole(1)
            }
        }])
    }
}

fn kernel(args: &Args) {
    let scale = args.slice::<f32>(1)[0];
    let (out, n) = args.ptr(2);
    let (x, out) = (Ptr::from_raw(args.ptr(0).0), Ptr::from_raw(out));
    ranges(n, 16, |start, end| scaled(x.raw().wrapping_add(start), out.raw().wrapping_add(start), end - start, scale));
}

simd! {
    fn scaled(x: *const f32, out: *mut f32, n: usize, scale: f32) {
        for i in 0..n {
            // SAFETY: `n` elements lie at both pointers; each is read before it is written.
            unsafe { *out.add(i) = *x.add(i) * scale };
        }
    }
}
