//! Tokens sorted by the expert that they go to.

use super::embedding::expect_i32;
use super::expect_inputs;
use crate::graph::{Arg, Args, Cost, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, ptx, wgsl};
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// Threads of a block of the PTX kernel.
const SORT_THREADS: usize = 1024;

/// A stable counting sort of the pairs of a token and an expert, by expert.   experts i32 `[T, k]` → order i32 `[T·k]`, places
/// i32 `[T, k]`, offsets i32 `[E + 1]`
///
/// Pair t·k + j is token t's with its expert j. `order` lists the pairs, those of expert 0 first, each expert's by token; `places` is
/// its inverse; the pairs of expert e stand at offsets\[e\] to before offsets\[e + 1\]. A number that is no expert's counts as the last
/// one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupByExpert {
    /// E
    pub experts: usize,
}

impl Op for GroupByExpert {
    fn name(&self) -> &'static str {
        "group_by_expert"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        let [tokens, chosen] = inputs[0].shape[..] else {
            return Err(Error::shape(self.name(), format!("experts must be [T, k], are {}", inputs[0])));
        };
        expect_i32(self.name(), "experts", inputs[0], &[tokens, chosen])?;
        if self.experts == 0 || i32::try_from(tokens * chosen).is_err() {
            let reason = format!("{} pairs of {} experts cannot be sorted", inputs[0], self.experts);
            return Err(Error::shape(self.name(), reason));
        }
        Ok(vec![TensorType::i32([tokens * chosen]), inputs[0].clone(), TensorType::i32([self.experts + 1])])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 0, bytes: io.bytes() }
    }

    /// Numbers of places: nothing flows back.
    fn grad(&self, _: &mut Graph, _: &Node, _: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        Ok(vec![None])
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let launch = match target {
            Target::Cuda(_) => {
                let pairs = io.inputs[0].elements();
                let kernel = Ptx::new(self.name(), ptx!("group_by_expert"), DType::I32);
                let args = [Arg::Input(0), Arg::Output(0), Arg::Output(1), Arg::Output(2)];
                let launch = Launch::ptx(kernel, [self.experts, 1, 1], SORT_THREADS, args);
                // A warp takes a stretch of the pairs, 128 at a time.
                let stretch = pairs.div_ceil(SORT_THREADS / 32).next_multiple_of(128);
                return Ok(vec![launch.scalars([pairs, self.experts, stretch])]);
            }
            Target::Cpu => Launch::cpu(self.name(), kernel, 1, 3),
            Target::Wgpu(target) => {
                let args = [Arg::Input(0), Arg::Output(0), Arg::Output(1), Arg::Output(2)];
                Launch::wgsl(Shader::new(self.name(), wgsl!("group_by_expert")), target.grid(self.experts), args)
            }
        };
        Ok(vec![launch.scalars([io.inputs[0].elements(), self.experts])])
    }
}

fn kernel(args: &Args) {
    let last = args.int(1) - 1;
    let (experts, order) = (args.slice::<i32>(0), args.slice_mut::<i32>(1));
    let (places, offsets) = (args.slice_mut::<i32>(2), args.slice_mut::<i32>(3));
    let of = |e: i32| usize::try_from(e).map_or(last, |e| e.min(last));
    offsets.fill(0);
    experts.iter().for_each(|e| offsets[of(*e) + 1] += 1);
    (1..offsets.len()).for_each(|e| offsets[e] += offsets[e - 1]);
    for (pair, e) in experts.iter().enumerate() {
        // The start of a group runs to its end, which is the start of the next one.
        let next = &mut offsets[of(*e)];
        (order[*next as usize], places[pair]) = (pair as i32, *next);
        *next += 1;
    }
    offsets.copy_within(0..last + 1, 1);
    offsets[0] = 0;
}
