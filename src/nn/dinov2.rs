//! DINOv2's vision transformer (Oquab et al. 2023), under the names of transformers' `Dinov2Model`.

use super::fields::Fields;
use super::layers::{Builder, Layer, Window};
use super::params::{Import, Init};
use super::{Built, InputSpec};
use crate::graph::Value;
use crate::ops::{Activation, Attention, Binary, Broadcast, Padding, Slice};
use crate::tensor::TensorType;
use crate::{Error, Result};
use std::path::Path;

/// The sizes of a DINOv2. Its parameters are those after each layer scale has been folded into the linear layer before it, with
/// position embeddings for the grid of `size`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Dinov2Config {
    pub hidden: usize,
    /// Divides `hidden`.
    pub heads: usize,
    /// At least one.
    pub layers: usize,
    /// Width inside the feed-forward part.
    pub inner: usize,
    /// silu(gate) · value in place of GELU: the giant model.
    pub swiglu: bool,
    /// q, k and v have a bias.
    pub qkv_bias: bool,
    /// Pixels of a side of a patch.
    pub patch: usize,
    /// Pixels of a side of the input, a multiple of `patch`.
    pub size: usize,
    /// ε of the norms.
    pub eps: f32,
}

impl Dinov2Config {
    /// Takes heads and ε, which the shapes of weights do not tell, from the text of a `config.json`; `path` is named in errors.
    /// What the configuration says besides must agree with the sizes here.
    pub fn with_json(self, text: &str, path: &Path) -> Result<Self> {
        let fields = Fields::parse(text, path)?;
        fields.lacks("model_type", &["dinov2".into()])?;
        fields.lacks("hidden_act", &["gelu".into()])?;
        let sizes = [("hidden_size", self.hidden), ("num_hidden_layers", self.layers), ("patch_size", self.patch)];
        for (field, wanted) in sizes {
            if let Some(found) = fields.optional(field, 0..=usize::MAX)?.filter(|n| *n != wanted) {
                return Err(fields.fail(field, format!("is {found}, the weights say {wanted}")));
            }
        }
        let heads = fields.size("num_attention_heads", self.heads, 1..=self.hidden)?;
        if !self.hidden.is_multiple_of(heads) {
            return Err(fields.fail("num_attention_heads", format!("{heads} do not divide {} channels", self.hidden)));
        }
        Ok(Dinov2Config { heads, eps: fields.number("layer_norm_eps", self.eps as f64, 0.0..=1.0)?, ..self })
    }

    /// Patches along a side.
    pub fn grid(&self) -> usize {
        self.size / self.patch
    }

    /// The graph: `sample` `[B, size, size, 3]` → `features` `[B, hidden]`, the class token after the last norm.
    pub fn build(&self, batch: usize) -> Result<Built> {
        if self.patch == 0 || !self.size.is_multiple_of(self.patch) {
            return Err(Error::invalid("patch", format!("{} does not divide {} pixels", self.patch, self.size)));
        }
        if self.heads == 0 || !self.hidden.is_multiple_of(self.heads) {
            return Err(Error::invalid("heads", format!("{} do not divide {} channels", self.heads, self.hidden)));
        }
        let spec = InputSpec::new(batch, self.size, self.size);
        spec.check(self.inner.max(self.hidden).div_ceil(self.patch * self.patch) + 3)?;
        let mut b = Builder::new(&spec, &[]);
        let x = b.sample(3);
        let mut x = b.scoped("embeddings", |b| self.embed(b, x))?;
        for i in 0..self.layers {
            let last = i + 1 == self.layers;
            x = b.block(|b| b.scoped(format!("encoder.layer.{i}"), |b| self.layer(b, x, last)))?;
        }
        let y = b.layer_norm("layernorm", x, self.eps, true, None)?;
        let y = b.reshape(y, [batch, self.hidden])?;
        Ok(b.finish("features", y))
    }

    /// The class token and the patches, with their positions: `[B, 1 + N, D]`
    fn embed(&self, b: &mut Builder, x: Value) -> Result<Value> {
        let (batch, d, side) = (b.spec.batch, self.hidden, self.grid());
        let n = side * side;
        let plain = |b: &mut Builder, leaf: &str, rows: usize| {
            b.parameter(leaf, &[1, rows, d], TensorType::f32([rows, d]), Import::Plain, Init::Normal(0.02))
        };
        let class = plain(b, "cls_token", 1);
        let positions = plain(b, "position_embeddings", n + 1);
        let first = b.graph.apply(Slice { axis: 0, start: 0, len: 1 }, &[positions])?;
        let class = b.graph.apply(Binary::Add, &[class, first])?;
        let class = for_each_sample(b, class)?;
        let rest = b.graph.apply(Slice { axis: 0, start: 1, len: n }, &[positions])?;
        let rest = b.reshape(rest, [side, side, d])?;
        let rest = for_each_sample(b, rest)?;
        let window = Window { kernel: [self.patch; 2], stride: self.patch, padding: Padding::default() };
        let patches = b.conv("patch_embeddings.projection", x, window, Layer::new(d).residual(rest, 1.0))?;
        let patches = b.reshape(patches, [batch, n, d])?;
        b.concat(1, class, patches)
    }

    /// x + attention(norm1(x)), then x + mlp(norm2(x)). Of the last layer's rows only the class token's is used, so only that
    /// is computed: `[B, 1, D]`.
    fn layer(&self, b: &mut Builder, x: Value, last: bool) -> Result<Value> {
        let h = b.layer_norm("norm1", x, self.eps, true, None)?;
        let (queries, x) = if last { (class_token(b, h)?, class_token(b, x)?) } else { (h, x) };
        let x = b.scoped("attention", |b| self.attention(b, queries, h, x))?;
        let h = b.layer_norm("norm2", x, self.eps, true, None)?;
        b.scoped("mlp", |b| self.feed_forward(b, h, x))
    }

    fn attention(&self, b: &mut Builder, queries: Value, rows: Value, residual: Value) -> Result<Value> {
        let layer = Layer { bias: self.qkv_bias, ..Layer::new(self.hidden) };
        let q = b.linear("attention.query", queries, layer)?;
        let k = b.linear("attention.key", rows, layer)?;
        let v = b.linear("attention.value", rows, layer)?;
        let scale = 1.0 / ((self.hidden / self.heads) as f32).sqrt();
        let y = b.graph.apply(Attention { heads: self.heads, scale }, &[q, k, v])?;
        b.linear("output.dense", y, Layer::new(self.hidden).residual(residual, 1.0))
    }

    fn feed_forward(&self, b: &mut Builder, x: Value, residual: Value) -> Result<Value> {
        let out = Layer::new(self.hidden).residual(residual, 1.0);
        if self.swiglu {
            let h = b.linear("weights_in", x, Layer::new(2 * self.inner))?;
            let [gate, value] = b.split(h)?;
            let gate = b.activate(gate, Activation::Silu)?;
            let h = b.graph.apply(Binary::Mul, &[gate, value])?;
            return b.linear("weights_out", h, out);
        }
        let h = b.linear("fc1", x, Layer::new(self.inner))?;
        let h = b.activate(h, Activation::Gelu)?;
        b.linear("fc2", h, out)
    }
}

/// A tensor once for every sample of the batch.
fn for_each_sample(b: &mut Builder, x: Value) -> Result<Value> {
    let spread = Broadcast::rows(b.spec.batch, b.graph.ty(x));
    b.graph.apply(spread, &[x])
}

/// The first row of a sequence: `[B, N, D]` → `[B, 1, D]`
fn class_token(b: &mut Builder, x: Value) -> Result<Value> {
    b.graph.apply(Slice { axis: 1, start: 0, len: 1 }, &[x])
}
