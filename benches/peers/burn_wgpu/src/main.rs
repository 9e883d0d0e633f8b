//! Times burn's wgpu backend on the network of `langevin bench unet`: diffusers' `UNet2DModel` in the shape of
//! google/ddpm-cifar10-32, forward, f32, random weights.
//!
//! ```sh
//! cargo run --release -- 1 5        # batch, timed runs
//! ```
//!
//! burn chooses the adapter; `CUBECL_WGPU_DEFAULT_DEVICE=Cpu` makes it a software one. Each run is given the same numbers and
//! ends when its output is in host memory.

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::activation::silu;
use burn::tensor::module::{attention, interpolate};
use burn::tensor::ops::{AttentionModuleOptions, InterpolateMode, InterpolateOptions};
use burn::tensor::{Device, DeviceKind, Distribution, Tensor};
use std::time::Instant;

const CHANNELS: [usize; 4] = [128, 256, 256, 256];
/// The level, from the finest, that has attention; the middle has it too.
const ATTENTION: usize = 1;
const RESNETS: usize = 2;
const EMBEDDING: usize = 512;
/// Weights of google/ddpm-cifar10-32.
const WEIGHTS: usize = 35_746_307;

/// Norm, SiLU, convolution, the embedding's part, and the same again; a residual around it.
#[derive(Module, Debug)]
struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    time: Linear,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

/// Attention with one head over all pixels, a residual around it.
#[derive(Module, Debug)]
struct Attention {
    norm: GroupNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
}

#[derive(Module, Debug)]
struct Level {
    resnets: Vec<Resnet>,
    attentions: Vec<Attention>,
    /// To the next level: a convolution of stride 2, or one behind a doubling.
    resample: Option<Conv2d>,
}

#[derive(Module, Debug)]
struct Unet {
    time1: Linear,
    time2: Linear,
    conv_in: Conv2d,
    down: Vec<Level>,
    mid1: Resnet,
    mid_attention: Attention,
    mid2: Resnet,
    up: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

fn norm(channels: usize, device: &Device) -> GroupNorm {
    GroupNormConfig::new(32, channels).with_epsilon(1e-6).init(device)
}

fn conv3(from: usize, to: usize, device: &Device) -> Conv2d {
    Conv2dConfig::new([from, to], [3, 3]).with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1)).init(device)
}

impl Resnet {
    fn new(from: usize, to: usize, device: &Device) -> Self {
        Resnet {
            norm1: norm(from, device),
            conv1: conv3(from, to, device),
            time: LinearConfig::new(EMBEDDING, to).init(device),
            norm2: norm(to, device),
            conv2: conv3(to, to, device),
            shortcut: (from != to).then(|| Conv2dConfig::new([from, to], [1, 1]).init(device)),
        }
    }

    fn forward(&self, x: Tensor<4>, embedding: &Tensor<2>) -> Tensor<4> {
        let h = self.conv1.forward(silu(self.norm1.forward(x.clone())));
        let h = h + self.time.forward(embedding.clone()).unsqueeze_dims::<4>(&[2, 3]);
        let h = self.conv2.forward(silu(self.norm2.forward(h)));
        let x = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x),
            None => x,
        };
        x + h
    }
}

impl Attention {
    fn new(channels: usize, device: &Device) -> Self {
        let linear = || LinearConfig::new(channels, channels).init(device);
        Attention { norm: norm(channels, device), q: linear(), k: linear(), v: linear(), out: linear() }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        let tokens = self.norm.forward(x.clone()).reshape([batch, channels, height * width]).swap_dims(1, 2);
        let head = |linear: &Linear| linear.forward(tokens.clone()).unsqueeze_dim::<4>(1);
        let options = AttentionModuleOptions::default();
        let mixed = attention(head(&self.q), head(&self.k), head(&self.v), None, None, options);
        let mixed = self.out.forward(mixed.reshape([batch, height * width, channels]));
        x + mixed.swap_dims(1, 2).reshape([batch, channels, height, width])
    }
}

impl Unet {
    fn new(device: &Device) -> Self {
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        let attentions = |level: usize, count| match level {
            ATTENTION => (0..count).map(|_| Attention::new(CHANNELS[level], device)).collect(),
            _ => Vec::new(),
        };
        let last = CHANNELS.len() - 1;
        let mut skips = vec![CHANNELS[0]];
        let mut channels = CHANNELS[0];
        let mut down = Vec::new();
        for (level, to) in CHANNELS.into_iter().enumerate() {
            let mut resnets = Vec::new();
            for _ in 0..RESNETS {
                resnets.push(Resnet::new(channels, to, device));
                channels = to;
                skips.push(to);
            }
            let resample = (level < last).then(|| {
                skips.push(to);
                let window = Conv2dConfig::new([to, to], [3, 3]).with_stride([2, 2]);
                window.with_padding(PaddingConfig2d::Explicit(0, 0, 1, 1)).init(device)
            });
            down.push(Level { resnets, attentions: attentions(level, RESNETS), resample });
        }
        let mut up = Vec::new();
        for level in (0..CHANNELS.len()).rev() {
            let to = CHANNELS[level];
            let mut resnets = Vec::new();
            for _ in 0..=RESNETS {
                resnets.push(Resnet::new(channels + skips.pop().unwrap(), to, device));
                channels = to;
            }
            let resample = (level > 0).then(|| conv3(to, to, device));
            up.push(Level { resnets, attentions: attentions(level, RESNETS + 1), resample });
        }
        Unet {
            time1: linear(CHANNELS[0], EMBEDDING),
            time2: linear(EMBEDDING, EMBEDDING),
            conv_in: conv3(3, CHANNELS[0], device),
            down,
            mid1: Resnet::new(CHANNELS[last], CHANNELS[last], device),
            mid_attention: Attention::new(CHANNELS[last], device),
            mid2: Resnet::new(CHANNELS[last], CHANNELS[last], device),
            up,
            norm_out: norm(CHANNELS[0], device),
            conv_out: conv3(CHANNELS[0], 3, device),
        }
    }

    /// `x` is `[B, 3, 32, 32]`, `t` `[B, 1]`.
    fn forward(&self, x: Tensor<4>, t: Tensor<2>) -> Tensor<4> {
        let embedding = silu(self.time2.forward(silu(self.time1.forward(sinusoids(t)))));
        let mut x = self.conv_in.forward(x);
        let mut skips = vec![x.clone()];
        for level in &self.down {
            for (i, resnet) in level.resnets.iter().enumerate() {
                x = resnet.forward(x, &embedding);
                x = level.attentions.get(i).map_or(x.clone(), |a| a.forward(x));
                skips.push(x.clone());
            }
            if let Some(conv) = &level.resample {
                x = conv.forward(x);
                skips.push(x.clone());
            }
        }
        x = self.mid1.forward(x, &embedding);
        x = self.mid2.forward(self.mid_attention.forward(x), &embedding);
        for level in &self.up {
            for (i, resnet) in level.resnets.iter().enumerate() {
                x = resnet.forward(Tensor::cat(vec![x, skips.pop().unwrap()], 1), &embedding);
                x = level.attentions.get(i).map_or(x.clone(), |a| a.forward(x));
            }
            if let Some(conv) = &level.resample {
                let twice = InterpolateOptions::new(InterpolateMode::Nearest).with_scale_factor([2.0, 2.0]);
                x = conv.forward(interpolate(x, twice));
            }
        }
        self.conv_out.forward(silu(self.norm_out.forward(x)))
    }
}

/// `[B, 1]` → `[B, 128]`, sines first.
fn sinusoids(t: Tensor<2>) -> Tensor<2> {
    let half = CHANNELS[0] / 2;
    let frequency = |i| (-(10_000f32.ln()) * i as f32 / (half - 1) as f32).exp();
    let frequencies: Vec<f32> = (0..half).map(frequency).collect();
    let angles = t.clone() * Tensor::<1>::from_floats(&frequencies[..], &t.device()).unsqueeze::<2>();
    Tensor::cat(vec![angles.clone().sin(), angles.cos()], 1)
}

/// Makes the weights, which burn does when they are first asked for.
struct Make;

impl ModuleVisitor for Make {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        param.val();
    }
}

/// Seconds of processor time that this process took so far, where there is a /proc; on a software adapter they do not depend on
/// who else is at work.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    ticks.filter_map(|t| t.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn main() {
    let mut numbers = std::env::args().skip(1).map(|n| n.parse::<usize>().expect("a number"));
    let (batch, runs) = (numbers.next().unwrap_or(1), numbers.next().unwrap_or(5));
    let device = Device::wgpu(DeviceKind::DefaultDevice);
    device.seed(0);
    let unet = Unet::new(&device);
    assert_eq!(unet.num_params(), WEIGHTS, "not the network of ddpm-cifar10");
    unet.visit(&mut Make);
    let x = Tensor::<4>::random([batch, 3, 32, 32], Distribution::Normal(0.0, 1.0), &device);
    let t = Tensor::<2>::full([batch, 1], 500.0, &device);
    device.sync().expect("making the weights");
    let timed = || {
        let start = Instant::now();
        let out: Vec<f32> = unet.forward(x.clone(), t.clone()).into_data().to_vec().expect("f32");
        assert!(out.len() == batch * 3 * 32 * 32 && out.iter().all(|v| v.is_finite()));
        start.elapsed().as_secs_f64() * 1e3
    };
    let first = timed();
    let before = cpu_seconds();
    let mut times: Vec<f64> = (0..runs).map(|_| timed()).collect();
    let cpu = (cpu_seconds() - before) / runs as f64;
    times.sort_by(f64::total_cmp);
    println!(
        "unet on burn-wgpu, batch {batch}: first {first:.0} ms, then median {:.1} ms, least {:.1} ms of {runs}; CPU {cpu:.2} s a run",
        times[runs / 2],
        times[0]
    );
}
