//! Weak-to-strong reflection: identities of the algorithm on the host in f64, the analytic mixture, and the golden trajectories
//! on every device.

mod support;

use langevin::diffusion::{
    Back, Options, QueryTime, ReflectLevels, Reflection, SamplerConfig, SamplerKind, Stage, Trajectory, trajectory,
};
use langevin::model::Model;
use langevin::nn::Routing;
use langevin::sampler::{Leg, Reflect, SampleRequest};
use langevin::schedule::{Program, Report};
use langevin::weights::Weights;
use langevin::{Device, Error};
use proptest::prelude::*;
use std::path::{Path, PathBuf};

fn reflect(reflection: Reflection) -> Options {
    Options { reflection: Some(reflection), ..Options::default() }
}

/// Samplers with a configuration in each of the three kinds of coordinates.
fn spaces() -> Vec<(SamplerKind, SamplerConfig)> {
    let (ddim, euler) = (SamplerKind::Ddim, SamplerKind::Euler);
    vec![
        (ddim, SamplerConfig::ddpm_linear(ddim).unwrap()),
        (euler, SamplerConfig::ddpm_linear(euler).unwrap()),
        (euler, SamplerConfig::edm(euler)),
        (euler, SamplerConfig::flow(euler, 3.0)),
    ]
}

/// Runs on the host; `model(leg, x, time)` answers for one number.
fn simulate(t: &Trajectory, latents: &[f64], mut model: impl FnMut(usize, f64, f64) -> f64) -> Vec<f64> {
    let mut denoiser = |leg: usize, x: &[f64], time: f64| x.iter().map(|x| model(leg, *x, time)).collect();
    t.simulate(latents, &mut denoiser, &mut |_, len| vec![0.0; len]).unwrap()
}

/// The reflection's own stages of a step.
fn reflection_stages(t: &Trajectory, step: usize) -> Trajectory {
    let mut part = t.clone();
    part.steps = vec![part.steps[step].clone()];
    part.steps[0].stages.truncate(4);
    part.init_scale = 1.0;
    part
}

#[test]
fn over_and_back_with_one_noise_is_the_identity_at_every_step() {
    // Noise prediction: the answer is the noise itself, whatever the latents.
    for (kind, config) in spaces().into_iter().take(2) {
        let t = trajectory(kind, &config, 50, &reflect(Reflection::default())).unwrap();
        for step in 0..49 {
            let x = [0.7, -1.9];
            let back = simulate(&reflection_stages(&t, step), &x, |_, _, _| 0.3);
            x.iter().zip(back).for_each(|(x, b)| assert!((x - b).abs() < 1e-12, "{kind} step {step}: {x} {b}"));
        }
    }
}

#[test]
fn released_levels_are_no_identity() {
    let config = SamplerConfig::ddpm_linear(SamplerKind::Ddim).unwrap();
    let reflection = Reflection { levels: ReflectLevels::ReleasedCode, ..Reflection::default() };
    let t = trajectory(SamplerKind::Ddim, &config, 4, &reflect(reflection)).unwrap();
    let back = simulate(&reflection_stages(&t, 0), &[1.0], |_, _, _| 0.0);
    // Section 1.7 A of the notes that this follows: few-step use is broken by it.
    assert!((back[0] - 1.0).abs() > 0.2, "{}", back[0]);
}

proptest! {
    /// With constant noise a reflected step is one plain step with eps_M + eps_S - eps_W.
    #[test]
    fn constant_noise_adds_the_gap(m in -2.0..2.0f64, s in -2.0..2.0f64, w in -2.0..2.0f64, x in -3.0..3.0f64, steps in 2usize..40) {
        for (kind, config) in spaces().into_iter().take(2) {
            let reflected = trajectory(kind, &config, steps, &reflect(Reflection { lambda: Some(1), ..Reflection::default() })).unwrap();
            let plain = trajectory(kind, &config, steps, &Options::default()).unwrap();
            let first = |mut t: Trajectory| { t.steps.truncate(1); t };
            let got = simulate(&first(reflected), &[x], |leg, _, _| [m, s, w][leg])[0];
            let wanted = simulate(&first(plain), &[x], |_, _, _| m + s - w)[0];
            prop_assert!((got - wanted).abs() < 1e-9 * (1.0 + wanted.abs()), "{kind}: {got} {wanted}");
        }
    }

    #[test]
    fn evaluations_are_steps_and_two_for_each_reflection(steps in 1usize..60, lambda in 0usize..60, repeat in 1usize..4) {
        for (kind, config) in spaces() {
            let reflection = Reflection { lambda: Some(lambda), repeat, ..Reflection::default() };
            match trajectory(kind, &config, steps, &reflect(reflection)) {
                Ok(t) => {
                    prop_assert!(lambda < steps);
                    prop_assert_eq!(t.nfe(), steps + 2 * lambda * repeat);
                    prop_assert_eq!(t.nfe(), steps + reflection.nfe(steps).unwrap());
                    let legs = |step: usize| t.steps[step].stages.iter().any(|s| matches!(s, Stage::Query { leg: 1.., .. }));
                    prop_assert!((0..steps).all(|step| legs(step) == (step < lambda)), "the noisiest steps, never the last");
                }
                Err(e) => prop_assert!(lambda >= steps && e.to_string().starts_with("lambda"), "{e}"),
            }
        }
    }
}

#[test]
fn latents_are_back_at_their_level() {
    // A model that knows the image (it is 0.4) and answers its exact noise: latents at a level stay alpha · 0.4 + sigma · eps.
    let config = SamplerConfig::flow(SamplerKind::Euler, 1.0);
    for query in [QueryTime::Old, QueryTime::New] {
        let t = trajectory(SamplerKind::Euler, &config, 10, &reflect(Reflection { query, ..Reflection::default() }))
            .unwrap();
        // Flow: the answer is eps - x0, constant along the path.
        let end = simulate(&t, &[1.3], |_, _, _| 1.3 - 0.4);
        assert!((end[0] - 0.4).abs() < 1e-12, "{query:?}: {}", end[0]);
    }
}

/// Legs have no history, so that of a multistep sampler is its ordinary steps' own.
#[test]
fn every_deterministic_sampler_reflects() {
    for kind in [SamplerKind::Ddim, SamplerKind::Euler, SamplerKind::Heun, SamplerKind::Dpmpp2m, SamplerKind::UniPc] {
        let config = SamplerConfig::ddpm_linear(kind).unwrap();
        let [plain, reflected] = [None, Some(Reflection::default())]
            .map(|reflection| trajectory(kind, &config, 12, &Options { reflection, ..Options::default() }).unwrap());
        assert_eq!(reflected.nfe(), plain.nfe() + 22, "{kind}");
        // One noise for all latents: the reflection is none, with history or without.
        let [a, b] = [&plain, &reflected].map(|t| simulate(t, &[1.1], |_, _, _| -0.6)[0]);
        assert!((a - b).abs() < 1e-9, "{kind}: {a} {b}");
        // A gap pushes.
        let gap = simulate(&reflected, &[1.1], |leg, _, _| [-0.6, -0.6, -0.5][leg])[0];
        assert!((gap - a).abs() > 1e-3, "{kind}");
    }
}

#[test]
fn cfg_plus_plus_denoises_guided_and_renoises_unguided() {
    for (kind, config) in spaces() {
        let options = Options { cfg_plus_plus: Some(0.6), ..Options::default() };
        let mut t = trajectory(kind, &config, 8, &options).unwrap();
        t.steps.truncate(1);
        t.init_scale = 1.0;
        let levels = langevin::diffusion::ladder(kind, &config, 8).unwrap().rungs[0];
        let (cond, uncond, x) = (0.3, -0.8, 1.7);
        let got = simulate(&t, &[x], |leg, _, _| if leg == 3 { uncond } else { cond })[0];
        let of = |out: f64| {
            let p = config.prediction;
            (p.x0(levels.from).eval(x, out), p.eps(levels.from).eval(x, out))
        };
        let x0 = 0.6 * of(cond).0 + 0.4 * of(uncond).0;
        let wanted = levels.to.alpha * x0 + levels.to.sigma * of(uncond).1;
        assert!((got - wanted).abs() <= 1e-9 * wanted.abs().max(1.0), "{kind}: {got} {wanted}");
    }
    let heun = SamplerConfig::edm(SamplerKind::Heun);
    let options = |scale| Options { cfg_plus_plus: Some(scale), ..Options::default() };
    assert!(matches!(trajectory(SamplerKind::Heun, &heun, 8, &options(0.5)), Err(Error::Unsupported { .. })));
    let euler = SamplerConfig::edm(SamplerKind::Euler);
    assert!(trajectory(SamplerKind::Euler, &euler, 8, &options(1.5)).unwrap_err().to_string().contains("cfg++"));
}

/// An EDM network that is a variance-preserving one in other clothes reflects as that one does: its sigma is another name for a
/// time, its input the same latents in another size, its answer what the noise leaves of them.
#[test]
fn edm_networks_reflect_as_the_noise_predictors_inside_them() {
    let edm = SamplerConfig::edm(SamplerKind::Euler);
    // Of latents of the size that a noise predictor sees, and the noise-to-signal ratio that it is told.
    let eps = |leg: usize, x: f64, s: f64| (x * (1.0 + leg as f64 * 0.1)).sin() + 0.3 * x / (1.0 + s.ln().abs());
    for query in [QueryTime::Old, QueryTime::New] {
        let t =
            trajectory(SamplerKind::Euler, &edm, 12, &reflect(Reflection { query, ..Reflection::default() })).unwrap();
        let sigmas: Vec<f64> = t.steps.iter().map(|s| s.level.0).collect();
        let got = simulate(&t, &[0.9], |leg, x, sigma| x - sigma * eps(leg, x / sigma.hypot(1.0), sigma))[0];
        // The same by hand, in variance-exploding coordinates with a noise predictor.
        let mut x = 0.9 * t.init_scale;
        for (i, s) in sigmas.iter().copied().enumerate() {
            let next = sigmas.get(i + 1).copied().unwrap_or(0.0);
            if i + 1 < sigmas.len() {
                let y = x + (next - s) * eps(1, x / s.hypot(1.0), s);
                let told = if query == QueryTime::Old { s } else { next };
                x = y + (s - next) * eps(2, y / next.hypot(1.0), told);
            }
            x += (next - s) * eps(0, x / s.hypot(1.0), s);
        }
        assert!((got - x).abs() < 1e-9 * x.abs().max(1.0), "{query:?}: {got}, not {x}");
    }
}

/// Noise is put back where there is hardly anything else, whichever time the weak network is told.
#[test]
fn reflection_keeps_the_noise_of_edm_latents() {
    let config = SamplerConfig::edm(SamplerKind::Euler);
    for query in [QueryTime::Old, QueryTime::New] {
        let t = trajectory(SamplerKind::Euler, &config, 20, &reflect(Reflection { query, ..Reflection::default() }))
            .unwrap();
        for step in (0..19).filter(|step| t.steps[*step].level.1 > 3.0) {
            let from = t.steps[step].level.0;
            // Every image is 0 and the network knows it.
            let back = simulate(&reflection_stages(&t, step), &[from], |_, _, _| 0.0)[0];
            assert!((back / from - 1.0).abs() < 0.02, "{query:?} step {step}: {from} became {back}");
        }
    }
}

#[test]
fn what_cannot_reflect_says_why() {
    let stochastic = [SamplerKind::Ddpm, SamplerKind::EulerA, SamplerKind::Dpmpp2mSde];
    for kind in stochastic {
        let config = SamplerConfig::ddpm_linear(kind).unwrap();
        let e = trajectory(kind, &config, 10, &reflect(Reflection::default())).unwrap_err();
        assert!(e.to_string().contains("eta 0"), "{kind}: {e}");
    }
    let ddim = SamplerConfig::ddpm_linear(SamplerKind::Ddim).unwrap();
    let eta = Options { eta: Some(0.5), ..reflect(Reflection::default()) };
    assert!(trajectory(SamplerKind::Ddim, &ddim, 10, &eta).unwrap_err().to_string().starts_with("eta"));
    let never = Reflection { repeat: 0, ..Reflection::default() };
    assert!(trajectory(SamplerKind::Ddim, &ddim, 10, &reflect(never)).is_err());
    let released = reflect(Reflection { levels: ReflectLevels::ReleasedCode, ..Reflection::default() });
    let edm = SamplerConfig::edm(SamplerKind::Euler);
    assert!(matches!(trajectory(SamplerKind::Euler, &edm, 10, &released), Err(Error::Unsupported { .. })));
}

#[test]
fn noise_in_place_of_the_weak_leg_keeps_the_level() {
    let config = SamplerConfig::ddpm_linear(SamplerKind::Ddim).unwrap();
    let reflection = Reflection { back: Back::Noise, ..Reflection::default() };
    let t = trajectory(SamplerKind::Ddim, &config, 20, &reflect(reflection)).unwrap();
    assert_eq!((t.nfe(), reflection.nfe(20).unwrap()), (39, 19));
    let Stage::Update { terms, .. } = &t.steps[3].stages[3] else { panic!("{}", t.steps[3].stages[3]) };
    // Of unit variance stays unit variance.
    let variance: f64 = terms.iter().map(|t| t.1 * t.1).sum();
    assert!((variance - 1.0).abs() < 1e-9, "{variance}");
}

// --- the golden models -------------------------------------------------------------------------------------------

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn distance(got: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(got.len(), wanted.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let off: f64 = got.iter().zip(wanted).map(|(a, b)| square(a - b)).sum();
    (off / wanted.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
}

/// A request for the golden trajectories: ten DDIM steps of linear betas from given latents.
fn request(model: &Model) -> SampleRequest<'static> {
    let latents = Weights::open(golden("trajectories/inputs.safetensors")).unwrap().read_f32("latents").unwrap();
    let config = r#"{"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": false}"#;
    SampleRequest {
        n: 2,
        batch: 2,
        steps: 10,
        sampler: SamplerKind::Ddim,
        config: Some(SamplerConfig::from_json(SamplerKind::Ddim, config, "golden").unwrap()),
        latents: Some(latents),
        ..SampleRequest::new(model)
    }
}

fn draw(model: &Model, request: SampleRequest, device: &Device) -> Vec<f32> {
    request.prepare(model, device.clone()).unwrap().run(&mut |_| Ok(())).unwrap().data
}

fn devices() -> Vec<Device> {
    std::iter::once(Device::Cpu).chain(support::wgpu()).collect()
}

#[test]
fn golden_trajectories_agree_with_pytorch() {
    let (strong, weak) =
        (Model::open(golden("unet2d/model")).unwrap(), Model::open(golden("trajectories/weak")).unwrap());
    let expected = Weights::open(golden("trajectories/expected.safetensors")).unwrap();
    let cases = [
        ("w2sd_lambda0", 0, QueryTime::Old),
        ("w2sd_lambda5", 5, QueryTime::Old),
        ("w2sd_lambda9", 9, QueryTime::Old),
        ("w2sd_lambda9_query_new", 9, QueryTime::New),
    ];
    for device in devices() {
        let plain = draw(&strong, request(&strong), &device);
        for (name, lambda, query) in cases {
            let reflection = Reflection { lambda: Some(lambda), query, ..Reflection::default() };
            let legs =
                Reflect { reflection, strong: Leg::default(), weak: Leg { model: Some(&weak), ..Leg::default() } };
            let request = SampleRequest { reflect: Some(legs), ..request(&strong) };
            let nfe = Report::new(&request.lower(&strong, &device).unwrap().schedule).nfe;
            assert_eq!([nfe, request.nfe(&strong).unwrap()], [10 + 2 * lambda; 2], "{name}");
            let got = draw(&strong, request, &device);
            let off = distance(&got, &expected.read_f32(name).unwrap());
            println!("{} {name}: {off:.1e}", device.name());
            assert!(off <= 1e-4, "{name}: {off}");
            assert_eq!(lambda == 0, got == plain, "{name}: bit for bit DDIM where nothing reflects, and only there");
        }
    }
}

#[test]
fn legs_share_activations() {
    let (strong, weak) =
        (Model::open(golden("unet2d/model")).unwrap(), Model::open(golden("trajectories/weak")).unwrap());
    let legs = |lambda| Reflect {
        reflection: Reflection { lambda: Some(lambda), ..Reflection::default() },
        strong: Leg::default(),
        weak: Leg { model: Some(&weak), ..Leg::default() },
    };
    let report = |reflect| {
        let request = SampleRequest { reflect, ..request(&strong) };
        let schedule = request.lower(&strong, &Device::Cpu).unwrap().schedule;
        let scratch = schedule.programs.iter().map(|p| p.peak).max().unwrap();
        let reflecting = schedule.programs.iter().find(|p| p.name.starts_with("reflect"));
        let updates = |p: &Program| p.commands.iter().filter(|c| c.kernel.name() == "diffusion_update").count();
        (scratch, schedule.buffers.bytes(), reflecting.map_or(0, updates))
    };
    let (plain, weights, _) = report(None);
    let latents = 2 * 16 * 16 * 3 * 4;
    for lambda in [1, 9] {
        let (scratch, buffers, updates) = report(Some(legs(lambda)));
        assert!(scratch <= plain + 3 * latents, "{scratch} scratch bytes, plain sampling has {plain}");
        assert!(buffers < 2 * weights + 4096, "{buffers} bytes of buffers, one model has {weights}");
        assert_eq!(updates, 3, "one update a leg");
    }
}

#[test]
fn swapped_legs_and_other_gaps_differ() {
    let model = Model::open("mnist-unet").unwrap();
    let weak = Model::open("mnist-unet-weak").unwrap();
    let sample = |reflect: Option<Reflect>| {
        let request = SampleRequest {
            n: 2,
            batch: 2,
            steps: 4,
            sampler: SamplerKind::Euler,
            reflect,
            ..SampleRequest::new(&model)
        };
        let nfe = Report::new(&request.lower(&model, &Device::Cpu).unwrap().schedule).nfe;
        assert_eq!(request.nfe(&model).unwrap(), nfe);
        let images = request.prepare(&model, Device::Cpu).unwrap().run(&mut |_| Ok(())).unwrap();
        assert!(images.data.iter().all(|v| v.is_finite()));
        (images.data, nfe)
    };
    let gap = |weak| Reflect { weak, ..Reflect::default() };
    // Guided steps are 8 calls; each of 3 reflections has two legs of one call where their guidance is 0 or 1, else of two.
    let guided = |g| Leg { guidance_scale: g, ..Leg::default() };
    let cases = [
        (None, 8),
        (Some(gap(Leg { model: Some(&weak), ..Leg::default() })), 14),
        (Some(gap(Leg { model: Some(&weak), ..Leg::default() }).swapped()), 14),
        (Some(gap(guided(0.0))), 14),
        (Some(gap(guided(-3.0))), 17),
        (Some(Reflect { strong: guided(2.5), weak: guided(0.0), ..Reflect::default() }), 17),
        (Some(gap(Leg { class: Some(3), ..Leg::default() })), 14),
    ];
    let drawn: Vec<Vec<f32>> = cases
        .into_iter()
        .map(|(reflect, calls)| {
            let (images, nfe) = sample(reflect);
            assert_eq!(nfe, calls);
            images
        })
        .collect();
    for (i, a) in drawn.iter().enumerate() {
        drawn.iter().skip(i + 1).for_each(|b| assert!(a != b));
    }
}

/// The experts with the lowest scores as the weak leg: a second graph over the same weights.
#[test]
fn a_leg_may_ask_other_experts() {
    let path = golden("dit_moe/model");
    let (model, copy) = (Model::open(&path).unwrap(), Model::open(&path).unwrap());
    let request = |routing, other| {
        let weak = Leg { routing, model: other, ..Leg::default() };
        let reflect = Some(Reflect { weak, ..Reflect::default() });
        SampleRequest { n: 2, batch: 2, steps: 3, reflect, ..SampleRequest::new(&model) }
    };
    let bytes = |r: &SampleRequest| r.lower(&model, &Device::Cpu).unwrap().schedule.buffers.bytes();
    let draw = |r: SampleRequest| r.prepare(&model, Device::Cpu).unwrap().run(&mut |_| Ok(())).unwrap().data;
    let bottom = request(Some(Routing::Bottom), None);
    let own = request(Some(Routing::Bottom), Some(&copy));
    assert_eq!(bytes(&bottom), bytes(&request(None, None)));
    assert!(bytes(&own) > 3 * bytes(&bottom) / 2);
    let images = draw(bottom);
    assert_eq!(images, draw(own), "weights of its own");
    let top = draw(request(Some(Routing::Top), None));
    assert_ne!(images, top);
    assert_eq!(top, draw(request(None, None)));
    let unet = Model::open("mnist-unet").unwrap();
    let weak = Leg { routing: Some(Routing::Bottom), ..Leg::default() };
    let reflect = Some(Reflect { weak, ..Reflect::default() });
    let e = SampleRequest { reflect, ..SampleRequest::new(&unet) }.lower(&unet, &Device::Cpu).unwrap_err();
    assert!(matches!(e, Error::Invalid { .. }) && e.to_string().contains("has no experts"), "{e}");
}

#[test]
fn warnings_name_the_effective_guidance() {
    let guided = |strong, weak| Reflect {
        strong: Leg { guidance_scale: strong, ..Leg::default() },
        weak: Leg { guidance_scale: weak, ..Leg::default() },
        ..Reflect::default()
    };
    assert_eq!(guided(5.5, 0.0).effective_guidance(5.5), 11.0);
    assert!(guided(5.5, 0.0).warnings(5.5).is_empty());
    assert!(guided(5.5, -10.0).warnings(5.5)[0].contains("at 21"));
    assert!(guided(1.0, 1.0).warnings(5.5)[0].contains("no gap"));
}
