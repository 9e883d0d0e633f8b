//! Part `guidance-gap`: reflection between two guidance scales of one model, and how much of what it does is guidance.

use super::draw::{Drawn, draw, rows};
use super::report::{Cell, Finding, Picture, Section, Table};
use super::{Part, Request, Watch};
use crate::Result;
use crate::classifier::Classifier;
use crate::data::{Dataset, DatasetOptions};
use crate::diffusion::SamplerKind;
use crate::eval::{Bootstrap, NEIGHBOURS, Reference};
use crate::evaluator::{FeatureExtractor, Metric, evaluate, pictures};
use crate::model::{Embedded, Model};
use crate::sampler::{Images, Leg, Reflect, SampleRequest};
use std::path::Path;

/// Guidance of the ordinary step and of the strong leg.
const GUIDANCE: f64 = 2.5;
const RESAMPLES: usize = 100;

pub(super) fn run(request: &Request, mnist: &Path, watch: &mut Watch) -> Result<Section> {
    let model = Model::embedded(Embedded::Unet)?;
    let mut network = FeatureExtractor::classifier(Classifier::embedded()?, request.device.clone())?;
    let real = Dataset::open(mnist, &DatasetOptions::default())?;
    let reference = network.reference(&real, NEIGHBOURS, &mut |_| Ok(()))?;
    let title = format!("{} samples a row, Euler's method; intervals by bootstrap.", request.samples);
    let columns = [
        ("steps", 0),
        ("network evaluations", 0),
        ("seconds", 0),
        ("guidance to first order", 1),
        ("as asked, %", 1),
        ("`fd-classifier`", 3),
        ("values outside of -1..1, %", 2),
    ];
    let mut table = Table::new(&title, "sampler", &columns);
    let mut sets = Vec::new();
    for Method { name, sample, effective } in methods(request, &model)? {
        let steps = sample.steps;
        let drawn = draw(&name, sample, &model, &request.device, watch)?;
        let [as_asked, distance] = judge(&mut network, &reference, &drawn)?;
        let outside = drawn.images.data.iter().filter(|v| v.abs() > 1.0).count() as f64;
        let outside = 100.0 * outside / drawn.images.data.len() as f64;
        let cost = [steps as f64, drawn.nfe as f64, drawn.seconds, effective].map(Cell::from);
        table.row(name, cost.into_iter().chain([as_asked, distance, outside.into()]).map(Some).collect());
        sets.push(drawn.images);
    }
    let file = "guidance-gap.png";
    rows(&request.out.join(file), &sets.iter().collect::<Vec<&Images>>())?;
    let names: Vec<&str> = table.rows.iter().map(|r| r.name.as_str()).collect();
    let caption = format!("A column has one latent and class; rows from the top: {}", names.join(", "));
    Ok(Section {
        part: Part::GuidanceGap,
        title: "The gap of guidance".into(),
        text: format!(
            "The embedded class-conditional `mnist-unet`, all classes in turn; W2SD's legs are the model itself at two guidance \
             scales, the strong one's that of the ordinary step; reflection at all steps but the last. All rows have the same latents \
             (seed {}). \"As asked\" and the Fréchet distance are by the embedded classifier, against {} real images, which the model \
             was trained on. Seconds are of this machine while it sampled.",
            request.seed, real.n
        ),
        findings: findings(&table),
        tables: vec![table],
        pictures: vec![Picture { file: file.into(), caption }],
    })
}

/// A row: what is sampled, and the guidance that it amounts to.
struct Method<'a> {
    name: String,
    sample: SampleRequest<'a>,
    effective: f64,
}

fn methods<'a>(request: &Request, model: &Model) -> Result<Vec<Method<'a>>> {
    let plain = |guidance_scale, steps| SampleRequest {
        sampler: SamplerKind::Euler,
        steps,
        n: request.samples,
        batch: request.batch,
        seed: request.seed,
        guidance_scale,
        ..SampleRequest::new(model)
    };
    let guided = |guidance_scale| Leg { guidance_scale, ..Leg::default() };
    let pair = |weak| Reflect { strong: guided(GUIDANCE), weak: guided(weak), ..Reflect::default() };
    let steps = request.steps;
    let reflected = |weak| SampleRequest { reflect: Some(pair(weak)), ..plain(GUIDANCE, steps) };
    let [zero, one] = [0.0, 1.0].map(|weak| pair(weak).effective_guidance(GUIDANCE));
    let equal_calls = reflected(0.0).nfe(model)? / plain(GUIDANCE, 1).nfe(model)?;
    let cfg = |name: String, guidance, steps| Method { name, sample: plain(guidance, steps), effective: guidance };
    let w2sd = |name, weak, effective| Method { name, sample: reflected(weak), effective };
    Ok(vec![
        cfg(format!("guidance {GUIDANCE}"), GUIDANCE, steps),
        w2sd(format!("W2SD, {GUIDANCE} / 0 (Z-Sampling)"), 0.0, zero),
        cfg(format!("guidance {zero}"), zero, steps),
        w2sd(format!("W2SD, {GUIDANCE} / 1"), 1.0, one),
        cfg(format!("guidance {one}"), one, steps),
        cfg(format!("guidance {GUIDANCE}, as many evaluations as Z-Sampling"), GUIDANCE, equal_calls),
    ])
}

/// Percent of samples that are what they should be, and the distance from the real images.
fn judge(network: &mut FeatureExtractor, reference: &Reference, drawn: &Drawn) -> Result<[Cell; 2]> {
    let data = pictures(&drawn.images, Some(drawn.classes.clone()))?;
    let extracted = network.extract("the samples", &data, &mut |_| Ok(()))?;
    let bootstrap = Bootstrap { resamples: RESAMPLES, seed: 0 };
    let metrics = [Metric::Fd, Metric::Classes];
    let labels = Some(&drawn.classes[..]);
    let found = evaluate(network, &extracted, labels, reference, &metrics, bootstrap, &mut |_| Ok(()))?;
    let of = |name: &str, factor: f64| {
        let estimate = found.rows.iter().find(|r| r.name == name).map(|r| r.estimate);
        estimate.map_or(Cell::from(f64::NAN), |e| Cell {
            value: factor * e.value,
            interval: e.interval.map(|i| i.map(|v| factor * v)),
        })
    };
    Ok([of("class-agreement", 100.0), of("fd-classifier", 1.0)])
}

/// Whether reflection does more than the guidance that it amounts to, by intervals that do not meet.
fn findings(table: &Table) -> Vec<Finding> {
    let cell = |row: usize, column: usize| table.rows[row].cells[column].and_then(|c| c.interval.map(|i| (c.value, i)));
    let compare = |claim: &str, row: usize, other: usize| {
        let ((a, [_, a_high]), (b, [b_low, _])) = (cell(row, 5)?, cell(other, 5)?);
        let numbers = format!("`fd-classifier` {a:.3} against {b:.3}");
        Some(Finding { claim: claim.into(), shown: a_high < b_low, numbers })
    };
    [
        compare("Z-Sampling is nearer to the real images than guidance alone", 1, 0),
        compare("Z-Sampling is nearer to them than guidance at its first-order equivalent", 1, 2),
        compare("W2SD with the weak leg at guidance 1 is nearer to them than guidance alone", 3, 0),
        compare("and than guidance at its first-order equivalent", 3, 4),
        compare("Z-Sampling is nearer to them than guidance alone with as many evaluations", 1, 5),
    ]
    .into_iter()
    .flatten()
    .collect()
}
