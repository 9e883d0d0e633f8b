//! Axes in another order.

use super::lines::{self, by_unit, divisor};
use super::{expect_inputs, expect_real};
use crate::cpu::threads::{Ptr, stretches, tasks};
use crate::graph::{
    Arg, Args, Cost, FLAT_GROUP, FLAT_THREADS, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value,
    WgpuTarget, ptx, wgsl,
};
use crate::simd;
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};
use std::ops::Range;

/// Axis i of y is axis `self.0[i]` of x: y[j₀, j₁, …] = x at j_i along axis `self.0[i]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Permute(pub Vec<usize>);

/// Side of the squares that transposes go through: 16 floats are a cache line.
const TILE: usize = 16;
/// Rows of a block of tiles.
const BLOCK: usize = 8 * TILE;

impl Permute {
    /// The permutation that undoes this one.
    fn inverse(&self) -> Permute {
        let mut inverse = vec![0; self.0.len()];
        self.0.iter().enumerate().for_each(|(i, axis)| inverse[*axis] = i);
        Permute(inverse)
    }

    /// y's axes as pairs (size, distance of neighbours in x), axes of size 1 dropped and axes that stay neighbours merged.
    fn axes(&self, shape: &[usize]) -> Vec<(usize, usize)> {
        let stride = |axis: usize| shape[axis + 1..].iter().product::<usize>();
        let mut axes: Vec<(usize, usize)> = Vec::new();
        for (n, s) in self.0.iter().map(|a| (shape[*a], stride(*a))).filter(|(n, _)| *n != 1) {
            match axes.last_mut() {
                Some(last) if last.1 == n * s => *last = (last.0 * n, s),
                _ => axes.push((n, s)),
            }
        }
        if axes.is_empty() { vec![(1, 1)] } else { axes }
    }
}

impl Op for Permute {
    fn name(&self) -> &'static str {
        "permute"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        expect_real(self.name(), "x", inputs[0])?;
        let shape = &inputs[0].shape;
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        if !sorted.into_iter().eq(0..shape.len()) {
            return Err(Error::shape(self.name(), format!("{:?} does not order the axes of {}", self.0, inputs[0])));
        }
        Ok(vec![inputs[0].with_shape(self.0.iter().map(|a| shape[*a]).collect::<Vec<_>>())])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 0, bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, _: &Node, dy: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        Ok(vec![Some(g.apply(self.inverse(), &[dy])?)])
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        target.stores(dtype)
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let axes = self.axes(&io.inputs[0].shape);
        match target {
            Target::Cuda(_) => Ok(vec![self.lower_ptx(&io.outputs[0], &axes)?]),
            Target::Cpu => {
                let launch = Launch::cpu(self.name(), kernel, 1, 1).scalar(axes.len());
                Ok(vec![launch.scalars(axes.iter().map(|a| a.0)).scalars(axes.iter().map(|a| a.1))])
            }
            Target::Wgpu(target) => self.lower_wgsl(io.inputs[0].dtype, &axes, target),
        }
    }
}

/// y's axes as (size, distance in x, distance in y).
fn with_distances(axes: &[(usize, usize)]) -> Vec<[usize; 3]> {
    let mut listed: Vec<[usize; 3]> = Vec::new();
    for (size, in_x) in axes.iter().rev() {
        let in_y = listed.last().map_or(1, |[size, _, in_y]| size * in_y);
        listed.push([*size, *in_x, in_y]);
    }
    listed.reverse();
    listed
}

impl Permute {
    /// Axes that kernels have room for.
    const MAX_AXES: usize = 6;
    /// Axes that the PTX kernel has room for beside the two that it transposes.
    const MAX_OTHERS: usize = 4;
    /// Sides from which on squares are transposed in workgroup memory.
    const MIN_SIDE: usize = 16;

    /// The axis that is contiguous in x, if it is not y's last and both are long enough to transpose squares of them.
    fn near(listed: &[[usize; 3]]) -> Option<usize> {
        let last = listed.len() - 1;
        let near = listed.iter().position(|[size, in_x, _]| *in_x == 1 && *size >= Self::MIN_SIDE);
        near.filter(|near| *near != last && listed[last][0] >= Self::MIN_SIDE)
    }

    fn lower_ptx(&self, y: &TensorType, axes: &[(usize, usize)]) -> Result<Launch> {
        let mut listed = with_distances(axes);
        if let Some(near) = Self::near(&listed).filter(|_| listed.len() <= Self::MAX_OTHERS + 2) {
            return Ok(self.transpose_ptx(y, listed, near));
        }
        // A last axis that stays is a run; any other has runs of one element.
        let run = match listed.last() {
            Some([size, 1, _]) => *size,
            _ => 1,
        };
        if run > 1 {
            listed.pop();
        }
        if listed.len() > Self::MAX_AXES {
            let reason = format!("{} axes in another order; there is room for {}", listed.len(), Self::MAX_AXES);
            return Err(Error::unsupported("`permute` on the cuda device", reason));
        }
        let size = y.dtype.size();
        let unit = lines::unit(y.dtype, listed.iter().map(|axis| axis[1]).chain([run]));
        let launch = by_unit(self.name(), ptx!("permute"), unit, y.bytes(), [Arg::Input(0), Arg::Output(0)]);
        let launch = launch.scalars(divisor(run * size / unit)).scalar(listed.len());
        listed.reverse();
        listed.resize(Self::MAX_AXES, [1, 0, 0]);
        let axis = |[n, in_x, _]: &[usize; 3]| divisor(*n).into_iter().chain([in_x * size / unit]);
        Ok(launch.scalars(listed.iter().flat_map(axis)))
    }

    /// The transposition of y's last axis with axis `near`.
    fn transpose_ptx(&self, y: &TensorType, mut listed: Vec<[usize; 3]>, near: usize) -> Launch {
        let (last, near) = (listed.remove(listed.len() - 1), listed.remove(near));
        // Two elements of two bytes move as one word if all words begin at even places.
        let places = listed.iter().flat_map(|[_, in_x, in_y]| [*in_x, *in_y]);
        let even = places.chain([last[0], last[1], near[0], near[2]]).all(|n| n.is_multiple_of(2));
        let (kind, side) = match y.dtype.size() {
            4 => ("4", 32),
            _ if even => ("2x2", 64),
            _ => ("2", 32),
        };
        let squares = [last[0].div_ceil(side), near[0].div_ceil(side)];
        let blocks = squares[0] * squares[1] * listed.iter().map(|axis| axis[0]).product::<usize>();
        let kernel = Ptx::new(self.name(), ptx!("permute"), y.dtype).entry(format!("permute_turn_{kind}"));
        let args = [Arg::Input(0), Arg::Output(0)];
        let launch = Launch::ptx(kernel, [blocks, 1, 1], FLAT_THREADS, args);
        let launch = launch.scalars([last[0], last[1], near[0], near[2]]);
        listed.reverse();
        listed.resize(Self::MAX_OTHERS, [1, 0, 0]);
        let axis = |[n, in_x, in_y]: &[usize; 3]| divisor(*n).into_iter().chain([*in_x, *in_y]);
        launch.scalars(squares.into_iter().flat_map(divisor)).scalars(listed.iter().flat_map(axis))
    }

    /// One launch, or several where an adapter cannot see all: each of some rows of x, which are those of its first axis, to some rows of y.
    fn lower_wgsl(&self, dtype: DType, axes: &[(usize, usize)], target: &WgpuTarget) -> Result<Vec<Launch>> {
        let (listed, size) = (with_distances(axes), dtype.size());
        let n: usize = listed.iter().map(|axis| axis[0]).product();
        let farthest = (0..listed.len()).max_by_key(|i| listed[*i][1]).unwrap_or(0);
        let ([_, near_in_x, in_y], [_, in_x, far_in_y]) = (listed[0], listed[farthest]);
        let seen =
            |axis: usize, widths: &[usize]| target.rows(listed[axis][0], widths).map(|rows| (listed[axis][0], rows));
        let pieces = |(count, step): (usize, usize)| (0..count).step_by(step).map(move |at| at..(at + step).min(count));
        // Rows of x and y.
        let rows: Option<Vec<[Range<usize>; 2]>> = if target.rows(1, &[n * size]).is_some() {
            None
        } else if farthest == 0 {
            let both = seen(0, &[in_x * size, in_y * size]);
            both.map(|both| pieces(both).map(|rows| [rows.clone(), rows]).collect())
        } else {
            let sides = seen(farthest, &[in_x * size]).zip(seen(0, &[in_y * size]));
            sides.map(|(of_x, of_y)| pieces(of_x).flat_map(|x| pieces(of_y).map(move |y| [x.clone(), y])).collect())
        };
        let Some(rows) = rows else { return Ok(vec![self.piece(dtype, listed, [0; 2], target)?]) };
        let launches = rows.into_iter().map(|[x, y]| {
            let mut own = listed.clone();
            own[farthest][0] = x.len();
            own[0][0] = y.len();
            let begins = if farthest == 0 { [0; 2] } else { [y.start * near_in_x, x.start * far_in_y] };
            let launch = self.piece(dtype, own, begins, target)?;
            let launch = launch.part(Arg::Input(0), x.start * in_x * size..x.end * in_x * size);
            Ok(launch.part(Arg::Output(0), y.start * in_y * size..y.end * in_y * size))
        });
        launches.collect()
    }

    /// The launch for these axes, the first number of which is at these places in x and y.
    fn piece(
        &self,
        dtype: DType,
        mut listed: Vec<[usize; 3]>,
        begins: [usize; 2],
        target: &WgpuTarget,
    ) -> Result<Launch> {
        let n: usize = listed.iter().map(|axis| axis[0]).product();
        let shader = Shader::new(self.name(), wgsl!(dtype; "lib/flat", "permute"));
        let last = listed.len() - 1;
        let near = Self::near(&listed).filter(|_| !target.software);
        let (shader, groups, sides) = match near {
            Some(near) => {
                let [last, last_in_x, _] = listed.remove(last);
                let [near, _, near_in_y] = listed.remove(near);
                let groups = near.div_ceil(32) * last.div_ceil(32) * (n / (near * last));
                (shader.entry("transpose"), groups, [last, last_in_x, near, near_in_y])
            }
            None => (shader, n.div_ceil(FLAT_GROUP), [0; 4]),
        };
        if listed.len() > Self::MAX_AXES {
            let reason = format!("{} axes in another order; there is room for {}", listed.len(), Self::MAX_AXES);
            return Err(Error::unsupported("`permute` on the wgpu device", reason));
        }
        let launch = Launch::wgsl(shader, target.grid(groups), [Arg::Input(0), Arg::Output(0)]);
        let launch = launch.scalars([n, listed.len()]).scalars(begins).scalars(sides);
        listed.resize(Self::MAX_AXES, [1, 0, 0]);
        Ok(launch.scalars(listed.into_iter().flatten()))
    }
}

/// Where row-major index `at` over `axes` lies in x.
fn offset(axes: &[(usize, usize)], mut at: usize) -> usize {
    let mut offset = 0;
    for (n, stride) in axes.iter().rev() {
        offset += at % n * stride;
        at /= n;
    }
    offset
}

fn kernel(args: &Args) {
    let rank = args.int(0);
    let mut axes: Vec<(usize, usize)> = (0..rank).map(|i| (args.int(1 + i), args.int(1 + rank + i))).collect();
    let (x, out) = (args.slice::<f32>(0), args.slice_mut::<f32>(1));
    if out.is_empty() {
        return;
    }
    let (run, distance) = axes[rank - 1];
    axes.truncate(rank - 1);
    // Runs that stay whole are copied.
    let Some(contiguous) = axes.iter().position(|a| a.1 == 1).filter(|_| distance != 1) else {
        return stretches(out, run, |row, col, part| {
            let from = offset(&axes, row) + col;
            part.copy_from_slice(&x[from..from + part.len()]);
        });
    };
    // Otherwise one of y's other axes is contiguous in x: that axis and y's last are transposed, for every index of the rest.
    let width = axes[contiguous].0;
    let inner: usize = axes[contiguous + 1..].iter().map(|a| a.0).product();
    let outer: usize = axes[..contiguous].iter().map(|a| a.0).product();
    axes.remove(contiguous);
    // Some thousand elements a task, and four cache lines of x side by side.
    let strip = (4096 / run.max(1)).next_multiple_of(TILE).max(4 * TILE);
    let strips = width.div_ceil(strip);
    let work = out.len();
    let out = Ptr::new(out);
    tasks(outer * inner * strips, work, |task| {
        let (rest, first) = (task / strips, task % strips * strip);
        let count = strip.min(width - first);
        let x = &x[offset(&axes, rest) + first..];
        let at = (rest / inner * width + first) * inner + rest % inner;
        // Rows `first..first + count` of the axis, at this index of the others, belong to this task alone.
        transpose(x, distance, out.raw().wrapping_add(at * run), inner * run, run, count);
    });
}

simd! {
    /// out[i, j] = x[j, i] for j < n and i < count; `x_row` and `out_row` are the distances of rows.
    fn transpose(x: &[f32], x_row: usize, out: *mut f32, out_row: usize, n: usize, count: usize) {
        let (whole_n, whole_count) = (n / TILE * TILE, count / TILE * TILE);
        // A block of rows of x stays in L1 while its columns are written, 16 lines of y at a time: more would share cache
        // sets where sizes are powers of two.
        for block in (0..whole_n).step_by(BLOCK) {
            for i in (0..whole_count).step_by(TILE) {
                for j in (block..whole_n.min(block + BLOCK)).step_by(TILE) {
                    let mut tile = [[0.0f32; TILE]; TILE];
                    for r in 0..TILE {
                        let line = &x[(j + r) * x_row + i..][..TILE];
                        for c in 0..TILE { tile[c][r] = line[c]; }
                    }
                    for (c, line) in tile.iter().enumerate() {
                        // SAFETY: `out` holds `count` rows of n.
                        unsafe { (out.add((i + c) * out_row + j) as *mut [f32; TILE]).write_unaligned(*line) };
                    }
                }
            }
        }
        for i in 0..count {
            for j in if i < whole_count { whole_n..n } else { 0..n } {
                // SAFETY: as above.
                unsafe { *out.add(i * out_row + j) = x[j * x_row + i] };
            }
        }
    }
}
