//! InceptionV3 (Szegedy et al. 2016) as the Fréchet Inception distance uses it: the network of TensorFlow's 2015 release, under
//! the module names of torchvision. It differs from torchvision's own in three places: average poolings do not count padding,
//! the last block pools by the maximum, and there are 1008 classes.

use super::layers::{Builder, Layer, Window};
use super::{Built, InputSpec};
use crate::Result;
use crate::graph::Value;
use crate::ops::{Activation, AveragePool, Concat, MaxPool, Padding, PoolWindow, Reduce};

/// The sizes of an InceptionV3. Its parameters are those after each batch norm has been folded into the convolution before it:
/// `….conv.weight` and `….conv.bias`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InceptionConfig {
    /// Channels of the first convolution, even: 32 in the published network. All widths are in proportion.
    pub stem: usize,
    /// Rows of the last layer.
    pub classes: usize,
}

/// Kernel, stride, and whether zeros keep the size of what has stride 1.
#[derive(Clone, Copy)]
struct Shape {
    kernel: [usize; 2],
    stride: usize,
    padded: bool,
}

const POINT: Shape = padded([1, 1]);
/// 3×3 of stride 2 without padding, which halves the size.
const HALVE: Shape = Shape { kernel: [3, 3], stride: 2, padded: false };

const fn padded(kernel: [usize; 2]) -> Shape {
    Shape { kernel, stride: 1, padded: true }
}

/// How a block pools before its last branch.
#[derive(Clone, Copy)]
enum Pool {
    Average,
    Max,
}

impl InceptionConfig {
    /// Pixels of a side of the input.
    pub const SIZE: usize = 299;

    /// The published network.
    pub const FID: InceptionConfig = InceptionConfig { stem: 32, classes: 1008 };

    /// Width of the features.
    pub fn features(&self) -> usize {
        self.width(2048)
    }

    /// Channels where the published network has so many, a multiple of 16.
    fn width(&self, published: usize) -> usize {
        published / 16 * self.stem / 2
    }

    /// The graph: `sample` `[B, 299, 299, 3]` in ±1 → `features` `[B, 2048]`, the mean of the last block over the image, and
    /// `logits` `[B, 1008]`.
    pub fn build(&self, batch: usize) -> Result<Built> {
        let spec = InputSpec::new(batch, Self::SIZE, Self::SIZE);
        spec.check(self.width(64))?;
        let mut b = Builder::new(&spec, &[]);
        let x = b.sample(3);
        let x = self.stem(&mut b, x)?;
        let x = self.blocks(&mut b, x)?;
        let [_, h, w, channels] = b.graph.shape(x)[..] else { return Ok(b.finish("features", x)) };
        let features = b.graph.apply(Reduce::mean_middle(batch, h * w, channels), &[x])?;
        let logits = b.linear("fc", features, Layer::new(self.classes))?;
        let mut built = b.finish("features", features);
        built.graph.output("logits", logits);
        Ok(built)
    }

    /// 299×299 pixels to 35×35 of 192 channels.
    fn stem(&self, b: &mut Builder, x: Value) -> Result<Value> {
        let valid = Shape { padded: false, ..padded([3, 3]) };
        let x = self.conv(b, "Conv2d_1a_3x3", x, 32, HALVE)?;
        let x = self.conv(b, "Conv2d_2a_3x3", x, 32, valid)?;
        let x = self.conv(b, "Conv2d_2b_3x3", x, 64, padded([3, 3]))?;
        let x = halve(b, x)?;
        let x = self.conv(b, "Conv2d_3b_1x1", x, 80, POINT)?;
        let x = self.conv(b, "Conv2d_4a_3x3", x, 192, valid)?;
        halve(b, x)
    }

    fn blocks(&self, b: &mut Builder, mut x: Value) -> Result<Value> {
        for (name, pooled) in [("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)] {
            x = block(b, name, |b| self.square(b, x, pooled))?;
        }
        x = block(b, "Mixed_6a", |b| self.first_reduction(b, x))?;
        for (name, inner) in [("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)] {
            x = block(b, name, |b| self.factored(b, x, inner))?;
        }
        x = block(b, "Mixed_7a", |b| self.second_reduction(b, x))?;
        for (name, pool) in [("Mixed_7b", Pool::Average), ("Mixed_7c", Pool::Max)] {
            x = block(b, name, |b| self.expanded(b, x, pool))?;
        }
        Ok(x)
    }

    /// relu(conv(x) + bias), the batch norm being folded in.
    fn conv(&self, b: &mut Builder, name: &str, x: Value, channels: usize, s: Shape) -> Result<Value> {
        let [top, left] = if s.padded { s.kernel.map(|k| k / 2) } else { [0, 0] };
        let padding = Padding { top, left, bottom: top, right: left };
        let window = Window { kernel: s.kernel, stride: s.stride, padding };
        b.scoped(name, |b| {
            let h = b.conv("conv", x, window, Layer::new(self.width(channels)))?;
            b.activate(h, Activation::Relu)
        })
    }

    /// Convolutions `{stem}_1`, `{stem}_2`, … one after the other.
    fn chain(&self, b: &mut Builder, stem: &str, mut x: Value, layers: &[(usize, Shape)]) -> Result<Value> {
        for (i, (channels, shape)) in layers.iter().enumerate() {
            x = self.conv(b, &format!("{stem}_{}", i + 1), x, *channels, *shape)?;
        }
        Ok(x)
    }

    /// 3×3 pooling that keeps the size, and a 1×1 convolution.
    fn pooled(&self, b: &mut Builder, x: Value, pool: Pool, channels: usize) -> Result<Value> {
        let window = PoolWindow::same(3);
        let x = match pool {
            Pool::Average => b.graph.apply(AveragePool { window, count_padding: false }, &[x])?,
            Pool::Max => b.graph.apply(MaxPool(window), &[x])?,
        };
        self.conv(b, "branch_pool", x, channels, POINT)
    }

    /// Figure 5 of the paper, the first 3×3 being 5×5: 35×35 pixels.
    fn square(&self, b: &mut Builder, x: Value, pooled_channels: usize) -> Result<Value> {
        let point = self.conv(b, "branch1x1", x, 64, POINT)?;
        let five = self.chain(b, "branch5x5", x, &[(48, POINT), (64, padded([5, 5]))])?;
        let layers = [(64, POINT), (96, padded([3, 3])), (96, padded([3, 3]))];
        let double = self.chain(b, "branch3x3dbl", x, &layers)?;
        let pool = self.pooled(b, x, Pool::Average, pooled_channels)?;
        concat(b, &[point, five, double, pool])
    }

    /// Figure 10: 35×35 → 17×17 pixels.
    fn first_reduction(&self, b: &mut Builder, x: Value) -> Result<Value> {
        let three = self.conv(b, "branch3x3", x, 384, HALVE)?;
        let double = self.chain(b, "branch3x3dbl", x, &[(64, POINT), (96, padded([3, 3])), (96, HALVE)])?;
        let pool = halve(b, x)?;
        concat(b, &[three, double, pool])
    }

    /// Figure 6: 7×7 kernels as 1×7 and 7×1, at 17×17 pixels.
    fn factored(&self, b: &mut Builder, x: Value, inner: usize) -> Result<Value> {
        let (wide, tall) = (padded([1, 7]), padded([7, 1]));
        let point = self.conv(b, "branch1x1", x, 192, POINT)?;
        let seven = self.chain(b, "branch7x7", x, &[(inner, POINT), (inner, wide), (192, tall)])?;
        let layers = [(inner, POINT), (inner, tall), (inner, wide), (inner, tall), (192, wide)];
        let double = self.chain(b, "branch7x7dbl", x, &layers)?;
        let pool = self.pooled(b, x, Pool::Average, 192)?;
        concat(b, &[point, seven, double, pool])
    }

    /// 17×17 → 8×8 pixels.
    fn second_reduction(&self, b: &mut Builder, x: Value) -> Result<Value> {
        let three = self.chain(b, "branch3x3", x, &[(192, POINT), (320, HALVE)])?;
        let layers = [(192, POINT), (192, padded([1, 7])), (192, padded([7, 1])), (192, HALVE)];
        let seven = self.chain(b, "branch7x7x3", x, &layers)?;
        let pool = halve(b, x)?;
        concat(b, &[three, seven, pool])
    }

    /// Figure 7: branches that end in a 1×3 and a 3×1 beside each other, at 8×8 pixels.
    fn expanded(&self, b: &mut Builder, x: Value, pool: Pool) -> Result<Value> {
        let (wide, tall) = (padded([1, 3]), padded([3, 1]));
        let point = self.conv(b, "branch1x1", x, 320, POINT)?;
        let three = self.chain(b, "branch3x3", x, &[(384, POINT)])?;
        let three_wide = self.conv(b, "branch3x3_2a", three, 384, wide)?;
        let three_tall = self.conv(b, "branch3x3_2b", three, 384, tall)?;
        let double = self.chain(b, "branch3x3dbl", x, &[(448, POINT), (384, padded([3, 3]))])?;
        let double_wide = self.conv(b, "branch3x3dbl_3a", double, 384, wide)?;
        let double_tall = self.conv(b, "branch3x3dbl_3b", double, 384, tall)?;
        let pool = self.pooled(b, x, pool, 192)?;
        concat(b, &[point, three_wide, three_tall, double_wide, double_tall, pool])
    }
}

/// The channels of all branches.
fn concat(b: &mut Builder, branches: &[Value]) -> Result<Value> {
    b.graph.apply(Concat { axis: 3 }, branches)
}

/// The maximum of 3×3 pixels, every second one.
fn halve(b: &mut Builder, x: Value) -> Result<Value> {
    b.graph.apply(MaxPool(PoolWindow::valid(3, 2)), &[x])
}

/// A block in its scope.
fn block(b: &mut Builder, name: &str, build: impl FnOnce(&mut Builder) -> Result<Value>) -> Result<Value> {
    b.block(|b| b.scoped(name, build))
}
