//! Training whole runs of tiny networks.

mod support;

use langevin::data::Dataset;
use langevin::diffusion::{Betas, FlowTimes, Levels, Objective, Prediction, SamplerKind, Space, Spacing, Weighting};
use langevin::nn::{Built, InputSpec};
use langevin::ops::OptimizerKind;
use langevin::passes::autodiff::Recompute;
use langevin::schedule::{Options, Session};
use langevin::tensor::DType;
use langevin::trainer::{Ema, TrainConfig, Trainer};
use langevin::weights::Dtype;
use langevin::{Device, Error, Model};
use std::path::Path;
use std::sync::Arc;
use support::{DIT, DIT_MOE, UNET};

const EDM: &str = r#"{
    "_class_name": "EDMPrecond", "img_resolution": 8, "img_channels": 1, "label_dim": 2, "sigma_data": 0.5,
    "model_type": "SongUNet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4],
    "dropout": 0.0
}"#;

/// Bars: class 0 lies, class 1 stands.
fn bars() -> Arc<Dataset> {
    let (n, side) = (32, 8);
    let pixel = |i: usize, y: usize, x: usize| {
        let along = if i.is_multiple_of(2) { y } else { x };
        if along / 2 == i / 2 % 4 { 255 } else { 40 }
    };
    let images = (0..n).flat_map(|i| (0..side * side).map(move |p| pixel(i, p / side, p % side))).collect();
    let labels = Some((0..n as u32).map(|i| i % 2).collect());
    Arc::new(Dataset {
        images,
        n,
        height: side,
        width: side,
        channels: 1,
        labels,
        class_count: 2,
        ..Dataset::default()
    })
}

fn config(steps: usize) -> TrainConfig {
    TrainConfig {
        batch: 8,
        steps,
        warmup: 5,
        learning_rate: 3e-3,
        emas: vec![Ema::HalfLife(100.0)],
        seed: 5,
        ..Default::default()
    }
}

fn trainer(config: TrainConfig, network: &str, data: &Arc<Dataset>) -> Trainer {
    trainer_on(Device::Cpu, config, network, data)
}

fn trainer_on(device: Device, config: TrainConfig, network: &str, data: &Arc<Dataset>) -> Trainer {
    Trainer::new(config, network, Path::new("config.json"), data.clone(), device).unwrap()
}

fn losses(config: TrainConfig, network: &str, data: &Arc<Dataset>) -> Vec<f32> {
    let steps = config.steps;
    let mut trainer = trainer(config, network, data);
    (0..steps).map(|_| trainer.step().unwrap().loss).collect()
}

#[test]
fn the_loss_falls() {
    let data = bars();
    for (network, share) in [(EDM, 0.8), (UNET, 0.7), (DIT, 0.9), (DIT_MOE, 0.9)] {
        let losses = losses(config(60), network, &data);
        let mean = |part: &[f32]| part.iter().sum::<f32>() / part.len() as f32;
        let (first, last) = (mean(&losses[..10]), mean(&losses[45..]));
        println!("{first} to {last}");
        assert!(last < share * first, "{first} to {last} in\n{network}");
    }
}

/// Every prediction is learned, and the folder says which it is, to this sampler and to others.
#[test]
fn a_folder_knows_what_its_network_predicts() {
    let data = bars();
    let vp = || Levels::vp(Betas::SquaredCosine, 500, true).unwrap();
    let flow = Levels::Flow { times: FlowTimes::Uniform, shift: 2.0, num_train_timesteps: 100 };
    for (levels, prediction, weighting) in [
        (vp(), Prediction::Sample, Weighting::Uniform),
        (vp(), Prediction::Velocity, Weighting::MinSnr { gamma: 5.0 }),
        (flow, Prediction::Flow, Weighting::Uniform),
    ] {
        let objective = Some(Objective::new(levels.clone(), prediction, weighting).unwrap());
        let mut trainer = trainer(TrainConfig { objective, ..config(60) }, DIT, &data);
        let losses: Vec<f32> = (0..60).map(|_| trainer.step().unwrap().loss).collect();
        let (first, last) = (losses[..10].iter().sum::<f32>(), losses[50..].iter().sum::<f32>());
        assert!(last < 0.9 * first, "{prediction:?}: {first} to {last}");
        let (_dir, model) = saved(&mut trainer, Dtype::F32);
        let config = model.sampler_config(SamplerKind::Euler).unwrap();
        assert_eq!(config.prediction, prediction);
        match (levels, config.space) {
            (Levels::Vp { schedule, .. }, Space::Vp(read)) => {
                assert_eq!((schedule, config.spacing), (read, Spacing::Trailing));
            }
            (Levels::Flow { .. }, Space::Flow { shift, num_train_timesteps }) => {
                assert_eq!((shift, num_train_timesteps), (2.0, 100));
            }
            (levels, space) => panic!("{levels:?} came back as {space:?}"),
        }
    }
}

#[test]
fn an_objective_that_does_not_fit_the_network_is_refused() {
    let data = bars();
    for (network, objective) in [(EDM, Objective::ddpm()), (UNET, Objective::edm(-1.2, 1.2, 0.5))] {
        let config = TrainConfig { objective: Some(objective.unwrap()), ..config(4) };
        let e = Trainer::new(config, network, Path::new("config.json"), data.clone(), Device::Cpu).unwrap_err();
        assert!(e.to_string().contains("EDM-preconditioned"), "{e}");
    }
}

#[test]
fn recomputation_changes_nothing_and_the_seed_everything() {
    let data = bars();
    for network in [EDM, UNET, DIT, DIT_MOE] {
        let plain = losses(config(8), network, &data);
        assert_eq!(plain, losses(config(8), network, &data), "the same seed");
        let cheap = TrainConfig { recompute: Recompute::Cheap, ..config(8) };
        assert_eq!(plain, losses(cheap, network, &data), "norms and activations made again");
        let again = losses(TrainConfig { recompute: Recompute::Blocks, ..config(8) }, network, &data);
        for (a, b) in plain.iter().zip(&again) {
            assert!((a - b).abs() <= 1e-5 * a.abs(), "{plain:?} and recomputed {again:?}");
        }
        let other = losses(TrainConfig { seed: 6, ..config(8) }, network, &data);
        assert!(plain.iter().zip(&other).all(|(a, b)| a != b), "another seed");
    }
}

#[test]
fn labels_that_are_dropped_do_not_matter() {
    let data = bars();
    let mut swapped = (*data).clone();
    swapped.labels.iter_mut().flatten().for_each(|l| *l = 1 - *l);
    let swapped = Arc::new(swapped);
    for network in [EDM, UNET, DIT, DIT_MOE] {
        let run = |label_dropout, data| losses(TrainConfig { label_dropout, ..config(4) }, network, data);
        assert_eq!(run(1.0, &data), run(1.0, &swapped), "{network}");
        assert_ne!(run(0.0, &data)[3], run(0.0, &swapped)[3], "{network}");
        assert_ne!(run(0.0, &data)[3], run(1.0, &data)[3], "{network}");
    }
}

#[test]
fn the_null_class_is_not_for_data() {
    let mut data = (*bars()).clone();
    data.labels.iter_mut().flatten().for_each(|l| *l += 1);
    let data = Arc::new(data);
    let cases = [(UNET, 0.1, false), (UNET, 0.0, true), (DIT, 0.0, false), (DIT_MOE, 0.0, false), (EDM, 0.1, false)];
    for (network, dropout, fits) in cases {
        let config = TrainConfig { label_dropout: dropout, ..config(4) };
        let made = Trainer::new(config, network, Path::new("config.json"), data.clone(), Device::Cpu);
        assert_eq!(made.is_ok(), fits, "{network}");
        if let Err(e) = made {
            assert!(e.to_string().contains("data: has label 2"), "{e}");
        }
    }
}

/// The answer of a saved model to one noisy batch.
fn answer(model: &Model) -> Vec<f32> {
    answer_of(model, &model.build(&InputSpec::new(2, 8, 8)).unwrap())
}

/// The answer of a network with the weights of a model.
fn answer_of(model: &Model, built: &Built) -> Vec<f32> {
    let schedule = langevin::methods::forward::forward(built, None, Device::Cpu.target(), Options::default()).unwrap();
    let buffers = schedule.buffers.clone();
    let mut session = Session::new(Device::Cpu, schedule).unwrap();
    let places = built.parameters.iter().filter_map(|p| buffers.find(&format!("weights/{}", p.name)).map(|id| (id, p)));
    model.load(&mut session, places).unwrap();
    let sample: Vec<f32> = (0..128).map(|i| (i * 29 % 64) as f32 / 32.0 - 1.0).collect();
    session.write(buffers.find("sample").unwrap(), &sample).unwrap();
    let time = buffers.find("sigma").or(buffers.find("timestep")).unwrap();
    session.write(time, &[0.5f32, 2.0]).unwrap();
    session.write(buffers.find("class_labels").unwrap(), &[0i32, 1]).unwrap();
    session.run(&mut |_, _| Ok(())).unwrap();
    let output = buffers.find(&format!("out/{}", built.output)).unwrap();
    session.read::<f32>(output).unwrap()
}

fn saved(trainer: &mut Trainer, dtype: Dtype) -> (tempfile::TempDir, Model) {
    let dir = tempfile::tempdir().unwrap();
    trainer.save(dir.path(), dtype, 0).unwrap();
    let model = Model::open(dir.path()).unwrap();
    (dir, model)
}

#[test]
fn what_is_saved_opens_and_holds_the_average() {
    let data = bars();
    for network in [EDM, UNET, DIT, DIT_MOE] {
        // An average that forgets at once is the weights themselves, one that forgets slowly lags behind.
        let mut answers = Vec::new();
        for ema_half_life in [0.0, 1000.0] {
            let mut trainer =
                trainer(TrainConfig { emas: vec![Ema::HalfLife(ema_half_life)], ..config(10) }, network, &data);
            for _ in 0..10 {
                trainer.step().unwrap();
            }
            let (_dir, model) = saved(&mut trainer, Dtype::F32);
            answers.push(answer(&model));
            let (_dir, half) = saved(&mut trainer, Dtype::F16);
            let (exact, rounded) = (answers.last().unwrap(), answer(&half));
            let off = exact.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 2e-2, "f16 is off by {off}");
            assert_eq!(model.config(), network);
        }
        assert!(answers.iter().flatten().all(|v| v.is_finite()));
        assert_ne!(answers[0], answers[1], "{network}");
    }
}

#[test]
fn experts_resume_bit_for_bit_and_have_a_tensor_each_in_files() {
    let data = bars();
    let (dir, config) = (tempfile::tempdir().unwrap(), config(12));
    let mut whole = trainer(config.clone(), DIT_MOE, &data);
    let mut losses = vec![];
    for step in 0..12 {
        if step == 5 {
            whole.save_state(&dir.path().join("state.safetensors")).unwrap();
        }
        losses.push(whole.step().unwrap().loss);
    }
    let mut resumed = trainer(config, DIT_MOE, &data);
    resumed.load_state(&dir.path().join("state.safetensors")).unwrap();
    let again: Vec<f32> = (5..12).map(|_| resumed.step().unwrap().loss).collect();
    assert_eq!(again, losses[5..]);
    let [(_a, model), (_b, other)] = [whole, resumed].map(|mut trainer| saved(&mut trainer, Dtype::F32));
    let weights = |model: &Model| model.weights().read_f32("blocks.1.moe.experts.3.down_proj.weight").unwrap();
    assert_eq!(weights(&model).len(), 16 * 32);
    assert_eq!(weights(&model), weights(&other));
    // The weak network of the same file answers something else.
    let weak = model.network().with_routing(langevin::nn::Routing::Bottom).unwrap();
    let spec = InputSpec::new(2, 8, 8);
    let (weak, strong) = (weak.build(&spec).unwrap(), model.build(&spec).unwrap());
    assert_eq!(weak.parameters, strong.parameters);
    assert_ne!(answer_of(&model, &weak), answer_of(&model, &strong));
}

#[test]
fn a_run_that_diverges_stops() {
    let data = bars();
    // Levels far below e⁻²⁰: the weights 1/σ² leave f32.
    let objective = Some(Objective::edm(-20.0, 20.0, 0.5).unwrap());
    let mut trainer = trainer(TrainConfig { objective, ..config(50) }, EDM, &data);
    let failed = (0..50).find_map(|_| trainer.step().err()).expect("infinite weights went unnoticed");
    let Error::NotFinite { what, step, .. } = failed else { panic!("{failed}") };
    assert!(what.contains("the output of"), "{what} at {step}");
    // The failed step is not lost: it fails again, at the same op.
    let again = trainer.step().unwrap_err().to_string();
    assert!(again.contains(&what) && again.contains(&format!("at step {step}")), "{what} at {step}, then {again}");
    let absurd = TrainConfig { learning_rate: 1e3, ..config(10) };
    let e = Trainer::new(absurd, EDM, Path::new("config.json"), data.clone(), Device::Cpu).unwrap_err();
    assert!(e.to_string().contains("lr: 1000 is not from"), "{e}");
}

/// The same losses as on the CPU device but for rounding, and the same bits when a state is read back.
#[test]
fn training_on_wgpu_goes_as_on_the_cpu() {
    let Some(device) = support::wgpu() else { return };
    let data = bars();
    let dropout = EDM.replace(r#""dropout": 0.0"#, r#""dropout": 0.2"#);
    let emas = vec![Ema::HalfLife(100.0), Ema::Power(0.1)];
    let plain = TrainConfig { emas, flip: 0.5, ..config(10) };
    let parts =
        TrainConfig { accumulate: 2, recompute: Recompute::Blocks, optimizer: OptimizerKind::RAdam, ..plain.clone() };
    for (network, config) in [(&*dropout, &plain), (UNET, &plain), (DIT, &plain), (DIT_MOE, &plain), (UNET, &parts)] {
        let expected = losses(config.clone(), network, &data);
        let mut trainer = trainer_on(device.clone(), config.clone(), network, &data);
        let (dir, mut got) = (tempfile::tempdir().unwrap(), Vec::new());
        for step in 0..config.steps {
            if step == 6 {
                trainer.save_state(&dir.path().join("state.safetensors")).unwrap();
            }
            got.push(trainer.step().unwrap().loss);
        }
        for (step, (a, b)) in got.iter().zip(&expected).enumerate() {
            assert!((a - b).abs() <= 1e-3 * b.abs(), "step {step}: {a} instead of {b} in\n{network}");
        }
        let mut resumed = trainer_on(device.clone(), config.clone(), network, &data);
        resumed.load_state(&dir.path().join("state.safetensors")).unwrap();
        let again: Vec<f32> = (6..config.steps).map(|_| resumed.step().unwrap().loss).collect();
        assert_eq!(again, got[6..], "{network}");
    }
}

#[test]
fn training_in_bf16_goes_as_in_f32_where_the_device_has_it() {
    let data = bars();
    let short = |dtype| TrainConfig { batch: 4, dtype, ..config(2) };
    for network in [EDM, DIT] {
        let run = |device: Device, dtype, recompute| {
            let mut trainer = trainer_on(device, TrainConfig { recompute, ..short(dtype) }, network, &data);
            let reports = (0..2).map(|_| trainer.step().unwrap());
            reports.flat_map(|r| [r.loss, r.grad_norm]).collect::<Vec<f32>>()
        };
        let device = Device::ptx((8, 0));
        let full = run(Device::Cpu, DType::F32, Recompute::Off);
        let mixed = run(device.clone(), DType::Bf16, Recompute::Off);
        assert_ne!(full, mixed);
        for (a, b) in full.iter().zip(&mixed) {
            assert!((a - b).abs() <= 0.05 * a.abs(), "{full:?} and {mixed:?}");
        }
        assert_eq!(mixed, run(device, DType::Bf16, Recompute::Cheap), "the same every time, and if norms run again");
    }
    let refused =
        |dtype| Trainer::new(short(dtype), DIT, Path::new("config.json"), data.clone(), Device::Cpu).unwrap_err();
    assert!(matches!(refused(DType::Bf16), Error::Unsupported { .. }));
    assert!(refused(DType::F16).to_string().contains("gradients vanish in f16"));
}
