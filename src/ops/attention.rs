//! Scaled dot-product attention, self and cross, over blocks of queries and keys: no matrix of scores is ever whole.
//!
//! Scores are computed transposed, panels of 16 queries (forward) or keys (backward) beside each other: the softmax runs
//! along vector lanes, and what it leaves is a packed right-hand side of the next product as it lies. K and V are only
//! copied, a block at a time.

use super::hopper_attention::{HopperOnce, HopperSums, HopperTile};
use super::pieces::along;
use super::product::BUSY;
use super::{expect_inputs, expect_real, expect_shape, expect_typed};
use crate::cpu::gemm::{Left, Tiles, pack_cols, pack_rows, with_buffers};
use crate::cpu::simd::{dot, exp};
use crate::cpu::threads::{Ptr, ranges, tasks};
use crate::graph::{
    Arg, Args, Cost, CudaTarget, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, WgpuTarget, ptx, wgsl,
    wgsl_with_matrices,
};
use crate::simd;
use crate::tensor::{DType, PANEL, TensorType};
use crate::{Error, Result};

/// Sizes of blocks: elements that fit into a part of L2, then the rows that a block has at least and at most.
/// Queries of a task of the forward, which copies K and V once.
const QUERIES: (usize, [usize; 2]) = (1 << 15, [96, 256]);
/// Of `shaders/attention_matrices.wgsl`: workgroup memory of a query beside queries and keys, and columns of v that a workgroup has.
const MATRIX_QUERY_BYTES: usize = 9 * 16 + 10 * 8 + 2 * 8;
const MATRIX_COLUMNS: usize = 160;
/// Keys of a block of both kernels.
const KEYS: (usize, [usize; 2]) = (1 << 14, [32, 128]);
/// Queries of a block of the backward.
const QUERIES_BACK: (usize, [usize; 2]) = (1 << 14, [36, 72]);
/// Copied rows are this much longer than a head, so that they do not share cache sets.
const PAD: usize = 16;
/// The backward cuts keys so that there are this many tasks, but no more than [`MAX_SPLITS`] times: each cut of several
/// needs a dq of its own.
const TASKS: usize = 16;
const MAX_SPLITS: usize = 4;

/// y = softmax(scale · q·kᵀ) · v in each head   (Vaswani et al. 2017; streaming softmax: Milakov & Gimelshein 2018,
/// Dao et al. 2022)
/// q `[B, Tq, heads·d]`, k `[B, Tk, heads·d]`, v `[B, Tk, heads·dv]`, a head's columns beside each other →
/// y `[B, Tq, heads·dv]`, lse `[B, heads, Tq]`: the logarithm of each softmax's denominator
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    pub heads: usize,
    pub scale: f32,
}

/// Sizes of one attention.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub batch: usize,
    pub queries: usize,
    pub keys: usize,
    pub heads: usize,
    /// Columns of a head of q and k, and of v.
    pub d: usize,
    pub dv: usize,
}

impl Attention {
    fn sizes(&self, op: &str, inputs: &[&TensorType]) -> Result<Sizes> {
        let (q, k, v) = (inputs[0], inputs[1], inputs[2]);
        [("q", q), ("k", k), ("v", v)].into_iter().try_for_each(|(what, ty)| expect_real(op, what, ty))?;
        let (&[batch, queries, c], &[_, keys, cv]) = (&q.shape[..], &v.shape[..]) else {
            return Err(Error::shape(op, format!("q, k, v must be [B, T, C], are {q}, {k}, {v}")));
        };
        let empty = [batch, queries, keys, c, cv].contains(&0);
        if empty || self.heads == 0 || c % self.heads != 0 || cv % self.heads != 0 || v.shape[0] != batch {
            return Err(Error::shape(op, format!("{} heads over q {q}, k {k}, v {v}", self.heads)));
        }
        expect_typed(op, "k", k, q.dtype, &[batch, keys, c])?;
        expect_typed(op, "v", v, q.dtype, &v.shape)?;
        Ok(Sizes { batch, queries, keys, heads: self.heads, d: c / self.heads, dv: cv / self.heads })
    }

    fn sizes_of(&self, op: &str, io: &Signature) -> Result<Sizes> {
        self.sizes(op, &io.inputs.iter().collect::<Vec<_>>())
    }
}

impl Sizes {
    fn scalars(&self, launch: Launch) -> Launch {
        launch.scalars([self.batch, self.queries, self.keys, self.heads, self.d, self.dv])
    }

    fn of(args: &Args) -> Self {
        let [batch, queries, keys, heads, d, dv] = [0, 1, 2, 3, 4, 5].map(|i| args.int(i));
        Sizes { batch, queries, keys, heads, d, dv }
    }

    /// Samples × heads.
    pub fn pairs(&self) -> usize {
        self.batch * self.heads
    }

    /// Elements of q·kᵀ.
    fn scores(&self) -> u64 {
        self.pairs() as u64 * self.queries as u64 * self.keys as u64
    }

    /// Rows in a block, see [`QUERIES`].
    fn block(&self, (elements, [least, most]): (usize, [usize; 2])) -> usize {
        (elements / self.d.max(self.dv)).clamp(least, most)
    }

    /// Keys in a block, a multiple of 16.
    fn key_block(&self) -> usize {
        self.block(KEYS).min(self.keys).next_multiple_of(PANEL)
    }

    /// Pieces that the backward cuts the keys into, and key blocks in a piece. They depend on the shape alone.
    fn splits(&self) -> (usize, usize) {
        let blocks = self.keys.div_ceil(self.key_block());
        let wanted = TASKS.div_ceil(self.pairs()).min(MAX_SPLITS).min(blocks);
        let size = blocks.div_ceil(wanted);
        (blocks.div_ceil(size), size)
    }

    /// A shader of `shaders/lib/attention.wgsl` on the wgpu device, over blocks of `rows` rows of every head, with sums of
    /// `width` elements; and the number of its workgroups.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for heads too wide for workgroup memory.
    fn tiled(&self, shader: Shader, target: &WgpuTarget, rows: usize, width: usize) -> Result<(Shader, usize)> {
        let cols = width.div_ceil(8).max(8);
        // Two tiles of 8 terms, weights and maxima, of the 16 KiB that there are everywhere.
        let fit = 16384usize.saturating_sub(160 + 64 * cols) / (48 * cols + 128);
        let lanes = fit.min(256 / cols).min(rows.div_ceil(4));
        if lanes == 0 {
            let what = format!("attention heads of {width} columns on the wgpu device");
            return Err(Error::unsupported(what, "its workgroup memory is too small; use more heads"));
        }
        let quads = self.d.is_multiple_of(4) && self.dv.is_multiple_of(4);
        let shader = shader.constant("ROW_LANES", lanes as u32).constant("COL_LANES", cols as u32);
        let shader = shader.flag("QUADS", quads).flag("STAGED", !target.software);
        Ok((shader, self.pairs() * rows.div_ceil(4 * lanes)))
    }

    /// `shaders/attention_matrices.wgsl` and the number of its workgroups, if the adapter has matrices of 16 and memory for heads so wide.
    fn by_matrices(&self, name: &'static str, dtype: DType, target: &WgpuTarget) -> Option<(Shader, usize)> {
        let edge = target.matrices(dtype).filter(|edge| *edge == 16)?;
        let (width, all) = (self.d.next_multiple_of(16), self.dv.next_multiple_of(16));
        let slices = all.div_ceil(MATRIX_COLUMNS);
        let width_v = all.div_ceil(slices).next_multiple_of(16);
        let line = width.max(width_v) / 4 + 2;
        let bytes = |queries: usize| (queries + 32) * line * 8 + queries * MATRIX_QUERY_BYTES;
        let queries = [64, 32].into_iter().find(|queries| bytes(*queries) <= target.workgroup_bytes as usize)?;
        let text = wgsl_with_matrices!(edge, dtype; "attention_matrices");
        let shader = Shader::new(name, text).entry("matrices").constant("QUERIES", queries as u32);
        let shader = shader.constant("WIDTH", width as u32).constant("WIDTH_V", width_v as u32);
        let shader = shader.constant("QUERY_FOURS", (queries * line) as u32).constant("KEY_FOURS", (32 * line) as u32);
        let fours = self.d.is_multiple_of(4) && self.dv.is_multiple_of(4);
        fours.then(|| (shader, self.pairs() * slices * self.queries.div_ceil(queries)))
    }

    /// The scalars of those shaders.
    fn words(&self, launch: Launch, scale: f32) -> Launch {
        let sizes = [self.queries, self.keys, self.heads, self.d, self.dv, self.pairs()];
        launch.scalars(sizes).scalar(scale)
    }

    /// Work in units of [`tasks`].
    fn work(&self) -> usize {
        (self.scores() as usize).saturating_mul(self.d + self.dv) / 32
    }
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 3)?;
        let s = self.sizes(self.name(), inputs)?;
        let y = inputs[0].with_shape([s.batch, s.queries, s.heads * s.dv]);
        Ok(vec![y, TensorType::f32([s.batch, s.heads, s.queries])])
    }

    fn cost(&self, io: &Signature) -> Cost {
        let flops = self.sizes_of(self.name(), io).map_or(0, |s| s.scores() * (2 * (s.d + s.dv) as u64 + 8));
        Cost { flops, bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None; 3]) };
        let inputs = [&node.inputs[..], &node.outputs[..], &[dy]].concat();
        Ok(g.apply_all(AttentionGrad(*self), &inputs)?.into_iter().map(Some).collect())
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        target.stores(dtype)
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let s = self.sizes_of(self.name(), io)?;
        match target {
            Target::Cuda(target) => Ok(self.launches(&s, io.inputs[0].dtype, target)),
            Target::Cpu => Ok(vec![s.scalars(Launch::cpu(self.name(), forward, 3, 2)).scalar(self.scale)]),
            Target::Wgpu(target) => along(0, &[], io, target, |io| self.shaders(io, target)),
        }
    }
}

impl Attention {
    /// On the wgpu device: by cooperative matrices where they have enough to do, else by blocks, and what those are too narrow for by tiles.
    fn shaders(&self, io: &Signature, target: &WgpuTarget) -> Result<Vec<Launch>> {
        let (s, dtype) = (self.sizes_of(self.name(), io)?, io.inputs[0].dtype);
        let (q, k, v, y, lse) = (Arg::Input(0), Arg::Input(1), Arg::Input(2), Arg::Output(0), Arg::Output(1));
        let blocks = ShaderBlocks::of(&s, target);
        if let Some((shader, groups)) = s.by_matrices(self.name(), dtype, target)
            && (blocks.is_none() || groups >= BUSY)
        {
            let launch = Launch::wgsl(shader, target.grid(groups), [q, k, v, y, lse]);
            return Ok(vec![s.words(launch, self.scale)]);
        }
        let Some(blocks) = blocks else {
            let shader = Shader::new(self.name(), wgsl!(dtype; "lib/attention", "attention"));
            let (shader, groups) = s.tiled(shader, target, s.queries, s.dv)?;
            let launch = Launch::wgsl(shader, target.grid(groups), [q, k, v, y, lse]);
            return Ok(vec![s.words(launch, self.scale)]);
        };
        let shader = blocks.shader(Shader::new(self.name(), wgsl!(dtype; "attention_blocks")));
        let launch = |args: [Arg; 5]| {
            let launch = Launch::wgsl(shader.clone(), target.grid(blocks.count), args);
            s.words(launch, self.scale).scalars([blocks.part, blocks.parts])
        };
        // What is not there is not touched; q stands for it.
        if blocks.parts == 1 {
            let mut one = launch([q, k, v, y, lse]);
            one.args.extend([q, q]);
            return Ok(vec![one]);
        }
        let (rows, fours) = (s.pairs() * s.queries, s.dv / 4);
        let parts = launch([q, k, v, q, q]).with_scratch(blocks.parts * rows * s.dv).with_scratch(blocks.parts * rows);
        let shader = Shader::new(self.name(), wgsl!(dtype; "attention_join"));
        let args = [Arg::Left(0, 0), Arg::Left(0, 1), y, lse];
        let join = Launch::wgsl(shader, target.grid((rows * fours).div_ceil(JOIN_LANES)), args);
        Ok(vec![parts, join.scalars([s.queries, s.heads, s.dv, s.pairs(), blocks.parts])])
    }

    /// On the cuda device: a block for some queries of a head, which goes over the keys. Where there are too few blocks the keys are cut
    /// into parts, and a second launch puts together what those left in scratch.
    fn launches(&self, s: &Sizes, dtype: DType, target: &CudaTarget) -> Vec<Launch> {
        let tile = ForwardTile::of(s.d, s.dv, dtype);
        let (blocks, slices) = (s.queries.div_ceil(tile.queries), s.dv.div_ceil(tile.columns));
        let (rows, width) = (s.pairs() * s.queries, slices * tile.columns);
        let each = Each { row: row_time(dtype, s.d + s.dv), part: rows * (width + 1) };
        let Cuts { parts, rows: split, time } = cuts(s.pairs() * blocks * slices, s.keys, each, target);
        let hopper = HopperTile::of(s, dtype, target).filter(|hopper| self.scale > 0.0 && hopper.time <= time);
        if let Some(tile) = hopper {
            return vec![tile.launch(self, s, dtype)];
        }
        let kernel = Ptx::new(self.name(), ptx!("attention"), dtype).entry(tile.entry).shared(tile.shared_bytes);
        let (y, lse) = (Arg::Output(0), Arg::Output(1));
        let args = [Arg::Input(0), Arg::Input(1), Arg::Input(2), y, lse];
        let launch = Launch::ptx(kernel, [s.pairs() * blocks, parts, slices], THREADS, args);
        let launch = match parts {
            1 => Launch { args: [&args[..], &[Arg::Input(0)]].concat(), ..launch },
            _ => launch.with_scratch(parts * rows * (width + 1)),
        };
        let launch = launch.scalars([s.pairs(), s.queries, s.keys, s.heads, s.d, s.dv, width, blocks, split]);
        let launch = launch.scalar(self.scale);
        if parts == 1 {
            return vec![launch];
        }
        let kernel = Ptx::new(self.name(), ptx!("attention"), dtype).entry(format!("attention_join_{dtype}"));
        let grid = [(rows * pieces(s.dv, dtype)).div_ceil(JOIN_THREADS), 1, 1];
        let join = Launch::ptx(kernel, grid, JOIN_THREADS, [Arg::Left(0, 0), y, lse]);
        vec![launch, join.scalars([s.pairs(), s.queries, s.heads, s.dv, width, parts])]
    }
}

/// Invocations of a workgroup of `shaders/attention_join.wgsl`.
const JOIN_LANES: usize = 64;
/// Keys that a workgroup of `shaders/attention_blocks.wgsl` meets at a time, columns of v that it has at most, and parts of keys.
const BLOCK_KEYS: usize = 64;
const BLOCK_COLUMNS: usize = 256;
const BLOCK_PARTS: usize = 16;

/// The workgroups of `shaders/attention_blocks.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct ShaderBlocks {
    row_lanes: usize,
    value_fours: usize,
    count: usize,
    /// Keys of a part.
    part: usize,
    parts: usize,
}

impl ShaderBlocks {
    /// For heads that the shader can take. The more rows a workgroup has, the less it reads; where they are few, workgroups are small, and have a
    /// part of the keys. A processor that plays GPU needs few.
    fn of(s: &Sizes, target: &WgpuTarget) -> Option<ShaderBlocks> {
        let fits = s.d.is_multiple_of(4) && s.dv.is_multiple_of(4) && s.dv <= BLOCK_COLUMNS;
        if !fits {
            return None;
        }
        let busy = if target.software { 4 } else { 2 * BUSY };
        let count = |lanes: usize| s.pairs() * s.queries.div_ceil(4 * lanes);
        let has_memory = |lanes: &usize| Self::bytes(*lanes) <= target.workgroup_bytes as usize;
        let row_lanes = [16, 8].into_iter().filter(has_memory).find(|lanes| count(*lanes) >= busy).unwrap_or(4);
        let room = target.argument_bytes as usize / (4 * s.pairs() * s.queries * s.dv);
        let wanted = busy.div_ceil(count(row_lanes)).min(s.keys / BLOCK_KEYS).min(room).clamp(1, BLOCK_PARTS);
        let part = s.keys.div_ceil(wanted).next_multiple_of(BLOCK_KEYS);
        let parts = s.keys.div_ceil(part);
        Some(ShaderBlocks { row_lanes, value_fours: s.dv.div_ceil(32), count: count(row_lanes) * parts, part, parts })
    }

    /// Workgroup memory.
    fn bytes(row_lanes: usize) -> usize {
        16 * ((9 * (4 * row_lanes + BLOCK_KEYS)).max(BLOCK_KEYS * (row_lanes + 1)) + 9 * row_lanes)
    }

    fn shader(&self, shader: Shader) -> Shader {
        let shader = shader.entry("blocked").flag("PARTS", self.parts > 1);
        shader.constant("ROW_LANES", self.row_lanes as u32).constant("VALUE_FOURS", self.value_fours as u32)
    }
}

/// Threads of a block of the attention kernels for CUDA, and of those that put parts together.
const THREADS: usize = 128;
const JOIN_THREADS: usize = 256;
/// The least queries or keys in a part there.
const LEAST_PART: usize = 128;
/// Nanoseconds of a launch that has little to do.
const LAUNCH_TIME: usize = 3000;
/// Rows of a tile of the f32 kernels there, and bytes of their shared memory: `TILE` and `SHARED` of `kernels/lib/attention.cuh`.
const F32_TILE: usize = 64;
const F32_SHARED_BYTES: usize = 4 * (4 * 64 * 36 + 64 * 80);

/// Accesses of 16 bytes in a row of `width` numbers.
fn pieces(width: usize, dtype: DType) -> usize {
    width.div_ceil(16 / dtype.size())
}

/// What decides into how many parts the rows are cut that blocks go over.
struct Each {
    /// Nanoseconds of a block for one of those rows.
    row: usize,
    /// Floats that all blocks of a part leave in scratch.
    part: usize,
}

/// Nanoseconds, about, that a block of the kernels for every GPU takes for a row that it goes over, `columns` being those of its products by row,
/// where no more than two share a multiprocessor. Measured on an H200: 0.1 µs forward for 72 to 256 columns of both q and v, 0.16 µs backward.
fn row_time(dtype: DType, columns: usize) -> usize {
    if dtype == DType::F32 { (2 * columns).max(100) } else { 100 }
}

/// How rows are cut: the number of parts, rows of each, and nanoseconds, about, that it all takes.
#[derive(Debug, PartialEq)]
struct Cuts {
    parts: usize,
    rows: usize,
    time: usize,
}

/// Into how many parts `rows` that each of `blocks` blocks goes over are cut for the least time. A block alone does not keep a
/// multiprocessor busy, but two do; several parts want one more launch, which reads what they wrote.
fn cuts(blocks: usize, rows: usize, each: Each, target: &CudaTarget) -> Cuts {
    let at_once = 2 * target.multiprocessors as usize;
    let of = |wanted: usize| {
        let part = rows.div_ceil(wanted).next_multiple_of(F32_TILE);
        let parts = rows.div_ceil(part);
        // Four bytes both ways, at 4 TB/s: most of it stays in L2.
        let join = if parts == 1 { 0 } else { LAUNCH_TIME + parts * each.part / 500 };
        Cuts { parts, rows: part, time: (blocks * parts).div_ceil(at_once) * part.min(rows) * each.row + join }
    };
    let most = (rows / LEAST_PART).clamp(1, at_once);
    (2..=most).map(of).fold(of(1), |best, next| if next.time < best.time { next } else { best })
}

/// An instance of the forward in `kernels/attention.cu`.
struct ForwardTile {
    entry: String,
    queries: usize,
    /// Columns of y that a block makes.
    columns: usize,
    shared_bytes: usize,
}

impl ForwardTile {
    /// The instance for heads of `d` columns of q and k, and `dv` of v.
    fn of(d: usize, dv: usize, dtype: DType) -> Self {
        if dtype == DType::F32 {
            let columns = [16, 32, 48, 64, 80, 128].into_iter().find(|c| dv <= *c).unwrap_or(256);
            let entry = format!("attention_{columns}_{dtype}");
            return ForwardTile { entry, queries: F32_TILE, columns, shared_bytes: F32_SHARED_BYTES };
        }
        let Some(columns) = [16, 32, 48, 64, 80, 96, 128, 160, 256].into_iter().find(|c| d.max(dv) <= *c) else {
            // Two stages of Q and K, and V.
            let shared_bytes = 2 * 2 * 64 * 128 + 64 * 512;
            return ForwardTile { entry: format!("attention_wide_{dtype}"), queries: 64, columns: 256, shared_bytes };
        };
        let (queries, keys, stages) = match columns {
            0..=64 => (128, 64, 3),
            65..=128 => (128, 32, 3),
            _ => (64, 32, 2),
        };
        // Q comes through the last stage.
        let rows = (stages - 1) * 2 * keys + queries.max(2 * keys);
        let entry = format!("attention_{columns}_{dtype}");
        ForwardTile { entry, queries, columns, shared_bytes: rows * columns * 2 }
    }
}

/// The backward of [`Attention`]: q, k, v, y, lse, dy → dq, dk, dv. With P = exp(scale·q·kᵀ − lse), made again block by block:
/// dv = Pᵀ·dy, dS = scale · P ∘ (dy·vᵀ − rowsum(dy ∘ y)), dq = dS·k, dk = dSᵀ·q.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionGrad(pub Attention);

impl Op for AttentionGrad {
    fn name(&self) -> &'static str {
        "attention_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 6)?;
        let s = self.0.sizes(self.name(), inputs)?;
        let (y, dtype) = ([s.batch, s.queries, s.heads * s.dv], inputs[0].dtype);
        expect_typed(self.name(), "y", inputs[3], dtype, &y)?;
        expect_shape(self.name(), "lse", inputs[4], &[s.batch, s.heads, s.queries])?;
        expect_typed(self.name(), "dy", inputs[5], dtype, &y)?;
        Ok(inputs[..3].iter().map(|ty| (*ty).clone()).collect())
    }

    fn cost(&self, io: &Signature) -> Cost {
        let sizes = self.0.sizes_of(self.name(), io);
        let flops = sizes.map_or(0, |s| s.scores() * (6 * s.d as u64 + 4 * s.dv as u64 + 10));
        Cost { flops, bytes: io.bytes() }
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        matches!(target, Target::Cuda(_)) && target.stores(dtype)
    }

    /// lse.
    fn stays_f32(&self, input: usize) -> bool {
        input == 4
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let s = self.0.sizes_of(self.name(), io)?;
        match target {
            Target::Cuda(target) if io.inputs[0].dtype != DType::F32 => {
                Ok(self.half_launches(&s, io.inputs[0].dtype, target))
            }
            Target::Cuda(target) => Ok(self.ptx_launches(&s, target)),
            Target::Cpu => {
                let (splits, _) = s.splits();
                let launch = Launch::cpu(self.name(), backward, 6, 3);
                let launch = if splits > 1 { launch.with_scratch(splits * io.inputs[0].elements()) } else { launch };
                Ok(vec![s.scalars(launch).scalar(self.0.scale)])
            }
            Target::Wgpu(target) => {
                along(0, &[], io, target, |io| self.wgsl_launches(&self.0.sizes_of(self.name(), io)?, target))
            }
        }
    }
}

impl AttentionGrad {
    /// On the wgpu device: rowsum(dy ∘ y) into scratch, then dk and dv, then dq.
    fn wgsl_launches(&self, s: &Sizes, target: &WgpuTarget) -> Result<Vec<Launch>> {
        let [q, k, v, y, lse, dy] = [0, 1, 2, 3, 4, 5].map(Arg::Input);
        let (rows, shader) = (s.pairs() * s.queries, Shader::new(self.name(), wgsl!("attention_delta")));
        let delta = Launch::wgsl(shader, target.grid(rows.div_ceil(64)), [y, dy]).with_scratch(rows);
        let by_key = wgsl!("lib/attention", "lib/attention_grad", "attention_keys_grad");
        let by_query = wgsl!("lib/attention", "lib/attention_grad", "attention_queries_grad");
        let shader = |source| Shader::new(self.name(), source);
        let inputs = [q, k, v, dy, lse, Arg::Left(0, 0)];
        let (by_key, groups) = s.tiled(shader(by_key), target, s.keys, s.d.max(s.dv))?;
        let args = inputs.into_iter().chain([Arg::Output(1), Arg::Output(2)]);
        let by_key = s.words(Launch::wgsl(by_key, target.grid(groups), args), self.0.scale);
        let (by_query, groups) = s.tiled(shader(by_query), target, s.queries, s.d)?;
        let by_query = Launch::wgsl(by_query, target.grid(groups), inputs.into_iter().chain([Arg::Output(0)]));
        Ok(vec![delta.scalars([s.queries, s.heads, s.dv, rows]), by_key, s.words(by_query, self.0.scale)])
    }

    /// On the cuda device in f32: rowsum(dy ∘ y) into scratch, then dk and dv by blocks of keys, then dq by blocks of queries. Where there are too
    /// few blocks what they go over is cut into parts, whose sums one more launch adds.
    fn ptx_launches(&self, s: &Sizes, target: &CudaTarget) -> Vec<Launch> {
        let kernel = |entry: String| Ptx::new(self.name(), ptx!("attention_grad"), DType::F32).entry(entry);
        let [q, k, v, y, lse, dy] = [0, 1, 2, 3, 4, 5].map(Arg::Input);
        let rows = s.pairs() * s.queries;
        let delta = kernel("attention_grad_delta_f32".into());
        let delta = Launch::ptx(delta, [rows.div_ceil(32), 1, 1], 256, [y, dy]).with_scratch(rows);
        let mut launches = vec![delta.scalars([s.pairs(), s.queries, s.heads, s.dv])];

        // Columns that a block makes: of dk and dv at once, and of dq.
        let wide = s.d.max(s.dv);
        let fits = |width: usize| [16, 32, 48, 64, 80, 128].into_iter().find(|c| width <= *c);
        let of_both = fits(wide).or_else(|| fits(wide.div_ceil(2))).unwrap_or(128);
        let of_one = fits(s.d).unwrap_or(256);
        let sum = kernel("attention_grad_sum_f32".into());
        let inputs = [q, k, v, dy, lse, Arg::Left(0, 0)];
        // Rows that blocks have and rows that they go over, columns, outputs and their sizes.
        let keys = s.pairs() * s.keys;
        let by_key = ("by_key", s.keys, s.queries, of_both, wide, vec![(1, keys * s.d), (2, keys * s.dv)]);
        let by_query = ("by_query", s.queries, s.keys, of_one, s.d, vec![(0, rows * s.d)]);
        for (name, own, other, columns, width, outputs) in [by_key, by_query] {
            let (blocks, slices) = (own.div_ceil(F32_TILE), width.div_ceil(columns));
            let floats = outputs.iter().map(|o| o.1).sum();
            let each = Each { row: row_time(DType::F32, 2 * (s.d + s.dv)), part: floats };
            let Cuts { parts, rows: split, .. } = cuts(s.pairs() * blocks * slices, other, each, target);
            let kernel = kernel(format!("attention_grad_{name}_{columns}_f32")).shared(F32_SHARED_BYTES);
            let mut launch = Launch::ptx(kernel, [s.pairs() * blocks, parts, slices], THREADS, inputs);
            for &(output, elements) in &outputs {
                match parts {
                    1 => launch.args.push(Arg::Output(output)),
                    _ => launch = launch.with_scratch(parts * elements),
                }
            }
            let launch = launch.scalars([s.queries, s.keys, s.heads, s.d, s.dv, blocks, split]);
            let number = launches.len();
            launches.push(launch.scalar(self.0.scale));
            let summed = if parts == 1 { vec![] } else { outputs };
            launches.extend(summed.into_iter().enumerate().map(|(piece, (output, elements))| {
                let args = [Arg::Left(number, piece), Arg::Output(output)];
                Launch::ptx_flat(sum.clone(), DType::F32, elements, args).scalar(parts)
            }));
        }
        launches
    }

    /// On the cuda device in f16 and bf16: lse and rowsum(dy ∘ y) into scratch, then sums over the others by blocks of rows, which are keys
    /// (dk, dv) or queries (dq): on Hopper by kernels of its own. Where there are too few blocks the others are cut into parts, whose sums more
    /// launches add.
    fn half_launches(&self, s: &Sizes, dtype: DType, target: &CudaTarget) -> Vec<Launch> {
        if let Some(once) = HopperOnce::of(s, dtype, target) {
            return once.launches(self, s, dtype);
        }
        let kernel = |entry: String| {
            Ptx::new(self.name(), ptx!("attention_grad_half"), dtype).entry(format!("attention_grad_{entry}_{dtype}"))
        };
        let [q, k, v, y, lse, dy] = [0, 1, 2, 3, 4, 5].map(Arg::Input);
        // Two numbers for each query of each head.
        let terms = s.pairs() * s.queries.next_multiple_of(64);
        let launch = Launch::ptx(kernel("terms".into()), [terms / 32, 1, 1], 256, [y, dy, lse]).with_scratch(2 * terms);
        let mut launches = vec![launch.scalars([s.queries, s.heads, s.dv])];

        let tile = BackwardTile::of(s.d.max(s.dv));
        let by_key = |slopes, operands, outputs| HalfSum { by_query: false, slopes, operands, outputs };
        let of_keys = if tile.both {
            vec![by_key(true, [v, dy, k, q], vec![(1, s.d), (2, s.dv)])]
        } else {
            vec![by_key(true, [v, dy, k, q], vec![(1, s.d)]), by_key(false, [k, q, q, dy], vec![(2, s.dv)])]
        };
        let of_queries =
            vec![HalfSum { by_query: true, slopes: true, operands: [dy, v, q, k], outputs: vec![(0, s.d)] }];
        for (by_query, sums) in [(false, of_keys), (true, of_queries)] {
            let planned: Vec<_> = sums.into_iter().map(|sum| (sum.cuts(s, &tile, dtype, target), sum)).collect();
            let time = planned.iter().map(|(cuts, _)| cuts.time).sum();
            match HopperSums::of(s, by_query, dtype, target).filter(|hopper| hopper.time <= time) {
                Some(hopper) => launches.push(hopper.launch(self, s, dtype)),
                None => planned.iter().for_each(|(cuts, sum)| self.push_sums(&mut launches, s, sum, cuts, dtype)),
            }
        }
        launches
    }

    /// Adds the launch of one sum to `launches`, and those of what puts its parts together.
    fn push_sums(&self, launches: &mut Vec<Launch>, s: &Sizes, sum: &HalfSum, cuts: &Cuts, dtype: DType) {
        let kernel = |entry: &str| {
            Ptx::new(self.name(), ptx!("attention_grad_half"), dtype).entry(format!("attention_grad_{entry}_{dtype}"))
        };
        let tile = BackwardTile::of(s.d.max(s.dv));
        let ((rows, others), [first_width, width]) = (sum.rows_and_others(s), sum.widths(s));
        let (blocks, slices, sum_width) = (rows.div_ceil(tile.rows), width.div_ceil(tile.columns), tile.width(width));
        let (entry, shared_bytes) = tile.entry(sum.slopes, sum.outputs.len());
        let outputs = sum.outputs.iter().map(|o| Arg::Output(o.0));
        let args = sum.operands.into_iter().chain([Arg::Left(0, 0)]).chain(outputs);
        let grid = [s.pairs() * blocks, cuts.parts, slices];
        let mut launch = Launch::ptx(kernel(&entry).shared(shared_bytes), grid, THREADS, args);
        for _ in &sum.outputs {
            match cuts.parts {
                1 => launch.args.push(Arg::Input(0)),
                parts => launch = launch.with_scratch(parts * s.pairs() * rows * sum_width),
            }
        }
        let sizes = [rows, others, s.heads, first_width, width, sum_width, blocks, cuts.rows, sum.by_query as usize];
        let launch = launch.scalars(sizes).scalar(self.0.scale);
        let number = launches.len();
        launches.push(if sum.outputs.len() == 1 { launch.scalar(sum.slopes) } else { launch });
        let summed = if cuts.parts == 1 { &[] } else { &sum.outputs[..] };
        launches.extend(summed.iter().enumerate().map(|(piece, &(output, width))| {
            let grid = [(s.pairs() * rows * pieces(width, dtype)).div_ceil(JOIN_THREADS), 1, 1];
            let args = [Arg::Left(number, piece), Arg::Output(output)];
            let launch = Launch::ptx(kernel("sum"), grid, JOIN_THREADS, args);
            launch.scalars([s.pairs(), rows, s.heads, width, sum_width, cuts.parts])
        }));
    }
}

/// Sums of `kernels/attention_grad_half.cu`: of dS or P, with the left and right operands of the first and of the second product. Outputs by
/// number, with their columns.
struct HalfSum {
    by_query: bool,
    slopes: bool,
    operands: [Arg; 4],
    outputs: Vec<(usize, usize)>,
}

impl HalfSum {
    fn rows_and_others(&self, s: &Sizes) -> (usize, usize) {
        if self.by_query { (s.queries, s.keys) } else { (s.keys, s.queries) }
    }

    /// Columns of the first product, and of the second and of the sums.
    fn widths(&self, s: &Sizes) -> [usize; 2] {
        if self.slopes { [s.dv, s.d] } else { [s.d, s.dv] }
    }

    /// How others are cut.
    fn cuts(&self, s: &Sizes, tile: &BackwardTile, dtype: DType, target: &CudaTarget) -> Cuts {
        let ((rows, others), [_, width]) = (self.rows_and_others(s), self.widths(s));
        let part = self.outputs.len() * s.pairs() * rows * tile.width(width);
        let each = Each { row: row_time(dtype, 0) * 3 / 2, part };
        cuts(s.pairs() * rows.div_ceil(tile.rows) * width.div_ceil(tile.columns), others, each, target)
    }
}

/// An instance of the kernels of `kernels/attention_grad_half.cu`.
struct BackwardTile {
    /// Rows of a block, and columns of sums.
    rows: usize,
    columns: usize,
    /// One launch makes dk and dv.
    both: bool,
    /// Columns of the tiles that operands come in.
    step: usize,
}

impl BackwardTile {
    /// The instance for heads of `width` columns.
    fn of(width: usize) -> Self {
        let (rows, columns, step) = match width {
            0..=64 => (128, 64, 64),
            65..=128 => (128, 128, 128),
            129..=256 => (64, 256, 256),
            _ => (64, 256, 64),
        };
        BackwardTile { rows, columns, both: columns == 64, step }
    }

    /// Columns of sums in scratch, of outputs of `width` columns.
    fn width(&self, width: usize) -> usize {
        width.next_multiple_of(self.columns)
    }

    /// Operands come in steps.
    fn wide(&self) -> bool {
        self.step < self.columns
    }

    /// The entry for sums of dS or of P, or of both where there are two outputs, and bytes of its shared memory.
    fn entry(&self, slopes: bool, outputs: usize) -> (String, usize) {
        let (rows, others, terms) = (self.rows * self.step * 2, 32 * self.step * 2, 32 * 8);
        match (self.wide(), outputs) {
            (true, _) => ("wide".into(), 2 * (rows + others) + 32 * self.columns * 2 + terms),
            (false, 2) => (format!("both_{}", self.columns), 2 * rows + 2 * (2 * others + terms)),
            _ => (self.columns.to_string(), if slopes { 2 * rows } else { rows } + 2 * (others + terms)),
        }
    }
}

/// The rows of one head of one sample.
#[derive(Clone, Copy)]
struct Head<'a> {
    data: &'a [f32],
    stride: usize,
    width: usize,
}

impl<'a> Head<'a> {
    /// Head `pair % heads` of sample `pair / heads` of x `[B, rows, heads·width]`.
    fn of(x: &'a [f32], pair: usize, heads: usize, rows: usize, width: usize) -> Self {
        let start = (pair / heads * rows * heads + pair % heads) * width;
        Head { data: &x[start..], stride: heads * width, width }
    }

    fn row(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.stride..i * self.stride + self.width]
    }

    /// The rows from `first` on.
    fn from(&self, first: usize) -> &'a [f32] {
        &self.data[first * self.stride..]
    }

    /// Copies `scale` · rows `first..first + count`, each [`PAD`] longer than a head.
    fn copy(&self, first: usize, count: usize, scale: f32, out: &mut [f32]) {
        for (i, line) in out.chunks_exact_mut(self.width + PAD).take(count).enumerate() {
            line.iter_mut().zip(self.row(first + i)).for_each(|(o, v)| *o = v * scale);
        }
    }
}

/// Lends thread-local pieces of these lengths, each on a cache line of its own.
fn with_pieces<const N: usize>(lengths: [usize; N], f: impl FnOnce([&mut [f32]; N])) {
    let lengths = lengths.map(|n| n.next_multiple_of(PANEL));
    with_buffers(lengths.iter().sum::<usize>() + PANEL, 0, |buffer, _| {
        let skip = buffer.as_ptr().align_offset(64).min(PANEL);
        let mut rest = &mut buffer[skip..];
        f(lengths.map(|n| {
            let (piece, tail) = std::mem::take(&mut rest).split_at_mut(n);
            rest = tail;
            piece
        }));
    });
}

fn forward(args: &Args) {
    let s = Sizes::of(args);
    let scale = args.float(6);
    let (q, k, v) = (args.slice::<f32>(0), args.slice::<f32>(1), args.slice::<f32>(2));
    let (y, lse) = (Ptr::new(args.slice_mut::<f32>(3)), Ptr::new(args.slice_mut::<f32>(4)));
    // Every query's result is the same however they are cut.
    let wanted = (2 * rayon::current_num_threads()).div_ceil(s.pairs());
    let size = s.queries.div_ceil(wanted).min(s.block(QUERIES)).next_multiple_of(2 * PANEL);
    let blocks = s.queries.div_ceil(size);
    tasks(s.pairs() * blocks, s.work(), |task| {
        let (pair, first) = (task / blocks, task % blocks * size);
        let count = size.min(s.queries - first);
        let q = Head::of(q, pair, s.heads, s.queries, s.d);
        let (k, v) = (Head::of(k, pair, s.heads, s.keys, s.d), Head::of(v, pair, s.heads, s.keys, s.dv));
        let panels = count.div_ceil(PANEL);
        let (block, wide) = (s.key_block(), panels * PANEL);
        let lengths =
            [wide * s.d, wide * s.dv, wide, wide, block * (s.d + PAD), block * (s.dv + PAD), block * 2 * PANEL];
        with_pieces(lengths, |[qt, out, top, total, kb, vb, scores]| {
            pack_cols(q.from(first), q.stride, count, s.d, qt);
            qt.iter_mut().for_each(|v| *v *= scale);
            top.fill(f32::NEG_INFINITY);
            for key in (0..s.keys).step_by(block) {
                let keys = block.min(s.keys - key);
                k.copy(key, keys, 1.0, kb);
                v.copy(key, keys, 1.0, vb);
                for p in (0..panels).step_by(2) {
                    let pair = 2.min(panels - p);
                    let products = Tiles {
                        a: Left::Rows { a: kb.as_ptr(), stride: s.d + PAD },
                        b: qt[p * s.d * PANEL..].as_ptr(),
                        b_panel: s.d * PANEL,
                        c: scores.as_mut_ptr(),
                        c_row: PANEL,
                        c_panel: block * PANEL,
                    };
                    // SAFETY: `keys` rows of K, `pair` panels of q, and room for two panels of `block` rows.
                    unsafe { products.run([keys, pair * PANEL, s.d], false) };
                    for i in 0..pair {
                        let lanes = (p + i) * PANEL..(p + i + 1) * PANEL;
                        let scores = &mut scores[i * block * PANEL..][..keys * PANEL];
                        let out = &mut out[(p + i) * s.dv * PANEL..][..s.dv * PANEL];
                        exponentials(scores, &mut top[lanes.clone()], &mut total[lanes], out, key == 0);
                    }
                    let sums = Tiles {
                        a: Left::Columns { a: vb.as_ptr(), stride: s.dv + PAD },
                        b: scores.as_ptr(),
                        b_panel: block * PANEL,
                        c: out[p * s.dv * PANEL..].as_mut_ptr(),
                        c_row: PANEL,
                        c_panel: s.dv * PANEL,
                    };
                    // SAFETY: `keys` rows of V and of each panel of scores; `pair` panels of out.
                    unsafe { sums.run([s.dv, pair * PANEL, keys], key > 0) };
                }
            }
            for i in 0..count {
                let row = (pair / s.heads * s.queries + first + i) * s.heads + pair % s.heads;
                // SAFETY: this query's part of this head.
                let (y, lse) = unsafe { (y.part(row * s.dv, s.dv), lse.part(pair * s.queries + first + i, 1)) };
                lse[0] = top[i] + total[i].ln();
                let (out, scale) = (&out[i / PANEL * s.dv * PANEL + i % PANEL..], 1.0 / total[i]);
                y.iter_mut().zip(out.iter().step_by(PANEL)).for_each(|(y, v)| *y = v * scale);
            }
        });
    });
}

simd! {
    /// Scores `[keys, 16]` → exp(score − the largest so far), 16 queries beside each other. What earlier blocks left in
    /// `total` and `out` `[dv, 16]` is scaled to the new largest.
    fn exponentials(scores: &mut [f32], top: &mut [f32], total: &mut [f32], out: &mut [f32], first: bool) {
        let (scores, _) = scores.as_chunks_mut::<PANEL>();
        let mut largest = [f32::NEG_INFINITY; PANEL];
        largest.copy_from_slice(&top[..PANEL]);
        for line in scores.iter() {
            for i in 0..PANEL { largest[i] = if line[i] > largest[i] { line[i] } else { largest[i] }; }
        }
        let mut sum = [0.0f32; PANEL];
        for line in scores {
            for i in 0..PANEL {
                line[i] = exp(line[i] - largest[i]);
                sum[i] += line[i];
            }
        }
        if !first {
            let mut factor = [0.0f32; PANEL];
            for i in 0..PANEL {
                factor[i] = exp(top[i] - largest[i]);
                sum[i] += total[i] * factor[i];
            }
            for line in out.as_chunks_mut::<PANEL>().0 {
                for i in 0..PANEL { line[i] *= factor[i]; }
            }
        }
        top[..PANEL].copy_from_slice(&largest);
        total[..PANEL].copy_from_slice(&sum);
    }
}

fn backward(args: &Args) {
    let s = Sizes::of(args);
    let (splits, _) = s.splits();
    let dq = args.slice_mut::<f32>(6);
    let elements = dq.len();
    let dq = Ptr::new(dq);
    let partial = if splits > 1 { Ptr::new(args.slice_mut::<f32>(9)) } else { dq };
    let (dk, dv) = (Ptr::new(args.slice_mut::<f32>(7)), Ptr::new(args.slice_mut::<f32>(8)));
    tasks(s.pairs() * splits, s.work(), |task| {
        let (pair, split) = (task / splits, task % splits);
        // SAFETY: `elements` for each split.
        let dq = Ptr::from_raw(unsafe { partial.raw().add(split * elements) });
        backward_keys(args, &s, pair, split, dq, dk, dv);
    });
    if splits > 1 {
        ranges(elements, 16, |start, end| {
            // SAFETY: one range a task; the partial sums are complete.
            let sum = unsafe { dq.part(start, end - start) };
            sum.fill(0.0);
            for i in 0..splits {
                // SAFETY: as above.
                let part = unsafe { partial.part(i * elements + start, end - start) };
                sum.iter_mut().zip(part).for_each(|(s, v)| *s += *v);
            }
        });
    }
}

/// One head's dk and dv of piece `split` of the keys, and what these keys add to dq.
fn backward_keys(args: &Args, s: &Sizes, pair: usize, split: usize, dq: Ptr<f32>, dk: Ptr<f32>, dv: Ptr<f32>) {
    let scale = args.float(6);
    let head = |i: usize, rows: usize, width: usize| Head::of(args.slice::<f32>(i), pair, s.heads, rows, width);
    let (q, k, v) = (head(0, s.queries, s.d), head(1, s.keys, s.d), head(2, s.keys, s.dv));
    let (y, dy) = (head(3, s.queries, s.dv), head(5, s.queries, s.dv));
    let lse = &args.slice::<f32>(4)[pair * s.queries..(pair + 1) * s.queries];
    let (sample, column) = (pair / s.heads, pair % s.heads);
    let (block, rows) = (s.key_block(), s.block(QUERIES_BACK).min(s.queries));
    let (start, end) = (split * s.splits().1 * block, ((split + 1) * s.splits().1 * block).min(s.keys));
    let lengths = [
        block * s.d,
        block * s.dv,
        block * s.d.next_multiple_of(PANEL),
        block * s.d,
        block * s.dv,
        rows * (s.d + PAD),
        rows * (s.dv + PAD),
        block * rows,
        block * rows,
        (block + PAD) * rows,
        rows,
    ];
    with_pieces(lengths, |[kt, vt, kr, dkt, dvt, qb, dyb, weights, slopes, by_row, delta]| {
        for key in (start..end).step_by(block) {
            let keys = block.min(end - key);
            let panels = keys.div_ceil(PANEL);
            pack_cols(k.from(key), k.stride, keys, s.d, kt);
            pack_cols(v.from(key), v.stride, keys, s.dv, vt);
            let kr = &mut kr[..keys * s.d.next_multiple_of(PANEL)];
            pack_rows(k.from(key), k.stride, s.d, kr);
            kr.iter_mut().for_each(|v| *v *= scale);
            for query in (0..s.queries).step_by(rows) {
                let count = rows.min(s.queries - query);
                q.copy(query, count, scale, qb);
                dy.copy(query, count, 1.0, dyb);
                dots(dy, y, query, &mut delta[..count]);
                let again = query > 0;
                // Panels of 16 keys, a row for each query, `rows` rows apart.
                let right = |a: &[f32], width: usize, b: &[f32], c: &mut [f32]| {
                    let a = Left::Rows { a: a.as_ptr(), stride: width + PAD };
                    let (b_panel, c_panel) = (width * PANEL, rows * PANEL);
                    let tiles = Tiles { a, b: b.as_ptr(), b_panel, c: c.as_mut_ptr(), c_row: PANEL, c_panel };
                    // SAFETY: `count` rows of A, `panels` panels of B and of C.
                    unsafe { tiles.run([count, panels * PANEL, width], false) };
                };
                right(qb, s.d, kt, weights);
                right(dyb, s.dv, vt, slopes);
                for p in 0..panels {
                    let panel = p * rows * PANEL..(p * rows + count) * PANEL;
                    let by_row = &mut by_row[p * PANEL..];
                    let (weights, slopes) = (&mut weights[panel.clone()], &mut slopes[panel]);
                    slopes_of(weights, slopes, &lse[query..query + count], &delta[..count], by_row, block + PAD);
                }
                // Transposed sums over the queries: `[width, keys]` in panels.
                let left = |a: &[f32], width: usize, b: &[f32], c: &mut [f32]| {
                    let a = Left::Columns { a: a.as_ptr(), stride: width + PAD };
                    let (b_panel, c_panel) = (rows * PANEL, width * PANEL);
                    let tiles = Tiles { a, b: b.as_ptr(), b_panel, c: c.as_mut_ptr(), c_row: PANEL, c_panel };
                    // SAFETY: as above.
                    unsafe { tiles.run([width, panels * PANEL, count], again) };
                };
                left(dyb, s.dv, weights, dvt);
                left(qb, s.d, slopes, dkt);
                let tiles = Tiles {
                    a: Left::Rows { a: by_row.as_ptr(), stride: block + PAD },
                    b: kr.as_ptr(),
                    b_panel: keys * PANEL,
                    // SAFETY: these queries' part of this head in this task's own dq.
                    c: unsafe { dq.raw().add(((sample * s.queries + query) * s.heads + column) * s.d) },
                    c_row: s.heads * s.d,
                    c_panel: PANEL,
                };
                // SAFETY: `count` rows of A with `keys` columns, as many rows of B; C as above.
                unsafe { tiles.run([count, s.d, keys], key > start) };
            }
            for i in 0..keys {
                let row = (sample * s.keys + key + i) * s.heads + column;
                // SAFETY: this key's part of this head.
                let (dk, dv) = unsafe { (dk.part(row * s.d, s.d), dv.part(row * s.dv, s.dv)) };
                dk.iter_mut()
                    .zip(dkt[i / PANEL * s.d * PANEL + i % PANEL..].iter().step_by(PANEL))
                    .for_each(|(o, v)| *o = *v);
                dv.iter_mut()
                    .zip(dvt[i / PANEL * s.dv * PANEL + i % PANEL..].iter().step_by(PANEL))
                    .for_each(|(o, v)| *o = *v);
            }
        }
    });
}

simd! {
    /// The products of rows of x with rows of y, from row `first` on.
    fn dots(x: Head, y: Head, first: usize, out: &mut [f32]) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = dot(x.row(first + i), y.row(first + i));
        }
    }
}

simd! {
    /// One panel of 16 keys, a line for each query: scores → P = exp(score − lse), dP → dS = P·(dP − delta), which also goes
    /// to `by_row`, whose rows are `stride` apart.
    fn slopes_of(weights: &mut [f32], slopes: &mut [f32], lse: &[f32], delta: &[f32], by_row: &mut [f32], stride: usize) {
        let lines = weights.as_chunks_mut::<PANEL>().0.iter_mut().zip(slopes.as_chunks_mut::<PANEL>().0).zip(lse).zip(delta);
        for ((((weights, slopes), lse), delta), by_row) in lines.zip(by_row.chunks_mut(stride)) {
            for i in 0..PANEL {
                weights[i] = exp(weights[i] - lse);
                slopes[i] = weights[i] * (slopes[i] - delta);
            }
            by_row[..PANEL].copy_from_slice(slopes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Kernel;

    const HOPPER: CudaTarget =
        CudaTarget { compute: (9, 0), multiprocessors: 132, shared_bytes: 227 * 1024, software: false };

    #[test]
    fn keys_are_cut_where_that_pays_for_a_launch() {
        let each = |part| Each { row: 100, part };
        // 256 keys: 25.6 µs; two parts take 12.8 and their sums, those of 16 million floats 67 µs more.
        assert_eq!(cuts(64, 256, each(1000), &HOPPER), Cuts { parts: 2, rows: 128, time: 12800 + 3000 + 4 });
        assert_eq!(cuts(64, 256, each(16 << 20), &HOPPER), Cuts { parts: 1, rows: 256, time: 25600 });
        // Every multiprocessor has two blocks; a part has at least 128 keys.
        assert_eq!(cuts(264, 4096, each(1000), &HOPPER).parts, 1);
        assert_eq!(cuts(64, 200, each(1000), &HOPPER).parts, 1);
        assert_eq!(cuts(1, 4096, each(1000), &HOPPER).parts, 32);
    }

    /// Where a single launch for Hopper and the kernels for every GPU, which cut keys, are both there.
    #[test]
    fn few_queries_and_many_keys_are_cut() {
        let entries = |backward, [batch, queries, keys, heads, d]: [usize; 5]| {
            let (op, s) = (Attention { heads, scale: 1.0 }, Sizes { batch, queries, keys, heads, d, dv: d });
            let launches = match backward {
                true => AttentionGrad(op).half_launches(&s, DType::Bf16, &HOPPER),
                false => op.launches(&s, DType::Bf16, &HOPPER),
            };
            let entry = |launch: Launch| match launch.kernel {
                Kernel::Ptx(kernel) => kernel.entry,
                other => panic!("{other:?}"),
            };
            launches.into_iter().map(entry).collect::<Vec<_>>()
        };
        let forward = |batch, queries, keys, heads, d| entries(false, [batch, queries, keys, heads, d]);
        assert_eq!(forward(4, 256, 256, 16, 72), ["attention_72_bf16"]);
        assert_eq!(forward(1, 64, 8192, 1, 64), ["attention_64_bf16", "attention_join_bf16"]);
        let grad = |sizes| {
            let entries = entries(true, sizes).into_iter();
            entries.map(|e| e.replace("attention_grad_", "").replace("_bf16", "")).collect::<Vec<_>>()
        };
        assert_eq!(grad([4, 256, 256, 16, 72]), ["terms", "by_key_80", "by_query_80"]);
        // Few keys, which go over thousands of queries.
        assert_eq!(grad([1, 8192, 77, 1, 64]), ["terms", "both_64", "sum", "sum", "by_query_64"]);
        assert_eq!(grad([4, 1024, 1024, 8, 160]), ["terms", "256", "256", "256"]);
    }
}
