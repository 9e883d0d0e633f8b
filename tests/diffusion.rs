//! Samplers against diffusers (tests/data/schedulers.json), against exact solutions, and against their own promises.
//!
//! The reference trajectories are diffusers 0.42.1's, its own source with the float32 casts replaced by float64, on the
//! model `0.3 x + 0.1 sin(t/100) + 0.05 x²/(1 + x²)`. Stock diffusers keeps betas and sigmas in float32 and differs
//! from these by up to 2e-5.

use langevin::Error;
use langevin::diffusion::samplers::ddim;
use langevin::diffusion::{
    Betas, Churn, Interval, Level, Options, Prediction, Reg, SamplerConfig, SamplerKind, SigmaGrid, Space, Spacing,
    Stage, Trajectory, VpSchedule, trajectory,
};
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    name: String,
    class: String,
    config: serde_json::Value,
    steps: usize,
    eta: f64,
    latents_unit: Vec<f64>,
    init_noise_sigma: f64,
    timesteps: Vec<f64>,
    noises: Vec<Vec<f64>>,
    r#final: Vec<f64>,
    final_shipped_f32: Vec<f64>,
}

/// What langevin does not have, and says so.
const REFUSED: [&str; 5] = [
    "euler_sigma_min_loglinear_5",
    "dpmpp_order3_10",
    "dpmpp_order3_heun_sigma_min_20",
    "dpm_order2_sigma_min_5",
    "unipc_eps_space_sigma_min_5",
];

/// A single linspace step: diffusers asks at timestep 0 (a no-op), langevin starts from noise.
const ONE_STEP: [&str; 3] = ["euler_default_1", "heun_default_1", "euler_a_1"];

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("data/schedulers.json")).unwrap()
}

fn kind(case: &Case) -> SamplerKind {
    match case.class.as_str() {
        "DDIMScheduler" => SamplerKind::Ddim,
        "DDPMScheduler" => SamplerKind::Ddpm,
        "EulerDiscreteScheduler" => SamplerKind::Euler,
        "EulerAncestralDiscreteScheduler" => SamplerKind::EulerA,
        "HeunDiscreteScheduler" => SamplerKind::Heun,
        "DPMSolverMultistepScheduler" if case.name.contains("_sde_") => SamplerKind::Dpmpp2mSde,
        "DPMSolverMultistepScheduler" => SamplerKind::Dpmpp2m,
        "UniPCMultistepScheduler" => SamplerKind::UniPc,
        class => panic!("{class}"),
    }
}

fn options(kind: SamplerKind, eta: f64) -> Options {
    Options { eta: (kind == SamplerKind::Ddim).then_some(eta), ..Options::default() }
}

fn model(x: f64, t: f64) -> f64 {
    0.3 * x + 0.1 * (t / 100.0).sin() + 0.05 * x * x / (1.0 + x * x)
}

fn worst(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(1.0f64, |scale, b| scale.max(b.abs()));
    a.iter().zip(b).fold(0.0, |worst: f64, (a, b)| worst.max((a - b).abs())) / scale
}

#[test]
fn trajectories_match_diffusers() {
    let mut report = std::collections::BTreeMap::new();
    for case in cases() {
        let kind = kind(&case);
        let config = SamplerConfig::from_json(kind, &case.config.to_string(), "scheduler_config.json");
        if REFUSED.contains(&case.name.as_str()) {
            assert!(matches!(config, Err(Error::Config { .. })), "{}", case.name);
            continue;
        }
        let config = config.unwrap();
        let plan = trajectory(kind, &config, case.steps, &options(kind, case.eta)).unwrap();
        if ONE_STEP.contains(&case.name.as_str()) {
            assert!(matches!(plan.steps[0].stages[0], Stage::Query { time: 999.0, .. }));
            continue;
        }
        assert!(
            (plan.init_scale / case.init_noise_sigma - 1.0).abs() < 1e-11,
            "{}: init scale {}, {}",
            case.name,
            plan.init_scale,
            case.init_noise_sigma
        );

        let mut times = vec![];
        let mut denoiser = |_: usize, x: &[f64], t: f64| {
            times.push(t);
            x.iter().map(|x| model(*x, t)).collect()
        };
        let drawn = |draw: u32| case.noises[draw as usize].clone();
        let mut noise = |draw: u32, len: usize| Some(drawn(draw)).filter(|z| z.len() == len).unwrap_or(vec![0.0; len]);
        let result = plan.simulate(&case.latents_unit, &mut denoiser, &mut noise).unwrap();

        assert!(worst(&times, &case.timesteps) < 1e-9, "{}: times {times:?}, {:?}", case.name, case.timesteps);
        let error = worst(&result, &case.r#final);
        assert!(error < 1e-9, "{}: off by {error:e}: {result:?}, {:?}", case.name, case.r#final);
        // Fractional timesteps of Karras and exponential grids are rough in float32.
        let fractional = case.timesteps.iter().any(|t| t.fract() != 0.0);
        let shipped = worst(&result, &case.final_shipped_f32);
        assert!(shipped < if fractional { 2e-3 } else { 3e-5 }, "{}: stock diffusers off by {shipped:e}", case.name);
        let family = report.entry(kind.name()).or_insert((0.0, 0.0, 0));
        *family = (error.max(family.0), shipped.max(family.1), family.2 + 1);
    }
    for (family, (error, shipped, cases)) in report {
        println!("{family:>13}: {cases:2} cases, f64 {error:.1e}, as shipped {shipped:.1e}");
    }
}

// --- exact solutions ---------------------------------------------------------------------------------------------

/// The standard deviation of Gaussian data.
const DATA: f64 = 0.5;

/// What the best model answers about latents of Gaussian data at `level`, as a factor of the latents (before scaling).
fn gaussian(prediction: Prediction, level: Level) -> f64 {
    let variance = (level.alpha * DATA).powi(2) + level.sigma.powi(2);
    let (x0, eps) = (level.alpha * DATA * DATA / variance, level.sigma / variance);
    match prediction {
        Prediction::Epsilon => eps,
        Prediction::Sample => x0,
        Prediction::Velocity => (level.alpha * eps - level.sigma * x0) / level.alpha.hypot(level.sigma),
        Prediction::Flow => eps - x0,
    }
}

/// The level that a model on `space` is asked about when it is told `time`, in the coordinates in which it sees
/// latents.
fn level_of(space: &Space, time: f64) -> Level {
    match space {
        Space::Vp(vp) => Level::vp_from_ratio(vp.ratio(time), time),
        Space::Edm { .. } => Level::edm(time),
        Space::Flow { num_train_timesteps, .. } => Level::flow(time / *num_train_timesteps as f64, time),
    }
}

fn run_gaussian(plan: &Trajectory, config: &SamplerConfig, latents: &[f64]) -> Vec<f64> {
    let mut denoiser = |_: usize, x: &[f64], time: f64| {
        let factor = gaussian(config.prediction, level_of(&config.space, time));
        x.iter().map(|x| factor * x).collect()
    };
    // Draw k goes to element k + 1 alone: the result is how strongly each of them is felt.
    let mut noise = |draw: u32, len: usize| (0..len).map(|i| f64::from(u8::from(i == draw as usize + 1))).collect();
    plan.simulate(latents, &mut denoiser, &mut noise).unwrap()
}

/// The error of `steps` deterministic steps, measured where the last one begins (it ends at zero noise, where no solver
/// has its order).
fn ode_error(kind: SamplerKind, config: &SamplerConfig, steps: usize) -> f64 {
    let mut plan = trajectory(kind, config, steps, &Options::default()).unwrap();
    let last = plan.steps.pop().unwrap();
    let deviation = |level: Level| (level.alpha * DATA).hypot(level.sigma);
    let coordinates = |ratio: f64| match config.space {
        Space::Flow { .. } => Level::flow(ratio / (1.0 + ratio), 0.0),
        _ => Level::edm(ratio),
    };
    let first =
        if plan.steps[0].level.0.is_finite() { coordinates(plan.steps[0].level.0) } else { Level::flow(1.0, 0.0) };
    let exact = plan.init_scale * deviation(coordinates(last.level.0)) / deviation(first);
    (run_gaussian(&plan, config, &[1.0])[0] / exact - 1.0).abs()
}

#[test]
fn deterministic_samplers_converge_with_their_order() {
    use SamplerKind::*;
    for (kind, order) in [(Ddim, 1.0), (Euler, 1.0), (Heun, 2.0), (Dpmpp2m, 2.0), (UniPc, 3.0)] {
        let config = SamplerConfig::edm(kind);
        let (coarse, fine) = (ode_error(kind, &config, 128), ode_error(kind, &config, 256));
        let measured = (coarse / fine).log2();
        println!("{kind:>9} EDM: {coarse:.1e} to {fine:.1e}, order {measured:.2}");
        assert!((measured - order).abs() < 0.35, "{kind}: {coarse:e} to {fine:e}, order {measured}");
    }
    for (kind, order) in [(Euler, 1.0), (Heun, 2.0)] {
        let config = SamplerConfig::flow(kind, 1.0);
        let (coarse, fine) = (ode_error(kind, &config, 128), ode_error(kind, &config, 256));
        let measured = (coarse / fine).log2();
        println!("{kind:>9} flow: {coarse:.1e} to {fine:.1e}, order {measured:.2}");
        assert!((measured - order).abs() < 0.35, "{kind} flow: {coarse:e} to {fine:e}, order {measured}");
    }
}

#[test]
fn a_model_may_predict_anything() {
    let vp = VpSchedule::new(&Betas::Linear { start: 1e-4, end: 0.02 }, 1000, false).unwrap();
    for kind in SamplerKind::ALL {
        let results: Vec<Vec<f64>> = [Prediction::Epsilon, Prediction::Sample, Prediction::Velocity]
            .into_iter()
            .map(|prediction| {
                let config = SamplerConfig::new(kind, Space::Vp(vp.clone()), prediction);
                let plan = trajectory(kind, &config, 10, &Options::default()).unwrap();
                run_gaussian(&plan, &config, &[0.3, -1.0, 2.0])
            })
            .collect();
        assert!(worst(&results[0], &results[1]) < 1e-12 && worst(&results[0], &results[2]) < 1e-12, "{kind}");
    }
}

#[test]
fn stochastic_samplers_keep_the_variance_of_the_data() {
    use SamplerKind::*;
    let churn = Options { churn: Churn { amount: 40.0, ..Churn::default() }, ..Options::default() };
    let eta = Options { eta: Some(1.0), ..Options::default() };
    let plain = Options::default();
    for (kind, options) in
        [(Ddim, eta), (Ddpm, plain), (EulerA, plain), (Dpmpp2mSde, plain), (Euler, churn), (Heun, churn)]
    {
        for config in [SamplerConfig::edm(kind), SamplerConfig::ddpm_linear(kind).unwrap()] {
            let error = |steps: usize| {
                let plan = trajectory(kind, &config, steps, &options).unwrap();
                let mut latents = vec![0.0; steps + 1];
                latents[0] = 1.0;
                let response = run_gaussian(&plan, &config, &latents);
                assert!(response[1..].iter().any(|r| r.abs() > 1e-3), "{kind}: noise matters");
                let deviation = response.iter().map(|r| r * r).sum::<f64>().sqrt();
                (deviation / DATA - 1.0).abs()
            };
            let (coarse, fine) = (error(200), error(400));
            println!("{kind:>13}: {coarse:.1e} to {fine:.1e}");
            assert!(fine < 0.005 || (fine < 0.04 && fine < 0.6 * coarse), "{kind}: {coarse}, {fine}");
        }
    }
}

/// DDPM on the schedule's own steps is the posterior of Ho et al. 2020, eq. 7, as written there.
#[test]
fn ddpm_is_the_posterior() {
    let config = SamplerConfig::ddpm_linear(SamplerKind::Ddpm).unwrap();
    let plan = trajectory(SamplerKind::Ddpm, &config, 1000, &Options::default()).unwrap();
    let alpha_bar = |t: usize| (0..=t).map(|t| 1.0 - (1e-4 + 0.0199 * t as f64 / 999.0)).product::<f64>();
    for t in [1, 10, 500, 999] {
        let Stage::Update { terms, .. } = plan.steps[999 - t].stages.last().unwrap() else { panic!() };
        let (now, next) = (alpha_bar(t), alpha_bar(t - 1));
        let (alpha, beta) = (now / next, 1.0 - now / next);
        // eq. 11: x' = (x - beta / sqrt(1 - alpha_bar) eps) / sqrt(alpha)
        let expected =
            [1.0 / alpha.sqrt(), -beta / (1.0 - now).sqrt() / alpha.sqrt(), (beta * (1.0 - next) / (1.0 - now)).sqrt()];
        for ((_, coefficient), expected) in terms.iter().zip(expected) {
            assert!((coefficient - expected).abs() < 1e-11, "{terms:?}, {expected:?}");
        }
    }
}

/// FlowMatchEulerDiscreteScheduler(shift=3).set_timesteps(4).timesteps, diffusers 0.42.1.
#[test]
fn flow_levels_match_diffusers() {
    let plan =
        trajectory(SamplerKind::Euler, &SamplerConfig::flow(SamplerKind::Euler, 3.0), 4, &Options::default()).unwrap();
    let times: Vec<f64> = plan.steps.iter().map(|step| step.stages[0].numbers()[0]).collect();
    assert!(worst(&times, &[1000.0, 857.6923217773438, 602.1505737304688, 8.928571701049805]) < 1e-7, "{times:?}");
    let Stage::Update { terms, .. } = &plan.steps[1].stages[1] else { panic!() };
    assert!(
        (terms[0].1 - 1.0).abs() < 1e-12 && (terms[1].1 - (times[2] - times[1]) / 1000.0).abs() < 1e-12,
        "{terms:?}"
    );
}

// --- promises ------------------------------------------------------------------------------------------------------

#[test]
fn ddim_without_clamping_is_one_update() {
    let config = SamplerConfig::ddpm_linear(SamplerKind::Ddim).unwrap();
    let plan = trajectory(SamplerKind::Ddim, &config, 10, &Options::default()).unwrap();
    assert!(plan.steps.iter().all(|step| step.stages.len() == 2));
    assert_eq!(plan.registers(), [Reg::OUT, Reg::X]);
}

#[test]
fn steps_are_loops() {
    for kind in SamplerKind::ALL {
        for config in
            [SamplerConfig::ddpm_linear(kind).unwrap(), SamplerConfig::edm(kind), SamplerConfig::flow(kind, 3.0)]
        {
            for steps in [1, 2, 20] {
                let plan = trajectory(kind, &config, steps, &Options::default()).unwrap();
                let heun = kind == SamplerKind::Heun;
                assert_eq!(plan.nfe(), if heun { 2 * steps - 1 } else { steps }, "{kind}");
                assert_eq!(plan.groups().len(), if heun && steps > 1 { 2 } else { 1 }, "{kind}");
                for group in plan.groups() {
                    let lengths: Vec<usize> = plan.steps[group].iter().map(|step| step.numbers().len()).collect();
                    assert!(lengths.iter().all(|length| *length == lengths[0]));
                }
                assert!(plan.to_string().lines().count() > steps);
            }
        }
    }
}

#[test]
fn the_guidance_interval_splits_the_loop() {
    let config = SamplerConfig::edm(SamplerKind::Euler);
    let options = Options { guidance_interval: Interval::Sigma { lo: 0.2, hi: 2.0 }, ..Options::default() };
    let plan = trajectory(SamplerKind::Euler, &config, 20, &options).unwrap();
    assert_eq!(plan.groups().len(), 3);
    assert!(plan.steps.iter().all(|step| step.guided == (0.2 < step.level.0 && step.level.0 <= 2.0)));
}

#[test]
fn a_ladder_joins_up() {
    for kind in SamplerKind::ALL {
        for spacing in [Spacing::Leading, Spacing::Linspace, Spacing::Trailing] {
            let config = SamplerConfig { spacing, ..SamplerConfig::ddpm_linear(kind).unwrap() };
            for steps in [1, 7, 61, 333] {
                let ladder = langevin::diffusion::ladder(kind, &config, steps).unwrap();
                assert_eq!(ladder.rungs.len(), steps);
                for pair in ladder.rungs.windows(2) {
                    assert_eq!(pair[0].to, pair[1].from);
                    assert!(pair[1].from.ratio() < pair[0].from.ratio());
                }
            }
        }
    }
}

/// Weak-to-strong reflection (Bai et al. 2025) is a trajectory too: S down, W up again, M down. For constant noise it
/// is one DDIM step with `eps_M + eps_S - eps_W`.
#[test]
fn reflection_can_be_written_down() {
    let config = SamplerConfig::ddpm_linear(SamplerKind::Ddim).unwrap();
    let ladder = langevin::diffusion::ladder(SamplerKind::Ddim, &config, 10).unwrap();
    let rung = ladder.rungs[3];
    let down = ddim::denoise(rung.from, rung.to, Prediction::Epsilon);
    let up = ddim::invert(rung.to, rung.from, Prediction::Epsilon);
    let stages = [(1, down), (2, up), (0, down)].into_iter().flat_map(|(leg, form)| {
        let query = Stage::Query { leg, x: Reg::X, out: Reg::OUT, time: rung.from.time, scale: rung.from.scale };
        [query, Stage::update(Reg::X, form.x * Reg::X + form.out * Reg::OUT)]
    });
    let step = langevin::diffusion::Step {
        stages: stages.collect(),
        guided: true,
        level: (rung.from.ratio(), rung.to.ratio()),
    };
    let plan = Trajectory { init_scale: 1.0, steps: vec![step], out: Reg::X, kept: vec![] };
    let eps = [0.3, -0.9, 0.4]; // M, S, W
    let mut denoiser = |leg: usize, x: &[f64], _: f64| vec![eps[leg]; x.len()];
    let result = plan.simulate(&[0.7], &mut denoiser, &mut |_, _| vec![]).unwrap();
    let expected = down.eval(0.7, eps[0] + eps[1] - eps[2]);
    assert!((result[0] - expected).abs() < 1e-14);
}

#[test]
fn nonsense_is_an_error() {
    let kind = SamplerKind::Euler;
    let vp = SamplerConfig::ddpm_linear(kind).unwrap();
    let edm =
        |sigma_min, sigma_max, rho| SamplerConfig { space: Space::Edm { sigma_min, sigma_max, rho }, ..vp.clone() };
    let flow = |shift| SamplerConfig::flow(kind, shift);
    let plain = Options::default();
    for (config, steps, options) in [
        (vp.clone(), 0, plain),
        (vp.clone(), 1001, plain),
        (SamplerConfig { steps_offset: 1, spacing: Spacing::Leading, ..vp.clone() }, 1000, plain),
        (SamplerConfig { clip: Some(f64::NAN), ..vp.clone() }, 10, plain),
        (SamplerConfig { sigma_min: Some(-1.0), sigma_grid: SigmaGrid::Karras, ..vp.clone() }, 10, plain),
        (edm(0.0, 80.0, 7.0), 10, plain),
        (edm(1.0, 0.5, 7.0), 10, plain),
        (edm(0.1, f64::INFINITY, 7.0), 10, plain),
        (edm(0.1, 80.0, 0.0), 10, plain),
        (edm(0.1, 80.0, 7.0), usize::MAX, plain),
        (flow(0.0), 10, plain),
        (flow(f64::NAN), 10, plain),
        (flow(1.0), 1001, plain),
        (vp.clone(), 10, Options { eta: Some(0.5), ..plain }),
        (vp.clone(), 10, Options { eta: Some(f64::NAN), ..plain }),
        (vp.clone(), 10, Options { churn: Churn { amount: f64::NAN, ..Churn::default() }, ..plain }),
        (flow(1.0), 10, Options { churn: Churn { amount: 1.0, ..Churn::default() }, ..plain }),
        (vp.clone(), 10, Options { guidance_interval: Interval::Steps { lo: 0.5, hi: 0.1 }, ..plain }),
    ] {
        assert!(trajectory(kind, &config, steps, &options).is_err(), "{:?}, {steps}, {options:?}", config.spacing);
    }
    let schedule = VpSchedule::new(&Betas::Linear { start: 1e-4, end: 0.02 }, 1000, true).unwrap();
    let mut blind = SamplerConfig::new(SamplerKind::Ddim, Space::Vp(schedule), Prediction::Epsilon);
    blind.spacing = Spacing::Trailing;
    let error = trajectory(SamplerKind::Ddim, &blind, 10, &plain).unwrap_err().to_string();
    assert!(error.contains("zero terminal SNR"), "{error}");
    assert!("dpm++".parse::<SamplerKind>().is_err());
    for kind in SamplerKind::ALL {
        assert_eq!(kind.to_string().parse::<SamplerKind>().unwrap(), kind);
    }
}

fn any_config() -> impl Strategy<Value = (SamplerKind, SamplerConfig)> {
    let kind = prop::sample::select(SamplerKind::ALL.to_vec());
    let spacing = prop::sample::select(vec![Spacing::Leading, Spacing::Linspace, Spacing::Trailing]);
    let grid = prop::sample::select(vec![SigmaGrid::Timesteps, SigmaGrid::Karras, SigmaGrid::Exponential]);
    let prediction =
        prop::sample::select(vec![Prediction::Epsilon, Prediction::Sample, Prediction::Velocity, Prediction::Flow]);
    let betas = prop::sample::select(vec![
        Betas::Linear { start: 1e-4, end: 0.02 },
        Betas::ScaledLinear { start: 0.00085, end: 0.012 },
        Betas::SquaredCosine,
        Betas::Sigmoid { start: 1e-4, end: 0.02 },
    ]);
    let space = (0..3, betas, 2..1200usize, any::<bool>(), 0.1..10.0).prop_map(
        |(which, betas, len, rescale, shift)| match which {
            0 => Space::Edm { sigma_min: 0.002 * shift, sigma_max: 20.0 * shift, rho: shift },
            1 => Space::Flow { shift, num_train_timesteps: len },
            _ => Space::Vp(VpSchedule::new(&betas, len, rescale).unwrap()),
        },
    );
    let flags = (any::<[bool; 6]>(), 1..4usize, 0..3usize);
    (kind, space, prediction, spacing, grid, flags).prop_map(|(kind, space, prediction, spacing, sigma_grid, flags)| {
        use langevin::diffusion::{DpmTerm, FinalSigma, UniPcB, Variance};
        let ([a, b, c, d, e, f], order, steps_offset) = flags;
        let mut config =
            SamplerConfig { spacing, sigma_grid, steps_offset, ..SamplerConfig::new(kind, space, prediction) };
        config.clip = a.then_some(1.0);
        config.final_sigma = if b { FinalSigma::Zero } else { FinalSigma::SigmaMin };
        config.set_alpha_to_one = b;
        config.variance = if c { Variance::FixedSmall } else { Variance::FixedLarge };
        config.solver.order = order;
        config.solver.dpm_term = if c { DpmTerm::Midpoint } else { DpmTerm::Heun };
        config.solver.unipc_b = if d { UniPcB::H } else { UniPcB::ExpM1 };
        config.solver.lower_order_final = e;
        config.solver.euler_at_final = f;
        (kind, config)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn inversion_undoes_denoising(a in 1e-4..0.999f64, b in 1e-4..0.999f64, x in -3.0..3.0f64, eps in -3.0..3.0f64) {
        let (noisy, clean) = (Level::vp(a.min(b), 0.0), Level::vp(a.max(b), 0.0));
        let down = ddim::denoise(noisy, clean, Prediction::Epsilon);
        let up = ddim::invert(clean, noisy, Prediction::Epsilon);
        prop_assert!((up.eval(down.eval(x, eps), eps) - x).abs() < 1e-12);
    }

    #[test]
    fn whatever_is_planned_is_finite((kind, config) in any_config(), steps in 1..40usize) {
        if let Ok(plan) = trajectory(kind, &config, steps, &Options::default()) {
            let numbers = plan.steps.iter().flat_map(|step| step.numbers());
            prop_assert!(numbers.chain([plan.init_scale]).all(f64::is_finite));
            prop_assert_eq!(plan.steps.len(), steps);
            prop_assert!(plan.nfe() >= steps && plan.nfe() <= 2 * steps);
            prop_assert!(plan.groups().len() <= 2);
            let out = plan.simulate(&[0.5, -2.0], &mut |_, x, _| vec![0.1; x.len()], &mut |_, n| vec![1.0; n]).unwrap();
            prop_assert_eq!(out.len(), 2);
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "[{}\\[\\]\",:a-zN\\\\é 0-9.-]{0,60}") {
        let _ = SamplerConfig::from_json(SamplerKind::Ddim, &text, "fuzz.json");
    }
}

/// Karras et al. 2022, algorithm 2, line by line.
#[test]
fn heun_is_algorithm_2() {
    let churn = Churn { amount: 3.0, sigma_min: 0.05, sigma_max: 50.0, noise: 1.003 };
    let options = Options { churn, ..Options::default() };
    let denoise = |x: f64, sigma: f64| (0.3 * x + 0.1 * sigma).tanh();
    let draw = |i: usize| 0.7 - 0.4 * i as f64;

    let n = 6;
    let level = |i: usize| {
        let root = |sigma: f64| sigma.powf(1.0 / 7.0);
        if i == n { 0.0 } else { (root(80.0) + i as f64 / (n - 1) as f64 * (root(0.002) - root(80.0))).powi(7) }
    };
    let mut x = 0.8 * level(0);
    for i in 0..n {
        let (sigma, next) = (level(i), level(i + 1));
        let inside = (churn.sigma_min..=churn.sigma_max).contains(&sigma);
        let gamma = if inside { (churn.amount / n as f64).min(2f64.sqrt() - 1.0) } else { 0.0 };
        let hat = sigma + gamma * sigma;
        x += (hat * hat - sigma * sigma).sqrt() * churn.noise * draw(i);
        let slope = (x - denoise(x, hat)) / hat;
        let trial = x + (next - hat) * slope;
        x = if next == 0.0 { trial } else { x + (next - hat) * 0.5 * (slope + (trial - denoise(trial, next)) / next) };
    }

    let plan = trajectory(SamplerKind::Heun, &SamplerConfig::edm(SamplerKind::Heun), n, &options).unwrap();
    let mut denoiser = |_: usize, x: &[f64], sigma: f64| x.iter().map(|x| denoise(*x, sigma)).collect();
    let result = plan.simulate(&[0.8], &mut denoiser, &mut |i, _| vec![draw(i as usize)]).unwrap();
    assert!((result[0] - x).abs() < 1e-12, "{} is not {x}", result[0]);
}
