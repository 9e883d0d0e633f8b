//! `langevin bench`

use super::{Output, check_interrupt, choose, storage_type};
use crate::bench::{CASES, Measurement, lower, measure};
use crate::methods::forward::Backward;
use crate::passes::autodiff::Recompute;
use crate::{Error, Result};
use clap::Args;

/// Time networks and training steps, kernel by kernel
///
/// Weights are random: the time does not depend on them. Cases: unet (ddpm-cifar10, 35.7 M), dit (DiT-S/2), dit-xl-2 (DiT-XL/2,
/// 675 M), sd15 (SD1.5's UNet, 860 M), the embedded models, mnist-dit-moe (the preset network, 8 experts); unet-w2sd (a step
/// of unet with a reflection: three calls); and steps of training with AdamW, without averages: unet-train, edm-train (EDM's
/// DDPM++ for CIFAR-10, 55.7 M), mnist-unet-train.
///
/// Times are of whole runs, by the clock on the wall. --kernels adds a run that is timed kernel by kernel: on the wgpu device by
/// the adapter's timestamps, if it has them. Rates are the cost model's FLOPs and minimal bytes over that time. What the
/// host takes to encode and submit a run is told apart.
///
/// Examples:
///   langevin bench unet dit --batch 8
///   langevin bench sd15 --kernels
///   langevin bench mnist-unet --device wgpu --kernels
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct BenchArgs {
    /// Cases [default: unet, dit]
    cases: Vec<String>,
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Timed runs, after one that is not counted
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Also show where the time goes, by kernel
    #[arg(long)]
    kernels: bool,
    #[arg(long, default_value = "auto")]
    device: String,
    /// Type of weights and activations in memory: f32, or f16 or bf16 where the device has it
    #[arg(long, default_value = "f32")]
    dtype: String,
    /// What a training step makes again in its backward pass: off, cheap, blocks; auto: cheap in 16 bits, else off
    #[arg(long, default_value = "auto")]
    recompute: String,
}

pub fn run(args: BenchArgs, output: Output) -> Result<()> {
    if args.batch == 0 || args.runs == 0 {
        return Err(Error::invalid("--batch, --runs", "must be at least 1"));
    }
    let names = if args.cases.is_empty() { vec!["unet".to_string(), "dit".to_string()] } else { args.cases.clone() };
    if let Some(unknown) = names.iter().find(|n| !CASES.contains(&n.as_str())) {
        return Err(Error::invalid("case", format!("`{unknown}` is none of {}", CASES.join(", "))));
    }
    let dtype = storage_type(&args.dtype)?;
    let how = Backward { recompute: Recompute::parse(&args.recompute, dtype)?, dtype };
    for name in names {
        let device = choose(&args.device, output, |device| lower(&name, args.batch, how, device).map(drop))?;
        let m = measure(&name, args.batch, how, args.runs, device, &mut check_interrupt)?;
        let json = serde_json::to_value(&m).map_err(|e| Error::invalid("--json", e.to_string()))?;
        output.result(describe(&m, args.kernels), json);
    }
    Ok(())
}

fn describe(m: &Measurement, kernels: bool) -> String {
    let mut lines = vec![format!(
        "{:<11} batch {:<3} {:>9.1} ms (least {:.1})  {:>7.1} GFLOP/s  arena {:.1} MiB  peak {:.1} MiB over idle",
        m.case, m.batch, m.ms_median, m.ms_min, m.gflops, m.arena_mib, m.peak_mib_over_idle
    )];
    let (device, dtype, ready, first) = (m.device, &m.dtype, m.ms_ready, m.ms_first);
    let launches = m.launches;
    lines.push(format!(
        "  {device} device, {dtype}, ready in {ready:.0} ms, first run {first:.0} ms, {launches} launches"
    ));
    if let Some(host) = &m.host {
        lines.push(format!(
            "  host, a run: {:.3} ms to encode {:.0} dispatches ({:.2} us each), {:.3} ms to submit them in {:.1} pieces",
            host.encode_ms,
            host.dispatches,
            1e3 * host.encode_ms / host.dispatches.max(1.0),
            host.submit_ms,
            host.submissions
        ));
    }
    if kernels {
        let all: f64 = m.kernels.iter().map(|k| k.ms).sum();
        lines.push(format!("  kernels one by one: {all:.2} ms"));
        lines.push(format!("  {:<22} {:>6} {:>9} {:>6} {:>9} {:>8}", "kernel", "calls", "ms", "%", "TFLOP/s", "GB/s"));
        for k in &m.kernels {
            let (share, tflops) = (100.0 * k.ms / all, k.gflops / 1e3);
            lines.push(format!(
                "  {:<22} {:>6} {:>9.3} {share:>6.1} {tflops:>9.4} {:>8.1}",
                k.kernel, k.calls, k.ms, k.gbps
            ));
        }
    }
    lines.join("\n")
}
