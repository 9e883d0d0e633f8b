//! Part `moe`: reflection between the best and the worst experts of one network (table 3 of the paper).

use super::digits::{Digits, Method, nearer};
use super::report::Section;
use super::train::train;
use super::{Part, Request, Watch};
use crate::Result;
use crate::diffusion::SamplerKind;
use crate::model::Model;
use crate::ops::Routing;
use crate::run::Settings;
use crate::sampler::{Leg, Reflect, SampleRequest};
use std::path::Path;

/// Guidance of the step and of both legs, that of the paper's table.
const GUIDANCE: f64 = 1.5;

pub(super) fn run(request: &Request, mnist: &Path, watch: &mut Watch) -> Result<Section> {
    let settings = Settings { data: mnist.display().to_string(), ..request.experts.clone() };
    let model = Model::open(train(request, "moe", settings, watch)?)?;
    let mut digits = Digits::new(request, mnist)?;
    let methods = methods(request, &model)?;
    let (table, picture) = digits.compare(request, &model, methods, "moe.png", watch)?;
    let claims = [
        ("W2SD between the best and the worst experts is nearer to the real images than the best experts alone", 1, 0),
        ("it is nearer to them than the best experts with as many evaluations", 1, 3),
        ("S2WD is farther from them than the best experts alone", 0, 2),
    ];
    let findings = claims.into_iter().filter_map(|(claim, row, other)| nearer(claim, &table, row, other));
    Ok(Section {
        part: Part::Moe,
        title: "The gap of experts".into(),
        text: format!(
            "A class-conditional DiT-MoE (`{}`) trained for {} steps of {} images, seed {}. The strong leg's tokens go to the experts \
             with the highest gate scores, the weak one's to those with the lowest; all at guidance {GUIDANCE}; reflection at all \
             steps but the last. All rows have the same latents (seed {}). \"As asked\" and the Fréchet distance are by the embedded \
             classifier, against {} real images, which the model was trained on.",
            request.experts.network,
            request.experts.steps,
            request.experts.batch,
            request.experts.seed,
            request.seed,
            digits.real()
        ),
        findings: findings.collect(),
        tables: vec![table],
        pictures: vec![picture],
    })
}

fn methods<'a>(request: &Request, model: &Model) -> Result<Vec<Method<'a>>> {
    let plain = |steps| SampleRequest {
        sampler: SamplerKind::Euler,
        steps,
        n: request.samples,
        batch: request.batch,
        seed: request.seed,
        guidance_scale: GUIDANCE,
        ..SampleRequest::new(model)
    };
    let leg = |routing| Leg { guidance_scale: GUIDANCE, routing: Some(routing), ..Leg::default() };
    let pair = || Reflect { strong: leg(Routing::Top), weak: leg(Routing::Bottom), ..Reflect::default() };
    let steps = request.steps;
    let reflected = |reflect| SampleRequest { reflect: Some(reflect), ..plain(steps) };
    let equal_calls = reflected(pair()).nfe(model)? / plain(1).nfe(model)?;
    let method = |name: &str, sample| Method { name: name.into(), sample, guidance: None };
    Ok(vec![
        method("best experts", plain(steps)),
        method("W2SD, best and worst experts", reflected(pair())),
        method("S2WD", reflected(pair().swapped())),
        method("best experts, as many evaluations as W2SD", plain(equal_calls)),
    ])
}
