//! Scaled dot-product attention, self and cross, over blocks of queries and keys: no matrix of scores is ever whole.

mod cpu;
mod cuda;
mod hopper;
mod wgpu;

use super::pieces::along;
use super::{expect_inputs, expect_real, expect_shape, expect_typed};
use crate::graph::{Args, Cost, Graph, Launch, Node, Op, Signature, Target, Value};
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// y = softmax(scale · q·kᵀ) · v in each head   (Vaswani et al. 2017; streaming softmax: Milakov & Gimelshein 2018,
/// Dao et al. 2022)
/// q `[B, Tq, heads·d]`, k `[B, Tk, heads·d]`, v `[B, Tk, heads·dv]`, a head's columns beside each other →
/// y `[B, Tq, heads·dv]`, lse `[B, heads, Tq]`: the logarithm of each softmax's denominator
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    pub heads: usize,
    pub scale: f32,
}

/// Sizes of one attention.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    pub batch: usize,
    pub queries: usize,
    pub keys: usize,
    pub heads: usize,
    /// Columns of a head of q and k, and of v.
    pub d: usize,
    pub dv: usize,
}

impl Attention {
    fn sizes(&self, op: &str, inputs: &[&TensorType]) -> Result<Sizes> {
        let (q, k, v) = (inputs[0], inputs[1], inputs[2]);
        [("q", q), ("k", k), ("v", v)].into_iter().try_for_each(|(what, ty)| expect_real(op, what, ty))?;
        let (&[batch, queries, c], &[_, keys, cv]) = (&q.shape[..], &v.shape[..]) else {
            return Err(Error::shape(op, format!("q, k, v must be [B, T, C], are {q}, {k}, {v}")));
        };
        let empty = [batch, queries, keys, c, cv].contains(&0);
        if empty || self.heads == 0 || c % self.heads != 0 || cv % self.heads != 0 || v.shape[0] != batch {
            return Err(Error::shape(op, format!("{} heads over q {q}, k {k}, v {v}", self.heads)));
        }
        expect_typed(op, "k", k, q.dtype, &[batch, keys, c])?;
        expect_typed(op, "v", v, q.dtype, &v.shape)?;
        Ok(Sizes { batch, queries, keys, heads: self.heads, d: c / self.heads, dv: cv / self.heads })
    }

    fn sizes_of(&self, op: &str, io: &Signature) -> Result<Sizes> {
        self.sizes(op, &io.inputs.iter().collect::<Vec<_>>())
    }
}

impl Sizes {
    fn scalars(&self, launch: Launch) -> Launch {
        launch.scalars([self.batch, self.queries, self.keys, self.heads, self.d, self.dv])
    }

    fn of(args: &Args) -> Self {
        let [batch, queries, keys, heads, d, dv] = [0, 1, 2, 3, 4, 5].map(|i| args.int(i));
        Sizes { batch, queries, keys, heads, d, dv }
    }

    /// Samples × heads.
    pub fn pairs(&self) -> usize {
        self.batch * self.heads
    }

    /// Elements of q·kᵀ.
    fn scores(&self) -> u64 {
        self.pairs() as u64 * self.queries as u64 * self.keys as u64
    }
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 3)?;
        let s = self.sizes(self.name(), inputs)?;
        let y = inputs[0].with_shape([s.batch, s.queries, s.heads * s.dv]);
        Ok(vec![y, TensorType::f32([s.batch, s.heads, s.queries])])
    }

    fn cost(&self, io: &Signature) -> Cost {
        let flops = self.sizes_of(self.name(), io).map_or(0, |s| s.scores() * (2 * (s.d + s.dv) as u64 + 8));
        Cost { flops, bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None; 3]) };
        let inputs = [&node.inputs[..], &node.outputs[..], &[dy]].concat();
        Ok(g.apply_all(AttentionGrad(*self), &inputs)?.into_iter().map(Some).collect())
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        target.stores(dtype)
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let s = self.sizes_of(self.name(), io)?;
        match target {
            Target::Cuda(target) => Ok(self.launches(&s, io.inputs[0].dtype, target)),
            Target::Cpu => Ok(vec![s.scalars(Launch::cpu(self.name(), cpu::forward, 3, 2)).scalar(self.scale)]),
            Target::Wgpu(target) => along(0, &[], io, target, |io| self.shaders(io, target)),
        }
    }
}

/// The backward of [`Attention`]: q, k, v, y, lse, dy → dq, dk, dv. With P = exp(scale·q·kᵀ − lse), made again block by block:
/// dv = Pᵀ·dy, dS = scale · P ∘ (dy·vᵀ − rowsum(dy ∘ y)), dq = dS·k, dk = dSᵀ·q.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionGrad(pub Attention);

impl Op for AttentionGrad {
    fn name(&self) -> &'static str {
        "attention_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 6)?;
        let s = self.0.sizes(self.name(), inputs)?;
        let (y, dtype) = ([s.batch, s.queries, s.heads * s.dv], inputs[0].dtype);
        expect_typed(self.name(), "y", inputs[3], dtype, &y)?;
        expect_shape(self.name(), "lse", inputs[4], &[s.batch, s.heads, s.queries])?;
        expect_typed(self.name(), "dy", inputs[5], dtype, &y)?;
        Ok(inputs[..3].iter().map(|ty| (*ty).clone()).collect())
    }

    fn cost(&self, io: &Signature) -> Cost {
        let sizes = self.0.sizes_of(self.name(), io);
        let flops = sizes.map_or(0, |s| s.scores() * (6 * s.d as u64 + 4 * s.dv as u64 + 10));
        Cost { flops, bytes: io.bytes() }
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        matches!(target, Target::Cuda(_)) && target.stores(dtype)
    }

    /// lse.
    fn stays_f32(&self, input: usize) -> bool {
        input == 4
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let s = self.0.sizes_of(self.name(), io)?;
        match target {
            Target::Cuda(target) if io.inputs[0].dtype != DType::F32 => {
                Ok(self.half_launches(&s, io.inputs[0].dtype, target))
            }
            Target::Cuda(target) => Ok(self.ptx_launches(&s, target)),
            Target::Cpu => {
                let (splits, _) = s.splits();
                let launch = Launch::cpu(self.name(), cpu::backward, 6, 3);
                let launch = if splits > 1 { launch.with_scratch(splits * io.inputs[0].elements()) } else { launch };
                Ok(vec![s.scalars(launch).scalar(self.0.scale)])
            }
            Target::Wgpu(target) => {
                along(0, &[], io, target, |io| self.wgsl_launches(&self.0.sizes_of(self.name(), io)?, target))
            }
        }
    }
}
