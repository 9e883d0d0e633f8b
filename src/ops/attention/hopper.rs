//! Attention and its gradient by the kernels of `kernels/sm_90a`.

use super::{Attention, AttentionGrad, Sizes};
use crate::graph::{Arg, Boxes, CudaTarget, Launch, Op, Ptx, ptx};
use crate::tensor::DType;

/// An instance of the forward in `kernels/sm_90a/attention.cu`, and how it is launched.
pub(super) struct HopperTile {
    pub entry: String,
    /// Warpgroups of a block that multiply, each with 64 queries.
    groups: usize,
    /// Threads of a block: of those, and of the warpgroup that brings tiles where there is one.
    threads: usize,
    /// Keys of a tile.
    keys: usize,
    shared_bytes: usize,
    grid: usize,
    /// What the kernel is told last: places for tiles, or how many blocks' queries there are.
    last: usize,
    /// Nanoseconds, about, that it takes.
    pub time: usize,
}

impl HopperTile {
    /// Columns of an instance, and keys of its tiles.
    const NARROW: [(usize, usize); 4] = [(40, 96), (64, 64), (72, 64), (80, 64)];
    /// Columns of an instance, keys of its tiles, and places for Q.
    const WIDE: [(usize, usize, usize); 2] = [(128, 128, 2), (160, 96, 1)];
    /// Columns of an instance with one warpgroup, and places for tiles, which have 64 keys.
    const FEW: [(usize, usize); 3] = [(128, 4), (160, 4), (256, 3)];
    /// Nanoseconds of a block for a key.
    const KEY_TIME: usize = 20;
    /// Bytes of a multiprocessor's shared memory, and those of it that each block has besides its own.
    const SHARED: usize = 228 * 1024;
    const RESERVED: usize = 2048;

    /// The instance for such heads, if there is one that may be quicker than what every GPU has: PTX for `wgmma` is for compute capability 9.0 alone,
    /// rows are copied 16 bytes at a time, and two thirds of the products are of columns that there are, about as much as `mma` gets
    /// out of the tensor cores.
    pub fn of(s: &Sizes, dtype: DType, target: &CudaTarget) -> Option<Self> {
        let halves = dtype != DType::F32 && s.d.is_multiple_of(8) && s.dv.is_multiple_of(8);
        let (width, processors) = (s.d.max(s.dv), target.multiprocessors as usize);
        if target.compute != (9, 0) || !halves {
            return None;
        }
        let fills = |columns: usize| 3 * (s.d + s.dv) >= 4 * columns;
        if let Some((columns, keys)) = Self::NARROW.into_iter().find(|instance| width <= instance.0) {
            return fills(columns).then(|| Self::narrow(s, dtype, columns, keys, processors));
        }
        // Two warpgroups only where that does not leave half of the multiprocessors idle, or half of a block's own rows.
        let many = s.queries > 64 && 2 * s.blocks(2) > processors;
        let wide = Self::WIDE.into_iter().find(|instance| many && width <= instance.0);
        let few = || Self::FEW.into_iter().find(|instance| width <= instance.0);
        let (name, columns, groups, keys, stages, places) = match wide {
            Some((columns, keys, places)) => ("", columns, 2, keys, 2, places),
            None => few().map(|(columns, stages)| ("few_", columns, 1, 64, stages, 1))?,
        };
        let blocks = s.blocks(groups);
        let tile = HopperTile {
            entry: format!("attention_{name}{columns}_{dtype}"),
            groups,
            threads: 128 * (groups + 1),
            keys,
            shared_bytes: shared_bytes(columns, 64 * groups * places + 2 * stages * keys),
            // Blocks with two places for Q stay, and go from queries to queries.
            grid: if places == 2 { blocks.min(processors) } else { blocks },
            last: blocks,
            time: blocks.div_ceil(processors) * s.keys * Self::KEY_TIME,
        };
        fills(columns).then_some(tile)
    }

    /// The instance for narrow heads, by blocks of as many warpgroups as take the least time.
    fn narrow(s: &Sizes, dtype: DType, columns: usize, keys: usize, processors: usize) -> Self {
        let time = |groups: usize, keys: usize| {
            let (key, block) = Self::narrow_times(groups, s.blocks(groups).div_ceil(processors));
            keys * key + block
        };
        let groups = [4, 2, 1].into_iter().min_by_key(|groups| time(*groups, s.keys)).unwrap_or(1);
        let blocks = s.blocks(groups);
        let shared = |stages: usize| shared_bytes(columns, 64 * groups + 2 * stages * keys);
        // Fewer places for tiles where blocks could not share a multiprocessor otherwise.
        let alone = groups == 4 || blocks <= processors || 2 * (shared(4) + Self::RESERVED) <= Self::SHARED;
        let stages = if alone { 4 } else { 2 };
        HopperTile {
            entry: format!("attention_{columns}_{dtype}"),
            groups,
            threads: 128 * groups,
            keys,
            shared_bytes: shared(stages),
            grid: blocks,
            last: stages,
            time: s.keys * Self::narrow_times(groups, blocks.div_ceil(processors)).0,
        }
    }

    /// Nanoseconds for a key, and for a block's first copies and last stores, of `n` blocks that come to one multiprocessor: one of four warpgroups at a time, two
    /// of two, and the last of those alone. Measured on an H200; of one warpgroup more than one are taken for as slow as if they did not share.
    fn narrow_times(groups: usize, n: usize) -> (usize, usize) {
        match groups {
            4 => (14 * n, 4800 * n),
            2 => (16 * (n / 2) + 10 * (n % 2), 4000 * (n / 2) + 3200 * (n % 2)),
            _ => (8 * n, 3000 * n),
        }
    }

    pub fn launch(&self, op: &Attention, s: &Sizes, dtype: DType) -> Launch {
        let kernel = Ptx::new(op.name(), ptx!("sm_90a", "attention"), dtype);
        let kernel = kernel.entry(self.entry.clone()).shared(self.shared_bytes);
        let args = [Arg::Input(0), Arg::Input(1), Arg::Input(2), Arg::Output(0), Arg::Output(1)];
        let launch = Launch::ptx(kernel, [self.grid, 1, 1], self.threads, args);
        let rows = 64 * self.groups;
        let launch = launch.in_boxes(0, s.boxes(dtype, s.queries, s.d, rows));
        let launch = launch.in_boxes(1, s.boxes(dtype, s.keys, s.d, self.keys));
        let launch = launch.in_boxes(2, s.boxes(dtype, s.keys, s.dv, self.keys));
        launch.scalars([s.queries, s.keys, s.heads, s.dv, s.queries.div_ceil(rows)]).scalar(op.scale).scalar(self.last)
    }
}

/// Of panels of 64 columns, which begin at a multiple of 1024 bytes.
fn shared_bytes(columns: usize, rows: usize) -> usize {
    rows * columns.div_ceil(64) * 128 + 1024
}

/// An instance of `kernels/sm_90a/attention_grad.cu`, by keys for dk and dv, or by queries for dq.
pub(super) struct HopperSums {
    by_query: bool,
    columns: usize,
    /// Rows of a block: 64 for each warpgroup.
    rows: usize,
    shared_bytes: usize,
    /// Nanoseconds, about, that it takes.
    pub time: usize,
}

impl HopperSums {
    /// Columns of an instance, warpgroups of a block by keys, and blocks by queries that share a multiprocessor.
    const INSTANCES: [(usize, usize, usize); 4] = [(40, 3, 2), (64, 2, 2), (80, 2, 1), (128, 2, 1)];

    /// The instance for such heads, if there is one: as [`HopperTile::of`].
    pub fn of(s: &Sizes, by_query: bool, dtype: DType, target: &CudaTarget) -> Option<Self> {
        let (columns, groups, blocks) = Self::INSTANCES.into_iter().find(|(columns, ..)| s.d.max(s.dv) <= *columns)?;
        let halves = dtype != DType::F32 && s.d.is_multiple_of(8) && s.dv.is_multiple_of(8);
        let chosen = target.compute == (9, 0) && halves && 3 * (s.d + s.dv) >= 4 * columns;
        let (own, others, rows, at_once) =
            if by_query { (s.queries, s.keys, 128, blocks) } else { (s.keys, s.queries, 64 * groups, 1) };
        // Rows of both first products, and two tiles of 64 others of both and their terms, from a multiple of 1024 bytes on.
        let shared_bytes = (2 * rows + 4 * 64) * columns.div_ceil(64) * 128 + 2 * 64 * 8 + 1024;
        let rounds = (s.pairs() * own.div_ceil(rows)).div_ceil(at_once * target.multiprocessors as usize);
        let time = rounds * others * HopperTile::KEY_TIME;
        chosen.then_some(HopperSums { by_query, columns, rows, shared_bytes, time })
    }

    pub fn launch(&self, op: &AttentionGrad, s: &Sizes, dtype: DType) -> Launch {
        let [q, k, v, dy, terms] = [Arg::Input(0), Arg::Input(1), Arg::Input(2), Arg::Input(5), Arg::Left(0, 0)];
        let (name, rows, others, args) = if self.by_query {
            ("by_query", s.queries, s.keys, vec![q, dy, k, v, terms, Arg::Output(0)])
        } else {
            ("by_key", s.keys, s.queries, vec![k, v, q, dy, terms, Arg::Output(1), Arg::Output(2)])
        };
        let kernel = Ptx::new(op.name(), ptx!("sm_90a", "attention_grad"), dtype);
        let kernel = kernel.entry(format!("attention_grad_{name}_{}_{dtype}", self.columns)).shared(self.shared_bytes);
        let blocks = rows.div_ceil(self.rows);
        let launch = Launch::ptx(kernel, [s.pairs() * blocks, 1, 1], 2 * self.rows, args);
        // Operands of scores and of dP: the rows', then the others'.
        let operands =
            [(0, rows, s.d, self.rows), (1, rows, s.dv, self.rows), (2, others, s.d, 64), (3, others, s.dv, 64)];
        let in_boxes =
            |launch: Launch, (i, rows, width, extent)| launch.in_boxes(i, s.boxes(dtype, rows, width, extent));
        let launch = operands.into_iter().fold(launch, in_boxes);
        launch.scalars([rows, others, s.heads, s.d, s.dv, blocks]).scalar(op.0.scale)
    }
}

/// `kernels/sm_90a/attention_grad_once.cu`: all three gradients by blocks of keys.
pub(super) struct HopperOnce {
    columns: usize,
}

impl HopperOnce {
    /// Keys of a block, and queries of a tile.
    const ROWS: usize = 128;
    const TILE: usize = 64;
    /// The fewest keys and queries for which fewer products pay for more launches, and for sums of dq in f32's size.
    const LEAST: usize = 512;

    /// The instance for such heads, if there is one.
    pub fn of(s: &Sizes, dtype: DType, target: &CudaTarget) -> Option<Self> {
        let columns = [40, 64, 128].into_iter().find(|columns| s.d.max(s.dv) <= *columns)?;
        let halves = dtype != DType::F32 && s.d.is_multiple_of(8) && s.dv.is_multiple_of(8);
        let fits = halves && 8 * (s.d + s.dv) >= 13 * columns && s.keys.min(s.queries) >= Self::LEAST;
        let busy = 2 * s.pairs() * s.keys.div_ceil(Self::ROWS) >= target.multiprocessors as usize;
        (target.compute == (9, 0) && fits && busy).then_some(HopperOnce { columns })
    }

    /// K and V, places for tiles of Q and dy and for their terms, and two for dS, from a multiple of 1024 bytes on.
    fn shared_bytes(&self) -> usize {
        let stages = if self.columns <= 64 { 4 } else { 3 };
        let rows = 2 * Self::ROWS + 2 * stages * Self::TILE;
        let terms = stages * 3 * 4 * Self::TILE;
        rows * self.columns.next_multiple_of(64) * 2 + terms + 2 * Self::ROWS * Self::TILE * 2 + 1024
    }

    pub fn launches(&self, op: &AttentionGrad, s: &Sizes, dtype: DType) -> Vec<Launch> {
        let kernel = |part: &str| {
            let kernel = Ptx::new(op.name(), ptx!("sm_90a", "attention_grad_once"), dtype);
            kernel.entry(format!("attention_grad_once{part}_{dtype}"))
        };
        let [q, k, v, y, lse, dy] = [0, 1, 2, 3, 4, 5].map(Arg::Input);
        let (parts, tiles) = (s.keys.div_ceil(Self::ROWS), s.queries.div_ceil(Self::TILE));
        let (all_parts, all_tiles, columns) = (s.pairs() * parts, s.pairs() * tiles, self.columns);
        // The largest keys and values of each part.
        let limits = Launch::ptx(kernel("_limits"), [all_parts, 1, 1], 256, [k, v]).with_scratch(2 * all_parts);
        let limits = limits.scalars([s.keys, s.heads, s.d, s.dv, parts]);
        // Three numbers for each query, and room for dq as integers.
        let args = [y, dy, lse, Arg::Left(0, 0)];
        let terms = Launch::ptx(kernel(&format!("_terms_{columns}")), [all_tiles, 1, 1], 256, args);
        let terms = terms.with_scratch(all_tiles * 3 * Self::TILE);
        let terms = terms.with_scratch(all_tiles * Self::TILE * columns.next_multiple_of(16));
        let terms = terms.scalars([s.queries, s.heads, s.dv, parts]);
        let [of_queries, sums] = [Arg::Left(1, 0), Arg::Left(1, 1)];

        let args = [k, v, q, dy, of_queries, sums, Arg::Output(1), Arg::Output(2)];
        let grid = [s.pairs() * parts, 1, 1];
        let once = Launch::ptx(kernel(&format!("_{columns}")).shared(self.shared_bytes()), grid, 3 * 128, args);
        let boxes = |rows, width, extent| s.boxes(dtype, rows, width, extent);
        let once = once.in_boxes(0, boxes(s.keys, s.d, Self::ROWS)).in_boxes(1, boxes(s.keys, s.dv, Self::ROWS));
        let once = once.in_boxes(2, boxes(s.queries, s.d, Self::TILE)).in_boxes(3, boxes(s.queries, s.dv, Self::TILE));
        let once = once.scalars([s.keys, s.queries, s.heads, s.d, s.dv, parts]).scalar(op.0.scale);
        let args = [sums, of_queries, Arg::Output(0)];
        let finish = Launch::ptx(kernel(&format!("_finish_{columns}")), [2 * all_tiles, 1, 1], 128, args);
        vec![limits, terms, once, finish.scalars([s.queries, s.heads, s.d]).scalar(op.0.scale)]
    }
}

impl Sizes {
    /// Blocks of so many warpgroups, each with 64 queries.
    fn blocks(&self, groups: usize) -> usize {
        self.pairs() * self.queries.div_ceil(64 * groups)
    }

    /// An operand of `width` columns a head, in boxes of 64 columns of `extent` rows of one head.
    fn boxes(&self, dtype: DType, rows: usize, width: usize, extent: usize) -> Boxes {
        let (shape, extent) = (vec![width, self.heads, rows, self.batch], vec![64, 1, extent, 1]);
        Boxes { dtype, shape, extent, steps: vec![] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOPPER: CudaTarget =
        CudaTarget { compute: (9, 0), multiprocessors: 132, shared_bytes: 227 * 1024, software: false };

    #[test]
    fn hopper_for_heads_that_fit() {
        let sizes = |queries, d, dv| Sizes { batch: 2, queries, keys: 77, heads: 16, d, dv };
        let tile = |s: Sizes, target: &CudaTarget| HopperTile::of(&s, DType::Bf16, target).map(|t| t.entry);
        let entry = |s| tile(s, &HOPPER).unwrap();
        assert_eq!(entry(sizes(4096, 40, 40)), "attention_40_bf16");
        assert_eq!(entry(sizes(1024, 72, 72)), "attention_72_bf16");
        assert_eq!(entry(sizes(1024, 88, 88)), "attention_128_bf16");
        assert_eq!(entry(sizes(1024, 160, 160)), "attention_160_bf16");
        // Too few blocks, half a block's queries, too wide for the larger blocks.
        assert_eq!(entry(sizes(256, 128, 128)), "attention_few_128_bf16");
        assert_eq!(entry(Sizes { batch: 100, ..sizes(64, 128, 128) }), "attention_few_128_bf16");
        assert_eq!(entry(sizes(1024, 256, 256)), "attention_few_256_bf16");
        // Three quarters of the columns would be padding; rows of 30 columns begin anywhere; too wide.
        assert_eq!(tile(sizes(4096, 16, 16), &HOPPER), None);
        assert_eq!(tile(sizes(4096, 64, 30), &HOPPER), None);
        assert_eq!(tile(sizes(4096, 320, 320), &HOPPER), None);
        // Another GPU, f32.
        assert_eq!(tile(sizes(4096, 64, 64), &CudaTarget { compute: (10, 0), ..HOPPER }), None);
        assert!(HopperTile::of(&sizes(4096, 64, 64), DType::F32, &HOPPER).is_none());
        for columns in [40, 64, 72, 80, 128, 160, 256] {
            for queries in [64, 4096] {
                let tile = HopperTile::of(&sizes(queries, columns, columns), DType::F16, &HOPPER).unwrap();
                // Blocks of two warpgroups share a multiprocessor where there are more blocks than those.
                let blocks = if columns <= 80 && tile.groups == 2 && tile.grid > 132 { 2 } else { 1 };
                assert!(blocks * (tile.shared_bytes + HopperTile::RESERVED) <= HopperTile::SHARED, "{}", tile.entry);
            }
        }
    }

    /// Queries of a block, and places for tiles, of narrow heads.
    #[test]
    fn narrow_heads_keep_multiprocessors_busy() {
        let sizes = |batch, queries, keys| Sizes { batch, queries, keys, heads: 8, d: 40, dv: 40 };
        let tile = |s: Sizes| HopperTile::of(&s, DType::Bf16, &HOPPER).map(|t| (t.groups, t.last)).unwrap();
        assert_eq!(tile(sizes(4, 4096, 4096)), (4, 4));
        // Few keys: blocks share multiprocessors. Few queries; fewer; half a block's.
        assert_eq!(tile(sizes(4, 4096, 77)), (2, 2));
        assert_eq!(tile(sizes(8, 256, 256)), (2, 4));
        assert_eq!(tile(sizes(1, 256, 256)), (1, 4));
        assert_eq!(tile(sizes(100, 128, 256)), (2, 2));
    }

    #[test]
    fn gradients_fit_into_shared_memory() {
        for columns in [40, 64, 80, 128] {
            for by_query in [false, true] {
                let s = Sizes { batch: 2, queries: 256, keys: 256, heads: 8, d: columns, dv: columns };
                let sums = HopperSums::of(&s, by_query, DType::F16, &HOPPER).unwrap();
                assert!(sums.shared_bytes <= HOPPER.shared_bytes as usize);
            }
        }
        for columns in [40, 64, 128] {
            assert!(HopperOnce { columns }.shared_bytes() <= HOPPER.shared_bytes as usize);
        }
    }
}
