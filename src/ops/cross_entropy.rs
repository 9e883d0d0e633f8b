//! The loss of a classifier, one number for each sample.

use super::embedding::expect_i32;
use super::lanes::by_row;
use super::lines::by_team;
use super::{expect_inputs, expect_plain, expect_shape};
use crate::cpu::threads::{Ptr, tasks};
use crate::graph::{Arg, Args, Cost, Graph, Launch, Node, Op, Shader, Signature, Target, Value, ptx, wgsl};
use crate::tensor::TensorType;
use crate::{Error, Result};

/// `−ln softmax(logits[b])[labels[b]]`   logits `[B, C]`, labels i32 `[B]` → `[B]`. A label outside 0..C gives NaN.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CrossEntropy;

/// Checks logits and labels; B.
fn expect_samples(op: &str, inputs: &[&TensorType]) -> Result<usize> {
    expect_plain(op, "logits", inputs[0])?;
    match inputs[0].shape[..] {
        [samples, classes] if classes > 0 => {
            expect_i32(op, "labels", inputs[1], &[samples])?;
            Ok(samples)
        }
        _ => Err(Error::shape(op, format!("logits must be [B, C], are {}", inputs[0]))),
    }
}

/// The largest of a row, and ln Σ exp(x − largest): nothing overflows, and their sum is not rounded twice.
fn log_sum(row: &[f32]) -> (f32, f64) {
    let largest = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    (largest, row.iter().map(|x| ((x - largest) as f64).exp()).sum::<f64>().ln())
}

impl Op for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 2)?;
        Ok(vec![TensorType::f32([expect_samples(self.name(), inputs)?])])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 4 * io.inputs[0].elements() as u64, bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], wanted: &[bool]) -> Result<Vec<Option<Value>>> {
        let (Some(dy), true) = (dy[0], wanted[0]) else { return Ok(vec![None; 2]) };
        Ok(vec![Some(g.apply(CrossEntropyGrad, &[node.inputs[0], node.inputs[1], dy])?), None])
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let dims = [io.inputs[0].rows(), io.inputs[0].cols()];
        Ok(vec![match target {
            Target::Cuda(_) => {
                let args = [Arg::Input(0), Arg::Input(1), Arg::Output(0)];
                by_team(self.name(), ptx!("cross_entropy"), dims, args).scalars(dims)
            }
            Target::Cpu => Launch::cpu(self.name(), kernel, 2, 1).scalar(dims[1]),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!("lib/lanes", "cross_entropy"));
                by_row(shader, target, dims, [Arg::Input(0), Arg::Input(1), Arg::Output(0)]).scalars(dims)
            }
        }])
    }
}

fn kernel(args: &Args) {
    let classes = args.int(0);
    let (x, labels) = (args.slice::<f32>(0), args.slice::<i32>(1));
    let out = Ptr::new(args.slice_mut::<f32>(2));
    tasks(labels.len(), x.len(), |b| {
        let row = &x[b * classes..][..classes];
        let own = usize::try_from(labels[b]).ok().and_then(|l| row.get(l)).copied().unwrap_or(f32::NAN);
        let (largest, log_sum) = log_sum(row);
        // SAFETY: one sample a task.
        let out = unsafe { out.part(b, 1) };
        out[0] = (log_sum + (largest - own) as f64) as f32;
    });
}

/// dlogits of [`CrossEntropy`]: logits `[B, C]`, labels i32 `[B]`, dy `[B]` → `dy · (softmax(logits) − onehot(label))` `[B, C]`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CrossEntropyGrad;

impl Op for CrossEntropyGrad {
    fn name(&self) -> &'static str {
        "cross_entropy_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 3)?;
        let samples = expect_samples(self.name(), inputs)?;
        expect_shape(self.name(), "dy", inputs[2], &[samples])?;
        Ok(vec![inputs[0].clone()])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 6 * io.out_elements(), bytes: io.bytes() }
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let dims = [io.inputs[0].rows(), io.inputs[0].cols()];
        Ok(vec![match target {
            Target::Cuda(_) => {
                let args = [Arg::Input(0), Arg::Input(1), Arg::Input(2), Arg::Output(0)];
                by_team(self.name(), ptx!("cross_entropy_grad"), dims, args).scalars(dims)
            }
            Target::Cpu => Launch::cpu(self.name(), grad_kernel, 3, 1).scalar(dims[1]),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!("lib/lanes", "cross_entropy_grad"));
                let args = [Arg::Input(0), Arg::Input(1), Arg::Input(2), Arg::Output(0)];
                by_row(shader, target, dims, args).scalars(dims)
            }
        }])
    }
}

fn grad_kernel(args: &Args) {
    let classes = args.int(0);
    let (x, labels, dy) = (args.slice::<f32>(0), args.slice::<i32>(1), args.slice::<f32>(2));
    let out = Ptr::new(args.slice_mut::<f32>(3));
    tasks(labels.len(), x.len(), |b| {
        let row = &x[b * classes..][..classes];
        let (largest, log_sum) = log_sum(row);
        // SAFETY: one sample a task.
        let out = unsafe { out.part(b * classes, classes) };
        for (c, (out, x)) in out.iter_mut().zip(row).enumerate() {
            let p = ((x - largest) as f64 - log_sum).exp();
            let hit = (labels[b] == c as i32) as usize as f64;
            *out = (dy[b] as f64 * (p - hit)) as f32;
        }
    });
}
