//! Layers over a graph: every one declares its parameters under their public names and applies the ops.
//!
//! Images are `[B, H, W, C]`, sequences `[B, N, C]`, embeddings `[B, C]`.

use super::adapter::Adapter;
use super::config::FeedForward;
use super::params::{FixedTensor, Import, Init, Parameter};
use super::{Built, InputSpec};
use crate::Result;
use crate::graph::{Graph, Value};
use crate::ops::{
    Activate, Activation, Attention, Concat, Conv2d, Dropout, Embedding, Epilogue, Geglu, GroupNorm, LayerNorm, Linear,
    Padding, Resample, Reshape, Slice, lora,
};
use crate::tensor::TensorType;

/// Builds a network's graph, and lists its parameters as it goes.
#[derive(Debug)]
pub struct Builder {
    pub graph: Graph,
    pub spec: InputSpec,
    path: Vec<String>,
    parameters: Vec<Parameter>,
    fixed: Vec<FixedTensor>,
    ignored: Vec<String>,
    /// Probability, and the inputs `seeds` and `draw`, in a graph for training.
    dropout: Option<(f32, Value, Value)>,
    /// The number of the next dropout: each draws from its own stream.
    stream: u32,
    /// What is added to layers, and the input of each that scales it.
    adapters: Vec<(Adapter, Value)>,
}

/// A convolution or a linear layer, with what its epilogue adds: `(xW + bias + sample_bias + residual) · scale`.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    pub outputs: usize,
    pub bias: bool,
    /// `[B, outputs]`
    pub sample_bias: Option<Value>,
    /// The output's shape.
    pub residual: Option<Value>,
    pub scale: f32,
    pub weight: WeightKind,
    /// Of the weight; by default uniform in ±1/√fan-in, as the bias.
    pub init: Option<Init>,
}

/// How a file holds the weight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WeightKind {
    Matrix,
    /// `[N, K, 1, 1]`
    Pointwise,
    /// `[3·C, K, 1, 1]`, rows interleaved as EDM does, see [`Import::Qkv`]; bias alike.
    Qkv {
        heads: usize,
    },
}

impl Layer {
    /// With a bias and nothing more.
    pub fn new(outputs: usize) -> Self {
        let weight = WeightKind::Matrix;
        Layer { outputs, bias: true, sample_bias: None, residual: None, scale: 1.0, weight, init: None }
    }

    pub fn no_bias(self) -> Self {
        Layer { bias: false, ..self }
    }

    pub fn pointwise(self) -> Self {
        Layer { weight: WeightKind::Pointwise, ..self }
    }

    pub fn sample_bias(self, value: Option<Value>) -> Self {
        Layer { sample_bias: value, ..self }
    }

    /// Adds `value`, then multiplies by `scale`.
    pub fn residual(self, value: Value, scale: f32) -> Self {
        Layer { residual: Some(value), scale, ..self }
    }

    pub fn init(self, init: Init) -> Self {
        Layer { init: Some(init), ..self }
    }

    fn epilogue(&self) -> Epilogue {
        Epilogue {
            bias: self.bias,
            sample_bias: self.sample_bias.is_some(),
            residual: self.residual.is_some(),
            scale: self.scale,
            ..Epilogue::default()
        }
    }
}

/// The second half of a layer's adapters.
#[derive(Clone, Copy)]
struct Up {
    outputs: usize,
    import: Import,
    pointwise: bool,
    /// Of what the layer adds up.
    factor: f32,
}

/// Kernel (rows, columns), stride and padding of a convolution.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub kernel: [usize; 2],
    pub stride: usize,
    pub padding: Padding,
}

impl Window {
    /// An odd square kernel that keeps the size.
    pub fn same(kernel: usize) -> Self {
        Window { kernel: [kernel; 2], stride: 1, padding: Padding::same(kernel / 2) }
    }
}

/// Groups and ε of a group norm.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    pub groups: usize,
    pub eps: f32,
}

/// Scale and shift `[B, C]` that follow a norm: y·(1 + scale) + shift.
#[derive(Clone, Copy, Debug)]
pub struct Modulation {
    pub scale: Value,
    pub shift: Value,
}

/// A diffusers `ResnetBlock2D`.
#[derive(Clone, Copy, Debug)]
pub struct ResnetBlock {
    pub outputs: usize,
    pub norm: Norm,
    pub activation: Activation,
    pub scale_shift: bool,
    /// The sum with the shortcut is divided by it.
    pub divisor: f32,
    pub resample: Resampling,
}

/// What a ResNet block does to the resolution.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resampling {
    None,
    /// The mean of 2×2 pixels.
    Down,
    /// Every pixel 2×2 times.
    Up,
}

/// Multi-head attention over the rows of a sequence.
#[derive(Clone, Copy, Debug)]
pub struct AttentionLayer {
    pub heads: usize,
    pub head_dim: usize,
    /// Of the projections to q, k, v; the one from the heads always has a bias.
    pub bias: bool,
    /// The sum with the residual is divided by it.
    pub divisor: f32,
}

impl Builder {
    /// An empty network, whose layers `adapters` adapt. An adapter's factor is the parameter [`Adapter::scale`].
    pub fn new(spec: &InputSpec, adapters: &[Adapter]) -> Self {
        let mut b = Builder {
            graph: Graph::new(),
            spec: *spec,
            path: vec![],
            parameters: vec![],
            fixed: vec![],
            ignored: vec![],
            dropout: None,
            stream: 0,
            adapters: vec![],
        };
        for adapter in adapters {
            let scale = b.declare(adapter.scale(), &[1], TensorType::f32([1]), Import::Plain, Init::Ones);
            b.freeze_last();
            b.adapters.push((adapter.clone(), scale));
        }
        b
    }

    /// Names the output and hands over what was built.
    pub fn finish(mut self, output: &'static str, value: Value) -> Built {
        self.graph.output(output, value);
        Built {
            graph: self.graph,
            parameters: self.parameters,
            fixed: self.fixed,
            joined: vec![],
            ignored: self.ignored,
            output,
        }
    }

    /// Runs `build` with `name` added to the scope and to parameter names.
    pub fn scoped<T>(&mut self, name: impl Into<String>, build: impl FnOnce(&mut Self) -> T) -> T {
        let name = name.into();
        self.path.push(name.clone());
        let mut graph = std::mem::take(&mut self.graph);
        let out = graph.scoped(name, |g| self.lend(g, build));
        self.graph = graph;
        self.path.pop();
        out
    }

    /// Runs `build`; its nodes form one recomputation block, see [`Graph::block`].
    pub fn block<T>(&mut self, build: impl FnOnce(&mut Self) -> T) -> T {
        let mut graph = std::mem::take(&mut self.graph);
        let out = graph.block(|g| self.lend(g, build));
        self.graph = graph;
        out
    }

    /// Runs `build` on `graph`, which is handed back.
    fn lend<T>(&mut self, graph: &mut Graph, build: impl FnOnce(&mut Self) -> T) -> T {
        std::mem::swap(graph, &mut self.graph);
        let out = build(self);
        std::mem::swap(graph, &mut self.graph);
        out
    }

    fn public_name(&self, leaf: &str) -> String {
        if self.path.is_empty() { leaf.to_string() } else { format!("{}.{leaf}", self.path.join(".")) }
    }

    /// Declares a parameter under the current scope.
    pub fn parameter(&mut self, leaf: &str, shape: &[usize], ty: TensorType, import: Import, init: Init) -> Value {
        self.declare(self.public_name(leaf), shape, ty, import, init)
    }

    fn declare(&mut self, name: String, shape: &[usize], ty: TensorType, import: Import, init: Init) -> Value {
        let value = self.graph.parameter(&name, ty.clone());
        self.parameters.push(Parameter { name, shape: shape.to_vec(), ty, import, init, trainable: true });
        value
    }

    /// The parameter declared last is not trained.
    fn freeze_last(&mut self) {
        if let Some(p) = self.parameters.last_mut() {
            p.trainable = false;
        }
    }

    /// Declares random frequencies `[n]`, which are not trained.
    pub fn frequencies(&mut self, leaf: &str, n: usize) -> Value {
        let value = self.parameter(leaf, &[n], TensorType::f32([n]), Import::Plain, Init::Normal(16.0));
        self.freeze_last();
        value
    }

    /// Declares a tensor that the file holds although it is fixed.
    pub fn fixed_tensor(&mut self, leaf: &str, shape: &[usize], data: Vec<f32>) {
        let name = self.public_name(leaf);
        self.fixed.push(FixedTensor { name, shape: shape.to_vec(), data });
    }

    /// A tensor that some files hold and none needs.
    pub fn ignore(&mut self, leaf: &str) {
        let name = self.public_name(leaf);
        self.ignored.push(name);
    }

    /// The image input `sample` `[B, H, W, C]`.
    pub fn sample(&mut self, channels: usize) -> Value {
        let s = self.spec;
        self.graph.input("sample", TensorType::f32([s.batch, s.height, s.width, channels]))
    }

    /// An f32 input with one entry or row for each sample.
    pub fn rows(&mut self, name: &str, width: Option<usize>) -> Value {
        let shape: Vec<usize> = [self.spec.batch].into_iter().chain(width).collect();
        self.graph.input(name, TensorType::f32(shape))
    }

    /// An i32 input with one entry for each sample.
    pub fn labels(&mut self, name: &str) -> Value {
        self.graph.input(name, TensorType::i32([self.spec.batch]))
    }

    /// Turns on dropout where the graph is for training: inputs `seeds` i32 `[B, 2]` and `draw` f32 `[1]`.
    pub fn enable_dropout(&mut self, p: f32) {
        if self.spec.train && p > 0.0 {
            let seeds = self.graph.input("seeds", TensorType::i32([self.spec.batch, 2]));
            let draw = self.graph.input("draw", TensorType::f32([1]));
            self.dropout = Some((p, seeds, draw));
        }
    }

    /// Dropout, if it is on.
    pub fn dropout(&mut self, x: Value) -> Result<Value> {
        let Some((p, seeds, draw)) = self.dropout else { return Ok(x) };
        let stream = self.stream;
        self.stream += 1;
        self.graph.apply(Dropout { p, stream }, &[x, seeds, draw])
    }

    /// The last dimension.
    pub fn channels(&self, x: Value) -> usize {
        self.graph.ty(x).cols()
    }

    /// act(x)
    pub fn activate(&mut self, x: Value, activation: Activation) -> Result<Value> {
        self.graph.apply(Activate(activation), &[x])
    }

    pub fn reshape(&mut self, x: Value, shape: impl Into<Vec<usize>>) -> Result<Value> {
        self.graph.apply(Reshape(shape.into()), &[x])
    }

    /// Image `[B, H, W, C]` → sequence `[B, H·W, C]`.
    pub fn flatten(&mut self, x: Value) -> Result<Value> {
        let shape = match *self.graph.shape(x) {
            [b, h, w, c] => vec![b, h * w, c],
            ref other => other.to_vec(),
        };
        self.reshape(x, shape)
    }

    pub fn concat(&mut self, axis: usize, a: Value, b: Value) -> Result<Value> {
        self.graph.apply(Concat { axis }, &[a, b])
    }

    /// Cuts the last dimension into `N` equal pieces.
    pub fn split<const N: usize>(&mut self, x: Value) -> Result<[Value; N]> {
        let axis = self.graph.shape(x).len() - 1;
        let len = self.channels(x) / N;
        let mut pieces = [x; N];
        for (i, piece) in pieces.iter_mut().enumerate() {
            *piece = self.graph.apply(Slice { axis, start: i * len, len }, &[x])?;
        }
        Ok(pieces)
    }

    /// y = x · Wᵀ + …   x `[…, K]`, W in the file `[N, K]` → `[…, N]`
    pub fn linear(&mut self, name: &str, x: Value, layer: Layer) -> Result<Value> {
        self.scoped(name, |b| {
            let (k, n) = (b.channels(x), layer.outputs);
            let (shape, import, bias_import) = match layer.weight {
                WeightKind::Matrix => (vec![n, k], Import::Transpose, Import::Plain),
                WeightKind::Pointwise => (vec![n, k, 1, 1], Import::Transpose, Import::Plain),
                WeightKind::Qkv { heads } => (vec![n, k, 1, 1], Import::Qkv { heads }, Import::Qkv { heads }),
            };
            let bound = 1.0 / (k as f32).sqrt();
            let init = layer.init.unwrap_or(Init::Uniform(bound));
            let mut operands = vec![x, b.parameter("weight", &shape, TensorType::panels([k, n]), import, init)];
            b.operands(&mut operands, &layer, bias_import, bound);
            let base = b.graph.apply(Linear(layer.epilogue()), &operands)?;
            let pointwise = layer.weight != WeightKind::Matrix;
            let up = Up { outputs: n, import, pointwise, factor: layer.scale };
            b.adapted(base, up, |b, name, rank, scale| {
                let shape = if pointwise { vec![rank, k, 1, 1] } else { vec![rank, k] };
                let ty = TensorType::panels([k, rank]);
                let down = b.declare(name, &shape, ty, Import::Transpose, Init::Uniform(bound));
                b.graph.apply(Linear(Epilogue { scale, ..Epilogue::default() }), &[x, down])
            })
        })
    }

    /// y = x * W + …   x `[B, H, W, C]`, W in the file `[N, C, k₀, k₁]` → `[B, H', W', N]`
    pub fn conv(&mut self, name: &str, x: Value, window: Window, layer: Layer) -> Result<Value> {
        self.scoped(name, |b| {
            let (c, n, kernel) = (b.channels(x), layer.outputs, window.kernel);
            let [rows, cols] = kernel;
            let ty = TensorType::panels([rows * cols, c, n]);
            let bound = 1.0 / ((rows * cols * c) as f32).sqrt();
            let init = layer.init.unwrap_or(Init::Uniform(bound));
            let mut operands = vec![x, b.parameter("weight", &[n, c, rows, cols], ty, Import::Conv, init)];
            b.operands(&mut operands, &layer, Import::Plain, bound);
            let Window { stride, padding, .. } = window;
            let conv = |epilogue| Conv2d { kernel, stride, padding, input_dilation: 1, epilogue };
            let base = b.graph.apply(conv(layer.epilogue()), &operands)?;
            let up = Up { outputs: n, import: Import::Transpose, pointwise: true, factor: layer.scale };
            b.adapted(base, up, |b, name, rank, scale| {
                let (shape, ty) = ([rank, c, rows, cols], TensorType::panels([rows * cols, c, rank]));
                let down = b.declare(name, &shape, ty, Import::Conv, Init::Uniform(bound));
                b.graph.apply(conv(Epilogue { scale, ..Epilogue::default() }), &[x, down])
            })
        })
    }

    /// What the adapters of the layer in scope make of its output: base + factor · (alpha/rank) · scale · up(down(x)) for each.
    /// `down` is told the weight's name, the rank, and a factor for its product. An adapter's weights begin as in the paper:
    /// the first like a layer's, the second zero.
    fn adapted(
        &mut self,
        base: Value,
        up: Up,
        down: impl Fn(&mut Self, String, usize, f32) -> Result<Value>,
    ) -> Result<Value> {
        let layer = self.path.join(".");
        let mut y = base;
        for i in 0..self.adapters.len() {
            let (adapter, scale) = &self.adapters[i];
            let (Some(&low), scale) = (adapter.layers.get(&layer), *scale) else { continue };
            let [down_name, up_name] = adapter.weights(&layer);
            let narrow = down(self, down_name, low.rank, up.factor * low.alpha / low.rank as f32)?;
            let (rank, n) = (low.rank, up.outputs);
            let shape = if up.pointwise { vec![n, rank, 1, 1] } else { vec![n, rank] };
            let weight = self.declare(up_name, &shape, TensorType::panels([rank, n]), up.import, Init::Zeros);
            y = lora(&mut self.graph, narrow, weight, scale, y)?;
        }
        Ok(y)
    }

    /// Bias, sample bias and residual, those that are there. A bias starts as its weight does: at zero with one of its
    /// own.
    fn operands(&mut self, operands: &mut Vec<Value>, layer: &Layer, import: Import, bound: f32) {
        if layer.bias {
            let (n, init) = (layer.outputs, if layer.init.is_some() { Init::Zeros } else { Init::Uniform(bound) });
            operands.push(self.parameter("bias", &[n], TensorType::f32([n]), import, init));
        }
        operands.extend(layer.sample_bias);
        operands.extend(layer.residual);
    }

    /// Gain and offset of a norm over `channels`.
    fn affine(&mut self, channels: usize) -> [Value; 2] {
        [("weight", Init::Ones), ("bias", Init::Zeros)]
            .map(|(leaf, init)| self.parameter(leaf, &[channels], TensorType::f32([channels]), Import::Plain, init))
    }

    /// act(norm(x)) over groups of channels.
    pub fn group_norm(
        &mut self,
        name: &str,
        x: Value,
        norm: Norm,
        activation: Activation,
        modulation: Option<Modulation>,
    ) -> Result<Value> {
        self.scoped(name, |b| {
            let [gamma, beta] = b.affine(b.channels(x));
            let operands: Vec<Value> =
                [x, gamma, beta].into_iter().chain(modulation.iter().flat_map(|m| [m.scale, m.shift])).collect();
            let modulate = modulation.is_some();
            b.graph.apply(GroupNorm { groups: norm.groups, eps: norm.eps, activation, modulate }, &operands)
        })
    }

    /// norm(x) over the last dimension.
    pub fn layer_norm(
        &mut self,
        name: &str,
        x: Value,
        eps: f32,
        affine: bool,
        modulation: Option<Modulation>,
    ) -> Result<Value> {
        self.scoped(name, |b| {
            let mut operands = vec![x];
            if affine {
                operands.extend(b.affine(b.channels(x)));
            }
            operands.extend(modulation.iter().flat_map(|m| [m.scale, m.shift]));
            b.graph.apply(LayerNorm { eps, affine, modulate: modulation.is_some(), first: [0; 2] }, &operands)
        })
    }

    /// Rows of a table `[rows, width]`.
    pub fn embedding(&mut self, leaf: &str, index: Value, [rows, width]: [usize; 2], init: Init) -> Result<Value> {
        let ty = TensorType::f32([rows, width]);
        let table = self.parameter(leaf, &[rows, width], ty, Import::Plain, init);
        self.graph.apply(Embedding, &[table, index])
    }

    /// linear_2(act(linear_1(x))): diffusers' `TimestepEmbedding`.
    pub fn embedding_mlp(&mut self, name: &str, x: Value, width: usize, activation: Activation) -> Result<Value> {
        self.scoped(name, |b| {
            let h = b.linear("linear_1", x, Layer::new(width))?;
            let h = b.activate(h, activation)?;
            b.linear("linear_2", h, Layer::new(width))
        })
    }

    /// y = (shortcut(x) + conv2(dropout(act(norm2(conv1(act(norm1(x))) + W·emb))))) / divisor   (He et al. 2016; Ho et
    /// al. 2020), or with `scale_shift` norm2(…)·(1 + scale) + shift. `emb` `[B, E]` is the activated time embedding.
    pub fn resnet(&mut self, name: &str, x: Value, emb: Value, r: ResnetBlock) -> Result<Value> {
        self.scoped(name, |b| {
            let h = b.group_norm("norm1", x, r.norm, r.activation, None)?;
            let (x, h) = (b.resample(x, r.resample)?, b.resample(h, r.resample)?);
            let width = if r.scale_shift { 2 * r.outputs } else { r.outputs };
            let emb = b.linear("time_emb_proj", emb, Layer::new(width))?;
            let conv1 = Layer::new(r.outputs).sample_bias((!r.scale_shift).then_some(emb));
            let h = b.conv("conv1", h, Window::same(3), conv1)?;
            let modulation = if r.scale_shift {
                let [scale, shift] = b.split(emb)?;
                Some(Modulation { scale, shift })
            } else {
                None
            };
            let h = b.group_norm("norm2", h, r.norm, r.activation, modulation)?;
            let h = b.dropout(h)?;
            let shortcut = if b.channels(x) == r.outputs {
                x
            } else {
                b.linear("conv_shortcut", x, Layer::new(r.outputs).pointwise())?
            };
            b.conv("conv2", h, Window::same(3), Layer::new(r.outputs).residual(shortcut, 1.0 / r.divisor))
        })
    }

    fn resample(&mut self, x: Value, resampling: Resampling) -> Result<Value> {
        match resampling {
            Resampling::None => Ok(x),
            Resampling::Down => self.graph.apply(Resample::box_down(2), &[x]),
            Resampling::Up => self.graph.apply(Resample::nearest_up(2), &[x]),
        }
    }

    /// (to_out(softmax(q·kᵀ/√d)·v) + residual) / divisor   q from `x` `[B, N, C]`, k and v from `context` `[B, T, D]`
    /// (Vaswani et al. 2017). The scope is the caller's.
    pub fn attention(
        &mut self,
        x: Value,
        context: Value,
        a: AttentionLayer,
        outputs: usize,
        residual: Option<Value>,
    ) -> Result<Value> {
        let inner = a.heads * a.head_dim;
        let layer = Layer { bias: a.bias, ..Layer::new(inner) };
        let q = self.linear("to_q", x, layer)?;
        let k = self.linear("to_k", context, layer)?;
        let v = self.linear("to_v", context, layer)?;
        let scale = 1.0 / (a.head_dim as f32).sqrt();
        let y = self.graph.apply(Attention { heads: a.heads, scale }, &[q, k, v])?;
        let out = Layer { residual, scale: 1.0 / a.divisor, ..Layer::new(outputs) };
        self.linear("to_out.0", y, out)
    }

    /// diffusers' attention block of pixel-space UNets: attention over the normed pixels, plus x.
    pub fn image_attention(&mut self, name: &str, x: Value, norm: Option<Norm>, a: AttentionLayer) -> Result<Value> {
        self.scoped(name, |b| {
            let (shape, channels) = (b.graph.shape(x).to_vec(), b.channels(x));
            let h = match norm {
                Some(norm) => b.group_norm("group_norm", x, norm, Activation::Identity, None)?,
                None => x,
            };
            let (h, x) = (b.flatten(h)?, b.flatten(x)?);
            let y = b.attention(h, h, a, channels, Some(x))?;
            b.reshape(y, shape)
        })
    }

    /// The feed-forward part of a transformer, 4 times as wide inside: `between` is applied in the middle, `residual`
    /// added at the end.
    pub fn feed_forward(
        &mut self,
        x: Value,
        kind: FeedForward,
        between: impl FnOnce(&mut Self, Value) -> Result<Value>,
        residual: Option<Value>,
    ) -> Result<Value> {
        let channels = self.channels(x);
        self.scoped("ff", |b| {
            let width = if kind == FeedForward::Geglu { 8 * channels } else { 4 * channels };
            let h = b.linear("net.0.proj", x, Layer::new(width))?;
            let h = match kind {
                FeedForward::Geglu => b.graph.apply(Geglu, &[h])?,
                FeedForward::Plain(activation) => b.activate(h, activation)?,
            };
            let h = between(b, h)?;
            b.linear("net.2", h, Layer { residual, ..Layer::new(channels) })
        })
    }
}
