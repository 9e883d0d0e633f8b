//! Attention by shaders: by cooperative matrices, by blocks of queries with the keys in parts, or by tiles.

use super::{Attention, AttentionGrad, Sizes};
use crate::graph::{Arg, Launch, Op, Shader, Signature, WgpuTarget, wgsl, wgsl_with_matrices};
use crate::ops::product::BUSY;
use crate::tensor::DType;
use crate::{Error, Result};

/// Of `shaders/attention_matrices.wgsl`: workgroup memory of a query beside queries and keys, and columns of v that a workgroup has.
const MATRIX_QUERY_BYTES: usize = 9 * 16 + 10 * 8 + 2 * 8;
const MATRIX_COLUMNS: usize = 160;
/// Invocations of a workgroup of `shaders/attention_join.wgsl`.
const JOIN_LANES: usize = 64;
/// Keys that a workgroup of `shaders/attention_blocks.wgsl` meets at a time, columns of v that it has at most, and parts of keys.
const BLOCK_KEYS: usize = 64;
const BLOCK_COLUMNS: usize = 256;
const BLOCK_PARTS: usize = 16;

impl Attention {
    /// On the wgpu device: by cooperative matrices where they have enough to do, else by blocks, and what those are too narrow for by tiles.
    pub(super) fn shaders(&self, io: &Signature, target: &WgpuTarget) -> Result<Vec<Launch>> {
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
}

impl AttentionGrad {
    /// On the wgpu device: rowsum(dy ∘ y) into scratch, then dk and dv, then dq.
    pub(super) fn wgsl_launches(&self, s: &Sizes, target: &WgpuTarget) -> Result<Vec<Launch>> {
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
}

impl Sizes {
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
}

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
