//! `langevin compare`

use super::compare_methods::{self, Budget, Comparison, methods};
use super::sample::RequestArgs;
use super::{Output, choose};
use crate::classifier::EMBEDDED;
use crate::image::{BatchShape, grid};
use crate::model::Model;
use crate::run::{BIN_EDGES, Summary, bin_name, differences, plot};
use crate::sampler::{Images, SampleRequest};
use crate::{Device, Error, Result};
use clap::Args;
use serde_json::json;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Put training runs, or ways of sampling one model, side by side
///
/// Runs: a table, their logs in one picture, samples from the same latents. Writes log.svg and samples.png (a row for each run
/// that has a checkpoint) into --out.
///
/// Methods (--methods): each samples the same images from the same latents and seeds with the budget of W2SD. A table with
/// network evaluations, seconds, the guidance that the steps amount to, clipping, contrast, memory and metrics; samples.png has a
/// row for each method. What is sampled, and between which models W2SD reflects, is said as for `langevin sample`.
///
/// Examples:
///   langevin compare runs/a runs/b --out comparison
///   langevin compare --methods all --n 100
///   langevin compare --methods plain,w2sd,s2wd --model strong/ --reflect-with weak/ --budget time
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct CompareArgs {
    /// Folders of runs
    #[arg(required_unless_present = "methods", conflicts_with = "methods")]
    runs: Vec<PathBuf>,
    /// Of plain, w2sd, z-sampling, resampling, s2wd, autoguidance, cfg++, calibrated-cfg; or all
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    methods: Vec<String>,
    /// What methods are given alike: that of W2SD at --steps
    #[arg(long, value_enum, default_value = "nfe")]
    budget: Budget,
    /// Real images for the Frechet distance of methods
    #[arg(long, value_name = "DATA")]
    reference: Option<PathBuf>,
    /// Feature network, as for `langevin eval`
    #[arg(long, value_name = "NET", default_value = EMBEDDED)]
    features: PathBuf,
    /// Folder for the pictures
    #[arg(long, default_value = ".")]
    out: PathBuf,
    #[command(flatten)]
    request: RequestArgs,
}

pub fn run(mut args: CompareArgs, output: Output) -> Result<()> {
    if !args.methods.is_empty() {
        // The embedded pair is meant where nothing else is said.
        args.request.reflect.reflect = true;
        let comparison = Comparison {
            methods: methods(&args.methods)?,
            budget: args.budget,
            request: &args.request,
            reference: args.reference.as_deref(),
            features: &args.features,
            out: &args.out,
        };
        return compare_methods::run(&comparison, output);
    }
    let device = choose(&args.request.device, output, |_| Ok(()))?;
    let runs = args.runs.iter().map(|path| Summary::read(path)).collect::<Result<Vec<_>>>()?;
    let differ = differences(&runs)?;
    std::fs::create_dir_all(&args.out).map_err(|e| Error::io(&args.out, e))?;
    let begun: Vec<&Path> = runs.iter().filter(|r| r.last.is_some()).map(|r| r.path.as_path()).collect();
    if !begun.is_empty() {
        plot(&args.out, &begun)?;
    }
    let rows: Vec<&Path> = runs.iter().map(|r| r.path.as_path()).filter(|p| p.join("model").is_dir()).collect();
    let n = args.request.n.unwrap_or(8);
    if n > 0 && !rows.is_empty() {
        let sets =
            rows.iter().map(|path| samples(path, &args.request, n, device.clone())).collect::<Result<Vec<_>>>()?;
        picture(&sets, &rows, n)?.save_png(args.out.join("samples.png"))?;
    }
    let settings: serde_json::Map<_, _> = differ.iter().map(|(key, values)| (key.clone(), json!(values))).collect();
    output.result(table(&runs, &differ), json!({ "runs": runs, "settings": settings }));
    Ok(())
}

fn samples(run: &Path, args: &RequestArgs, n: usize, device: Device) -> Result<Images> {
    let model = Model::open(run)?;
    let defaults = SampleRequest::new(&model);
    let (guidance_scale, seed) = (args.guidance.unwrap_or(1.0), args.seed);
    let request = SampleRequest { n, batch: n.min(defaults.batch), guidance_scale, seed, ..defaults };
    request.prepare(&model, device)?.run(&mut |_| super::check_interrupt())
}

/// A row of pictures for each run.
fn picture(sets: &[Images], rows: &[&Path], columns: usize) -> Result<crate::image::Image> {
    let [_, c, h, w] = sets[0].shape;
    if let Some(other) = sets.iter().position(|s| s.shape != sets[0].shape) {
        let reason = format!("{} and {} draw images of different sizes", rows[0].display(), rows[other].display());
        return Err(Error::invalid("compare", format!("{reason}; --n 0 leaves them out")));
    }
    let data: Vec<f32> = sets.iter().flat_map(|s| s.data.iter().copied()).collect();
    grid(&data, BatchShape::nchw(columns * sets.len(), c, h, w), columns, 2)
}

fn table(runs: &[Summary], differ: &[(String, Vec<String>)]) -> String {
    let number = |v: Option<f64>| v.map_or_else(|| "-".to_string(), |v| format!("{v:.5}"));
    let mut lines = vec![("run".to_string(), runs.iter().map(|r| r.path.display().to_string()).collect::<Vec<_>>())];
    let mut line =
        |name: &str, cell: &dyn Fn(&Summary) -> String| lines.push((name.into(), runs.iter().map(cell).collect()));
    line("step", &|r| format!("{} of {}", r.last.as_ref().map_or(0, |e| e.step), r.steps));
    line("images", &|r| r.last.as_ref().map_or(0, |e| e.images).to_string());
    line("loss", &|r| number(r.last.as_ref().map(|e| e.loss)));
    line("least loss", &|r| number(r.best.as_ref().map(|e| e.loss)));
    for bin in 0..=BIN_EDGES.len() {
        let name = format!("loss, ln(alpha/sigma) {}", bin_name(bin));
        line(&name, &|r| number(r.last.as_ref().and_then(|e| *e.loss_bins.get(bin)?)));
    }
    line("grad norm", &|r| number(r.last.as_ref().map(|e| e.grad_norm)));
    let rounded = |v: Option<f64>, digits: usize| v.map_or("-".into(), |v| format!("{v:.digits$}"));
    line("images/s", &|r| rounded(r.last.as_ref().map(|e| e.images_per_second), 1));
    line("data wait, %", &|r| rounded(r.last.as_ref().map(|e| 100.0 * e.wait_share()), 2));
    line("memory, MiB", &|r| rounded(r.last.as_ref().map(|e| e.memory_mib), 0));
    lines.extend(differ.iter().cloned());
    let name = lines.iter().map(|(n, _)| n.chars().count()).max().unwrap_or(0);
    let width = lines.iter().flat_map(|(_, cells)| cells).map(|c| c.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (key, cells) in lines {
        let _ = write!(text, "{key:name$}");
        cells.iter().for_each(|cell| {
            let _ = write!(text, "  {cell:>width$}");
        });
        text.push('\n');
    }
    text.trim_end().to_owned()
}
