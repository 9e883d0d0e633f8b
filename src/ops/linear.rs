//! y = epilogue(x · W): linear layers, and their weight gradient.

use super::conv2d::weight_grad_launches;
use super::hopper_weight_grad;
use super::product::{DIRECT_LANES, PlainProduct, Product, ShaderBlocks, by_matrices, in_parts, shader_parts};
use super::{
    Activate, ActivateGrad, Activation, Affine, GateGrad, Reduce, TransposeWeight, expect_inputs, expect_real,
    expect_typed,
};
use crate::cpu::gemm::{self, Matrix, Window, gemm};
use crate::graph::{
    Arg, Args, Cost, Graph, Launch, Node, Op, Shader, Signature, Target, Value, WgpuTarget, ptx, wgsl,
    wgsl_with_matrices,
};
use crate::tensor::{DType, Layout, PANEL, TensorType};
use crate::{Error, Result};
use std::ops::Range;

/// What a matrix product or convolution does before it stores: `y = (act(xW + bias + sample_bias) · gate + residual) · scale`.
/// The operands follow x and W in this order, those that are there; a sample bias and a gate are not there both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Epilogue {
    /// `[N]`
    pub bias: bool,
    /// `[B, N]` or wider, see `sample_first`, one row for each sample (the first dimension of x): a time embedding, say.
    pub sample_bias: bool,
    pub activation: Activation,
    /// `[B, N]` or wider, a row of factors for each sample (adaLN-Zero, Peebles & Xie 2022).
    pub gate: bool,
    /// The column at which the sample bias or gate begins in an operand that is wider than N: `[B, ≥ sample_first + N]`.
    pub sample_first: usize,
    /// The output's shape.
    pub residual: bool,
    pub scale: f32,
}

impl Default for Epilogue {
    fn default() -> Self {
        let activation = Activation::Identity;
        Epilogue {
            bias: false,
            sample_bias: false,
            activation,
            gate: false,
            sample_first: 0,
            residual: false,
            scale: 1.0,
        }
    }
}

impl Epilogue {
    /// Only a bias.
    pub fn bias() -> Self {
        Epilogue { bias: true, ..Default::default() }
    }

    /// Number of operands.
    pub(crate) fn operands(&self) -> usize {
        self.bias as usize + self.sample_bias as usize + self.gate as usize + self.residual as usize
    }

    /// Whether each sample has a row of an operand.
    pub(crate) fn by_sample(&self) -> bool {
        self.sample_bias || self.gate
    }

    /// True if kernels of 16 bits may send rows of `n` columns by eight, straight from registers: `Epilogue::whole` of
    /// `kernels/lib/epilogue.cuh`, whose operands begin at multiples of 16 bytes.
    pub(crate) fn is_whole(&self, n: usize, sample_stride: usize) -> bool {
        let activation = match self.activation {
            Activation::Gelu | Activation::Relu => false,
            Activation::Silu | Activation::GeluTanh => !self.gate,
            Activation::Identity => true,
        };
        n.is_multiple_of(8) && activation && self.by_fours(n, sample_stride)
    }

    /// True if four of n columns lie together in all operands.
    pub(crate) fn by_fours(&self, n: usize, sample_stride: usize) -> bool {
        let of_sample = sample_stride.is_multiple_of(4) && self.sample_first.is_multiple_of(4);
        n.is_multiple_of(4) && (of_sample || !self.by_sample())
    }

    /// Checks the operands' shapes.
    pub(crate) fn check(&self, op: &str, inputs: &[&TensorType], out: &TensorType) -> Result<()> {
        if self.sample_bias && self.gate {
            return Err(Error::shape(op, "a sample bias and a gate in one epilogue"));
        }
        expect_inputs(op, inputs, 2 + self.operands())?;
        let mut operands = inputs[2..].iter();
        let (n, samples) = (out.cols(), out.shape.first().copied().unwrap_or(1));
        let mut check = |wanted: bool, what, shape: &[usize]| match wanted.then(|| operands.next()).flatten() {
            Some(ty) => expect_typed(op, what, ty, out.dtype, shape),
            None => Ok(()),
        };
        check(self.bias, "bias", &[n])?;
        // As wide as it likes, if the columns are there.
        let wide =
            inputs.get(2 + self.bias as usize).map_or(0, |ty| ty.cols()).max(self.sample_first.saturating_add(n));
        check(self.sample_bias, "sample bias", &[samples, wide])?;
        check(self.gate, "gate", &[samples, wide])?;
        check(self.residual, "residual", &out.shape)
    }

    /// Numbers between the rows of samples in their operand.
    pub(crate) fn sample_stride(&self, io: &Signature) -> usize {
        if self.by_sample() { io.inputs[2 + self.bias as usize].cols() } else { io.outputs[0].cols() }
    }

    /// Bytes that an op with it reads and writes: of a wider operand, N columns.
    pub(crate) fn bytes(&self, io: &Signature) -> u64 {
        let operand = self.by_sample().then(|| &io.inputs[2 + self.bias as usize]);
        let unread = |ty: &TensorType| ty.rows() * (ty.cols() - io.outputs[0].cols()) * ty.dtype.size();
        io.bytes() - operand.map_or(0, unread) as u64
    }

    /// Appends its flags to a launch; read back by [`Epilogue::of`].
    pub(crate) fn scalars(&self, launch: Launch, sample_stride: usize) -> Launch {
        let sample_use = self.sample_bias as usize + 2 * self.gate as usize;
        let launch = launch.scalars([self.bias as usize, sample_use, self.residual as usize]);
        launch.scalars([sample_stride, self.sample_first]).scalar(self.activation as usize).scalar(self.scale)
    }

    /// Sets the overrides of `shaders/lib/epilogue.wgsl`.
    /// `wide` is what rows of samples are apart where that is not N, so that one shader does for all layers elsewhere; or 0.
    pub(crate) fn shader(&self, shader: Shader, wide: usize) -> Shader {
        let shader = shader.constant("SAMPLE_STRIDE", wide as u32).constant("SAMPLE_FIRST", self.sample_first as u32);
        let shader = shader.flag("BIAS", self.bias).flag("SAMPLE_BIAS", self.sample_bias);
        let shader = shader.flag("GATE", self.gate).flag("RESIDUAL", self.residual);
        shader.constant("ACTIVATION", self.activation as u32)
    }

    /// The arguments of a kernel with that epilogue: x, W, bias, sample bias or gate, residual, y. What is absent is not read; x stands
    /// for it.
    pub(crate) fn arguments(&self) -> [Arg; 6] {
        let mut next = 1;
        let operands = [self.bias, self.by_sample(), self.residual].map(|there| {
            next += there as usize;
            Arg::Input(if there { next } else { 0 })
        });
        [Arg::Input(0), Arg::Input(1), operands[0], operands[1], operands[2], Arg::Output(0)]
    }

    /// Lets a launch with these arguments see only some bytes of x, and of y and the residual.
    pub(crate) fn part(&self, launch: Launch, x: Range<usize>, y: Range<usize>) -> Launch {
        let launch = launch.part(Arg::Input(0), x).part(Arg::Output(0), y.clone());
        if self.residual { launch.part(self.arguments()[4], y) } else { launch }
    }

    /// The epilogue of a running kernel: operands from argument 2, flags from scalar `at`.
    pub(crate) fn of<'a>(args: &'a Args, at: usize, rows_per_sample: usize) -> gemm::Epilogue<'a> {
        let mut next = 2;
        let mut operand = |i: usize| {
            args.flag(at + i).then(|| {
                next += 1;
                args.slice::<f32>(next - 1)
            })
        };
        let (bias, sample, residual) = (operand(0), operand(1), operand(2));
        let sample = sample.map(|data| gemm::SampleRows { data, stride: args.int(at + 3), first: args.int(at + 4) });
        let [sample_bias, gate] = [1, 2].map(|wanted| sample.filter(|_| args.int(at + 1) == wanted));
        let (activation, scale) = (Activation::from_code(args.int(at + 5)), args.float(at + 6));
        gemm::Epilogue { bias, sample_bias, rows_per_sample, activation, gate, residual, scale }
    }

    /// FLOPs an output element beyond the product.
    pub(crate) fn flops(&self) -> u64 {
        let act = if self.activation == Activation::Identity { 0 } else { 8 };
        self.operands() as u64 + act + (self.scale != 1.0) as u64
    }

    /// Splits dy into the gradient of the product and those of the operands, in input order from input 2 of `inputs`.
    /// `product` makes the product again (bias included) where the activation's derivative or the gate's gradient needs it.
    pub(crate) fn grad(
        &self,
        g: &mut Graph,
        inputs: &[Value],
        dy: Value,
        wanted: &[bool],
        product: impl FnOnce(&mut Graph) -> Result<Value>,
    ) -> Result<(Value, Vec<Option<Value>>)> {
        let dy = if self.scale == 1.0 { dy } else { g.apply(Affine::scale(self.scale), &[dy])? };
        let residual = dy;
        if self.by_sample() && g.ty(inputs[2 + self.bias as usize]).cols() != g.ty(dy).cols() {
            let reason = "fusion for inference makes it; fuse for training";
            return Err(Error::unsupported("the gradient of an epilogue that reads columns of its operand", reason));
        }
        let active = self.activation != Activation::Identity;
        let x = if active || self.gate { Some(product(g)?) } else { None };
        let (mut dy, mut gate) = (dy, None);
        if let (Some(x), true) = (x, self.gate) {
            let y = if active { g.apply(Activate(self.activation), &[x])? } else { x };
            let grads = g.apply_all(GateGrad, &[y, inputs[2 + self.bias as usize], dy])?;
            (dy, gate) = (grads[0], Some(grads[1]));
        }
        if let (Some(x), true) = (x, active) {
            dy = g.apply(ActivateGrad(self.activation), &[x, dy])?;
        }
        let mut grads = Vec::new();
        let shape = g.shape(dy).to_vec();
        let (samples, n) = (shape[0], shape[shape.len() - 1]);
        let per_sample: usize = shape[1..shape.len() - 1].iter().product();
        let mut sums = None;
        if self.sample_bias {
            sums = Some(g.apply(Reduce::sum_middle(samples, per_sample, n), &[dy])?);
        }
        if self.bias {
            let needed = wanted[2];
            grads.push(match (needed, sums) {
                (false, _) => None,
                (true, Some(s)) => Some(g.apply(Reduce::sum_middle(1, samples, n).to_shape([n]), &[s])?),
                (true, None) => Some(g.apply(Reduce::sum_middle(1, samples * per_sample, n).to_shape([n]), &[dy])?),
            });
        }
        if self.sample_bias {
            grads.push(sums);
        }
        grads.extend(gate.map(Some));
        if self.residual {
            grads.push(Some(residual));
        }
        Ok((dy, grads))
    }
}

/// y = epilogue(x · W)   x `[…, K]`, W `[K, N]` in panels (bias `[N]`, sample bias `[B, N]`, residual `[…, N]`) → y `[…, N]`
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Linear(pub Epilogue);

/// K, N of a weight in panels, its numbers of that type.
pub(crate) fn expect_weight(op: &str, ty: &TensorType, dtype: DType) -> Result<[usize; 2]> {
    if ty.layout != Layout::Panels || ty.dtype != dtype {
        return Err(Error::shape(op, format!("the weight must be {dtype} in panels, is {ty}")));
    }
    Ok([ty.rows(), ty.cols()])
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 2 + self.0.operands())?;
        let x = inputs[0];
        expect_real(self.name(), "x", x)?;
        let [k, n] = expect_weight(self.name(), inputs[1], x.dtype)?;
        if x.shape.len() < 2 || x.cols() != k {
            return Err(Error::shape(self.name(), format!("x must be [.., {k}] for a weight of [{k}, {n}], is {x}")));
        }
        let mut shape = x.shape.clone();
        shape[x.shape.len() - 1] = n;
        let out = x.with_shape(shape);
        self.0.check(self.name(), inputs, &out)?;
        Ok(vec![out])
    }

    fn cost(&self, io: &Signature) -> Cost {
        let k = io.inputs[1].rows() as u64;
        Cost { flops: io.out_elements() * (2 * k + self.0.flops()), bytes: self.0.bytes(io) }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], wanted: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None; node.inputs.len()]) };
        let (x, w) = (node.inputs[0], node.inputs[1]);
        let inner = Epilogue { activation: Activation::Identity, gate: false, residual: false, scale: 1.0, ..self.0 };
        let inputs = node.inputs[..2 + inner.operands()].to_vec();
        let (dy, operands) = self.0.grad(g, &node.inputs, dy, wanted, |g| g.apply(Linear(inner), &inputs))?;
        // First what needs x, so that x need not be kept while dx is there.
        let dw = if wanted[1] {
            let shape = g.shape(w).to_vec();
            Some(g.apply(LinearWeightGrad { shape }, &[x, dy])?)
        } else {
            None
        };
        let dx = if wanted[0] {
            let transposed = g.apply(TransposeWeight { taps: 1 }, &[w])?;
            Some(g.apply(Linear::default(), &[dy, transposed])?)
        } else {
            None
        };
        Ok([dx, dw].into_iter().chain(operands).collect())
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        target.stores(dtype)
    }

    fn equals(&self, other: &dyn Op) -> bool {
        other.downcast::<Self>() == Some(self)
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let (m, k, n) = (io.inputs[0].rows(), io.inputs[0].cols(), io.outputs[0].cols());
        let per_sample = (m / io.inputs[0].shape[0].max(1)).max(1);
        Ok(match target {
            Target::Cuda(target) => {
                let product = Product {
                    name: self.name(),
                    file: ptx!("linear"),
                    dtype: io.inputs[0].dtype,
                    sizes: [m, n, k],
                    window: &Window::matrix(k),
                    images: m,
                    rows_per_sample: per_sample,
                    epilogue: &self.0,
                    sample_stride: self.0.sample_stride(io),
                    scalars: &[],
                };
                product.launches(target)
            }
            Target::Cpu => {
                let launch = Launch::cpu(self.name(), kernel, io.inputs.len(), 1).scalars([m, n, k, per_sample]);
                vec![self.0.scalars(launch, self.0.sample_stride(io))]
            }
            Target::Wgpu(_) if io.outputs[0].elements() == 0 => vec![],
            Target::Wgpu(target) => {
                let dtype = io.inputs[0].dtype;
                // Stretches of whole samples, if rows of operands are theirs.
                let (by_sample, stride) = (self.0.by_sample(), self.0.sample_stride(io));
                let [x_line, line, wide] = [k, n, stride].map(|numbers| numbers * dtype.size());
                let rows = match by_sample {
                    true => target
                        .rows(m / per_sample, &[per_sample * x_line, per_sample * line, wide])
                        .map(|s| s * per_sample),
                    false => target.rows(m, &[x_line, line]),
                };
                let rows = rows.unwrap_or(m);
                let stretches = (0..m).step_by(rows).map(|first| first..(first + rows).min(m));
                let launches = |rows: Range<usize>| {
                    let sizes = [rows.len(), n, k, per_sample, if stride == n { 0 } else { stride }];
                    let launches = self.shader_launches(dtype, target, sizes, rows.len() < m);
                    let part = |launch| {
                        let of = |line: usize| rows.start * line..rows.end * line;
                        let part = self.0.part(launch, of(x_line), of(line));
                        let samples = rows.start / per_sample * wide..rows.end / per_sample * wide;
                        if by_sample { part.part(self.0.arguments()[3], samples) } else { part }
                    };
                    launches.into_iter().map(part).collect::<Vec<_>>()
                };
                stretches.flat_map(launches).collect()
            }
        })
    }
}

/// The text of `linear` for hardware: these files with what they have in common.
macro_rules! linear_text {
    ($dtype:expr; $($file:literal),+) => {
        wgsl!($dtype; "lib/activation", "lib/parts", "lib/product_sizes", "lib/panels", "linear_blocks", $($file),+)
    };
}

/// Rows that are made without tiles, four by a workgroup, where hardware runs the shader.
const FEW_ROWS: usize = 8;

impl Linear {
    /// The launches for `sizes` M, N, K, the rows of a sample and what an operand's rows of samples are apart if not N; one alone if that is a
    /// `stretch` of the rows.
    fn shader_launches(
        &self,
        dtype: DType,
        target: &WgpuTarget,
        [m, n, k, per_sample, wide]: [usize; 5],
        stretch: bool,
    ) -> Vec<Launch> {
        let (sizes, fours, columns) = ([m, n, k, per_sample], k.is_multiple_of(4), self.0.by_fours(n, wide));
        let shader = |text| self.0.shader(Shader::new(self.name(), text), wide);
        if target.software && fours {
            let shader = shader(wgsl!(dtype; "lib/activation", "lib/epilogue", "linear"));
            let grid = target.grid((m.div_ceil(8) * n.div_ceil(8)).div_ceil(DIRECT_LANES));
            let launch = Launch::wgsl(shader.entry("direct"), grid, self.0.arguments());
            return vec![launch.scalars(sizes).scalar(self.0.scale)];
        }
        let parts = if stretch { 1..=1 } else { shader_parts([m, n, k], target) };
        let scalars = |blocks: ShaderBlocks| {
            let scale = self.0.scale;
            move |launch: Launch| launch.scalars(sizes).scalars([blocks.part, blocks.parts]).scalar(scale)
        };
        let eights = m > FEW_ROWS && k.is_multiple_of(8) && columns;
        let by_matrix_blocks = ShaderBlocks::by_matrices([m, n, k], parts.clone(), dtype, target);
        if let Some(blocks) = by_matrix_blocks.filter(|_| eights) {
            let text = wgsl_with_matrices!(
                16, dtype; "lib/activation", "lib/parts", "lib/product_sizes", "lib/panels", "linear_blocks", "lib/x_fours",
                "lib/y_fours", "lib/matrix_blocks", "linear_matrices"
            );
            let shader = blocks.shader(shader(text));
            return in_parts(shader, target, &self.0, [m, n, per_sample, wide], &blocks, dtype, scalars(blocks));
        }
        if let Some(edge) = target.matrices(dtype).filter(|_| m > FEW_ROWS) {
            let text = wgsl_with_matrices!(
                edge, dtype; "lib/activation", "lib/epilogue", "linear", "lib/matrix_product", "lib/matrix_panels",
                "linear_cooperative"
            );
            let launch = by_matrices(shader(text), target, [1, m, n], self.0.arguments());
            return vec![launch.scalars(sizes).scalar(self.0.scale)];
        }
        let few = m <= FEW_ROWS && fours && n.div_ceil(PANEL) <= target.grid as usize;
        let text = match (fours, columns) {
            (true, true) if few => linear_text!(dtype; "lib/x_fours", "lib/y_fours", "linear_few"),
            (true, false) if few => linear_text!(dtype; "lib/x_fours", "lib/epilogue", "lib/y_ones", "linear_few"),
            (true, true) => linear_text!(dtype; "lib/x_fours", "lib/y_fours", "lib/blocks"),
            (true, false) => linear_text!(dtype; "lib/x_fours", "lib/epilogue", "lib/y_ones", "lib/blocks"),
            (false, true) => linear_text!(dtype; "lib/x_ones", "lib/y_fours", "lib/blocks"),
            (false, false) => linear_text!(dtype; "lib/x_ones", "lib/epilogue", "lib/y_ones", "lib/blocks"),
        };
        let parts = if few { 1..=1 } else { parts };
        let blocks = ShaderBlocks::new(1, [m, n, k], parts, target);
        let shader = if few { shader(text).entry("few") } else { blocks.shader(shader(text)) };
        let mut launches = in_parts(shader, target, &self.0, [m, n, per_sample, wide], &blocks, dtype, scalars(blocks));
        if few {
            launches[0].grid = [n.div_ceil(PANEL) as u32, m.div_ceil(4) as u32, 1];
        }
        launches
    }
}

fn kernel(args: &Args) {
    let [m, n, k, per_sample] = [0, 1, 2, 3].map(|i| args.int(i));
    let epilogue = Epilogue::of(args, 4, per_sample.max(1));
    let x = Matrix { data: args.slice(0), stride: k };
    gemm(&x, args.slice(1), [m, n, k], &epilogue, args.slice_mut(args.len() - 1));
}

/// dW = xᵀ · dy   x `[…, K]`, dy `[…, N]` → dW in panels, f32 whatever type x and dy have; `shape` is the weight's, with K rows
/// and N columns
#[derive(Clone, Debug, PartialEq)]
pub struct LinearWeightGrad {
    pub shape: Vec<usize>,
}

impl Op for LinearWeightGrad {
    fn name(&self) -> &'static str {
        "linear_weight_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 2)?;
        expect_real(self.name(), "x", inputs[0])?;
        expect_typed(self.name(), "dy", inputs[1], inputs[0].dtype, &inputs[1].shape)?;
        let out = TensorType::panels(self.shape.clone());
        let fits =
            inputs[0].rows() == inputs[1].rows() && inputs[0].cols() == out.rows() && inputs[1].cols() == out.cols();
        if !fits {
            return Err(Error::shape(self.name(), format!("x {}, dy {} do not make {out}", inputs[0], inputs[1])));
        }
        Ok(vec![out])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 2 * io.out_elements() * io.inputs[0].rows() as u64, bytes: io.bytes() }
    }

    fn takes(&self, _: DType, target: &Target) -> bool {
        matches!(target, Target::Cuda(_))
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let sizes = [io.inputs[0].rows(), io.inputs[1].cols(), io.inputs[0].cols()];
        Ok(match target {
            Target::Cuda(target) => {
                let [m, n, k] = sizes;
                let product = PlainProduct {
                    name: self.name(),
                    file: ptx!("weight_grad"),
                    entry: self.name(),
                    dtype: io.inputs[0].dtype,
                    out: io.outputs[0].dtype,
                    largest: 128,
                    batch: 1,
                    sizes: [k, n, m],
                    stored: [io.outputs[0].stored(), PANEL],
                    scalars: &[],
                };
                hopper_weight_grad::launches(&product, &Window::matrix(k), m, target)
            }
            Target::Cpu => vec![Launch::cpu(self.name(), weight_grad_kernel, 2, 1).scalars(sizes)],
            // Every row is an image of one pixel.
            Target::Wgpu(target) => weight_grad_launches(self.name(), io, &Window::matrix(sizes[2]), target),
        })
    }
}

fn weight_grad_kernel(args: &Args) {
    let [m, n, k] = [0, 1, 2].map(|i| args.int(i));
    gemm::weight_grad(&Matrix { data: args.slice(0), stride: k }, args.slice(1), [m, n, 1, k], args.slice_mut(2));
}
