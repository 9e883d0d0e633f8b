//! How matrix products are cut into the tiles of `shaders/lib/product.wgsl`, and into those of `kernels/lib/gemm.cuh`.

use super::Epilogue;
use super::hopper::{End, Hopper, one_sample};
use crate::cpu::gemm::Window;
use crate::graph::{Arg, CudaTarget, Launch, Ptx, PtxFile, Shader, WgpuTarget, ptx, wgsl};
use crate::tensor::{DType, PANEL};
use std::ops::RangeInclusive;

/// Workgroups that keep a large GPU busy.
pub(super) const BUSY: usize = 128;

/// Invocations of a workgroup of the `direct` entry points, which make a product without tiles.
pub(super) const DIRECT_LANES: usize = 64;

/// A workgroup's invocations along rows and columns, and how many workgroups there are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tiling {
    lanes: [usize; 2],
    pub count: usize,
}

impl Tiling {
    /// For `batch` products of `rows` by `columns`. Large tiles read less; small ones keep more of a GPU busy.
    pub fn new(batch: usize, rows: usize, columns: usize) -> Tiling {
        let of = |lanes: [usize; 2]| {
            let count = batch * rows.div_ceil(8 * lanes[0]) * columns.div_ceil(4 * lanes[1]);
            Tiling { lanes, count }
        };
        let large = of([16, 16]);
        if large.count < BUSY { of([8, 8]) } else { large }
    }

    /// For products of `rows` in all by `columns`, in groups of rows whose sizes only the device knows: as many tiles as the
    /// worst case has.
    pub fn grouped(groups: usize, rows: usize, columns: usize) -> Tiling {
        let mean = rows.div_ceil(groups.max(1));
        let lanes = if mean <= 32 { [4, 16] } else { Tiling::new(groups, mean, columns).lanes };
        // Every group may end within a tile.
        let count = (rows / (8 * lanes[0]) + groups) * columns.div_ceil(4 * lanes[1]);
        Tiling { lanes, count }
    }

    /// Sets the overrides of the library.
    pub fn shader(&self, shader: Shader) -> Shader {
        shader.constant("ROW_LANES", self.lanes[0] as u32).constant("COL_LANES", self.lanes[1] as u32)
    }
}

/// The tiles of `shaders/lib/blocks.wgsl` and `shaders/lib/matrix_blocks.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum ShaderTile {
    Small,
    Large,
    Matrices,
}

impl ShaderTile {
    /// Rows and columns.
    fn size(self) -> usize {
        if self == ShaderTile::Small { 64 } else { 128 }
    }

    /// Terms of a step.
    fn depth(self) -> usize {
        if self == ShaderTile::Matrices { 32 } else { 16 }
    }

    /// Products a cycle that a multiprocessor is taken to make of its 128, or of tensor cores. Small tiles read twice as much for each.
    fn rate(self) -> usize {
        match self {
            ShaderTile::Small => 72,
            ShaderTile::Large => 100,
            ShaderTile::Matrices => 700,
        }
    }
}

/// How products are cut into tiles of shaders for hardware, and their terms into parts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ShaderBlocks {
    tile: ShaderTile,
    /// Workgroups, those of all parts.
    pub count: usize,
    /// Terms of a part, a multiple of a step.
    pub part: usize,
    pub parts: usize,
}

impl ShaderBlocks {
    /// For `batch` products of `m` by `k` and `k` by `n`, in so many parts: those that take the least time by [`ShaderBlocks::cycles`].
    /// A processor that plays GPU has the smallest tiles and the fewest parts.
    pub fn new(batch: usize, sizes: [usize; 3], parts: RangeInclusive<usize>, target: &WgpuTarget) -> ShaderBlocks {
        let few = ShaderBlocks::of(ShaderTile::Small, batch, sizes, *parts.start());
        if target.software {
            return few;
        }
        let tiles = [ShaderTile::Large, ShaderTile::Small];
        let all = parts.flat_map(|parts| tiles.map(|tile| ShaderBlocks::of(tile, batch, sizes, parts)));
        all.min_by_key(|blocks| blocks.cycles(batch * sizes[0] * sizes[1])).unwrap_or(few)
    }

    /// The same by cooperative matrices, if the adapter has those that `shaders/lib/matrix_blocks.wgsl` asks for.
    pub fn by_matrices(
        sizes: [usize; 3],
        parts: RangeInclusive<usize>,
        dtype: DType,
        target: &WgpuTarget,
    ) -> Option<ShaderBlocks> {
        let fits = target.matrices.subgroup == 32 && target.workgroup_size >= 256;
        let has = target.matrices(dtype) == Some(16) && target.workgroup_bytes >= MATRIX_BYTES;
        let all = parts.map(|parts| ShaderBlocks::of(ShaderTile::Matrices, 1, sizes, parts));
        all.min_by_key(|blocks| blocks.cycles(sizes[0] * sizes[1])).filter(|_| fits && has)
    }

    fn of(tile: ShaderTile, batch: usize, [m, n, k]: [usize; 3], parts: usize) -> ShaderBlocks {
        let part = k.div_ceil(parts.max(1)).next_multiple_of(tile.depth()).max(tile.depth());
        let parts = k.div_ceil(part).max(1);
        ShaderBlocks { tile, count: batch * m.div_ceil(tile.size()) * n.div_ceil(tile.size()) * parts, part, parts }
    }

    /// Cycles on a GPU of [`BUSY`] multiprocessors for an output of so many `elements`. A workgroup alone waits for memory at every step.
    fn cycles(&self, elements: usize) -> usize {
        let rounds = self.count.div_ceil(BUSY);
        let work = rounds * self.tile.size().pow(2) * self.part / self.tile.rate();
        let wait = 1000 + self.part / self.tile.depth() * 700;
        let sums = if self.parts == 1 { 0 } else { 4000 + self.parts * elements * 8 / (20 * BUSY) };
        work.max(wait) + sums
    }

    /// Sets the overrides of the library and its entry point.
    pub fn shader(&self, shader: Shader) -> Shader {
        let (wide, lanes) = match self.tile {
            ShaderTile::Matrices => return shader.entry("matrices"),
            ShaderTile::Large => (true, 256u32),
            ShaderTile::Small => (false, 128),
        };
        let quads = (self.tile.size() / 4) as u32;
        let shader = shader.entry("blocked").constant("ROW_QUADS", quads).constant("COL_QUADS", quads);
        shader.flag("WIDE", wide).constant("BLOCK_LANES", lanes)
    }
}

/// Workgroup memory of `shaders/lib/matrix_blocks.wgsl`.
const MATRIX_BYTES: u32 = 40960;

/// Terms that a part has at least where shaders cut them to occupy a GPU.
const SHADER_PART: usize = 64;

/// How many parts a product of `m` by `k` and `k` by `n` may be cut into on an adapter.
pub(super) fn shader_parts([m, n, k]: [usize; 3], target: &WgpuTarget) -> RangeInclusive<usize> {
    let bytes = PART_BYTES.min(target.argument_bytes as usize);
    1..=(bytes / (4 * m * n.next_multiple_of(4)).max(1)).min(k / SHADER_PART).clamp(1, 64)
}

/// The launches of a shader of `lib/parts` that is an op with an epilogue: the product, and where it comes in parts their sum.
/// `product` adds the scalars of the product to its launch, whose number of workgroups `blocks` has.
pub(super) fn in_parts(
    shader: Shader,
    target: &WgpuTarget,
    epilogue: &Epilogue,
    [m, n, per_sample, wide]: [usize; 4],
    blocks: &ShaderBlocks,
    dtype: DType,
    product: impl FnOnce(Launch) -> Launch,
) -> Vec<Launch> {
    let (name, [x, w, bias, sample, residual, y]) = (shader.name, epilogue.arguments());
    let shader = shader.flag("PARTS", blocks.parts > 1);
    let launch = |args: [Arg; 6]| Launch::wgsl(shader.clone(), target.grid(blocks.count), args);
    if blocks.parts == 1 {
        // No parts: x stands for them.
        let mut one = launch([x, w, bias, sample, residual, y]);
        one.args.push(x);
        return vec![product(one)];
    }
    let line = n.div_ceil(4);
    let text = match epilogue.by_fours(n, wide) {
        true => wgsl!(dtype; "lib/activation", "lib/y_fours", "product_sums"),
        false => wgsl!(dtype; "lib/activation", "lib/epilogue", "lib/y_ones", "product_sums"),
    };
    let sums = epilogue.shader(Shader::new(name, text), wide);
    let sums = Launch::wgsl(
        sums,
        target.grid((m * line).div_ceil(SUM_LANES)),
        [Arg::Left(0, 0), x, bias, sample, residual, y],
    );
    vec![
        product(launch([x, w, x, x, x, x])).with_scratch(blocks.parts * m * 4 * line),
        sums.scalars([m, n, per_sample, blocks.parts]).scalar(epilogue.scale),
    ]
}

/// Invocations of a workgroup of `shaders/product_sums.wgsl`.
const SUM_LANES: usize = 256;

/// Rows and columns of a tile of `shaders/lib/matrix_product.wgsl`.
const MATRIX_TILE: usize = 64;

/// The launch of a shader for `batch` products of `rows` by `columns` by cooperative matrices.
pub(super) fn by_matrices(
    shader: Shader,
    target: &WgpuTarget,
    [batch, rows, columns]: [usize; 3],
    args: impl IntoIterator<Item = Arg>,
) -> Launch {
    let shader = shader.entry("cooperative").constant("MATRIX_LANES", 4 * target.matrices.subgroup);
    let tiles = batch * rows.div_ceil(MATRIX_TILE) * columns.div_ceil(MATRIX_TILE);
    Launch::wgsl(shader, target.grid(tiles), args)
}

/// Terms that a part of k has at least, if k is cut only to occupy a GPU: the fewer, the more is written and read again.
const PART_TERMS: usize = 256;
/// The same of tiles of 128 in 16 bits, which take a quarter of the time.
const LONG_PART_TERMS: usize = 1024;
/// Terms that are summed up in a row at most: longer sums lose digits.
const MOST_TERMS: usize = 8192;
/// Most bytes of all parts of a product.
const PART_BYTES: usize = 1 << 26;

/// How a product of `m` by `k` and `k` by `n` is cut on a GPU: tiles of `size` rows and columns, a block each, and parts of k.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Blocks {
    pub size: usize,
    pub tiles: usize,
    /// Terms of a part, a multiple of what a tile takes at a time.
    pub part: usize,
    pub parts: usize,
}

/// Cycles for the first operands and the last sums of a tile of 128 rows and columns, or of 256 by twice the threads.
pub(super) const END_CYCLES: usize = 3000;

/// Cycles in which parts of `elements` sums are written and read, 20 bytes a cycle and multiprocessor.
pub(super) fn parts_cycles(parts: usize, elements: usize, target: &CudaTarget) -> usize {
    if parts == 1 { 0 } else { parts * elements * 8 / (20 * target.multiprocessors as usize) }
}

/// Into how many parts k is cut, if `wanted` of them occupy a GPU.
pub(super) fn parts_of(wanted: usize, [m, n, k]: [usize; 3]) -> usize {
    let most = PART_BYTES / (4 * m * n).max(1);
    wanted.min(k / PART_TERMS).max(k.div_ceil(MOST_TERMS)).min(most).max(1)
}

impl Blocks {
    /// For `batch` products of that size, in tiles of `largest` at most.
    ///
    /// Tiles of 128 read the least for a FLOP, and two of them run on a multiprocessor at a time. Where there is not one for
    /// each, tiles of 64 spread the work four times as wide. Where those are fewer than two a multiprocessor, as for a few rows or
    /// the weights of a layer, k is cut until there are four: their sums cost a second launch and the parts' bytes, so that a
    /// part has [`PART_TERMS`] at least.
    pub fn new(batch: usize, [m, n, k]: [usize; 3], largest: usize, target: &CudaTarget) -> Blocks {
        let of = |size: usize| batch * m.div_ceil(size) * n.div_ceil(size);
        let wave = target.multiprocessors as usize;
        let size = if largest >= 128 && of(128) >= wave { 128 } else { 64 };
        let tiles = of(size);
        let wanted = if tiles < 2 * wave { (4 * wave).div_ceil(tiles.max(1)) } else { 1 };
        Blocks::cut(size, tiles, wanted, [batch * m, n, k])
    }

    /// The same for products in 16 bits whose k is long, weight gradients above all: tiles of 128 also where there are not enough,
    /// if parts of k make up for that, since tiles of 64 wait for shared memory more than for the tensor cores. A multiprocessor
    /// has two of them at a time, and parts are as many as fill two such rounds, or as many more as it takes.
    pub fn of_halves(batch: usize, sizes: [usize; 3], target: &CudaTarget) -> Blocks {
        let [m, n, k] = sizes;
        let (tiles, wave) = (batch * m.div_ceil(128) * n.div_ceil(128), target.multiprocessors as usize);
        if tiles >= 2 * wave || tiles * (k / LONG_PART_TERMS).max(1) < wave {
            return Blocks::new(batch, sizes, 128, target);
        }
        let rounds = (tiles * k.div_ceil(MOST_TERMS)).div_ceil(2 * wave).max(2);
        let wanted = (rounds * 2 * wave / tiles.max(1)).min(k / LONG_PART_TERMS);
        Blocks::cut(128, tiles, wanted, [batch * m, n, k])
    }

    /// Tiles with k in [so many parts](parts_of).
    fn cut(size: usize, tiles: usize, wanted: usize, sizes: [usize; 3]) -> Blocks {
        let (k, parts) = (sizes[2], parts_of(wanted, sizes));
        let part = k.div_ceil(parts).next_multiple_of(64).max(64);
        Blocks { size, tiles, part, parts: k.div_ceil(part).max(1) }
    }

    /// Cycles in f16 or bf16 of the multiprocessor of Hopper that has the most to do, by arithmetic: `mma.sync` has the tensor cores do some 60 %
    /// of 4096 FLOPs a cycle. The output has so many `elements`.
    pub fn half_cycles(&self, elements: usize, target: &CudaTarget) -> usize {
        let (rounds, tile) =
            ((self.tiles * self.parts).div_ceil(target.multiprocessors as usize), self.size * self.size);
        rounds * self.part * 2 * tile / 2450
            + END_CYCLES * tile / (128 * 128)
            + parts_cycles(self.parts, elements, target)
    }

    /// For a product of `rows` in all, in groups of rows whose sizes only the device knows: as many tiles as the worst case has, in which
    /// every group ends within one.
    pub fn grouped(groups: usize, rows: usize, n: usize, target: &CudaTarget) -> Blocks {
        let of = |size: usize| (rows / size + groups) * n.div_ceil(size);
        let large = rows / groups.max(1) >= 128 && of(128) >= target.multiprocessors as usize;
        let size = if large { 128 } else { 64 };
        Blocks { size, tiles: of(size), part: usize::MAX, parts: 1 }
    }

    /// A launch of the entry for these tiles.
    pub fn launch(&self, name: &'static str, file: PtxFile, entry: &str, dtype: DType, args: &[Arg]) -> Launch {
        let Blocks { size, tiles, parts, .. } = *self;
        let kernel = Ptx::new(name, file, dtype).entry(format!("{entry}_{size}_{dtype}"));
        // A thread has 64 sums in f32. In half of that, four warps share a tile, and three stages of 64 terms of both operands are its
        // shared memory.
        let (threads, shared) = if dtype == DType::F32 { (size * size / 64, 0) } else { (128, 3 * 2 * size * 64 * 2) };
        Launch::ptx(kernel.shared(shared), [tiles, parts, 1], threads, args.iter().copied())
    }
}

/// A product with an epilogue on a GPU, `m` by `k` and `k` by `n`: a linear layer or a convolution.
pub(super) struct Product<'a> {
    /// The op's name.
    pub name: &'static str,
    /// Its entries are named as it is, with the size of their tiles and the type of their numbers.
    pub file: PtxFile,
    pub dtype: DType,
    pub sizes: [usize; 3],
    /// Rows are pixels under this window, in so many images; those of a matrix are images of one pixel.
    pub window: &'a Window,
    pub images: usize,
    pub rows_per_sample: usize,
    pub epilogue: &'a Epilogue,
    /// Numbers between the rows of samples in their operand.
    pub sample_stride: usize,
    /// What stands before the other scalars.
    pub scalars: &'a [usize],
}

impl Product<'_> {
    /// One launch; or two, where the first sums parts of k and is not for Hopper.
    pub fn launches(&self, target: &CudaTarget) -> Vec<Launch> {
        let [m, n, _] = self.sizes;
        if m * n == 0 {
            return vec![];
        }
        // Rows of a matrix, not patches of an image.
        if m <= FEW_ROWS && self.scalars.is_empty() {
            return vec![self.few_rows()];
        }
        let blocks = Blocks::new(1, self.sizes, 128, target);
        let half = self.dtype != DType::F32;
        let samples = !self.epilogue.by_sample() || one_sample(self.window, self.images, self.rows_per_sample);
        let whole = self.epilogue.is_whole(n, self.sample_stride) && samples;
        let half = half && self.epilogue.by_fours(n, self.sample_stride);
        let end = if whole { End::Whole } else { End::Any };
        let hopper = half.then(|| Hopper::new(self.window, self.images, n, end, &blocks, target)).flatten();
        self.by(self.file, blocks, hopper)
    }

    /// The launches by these tiles, of the entries in that file; or by Hopper's.
    pub fn by(&self, file: PtxFile, blocks: Blocks, hopper: Option<Hopper>) -> Vec<Launch> {
        let [m, n, k] = self.sizes;
        let [x, w, bias, sample, residual, y] = self.epilogue.arguments();
        let scalars = |launch: Launch, [k, part]: [usize; 2]| {
            self.epilogue.scalars(launch.scalars([m, n, k, self.rows_per_sample, part]), self.sample_stride)
        };
        if let Some(hopper) = hopper {
            let launch = hopper.launch(self.name, self.dtype, &[x, w, bias, sample, residual, y]);
            return vec![scalars(launch, hopper.steps())];
        }
        let sums = |args: &[Arg]| {
            let launch = blocks.launch(self.name, file, file.name, self.dtype, args);
            scalars(launch.scalars(self.scalars.iter().copied()), [k, blocks.part])
        };
        if blocks.parts == 1 {
            return vec![sums(&[x, w, bias, sample, residual, y, x])];
        }
        let finish = sum_parts(self.name, self.dtype, [bias, sample, residual], m * n.div_ceil(4));
        vec![
            sums(&[x, w, x, x, x, x]).with_scratch(blocks.parts * m * n),
            self.epilogue.scalars(finish.scalars([m, n, self.rows_per_sample, blocks.parts]), self.sample_stride),
        ]
    }
}

/// Rows that a linear layer has at most if its weight is read but once or twice: the bytes of weights take longer than the FLOPs.
pub(super) const FEW_ROWS: usize = 16;

impl Product<'_> {
    /// A panel of the weight and 8 rows a block.
    fn few_rows(&self) -> Launch {
        let [m, n, k] = self.sizes;
        let kernel = Ptx::new(self.name, self.file, self.dtype).entry(format!("{}_few_{}", self.file.name, self.dtype));
        let launch = Launch::ptx(kernel, [n.div_ceil(PANEL), m.div_ceil(8), 1], 512, self.epilogue.arguments());
        self.epilogue.scalars(launch.scalars([m, n, k, self.rows_per_sample]), self.sample_stride)
    }
}

/// A product without epilogue on a GPU: `batch` times `m` by `k` and `k` by `n`.
pub(super) struct PlainProduct<'a> {
    pub name: &'static str,
    pub file: PtxFile,
    /// The entries' name without the size of their tiles and the type of their numbers.
    pub entry: &'a str,
    /// The type of the operands' numbers.
    pub dtype: DType,
    /// The type of the output's.
    pub out: DType,
    /// The largest tiles that there are entries for.
    pub largest: usize,
    pub batch: usize,
    pub sizes: [usize; 3],
    /// Numbers of the output as they are stored, and the width of its rows.
    pub stored: [usize; 2],
    /// What stands before the sizes.
    pub scalars: &'a [usize],
}

impl PlainProduct<'_> {
    /// One launch; or two, where the first sums parts of k.
    pub fn launches(&self, target: &CudaTarget) -> Vec<Launch> {
        if self.stored[0] == 0 {
            return vec![];
        }
        let blocks = self.blocks(target);
        let sums = |args: &[Arg]| {
            let launch = blocks.launch(self.name, self.file, self.entry, self.dtype, args);
            launch.scalars(self.scalars.iter().copied()).scalars(self.sizes).scalar(blocks.part)
        };
        let [x, w, y] = [Arg::Input(0), Arg::Input(1), Arg::Output(0)];
        if blocks.parts == 1 {
            return vec![sums(&[x, w, y, x])];
        }
        vec![sums(&[x, w, x]).with_scratch(blocks.parts * self.stored[0]), self.sum_parts(blocks.parts)]
    }

    /// The tiles of the kernels that every GPU has.
    pub fn blocks(&self, target: &CudaTarget) -> Blocks {
        match (self.dtype, self.largest) {
            (DType::F16 | DType::Bf16, 128) => Blocks::of_halves(self.batch, self.sizes, target),
            _ => Blocks::new(self.batch, self.sizes, self.largest, target),
        }
    }

    /// The launch that adds up parts of the output as it is stored, which the first one left.
    pub fn sum_parts(&self, parts: usize) -> Launch {
        let [elements, n] = self.stored;
        let launch = sum_parts(self.name, self.out, [Arg::Left(0, 0); 3], elements.div_ceil(n) * n.div_ceil(4));
        Epilogue::default().scalars(launch.scalars([elements / n, n, 1, parts]), n)
    }
}

/// The launch that adds up the parts that the first one left, over so many groups of four columns.
fn sum_parts(name: &'static str, dtype: DType, operands: [Arg; 3], quads: usize) -> Launch {
    let kernel = Ptx::new(name, ptx!("sum_parts"), dtype).entry(format!("sum_parts_{dtype}"));
    let [bias, sample, residual] = operands;
    let args = [Arg::Left(0, 0), bias, sample, residual, Arg::Output(0)];
    Launch::ptx(kernel, [quads.div_ceil(256), 1, 1], 256, args)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Matrices;

    #[test]
    fn blocks_cover_the_product_and_occupy_a_gpu() {
        let target = CudaTarget { multiprocessors: 132, ..Default::default() };
        for (batch, sizes) in
            [(1, [8192, 320, 2880]), (1, [64, 1280, 11520]), (2, [77, 77, 40]), (1, [2880, 320, 100_000])]
        {
            let [m, n, k] = sizes;
            let blocks = Blocks::new(batch, sizes, 128, &target);
            assert_eq!(blocks.tiles, batch * m.div_ceil(blocks.size) * n.div_ceil(blocks.size));
            assert!(blocks.part * blocks.parts >= k && blocks.part * (blocks.parts - 1) < k);
            assert!(blocks.part <= MOST_TERMS + 64);
            assert!(blocks.tiles * blocks.parts >= 132 || k < 2 * PART_TERMS, "{blocks:?} of {sizes:?}");
        }
        for sizes in [[2880, 320, 65536], [64, 64, 100_000], [320, 320, 4096], [128, 27, 512]] {
            let [m, n, k] = sizes;
            let blocks = Blocks::of_halves(1, sizes, &target);
            assert_eq!(blocks.tiles, m.div_ceil(blocks.size) * n.div_ceil(blocks.size));
            assert!(blocks.part * blocks.parts >= k && blocks.part * (blocks.parts - 1) < k);
            assert!(blocks.part <= MOST_TERMS + 64);
        }
        // Whole rounds of two tiles a multiprocessor.
        let weights = Blocks::of_halves(1, [2880, 320, 65536], &target);
        assert_eq!((weights.size, weights.tiles * weights.parts), (128, 69 * 11));
        // No smaller than need be, and not cut where tiles are enough.
        let large = Blocks::new(1, [8192, 1280, 1280], 128, &target);
        assert_eq!((large.size, large.parts), (128, 1));
    }

    #[test]
    fn tiles_cover_the_product() {
        for (batch, rows, columns) in [(1, 1, 1), (3, 65, 33), (1, 4096, 640), (7, 128, 64)] {
            let tiles = Tiling::new(batch, rows, columns);
            let [row_lanes, col_lanes] = tiles.lanes;
            assert!(tiles.count * 8 * row_lanes * 4 * col_lanes >= batch * rows * columns);
            assert!(row_lanes * col_lanes <= 256);
        }
    }

    #[test]
    fn shader_blocks_cover_the_product_and_occupy_a_gpu() {
        let matrices = Matrices { f32: 0, f16: 16, subgroup: 32 };
        let target = WgpuTarget { matrices, workgroup_bytes: 48 << 10, ..Default::default() };
        for sizes in
            [[4096, 4096, 4096], [64, 1280, 11520], [16, 512, 4608], [77, 77, 40], [2304, 256, 65536], [5, 3, 0]]
        {
            let [m, n, k] = sizes;
            let parts = shader_parts(sizes, &target);
            let by_matrices = ShaderBlocks::by_matrices(sizes, parts.clone(), DType::F16, &target);
            for blocks in [ShaderBlocks::new(1, sizes, parts, &target), by_matrices.expect("the target has matrices")] {
                let size = blocks.tile.size();
                assert_eq!(blocks.count, m.div_ceil(size) * n.div_ceil(size) * blocks.parts);
                assert!(blocks.part * blocks.parts >= k && blocks.part * (blocks.parts - 1) <= k);
                assert!(blocks.part.is_multiple_of(blocks.tile.depth()));
                assert!(blocks.count >= BUSY / 2 || k < 1000, "{blocks:?} of {sizes:?}");
            }
        }
        let large = ShaderBlocks::new(1, [4096; 3], 1..=64, &target);
        assert_eq!((large.tile, large.parts), (ShaderTile::Large, 1));
        let software = WgpuTarget { software: true, ..target };
        let small = ShaderBlocks::new(1, [4096; 3], 1..=64, &software);
        assert_eq!((small.tile, small.parts), (ShaderTile::Small, 1));
        assert_eq!(ShaderBlocks::by_matrices([4096; 3], 1..=64, DType::F16, &software), None);
    }

    #[test]
    fn matrices_of_the_stored_type_on_hardware_only() {
        let matrices = Matrices { f32: 0, f16: 16, subgroup: 32 };
        let target = WgpuTarget { matrices, ..Default::default() };
        assert_eq!((target.matrices(DType::F16), target.matrices(DType::F32)), (Some(16), None));
        assert_eq!(WgpuTarget { software: true, ..target }.matrices(DType::F16), None);
        // Four subgroups of 128 are more than a workgroup may have.
        let wide = Matrices { subgroup: 128, ..matrices };
        assert_eq!(WgpuTarget { matrices: wide, ..target }.matrices(DType::F16), None);
        let launch = by_matrices(Shader::new("linear", ""), &target, [2, 65, 64], []);
        assert_eq!(launch.grid, [4, 1, 1]);
    }
}
