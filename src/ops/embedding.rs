//! Rows of a table by index, and their gradient.

use super::lines::{by_unit, divisor};
use super::{expect_inputs, expect_plain, expect_real};
use crate::cpu::threads::{Ptr, stretches, tasks};
use crate::graph::{
    Arg, Args, Cost, FLAT_THREADS, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, ptx, wgsl,
};
use crate::tensor::{DType, Layout, TensorType};
use crate::{Error, Result};

/// `y[n] = table[index[n]]`   table `[V, C]`, index i32 `[N]` → y `[N, C]`, of the table's type. An index outside 0..V gives a row of NaN: the host
/// checks labels, the kernel only stays in bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Embedding;

/// Fails unless `ty` is a row-major i32 tensor of that shape.
pub(crate) fn expect_i32(op: &str, what: &str, ty: &TensorType, shape: &[usize]) -> Result<()> {
    if ty.shape == shape && ty.layout == Layout::Plain && ty.dtype == DType::I32 {
        return Ok(());
    }
    Err(Error::shape(op, format!("{what} must be i32{shape:?}, is {ty}")))
}

impl Op for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 2)?;
        expect_real(self.name(), "table", inputs[0])?;
        let ([_, c], [n]) = (&inputs[0].shape[..], &inputs[1].shape[..]) else {
            let reason = format!("takes a table [V, C] and an index [N], got {} and {}", inputs[0], inputs[1]);
            return Err(Error::shape(self.name(), reason));
        };
        expect_i32(self.name(), "index", inputs[1], &[*n])?;
        Ok(vec![inputs[0].with_shape([*n, *c])])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 0, bytes: (2 * io.outputs[0].bytes() + io.inputs[1].bytes()) as u64 }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], wanted: &[bool]) -> Result<Vec<Option<Value>>> {
        let (Some(dy), true) = (dy[0], wanted[0]) else { return Ok(vec![None; 2]) };
        let rows = g.shape(node.inputs[0])[0];
        Ok(vec![Some(g.apply(EmbeddingGrad { rows }, &[dy, node.inputs[1]])?), None])
    }

    fn takes(&self, _: DType, target: &Target) -> bool {
        matches!(target, Target::Cuda(_))
    }

    fn equals(&self, other: &dyn Op) -> bool {
        other.downcast::<Self>() == Some(self)
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let launch = match target {
            Target::Cuda(_) => {
                let [rows, c] = io.inputs[0].shape[..] else { return Ok(vec![]) };
                let row = c * io.inputs[0].dtype.size();
                let unit = [16, 4, 2].into_iter().find(|unit| row.is_multiple_of(*unit)).unwrap_or(2);
                let args = [Arg::Input(0), Arg::Input(1), Arg::Output(0)];
                let launch = by_unit(self.name(), ptx!("embedding"), unit, io.outputs[0].bytes(), args);
                return Ok(vec![launch.scalar(rows).scalars(divisor(row / unit))]);
            }
            Target::Cpu => Launch::cpu(self.name(), kernel, 2, 1),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!("lib/flat", "embedding"));
                let args = [Arg::Input(0), Arg::Input(1), Arg::Output(0)];
                Launch::over(shader, target, io.outputs[0].elements(), args, [2])
            }
        };
        let table = &io.inputs[0].shape;
        Ok(vec![launch.scalars([table[0], table[1]])])
    }
}

fn kernel(args: &Args) {
    let [rows, c] = [0, 1].map(|i| args.int(i));
    let (table, index) = (args.slice::<f32>(0), args.slice::<i32>(1));
    stretches(args.slice_mut(2), c, |n, col, part| match usize::try_from(index[n]) {
        Ok(row) if row < rows => part.copy_from_slice(&table[row * c + col..][..part.len()]),
        _ => part.fill(f32::NAN),
    });
}

/// dtable of [`Embedding`]: dy `[N, C]`, index i32 `[N]` → `[rows, C]`, the sum of the dy of each row, in the order of n.
/// Rows of an index out of range are dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EmbeddingGrad {
    pub rows: usize,
}

impl Op for EmbeddingGrad {
    fn name(&self) -> &'static str {
        "embedding_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 2)?;
        expect_plain(self.name(), "dy", inputs[0])?;
        let [n, c] = inputs[0].shape[..] else {
            return Err(Error::shape(self.name(), format!("dy must be [N, C], is {}", inputs[0])));
        };
        expect_i32(self.name(), "index", inputs[1], &[n])?;
        Ok(vec![TensorType::f32([self.rows, c])])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: io.inputs[0].elements() as u64, bytes: io.bytes() }
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let (n, c) = (io.inputs[0].rows(), io.inputs[0].cols());
        Ok(vec![match target {
            Target::Cuda(_) if io.outputs[0].elements() == 0 => return Ok(vec![]),
            Target::Cuda(_) => {
                let kernel = Ptx::new(self.name(), ptx!("embedding_grad"), DType::F32);
                let args = [Arg::Input(0), Arg::Input(1), Arg::Output(0)];
                Launch::ptx(kernel, [self.rows, 1, 1], FLAT_THREADS, args).scalars([n, c])
            }
            Target::Cpu => Launch::cpu(self.name(), grad_kernel, 2, 1).scalars([self.rows, c]),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!("embedding_grad"));
                let parts = c.div_ceil(1024).max(1);
                Launch::wgsl(shader, target.grid(self.rows * parts), [Arg::Input(0), Arg::Input(1), Arg::Output(0)])
                    .scalars([self.rows, c, n, parts])
                    .anywhere(0..3)
            }
        }])
    }
}

fn grad_kernel(args: &Args) {
    let [rows, c] = [0, 1].map(|i| args.int(i));
    let (dy, index, out) = (args.slice::<f32>(0), args.slice::<i32>(1), args.slice_mut::<f32>(2));
    // Each task has a stretch of the table and reads the whole index, so that sums have one order.
    let share = rows.div_ceil(rayon::current_num_threads() * 2).max(1);
    let work = out.len() + dy.len();
    let out = Ptr::new(out);
    tasks(rows.div_ceil(share), work, |task| {
        let (first, count) = (task * share, share.min(rows - task * share));
        // SAFETY: one stretch of rows a task.
        let out = unsafe { out.part(first * c, count * c) };
        out.fill(0.0);
        for (n, row) in index.iter().enumerate() {
            let Some(at) = usize::try_from(*row).ok().and_then(|r| r.checked_sub(first)).filter(|r| *r < count) else {
                continue;
            };
            out[at * c..][..c].iter_mut().zip(&dy[n * c..][..c]).for_each(|(o, d)| *o += d);
        }
    });
}
