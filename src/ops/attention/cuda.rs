//! Attention by the kernels for every GPU, `kernels/attention.cu`, `attention_grad.cu` and `attention_grad_half.cu`, and where those of Hopper are
//! quicker, by them.

use super::hopper::{HopperOnce, HopperSums, HopperTile};
use super::{Attention, AttentionGrad, Sizes};
use crate::graph::{Arg, CudaTarget, Launch, Op, Ptx, ptx};
use crate::tensor::DType;

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

impl Attention {
    /// On the cuda device: a block for some queries of a head, which goes over the keys. Where there are too few blocks the keys are cut
    /// into parts, and a second launch puts together what those left in scratch.
    pub(super) fn launches(&self, s: &Sizes, dtype: DType, target: &CudaTarget) -> Vec<Launch> {
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

impl AttentionGrad {
    /// On the cuda device in f32: rowsum(dy ∘ y) into scratch, then dk and dv by blocks of keys, then dq by blocks of queries. Where there are too
    /// few blocks what they go over is cut into parts, whose sums one more launch adds.
    pub(super) fn ptx_launches(&self, s: &Sizes, target: &CudaTarget) -> Vec<Launch> {
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
    pub(super) fn half_launches(&self, s: &Sizes, dtype: DType, target: &CudaTarget) -> Vec<Launch> {
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
