//! What the normalisations share: rows in chunks, parameters by channel, and the gradients of those parameters.

use super::expect_typed;
use super::lines::divisor;
use super::reduce::sum_few;
use crate::Result;
use crate::graph::{Arg, Args, CudaTarget, FLAT_THREADS, Launch, Ptx, PtxFile, Shader, WgpuTarget, ptx, wgsl};
use crate::tensor::{DType, TensorType};
use std::cmp::Reverse;

/// Elements of a chunk: 128 KiB, a part of L2, and enough to outweigh what is done once a chunk.
const CHUNK: usize = 1 << 15;

/// A tensor seen as `[samples, rows, channels]`, the rows of each sample cut into chunks of about one size. The cut depends
/// on the shape alone, so that sums over it are the same on every number of threads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunks {
    pub samples: usize,
    pub rows: usize,
    pub channels: usize,
    /// Chunks a sample.
    pub count: usize,
    size: usize,
}

impl Chunks {
    pub fn new(samples: usize, rows: usize, channels: usize) -> Self {
        let most = (CHUNK / channels.max(1)).clamp(8, 512);
        let count = rows.div_ceil(most);
        Chunks { samples, rows, channels, count, size: rows.div_ceil(count.max(1)) }
    }

    /// First row and number of rows of chunk `i` within its sample.
    pub fn rows_of(&self, i: usize) -> (usize, usize) {
        let start = (i * self.size).min(self.rows);
        (start, self.size.min(self.rows - start))
    }

    /// First element and number of elements of chunk `i` of sample `b`.
    pub fn elements_of(&self, b: usize, i: usize) -> (usize, usize) {
        let (start, rows) = self.rows_of(i);
        ((b * self.rows + start) * self.channels, rows * self.channels)
    }

    /// Elements in all.
    pub fn elements(&self) -> usize {
        self.samples * self.rows * self.channels
    }
}

/// What follows a normalisation: n ↦ (n·gamma + beta)·(1 + scale) + shift, each pair there or not.
#[derive(Clone, Copy)]
pub(crate) struct Parameters<'a> {
    /// gamma, beta: `[C]`
    pub affine: Option<(&'a [f32], &'a [f32])>,
    /// scale, shift: of each sample `[C]`
    pub modulate: Option<(&'a [f32], &'a [f32])>,
    channels: usize,
    /// Numbers from a sample's scale or shift to the next one's.
    stride: usize,
}

impl<'a> Parameters<'a> {
    /// The parameters of a running kernel, from argument 1.
    pub fn of(args: &'a Args, channels: usize, affine: bool, modulate: bool) -> Self {
        let pair = |at| (args.slice::<f32>(at), args.slice::<f32>(at + 1));
        let first = if affine { 3 } else { 1 };
        let (affine, modulate) = (affine.then(|| pair(1)), modulate.then(|| pair(first)));
        Parameters { affine, modulate, channels, stride: channels }
    }

    /// The same with scale and shift that begin at those columns of rows `stride` numbers apart.
    pub fn of_columns(self, stride: usize, first: [usize; 2]) -> Self {
        let modulate = self.modulate.map(|(scale, shift)| (&scale[first[0]..], &shift[first[1]..]));
        Parameters { modulate, stride, ..self }
    }

    /// gamma, beta, 1 + scale, shift of channel `c` of sample `b`.
    fn at(&self, b: usize, c: usize) -> [f32; 4] {
        let (gamma, beta) = self.affine.map_or((1.0, 0.0), |(gamma, beta)| (gamma[c], beta[c]));
        let at = b * self.stride + c;
        let (scale, shift) = self.modulate.map_or((1.0, 0.0), |(scale, shift)| (1.0 + scale[at], shift[at]));
        [gamma, beta, scale, shift]
    }

    /// n ↦ n·factor + offset for channel `c` of sample `b`.
    pub fn linear(&self, b: usize, c: usize) -> (f32, f32) {
        let [gamma, beta, scale, shift] = self.at(b, c);
        (gamma * scale, beta * scale + shift)
    }

    /// Writes factors and offsets of sample `b`.
    pub fn fill(&self, b: usize, factor: &mut [f32], offset: &mut [f32]) {
        for (c, (factor, offset)) in factor.iter_mut().zip(offset).enumerate() {
            (*factor, *offset) = self.linear(b, c);
        }
    }

    /// Gradients from `sums` `[samples, 2, C]`, the sums over each sample's rows of dy and of dy·n, written to the arguments
    /// from `at`: dgamma, dbeta, dscale, dshift, those that are there.
    pub fn gradients(&self, sums: &[f32], args: &Args, at: usize) {
        let c = self.channels;
        if self.affine.is_some() {
            let (dgamma, dbeta) = (args.slice_mut::<f32>(at), args.slice_mut::<f32>(at + 1));
            dgamma.fill(0.0);
            dbeta.fill(0.0);
            for (b, sums) in sums.chunks_exact(2 * c).enumerate() {
                for i in 0..c {
                    let [_, _, scale, _] = self.at(b, i);
                    dbeta[i] += sums[i] * scale;
                    dgamma[i] += sums[c + i] * scale;
                }
            }
        }
        if self.modulate.is_some() {
            let at = if self.affine.is_some() { at + 2 } else { at };
            let (dscale, dshift) = (args.slice_mut::<f32>(at), args.slice_mut::<f32>(at + 1));
            for (b, sums) in sums.chunks_exact(2 * c).enumerate() {
                for i in 0..c {
                    let [gamma, beta, ..] = self.at(b, i);
                    dshift[b * c + i] = sums[i];
                    dscale[b * c + i] = sums[c + i] * gamma + sums[i] * beta;
                }
            }
        }
    }
}

/// Number of parameters.
pub(crate) fn parameter_count(affine: bool, modulate: bool) -> usize {
    2 * affine as usize + 2 * modulate as usize
}

/// Fails unless the inputs from 1 on are the parameters for x, input 0. Scale and shift may have more columns than x, if it is said at which
/// they begin.
pub(crate) fn expect_parameters(
    op: &str,
    inputs: &[&TensorType],
    affine: bool,
    modulate: bool,
    first: Option<[usize; 2]>,
) -> Result<()> {
    let (samples, channels) = (inputs[0].shape.first().copied().unwrap_or(1), inputs[0].cols());
    // As wide as the first of them, if the columns are there.
    let wide = first.map_or(channels, |first| {
        let scale = inputs.get(1 + 2 * affine as usize).map_or(0, |ty| ty.cols());
        scale.max(first[0].max(first[1]).saturating_add(channels))
    });
    let names = [("gamma", affine), ("beta", affine), ("scale", modulate), ("shift", modulate)];
    let there = names.into_iter().enumerate().filter(|(_, (_, there))| *there);
    for ((i, (what, _)), ty) in there.zip(&inputs[1..]) {
        if i < 2 {
            expect_typed(op, what, ty, inputs[0].dtype, &[channels])?;
        } else {
            expect_typed(op, what, ty, inputs[0].dtype, &[samples, wide])?;
        }
    }
    Ok(())
}

/// The parameters of a normalisation as arguments of a shader: gamma, beta, scale, shift among an op's inputs, those that are
/// absent replaced by `other`, which is not read there.
pub(crate) fn parameter_args(affine: bool, modulate: bool, other: Arg) -> [Arg; 4] {
    parameter_places(affine, modulate).map(|place| place.map_or(other, |i| Arg::Input(1 + i)))
}

/// Number of gamma, beta, scale, shift among the parameters that are there.
fn parameter_places(affine: bool, modulate: bool) -> [Option<usize>; 4] {
    let first = 2 * affine as usize;
    [affine.then_some(0), affine.then_some(1), modulate.then_some(first), modulate.then_some(first + 1)]
}

/// The launch that makes the gradients of the parameters, outputs from 1 on, from `sums` `[samples, 2, C]`, the sums over each
/// sample's rows of e and of e·n, e the gradient of what follows the normalisation.
pub(crate) fn parameters_grad(
    target: &WgpuTarget,
    [samples, channels]: [usize; 2],
    affine: bool,
    modulate: bool,
    sums: Arg,
) -> Launch {
    let shader = Shader::new("norm_parameters_grad", wgsl!("norm_parameters_grad"));
    let shader = shader.flag("AFFINE", affine).flag("MODULATE", modulate);
    let args = gradient_args(affine, modulate, sums);
    Launch::wgsl(shader, target.grid(channels.div_ceil(64)), args).scalars([samples, channels])
}

/// The sums, gamma, beta, scale, and the gradients of gamma, beta, scale, shift; the sums stand for what is absent.
fn gradient_args(affine: bool, modulate: bool, sums: Arg) -> impl Iterator<Item = Arg> {
    let [gamma, beta, scale, _] = parameter_args(affine, modulate, sums);
    let outputs = parameter_places(affine, modulate).map(|place| place.map_or(sums, |i| Arg::Output(1 + i)));
    [sums, gamma, beta, scale].into_iter().chain(outputs)
}

/// Numbers of a row that a thread of the PTX kernels holds in registers, at most, and in the entry for short
/// parts of a row; `FOR_ROWS` of `kernels/lib/norm.cuh`. A warp holds the rows of most networks.
const HELD: usize = 40;
const FEW_HELD: usize = 16;
const WARP: usize = 32;

/// Threads of the PTX kernels over rows that share one, and the entry that holds it.
fn row_lanes(target: &CudaTarget, [rows, cols]: [usize; 2]) -> (usize, usize) {
    let most = cols.div_ceil(8).next_power_of_two();
    let busy = (target.multiprocessors as usize * FLAT_THREADS / rows.max(1)).next_power_of_two().min(most);
    let lanes = cols.div_ceil(HELD).next_power_of_two().max(busy).clamp(4, FLAT_THREADS);
    (lanes, if cols <= lanes * FEW_HELD { FEW_HELD / 4 } else { HELD / 4 })
}

/// A launch of a PTX kernel over rows, each shared by some threads: as few as hold it, or more where rows are so few that blocks of
/// them would leave multiprocessors idle. Its first scalar is their number.
pub(crate) fn by_row(
    name: &'static str,
    file: PtxFile,
    dtype: DType,
    target: &CudaTarget,
    dims: [usize; 2],
    args: impl IntoIterator<Item = Arg>,
) -> Launch {
    let (lanes, fours) = row_lanes(target, dims);
    let kernel = Ptx::new(name, file, dtype).entry(format!("{name}_{fours}_{dtype}"));
    let blocks = dims[0].div_ceil(FLAT_THREADS / lanes).max(1);
    Launch::ptx(kernel, [blocks, 1, 1], FLAT_THREADS, args).scalar(lanes)
}

/// As [`by_row`], of a kernel whose threads have two rows, which share what is read beside them: where a warp has a row, in whole packs of 16 bits,
/// and there are enough of them for all multiprocessors.
pub(crate) fn by_pair(
    name: &'static str,
    file: PtxFile,
    dtype: DType,
    target: &CudaTarget,
    dims: [usize; 2],
    args: impl IntoIterator<Item = Arg>,
) -> Option<Launch> {
    let ((lanes, fours), [rows, cols]) = (row_lanes(target, dims), dims);
    let held = dtype.size() == 2 && cols.is_multiple_of(8) && cols <= 4 * fours * lanes && lanes <= WARP;
    if !held || rows * lanes < 3 * 1024 * target.multiprocessors as usize {
        return None;
    }
    let kernel = Ptx::new(name, file, dtype).entry(format!("{name}_pair_{fours}_{dtype}"));
    let blocks = rows.div_ceil(2 * FLAT_THREADS / lanes);
    Some(Launch::ptx(kernel, [blocks, 1, 1], FLAT_THREADS, args).scalar(lanes))
}

/// Numbers of a row that a thread of the gradients' kernels holds, and the registers it has for that, by entry; `kernels/lib/row_grad.cuh`.
const GRAD_HELD: [(usize, usize); 2] = [(8, 80), (16, 128)];
/// Registers of a multiprocessor.
const REGISTERS: usize = 1 << 16;

/// A launch of a PTX kernel for the gradient of rows of x `[samples, rows, channels]`, of which each block has a stretch of a sample's; it
/// leaves `values` sums of every channel over the rows of each stretch, if any. With how many stretches a sample has. See
/// `kernels/lib/row_grad.cuh`.
pub(crate) fn by_stretch(
    name: &'static str,
    file: PtxFile,
    dtype: DType,
    target: &CudaTarget,
    [samples, rows, channels]: [usize; 3],
    args: impl IntoIterator<Item = Arg>,
    values: usize,
) -> (Launch, usize) {
    let [few, many] = GRAD_HELD;
    let short = channels.is_multiple_of(16 / dtype.size()) && channels <= few.0 * FLAT_THREADS;
    let (held, registers) = if short { few } else { many };
    // As few lanes as hold a row leave the fewest idle: parts of a warp that are powers of two, or whole warps.
    let lanes = channels.div_ceil(held);
    let lanes = if lanes > WARP { lanes.next_multiple_of(WARP) } else { lanes.next_power_of_two() };
    let lanes = lanes.clamp(4, FLAT_THREADS);
    let teams = FLAT_THREADS / lanes;
    let kernel = Ptx::new(name, file, dtype).entry(format!("{name}_{held}_{dtype}"));
    // Few rounds of blocks, each as short as it may be. What a block does besides is as two rows, and sums of a stretch are written and read by
    // all multiprocessors at once: 8 bytes a value and channel, where a row has 6 or 12.
    let at_once = REGISTERS / (registers * lanes * teams) * target.multiprocessors as usize;
    let each = |count: usize| rows.div_ceil(count).div_ceil(teams);
    let rounds = |count: usize| (samples * count).div_ceil(at_once);
    let time = |count: &usize| rounds(*count) * (each(*count) + 2) * at_once + 2 * values * samples * count;
    let most = rows.div_ceil(teams).min(4 * at_once.div_ceil(samples.max(1)));
    let per = (1..=most).min_by_key(time).map_or(teams, |count| each(count) * teams);
    let count = rows.div_ceil(per).max(1);
    let launch = Launch::ptx(kernel, [(samples * count).max(1), 1, 1], lanes * teams, args);
    // What is not written needs a place all the same.
    let launch = if values > 0 {
        launch.with_scratch(samples * count * values * channels)
    } else {
        Launch { args: [&launch.args[..], &[Arg::Input(0)]].concat(), ..launch }
    };
    (launch.scalars([lanes, rows, channels, count, per]), count)
}

/// Threads beside each other that read a stretch long enough for memory: 256 bytes.
const WIDE_ENOUGH: usize = 16;

/// Threads of a block of the kernels of clusters, at most, blocks that run at once on a multiprocessor, and blocks of a cluster;
/// `kernels/sm_90a/group_norm.cu`.
const CLUSTER_THREADS: usize = 256;
const CLUSTER_BLOCKS: usize = 3;
const CLUSTERS: [usize; 2] = [4, 8];
/// Rows that take a thread of a norm of whole groups as long as what it does besides: fewer make no block faster.
pub(crate) const LEAST: usize = 4;
/// See [`Tiles::time`].
const WAIT: usize = 12 << 10;

/// How blocks of the PTX kernels lie over x `[samples, rows, channels]`; `Tile` of `kernels/lib/norm.cuh`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tiles {
    samples: usize,
    rows: usize,
    channels: usize,
    /// Channels of a thread.
    pub pack: usize,
    /// Threads of a block, those beside each other, and lines of them.
    threads: usize,
    across: usize,
    down: usize,
    /// Channels of a tile, and tiles beside each other.
    cols: usize,
    tiles: usize,
    /// Stretches of a sample, and rows of a stretch.
    pub count: usize,
    pub per: usize,
}

impl Tiles {
    /// Tiles of whole groups of `width` channels; `pack` channels a thread where channels are a multiple of that, and at least `least`
    /// rows where more blocks could share them, of which there are up to `wanted`: no more than run at once.
    pub fn new([samples, rows, channels]: [usize; 3], width: usize, pack: usize, least: usize, wanted: usize) -> Self {
        let fits =
            channels.is_multiple_of(pack) && (width.is_multiple_of(pack) || common(width, pack) <= FLAT_THREADS * pack);
        let pack = if fits { pack } else { 1 };
        // Tiles begin where a group and a pack do.
        let unit = common(width, pack);
        let units = channels / unit;
        let across = |k: &usize| (k * unit / pack).min(FLAT_THREADS);
        // Long enough stretches first, then threads that have work.
        let score = |k: &usize| {
            let across = across(k);
            let busy = across * (FLAT_THREADS / across).min(rows.max(1));
            (across.min(WIDE_ENOUGH), busy * FLAT_THREADS * units / (units.div_ceil(*k) * k), FLAT_THREADS - across)
        };
        let most = (FLAT_THREADS * pack / unit).clamp(1, units);
        let k = (1..=most).max_by_key(score).unwrap_or(1);
        let (across, cols, tiles) = (across(&k), k * unit, units.div_ceil(k));
        let down = FLAT_THREADS / across;
        let count = (wanted / (samples * tiles).max(1)).min(rows.div_ceil(down * least)).max(1);
        let per = rows.div_ceil(count).next_multiple_of(down).max(1);
        let (threads, count) = (FLAT_THREADS, rows.div_ceil(per).max(1));
        Tiles { samples, rows, channels, pack, threads, across, down, cols, tiles, count, per }
    }

    /// Tiles that have all rows of their sample, of which a block of at most `most` threads has from `least` up to `held` each; of no more than `groups`
    /// groups. None where they do not fit.
    pub fn held(
        [samples, rows, channels]: [usize; 3],
        width: usize,
        pack: usize,
        [least, held, most]: [usize; 3],
        groups: usize,
        target: &CudaTarget,
    ) -> Option<Self> {
        let unit = common(width, pack);
        if !channels.is_multiple_of(pack) || !channels.is_multiple_of(unit) {
            return None;
        }
        let (units, multiprocessors) = (channels / unit, target.multiprocessors as usize);
        let (across, tiles) = (|k: usize| k * unit / pack, |k: usize| units.div_ceil(k));
        let lines = |each: usize| rows.div_ceil(each).max(1);
        let threads = |k: usize, each: usize| (across(k) * lines(each)).next_multiple_of(WARP);
        // Two blocks a multiprocessor, of which one computes while the other one waits; a block for every multiprocessor; stretches of a line that
        // memory is read in.
        let fits = |k: &usize| k * unit <= groups * width && threads(*k, held) <= most;
        let score = |k: &usize| {
            let busy = (samples * tiles(*k)).min(multiprocessors);
            (threads(*k, held) <= most / 2, busy, across(*k).min(4), Reverse(*k))
        };
        let k = (1..=units).filter(fits).max_by_key(score)?;
        // No narrow one at the end.
        let k = units.div_ceil(tiles(k));
        // As few rows a thread as leave half the threads of all multiprocessors.
        let blocks = samples * tiles(k);
        let few = |each: &usize| threads(k, *each) <= most && blocks * threads(k, *each) <= multiprocessors * most / 2;
        let each = (least..held).find(few).unwrap_or(held);
        let (across, cols, tiles, down) = (across(k), k * unit, tiles(k), lines(each));
        let threads = threads(k, each);
        Some(Tiles { samples, rows, channels, pack, threads, across, down, cols, tiles, count: 1, per: rows })
    }

    /// Tiles whose rows the blocks of a cluster share out, [`LEAST`] a thread; see [`Tiles::time`] for `held`. None where a tile of no more than `groups`
    /// groups does not fit.
    pub fn clustered(
        [samples, rows, channels]: [usize; 3],
        width: usize,
        pack: usize,
        held: usize,
        groups: usize,
        target: &CudaTarget,
    ) -> Option<Self> {
        let unit = common(width, pack);
        // A grid has no more along z.
        if !channels.is_multiple_of(unit) || !(1..1 << 16).contains(&samples) {
            return None;
        }
        let units = channels / unit;
        let lay = |(count, k): (usize, usize)| {
            let tiles = units.div_ceil(k);
            // No narrow one at the end.
            let cols = units.div_ceil(tiles) * unit;
            let (across, per) = (cols / pack, rows.div_ceil(count));
            let down = per.div_ceil(LEAST).min(CLUSTER_THREADS / across);
            let threads = (across * down).next_multiple_of(WARP);
            Tiles { samples, rows, channels, pack, threads, across, down, cols, tiles, count, per }
        };
        let fits = |&(count, k): &(usize, usize)| {
            // Every block has rows.
            let full = (count - 1) * rows.div_ceil(count) < rows;
            full && k * unit <= groups * width && k * unit / pack <= CLUSTER_THREADS
        };
        let all = CLUSTERS.into_iter().flat_map(|count| (1..=units).map(move |k| (count, k)));
        // Small clusters and wide tiles first.
        all.filter(fits).map(lay).min_by_key(|tiles| (tiles.time(held, target), tiles.count, Reverse(tiles.cols)))
    }

    /// An estimate of the time of a kernel that has up to `held` rows a thread at once and reads the others again, in bytes that the busiest multiprocessor
    /// reads and writes meanwhile, half of them: lines of 32, what a thread does besides as [`LEAST`] rows, and [`WAIT`] whenever a block waits for
    /// memory or its cluster.
    pub fn time(&self, held: usize, target: &CudaTarget) -> usize {
        let (blocks, multiprocessors) = (self.samples * self.tiles * self.count, target.multiprocessors as usize);
        // A cluster lies in one part of the GPU: an eighth of the places stays empty.
        let at_once = multiprocessors * CLUSTER_BLOCKS * 7 / 8;
        let places = if self.count > 1 && blocks > at_once { blocks * 8 / 7 } else { blocks };
        let loads = self.per.div_ceil(held * self.down);
        let again = self.per.saturating_sub(held * self.down);
        let line = (16 * self.across).next_multiple_of(32);
        let waits = 2 * loads - 1 + if self.count > 1 { 2 } else { 0 };
        places.div_ceil(multiprocessors) * line * (self.per + LEAST * self.down + again / 2) + waits * WAIT
    }

    /// Lines of a column of the slots of a block's threads, `Slots` of `kernels/group_norm.cu`: what a warp has of its columns is in different banks.
    pub fn slot_pitch(&self) -> usize {
        let lines = WARP.div_ceil(self.across).next_power_of_two();
        lines * (self.down.min(self.per).div_ceil(lines) | 1)
    }

    /// Bytes of shared memory for those slots: mean and squares of two channels.
    pub fn slots(&self) -> usize {
        8 * self.pack.div_ceil(2) * self.across * self.slot_pitch()
    }

    /// Bytes of shared memory for two sums of every channel of a block, and what its groups make of them: `BlockSums` of
    /// `kernels/group_norm_grad.cu`.
    pub fn block_sums(&self) -> usize {
        let numbers = 2 * self.pack * self.across;
        4 * (2 * self.pack * (self.threads + self.across) + self.threads.max(numbers) + numbers)
    }

    /// Tiles for sums of columns: any channels beside each other, two blocks a multiprocessor.
    pub fn of_columns(dims: [usize; 3], dtype: DType, target: &CudaTarget) -> Self {
        Tiles::new(dims, 1, 16 / dtype.size(), 4, 2 * target.multiprocessors as usize)
    }

    /// The launch of a kernel of clusters of `count` blocks.
    pub fn launch_clusters(&self, kernel: Ptx, args: impl IntoIterator<Item = Arg>) -> Launch {
        let Tiles { samples, rows, channels, cols, across, down, tiles, count, per, threads, .. } = *self;
        let launch = Launch::ptx(kernel, [count, tiles, samples], threads, args).scalars([rows, channels, cols]);
        launch.scalars(divisor(across)).scalars(divisor(down)).scalar(per)
    }

    /// The launch of a kernel with a block for each part.
    pub fn launch(&self, kernel: Ptx, args: impl IntoIterator<Item = Arg>) -> Launch {
        let blocks = (self.samples * self.count * self.tiles).max(1);
        let launch = Launch::ptx(kernel, [blocks, 1, 1], self.threads, args);
        let Tiles { rows, channels, cols, across, down, tiles, count, per, .. } = *self;
        let launch = launch.scalars([rows, channels, cols]).scalars(divisor(across)).scalars(divisor(down));
        launch.scalars(divisor(tiles)).scalars(divisor(count)).scalar(per)
    }
}

/// The least common multiple with a power of two.
fn common(n: usize, power: usize) -> usize {
    n * (power >> n.trailing_zeros().min(power.trailing_zeros()))
}

/// The launch of [`parameters_grad`] by the PTX kernel; parameters, and gradients of scale and shift, of a type.
pub(crate) fn parameters_grad_ptx(
    dtype: DType,
    [samples, channels]: [usize; 2],
    affine: bool,
    modulate: bool,
    sums: Arg,
) -> Launch {
    let kernel = Ptx::new("norm_parameters_grad", ptx!("norm_parameters_grad"), dtype);
    let launch = Launch::ptx(kernel, [channels.div_ceil(32), 1, 1], 32 * WARP, gradient_args(affine, modulate, sums));
    launch.scalars([samples, channels]).scalars([affine, modulate])
}

/// Adds a launch that leaves sums `[samples, stretches, width]` as its scratch, and what joins those of a sample; where the sums
/// `[samples, width]` are then.
pub(crate) fn add_stretches(launches: &mut Vec<Launch>, parts: Launch, [samples, count, width]: [usize; 3]) -> Arg {
    launches.push(parts);
    let sums = Arg::Left(launches.len() - 1, 0);
    if count == 1 {
        return sums;
    }
    launches.push(sum_few([samples, count, width], sums).with_scratch(samples * width));
    Arg::Left(launches.len() - 1, 0)
}

/// The types of a normalisation's gradients, in the order of its inputs: of x, scale and shift as those are, of gamma and beta f32.
pub(crate) fn gradient_types(inputs: &[&TensorType], affine: bool) -> Vec<TensorType> {
    let of_parameter = |i: usize| affine && (1..=2).contains(&i);
    let ty = |(i, ty): (usize, &&TensorType)| TensorType {
        dtype: if of_parameter(i) { DType::F32 } else { ty.dtype },
        ..(*ty).clone()
    };
    inputs.iter().enumerate().map(ty).collect()
}
