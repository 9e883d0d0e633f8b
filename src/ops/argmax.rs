//! Where the largest number stands.

use super::lanes::by_row;
use super::lines::by_team;
use super::{expect_inputs, expect_plain};
use crate::cpu::threads::{Ptr, ranges};
use crate::graph::{Arg, Args, Cost, Graph, Launch, Node, Op, Shader, Signature, Target, Value, ptx, wgsl};
use crate::tensor::TensorType;
use crate::{Error, Result};

/// x `[…, N]` → i32 `[…]`: the first index of the largest number of each row. NaN is never larger; a row of NaN gives 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Argmax;

impl Op for Argmax {
    fn name(&self) -> &'static str {
        "argmax"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        expect_plain(self.name(), "x", inputs[0])?;
        match &inputs[0].shape[..] {
            [rest @ .., n] if *n > 0 => Ok(vec![TensorType::i32(rest)]),
            _ => Err(Error::shape(self.name(), format!("x must be [.., N], is {}", inputs[0]))),
        }
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: io.inputs[0].elements() as u64, bytes: io.bytes() }
    }

    /// Constant almost everywhere: nothing flows back.
    fn grad(&self, _: &mut Graph, _: &Node, _: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        Ok(vec![None])
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let dims = [io.inputs[0].rows(), io.inputs[0].cols()];
        Ok(vec![match target {
            Target::Cuda(_) => {
                by_team(self.name(), ptx!("argmax"), dims, [Arg::Input(0), Arg::Output(0)]).scalars(dims)
            }
            Target::Cpu => Launch::cpu(self.name(), kernel, 1, 1).scalar(dims[1]),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!("argmax"));
                by_row(shader, target, dims, [Arg::Input(0), Arg::Output(0)]).scalars(dims)
            }
        }])
    }
}

fn kernel(args: &Args) {
    let n = args.int(0);
    let (x, out) = (args.slice::<f32>(0), args.slice_mut::<i32>(1));
    let (rows, out) = (out.len(), Ptr::new(out));
    ranges(rows, 1, |start, end| {
        // SAFETY: ranges do not overlap.
        let out = unsafe { out.part(start, end - start) };
        for (x, out) in x[start * n..end * n].chunks_exact(n).zip(out) {
            let largest = x.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            *out = x.iter().position(|v| *v == largest).unwrap_or(0) as i32;
        }
    });
}
