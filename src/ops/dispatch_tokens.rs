//! Tokens to the experts that they go to: a row for every pair, sorted by expert.

use super::embedding::expect_i32;
use super::lines::{by_pack, divisor};
use super::{CombineTokens, CombineWeightsGrad, expect_inputs, expect_plain, expect_shape};
use crate::cpu::threads::stretches;
use crate::graph::{Arg, Args, Cost, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, ptx, wgsl};
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// `y[p] = x[order[p] / k]`, or if `weighted` times weights\[order\[p\]\]   x `[T, D]`, order i32 `[T·k]` and places i32 `[T, k]` of
/// [`GroupByExpert`](super::GroupByExpert) (weights `[T, k]`) → y `[T·k, D]`. A number out of range gives a row of NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DispatchTokens {
    pub weighted: bool,
}

/// Checks what [`DispatchTokens`] and [`CombineTokens`] have in common; T and k.
pub(super) fn check_pairs(op: &str, inputs: &[&TensorType], weighted: bool) -> Result<[usize; 2]> {
    expect_inputs(op, inputs, 3 + weighted as usize)?;
    expect_plain(op, "x", inputs[0])?;
    let (&[tokens, chosen], true) = (&inputs[2].shape[..], inputs[0].shape.len() == 2 && inputs[0].cols() > 0) else {
        let reason = format!("takes rows [.., D] and places [T, k], got {} and {}", inputs[0], inputs[2]);
        return Err(Error::shape(op, reason));
    };
    expect_i32(op, "places", inputs[2], &[tokens, chosen])?;
    expect_i32(op, "order", inputs[1], &[tokens * chosen])?;
    if weighted {
        expect_shape(op, "weights", inputs[3], &[tokens, chosen])?;
    }
    Ok([tokens, chosen])
}

impl Op for DispatchTokens {
    fn name(&self) -> &'static str {
        "dispatch_tokens"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let [tokens, chosen] = check_pairs(self.name(), inputs, self.weighted)?;
        let width = inputs[0].cols();
        expect_shape(self.name(), "x", inputs[0], &[tokens, width])?;
        Ok(vec![TensorType::f32([tokens * chosen, width])])
    }

    fn cost(&self, io: &Signature) -> Cost {
        let moved = 2 * io.outputs[0].bytes() + io.inputs[1].bytes();
        let weights = io.inputs.get(3).map_or(0, TensorType::bytes);
        Cost { flops: self.weighted as u64 * io.out_elements(), bytes: (moved + weights) as u64 }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], wanted: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None; node.inputs.len()]) };
        let mut grads = vec![None; node.inputs.len()];
        if wanted[0] {
            let inputs = [&[dy], &node.inputs[1..]].concat();
            grads[0] = Some(g.apply(CombineTokens { weighted: self.weighted }, &inputs)?);
        }
        if self.weighted && wanted[3] {
            grads[3] = Some(g.apply(CombineWeightsGrad, &[node.inputs[0], dy, node.inputs[2]])?);
        }
        Ok(grads)
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let [tokens, chosen] = io.inputs[2].shape[..] else { return Ok(vec![]) };
        let launch = match target {
            Target::Cuda(_) => {
                let kernel = Ptx::new(self.name(), ptx!("dispatch_tokens"), DType::F32);
                let weights = Arg::Input(if self.weighted { 3 } else { 0 });
                let args = [Arg::Input(0), Arg::Input(1), weights, Arg::Output(0)];
                let launch = by_pack(kernel, DType::F32, io.outputs[0].elements(), io.inputs[0].cols(), args);
                let launch = launch.scalar(tokens * chosen).scalars(divisor(chosen));
                return Ok(vec![launch.scalar(self.weighted)]);
            }
            Target::Cpu => Launch::cpu(self.name(), kernel, io.inputs.len(), 1),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!("lib/flat", "dispatch_tokens"));
                let weights = Arg::Input(if self.weighted { 3 } else { 0 });
                let args = [Arg::Input(0), Arg::Input(1), weights, Arg::Output(0)];
                Launch::over(shader.flag("WEIGHTED", self.weighted), target, io.outputs[0].elements(), args, [3])
            }
        };
        Ok(vec![launch.scalars([tokens, chosen, io.inputs[0].cols()])])
    }
}

fn kernel(args: &Args) {
    let [tokens, chosen, width] = [0, 1, 2].map(|i| args.int(i));
    let (x, order) = (args.slice::<f32>(0), args.slice::<i32>(1));
    let weights = (args.len() == 5).then(|| args.slice::<f32>(3));
    stretches(args.slice_mut(args.len() - 1), width, |row, col, part| {
        let Some(pair) = usize::try_from(order[row]).ok().filter(|p| *p < tokens * chosen) else {
            return part.fill(f32::NAN);
        };
        let from = &x[pair / chosen * width + col..][..part.len()];
        match weights {
            None => part.copy_from_slice(from),
            Some(weights) => part.iter_mut().zip(from).for_each(|(y, x)| *y = weights[pair] * x),
        }
    });
}
