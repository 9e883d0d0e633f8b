//! Ops that are made of others.

use crate::Result;
use crate::graph::{Arg, Launch, Op, Signature, Target};
use crate::tensor::TensorType;

/// The launches of ops one after the other, with what is between them in scratch: those of one op that does what all of them do.
pub(super) struct Chain<'a> {
    target: &'a Target,
    launches: Vec<Launch>,
}

/// What an op of a chain reads: an argument of a launch, and its type.
pub(super) type Operand = (Arg, TensorType);

impl<'a> Chain<'a> {
    pub fn new(target: &'a Target) -> Self {
        Chain { target, launches: vec![] }
    }

    /// Adds an op that makes something for those behind it.
    pub fn add(&mut self, op: &dyn Op, inputs: Vec<Operand>) -> Result<Operand> {
        let (launches, between) = self.lower(op, inputs)?;
        let mut made = Arg::Output(0);
        for mut launch in launches {
            if launch.args.contains(&Arg::Output(0)) {
                // The first of several that make a part each has it.
                let (own, first) = (launch.scratch.len(), made == Arg::Output(0));
                let out = if first { Arg::Scratch(own) } else { made };
                if first {
                    launch.scratch.push(between.bytes());
                    made = Arg::Left(self.launches.len(), own);
                }
                launch.args.iter_mut().filter(|arg| **arg == Arg::Output(0)).for_each(|arg| *arg = out);
            }
            self.launches.push(launch);
        }
        Ok((made, between))
    }

    /// The launches, the last of which are those of an op that makes the output.
    pub fn end(mut self, op: &dyn Op, inputs: Vec<Operand>) -> Result<Vec<Launch>> {
        let (launches, _) = self.lower(op, inputs)?;
        self.launches.extend(launches);
        Ok(self.launches)
    }

    /// The op's launches over these operands, and the type of its output. What they leave for each other is numbered from those before them on.
    fn lower(&self, op: &dyn Op, inputs: Vec<Operand>) -> Result<(Vec<Launch>, TensorType)> {
        let (args, inputs): (Vec<Arg>, Vec<TensorType>) = inputs.into_iter().unzip();
        let outputs = op.infer(&inputs.iter().collect::<Vec<_>>())?;
        let (before, out) = (self.launches.len(), outputs[0].clone());
        let mut launches = op.lower(&Signature { inputs, outputs }, self.target)?;
        for arg in launches.iter_mut().flat_map(|launch| &mut launch.args) {
            *arg = match *arg {
                Arg::Input(i) => args[i],
                Arg::Left(launch, piece) => Arg::Left(before + launch, piece),
                arg => arg,
            };
        }
        Ok((launches, out))
    }
}
