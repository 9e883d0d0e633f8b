//! What an op must say of itself.

use super::{Graph, Launch, Node, Target, Value};
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};
use std::any::Any;
use std::fmt::Debug;
use std::ops::Add;

/// Types of the inputs and outputs of one application of an op.
#[derive(Clone, Debug, PartialEq)]
pub struct Signature {
    pub inputs: Vec<TensorType>,
    pub outputs: Vec<TensorType>,
}

impl Signature {
    /// Bytes of every input read once and every output written once.
    pub fn bytes(&self) -> u64 {
        self.inputs.iter().chain(&self.outputs).map(|t| t.bytes() as u64).sum()
    }

    /// Elements of the first output.
    pub fn out_elements(&self) -> u64 {
        self.outputs.first().map_or(0, |t| t.elements() as u64)
    }
}

/// What an op must do at least: arithmetic, and bytes moved if every input were read once and every output written once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    pub flops: u64,
    pub bytes: u64,
}

impl Add for Cost {
    type Output = Cost;
    fn add(self, other: Cost) -> Cost {
        Cost { flops: self.flops + other.flops, bytes: self.bytes + other.bytes }
    }
}

/// An operation on tensors: everything that is true of it on every device. Ops outside this crate implement the same trait.
pub trait Op: Any + Debug + Send + Sync {
    /// The op's one name: `group_norm`.
    fn name(&self) -> &'static str;

    /// Output types for the given input types, or an error that names both.
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>>;

    /// FLOPs and minimal bytes. The default: one FLOP an output element, all inputs and outputs once.
    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: io.out_elements(), bytes: io.bytes() }
    }

    /// Gradients of the inputs, as more graph. `dy[i]` is the gradient of output i, if anything depends on it;
    /// `wanted[i]` tells whether the gradient of input i is needed. The result has one entry an input.
    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], wanted: &[bool]) -> Result<Vec<Option<Value>>> {
        let _ = (g, node, dy, wanted);
        Err(Error::unsupported(format!("the gradient of {}", self.name()), "the op has no gradient rule"))
    }

    /// True if its numbers may be of a type of 16 bits in memory on `target`: all of its inputs that do not
    /// [stay f32](Op::stays_f32). [`Op::infer`] says which outputs are then of that type: values and their gradients; statistics and
    /// gradients of parameters are f32. What it computes with is f32 in any case.
    fn takes(&self, dtype: DType, target: &Target) -> bool {
        let _ = (dtype, target);
        false
    }

    /// True if that input is f32 also where the others are of 16 bits: a statistic.
    fn stays_f32(&self, input: usize) -> bool {
        let _ = input;
        false
    }

    /// True if it does little more than read its inputs and write its outputs: the backward pass may run it again instead of keeping
    /// what it made, see [`recompute`](crate::passes::recompute::recompute). On equal inputs it must give equal bits.
    fn is_cheap(&self) -> bool {
        false
    }

    /// Which kernels compute it on `target`: names, grids, arguments, scalars. Pure.
    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>>;

    /// Pairs (input, output): that output may be written over that input when nothing else needs the input. Both must have
    /// the same size, and the kernel must read each element before it writes there.
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[]
    }

    /// If output 0 is a stretch of input 0 as it lies in memory, under another shape maybe: the byte at which it begins, a multiple of
    /// [`ALIGN`](crate::device::ALIGN). Then it takes no launch and no memory.
    fn view(&self, io: &Signature) -> Option<usize> {
        let _ = io;
        None
    }

    /// True if `other` makes of equal inputs what this op makes of them, every time: then it need not be done twice.
    fn equals(&self, other: &dyn Op) -> bool {
        let _ = other;
        false
    }
}

impl dyn Op {
    /// The op as a concrete type, for passes that match on it.
    pub fn downcast<T: Op>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }
}
