//! The weight of the transposed map, what multiplies dy to give dx: of one weight, or of many that lie in one array.

use super::expect_inputs;
use super::linear::expect_weight;
use crate::cpu::threads::{Ptr, tasks};
use crate::graph::{
    Arg, Args, Cost, FLAT_THREADS, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, ptx, wgsl,
};
use crate::tensor::{DType, PANEL, TensorType};
use crate::{Error, Result};

/// Bytes of a thread of the PTX kernel: a number of as many squares of panels.
const THREAD_BYTES: usize = 16;

/// W `[taps, C, N]` → W' `[taps, N, C]` with W'[t, n, c] = W[taps−1−t, c, n], both in panels. For a linear layer, taps = 1, it
/// is the transpose; for a convolution the kernel is turned by 180° besides. W' has W's type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TransposeWeight {
    pub taps: usize,
}

impl Op for TransposeWeight {
    fn name(&self) -> &'static str {
        "transpose_weight"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        // Of any type but i32.
        let dtype = Some(inputs[0].dtype).filter(|d| *d != DType::I32).unwrap_or(DType::F32);
        let [k, n] = expect_weight(self.name(), inputs[0], dtype)?;
        if self.taps == 0 || k % self.taps != 0 {
            return Err(Error::shape(self.name(), format!("{} has no {} taps", inputs[0], self.taps)));
        }
        let c = k / self.taps;
        let shape = if self.taps == 1 { vec![n, c] } else { vec![self.taps, n, c] };
        Ok(vec![TensorType { dtype, ..TensorType::panels(shape) }])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 0, bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        let _ = node;
        Ok(vec![Some(g.apply(*self, &[dy])?)])
    }

    fn takes(&self, _: DType, target: &Target) -> bool {
        matches!(target, Target::Cuda(_))
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let [taps, c, n] = [self.taps, io.inputs[0].rows() / self.taps, io.inputs[0].cols()];
        let launch = match target {
            Target::Cuda(_) | Target::Wgpu(_) if io.outputs[0].elements() == 0 => return Ok(vec![]),
            Target::Cuda(_) => {
                let squares = squares(taps, c, n);
                let dtype = io.inputs[0].dtype;
                let kernel = Ptx::new(self.name(), ptx!("transpose_weight"), dtype);
                let kernel = kernel.entry(format!("transpose_weight_{}", dtype.size()));
                let blocks = squares.div_ceil(THREAD_BYTES / dtype.size());
                let launch = Launch::ptx(kernel, [blocks, 1, 1], FLAT_THREADS, [Arg::Input(0), Arg::Output(0)]);
                return Ok(vec![launch.scalars([taps, c, n, squares])]);
            }
            Target::Cpu => Launch::cpu(self.name(), kernel, 1, 1),
            Target::Wgpu(target) => {
                let squares = squares(taps, c, n);
                let shader = Shader::new(self.name(), wgsl!("transpose_weight"));
                Launch::wgsl(shader, target.grid(squares), [Arg::Input(0), Arg::Output(0)])
            }
        };
        Ok(vec![launch.scalars([taps, c, n])])
    }
}

/// Squares of 16 by 16 numbers in panels.
fn squares(taps: usize, c: usize, n: usize) -> usize {
    taps * c.div_ceil(PANEL) * n.div_ceil(PANEL)
}

/// A weight `[taps, C, N]` in an array of many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OneOfMany {
    /// Where W begins in x and where W' begins in what is made of it, in numbers, of which a panel's line has sixteen.
    pub from: usize,
    pub to: usize,
    pub taps: usize,
    pub c: usize,
    pub n: usize,
}

impl OneOfMany {
    /// Where W and W' end.
    fn ends(&self) -> [usize; 2] {
        let OneOfMany { from, to, taps, c, n } = *self;
        [from + taps * c * n.next_multiple_of(PANEL), to + taps * n * c.next_multiple_of(PANEL)]
    }

    fn blocks(&self) -> usize {
        squares(self.taps, self.c, self.n).div_ceil(THREAD_BYTES / 2)
    }
}

/// [`TransposeWeight`] of many weights of 16 bits at once: x, an array in which they lie, and [`TransposeWeights::table`] → an array of so many
/// `elements`, what lies between the weights untouched. One launch, where each weight would take about as long by itself. On devices that run PTX.
#[derive(Clone, Debug, PartialEq)]
pub struct TransposeWeights {
    pub weights: Vec<OneOfMany>,
    pub elements: usize,
}

impl TransposeWeights {
    /// Numbers of a weight in the table: `OneOfMany` of `kernels/transpose_weight.cu`.
    const COLUMNS: usize = 7;

    /// The second input, i32 `[weights, 7]`.
    pub fn table(&self, g: &mut Graph) -> Result<Value> {
        let (mut table, mut block) = (vec![], 0);
        for w in &self.weights {
            let [from, to] = [w.from / PANEL, w.to / PANEL];
            table.extend([block, from, to, w.taps, w.c, w.n, squares(w.taps, w.c, w.n)]);
            block += w.blocks();
        }
        // Constants are bits.
        let table = table.into_iter().map(|number| f32::from_bits(number as u32)).collect();
        g.constant(TensorType::i32([self.weights.len(), Self::COLUMNS]), table)
    }
}

impl Op for TransposeWeights {
    fn name(&self) -> &'static str {
        "transpose_weights"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 2)?;
        let (x, table) = (inputs[0], TensorType::i32([self.weights.len(), Self::COLUMNS]));
        let fits = |w: &OneOfMany| {
            let [from, to] = w.ends();
            w.from.is_multiple_of(PANEL) && w.to.is_multiple_of(PANEL) && from <= x.stored() && to <= self.elements
        };
        if x.dtype.size() != 2 || *inputs[1] != table || !self.weights.iter().all(fits) {
            let (count, table, elements) = (self.weights.len(), inputs[1], self.elements);
            let reason = format!("{count} weights in {x}, of which {table} tells, do not make {elements} numbers");
            return Err(Error::shape(self.name(), reason));
        }
        Ok(vec![TensorType { dtype: x.dtype, ..TensorType::f32([self.elements]) }])
    }

    fn cost(&self, _: &Signature) -> Cost {
        let numbers: usize = self.weights.iter().map(|w| w.ends()[0] - w.from + w.ends()[1] - w.to).sum();
        Cost { flops: 0, bytes: 2 * numbers as u64 }
    }

    fn takes(&self, _: DType, target: &Target) -> bool {
        matches!(target, Target::Cuda(_))
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let Target::Cuda(_) = target else { return target.lacks(self.name()) };
        let blocks = self.weights.iter().map(OneOfMany::blocks).sum();
        if blocks == 0 {
            return Ok(vec![]);
        }
        let kernel = Ptx::new(self.name(), ptx!("transpose_weight"), io.inputs[0].dtype).entry("transpose_weights_2");
        let args = [Arg::Input(0), Arg::Input(1), Arg::Output(0)];
        Ok(vec![Launch::ptx(kernel, [blocks, 1, 1], FLAT_THREADS, args).scalar(self.weights.len())])
    }
}

fn kernel(args: &Args) {
    let [taps, c, n] = [0, 1, 2].map(|i| args.int(i));
    let (w, out) = (args.slice::<f32>(0), Ptr::new(args.slice_mut::<f32>(1)));
    let panels = c.div_ceil(PANEL);
    // Output panel p holds rows (t, n) and columns c = 16p..; each 16×16 square is read from one input panel.
    tasks(panels * taps, w.len(), |task| {
        let (p, t) = (task / taps, task % taps);
        let width = PANEL.min(c - p * PANEL);
        // SAFETY: one (panel, tap) stretch a task.
        let to = unsafe { out.part((p * taps + t) * n * PANEL, n * PANEL) };
        let from_row = (taps - 1 - t) * c + p * PANEL;
        for (q, square) in to.chunks_mut(PANEL * PANEL).enumerate() {
            let from = &w[(q * taps * c + from_row) * PANEL..][..width * PANEL];
            for (lane, line) in square.chunks_exact_mut(PANEL).enumerate() {
                for (i, v) in line.iter_mut().enumerate() {
                    *v = if i < width { from[i * PANEL + lane] } else { 0.0 };
                }
            }
        }
    });
}
