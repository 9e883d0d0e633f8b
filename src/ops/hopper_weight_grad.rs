//! How weight gradients are cut into the tiles of `kernels/lib/weight_grad_hopper.cuh`.

use super::hopper::{Patches, STEP_BYTES};
use super::product::{Blocks, END_CYCLES, PlainProduct, parts_cycles};
use crate::cpu::gemm::Window;
use crate::graph::{Arg, Boxes, CudaTarget, Launch, Ptx, ptx};
use crate::tensor::DType;

/// Pixels of a step, and channels or columns of a box.
const DEPTH: usize = 64;
const BOX: usize = 64;
/// Rows and columns of tiles.
const TILES: [[usize; 2]; 3] = [[128, 256], [192, 256], [256, 128]];
/// Pixels that are summed up in a row at most, unless their parts are too many bytes: 2048 sums of 16 products, by which f32 loses less than 16 bits
/// had.
const MOST_PIXELS: usize = 1 << 15;
/// Steps that a part of k has at least, if there are as many.
const LEAST_STEPS: usize = 8;
/// Most bytes of all parts.
const PART_BYTES: usize = 1 << 26;

/// The gradient of a weight of `columns` under a window over `images`, for the kernels of Hopper.
#[derive(Clone, Debug, PartialEq)]
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
}

/// dW of a product, by the kernels of Hopper or those of sm_80; x has so many `images` under the window, those of a matrix are of one
/// pixel.
pub(super) fn launches(product: &PlainProduct, window: &Window, images: usize, target: &CudaTarget) -> Vec<Launch> {
    let half = product.dtype != DType::F32;
    let other = product.blocks(target);
    match half.then(|| HopperWeightGrad::new(window, images, product.sizes[1], &other, target)).flatten() {
        Some(hopper) => hopper.launches(product, target),
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
        let all = (least..=most).flat_map(|parts| {
            TILES.map(|tile| HopperWeightGrad::of(w, images, columns, patches, tile, patches.count.div_ceil(parts)))
        });
        let best = all.min_by_key(|cut| cut.cycles(target))?;
        // On an H200 the kernels of sm_80 took twice as long for weight gradients as their arithmetic has it: 175 to 240 TFLOP/s.
        (best.cycles(target) <= 2 * other.half_cycles(elements, target)).then_some(best)
    }

    /// In tiles of that size, and parts of so many steps.
    fn of(
        window: &'a Window,
        images: usize,
        columns: usize,
        patches: Patches,
        tile: [usize; 2],
        part: usize,
    ) -> HopperWeightGrad<'a> {
        let down = (window.taps() * window.channels.div_ceil(BOX)).div_ceil(tile[0] / BOX);
        let (tiles, parts) = (down * columns.div_ceil(tile[1]), patches.count.div_ceil(part));
        HopperWeightGrad { window, images, columns, patches, tile, tiles, part, parts }
    }

    /// Bytes of a step's operands.
    fn step_bytes(&self) -> usize {
        (self.tile[0] + self.tile[1]) * DEPTH * 2
    }

    /// Cycles of the multiprocessor that has the most to do, by arithmetic: the tensor cores do 4096 FLOPs of a step in each, unless its operands take
    /// longer to come; shared memory is faster than both.
    fn cycles(&self, target: &CudaTarget) -> usize {
        let products = 2 * self.tile[0] * self.tile[1] * DEPTH / 4096;
        let step = products.max(self.step_bytes() / STEP_BYTES);
        let rounds = (self.tiles * self.parts).div_ceil(target.multiprocessors as usize);
        let elements = self.window.taps() * self.window.channels * self.columns;
        rounds * (step * self.part + END_CYCLES) + parts_cycles(self.parts, elements, target)
    }

    /// One launch; or two, where the first sums parts of k.
    fn launches(&self, product: &PlainProduct, target: &CudaTarget) -> Vec<Launch> {
        let [x, dy] = [Arg::Input(0), Arg::Input(1)];
        if self.parts == 1 {
            return vec![self.sums(product, &[x, dy, Arg::Output(0)], target)];
        }
        let sums = self.sums(product, &[x, dy], target).with_scratch(self.parts * product.stored[0]);
        vec![sums, product.sum_parts(self.parts)]
    }

    /// The launch over x, dy and what is made.
    fn sums(&self, product: &PlainProduct, args: &[Arg], target: &CudaTarget) -> Launch {
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
        let kernel = kernel.entry(format!("weight_grad_{}_{}", self.tile[0], product.dtype));
        // Four stages, and what it takes to begin at a multiple of 1024.
        let kernel = kernel.shared(4 * self.step_bytes() + 1024);
        let blocks = (self.tiles * self.parts).min(target.multiprocessors as usize);
        let launch = Launch::ptx(kernel, [blocks, 1, 1], 384, args.iter().copied());
        let launch = launch.in_boxes(0, boxes([w.channels, w.width, w.height]));
        let launch = launch.in_boxes(1, boxes([self.columns, w.out_width, w.out_height]));
        let launch = launch.scalars([w.out_width, w.out_height, patches.wide, patches.high, w.channels, w.taps()]);
        launch.scalars([w.kernel[1], w.pad_top, w.pad_left, self.columns, patches.count, self.part, self.parts])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H200: CudaTarget =
        CudaTarget { compute: (9, 0), multiprocessors: 132, shared_bytes: 227 * 1024, software: false };

    /// Rows of a tile, tiles, parts and steps of a part, of a weight of `n` columns.
    fn cut(w: &Window, images: usize, n: usize, target: &CudaTarget) -> Option<[usize; 4]> {
        let sizes = [w.taps() * w.channels, n, images * w.out_height * w.out_width];
        let found = HopperWeightGrad::new(w, images, n, &Blocks::of_halves(1, sizes, target), target);
        found.map(|cut| [cut.tile[0], cut.tiles, cut.parts, cut.part])
    }

    fn image(side: usize, channels: usize) -> Window {
        let (kernel, out) = ([3; 2], side);
        let matrix = Window::matrix(channels);
        Window { height: side, width: side, out_height: out, out_width: out, kernel, pad_top: 1, pad_left: 1, ..matrix }
    }

    #[test]
    fn rounds_are_full() {
        // As many parts as fill one round.
        assert_eq!(cut(&image(32, 256), 64, 256, &H200), Some([192, 12, 11, 94]));
        assert_eq!(cut(&image(8, 256), 128, 256, &H200), Some([128, 18, 7, 19]));
        assert_eq!(cut(&image(32, 128), 64, 128, &H200), Some([256, 5, 26, 40]));
        // 115 tiles of 256 rows are one round, 135 of 128 are two.
        assert_eq!(cut(&image(32, 640), 4, 640, &H200), Some([256, 115, 1, 64]));
        assert_eq!(cut(&image(16, 256), 64, 256, &H200), Some([128, 18, 7, 37]));
        assert_eq!(cut(&image(16, 1280), 4, 1280, &H200), Some([128, 450, 1, 16]));
        assert_eq!(cut(&Window::matrix(8192), 8192, 8192, &H200), Some([192, 1376, 1, 128]));
    }

    #[test]
    fn long_sums_are_cut() {
        let [.., parts, part] = cut(&Window::matrix(1024), 1 << 18, 1024, &H200).unwrap();
        assert!(part * DEPTH <= MOST_PIXELS && part * parts * DEPTH >= 1 << 18, "{parts} of {part}");
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
