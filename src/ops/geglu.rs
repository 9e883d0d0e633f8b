//! The gated GELU of transformer feed-forwards.

use super::lines::by_pack;
use super::{Activation, expect_inputs, expect_real, expect_typed};
use crate::cpu::threads::{Ptr, ranges};
use crate::graph::{Arg, Args, Cost, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, ptx, wgsl};
use crate::simd;
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// y = a · gelu(b), GELU exact, a and b the halves of x's last dimension   x `[…, 2D]` → y `[…, D]`   (Shazeer 2020)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geglu;

/// The type of y.
fn half(op: &str, x: &TensorType) -> Result<TensorType> {
    expect_real(op, "x", x)?;
    let mut shape = x.shape.clone();
    match shape.last_mut() {
        Some(c) if *c % 2 == 0 && *c > 0 => *c /= 2,
        _ => return Err(Error::shape(op, format!("x must be [.., 2D], is {x}"))),
    }
    Ok(x.with_shape(shape))
}

impl Op for Geglu {
    fn name(&self) -> &'static str {
        "geglu"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        Ok(vec![half(self.name(), inputs[0])?])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 9 * io.out_elements(), bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        Ok(vec![Some(g.apply(GegluGrad, &[node.inputs[0], dy])?)])
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        target.stores(dtype)
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let launch = match target {
            Target::Cuda(_) => {
                let (dtype, n) = (io.inputs[0].dtype, io.outputs[0].elements());
                let kernel = Ptx::new(self.name(), ptx!("geglu"), dtype);
                return Ok(vec![by_pack(kernel, dtype, n, io.outputs[0].cols(), [Arg::Input(0), Arg::Output(0)])]);
            }
            Target::Cpu => Launch::cpu(self.name(), forward, 1, 1),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!(io.inputs[0].dtype; "lib/flat", "lib/activation", "geglu"));
                let shader = shader.constant("ACTIVATION", Activation::Gelu as u32);
                Launch::over(shader, target, io.outputs[0].elements(), [Arg::Input(0), Arg::Output(0)], [1])
            }
        };
        Ok(vec![launch.scalar(io.outputs[0].cols())])
    }
}

/// The backward of [`Geglu`]: x, dy → dx, its halves dy · gelu(b) and dy · a · gelu'(b).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GegluGrad;

impl Op for GegluGrad {
    fn name(&self) -> &'static str {
        "geglu_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 2)?;
        let y = half(self.name(), inputs[0])?;
        expect_typed(self.name(), "dy", inputs[1], y.dtype, &y.shape)?;
        Ok(vec![inputs[0].clone()])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 12 * io.out_elements(), bytes: io.bytes() }
    }

    fn takes(&self, _: DType, target: &Target) -> bool {
        matches!(target, Target::Cuda(_))
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let launch = match target {
            Target::Cuda(_) => {
                let (dtype, n) = (io.inputs[0].dtype, io.inputs[1].elements());
                let kernel = Ptx::new(self.name(), ptx!("geglu_grad"), dtype);
                let args = [Arg::Input(0), Arg::Input(1), Arg::Output(0)];
                return Ok(vec![by_pack(kernel, dtype, n, io.inputs[1].cols(), args)]);
            }
            Target::Cpu => Launch::cpu(self.name(), backward, 2, 1),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!("lib/flat", "lib/activation", "geglu_grad"));
                let shader = shader.constant("ACTIVATION", Activation::Gelu as u32);
                let args = [Arg::Input(0), Arg::Input(1), Arg::Output(0)];
                Launch::over(shader, target, io.inputs[1].elements(), args, [])
            }
        };
        Ok(vec![launch.scalar(io.inputs[1].cols())])
    }
}

fn forward(args: &Args) {
    let d = args.int(0);
    let (x, y) = (args.slice::<f32>(0), args.slice_mut::<f32>(1));
    let n = y.len();
    let y = Ptr::new(y);
    ranges(n, d, |start, end| {
        // SAFETY: whole rows, each in one range.
        forward_rows(&x[2 * start..2 * end], d, unsafe { y.part(start, end - start) });
    });
}

simd! {
    fn forward_rows(x: &[f32], d: usize, y: &mut [f32]) {
        for (x, y) in x.chunks_exact(2 * d).zip(y.chunks_exact_mut(d)) {
            let (a, b) = x.split_at(d);
            for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                *y = a * Activation::Gelu.eval(*b);
            }
        }
    }
}

fn backward(args: &Args) {
    let d = args.int(0);
    let (x, dy) = (args.slice::<f32>(0), args.slice::<f32>(1));
    let dx = Ptr::new(args.slice_mut::<f32>(2));
    ranges(dy.len(), d, |start, end| {
        // SAFETY: whole rows, each in one range.
        backward_rows(&x[2 * start..2 * end], &dy[start..end], d, unsafe { dx.part(2 * start, 2 * (end - start)) });
    });
}

simd! {
    fn backward_rows(x: &[f32], dy: &[f32], d: usize, dx: &mut [f32]) {
        for ((x, dy), dx) in x.chunks_exact(2 * d).zip(dy.chunks_exact(d)).zip(dx.chunks_exact_mut(2 * d)) {
            let ((a, b), (da, db)) = (x.split_at(d), dx.split_at_mut(d));
            for i in 0..d {
                da[i] = dy[i] * Activation::Gelu.eval(b[i]);
                db[i] = dy[i] * a[i] * Activation::Gelu.derivative(b[i]);
            }
        }
    }
}
