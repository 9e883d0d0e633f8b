//! A linear layer and the gated GELU of what it makes, in one launch where there is a kernel for that.

use super::chain::Chain;
use super::hopper::{End, Hopper};
use super::product::{Blocks, FEW_ROWS};
use super::{Epilogue, Geglu, GegluGrad, Linear};
use crate::Result;
use crate::cpu::gemm::Window;
use crate::graph::{Arg, Cost, CudaTarget, Graph, Launch, Node, Op, Signature, Target, Value};
use crate::tensor::{DType, TensorType};

/// y = a · gelu(b), GELU exact, a and b the halves of the rows of x · W (+ bias)   x `[…, K]`, W `[K, 2D]` in panels, bias `[2D]` if `bias`
/// → y `[…, D]`. The rows of x · W are in scratch as x's type, but for Hopper's kernels, which have them in registers as f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearGeglu {
    pub bias: bool,
}

impl LinearGeglu {
    fn linear(&self) -> Linear {
        Linear(Epilogue { bias: self.bias, ..Default::default() })
    }

    /// The launch of Hopper's kernel, if it has one that is faster than two launches.
    fn on_hopper(&self, io: &Signature, target: &CudaTarget) -> Option<Launch> {
        let (x, w, d) = (&io.inputs[0], &io.inputs[1], io.outputs[0].cols());
        let [m, k, n] = [x.rows(), x.cols(), w.cols()];
        if x.dtype == DType::F32 || m <= FEW_ROWS {
            return None;
        }
        let (window, others) = (Window::matrix(k), Blocks::new(1, [m, n, k], 128, target));
        let hopper = Hopper::new(&window, m, n, End::Geglu, &others, target)?;
        // What is absent is not read; x stands for it.
        let bias = Arg::Input(if self.bias { 2 } else { 0 });
        let launch = hopper.launch(self.name(), x.dtype, &[Arg::Input(0), Arg::Input(1), bias, Arg::Output(0)]);
        Some(launch.scalars([m, d]).scalars(hopper.steps()).scalar(self.bias))
    }
}

impl Op for LinearGeglu {
    fn name(&self) -> &'static str {
        "linear_geglu"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let wide = self.linear().infer(inputs)?;
        Geglu.infer(&wide.iter().collect::<Vec<_>>())
    }

    fn cost(&self, io: &Signature) -> Cost {
        let (k, bias) = (io.inputs[1].rows() as u64, self.bias as u64);
        Cost { flops: io.out_elements() * (2 * (2 * k + bias) + 9), bytes: io.bytes() }
    }

    /// The product again, and the gradients of both.
    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], wanted: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None; node.inputs.len()]) };
        let wide = g.apply(self.linear(), &node.inputs)?;
        let wide_grad = g.apply(GegluGrad, &[wide, dy])?;
        self.linear().grad(g, node, &[Some(wide_grad)], wanted)
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        target.stores(dtype)
    }

    fn equals(&self, other: &dyn Op) -> bool {
        other.downcast::<Self>() == Some(self)
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        if io.outputs[0].elements() == 0 {
            return Ok(vec![]);
        }
        if let Target::Cuda(cuda) = target
            && let Some(launch) = self.on_hopper(io, cuda)
        {
            return Ok(vec![launch]);
        }
        let inputs = io.inputs.iter().enumerate().map(|(i, ty)| (Arg::Input(i), ty.clone()));
        let mut chain = Chain::new(target);
        let wide = chain.add(&self.linear(), inputs.collect())?;
        chain.end(&Geglu, vec![wide])
    }
}
