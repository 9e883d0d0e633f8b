//! Measuring whole networks: time, rate, memory, and where the time goes.

use crate::device::{Device, HostWork};
use crate::diffusion::{
    Guidance, Options as SamplerOptions, Prediction, Reflection, SamplerConfig, SamplerKind, trajectory,
};
use crate::methods::forward::{Backward, forward};
use crate::methods::sample::{Denoiser, Lowering, Operator, sample};
use crate::methods::train::{TrainLowering, Training, train};
use crate::model::Embedded;
use crate::nn::{Built, InputSpec, Network};
use crate::ops::OptimizerKind;
use crate::schedule::{Options, Schedule, Session};
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};
use half::{bf16, f16};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

/// What can be measured.
pub const CASES: [&str; 11] = [
    "unet",
    "dit",
    "dit-xl-2",
    "sd15",
    "mnist-unet",
    "mnist-dit",
    "mnist-dit-moe",
    "unet-w2sd",
    "unet-train",
    "edm-train",
    "mnist-unet-train",
];

/// The shape of google/ddpm-cifar10-32, 35.7 M weights.
pub const DDPM_CIFAR10: &str = r#"{"_class_name": "UNet2DModel", "sample_size": 32, "in_channels": 3, "out_channels": 3,
 "block_out_channels": [128, 256, 256, 256], "layers_per_block": 2, "downsample_padding": 0, "flip_sin_to_cos": false,
 "freq_shift": 1, "attention_head_dim": null, "norm_eps": 1e-6,
 "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
 "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]}"#;

/// DiT-S/2 on 32×32 latents.
pub const DIT_S_2: &str = r#"{"_class_name": "DiTTransformer2DModel", "num_layers": 12, "num_attention_heads": 6,
 "attention_head_dim": 64, "in_channels": 4, "out_channels": 8, "patch_size": 2, "sample_size": 32,
 "num_embeds_ada_norm": 1000, "activation_fn": "gelu-approximate", "attention_bias": true, "norm_type": "ada_norm_zero",
 "norm_elementwise_affine": false}"#;

/// The shape of Stable Diffusion 1.5's UNet, 860 M weights.
pub const SD15: &str = r#"{"_class_name": "UNet2DConditionModel", "sample_size": 64, "in_channels": 4, "out_channels": 4,
 "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "cross_attention_dim": 768, "attention_head_dim": 8}"#;

/// DiT-XL/2 on 32×32 latents, 675 M weights.
pub const DIT_XL_2: &str = r#"{"_class_name": "DiTTransformer2DModel", "num_layers": 28, "num_attention_heads": 16,
 "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "patch_size": 2, "sample_size": 32,
 "num_embeds_ada_norm": 1000, "activation_fn": "gelu-approximate", "attention_bias": true, "norm_type": "ada_norm_zero",
 "norm_elementwise_affine": false}"#;

/// EDM's DDPM++ for CIFAR-10, 55.7 M weights.
pub const EDM_CIFAR10: &str = r#"{"_class_name": "EDMPrecond", "img_resolution": 32, "img_channels": 3, "label_dim": 0,
 "sigma_data": 0.5, "model_type": "SongUNet", "model_channels": 128, "channel_mult": [2, 2, 2], "channel_mult_emb": 4,
 "num_blocks": 4, "attn_resolutions": [16], "dropout": 0.13, "embedding_type": "positional", "channel_mult_noise": 1,
 "encoder_type": "standard", "decoder_type": "standard", "resample_filter": [1, 1]}"#;

/// Result of [`measure`].
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    pub case: String,
    pub device: &'static str,
    /// Type of weights and activations in memory.
    pub dtype: String,
    pub batch: usize,
    /// Until the first run can begin: lowering, memory, weights, and on a GPU compiled shaders.
    pub ms_ready: f64,
    /// The first run.
    pub ms_first: f64,
    /// Whole runs, by the clock on the wall.
    pub ms_median: f64,
    pub ms_min: f64,
    pub gflops: f64,
    pub launches: usize,
    /// What the host did for one run, on devices that run launches beside it.
    pub host: Option<HostTime>,
    pub arena_mib: f64,
    /// Peak resident memory less that of the process before the case began; 0 where the system does not tell.
    pub peak_mib_over_idle: f64,
    pub kernels: Vec<KernelTime>,
}

/// What the host does for a run: it encodes launches and submits them.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct HostTime {
    /// Launches encoded; one that is cut counts as several.
    pub dispatches: f64,
    pub submissions: f64,
    pub encode_ms: f64,
    pub submit_ms: f64,
}

/// Time of all launches of one kernel in one run, by the device's clock where it has one.
#[derive(Clone, Debug, Default, Serialize)]
pub struct KernelTime {
    pub kernel: String,
    pub calls: usize,
    pub ms: f64,
    pub gflops: f64,
    /// On minimal bytes.
    pub gbps: f64,
}

/// What [`measure`] runs: a case of [`CASES`] with small numbers in every buffer.
pub fn session(case: &str, batch: usize, how: Backward, device: Device) -> Result<Session> {
    let schedule = lower(case, batch, how, &device)?;
    let mut session = Session::new(device, schedule)?;
    fill(&mut session)?;
    Ok(session)
}

/// Runs a case of [`CASES`] `runs` times after a first run that is not counted, then once more kernel by kernel. `check` may
/// stop it.
///
/// # Errors
/// [`Error::Unsupported`] naming an op that the device lacks.
pub fn measure(
    case: &str,
    batch: usize,
    how: Backward,
    runs: usize,
    device: Device,
    check: &mut dyn FnMut() -> Result<()>,
) -> Result<Measurement> {
    let idle = memory("VmRSS:");
    let start = Instant::now();
    let mut session = session(case, batch, how, device)?;
    let ms_ready = start.elapsed().as_secs_f64() * 1e3;
    let launches = session.schedule().programs.iter().map(|p| p.commands.len()).sum();
    let flops: u64 = session.schedule().programs.iter().map(|p| p.cost().flops).sum();
    let mut timed = |session: &mut Session| {
        check()?;
        let start = Instant::now();
        session.run(&mut |_, _| Ok(()))?;
        Ok::<f64, Error>(start.elapsed().as_secs_f64() * 1e3)
    };
    let ms_first = timed(&mut session)?;
    let before = session.host_work();
    let mut times = (0..runs).map(|_| timed(&mut session)).collect::<Result<Vec<f64>>>()?;
    let host = before.zip(session.host_work()).map(|(before, after)| host_time(before, after, runs as f64));
    let mut kernels = BTreeMap::new();
    session.load_row(0)?;
    for p in 0..session.schedule().programs.len() {
        let mut seconds = vec![0.0; session.schedule().programs[p].commands.len()];
        session.time_program(p, &mut |i, s| seconds[i] = s)?;
        add_times(&session.schedule().programs[p].commands, &seconds, &mut kernels);
    }
    times.sort_by(f64::total_cmp);
    let mut kernels: Vec<KernelTime> = kernels.into_values().collect();
    kernels.iter_mut().for_each(|k| {
        k.gflops /= k.ms * 1e6;
        k.gbps /= k.ms * 1e6;
    });
    kernels.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    let ms_median = times[times.len() / 2];
    Ok(Measurement {
        case: case.into(),
        device: session.device().name(),
        dtype: how.dtype.to_string(),
        batch,
        ms_ready,
        ms_first,
        ms_median,
        ms_min: times[0],
        gflops: flops as f64 / ms_median / 1e6,
        launches,
        host,
        arena_mib: session.arena_bytes() as f64 / 1048576.0,
        peak_mib_over_idle: (memory("VmHWM:") - idle).max(0.0),
        kernels,
    })
}

/// A run's share of what the host did in `runs` of them.
fn host_time(before: HostWork, after: HostWork, runs: f64) -> HostTime {
    HostTime {
        dispatches: (after.dispatches - before.dispatches) as f64 / runs,
        submissions: (after.submissions - before.submissions) as f64 / runs,
        encode_ms: (after.encode_seconds - before.encode_seconds) * 1e3 / runs,
        submit_ms: (after.submit_seconds - before.submit_seconds) * 1e3 / runs,
    }
}

fn add_times(commands: &[crate::schedule::Command], seconds: &[f64], kernels: &mut BTreeMap<&'static str, KernelTime>) {
    for (c, s) in commands.iter().zip(seconds) {
        let k = kernels.entry(c.kernel.name()).or_default();
        k.kernel = c.kernel.name().into();
        k.calls += 1;
        k.ms += s * 1e3;
        // Totals for now; rates once the time is known.
        k.gflops += c.cost.flops as f64;
        k.gbps += c.cost.bytes as f64;
    }
}

/// The schedule of a case of [`CASES`], weights and activations in memory of the type that `how` says; what else it says is for
/// training steps.
///
/// # Errors
/// [`Error::Unsupported`] for a type that the device does not store.
pub fn lower(case: &str, batch: usize, how: Backward, device: &Device) -> Result<Schedule> {
    let dtype = how.dtype;
    let (config, size) = match case {
        "unet" | "unet-train" | "unet-w2sd" => (DDPM_CIFAR10, 32),
        "dit" => (DIT_S_2, 32),
        "dit-xl-2" => (DIT_XL_2, 32),
        "sd15" => (SD15, 64),
        "edm-train" => (EDM_CIFAR10, 32),
        "mnist-unet" | "mnist-unet-train" => (Embedded::Unet.config(), 28),
        "mnist-dit" => (Embedded::Dit.config(), 28),
        "mnist-dit-moe" => (include_str!("../presets/mnist-dit-moe.json"), 28),
        _ => return Err(Error::invalid("case", format!("`{case}` is none of {}", CASES.join(", ")))),
    };
    let network = Network::from_config(config, case)?;
    let spec = InputSpec::new(batch, size, size);
    if case.ends_with("-w2sd") {
        return reflected_step(&network.build(&spec)?.for_inference(dtype, &device.target())?, batch, size, device);
    }
    if !case.ends_with("-train") {
        let built = network.build(&spec)?.for_inference(dtype, &device.target())?;
        return forward(&built, None, device.target(), Options::default());
    }
    let train_how = TrainLowering {
        target: device.target(),
        optimizer: OptimizerKind::AdamW,
        emas: 0,
        accumulate: 1,
        bucket: None,
        backward: how,
        options: Options::default(),
    };
    let images = TensorType::f32([batch, size, size, network.channels()[0]]);
    let prediction = if case == "unet-train" { Prediction::Epsilon } else { Prediction::Sample };
    Ok(train(&network.build(&spec.training())?, &images, prediction, train_how)?.schedule)
}

/// One step of DDIM with a reflection between two networks of one shape.
fn reflected_step(network: &Built, batch: usize, size: usize, device: &Device) -> Result<Schedule> {
    let options = SamplerOptions { reflection: Some(Reflection::default()), ..SamplerOptions::default() };
    let kind = SamplerKind::Ddim;
    let mut step = trajectory(kind, &SamplerConfig::ddpm_linear(kind)?, 50, &options)?;
    step.steps.truncate(1);
    let of = |weights| Operator {
        denoiser: Denoiser { network, weights, inputs: "cond", scales: weights },
        guidance: Guidance::default(),
        guide: None,
    };
    let how = Lowering { target: device.target(), fuse: true, options: Options::default(), draw_latents: false };
    let latents = TensorType::f32([batch, size, size, 3]);
    Ok(sample(&step, &[of("main"), of("main"), of("weak")], &latents, how)?.schedule)
}

/// Small random numbers everywhere, so that nothing overflows and no value is denormal; an optimiser that works.
fn fill(session: &mut Session) -> Result<()> {
    let buffers = session.schedule().buffers.clone();
    for buffer in buffers.all() {
        let Some(id) = buffers.find(&buffer.name) else { continue };
        if buffer.name.as_ref() == "constant" {
            continue;
        }
        let number = |i: usize| 0.04 * ((i as u32).wrapping_mul(2_654_435_761) as f32 / u32::MAX as f32) + 1e-3;
        match buffer.ty.dtype {
            DType::F32 => session.fill(id, |data| data.iter_mut().enumerate().for_each(|(i, v)| *v = number(i)))?,
            DType::F16 => {
                session.fill(id, |data| data.iter_mut().enumerate().for_each(|(i, v)| *v = f16::from_f32(number(i))))?
            }
            DType::Bf16 => session
                .fill(id, |data| data.iter_mut().enumerate().for_each(|(i, v)| *v = bf16::from_f32(number(i))))?,
            DType::I32 => {}
        }
    }
    if session.schedule().rows.columns == Training::columns(0) {
        // lr, beta1, beta2, eps, weight decay, step, gradient scale, largest norm; draw
        session.set_rows(vec![1e-4, 0.9, 0.999, 1e-8, 0.01, 1.0, 1.0, 0.0, 0.0])?;
    }
    Ok(())
}

/// A field of /proc/self/status, in MiB.
fn memory(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(field));
    line.and_then(|l| l.trim().split(' ').next()?.parse::<f64>().ok()).map_or(0.0, |kib| kib / 1024.0)
}
