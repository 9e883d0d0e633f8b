//! Sums over the middle of a tensor.

use super::lanes::add_sums;
use super::lines::by_warps;
use super::{Broadcast, expect_inputs, expect_real};
use crate::cpu::threads::{Ptr, tasks};
use crate::graph::{Arg, Args, CudaTarget, FLAT_THREADS, Graph, Launch, Node, Op, Ptx, Signature, Target, Value, ptx};
use crate::simd;
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// What [`Reduce`] makes of the numbers it runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    Sum,
    Mean,
}

/// x seen as `[outer, middle, inner]` → the sum (or mean) over `middle`: `[outer, inner]`, or `shape` if given. The result is f32
/// whatever type of 16 bits x has: it is small beside x, a sum of many numbers may be beyond f16, and the gradients of parameters
/// are made so.
#[derive(Clone, Debug, PartialEq)]
pub struct Reduce {
    pub outer: usize,
    pub middle: usize,
    pub inner: usize,
    pub reduction: Reduction,
    pub shape: Vec<usize>,
}

impl Reduce {
    /// Sum over the middle of `[outer, middle, inner]`.
    pub fn sum_middle(outer: usize, middle: usize, inner: usize) -> Self {
        Reduce { outer, middle, inner, reduction: Reduction::Sum, shape: vec![outer, inner] }
    }

    /// Mean over the middle of `[outer, middle, inner]`.
    pub fn mean_middle(outer: usize, middle: usize, inner: usize) -> Self {
        Reduce { reduction: Reduction::Mean, ..Reduce::sum_middle(outer, middle, inner) }
    }

    /// The result under another shape.
    pub fn to_shape(self, shape: impl Into<Vec<usize>>) -> Self {
        Reduce { shape: shape.into(), ..self }
    }
}

impl Op for Reduce {
    fn name(&self) -> &'static str {
        "reduce"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        expect_real(self.name(), "x", inputs[0])?;
        let out = TensorType::f32(self.shape.clone());
        let fits =
            inputs[0].elements() == self.outer * self.middle * self.inner && out.elements() == self.outer * self.inner;
        if !fits {
            let dims = [self.outer, self.middle, self.inner];
            return Err(Error::shape(self.name(), format!("{} seen as {dims:?} does not make {out}", inputs[0])));
        }
        Ok(vec![out])
    }

    fn cost(&self, io: &Signature) -> crate::graph::Cost {
        crate::graph::Cost { flops: io.inputs[0].elements() as u64, bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        let scale = if self.reduction == Reduction::Mean { 1.0 / self.middle as f32 } else { 1.0 };
        let shape = g.shape(node.inputs[0]).to_vec();
        let spread = Broadcast { outer: self.outer, middle: self.middle, inner: self.inner, scale, shape };
        Ok(vec![Some(g.apply(spread, &[dy])?)])
    }

    fn takes(&self, _: DType, target: &Target) -> bool {
        matches!(target, Target::Cuda(_))
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let scale = if self.reduction == Reduction::Mean { 1.0 / self.middle.max(1) as f32 } else { 1.0 };
        let dims = [self.outer, self.middle, self.inner];
        Ok(match target {
            Target::Cuda(target) => sums(io.inputs[0].dtype, dims, scale, target),
            Target::Cpu => vec![Launch::cpu(self.name(), kernel, 1, 1).scalars(dims).scalar(scale)],
            Target::Wgpu(target) => {
                let mut launches = vec![];
                add_sums(&mut launches, target, Arg::Input(0), dims, scale, Some(Arg::Output(0)));
                launches
            }
        })
    }
}

/// Rows that a thread of the PTX kernel adds at least, where more blocks could share them.
const FEW_ROWS: usize = 8;
/// Numbers that an L2 has beside others.
const SMALL: usize = 1 << 20;
/// Numbers of a row that a block adds at least.
const STRETCH: usize = 1 << 12;

/// Launches of the PTX kernels that sum x `[outer, middle, inner]` over the middle, times `scale`. Where too few blocks would have all
/// the work, each has a stretch of the middle.
fn sums(dtype: DType, [outer, middle, inner]: [usize; 3], scale: f32, target: &CudaTarget) -> Vec<Launch> {
    let columns = Columns::new(dtype, [outer, middle, inner]);
    let (blocks, least) = match inner {
        1 => (outer, STRETCH),
        _ => (outer * columns.tiles, FLAT_THREADS / columns.across * FEW_ROWS),
    };
    let wanted = (4 * target.multiprocessors as usize).div_ceil(blocks.max(1));
    let count = wanted.min(middle.div_ceil(least)).max(1);
    // Stretches begin where 16 bytes do.
    let per = middle.div_ceil(count).next_multiple_of(16 / dtype.size());
    let count = middle.div_ceil(per.max(1)).max(1);
    let dims = [outer, middle, inner];
    match inner {
        1 if count > 1 => {
            let parts = rows(dtype, [outer, middle], [count, per], 1.0, [Arg::Input(0)]);
            let all = rows(DType::F32, [outer, count], [1, count], scale, [Arg::Left(0, 0), Arg::Output(0)]);
            vec![parts.with_scratch(outer * count), all]
        }
        1 => vec![rows(dtype, [outer, middle], [1, per], scale, [Arg::Input(0), Arg::Output(0)])],
        _ => vec![columns.launch(dtype, dims, [count, per], scale, Arg::Input(0)).arg(Arg::Output(0))],
    }
}

/// The launch that sums x `[outer, middle, inner]` of f32 over a short middle; its last argument, the sums, is still to be added.
pub(super) fn sum_few(dims: [usize; 3], x: Arg) -> Launch {
    let [outer, middle, inner] = dims;
    match inner {
        1 => rows(DType::F32, [outer, middle], [1, middle], 1.0, [x]),
        _ => Columns::new(DType::F32, dims).launch(DType::F32, dims, [1, middle], 1.0, x),
    }
}

/// The launch that sums `count` stretches of `per` numbers of each of `outer` rows.
fn rows(
    dtype: DType,
    [outer, n]: [usize; 2],
    [count, per]: [usize; 2],
    scale: f32,
    args: impl IntoIterator<Item = Arg>,
) -> Launch {
    let kernel = |warps: usize| Ptx::new("reduce", ptx!("reduce"), dtype).entry(format!("reduce_{warps}_{dtype}"));
    by_warps(kernel, [outer * count, per], args).scalars([outer, n, count, per]).scalar(scale)
}

/// How a block lies over columns.
struct Columns {
    /// Columns of a thread.
    pack: usize,
    /// Threads beside each other; the others go on below.
    across: usize,
    /// Blocks beside each other.
    tiles: usize,
}

impl Columns {
    fn new(dtype: DType, [outer, rows, cols]: [usize; 3]) -> Self {
        let wide = 16 / dtype.size();
        let pack = if cols.is_multiple_of(wide) { wide } else { 1 };
        // What comes from the L2 is summed by as many threads as have four rows each; of what comes from memory 128 bytes beside each other.
        // Few rows leave room for more columns.
        let lines = rows.div_ceil(4).clamp(8, if outer * rows * cols <= SMALL { 64 } else { 32 });
        let most = FLAT_THREADS / lines.min(rows.max(1)).next_power_of_two();
        // As few idle threads as may be.
        let idle = |across: &usize| (cols / pack).next_multiple_of(*across);
        let widths = (0..=most.ilog2()).map(|shift| most >> shift).filter(|across| *across >= most.min(8));
        let across = widths.min_by_key(idle).unwrap_or(most).min((cols / pack).next_power_of_two());
        Columns { pack, across, tiles: cols.div_ceil(across * pack) }
    }

    /// The launch that sums all rows of x `[outer, rows, cols]`, of which `count` blocks have `per` each; its last argument, the sums, is still to
    /// be added.
    fn launch(
        &self,
        dtype: DType,
        [outer, rows, cols]: [usize; 3],
        [count, per]: [usize; 2],
        scale: f32,
        x: Arg,
    ) -> Launch {
        let Columns { pack, across, tiles } = *self;
        let kernel = Ptx::new("reduce", ptx!("reduce"), dtype).entry(format!("reduce_columns_{pack}_{dtype}"));
        let launch = Launch::ptx(kernel, [(outer * count * tiles).max(1), 1, 1], FLAT_THREADS, [x]);
        // Nobody reads what stands for parts and counters where a block has all rows.
        let launch = match count {
            1 => launch.arg(x).arg(x),
            _ => launch.with_scratch(outer * count * cols).with_counters(outer * tiles),
        };
        launch.scalars([rows, cols, count, per, tiles, across]).scalar(scale)
    }
}

fn kernel(args: &Args) {
    let [outer, middle, inner] = [0, 1, 2].map(|i| args.int(i));
    let scale = args.float(3);
    let (x, out) = (args.slice::<f32>(0), args.slice_mut::<f32>(1));
    if inner == 1 {
        for (o, out) in out.iter_mut().enumerate() {
            *out = sum(&x[o * middle..(o + 1) * middle]) * scale;
        }
        return;
    }
    // Columns are cut into pieces, so that one outer row still fills all threads; each piece adds rows in order.
    let piece = inner.div_ceil(rayon::current_num_threads()).next_multiple_of(16).min(inner);
    let pieces = inner.div_ceil(piece);
    let out = Ptr::new(out);
    tasks(outer * pieces, x.len(), |task| {
        let (o, start) = (task / pieces, task % pieces * piece);
        let width = piece.min(inner - start);
        // SAFETY: one piece of one row a task.
        let out = unsafe { out.part(o * inner + start, width) };
        add_rows(&x[o * middle * inner + start..], inner, middle, scale, out);
    });
}

simd! {
    fn sum(x: &[f32]) -> f32 {
        // Blocks keep the partial sums short, so that the error grows with the number of blocks only.
        x.chunks(4096).map(|c| crate::cpu::simd::sum(c, |v| v) as f64).sum::<f64>() as f32
    }
}

simd! {
    fn add_rows(x: &[f32], stride: usize, rows: usize, scale: f32, out: &mut [f32]) {
        out.fill(0.0);
        let width = out.len();
        // 64 rows at a time into a short sum, then into the total: pairwise summation of depth two.
        let mut partial = vec![0.0f32; width];
        for block in 0..rows.div_ceil(64) {
            partial.fill(0.0);
            for r in block * 64..rows.min(block * 64 + 64) {
                for (p, v) in partial.iter_mut().zip(&x[r * stride..r * stride + width]) {
                    *p += v;
                }
            }
            for (o, p) in out.iter_mut().zip(&partial) {
                *o += p;
            }
        }
        if scale != 1.0 {
            out.iter_mut().for_each(|v| *v *= scale);
        }
    }
}
