//! How matrix products are cut into the tiles of `kernels/lib/gemm_hopper.cuh`.

use super::product::Blocks;
use crate::cpu::gemm::Window;
use crate::graph::{Arg, Boxes, CudaTarget, Launch, Ptx, ptx};
use crate::tensor::{DType, PANEL};

/// Rows of a tile, and channels of a step.
const ROWS: usize = 128;
const DEPTH: usize = 64;
/// A box is of 256 pixels along an axis at most, of which it has so many-th; patches have 128.
const MOST_STRIDE: usize = 2;
/// Columns of a tile: what there are entries for. With 256 two warpgroups share a tile; of narrower ones each has its own.
const SIZES: [usize; 5] = [256, 192, 160, 128, FEW_COLUMNS];
/// The same where the second half of the columns gates the first: Stable Diffusion's layers want no others.
const GATED_SIZES: [usize; 3] = [192, 160, 128];
/// For few rows, where no block has more than one tile: twice as many multiprocessors have one, and a join of parts moves half as much.
const FEW_COLUMNS: usize = 64;
/// Terms that are summed up in a row at most: longer sums lose digits that the result has in 16 bits.
const MOST_TERMS: usize = 1 << 15;
/// Cycles for the last products and the end of a tile of 128 columns by one warpgroup, or of 256 by two.
const END_CYCLES: usize = 6000;
/// Bytes of operands that a multiprocessor gets a cycle, if all want some: 32 KiB in 700 cycles, 48 in 1040 on an H200.
pub(super) const STEP_BYTES: usize = 46;
/// Bytes that it gets a cycle if no other wants any.
const ALONE_BYTES: usize = 64;
/// Cycles that it takes to know that all parts have come, and bytes of parts that a block reads or writes a cycle.
const JOIN_CYCLES: usize = 2000;
const JOIN_BYTES: usize = 48;
/// Cycles for a second launch. Without one, what the kernels of sm_80 take was half as much again as arithmetic has it, or more.
const LAUNCH_CYCLES: usize = 5000;
/// Most bytes of all parts of a product.
const PART_BYTES: usize = 1 << 26;

/// How a product ends on Hopper.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum End {
    /// By an epilogue.
    Any,
    /// By one that is whole, and sixteen rows of a tile of one sample.
    Whole,
    /// By a bias, and by GELU of the second half of the columns, which gates the first: a linear layer's.
    Geglu,
}

impl End {
    /// Columns of tiles that there are entries for.
    fn sizes(self) -> &'static [usize] {
        match self {
            End::Any => &[128],
            End::Whole => &SIZES,
            End::Geglu => &GATED_SIZES,
        }
    }

    /// Multiples of which the columns of a weight are: four of y are an access; gates begin with a panel.
    fn columns(self) -> usize {
        if self == End::Geglu { 2 * PANEL } else { 4 }
    }
}

/// A product of `images` under a window and a weight of `columns`, for the kernels of Hopper.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Hopper<'a> {
    window: &'a Window,
    images: usize,
    /// Rows of y, and columns of the weight.
    pixels: usize,
    columns: usize,
    end: End,
    patches: Patches,
    /// Columns of a tile, of those that the end has.
    size: usize,
    tiles: usize,
    /// Steps of a part of k.
    part: usize,
    pub parts: usize,
    /// Blocks of a part, each of which goes from tile to tile.
    blocks: usize,
}

/// How the pixels of images are cut into patches of as many: of 2^`wide` columns, 2^`high` rows, and as many images as that leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Patches {
    pub wide: usize,
    pub high: usize,
    pub count: usize,
}

impl Patches {
    /// Of so many `pixels`, a power of two: the fewest, and of those the widest.
    pub fn of(w: &Window, images: usize, pixels: usize) -> Patches {
        let most = pixels.ilog2() as usize;
        let of = |wide: usize, high: usize| {
            let across = w.out_width.div_ceil(1 << wide) * w.out_height.div_ceil(1 << high);
            Patches { wide, high, count: across * images.div_ceil(pixels >> (wide + high)) }
        };
        let all = (0..=most).rev().flat_map(|wide| (0..=most - wide).rev().map(move |high| of(wide, high)));
        all.fold(of(most, 0), |best, next| if next.count < best.count { next } else { best })
    }
}

/// True if all of sixteen rows of a tile, as many as a warp sends at a time, are of one sample; samples have so many rows each.
pub(super) fn one_sample(w: &Window, images: usize, rows_per_sample: usize) -> bool {
    if w.out_height * w.out_width > 1 {
        let patches = Patches::of(w, images, ROWS);
        return patches.wide + patches.high >= 4;
    }
    rows_per_sample.is_multiple_of(16) || rows_per_sample >= images
}

/// Channels, in steps, of all taps.
fn steps(w: &Window) -> usize {
    w.taps() * w.channels.div_ceil(DEPTH)
}

impl<'a> Hopper<'a> {
    /// None where the kernels of sm_80, which would take `other` tiles, are faster or the only ones: PTX for `wgmma` is for compute
    /// capability 9.0 alone; boxes begin at multiples of 16 bytes, and columns of an end are four in an access.
    pub fn new(
        w: &'a Window,
        images: usize,
        columns: usize,
        end: End,
        other: &Blocks,
        target: &CudaTarget,
    ) -> Option<Hopper<'a>> {
        let possible = w.stride <= MOST_STRIDE
            && w.dilation == 1
            && w.channels > 0
            && w.channels.is_multiple_of(8)
            && columns.is_multiple_of(end.columns());
        if target.compute != (9, 0) || !possible {
            return None;
        }
        let patches = match end {
            // Of rows of a matrix.
            End::Geglu => Patches { wide: 0, high: 0, count: images.div_ceil(ROWS) },
            _ => Patches::of(w, images, ROWS),
        };
        let all = end.sizes().iter().flat_map(|size| Hopper::of(w, images, columns, end, patches, *size, target));
        let all = all.filter(|hopper| hopper.size > FEW_COLUMNS || hopper.blocks == hopper.tiles);
        let best = all.min_by_key(|hopper| hopper.cycles(target))?;
        let launches = (other.parts > 1) as usize + (end == End::Geglu) as usize;
        let others = 3 * other.half_cycles(best.pixels * columns, target) / 2 + launches * LAUNCH_CYCLES;
        (best.cycles(target) <= others).then_some(best)
    }

    /// In tiles of `size` columns: with k whole, and cut into every number of parts that lets all of them run at once.
    fn of(
        window: &'a Window,
        images: usize,
        columns: usize,
        end: End,
        patches: Patches,
        size: usize,
        target: &CudaTarget,
    ) -> impl Iterator<Item = Hopper<'a>> {
        let (wave, steps) = (target.multiprocessors as usize, steps(window));
        let tiles = patches.count * columns.div_ceil(size);
        let pixels = images * window.out_height * window.out_width;
        let least = (steps * DEPTH).div_ceil(MOST_TERMS);
        let most = (wave / tiles.max(1)).min(PART_BYTES / (4 * ROWS * size * tiles).max(1)).min(steps / 2);
        (least..=most.max(least)).map(move |parts| {
            let part = steps.div_ceil(parts).max(1);
            let parts = steps.div_ceil(part);
            let blocks = tiles.min((wave / parts).max(1));
            Hopper { window, images, pixels, columns, end, patches, size, tiles, part, parts, blocks }
        })
    }

    /// Cycles of the multiprocessor that has the most to do, but for what every launch costs. A step takes what the tensor cores take, or its operands on
    /// their way: with fewer columns there are more of them for a product. But all ends of tiles of fewer than 256 columns but the last are hidden behind another
    /// tile's steps, and both warpgroups share a tile if there is but one. Parts are written and read again by those who end a tile.
    fn cycles(&self, target: &CudaTarget) -> usize {
        let (rounds, sums) = (self.tiles.div_ceil(self.blocks), ROWS * self.size);
        let ends = match (self.size, rounds) {
            (256, _) => rounds * END_CYCLES,
            (size, 1) => END_CYCLES * size / 256,
            (size, _) => END_CYCLES * size / 128,
        };
        let join = if self.parts == 1 { 0 } else { JOIN_CYCLES + (self.parts + 1) * 4 * sums / JOIN_BYTES };
        let (running, bytes) = (self.blocks * self.parts, (ROWS + self.size) * DEPTH * 2);
        let bytes = (bytes * running / (STEP_BYTES * target.multiprocessors as usize)).max(bytes / ALONE_BYTES);
        rounds * self.part * bytes.max(4 * self.size) + ends + rounds * join
    }

    /// Bytes of shared memory: stages of operands, numbers on their way out, of 16 rows and 64 columns a warp with a gap behind each row, and what it takes to
    /// begin at a multiple of 1024.
    fn shared(&self) -> usize {
        let stages = [(256, 4), (192, 5), (160, 5), (128, 6), (FEW_COLUMNS, 8)];
        let stages = stages.iter().find(|(size, _)| *size == self.size).map_or(0, |(_, stages)| *stages);
        stages * (ROWS + self.size) * DEPTH * 2 + 8 * 16 * (64 * 2 + 16) + 1024
    }

    /// The launch over `args`: x, W, operands of the end, and y.
    pub fn launch(&self, name: &'static str, dtype: DType, args: &[Arg]) -> Launch {
        let Hopper { window: w, patches, .. } = *self;
        let across = [1 << patches.wide, 1 << patches.high, ROWS >> (patches.wide + patches.high)];
        let x = Boxes {
            dtype,
            shape: vec![w.channels, w.width, w.height, self.images],
            extent: vec![DEPTH, across[0], across[1], across[2]],
            steps: vec![1, w.stride, w.stride, 1],
        };
        let entry = if self.end == End::Geglu { "product_geglu" } else { "product" };
        let kernel = Ptx::new(name, ptx!("sm_90a", "product"), dtype).entry(format!("{entry}_{}_{dtype}", self.size));
        let launch = Launch::ptx(kernel.shared(self.shared()), [self.blocks, self.parts, 1], 384, args.iter().copied());
        // Nobody reads what stands for parts and counters where there are none.
        let launch = match self.parts {
            1 => Launch { args: [&launch.args[..], &[args[0]; 2]].concat(), ..launch },
            parts => launch.with_scratch(self.tiles * parts * ROWS * self.size).with_counters(8 * self.tiles),
        };
        let launch = launch.in_boxes(0, x);
        if self.end == End::Geglu {
            return launch.scalar(w.channels);
        }
        let launch = launch.scalars([w.out_width, w.out_height, self.images, patches.wide, patches.high]);
        let taps = [w.kernel[1], w.stride, w.pad_top, w.pad_left, w.channels.div_ceil(DEPTH)];
        launch.scalars(taps).scalars([w.channels, w.taps() * w.channels])
    }

    /// Steps of k in all, and of a part of it.
    pub fn steps(&self) -> [usize; 2] {
        [steps(self.window), self.part]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: CudaTarget =
        CudaTarget { compute: (9, 0), multiprocessors: 132, shared_bytes: 227 * 1024, software: false };

    /// Of images `[images, side, side, channels]` under a window of `taps²`, or rows of a matrix if there is one tap.
    fn cut(w: &Window, images: usize, n: usize) -> Option<Hopper<'_>> {
        let sizes = [images * w.out_height * w.out_width, n, w.taps() * w.channels];
        Hopper::new(w, images, n, End::Whole, &Blocks::new(1, sizes, 128, &H100), &H100)
    }

    fn image(height: usize, width: usize, channels: usize) -> Window {
        let (out_height, out_width) = (height, width);
        Window {
            height,
            width,
            out_height,
            out_width,
            kernel: [3; 2],
            pad_top: 1,
            pad_left: 1,
            ..Window::matrix(channels)
        }
    }

    #[test]
    fn patches_cover_images_and_waste_little() {
        for (height, width, images, expected) in [
            (32, 32, 1, (5, 2, 8)),
            (8, 8, 4, (3, 3, 2)),
            (1, 1, 300, (0, 0, 3)),
            (64, 48, 1, (4, 3, 24)),
            (7, 7, 2, (3, 3, 1)),
        ] {
            let found = Patches::of(&image(height, width, 64), images, ROWS);
            assert_eq!((found.wide, found.high, found.count), expected, "{height} {width} {images}");
        }
    }

    #[test]
    fn tiles_are_as_large_as_rounds_are_full() {
        let size = |m, n, k| cut(&Window::matrix(k), m, n).map(|h| (h.size, h.parts, h.blocks));
        assert_eq!(size(8192, 8192, 8192), Some((256, 1, 132)));
        // 108 tiles of 160 columns are one round, 66 of 256 take longer, though k is cut, and 132 of 128 have more operands.
        assert_eq!(size(12 * 128, 11 * 128, 4096), Some((160, 1, 108)));
        assert_eq!(size(8192, 8192, 192), Some((192, 1, 132)));
        // Six tiles of 192 columns beside each other, or two of 160.
        assert_eq!(size(16384, 1152, 1152), Some((192, 1, 132)));
        assert_eq!(size(16384, 320, 320), Some((160, 1, 132)));
        // Few tiles of many terms; few rows.
        assert_eq!(size(256, 1152, 9216), Some((64, 3, 36)));
        assert_eq!(size(40, 640, 640), Some((64, 1, 10)));
        // One row; rows that do not begin at 16 bytes.
        assert_eq!(size(1, 1152, 6912), None);
        assert_eq!(size(8192, 8192, 1028), None);
    }

    #[test]
    fn gated_tiles_are_as_large_as_rounds_are_full() {
        let size = |m, n, k| {
            let w = Window::matrix(k);
            let h = Hopper::new(&w, m, n, End::Geglu, &Blocks::new(1, [m, n, k], 128, &H100), &H100);
            h.map(|h| (h.size, h.parts, h.blocks))
        };
        // Stable Diffusion's feed-forwards, at batch 64, 4 and 1.
        assert_eq!(size(1 << 18, 2560, 320), Some((192, 1, 132)));
        assert_eq!(size(16384, 2560, 320), Some((192, 1, 132)));
        assert_eq!(size(1024, 5120, 640), Some((160, 1, 132)));
        assert_eq!(size(64, 10240, 1280), Some((128, 1, 80)));
        // Gates that do not begin with a panel.
        assert_eq!(size(1024, 5136, 640), None);
    }

    #[test]
    fn convolutions_that_boxes_cannot_bring_have_other_kernels() {
        let w = image(64, 64, 320);
        assert!(cut(&w, 4, 320).is_some());
        assert!(cut(&Window { stride: 2, out_height: 32, out_width: 32, ..w }, 4, 320).is_some());
        let others = [Window { stride: 3, ..w }, Window { dilation: 2, ..w }, image(64, 64, 4)];
        assert!(others.iter().all(|w| cut(w, 4, 320).is_none()));
        let older = CudaTarget { compute: (8, 9), ..H100 };
        assert_eq!(Hopper::new(&w, 4, 320, End::Whole, &Blocks::new(1, [16384, 320, 2880], 128, &older), &older), None);
    }
}
