//! How weight gradients are cut into the tiles of `kernels/lib/weight_grad_hopper.cuh`.

use super::hopper::{Patches, STEP_BYTES};
use super::product::{Blocks, PlainProduct, parts_cycles};
use crate::cpu::gemm::Window;
use crate::graph::{Arg, Boxes, CudaTarget, Launch, Ptx, ptx};
use crate::tensor::DType;

/// Pixels of a step, and channels or columns of a box.
const DEPTH: usize = 64;
const BOX: usize = 64;
/// Rows and columns of tiles. Those of 192 by 128 are of one warpgroup, whose ends the other hides.
const TILES: [[usize; 2]; 4] = [[128, 256], [192, 256], [256, 128], [192, 128]];
/// Bytes of sums that a multiprocessor stores in a cycle, if all do: what memory takes. On an H200, tiles of 192 by 256 took 12500 cycles for it.
const END_BYTES: usize = 16;
/// Cycles that a block may wait for another's sums, and bytes of them that it writes or reads in a cycle.
const JOIN_CYCLES: usize = 3000;
const JOIN_BYTES: usize = 24;
/// Pixels that are summed up in a row at most, unless their parts are too many bytes: 2048 sums of 16 products, by which f32 loses less than 16 bits
/// had.
const MOST_PIXELS: usize = 1 << 15;
/// Steps that a part of k has at least, if there are as many.
const LEAST_STEPS: usize = 8;
/// Most bytes of all parts.
const PART_BYTES: usize = 1 << 26;

/// The gradient of a weight of `columns` under a window over `images`, for the kernels of Hopper.
#[derive(Clone, Copy, Debug, PartialEq)]
struct HopperWeightGrad<'a> {
    window: &'a Window,
    images: usize,
    columns: usize,
    patches: Patches,
    /// One of [`TILES`].
    tile: [usize; 2],
    /// Of a part.
    tiles: usize,
    /// Steps of a part of k, of which there are as many as patches.
    part: usize,
    parts: usize,
    /// Tiles of all parts that blocks do whole; those behind them are shared, if k is one part.
    whole: usize,
    blocks: usize,
}

/// dW of a product, by the kernels of Hopper or those of sm_80; x has so many `images` under the window, those of a matrix are of one
/// pixel.
pub(super) fn launches(product: &PlainProduct, window: &Window, images: usize, target: &CudaTarget) -> Vec<Launch> {
    let half = product.dtype != DType::F32;
    let other = product.blocks(target);
    match half.then(|| HopperWeightGrad::new(window, images, product.sizes[1], &other, target)).flatten() {
        Some(hopper) => hopper.launches(product),
        None => product.launches(target),
    }
}

impl<'a> HopperWeightGrad<'a> {
    /// None where the kernels of sm_80, which would take `other` tiles, are faster or the only ones: PTX for `wgmma` is for compute
    /// capability 9.0 alone; boxes of images are of neighbouring pixels, and begin at multiples of 16 bytes.
    fn new(
        w: &'a Window,
        images: usize,
        columns: usize,
        other: &Blocks,
        target: &CudaTarget,
    ) -> Option<HopperWeightGrad<'a>> {
        let wide = |n: usize| n > 0 && n.is_multiple_of(8);
        let plain = w.stride == 1 && w.dilation == 1;
        let patches = Patches::of(w, images, DEPTH);
        if target.compute != (9, 0) || !plain || !wide(w.channels) || !wide(columns) || patches.count == 0 {
            return None;
        }
        let elements = w.taps() * w.channels * columns;
        let most = (PART_BYTES / (4 * elements)).max(1);
        let least = patches.count.div_ceil(MOST_PIXELS / DEPTH).min(most);
        let most = (patches.count / LEAST_STEPS).clamp(least, most);
        let wave = target.multiprocessors as usize;
        let all = (least..=most).flat_map(|parts| {
            let part = patches.count.div_ceil(parts);
            TILES.into_iter().flat_map(move |tile| HopperWeightGrad::of(w, images, columns, patches, tile, part, wave))
        });
        let best = all.min_by_key(|cut| cut.cycles(target))?;
        // On an H200 the kernels of sm_80 took twice as long for weight gradients as their arithmetic has it: 175 to 240 TFLOP/s.
        (best.cycles(target) <= 2 * other.half_cycles(elements, target)).then_some(best)
    }

    /// In tiles of that size, and parts of so many steps, on so many multiprocessors: all tiles whole, or those shared that make no full round of them, or the last
    /// full one as well.
    fn of(
        window: &'a Window,
        images: usize,
        columns: usize,
        patches: Patches,
        tile: [usize; 2],
        part: usize,
        wave: usize,
    ) -> impl Iterator<Item = HopperWeightGrad<'a>> {
        let down = (window.taps() * window.channels.div_ceil(BOX)).div_ceil(tile[0] / BOX);
        let (tiles, parts) = (down * columns.div_ceil(tile[1]), patches.count.div_ceil(part));
        let full = tiles / wave * wave;
        let none =
            HopperWeightGrad { window, images, columns, patches, tile, tiles, part, parts, whole: 0, blocks: wave };
        let cut = move |whole, blocks| HopperWeightGrad { whole, blocks, ..none };
        let shared = [Some(full), full.checked_sub(wave)].into_iter().flatten();
        let shared = shared.filter(move |whole| parts == 1 && *whole < tiles).map(move |whole| cut(whole, wave));
        shared.chain([cut(tiles * parts, wave.min(tiles * parts))])
    }

    /// Steps of the tiles that are shared, and of a block's share.
    fn shared(&self) -> [usize; 2] {
        let steps = (self.tiles * self.parts - self.whole) * self.part;
        [steps, steps.div_ceil(self.blocks)]
    }

    /// Warpgroups that have a tile each.
    fn teams(&self) -> usize {
        if self.tile == [192, 128] { 2 } else { 1 }
    }

    /// Sums of a tile.
    fn sums(&self) -> usize {
        self.tile[0] * self.tile[1]
    }

    /// Bytes of a step's operands.
    fn step_bytes(&self) -> usize {
        (self.tile[0] + self.tile[1]) * DEPTH * 2
    }

    /// Cycles of the multiprocessor that has the most to do: the tensor cores do 4096 FLOPs of a step in each, unless its operands take longer to come; shared
    /// memory is faster than both. With two teams all ends but the last are hidden behind products, or products behind what memory takes.
    fn cycles(&self, target: &CudaTarget) -> usize {
        let wave = target.multiprocessors as usize;
        let step = (2 * self.sums() * DEPTH / 4096).max(self.step_bytes() / STEP_BYTES);
        let (rounds, [_, share]) = (self.whole.div_ceil(self.blocks), self.shared());
        let elements = self.window.taps() * self.window.channels * self.columns;
        let (products, end) = ((rounds * self.part + share) * step, 4 * self.sums() / END_BYTES);
        let join = match share {
            0 => 0,
            share => JOIN_CYCLES + (self.part.div_ceil(share) + 1) * 4 * self.sums() / JOIN_BYTES,
        };
        let stored = elements * self.parts + if share > 0 { self.blocks * self.sums() } else { 0 };
        let sums = match (self.teams(), rounds) {
            (1, _) => products + (rounds + share.div_ceil(self.part)) * end + join,
            (_, 0) => products + join + end,
            _ => products.max(4 * stored / (END_BYTES * wave)) + end,
        };
        sums + parts_cycles(self.parts, elements, target)
    }

    /// One launch; or two, where the first sums parts of k.
    fn launches(&self, product: &PlainProduct) -> Vec<Launch> {
        let [x, dy] = [Arg::Input(0), Arg::Input(1)];
        if self.parts > 1 {
            // Nobody shares tiles of parts.
            let sums = self.launch(product, &[x, dy]).with_scratch(self.parts * product.stored[0]);
            let sums = Launch { args: [&sums.args[..], &[x; 2]].concat(), ..sums };
            return vec![sums, product.sum_parts(self.parts)];
        }
        let y = Arg::Output(0);
        if self.shared()[0] == 0 {
            return vec![self.launch(product, &[x, dy, y, x, x])];
        }
        let launch = self.launch(product, &[x, dy, y]);
        vec![launch.with_scratch(self.blocks * self.sums()).with_counters(8 * self.blocks)]
    }

    /// The launch over x, dy and what is made.
    fn launch(&self, product: &PlainProduct, args: &[Arg]) -> Launch {
        let HopperWeightGrad { window: w, patches, .. } = *self;
        let [wide, high] = [1 << patches.wide, 1 << patches.high];
        let boxes = |shape: [usize; 3]| Boxes {
            dtype: product.dtype,
            shape: [&shape[..], &[self.images]].concat(),
            extent: vec![BOX, wide, high, DEPTH / (wide * high)],
            steps: vec![],
        };
        let file = ptx!("sm_90a", "weight_grad");
        let kernel = Ptx::new(product.name, file, product.dtype);
        let kernel = kernel.entry(format!("weight_grad_{}x{}_{}", self.tile[0], self.tile[1], product.dtype));
        // The stages, and what it takes to begin at a multiple of 1024.
        let stages = if self.teams() == 2 { 5 } else { 4 };
        let kernel = kernel.shared(stages * self.step_bytes() + 1024);
        let launch = Launch::ptx(kernel, [self.blocks, 1, 1], 384, args.iter().copied());
        let launch = launch.in_boxes(0, boxes([w.channels, w.width, w.height]));
        let launch = launch.in_boxes(1, boxes([self.columns, w.out_width, w.out_height]));
        let launch = launch.scalars([w.out_width, w.out_height, patches.wide, patches.high, w.channels, w.taps()]);
        let launch =
            launch.scalars([w.kernel[1], w.pad_top, w.pad_left, self.columns, patches.count, self.part, self.parts]);
        launch.scalar(self.whole).scalars(self.shared())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H200: CudaTarget =
        CudaTarget { compute: (9, 0), multiprocessors: 132, shared_bytes: 227 * 1024, software: false };

    /// Rows and columns of a tile, tiles that are whole, steps of a part and of a share, of a weight of `n` columns.
    fn cut(w: &Window, images: usize, n: usize, target: &CudaTarget) -> Option<[usize; 5]> {
        let sizes = [w.taps() * w.channels, n, images * w.out_height * w.out_width];
        let found = HopperWeightGrad::new(w, images, n, &Blocks::of_halves(1, sizes, target), target);
        found.map(|cut| [cut.tile[0], cut.tile[1], cut.whole, cut.part, cut.shared()[1]])
    }

    fn image(side: usize, channels: usize) -> Window {
        let (kernel, out) = ([3; 2], side);
        let matrix = Window::matrix(channels);
        Window { height: side, width: side, out_height: out, out_width: out, kernel, pad_top: 1, pad_left: 1, ..matrix }
    }

    #[test]
    fn rounds_are_full() {
        // As many parts as fill one round.
        assert_eq!(cut(&image(32, 256), 64, 256, &H200), Some([192, 256, 12 * 11, 94, 0]));
        assert_eq!(cut(&image(8, 256), 128, 256, &H200), Some([192, 128, 24 * 5, 26, 0]));
        assert_eq!(cut(&image(32, 128), 64, 128, &H200), Some([192, 128, 6 * 22, 47, 0]));
        assert_eq!(cut(&Window::matrix(4096), 4096, 4096, &H200), Some([128, 256, 512, 64, 0]));
    }

    #[test]
    fn what_makes_no_round_is_shared() {
        // 45 tiles, 18 more than a round, 72 more than four of them; 188 more than nine.
        assert_eq!(cut(&image(64, 320), 4, 320, &H200), Some([192, 128, 0, 256, 88]));
        assert_eq!(cut(&image(32, 640), 4, 640, &H200), Some([192, 128, 132, 64, 9]));
        assert_eq!(cut(&image(16, 1280), 4, 1280, &H200), Some([192, 128, 4 * 132, 16, 9]));
        assert_eq!(cut(&Window::matrix(8192), 8192, 8192, &H200), Some([192, 256, 9 * 132, 128, 183]));
        // What is stored takes longer than the products, shared or not.
        assert_eq!(cut(&image(8, 1280), 4, 1280, &H200), Some([192, 128, 600, 4, 0]));
    }

    #[test]
    fn long_sums_are_cut() {
        let part = MOST_PIXELS / DEPTH;
        assert_eq!(cut(&Window::matrix(1024), 1 << 18, 1024, &H200), Some([128, 256, 32 * 8, part, 0]));
    }

    #[test]
    fn what_boxes_cannot_bring_has_other_kernels() {
        let w = image(64, 320);
        assert!(cut(&w, 4, 320, &H200).is_some());
        let others = [Window { stride: 2, ..w }, Window { dilation: 2, ..w }, image(64, 4)];
        assert!(others.iter().all(|w| cut(w, 4, 320, &H200).is_none()));
        assert_eq!(cut(&w, 4, 324, &H200), None);
        assert_eq!(cut(&w, 0, 320, &H200), None);
        assert_eq!(cut(&w, 4, 320, &CudaTarget { compute: (8, 9), ..H200 }), None);
    }
}
