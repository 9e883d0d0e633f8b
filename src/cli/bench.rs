//! `langevin bench`

use super::{Output, check_interrupt};
use crate::bench::{CASES, Measurement, measure};
use crate::{Device, Error, Result};
use clap::Args;

/// Time networks and training steps, kernel by kernel
///
/// Weights are random: the time does not depend on them. Cases: unet (ddpm-cifar10, 35.7 M), dit (DiT-S/2), unet-train (one
/// AdamW step of unet), sd15 (SD1.5's UNet, 860 M), the embedded models, and mnist-unet-train (one step of mnist-unet as
/// `langevin train` takes it, but without averages).
///
/// Examples:
///   langevin bench unet dit --batch 8
///   langevin bench sd15 --kernels
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
}

pub fn run(args: BenchArgs, output: Output) -> Result<()> {
    let device: Device = args.device.parse()?;
    if args.batch == 0 || args.runs == 0 {
        return Err(Error::invalid("--batch, --runs", "must be at least 1"));
    }
    let names = if args.cases.is_empty() { vec!["unet".to_string(), "dit".to_string()] } else { args.cases.clone() };
    if let Some(unknown) = names.iter().find(|n| !CASES.contains(&n.as_str())) {
        return Err(Error::invalid("case", format!("`{unknown}` is none of {}", CASES.join(", "))));
    }
    for name in names {
        let m = measure(&name, args.batch, args.runs, device.clone(), &mut check_interrupt)?;
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
    if kernels {
        lines.push(format!("  {:<22} {:>6} {:>9} {:>6} {:>9} {:>8}", "kernel", "calls", "ms", "%", "GFLOP/s", "GB/s"));
        for k in &m.kernels {
            let share = 100.0 * k.ms / m.ms_median;
            lines.push(format!(
                "  {:<22} {:>6} {:>9.2} {share:>6.1} {:>9.1} {:>8.1}",
                k.kernel, k.calls, k.ms, k.gflops, k.gbps
            ));
        }
    }
    lines.join("\n")
}
