//! One factor a sample: y[b, …] = s[b] · x[b, …].

use super::{Binary, Reduce, expect_inputs, expect_plain, expect_shape};
use crate::cpu::threads::{Ptr, tasks};
use crate::graph::{Args, Graph, Launch, Node, Op, Signature, Target, Value};
use crate::tensor::TensorType;
use crate::{Error, Result};

/// y[b, …] = s[b] · x[b, …]   x `[B, …]`, s `[B]` → y `[B, …]`: noising and preconditioning at a level of each sample's own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaleSamples;

impl Op for ScaleSamples {
    fn name(&self) -> &'static str {
        "scale_samples"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 2)?;
        expect_plain(self.name(), "x", inputs[0])?;
        let Some(batch) = inputs[0].shape.first() else {
            return Err(Error::shape(self.name(), format!("x must be [B, …], is {}", inputs[0])));
        };
        expect_shape(self.name(), "s", inputs[1], &[*batch])?;
        Ok(vec![inputs[0].clone()])
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], wanted: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None, None]) };
        let (x, s) = (node.inputs[0], node.inputs[1]);
        let dx = if wanted[0] { Some(g.apply(ScaleSamples, &[dy, s])?) } else { None };
        let ds = if wanted[1] {
            let product = g.apply(Binary::Mul, &[x, dy])?;
            let batch = g.shape(s)[0];
            let each = g.ty(x).elements() / batch.max(1);
            Some(g.apply(Reduce::sum_middle(batch, each, 1).to_shape([batch]), &[product])?)
        } else {
            None
        };
        Ok(vec![dx, ds])
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let Target::Cpu = target;
        Ok(vec![Launch::cpu(self.name(), kernel, 2, 1).scalar(io.inputs[1].elements())])
    }
}

fn kernel(args: &Args) {
    let (x, n) = args.ptr(0);
    let (out, _) = args.ptr(2);
    let (x, out, s) = (Ptr::from_raw(x), Ptr::from_raw(out), args.slice::<f32>(1));
    let batch = args.int(0).max(1);
    let each = n / batch;
    tasks(batch, n, |b| scale(x.raw().wrapping_add(b * each), out.raw().wrapping_add(b * each), each, s[b]));
}

crate::simd! {
    fn scale(x: *const f32, out: *mut f32, n: usize, s: f32) {
        // SAFETY: n elements lie at both pointers, which are one place if the op runs in place; each is read, then written.
        (0..n).for_each(|i| unsafe { *out.add(i) = s * *x.add(i) });
    }
}
