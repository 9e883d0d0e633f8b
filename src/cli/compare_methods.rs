//! `langevin compare --methods`: ways of sampling one model, side by side.

use super::progress::Progress;
use super::sample::{RequestArgs, RequestFiles, picture};
use super::{Output, choose};
use crate::diffusion::{Back, Reflection, SamplerKind};
use crate::eval::{Bootstrap, ClassProbabilities, NEIGHBOURS, Reference};
use crate::evaluator::{FeatureExtractor, Metric, evaluate, pictures};
use crate::image::{BatchShape, grid};
use crate::sampler::{Images, Leg, Reflect, SampleRequest, effective_guidance};
use crate::schedule::Report;
use crate::{Device, Error, Result};
use serde::Serialize;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Instant;

/// A way of sampling.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    Plain,
    W2sd,
    ZSampling,
    ReSampling,
    S2wd,
    AutoGuidance,
    CfgPlusPlus,
    /// Plain guidance at the effective guidance that was measured of W2SD.
    CalibratedCfg,
}

impl Method {
    pub const ALL: [Method; 8] = [
        Method::Plain,
        Method::W2sd,
        Method::ZSampling,
        Method::ReSampling,
        Method::S2wd,
        Method::AutoGuidance,
        Method::CfgPlusPlus,
        Method::CalibratedCfg,
    ];

    fn name(self) -> &'static str {
        match self {
            Method::Plain => "plain",
            Method::W2sd => "w2sd",
            Method::ZSampling => "z-sampling",
            Method::ReSampling => "resampling",
            Method::S2wd => "s2wd",
            Method::AutoGuidance => "autoguidance",
            Method::CfgPlusPlus => "cfg++",
            Method::CalibratedCfg => "calibrated-cfg",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(name: &str) -> Result<Method> {
        let names = || Method::ALL.map(Method::name).join(", ");
        let found = Method::ALL.into_iter().find(|m| m.name() == name);
        found.ok_or_else(|| Error::invalid("--methods", format!("`{name}` is none of {}", names())))
    }
}

/// What methods are given alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Budget {
    /// The network evaluations of W2SD at --steps.
    Nfe,
    /// The seconds of W2SD at --steps.
    Time,
    /// --steps.
    Steps,
}

/// How methods are compared.
pub struct Comparison<'a> {
    pub methods: Vec<Method>,
    pub budget: Budget,
    pub request: &'a RequestArgs,
    /// Real images, for Fréchet distances.
    pub reference: Option<&'a Path>,
    pub features: &'a Path,
    pub out: &'a Path,
}

/// The CFG++ scale, if none is given: the middle of its paper's range.
const CFG_PLUS_PLUS: f64 = 0.6;

/// A line of the table.
#[derive(Serialize, Debug)]
struct Line {
    method: String,
    steps: usize,
    /// Network evaluations an image.
    nfe: usize,
    seconds: f64,
    /// `None`: the model has no unconditional side.
    effective_guidance: Option<f64>,
    /// Share of values outside -1..1, percent.
    clipped: f64,
    /// Standard deviation of the values of an image, averaged over images.
    contrast: f64,
    /// MiB of the arena.
    memory: f64,
    metrics: Vec<(String, f64)>,
}

pub fn run(c: &Comparison, output: Output) -> Result<()> {
    let files = c.request.open()?;
    let w2sd = base(c, &files, Method::W2sd, None)?;
    for warning in w2sd.reflect.iter().flat_map(|r| r.warnings(w2sd.guidance_scale)) {
        output.note(warning);
    }
    let device = choose(&c.request.device, output, |device| w2sd.lower(&files.model, device).map(drop))?;
    std::fs::create_dir_all(c.out).map_err(|e| Error::io(c.out, e))?;
    let mut judge = Judge::new(c, &files, &device, output)?;
    let guided = files.model.network().null_class().is_some() || w2sd.conditioning.is_some();
    let probe = |request: SampleRequest<'_>, method: Method| -> Result<Option<f64>> {
        let bar = Progress::new(output, request.steps as u64, "steps");
        bar.message(format!("effective guidance of {method}"));
        let found = guided.then(|| effective_guidance(request, &files.model, &device, &mut || bar.advance(1)));
        bar.finish();
        found.transpose()
    };
    let calibrated = match c.methods.contains(&Method::CalibratedCfg) {
        true => probe(first_batch(base(c, &files, Method::W2sd, None)?), Method::W2sd)?,
        false => None,
    };
    let budget = w2sd.nfe(&files.model)?;
    let mut pace = Pace { budget: c.budget, nfe: budget, seconds: None };
    let (mut lines, mut sets) = (Vec::new(), Vec::new());
    // W2SD sets the pace.
    let order = std::iter::once(Method::W2sd).chain(c.methods.iter().copied().filter(|m| *m != Method::W2sd));
    for method in order {
        if method == Method::CalibratedCfg && calibrated.is_none() {
            output.note("calibrated-cfg is left out: the model has no unconditional side");
            continue;
        }
        let request = |steps| base(c, &files, method, calibrated).map(|r| SampleRequest { steps, ..r });
        let steps = pace.steps(&files, &device, &request, w2sd.steps)?;
        let (nfe, columns) = (request(steps)?.nfe(&files.model)?, request(steps)?.n);
        let bar = Progress::new(output, (steps * columns.div_ceil(w2sd.batch)) as u64, "steps");
        bar.message(method.to_string());
        let mut sampler = request(steps)?.prepare(&files.model, device.clone())?;
        let memory = Report::new(sampler.schedule()).arena_peak as f64 / f64::from(1 << 20);
        let start = Instant::now();
        let images = sampler.run(&mut |_| bar.advance(1))?;
        let seconds = start.elapsed().as_secs_f64();
        bar.finish();
        if method == Method::W2sd {
            pace.seconds = Some(seconds);
            if !c.methods.contains(&method) {
                continue;
            }
        }
        let classes: Vec<u32> = sampler.classes().iter().map(|c| *c as u32).collect();
        drop(sampler);
        lines.push(Line {
            method: method.to_string(),
            steps,
            nfe,
            seconds,
            effective_guidance: probe(first_batch(request(steps)?), method)?,
            clipped: 100.0 * images.data.iter().filter(|v| v.abs() > 1.0).count() as f64 / images.data.len() as f64,
            contrast: images.contrast(),
            memory,
            metrics: judge.measure(&images, classes)?,
        });
        sets.push(images);
    }
    show(&sets)?.save_png(c.out.join("samples.png"))?;
    let json = serde_json::to_value(&lines).map_err(|e| Error::invalid("--json", e.to_string()))?;
    output.result(table(&lines), serde_json::json!({ "methods": json, "picture": c.out.join("samples.png") }));
    Ok(())
}

/// Only what the effective guidance is taken of.
fn first_batch(request: SampleRequest) -> SampleRequest {
    let n = request.n.min(request.batch);
    SampleRequest { n, ..request }
}

/// The request of a method: the pair, guidance and everything else as the command line has it.
fn base<'a>(
    c: &Comparison,
    files: &'a RequestFiles,
    method: Method,
    calibrated: Option<f64>,
) -> Result<SampleRequest<'a>> {
    let mut request = c.request.request(files)?;
    let Some(pair) = request.reflect.take() else {
        return Err(Error::invalid(
            "--methods",
            "W2SD sets the pace; name its weak leg (see `langevin sample --help`)",
        ));
    };
    let guidance_scale = request.guidance_scale;
    let main = Leg { guidance_scale, ..Leg::default() };
    request.options.cfg_plus_plus = None;
    match method {
        Method::Plain => {}
        Method::W2sd => request.reflect = Some(pair),
        Method::S2wd => request.reflect = Some(pair.swapped()),
        Method::ZSampling => {
            let weak = Leg { guidance_scale: 0.0, ..Leg::default() };
            request.reflect = Some(Reflect { strong: main, weak, ..pair });
        }
        Method::ReSampling => {
            let reflection = Reflection { back: Back::Noise, ..pair.reflection };
            request.reflect = Some(Reflect { reflection, strong: main, ..pair });
        }
        Method::AutoGuidance => {
            let Some(weak) = pair.weak.model else {
                return Err(Error::invalid("--methods autoguidance", "needs a weak model: --reflect-with"));
            };
            (request.guide, request.guidance_scale) = (Some(weak), 2.0);
        }
        Method::CfgPlusPlus => {
            if !matches!(request.sampler, SamplerKind::Ddim | SamplerKind::Euler) {
                request.sampler = files.model.one_call_sampler();
            }
            request.options.cfg_plus_plus = Some(c.request.cfg_plus_plus.unwrap_or(CFG_PLUS_PLUS));
        }
        Method::CalibratedCfg => request.guidance_scale = calibrated.unwrap_or(guidance_scale),
    }
    Ok(request)
}

/// How many steps a method gets.
struct Pace {
    budget: Budget,
    nfe: usize,
    /// Of W2SD, once it has run.
    seconds: Option<f64>,
}

impl Pace {
    fn steps<'a>(
        &self,
        files: &'a RequestFiles,
        device: &Device,
        request: &dyn Fn(usize) -> Result<SampleRequest<'a>>,
        usual: usize,
    ) -> Result<usize> {
        let within = |nfe: f64| -> Result<usize> {
            let fits = |steps: usize| request(steps).and_then(|r| r.nfe(&files.model)).map(|n| n as f64 <= nfe);
            let mut steps = 1;
            while steps < 1000 && fits(steps + 1)? {
                steps += 1;
            }
            Ok(steps)
        };
        match (self.budget, self.seconds) {
            (Budget::Steps, _) | (_, None) => Ok(usual),
            (Budget::Nfe, _) => within(self.nfe as f64),
            (Budget::Time, Some(seconds)) => {
                // What an evaluation of this method takes, from a run of a few steps over all images.
                let pilot = request(usual.min(4))?;
                let evaluations = pilot.nfe(&files.model)? as f64;
                let mut sampler = pilot.prepare(&files.model, device.clone())?;
                let start = Instant::now();
                sampler.run(&mut |_| super::check_interrupt())?;
                within(seconds * evaluations / start.elapsed().as_secs_f64())
            }
        }
    }
}

/// The feature network with its reference, where they fit the images.
struct Judge {
    network: Option<FeatureExtractor>,
    reference: Option<Reference>,
}

impl Judge {
    fn new(c: &Comparison, files: &RequestFiles, device: &Device, output: Output) -> Result<Judge> {
        let mut network = FeatureExtractor::open(c.features, device.clone())?;
        let (channels, size) = (files.model.network().channels()[0], files.model.network().sample_size());
        if c.reference.is_none() && !network.fits(channels, size) {
            output.note(format!("no metrics: the feature network {} is for other images", network.name()));
            return Ok(Judge { network: None, reference: None });
        }
        let reference = match c.reference {
            None => None,
            Some(path) => {
                let data = crate::data::Dataset::open(path, &crate::data::DatasetOptions::default())?;
                let bar = Progress::new(output, data.n as u64, "reference images");
                let reference = network.reference(&data, NEIGHBOURS, &mut |n| bar.advance(n))?;
                bar.finish();
                Some(reference)
            }
        };
        Ok(Judge { network: Some(network), reference })
    }

    fn measure(&mut self, images: &Images, classes: Vec<u32>) -> Result<Vec<(String, f64)>> {
        let Some(network) = &mut self.network else { return Ok(vec![]) };
        let labels = (!classes.is_empty()).then_some(classes);
        let data = pictures(images, labels.clone())?;
        let extracted = network.extract("the samples", &data, &mut |_| super::check_interrupt())?;
        let mut found = Vec::new();
        if let (Some(logits), Some(labels)) = (&extracted.logits, &labels) {
            let predictions = ClassProbabilities::new(logits).predictions();
            let right = predictions.iter().zip(labels).filter(|(p, l)| p == l).count();
            found.push(("as asked, %".into(), 100.0 * right as f64 / labels.len() as f64));
        }
        if let Some(reference) = &self.reference {
            let bootstrap = Bootstrap { resamples: 0, seed: 0 };
            let metrics = [Metric::Fd];
            let rows = evaluate(network, &extracted, None, reference, &metrics, bootstrap, &mut |_| Ok(()))?.rows;
            found.extend(rows.into_iter().map(|row| (row.name, row.estimate.value)));
        }
        Ok(found)
    }
}

/// Most images of a row.
const COLUMNS: usize = 16;

/// A row of images for each method, a column for each seed.
fn show(sets: &[Images]) -> Result<crate::image::Image> {
    let Some(first) = sets.first() else { return Err(Error::invalid("--methods", "names none")) };
    let [n, c, h, w] = first.shape;
    let columns = n.min(COLUMNS);
    let data = sets.iter().flat_map(|s| s.data[..columns * c * h * w].iter().copied()).collect();
    let all = Images { data, shape: [columns * sets.len(), c, h, w] };
    if matches!(c, 1 | 3) {
        let small = grid(&all.data, BatchShape::nchw(all.shape[0], c, h, w), columns, 2)?;
        return small.upscale((64 / h.max(w).max(1)).clamp(1, 4));
    }
    picture(&all, columns)
}

fn table(lines: &[Line]) -> String {
    let metrics: Vec<&str> = lines.first().map_or(vec![], |l| l.metrics.iter().map(|m| m.0.as_str()).collect());
    let head = ["method", "steps", "NFE", "seconds", "eff. guidance", "clipped, %", "contrast", "MiB"];
    let mut rows = vec![head.iter().chain(&metrics).map(ToString::to_string).collect::<Vec<String>>()];
    for l in lines {
        let mut row = vec![
            l.method.clone(),
            l.steps.to_string(),
            l.nfe.to_string(),
            format!("{:.2}", l.seconds),
            l.effective_guidance.map_or("-".into(), |g| format!("{g:.2}")),
            format!("{:.2}", l.clipped),
            format!("{:.4}", l.contrast),
            format!("{:.1}", l.memory),
        ];
        row.extend(l.metrics.iter().map(|m| format!("{:.3}", m.1)));
        rows.push(row);
    }
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(i, (cell, w))| if i == 0 { format!("{cell:w$}") } else { format!("{cell:>w$}") });
        cells.collect::<Vec<_>>().join("  ")
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Methods by their names, or `all`.
pub fn methods(names: &[String]) -> Result<Vec<Method>> {
    match names {
        [all] if all == "all" => Ok(Method::ALL.to_vec()),
        names => names.iter().map(|n| n.parse()).collect(),
    }
}
