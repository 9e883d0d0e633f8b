//! Part `guidance-gap`: reflection between two guidance scales of one model, and how much of what it does is guidance.

use super::digits::{Digits, Method, nearer};
use super::report::Section;
use super::{Part, Request, Watch};
use crate::Result;
use crate::diffusion::SamplerKind;
use crate::model::{Embedded, Model};
use crate::sampler::{Leg, Reflect, SampleRequest};
use std::path::Path;

/// Guidance of the ordinary step and of the strong leg.
const GUIDANCE: f64 = 2.5;

pub(super) fn run(request: &Request, mnist: &Path, watch: &mut Watch) -> Result<Section> {
    let model = Model::embedded(Embedded::Unet)?;
    let mut digits = Digits::new(request, mnist)?;
    let methods = methods(request, &model)?;
    let (table, picture) = digits.compare(request, &model, methods, "guidance-gap.png", watch)?;
    let claims = [
        ("Z-Sampling is nearer to the real images than guidance alone", 1, 0),
        ("Z-Sampling is nearer to them than guidance at its first-order equivalent", 1, 2),
        ("W2SD with the weak leg at guidance 1 is nearer to them than guidance alone", 3, 0),
        ("and than guidance at its first-order equivalent", 3, 4),
        ("Z-Sampling is nearer to them than guidance alone with as many evaluations", 1, 5),
    ];
    let findings = claims.into_iter().filter_map(|(claim, row, other)| nearer(claim, &table, row, other));
    Ok(Section {
        part: Part::GuidanceGap,
        title: "The gap of guidance".into(),
        text: format!(
            "The embedded class-conditional `mnist-unet`, all classes in turn; W2SD's legs are the model itself at two guidance \
             scales, the strong one's that of the ordinary step; reflection at all steps but the last. All rows have the same latents \
             (seed {}). \"As asked\" and the Fréchet distance are by the embedded classifier, against {} real images, which the model \
             was trained on. Seconds are of this machine while it sampled.",
            request.seed,
            digits.real()
        ),
        findings: findings.collect(),
        tables: vec![table],
        pictures: vec![picture],
    })
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
    let cfg = |name: String, g, steps| Method { name, sample: plain(g, steps), guidance: Some(g) };
    let w2sd = |name, weak, effective| Method { name, sample: reflected(weak), guidance: Some(effective) };
    Ok(vec![
        cfg(format!("guidance {GUIDANCE}"), GUIDANCE, steps),
        w2sd(format!("W2SD, {GUIDANCE} / 0 (Z-Sampling)"), 0.0, zero),
        cfg(format!("guidance {zero}"), zero, steps),
        w2sd(format!("W2SD, {GUIDANCE} / 1"), 1.0, one),
        cfg(format!("guidance {one}"), one, steps),
        cfg(format!("guidance {GUIDANCE}, as many evaluations as Z-Sampling"), GUIDANCE, equal_calls),
    ])
}
