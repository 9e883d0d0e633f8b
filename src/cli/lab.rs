//! `langevin kernels list`, `check`, `bench`

use super::{Output, check_interrupt, storage_type};
use crate::graph::Kernel;
use crate::lab::{Case, cases, check, count, models, time};
use crate::ptx::Counters;
use crate::tensor::DType;
use crate::{Device, Error, Result};
use clap::Args;
use serde_json::json;

/// Which ops, with which shapes, where
#[derive(Args, Debug)]
pub struct LabArgs {
    /// Only this op or kernel
    name: Option<String>,
    /// Where shapes come from: sd15, sdxl, dit-xl-2, edm-cifar10, ddpm-cifar10, tiny-unet, tiny-dit, steps, peers [default: tiny-unet, tiny-dit]
    #[arg(long = "model")]
    models: Vec<String>,
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// The ops of a training step instead of those of the forward
    #[arg(long)]
    training: bool,
    #[arg(long, default_value = "ptx")]
    device: String,
    /// Types of numbers in memory [default: all that the device and the op have]
    #[arg(long = "dtype")]
    dtypes: Vec<String>,
}

/// List ops with their shapes and the kernels that compute them on a device
///
/// Example: langevin kernels list attention --model sd15 --device wgpu
#[derive(Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    lab: LabArgs,
}

/// Compare a device's kernels with the processor's, op by op
///
/// Numbers are uniform in ±1, rounded to the type first. The bound is 1e-4 of the result's norm for f32, 2e-3 for f16, 1.6e-2 for bf16.
/// Fails if an op is off by more, and names its worst element.
///
/// Examples:
///   langevin kernels check
///   langevin kernels check conv2d --device cuda --model sd15 --model edm-cifar10
///   langevin kernels check activation --replace activation=mine.ptx
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct CheckArgs {
    #[command(flatten)]
    lab: LabArgs,
}

/// Time a device's kernels with cold caches, op by op; on the ptx device, which has no clock, count what they do
///
/// GB/s are on minimal bytes; "of copy" compares them with what the device copies in the same run.
///
/// Examples:
///   langevin kernels bench --device cuda --model sd15 --dtype bf16
///   langevin kernels bench group_norm
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct BenchArgs {
    #[command(flatten)]
    lab: LabArgs,
    /// Timed runs, of which the median counts
    #[arg(long, default_value_t = 20)]
    runs: usize,
}

impl LabArgs {
    fn device(&self) -> Result<Device> {
        self.device.parse()
    }

    fn dtypes(&self) -> Result<Vec<DType>> {
        match &self.dtypes[..] {
            [] => Ok(vec![DType::F32, DType::F16, DType::Bf16]),
            names => names.iter().map(|name| storage_type(name)).collect(),
        }
    }

    /// The cases that are meant, each op with each shape once.
    fn cases(&self, device: &Device) -> Result<Vec<Case>> {
        let names: Vec<&str> = match &self.models[..] {
            [] => vec!["tiny-unet", "tiny-dit"],
            names => names.iter().map(String::as_str).collect(),
        };
        if self.batch == 0 {
            return Err(Error::invalid("--batch", "must be at least 1"));
        }
        let mut all = Vec::new();
        for name in &names {
            all.extend(cases(name, self.batch, self.training)?);
        }
        let Some(name) = &self.name else { return Ok(all) };
        all.retain(|case| case.op.name() == name || kernels(case, device).contains(name));
        if all.is_empty() {
            let reason =
                format!("no op or kernel of {} has that name; `langevin kernels list` has them", names.join(", "));
            return Err(Error::invalid(name.clone(), reason));
        }
        Ok(all)
    }
}

/// The names of the kernels that compute a case on a device.
fn kernels(case: &Case, device: &Device) -> Vec<String> {
    let launches = case.op.lower(&case.io, &device.target()).unwrap_or_default();
    let mut names: Vec<String> = launches.iter().map(|l| l.kernel.name().to_string()).collect();
    names.dedup();
    names
}

pub fn list(args: &ListArgs, output: Output) -> Result<()> {
    let device = args.lab.device()?;
    let mut lines = Vec::new();
    for case in args.lab.cases(&device)? {
        let what = match case.op.lower(&case.io, &device.target()) {
            Ok(launches) => launches.iter().map(|l| entry(&l.kernel)).collect::<Vec<_>>().join(", "),
            Err(e) => e.to_string(),
        };
        let (name, shapes) = (case.op.name(), case.shapes());
        let text = format!("{name:<22} {:>3} × in {:<12} {shapes}\n{:22} {what}", case.count, case.model, "");
        let json = json!({ "op": name, "model": case.model, "count": case.count, "shapes": shapes, "kernels": what });
        lines.push((text, json));
    }
    let text: Vec<&str> = lines.iter().map(|l| l.0.as_str()).collect();
    let models: Vec<String> = models().iter().map(|(name, what)| format!("{name}: {what}")).collect();
    let text = format!("{}\n\nShapes (--model): {}", text.join("\n"), models.join("; "));
    output.result(text, json!(lines.iter().map(|l| &l.1).collect::<Vec<_>>()));
    Ok(())
}

fn entry(kernel: &Kernel) -> String {
    match kernel {
        Kernel::Cpu { name, .. } => format!("{name} (Rust)"),
        Kernel::Wgsl(shader) => format!("{}:{} (WGSL)", shader.name, shader.entry),
        Kernel::Ptx(ptx) => format!("{} ({}/{}.ptx)", ptx.entry, ptx.file.folder, ptx.file.name),
    }
}

pub fn check_all(args: &CheckArgs, output: Output) -> Result<()> {
    let device = args.lab.device()?;
    let (mut checked, mut failed) = (0, Vec::new());
    for case in args.lab.cases(&device)? {
        for dtype in args.lab.dtypes()? {
            check_interrupt()?;
            let Some(parity) = check(&case, &device, dtype)? else { continue };
            checked += 1;
            let (name, shapes, worst) = (case.op.name(), case.shapes(), &parity.worst);
            let verdict = if parity.holds() { "ok" } else { "WRONG" };
            let mut text = format!("{verdict:<5} {name:<22} {dtype:<4} {:.1e}  {shapes}", parity.error);
            if !parity.holds() {
                let place = format!("element {} of output {}", worst.element, worst.output);
                text += &format!("\n      worst: {place} is {} and should be {}", worst.got, worst.expected);
                failed.push(format!("{name} in {dtype}, {place}: {} for {}", worst.got, worst.expected));
            }
            let json = json!({ "op": name, "dtype": dtype.to_string(), "shapes": shapes, "ok": parity.holds(), "parity": parity });
            output.result(text, json);
        }
    }
    if !failed.is_empty() {
        let reason = format!("{} of {checked} are off: {}", failed.len(), failed.join("; "));
        return Err(Error::Device { device: device.name(), reason });
    }
    output.note(format!("{checked} checked on {device}"));
    Ok(())
}

pub fn bench(args: &BenchArgs, output: Output) -> Result<()> {
    let device = args.lab.device()?;
    for case in args.lab.cases(&device)? {
        for dtype in args.lab.dtypes()? {
            check_interrupt()?;
            let (name, shapes) = (case.op.name(), case.shapes());
            if matches!(device, Device::Ptx(_)) {
                let Some(counted) = count(&case, &device, dtype)? else { continue };
                let lines: Vec<String> = counted.iter().map(|(kernel, counters)| counts(kernel, counters)).collect();
                let json = counted
                    .iter()
                    .map(|(kernel, c)| json!({ "kernel": kernel, "counters": super::kernels::to_json(c) }));
                let json = json!({ "op": name, "dtype": dtype.to_string(), "shapes": shapes, "launches": json.collect::<Vec<_>>() });
                output.result(format!("{name} {dtype}  {shapes}\n{}", lines.join("\n")), json);
                continue;
            }
            let Some(t) = time(&case, &device, dtype, args.runs)? else { continue };
            let roofline = t.of_roofline.map(|part| format!("  {:>5.1} % of roofline", 100.0 * part));
            let text = format!(
                "{name:<22} {dtype:<4} {:>9.4} ms  {:>8.1} GB/s ({:>5.1} % of copy)  {:>8.3} TFLOP/s{}  {} launches  {shapes}",
                t.ms_median,
                t.gbps,
                100.0 * t.gbps / t.copy_gbps,
                t.gflops / 1e3,
                roofline.unwrap_or_default(),
                t.launches
            );
            output.result(text, json!({ "op": name, "dtype": dtype.to_string(), "shapes": shapes, "timing": t }));
        }
    }
    Ok(())
}

/// What makes a kernel slow, in a line.
fn counts(kernel: &str, c: &Counters) -> String {
    let each = |t: &crate::ptx::count::Traffic| t.sectors as f64 / t.requests.max(1) as f64;
    format!(
        "  {kernel:<34} {:>9} instructions, {:>3.0} % of lanes; loads {:.1} sectors a request (least {:.1}), stores {:.1} (least {:.1}); \
         {} bank conflicts in {} wavefronts",
        c.issued(),
        100.0 * c.lanes as f64 / (32 * c.issued().max(1)) as f64,
        each(&c.loads),
        c.loads.least_sectors as f64 / c.loads.requests.max(1) as f64,
        each(&c.stores),
        c.stores.least_sectors as f64 / c.stores.requests.max(1) as f64,
        c.bank_conflicts,
        c.shared_wavefronts
    )
}
