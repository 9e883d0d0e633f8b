//! Rows of left-hand sides: of a matrix, or of a convolution, whose column matrix is written nowhere.

/// Shorter stretches of a row of A are gathered: the kernel would spend its time on the pointers.
pub(super) const MIN_LINE: usize = 64;

/// The rows of A. A row consists of runs: elements that lie beside each other in memory, or are all zero.
pub trait Rows: Sync {
    /// Length of a run.
    fn run(&self) -> usize;

    /// Calls `f(i, line)` for the rows `row0 + i`, i < count: A[row0 + i, k0..] up to the end of the run, `None` for zeros.
    fn lines<'a>(&'a self, row0: usize, count: usize, k0: usize, f: impl FnMut(usize, Option<&'a [f32]>));

    /// Writes A[row, k0..k1] to `out`.
    fn gather(&self, row: usize, k0: usize, k1: usize, out: &mut [f32]);

    /// Whether runs should be read where they lie.
    fn in_place(&self) -> bool {
        // Rows a multiple of 4 KiB apart fall into one cache set each: copying them is cheaper.
        self.run() >= MIN_LINE && !self.run().is_multiple_of(1024)
    }
}

/// A plain matrix with contiguous rows of `stride`.
pub struct Matrix<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

impl Rows for Matrix<'_> {
    fn run(&self) -> usize {
        self.stride
    }

    #[inline]
    fn lines<'a>(&'a self, row0: usize, count: usize, k0: usize, mut f: impl FnMut(usize, Option<&'a [f32]>)) {
        for i in 0..count {
            let row = (row0 + i) * self.stride;
            f(i, Some(&self.data[row + k0..row + self.stride]));
        }
    }

    #[inline]
    fn gather(&self, row: usize, k0: usize, k1: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.data[row * self.stride + k0..row * self.stride + k1]);
    }
}

/// Geometry of a 2-D convolution over NHWC images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    pub out_height: usize,
    pub out_width: usize,
    /// Rows and columns.
    pub kernel: [usize; 2],
    pub stride: usize,
    pub pad_top: usize,
    pub pad_left: usize,
    /// Zeros put between input pixels, plus one: 2 for the data gradient of a stride-2 convolution.
    pub dilation: usize,
}

impl Window {
    /// A 1×1 convolution of images of one pixel: a plain matrix product.
    pub fn matrix(channels: usize) -> Self {
        let (kernel, one) = ([1, 1], 1);
        Window {
            height: one,
            width: one,
            channels,
            out_height: one,
            out_width: one,
            kernel,
            stride: one,
            pad_top: 0,
            pad_left: 0,
            dilation: one,
        }
    }

    /// Pixels under the kernel.
    pub fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Image, and the row and column of the padded, dilated input under tap (0, 0), of output pixel `row`.
    #[inline]
    fn corner(&self, row: usize) -> [usize; 3] {
        let pixels = self.out_height * self.out_width;
        let (image, at) = (row / pixels, row % pixels);
        [image, at / self.out_width * self.stride, at % self.out_width * self.stride]
    }

    /// Offset of the input pixel under tap (ky, kx) of a corner; `None` where that is padding.
    #[inline]
    fn pixel(&self, [image, y, x]: [usize; 3], ky: usize, kx: usize) -> Option<usize> {
        let (mut y, mut x) = ((y + ky).wrapping_sub(self.pad_top), (x + kx).wrapping_sub(self.pad_left));
        if self.dilation > 1 {
            // A padding row wraps to a huge number, which no division brings inside.
            if y % self.dilation != 0 || x % self.dilation != 0 {
                return None;
            }
            (y, x) = (y / self.dilation, x / self.dilation);
        }
        (y < self.height && x < self.width).then(|| ((image * self.height + y) * self.width + x) * self.channels)
    }
}

/// The rows of a convolution's implicit column matrix: k runs over taps, then channels.
pub struct Im2col<'a> {
    pub data: &'a [f32],
    pub window: Window,
}

impl Rows for Im2col<'_> {
    fn run(&self) -> usize {
        self.window.channels
    }

    #[inline]
    fn lines<'a>(&'a self, row0: usize, count: usize, k0: usize, mut f: impl FnMut(usize, Option<&'a [f32]>)) {
        let (w, c) = (&self.window, self.window.channels);
        let (tap, from) = (k0 / c, k0 % c);
        let (ky, kx) = (tap / w.kernel[1], tap % w.kernel[1]);
        let [mut image, mut y, mut x] = w.corner(row0);
        for i in 0..count {
            f(i, w.pixel([image, y, x], ky, kx).map(|at| &self.data[at + from..at + c]));
            x += w.stride;
            if x == w.out_width * w.stride {
                (x, y) = (0, y + w.stride);
                if y == w.out_height * w.stride {
                    (y, image) = (0, image + 1);
                }
            }
        }
    }

    #[inline]
    fn gather(&self, row: usize, k0: usize, k1: usize, out: &mut [f32]) {
        let (w, c) = (&self.window, self.window.channels);
        let corner = w.corner(row);
        let (tap, mut from) = (k0 / c, k0 % c);
        let (mut ky, mut kx) = (tap / w.kernel[1], tap % w.kernel[1]);
        let mut rest = &mut out[..k1 - k0];
        while !rest.is_empty() {
            let (to, after) = rest.split_at_mut((c - from).min(rest.len()));
            match w.pixel(corner, ky, kx) {
                Some(at) => to.copy_from_slice(&self.data[at + from..at + from + to.len()]),
                None => to.fill(0.0),
            }
            (rest, from, kx) = (after, 0, kx + 1);
            if kx == w.kernel[1] {
                (kx, ky) = (0, ky + 1);
            }
        }
    }
}
