//! 2-D convolution over NHWC images as an implicit GEMM, and its weight gradient.

use super::hopper_weight_grad;
use super::linear::expect_weight;
use super::product::{
    BUSY, Blocks, DIRECT_LANES, PlainProduct, Product, ShaderBlocks, Tiling, by_matrices, in_parts, shader_parts,
};
use super::{Activation, Epilogue, TransposeWeight, expect_inputs, expect_real, expect_typed};
use crate::cpu::gemm::{self, Im2col, Matrix, Window, gemm};
use crate::graph::{
    Arg, Args, Cost, CudaTarget, FLAT_GROUP, Graph, Launch, Node, Op, PLACES, Ptx, Shader, Signature, Target, Value,
    WgpuTarget, ptx, wgsl, wgsl_with_matrices,
};
use crate::tensor::{DType, Layout, PANEL, TensorType};
use crate::{Error, Result};
use std::ops::Range;

/// Zeros around an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    pub top: usize,
    pub left: usize,
    pub bottom: usize,
    pub right: usize,
}

impl Padding {
    /// The same on every side.
    pub fn same(p: usize) -> Self {
        Padding { top: p, left: p, bottom: p, right: p }
    }
}

/// y = epilogue(x * W)   x `[B, H, W, C]`, W `[k₀·k₁, C, N]` in panels → y `[B, H', W', N]`,
/// H' = (dilated H + top + bottom − k₀)/stride + 1, W' likewise with k₁. `input_dilation` d puts d−1 zeros between pixels: with it the data
/// gradient of a strided convolution is a convolution too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conv2d {
    /// Rows and columns.
    pub kernel: [usize; 2],
    pub stride: usize,
    pub padding: Padding,
    pub input_dilation: usize,
    pub epilogue: Epilogue,
}

impl Conv2d {
    /// A convolution with a square kernel, "same" padding for odd ones, and stride 1.
    pub fn same(kernel: usize, epilogue: Epilogue) -> Self {
        Conv2d { kernel: [kernel; 2], stride: 1, padding: Padding::same(kernel / 2), input_dilation: 1, epilogue }
    }

    fn window(&self, op: &str, x: &TensorType) -> Result<Window> {
        expect_real(op, "x", x)?;
        let [_, height, width, channels] = x.shape[..] else {
            return Err(Error::shape(op, format!("x must be [B, H, W, C], is {x}")));
        };
        let (p, [rows, cols]) = (self.padding, self.kernel);
        let size = |n: usize, kernel: usize, a: usize, b: usize| {
            let padded = (n.max(1) - 1) * self.input_dilation + 1 + a + b;
            (padded.checked_sub(kernel)).filter(|_| kernel > 0 && self.stride > 0).map(|n| n / self.stride + 1)
        };
        let (Some(out_height), Some(out_width)) =
            (size(height, rows, p.top, p.bottom), size(width, cols, p.left, p.right))
        else {
            return Err(Error::shape(op, format!("a {rows}×{cols} kernel does not fit into {x} with {p:?}")));
        };
        let (kernel, stride, dilation) = (self.kernel, self.stride, self.input_dilation);
        let (pad_top, pad_left) = (p.top, p.left);
        Ok(Window { height, width, channels, out_height, out_width, kernel, stride, pad_top, pad_left, dilation })
    }

    /// A 1×1 convolution that reads every pixel once: a plain matrix product.
    fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.stride == 1 && self.input_dilation == 1 && self.padding == Padding::default()
    }

    /// The data gradient of a strided convolution, as reverse mode and fusion leave it: `kernels/conv2d_phases.cu`.
    fn has_phases(&self) -> bool {
        let e = &self.epilogue;
        let plain = !e.bias && !e.by_sample() && e.activation == Activation::Identity;
        self.input_dilation > 1 && self.stride == 1 && plain
    }
}

/// Tiles of a convolution by phases, pixels of the output that are `dilation` apart, each under its own taps. The first phase has the
/// most, and no phase more pixels than that.
fn phases(w: &Window, [m, n, _]: [usize; 3], target: &CudaTarget) -> Blocks {
    let d = w.dilation;
    let apart = |size: usize| size.div_ceil(d);
    let images = m / (w.out_height * w.out_width);
    let pixels = images * apart(w.out_height) * apart(w.out_width);
    Blocks::new(d * d, [pixels, n, apart(w.kernel[0]) * apart(w.kernel[1]) * w.channels], 128, target)
}

/// Appends a window to a launch; read back by [`window_of`].
fn window_scalars(launch: Launch, w: &Window) -> Launch {
    launch.scalars(window_sizes(w))
}

fn window_sizes(w: &Window) -> [usize; WINDOW_SCALARS] {
    let [rows, cols] = w.kernel;
    let (size, out) = ([w.height, w.width, w.channels], [w.out_height, w.out_width]);
    [size[0], size[1], size[2], out[0], out[1], rows, cols, w.stride, w.pad_top, w.pad_left, w.dilation]
}

fn window_of(args: &Args, at: usize) -> Window {
    let s = |i| args.int(at + i);
    Window {
        height: s(0),
        width: s(1),
        channels: s(2),
        out_height: s(3),
        out_width: s(4),
        kernel: [s(5), s(6)],
        stride: s(7),
        pad_top: s(8),
        pad_left: s(9),
        dilation: s(10),
    }
}

const WINDOW_SCALARS: usize = 11;

/// The scalars of `shaders/lib/corners.wgsl`; there are `pixels` in the output.
fn window_words(launch: Launch, w: &Window, pixels: usize) -> Launch {
    let sizes = [w.height, w.width, w.channels, w.out_height, w.out_width, w.kernel[0], w.kernel[1]];
    launch.scalars(sizes).scalars([w.stride, w.pad_top, w.pad_left, pixels, w.taps() * w.channels])
}

impl Op for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 2 + self.epilogue.operands())?;
        let [k, n] = expect_weight(self.name(), inputs[1], inputs[0].dtype)?;
        let w = self.window(self.name(), inputs[0])?;
        if k != w.taps() * w.channels {
            let reason = format!("a weight of {} does not fit x {} and kernel {:?}", inputs[1], inputs[0], self.kernel);
            return Err(Error::shape(self.name(), reason));
        }
        let out = inputs[0].with_shape([inputs[0].shape[0], w.out_height, w.out_width, n]);
        self.epilogue.check(self.name(), inputs, &out)?;
        Ok(vec![out])
    }

    fn cost(&self, io: &Signature) -> Cost {
        let k = io.inputs[1].rows() as u64;
        Cost { flops: io.out_elements() * (2 * k + self.epilogue.flops()), bytes: self.epilogue.bytes(io) }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], wanted: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None; node.inputs.len()]) };
        let (x, w) = (node.inputs[0], node.inputs[1]);
        let inner =
            Epilogue { activation: Activation::Identity, gate: false, residual: false, scale: 1.0, ..self.epilogue };
        let inputs = node.inputs[..2 + inner.operands()].to_vec();
        let (dy, operands) = self
            .epilogue
            .grad(g, &node.inputs, dy, wanted, |g| g.apply(Conv2d { epilogue: inner, ..*self }, &inputs))?;
        // First what needs x, so that x need not be kept while dx is there.
        let dw = if wanted[1] {
            let conv = Conv2d { epilogue: Epilogue::default(), ..*self };
            let shape = g.shape(w).to_vec();
            Some(g.apply(Conv2dWeightGrad { conv, shape }, &[x, dy])?)
        } else {
            None
        };
        let dx = if wanted[0] { Some(self.data_grad(g, x, w, dy)?) } else { None };
        Ok([dx, dw].into_iter().chain(operands).collect())
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        target.stores(dtype)
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let w = self.window(self.name(), &io.inputs[0])?;
        let n = io.outputs[0].cols();
        Ok(match target {
            Target::Cuda(target) => {
                let (pointwise, pixels) = (self.is_pointwise(), io.outputs[0].rows());
                let product = Product {
                    name: self.name(),
                    file: if pointwise { ptx!("linear") } else { ptx!("conv2d") },
                    dtype: io.inputs[0].dtype,
                    sizes: [pixels, n, w.taps() * w.channels],
                    window: if pointwise { &Window::matrix(w.channels) } else { &w },
                    images: if pointwise { pixels } else { io.inputs[0].shape[0] },
                    rows_per_sample: w.out_height * w.out_width,
                    epilogue: &self.epilogue,
                    sample_stride: self.epilogue.sample_stride(io),
                    scalars: if pointwise { &[] } else { &window_sizes(&w) },
                };
                match self.has_phases() && product.sizes[0] * n > 0 {
                    true => product.by(ptx!("conv2d_phases"), phases(&w, product.sizes, target), None),
                    false => match self.thin(&product, target) {
                        Some(launch) => vec![launch],
                        None => product.launches(target),
                    },
                }
            }
            Target::Cpu => {
                let launch = Launch::cpu(self.name(), kernel, io.inputs.len(), 1);
                let launch = window_scalars(launch, &w).scalar(n).scalar(self.is_pointwise());
                vec![self.epilogue.scalars(launch, self.epilogue.sample_stride(io))]
            }
            Target::Wgpu(_) if io.outputs[0].elements() == 0 => vec![],
            Target::Wgpu(target) => {
                let (samples, dtype) = (io.inputs[0].shape[0], io.inputs[0].dtype);
                let stride = self.epilogue.sample_stride(io);
                let bias = if self.epilogue.by_sample() { stride * dtype.size() } else { 0 };
                let bands = bands(&w, samples, n, bias, dtype.size(), target);
                let whole = bands.len() == 1;
                let launches = |band| self.shader_launches(dtype, target, &w, [n, stride], band, whole);
                bands.into_iter().flat_map(launches).collect()
            }
        })
    }
}

impl Conv2d {
    /// The launch for images that have a few channels on one side, in 16 bits: `kernels/conv2d_thin.cu`.
    fn thin(&self, product: &Product, target: &CudaTarget) -> Option<Launch> {
        let (w, [pixels, n, k]) = (product.window, product.sizes);
        if product.dtype == DType::F32 || pixels * n == 0 || product.scalars.is_empty() {
            return None;
        }
        let launch = |entry: &str, shared: usize, grid: [usize; 3], threads: usize, more: &[usize]| {
            let kernel = Ptx::new(self.name(), ptx!("conv2d_thin"), product.dtype);
            let kernel = kernel.entry(format!("conv2d_{entry}_{}", product.dtype)).shared(shared);
            let launch = Launch::ptx(kernel, grid, threads, self.epilogue.arguments()).scalars(window_sizes(w));
            let sizes = [pixels, n, k, product.rows_per_sample];
            self.epilogue.scalars(launch.scalars(sizes).scalars(more.iter().copied()), product.sample_stride)
        };
        let square = w.kernel == [3, 3] && w.stride == 1 && w.dilation == 1;
        if n <= 4 && square && w.channels.is_multiple_of(32) && w.channels <= 512 {
            let tiles = product.images * w.out_height.div_ceil(8) * w.out_width.div_ceil(16);
            return Some(launch("to", w.channels / 32 * 2560, [tiles, 1, 1], 384, &[]));
        }
        if w.channels <= 8 && k <= 96 {
            let blocks = pixels.div_ceil(64);
            // Two blocks a multiprocessor or more, and no more weights than fit.
            let parts = (2 * target.multiprocessors as usize / blocks).max(n.div_ceil(320));
            let columns = n.div_ceil(parts).next_multiple_of(32);
            let shared = columns.min(n).div_ceil(16) * k.div_ceil(16) * 16 * 32;
            return Some(launch("from", shared, [blocks, n.div_ceil(columns), 1], 128, &[columns]));
        }
        None
    }
}

/// The text of `conv2d` for hardware: these files with what they have in common.
macro_rules! conv2d_text {
    ($dtype:expr; $($file:literal),+) => {
        wgsl!(
            $dtype; "lib/activation", "lib/parts", "lib/product_sizes", "lib/panels", "lib/corners", "lib/blocks", "conv2d_blocks",
            $($file),+
        )
    };
}

/// What a launch makes of a convolution: samples of the batch, and rows of the output of each of them.
#[derive(Clone, Debug, PartialEq)]
struct Band {
    samples: Range<usize>,
    rows: Range<usize>,
}

/// One band, or as many as it takes for a launch to see pixels on both sides and `bias` bytes of each sample: of several samples, or
/// of one sample if not even that can be seen. One band too where neither can be. Output pixels have `n` columns, numbers `size` bytes.
fn bands(w: &Window, samples: usize, n: usize, bias: usize, size: usize, target: &WgpuTarget) -> Vec<Band> {
    let lines = [w.width * w.channels * size, w.out_width * n * size];
    let seen = target.rows(samples, &[w.height * lines[0], w.out_height * lines[1], bias]);
    let rows = || band_rows(w, lines, target).filter(|_| samples == 1 || bias.is_multiple_of(PLACES));
    let (seen, rows) = match (seen, seen.is_none().then(rows).flatten()) {
        (None, Some(rows)) => (1, rows),
        (seen, _) => (seen.unwrap_or(samples), w.out_height),
    };
    let pieces = |n: usize, step: usize| (0..n).step_by(step.max(1)).map(move |at| at..(at + step).min(n));
    let bands = pieces(samples, seen)
        .flat_map(|samples| pieces(w.out_height, rows).map(move |rows| Band { samples: samples.clone(), rows }));
    bands.collect()
}

/// How many rows of one sample's output a launch can see, if every row begins where an argument may begin and meets one of x.
fn band_rows(w: &Window, lines: [usize; 2], target: &WgpuTarget) -> Option<usize> {
    let bottom = ((w.out_height - 1) * w.stride + w.kernel[0]).saturating_sub(w.height + w.pad_top);
    let padding = w.pad_top.max(bottom);
    let plain = w.dilation == 1 && padding < w.kernel[0] && lines.iter().all(|line| line.is_multiple_of(PLACES));
    let [read, written] = [target.rows(w.height, &lines[..1])?, target.rows(w.out_height, &lines[1..])?];
    let reach = if read == w.height { written } else { read.checked_sub(w.kernel[0])? / w.stride + 1 };
    plain.then_some(reach.min(written))
}

impl Band {
    /// Rows of x under it.
    fn read(&self, w: &Window) -> Range<usize> {
        if self.rows.len() == w.out_height {
            return 0..w.height;
        }
        let end = ((self.rows.end - 1) * w.stride + w.kernel[0]).saturating_sub(w.pad_top);
        (self.rows.start * w.stride).saturating_sub(w.pad_top)..end.min(w.height)
    }

    /// The window over those rows alone.
    fn window(&self, w: &Window) -> Window {
        let read = self.read(w);
        let pad_top = w.pad_top + read.start - self.rows.start * w.stride;
        Window { height: read.len(), out_height: self.rows.len(), pad_top, ..*w }
    }

    /// Where it lies among all rows of all samples: bytes of x, and of what has `n` columns.
    fn bytes(&self, w: &Window, n: usize, size: usize) -> [Range<usize>; 2] {
        let Range { start, end } = self.samples;
        let among = |rows: Range<usize>, height: usize, line: usize| {
            (start * height + rows.start) * line * size..((end - 1) * height + rows.end) * line * size
        };
        [among(self.read(w), w.height, w.width * w.channels), among(self.rows.clone(), w.out_height, w.out_width * n)]
    }
}

impl Conv2d {
    /// The launches for a band: a convolution of the rows of x that it reads. It is cut into parts only if it is the `whole`.
    fn shader_launches(
        &self,
        dtype: DType,
        target: &WgpuTarget,
        w: &Window,
        [n, stride]: [usize; 2],
        band: Band,
        whole: bool,
    ) -> Vec<Launch> {
        let size = dtype.size();
        let wide = if stride == n { 0 } else { stride };
        let launches = self.band_launches(dtype, target, &band.window(w), [band.samples.len(), n, wide], whole);
        let [x, y] = band.bytes(w, n, size);
        let bias = band.samples.start * stride * size..band.samples.end * stride * size;
        let part = |launch| {
            let launch = self.epilogue.part(launch, x.clone(), y.clone());
            match self.epilogue.by_sample() {
                true => launch.part(self.epilogue.arguments()[3], bias.clone()),
                false => launch,
            }
        };
        launches.into_iter().map(part).collect()
    }

    /// The launches for a window over so many samples, with `n` columns, rows of samples being `wide` numbers apart if that is not 0.
    fn band_launches(
        &self,
        dtype: DType,
        target: &WgpuTarget,
        w: &Window,
        [samples, n, wide]: [usize; 3],
        whole: bool,
    ) -> Vec<Launch> {
        let pixels = samples * w.out_height * w.out_width;
        let shader = |text| {
            let shader = self.epilogue.shader(Shader::new(self.name(), text), wide);
            shader.constant("DILATION", w.dilation as u32)
        };
        let (fours, columns) = (w.channels.is_multiple_of(4), self.epilogue.by_fours(n, wide));
        let words = |launch| window_words(launch, w, pixels).scalar(n);
        if target.software && fours {
            let text = wgsl!(dtype; "lib/activation", "lib/epilogue", "lib/corners", "lib/window", "conv2d");
            let grid = target.grid((pixels.div_ceil(8) * n.div_ceil(8)).div_ceil(DIRECT_LANES));
            let launch = Launch::wgsl(shader(text).entry("direct"), grid, self.epilogue.arguments());
            return vec![words(launch).scalar(self.epilogue.scale)];
        }
        let sizes = [pixels, n, w.taps() * w.channels];
        let parts = if whole { shader_parts(sizes, target) } else { 1..=1 };
        let rows = [pixels, n, w.out_height * w.out_width, wide];
        let scalars = |blocks: ShaderBlocks| {
            let scale = self.epilogue.scale;
            move |launch| window_words(launch, w, pixels).scalars([n, blocks.part, blocks.parts]).scalar(scale)
        };
        let eights = w.channels.is_multiple_of(8) && columns;
        let by_matrix_blocks = ShaderBlocks::by_matrices(sizes, parts.clone(), dtype, target);
        if let Some(blocks) = by_matrix_blocks.filter(|_| eights) {
            let text = wgsl_with_matrices!(
                16, dtype; "lib/activation", "lib/parts", "lib/product_sizes", "lib/panels", "lib/corners", "conv2d_blocks",
                "lib/x_fours", "lib/y_fours", "lib/matrix_blocks", "conv2d_matrices"
            );
            let shader = blocks.shader(shader(text));
            return in_parts(shader, target, &self.epilogue, rows, &blocks, dtype, scalars(blocks));
        }
        if let Some(edge) = target.matrices(dtype) {
            let text = wgsl_with_matrices!(
                edge, dtype; "lib/activation", "lib/epilogue", "lib/corners", "lib/window", "conv2d",
                "lib/matrix_product", "lib/matrix_panels", "conv2d_cooperative"
            );
            let launch = by_matrices(shader(text), target, [1, pixels, n], self.epilogue.arguments());
            return vec![words(launch).scalar(self.epilogue.scale)];
        }
        let text = match (fours, columns) {
            (true, true) => conv2d_text!(dtype; "lib/x_fours", "conv2d_fours", "lib/y_fours"),
            (true, false) => conv2d_text!(dtype; "lib/x_fours", "conv2d_fours", "lib/epilogue", "lib/y_ones"),
            (false, true) => conv2d_text!(dtype; "lib/window", "conv2d_ones", "lib/y_fours"),
            (false, false) => conv2d_text!(dtype; "lib/window", "conv2d_ones", "lib/epilogue", "lib/y_ones"),
        };
        let blocks = ShaderBlocks::new(1, sizes, parts, target);
        in_parts(blocks.shader(shader(text)), target, &self.epilogue, rows, &blocks, dtype, scalars(blocks))
    }

    /// dx: dy, with stride − 1 zeros between its pixels, convolved with the turned kernel.
    fn data_grad(&self, g: &mut Graph, x: Value, w: Value, dy: Value) -> Result<Value> {
        if self.input_dilation != 1 {
            return Err(Error::unsupported("the gradient of a dilated conv2d", "only gradients use input dilation"));
        }
        let ([rows, cols], p) = (self.kernel, self.padding);
        let turned = g.apply(TransposeWeight { taps: rows * cols }, &[w])?;
        let (size, out) = (g.shape(x).to_vec(), g.shape(dy).to_vec());
        // What is missing at the far side so that the gradient has x's size; negative if the last pixels were never read.
        let far = |n: usize, m: usize, k: usize, near: usize| {
            let dilated = (m - 1) * self.stride + 1;
            (n + k - 1).checked_sub(dilated + (k - 1 - near.min(k - 1)))
        };
        let (near_top, near_left) = ((rows - 1).checked_sub(p.top), (cols - 1).checked_sub(p.left));
        let (Some(top), Some(left), Some(bottom), Some(right)) =
            (near_top, near_left, far(size[1], out[1], rows, p.top), far(size[2], out[2], cols, p.left))
        else {
            return Err(Error::unsupported(
                "the gradient of conv2d",
                format!("padding {p:?} exceeds the {rows}×{cols} kernel"),
            ));
        };
        let padding = Padding { top, left, bottom, right };
        let conv = Conv2d {
            kernel: self.kernel,
            stride: 1,
            padding,
            input_dilation: self.stride,
            epilogue: Epilogue::default(),
        };
        g.apply(conv, &[dy, turned])
    }
}

fn kernel(args: &Args) {
    let window = window_of(args, 0);
    let n = args.int(WINDOW_SCALARS);
    let pixels = window.out_height * window.out_width;
    let epilogue = Epilogue::of(args, WINDOW_SCALARS + 2, pixels);
    let out = args.slice_mut::<f32>(args.len() - 1);
    let (m, k) = (out.len() / n.max(1), window.taps() * window.channels);
    let (x, w) = (args.slice(0), args.slice(1));
    if args.flag(WINDOW_SCALARS + 1) {
        gemm(&Matrix { data: x, stride: k }, w, [m, n, k], &epilogue, out);
    } else {
        gemm(&Im2col { data: x, window }, w, [m, n, k], &epilogue, out);
    }
}

/// dW of [`Conv2d`]: x `[B, H, W, C]`, dy `[B, H', W', N]` → dW in panels, f32 whatever type x and dy have; `shape` is the weight's.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv2dWeightGrad {
    pub conv: Conv2d,
    pub shape: Vec<usize>,
}

impl Op for Conv2dWeightGrad {
    fn name(&self) -> &'static str {
        "conv2d_weight_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 2)?;
        let w = self.conv.window(self.name(), inputs[0])?;
        let out = TensorType { layout: Layout::Panels, ..TensorType::f32(self.shape.clone()) };
        let dy = [inputs[0].shape[0], w.out_height, w.out_width, out.cols()];
        expect_typed(self.name(), "dy", inputs[1], inputs[0].dtype, &dy)?;
        if out.rows() != w.taps() * w.channels {
            return Err(Error::shape(self.name(), format!("x {} does not make {out}", inputs[0])));
        }
        Ok(vec![out])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 2 * io.out_elements() * io.inputs[1].rows() as u64, bytes: io.bytes() }
    }

    fn takes(&self, _: DType, target: &Target) -> bool {
        matches!(target, Target::Cuda(_))
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let w = self.conv.window(self.name(), &io.inputs[0])?;
        Ok(match target {
            Target::Cuda(target) => {
                let pointwise = self.conv.is_pointwise();
                let product = PlainProduct {
                    name: self.name(),
                    file: ptx!("weight_grad"),
                    entry: if pointwise { "linear_weight_grad" } else { self.name() },
                    dtype: io.inputs[0].dtype,
                    out: io.outputs[0].dtype,
                    largest: 128,
                    batch: 1,
                    sizes: [w.taps() * w.channels, io.inputs[1].cols(), io.inputs[1].rows()],
                    stored: [io.outputs[0].stored(), PANEL],
                    scalars: if pointwise { &[] } else { &window_sizes(&w) },
                };
                let (matrix, pixels) = (Window::matrix(w.channels), io.inputs[1].rows());
                let (window, images) = if pointwise { (&matrix, pixels) } else { (&w, io.inputs[0].shape[0]) };
                hopper_weight_grad::launches(&product, window, images, target)
            }
            Target::Cpu => {
                let launch = Launch::cpu(self.name(), weight_grad_kernel, 2, 1);
                vec![window_scalars(launch, &w).scalar(io.inputs[1].cols())]
            }
            Target::Wgpu(target) => weight_grad_launches(self.name(), io, &w, target),
        })
    }
}

/// Pixels that one part of a weight gradient sums over, at least if it need not be split, and at most: longer sums lose digits.
const PART: [usize; 2] = [512, 8192];
/// Most bytes of all parts of a weight gradient.
const PART_BYTES: usize = 1 << 26;

/// x, dy → dW on the wgpu device: sums over parts of the pixels, so that there are enough workgroups, and then over the parts; both for
/// each band of what an adapter cannot see at once.
pub(super) fn weight_grad_launches(name: &'static str, io: &Signature, w: &Window, target: &WgpuTarget) -> Vec<Launch> {
    let (n, elements) = (io.inputs[1].cols(), io.outputs[0].stored());
    if elements == 0 {
        return vec![];
    }
    let size = io.inputs[0].dtype.size();
    let samples = io.inputs[0].rows() / (w.height * w.width);
    let bands = bands(w, samples, n, 0, size, target);
    if bands.len() <= 1 {
        let sums = WeightSums::new(name, w, [io.inputs[1].rows(), n, elements], target);
        let (x, dy) = (Arg::Input(0), Arg::Input(1));
        if sums.parts == 1 {
            return vec![sums.launch(target, [x, dy, Arg::Output(0)])];
        }
        let first = sums.launch(target, [x, dy]).with_scratch(sums.parts * elements);
        return vec![first, add_parts(name, target, [elements, sums.parts], false)];
    }
    let each: Vec<WeightSums> = bands
        .iter()
        .map(|band| {
            let pixels = band.samples.len() * band.rows.len() * w.out_width;
            WeightSums::new(name, &band.window(w), [pixels, n, elements], target)
        })
        .collect();
    let most = each.iter().map(|sums| sums.parts).max().unwrap_or(1);
    let mut launches = Vec::new();
    for (i, (band, sums)) in bands.iter().zip(&each).enumerate() {
        // All leave their sums in the scratch memory of the first.
        let launch = match i {
            0 => sums.launch(target, [Arg::Input(0), Arg::Input(1)]).with_scratch(most * elements),
            _ => sums.launch(target, [Arg::Input(0), Arg::Input(1), Arg::Left(0, 0)]),
        };
        let [x, dy] = band.bytes(w, n, size);
        launches.push(launch.part(Arg::Input(0), x).part(Arg::Input(1), dy));
        launches.push(add_parts(name, target, [elements, sums.parts], i > 0));
    }
    launches
}

/// Adds up the parts that the first launch's scratch memory holds, and what is there already if it is to `add`.
fn add_parts(name: &'static str, target: &WgpuTarget, [elements, parts]: [usize; 2], add: bool) -> Launch {
    let shader = Shader::new(name, wgsl!("lib/flat", "sum_parts")).flag("ADD", add);
    let grid = target.grid(elements.div_ceil(FLAT_GROUP));
    Launch::wgsl(shader, grid, [Arg::Left(0, 0), Arg::Output(0)]).scalars([elements, parts])
}

/// How a weight gradient is summed over some pixels.
struct WeightSums {
    shader: Shader,
    groups: usize,
    window: Window,
    pixels: usize,
    n: usize,
    /// Pixels of a part, and how many parts there are.
    part: usize,
    parts: usize,
}

impl WeightSums {
    /// For so many pixels of `n` columns under a window, and dW of so many stored elements.
    fn new(name: &'static str, w: &Window, [pixels, n, elements]: [usize; 3], target: &WgpuTarget) -> WeightSums {
        let terms = w.taps() * w.channels;
        let most = PART_BYTES.min(target.argument_bytes as usize) / (4 * elements);
        let four = w.channels.is_multiple_of(4) && n.is_multiple_of(4);
        let (shader, groups, part) = if four && !target.software {
            let least = pixels.div_ceil(PART[1]).min(most).max(1);
            let parts = least..=least.max(pixels.div_ceil(64).min(most).min(64));
            let blocks = ShaderBlocks::new(1, [terms, n, pixels], parts, target);
            let text = wgsl!("lib/x_fours", "lib/product_sizes", "lib/corners", "lib/blocks", "weight_grad_blocks");
            (blocks.shader(Shader::new(name, text)), blocks.count, blocks.part)
        } else {
            let direct = target.software && four && w.dilation == 1;
            let invocations = terms / 4 * n.div_ceil(PANEL) * 2;
            let tiles = Tiling::new(1, terms, n.next_multiple_of(PANEL));
            let groups = if direct { invocations.div_ceil(DIRECT_LANES) } else { tiles.count };
            let busy = if target.software { 8 } else { 2 * BUSY };
            let wanted = busy.div_ceil(groups).min(pixels.div_ceil(PART[0])).max(pixels.div_ceil(PART[1]));
            let part = pixels.div_ceil(wanted.min(most).max(1)).max(1).next_multiple_of(16);
            let parts = pixels.div_ceil(part).max(1);
            let shader = Shader::new(name, wgsl!("lib/product", "lib/corners", "lib/window", "weight_grad"));
            match direct {
                true => (shader.entry("direct"), (parts * invocations).div_ceil(DIRECT_LANES), part),
                false => (tiles.shader(shader).entry("tiled"), parts * tiles.count, part),
            }
        };
        let (shader, parts) = (shader.constant("DILATION", w.dilation as u32), pixels.div_ceil(part).max(1));
        WeightSums { shader, groups, window: *w, pixels, n, part, parts }
    }

    fn launch(&self, target: &WgpuTarget, args: impl IntoIterator<Item = Arg>) -> Launch {
        let launch = Launch::wgsl(self.shader.clone(), target.grid(self.groups), args);
        window_words(launch, &self.window, self.pixels).scalars([self.n, self.part, self.parts])
    }
}

fn weight_grad_kernel(args: &Args) {
    let window = window_of(args, 0);
    let n = args.int(WINDOW_SCALARS);
    let dy = args.slice::<f32>(1);
    let sizes = [dy.len() / n.max(1), n, window.taps(), window.channels];
    gemm::weight_grad(&Im2col { data: args.slice(0), window }, dy, sizes, args.slice_mut(2));
}
