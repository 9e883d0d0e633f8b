//! Separable FIR up- and downsampling of NHWC images.

use super::lines::{by_pack, divisor};
use super::pieces::along;
use super::{Slice, expect_inputs, expect_real};
use crate::cpu::gemm::with_buffers;
use crate::cpu::threads::{Ptr, tasks};
use crate::graph::{
    Arg, Args, Cost, Graph, Launch, Node, Op, PLACES, Ptx, Shader, Signature, Target, Value, WgpuTarget, ptx, wgsl,
};
use crate::simd;
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// x `[B, H, W, C]` → y `[B, H', W', C]`, H' = (H·up + pad₀ + pad₁ − L)/down + 1, every channel by itself:
/// `y[o, p] = Σᵢⱼ f[i] f[j] z[o·down + i − pad₀, p·down + j − pad₀]`, z = x with up − 1 zeros behind every pixel, L = |f|.
/// The resampling of StyleGAN2 (`upfirdn2d`, Karras et al. 2020) and of EDM (Karras et al. 2022). The filter is used as given.
#[derive(Clone, Debug, PartialEq)]
pub struct Resample {
    pub up: usize,
    pub down: usize,
    pub filter: Vec<f32>,
    pub pad: [usize; 2],
}

impl Resample {
    /// Every pixel n × n times.
    pub fn nearest_up(n: usize) -> Self {
        Resample { up: n, down: 1, filter: vec![1.0; n], pad: [n.saturating_sub(1), 0] }
    }

    /// The mean of n × n pixels.
    pub fn box_down(n: usize) -> Self {
        Resample { up: 1, down: n, filter: vec![1.0 / n.max(1) as f32; n], pad: [0, 0] }
    }

    /// EDM's upsampling by 2 with filter f: a transposed convolution of stride 2 and padding (L − 1)/2 with 4·f⊗f/(Σf)².
    /// Twice the size for filters of even length.
    pub fn fir_up(f: &[f32]) -> Self {
        // A transposed convolution reads its filter backwards.
        let filter = normalised(f, 2.0).into_iter().rev().collect();
        let near = f.len() / 2;
        Resample { up: 2, down: 1, filter, pad: [near, f.len().saturating_sub(1 + near)] }
    }

    /// EDM's downsampling by 2 with filter f: a convolution of stride 2 and padding (L − 1)/2 with f⊗f/(Σf)².
    pub fn fir_down(f: &[f32]) -> Self {
        let pad = f.len().saturating_sub(1) / 2;
        Resample { up: 1, down: 2, filter: normalised(f, 1.0), pad: [pad, pad] }
    }

    /// Pixels out of n.
    fn size(&self, n: usize) -> Option<usize> {
        let padded = n * self.up + self.pad[0] + self.pad[1];
        (padded.checked_sub(self.filter.len())).map(|rest| rest / self.down + 1)
    }

    /// The transposed map as a resampling, for an output of n pixels at least.
    fn transposed(&self, sizes: &[usize]) -> Resample {
        let len = self.filter.len();
        let near = len - 1 - self.pad[0];
        let far = |n: usize| {
            let have = self.size(n).unwrap_or(0) * self.down + near;
            ((n - 1) * self.up + len).saturating_sub(have)
        };
        let far = sizes.iter().map(|n| far(*n)).max().unwrap_or(0);
        let filter = self.filter.iter().rev().copied().collect();
        Resample { up: self.down, down: self.up, filter, pad: [near, far] }
    }

    /// The value of all taps, if they are equal and as many as the factor, so that stretches of pixels do not overlap.
    fn constant_taps(&self, factor: usize) -> Option<f32> {
        let first = *self.filter.first()?;
        (self.filter.len() == factor && self.filter.iter().all(|f| *f == first)).then_some(first)
    }
}

/// f · gain / Σf
fn normalised(f: &[f32], gain: f64) -> Vec<f32> {
    let sum: f64 = f.iter().map(|v| *v as f64).sum();
    f.iter().map(|v| (*v as f64 * gain / sum) as f32).collect()
}

/// How a kernel computes it.
#[derive(Clone, Copy, PartialEq)]
enum Method {
    Fir,
    /// Every pixel times a number, up × up times.
    Repeat,
    /// Sums of down × down pixels times a number.
    Block,
}

impl Op for Resample {
    fn name(&self) -> &'static str {
        "resample"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        expect_real(self.name(), "x", inputs[0])?;
        let [b, h, w, c] = inputs[0].shape[..] else {
            return Err(Error::shape(self.name(), format!("x must be [B, H, W, C], is {}", inputs[0])));
        };
        let valid = self.up > 0 && self.down > 0 && self.pad[0] < self.filter.len() && h > 0 && w > 0;
        match (valid, valid.then(|| self.size(h)).flatten(), valid.then(|| self.size(w)).flatten()) {
            (true, Some(h), Some(w)) => Ok(vec![inputs[0].with_shape([b, h, w, c])]),
            _ => Err(Error::shape(self.name(), format!("{self:?} does not fit {}", inputs[0]))),
        }
    }

    fn cost(&self, io: &Signature) -> Cost {
        // Rows first, then columns: both passes count the taps that meet a pixel.
        let taps = self.filter.len().div_ceil(self.up.max(1)) as u64;
        let (width, out_width) = (io.inputs[0].shape[2] as u64, io.outputs[0].shape[2].max(1) as u64);
        let out = io.out_elements();
        Cost { flops: 2 * taps * (out + out * width / out_width), bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        let shape = g.shape(node.inputs[0]).to_vec();
        let mut dx = g.apply(self.transposed(&shape[1..3]), &[dy])?;
        // Where a side does not divide, the other one's padding makes it too long.
        for (axis, len) in [(1, shape[1]), (2, shape[2])] {
            if g.shape(dx)[axis] > len {
                dx = g.apply(Slice { axis, start: 0, len }, &[dx])?;
            }
        }
        Ok(vec![Some(dx)])
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        target.stores(dtype)
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        if let Target::Cuda(_) = target {
            return Ok(vec![self.lower_ptx(io, target)?]);
        }
        if let Target::Wgpu(target) = target {
            return match self.cells(io, target)? {
                Some(launches) => Ok(launches),
                None => along(0, &[], io, target, |io| self.bands(io, target)),
            };
        }
        let (x, y) = (&io.inputs[0].shape, &io.outputs[0].shape);
        let (method, tap) = match (self.constant_taps(self.up), self.constant_taps(self.down)) {
            (Some(f), _) if self.down == 1 && self.pad == [self.up - 1, 0] => (Method::Repeat, f),
            (_, Some(f)) if self.up == 1 && self.pad == [0, 0] => (Method::Block, f),
            _ => (Method::Fir, 1.0),
        };
        let launch = Launch::cpu(self.name(), kernel, 1, 1).scalars([x[1], x[2], x[3], y[1], y[2], self.up, self.down]);
        let launch = launch.scalars([self.pad[0], method as usize, self.filter.len()]).scalar(tap * tap);
        Ok(vec![launch.scalars(self.filter.iter().copied())])
    }
}

impl Resample {
    /// Taps that kernels on devices have room for, unless all are equal.
    const MAX_TAPS: usize = 16;

    /// The filter as kernels on devices take it, and whether all taps are as the first.
    fn weights(&self, target: &Target) -> Result<([f32; Self::MAX_TAPS], bool)> {
        let taps = self.filter.len();
        let equal = self.constant_taps(taps).is_some();
        if taps > Self::MAX_TAPS && !equal {
            let reason = format!("the filter has {taps} taps that differ; there is room for {}", Self::MAX_TAPS);
            return Err(Error::unsupported(format!("`resample` on the {} device", target.name()), reason));
        }
        let mut weights = [0.0; Self::MAX_TAPS];
        weights.iter_mut().zip(&self.filter).for_each(|(w, f)| *w = *f);
        Ok((weights, equal))
    }

    fn lower_ptx(&self, io: &Signature, target: &Target) -> Result<Launch> {
        let (x, y) = (&io.inputs[0], &io.outputs[0]);
        let args = [Arg::Input(0), Arg::Output(0)];
        let kernel = Ptx::new(self.name(), ptx!("resample"), x.dtype);
        if let (Some(tap), true) = (self.constant_taps(self.up), self.down == 1 && self.pad == [self.up - 1, 0]) {
            let kernel = kernel.entry(format!("resample_repeat_{}", x.dtype));
            let launch = by_pack(kernel, x.dtype, x.elements(), x.cols(), args);
            return Ok(launch.scalars(divisor(x.shape[2])).scalar(self.up).scalar(tap * tap));
        }
        let (weights, equal) = self.weights(target)?;
        let launch = by_pack(kernel, x.dtype, y.elements(), y.cols(), args);
        let launch = launch.scalars([x.shape[1], x.shape[2]]);
        let launch = launch.scalars([y.shape[1], y.shape[2], self.up].into_iter().flat_map(divisor));
        let launch = launch.scalars([self.down, self.pad[0], self.filter.len()]);
        Ok(launch.scalar(equal).scalars(weights))
    }

    /// The shader's launch for so many samples of rows of x and y. The first of them is `pad` rows behind the first that output row 0 sees.
    fn launch(
        &self,
        io: &Signature,
        target: &WgpuTarget,
        samples: usize,
        [height, out_height, pad]: [usize; 3],
    ) -> Result<Launch> {
        let (weights, equal) = self.weights(&Target::Wgpu(*target))?;
        let (x, y) = (&io.inputs[0].shape, &io.outputs[0].shape);
        let text = wgsl!(io.inputs[0].dtype; "lib/line", "resample");
        let shader = Shader::new(self.name(), text).flag("EQUAL", equal);
        let lines = samples * out_height;
        let grid = target.grid(lines * (y[2] * y[3]).div_ceil(1024));
        let launch = Launch::wgsl(shader, grid, [Arg::Input(0), Arg::Output(0)]);
        let launch = launch.scalars([lines, height, x[2], x[3], out_height, y[2]]);
        Ok(launch.scalars([self.up, self.down, pad, self.pad[0], self.filter.len()]).scalars(weights))
    }

    /// The launches over pieces of the column that all samples are where there are [cells](Resample::has_cells), if there are several.
    fn cells(&self, io: &Signature, target: &WgpuTarget) -> Result<Option<Vec<Launch>>> {
        let (x, y, size) = (&io.inputs[0].shape, &io.outputs[0].shape, io.inputs[0].dtype.size());
        let cells = x[0] * x[1] / self.down;
        let cell = [self.down * x[2] * x[3] * size, self.up * y[2] * y[3] * size];
        let seen = target.rows(cells, &cell).filter(|seen| *seen < cells && self.has_cells(x[1]));
        let Some(seen) = seen else { return Ok(None) };
        let pieces = (0..cells).step_by(seen).map(|first| {
            let count = seen.min(cells - first);
            let launch = self.launch(io, target, 1, [count * self.down, count * self.up, self.pad[0]])?;
            let [x, y] = cell.map(|size| first * size..(first + count) * size);
            Ok(launch.part(Arg::Input(0), x).part(Arg::Output(0), y))
        });
        pieces.collect::<Result<_>>().map(Some)
    }

    /// The launches over all samples, or where there is one over bands of its rows, if it is too large. Bands share rows of x.
    fn bands(&self, io: &Signature, target: &WgpuTarget) -> Result<Vec<Launch>> {
        let (x, y, size) = (&io.inputs[0].shape, &io.outputs[0].shape, io.inputs[0].dtype.size());
        let (height, lines) = (x[1], [x[2] * x[3] * size, y[2] * y[3] * size]);
        let whole = || Ok(vec![self.launch(io, target, x[0], [height, y[1], self.pad[0]])?]);
        let aligned = x[0] == 1 && lines.iter().all(|line| line.is_multiple_of(PLACES));
        let [Some(read), Some(written)] =
            [(height, lines[0]), (y[1], lines[1])].map(|(n, line)| target.rows(n, &[line]))
        else {
            return whole();
        };
        // What `reach` rows of y see is `read` rows of x at most.
        let seen = (read * self.up).checked_sub(self.filter.len()).map_or(0, |rest| rest / self.down + 1);
        let reach = if read == height { written } else { seen.min(written) };
        if !aligned || reach == 0 || reach == y[1] {
            return whole();
        }
        let bands = (0..y[1]).step_by(reach).map(|first| {
            let end = (first + reach).min(y[1]);
            // Rows of x that a row of y sees: from the first whose tap is not before the filter to the last whose tap is not behind it.
            let from = (first * self.down).saturating_sub(self.pad[0]).div_ceil(self.up).min(height - 1);
            let behind = ((end - 1) * self.down + self.filter.len()).saturating_sub(self.pad[0] + 1) / self.up + 1;
            let seen = from..behind.clamp(from + 1, height);
            // Less than none where rows of y lie behind all of x.
            let pad = (self.pad[0] + seen.start * self.up).wrapping_sub(first * self.down);
            let launch = self.launch(io, target, 1, [seen.len(), end - first, pad])?;
            let launch = launch.part(Arg::Input(0), seen.start * lines[0]..seen.end * lines[0]);
            Ok(launch.part(Arg::Output(0), first * lines[1]..end * lines[1]))
        });
        bands.collect()
    }

    /// Whether `down` rows of x make `up` rows of y and no others, so that all samples are one column of such cells: pixels are
    /// repeated, or are means of blocks.
    fn has_cells(&self, height: usize) -> bool {
        let apart = self.filter.len() == self.up * self.down && self.pad == [self.up - 1, 0];
        apart && (self.up == 1 || self.down == 1) && height.is_multiple_of(self.down)
    }
}

/// A running resampling.
struct Shape {
    width: usize,
    height: usize,
    channels: usize,
    out_width: usize,
    up: usize,
    down: usize,
    pad: usize,
    /// What pixels are multiplied by if there is no filter.
    scale: f32,
    filter: Vec<f32>,
}

impl Shape {
    /// Input pixels that output `o` of a line of `n` sees, with their weights.
    #[inline(always)]
    fn taps(&self, o: usize, n: usize) -> impl Iterator<Item = (usize, f32)> {
        let base = o * self.down;
        let first = base.saturating_sub(self.pad).div_ceil(self.up);
        (first..n).map_while(move |i| Some((i, *self.filter.get(i * self.up + self.pad - base)?)))
    }
}

fn kernel(args: &Args) {
    let [height, width, channels, out_height, out_width, up, down] = [0, 1, 2, 3, 4, 5, 6].map(|i| args.int(i));
    let filter = (0..args.int(9)).map(|i| args.float(11 + i)).collect();
    let s = Shape { width, height, channels, out_width, up, down, pad: args.int(7), scale: args.float(10), filter };
    let method = args.int(8);
    let (x, out) = (args.slice::<f32>(0), args.slice_mut::<f32>(1));
    let (image, line) = (height * width * channels, out_width * channels);
    let (rows, work) = (out.len() / line.max(1), out.len().max(x.len()));
    let out = Ptr::new(out);
    tasks(rows, work, |row| {
        let x = &x[row / out_height * image..][..image];
        // SAFETY: one line of pixels a task.
        let out = unsafe { out.part(row * line, line) };
        match method {
            m if m == Method::Repeat as usize => repeat_line(x, &s, row % out_height, out),
            m if m == Method::Block as usize => block_line(x, &s, row % out_height, out),
            _ => with_buffers(width * channels, 0, |buffer, _| fir_line(x, &s, row % out_height, buffer, out)),
        }
    });
}

simd! {
    fn repeat_line(x: &[f32], s: &Shape, o: usize, out: &mut [f32]) {
        let x = &x[o / s.up * s.width * s.channels..];
        for (pixel, out) in x.chunks_exact(s.channels).zip(out.chunks_exact_mut(s.up * s.channels)) {
            for out in out.chunks_exact_mut(s.channels) {
                for (y, x) in out.iter_mut().zip(pixel) { *y = x * s.scale; }
            }
        }
    }
}

simd! {
    fn block_line(x: &[f32], s: &Shape, o: usize, out: &mut [f32]) {
        let (c, line) = (s.channels, s.width * s.channels);
        if s.down == 2 {
            let (a, b) = (&x[2 * o * line..][..line], &x[(2 * o + 1) * line..][..line]);
            for ((a, b), out) in a.chunks_exact(2 * c).zip(b.chunks_exact(2 * c)).zip(out.chunks_exact_mut(c)) {
                let ((a, a2), (b, b2)) = (a.split_at(c), b.split_at(c));
                for (i, y) in out.iter_mut().enumerate() { *y = (a[i] + a2[i] + (b[i] + b2[i])) * s.scale; }
            }
            return;
        }
        out.fill(0.0);
        for line in x[o * s.down * line..][..s.down * line].chunks_exact(line) {
            for (p, pixel) in line.chunks_exact(c).take(s.out_width * s.down).enumerate() {
                let out = &mut out[p / s.down * c..][..c];
                for (y, x) in out.iter_mut().zip(pixel) { *y += x * s.scale; }
            }
        }
    }
}

simd! {
    /// Output line `o` of one image: the lines that it sees into `buffer`, then along that.
    fn fir_line(x: &[f32], s: &Shape, o: usize, buffer: &mut [f32], out: &mut [f32]) {
        let (c, line) = (s.channels, s.width * s.channels);
        buffer.fill(0.0);
        for (i, f) in s.taps(o, s.height) {
            for (b, x) in buffer.iter_mut().zip(&x[i * line..][..line]) { *b += f * x; }
        }
        for (p, out) in out.chunks_exact_mut(c).enumerate() {
            out.fill(0.0);
            for (i, f) in s.taps(p, s.width) {
                for (y, b) in out.iter_mut().zip(&buffer[i * c..][..c]) { *y += f * b; }
            }
        }
    }
}
