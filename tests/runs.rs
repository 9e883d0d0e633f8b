//! Runs in their folders: killed, resumed, watched, refused.

mod support;

use langevin::data::Dataset;
use langevin::run::{Entry, Run, Settings, bin_name, read_log};
use langevin::{Device, Error};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const NETWORK: &str = r#"{
    "_class_name": "EDMPrecond", "img_resolution": 8, "img_channels": 1, "label_dim": 2, "sigma_data": 0.5,
    "model_type": "SongUNet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4],
    "dropout": 0.1
}"#;

/// A folder with a network and data: bars that lie or stand.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        std::fs::write(place.path("network.json"), NETWORK).unwrap();
        support::write_bars(place.0.path());
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn settings(&self) -> Settings {
        Settings {
            network: self.path("network.json").display().to_string(),
            data: self.path("bars-images-idx3-ubyte").display().to_string(),
            steps: 120,
            batch: 4,
            warmup: 5,
            log_every: 7,
            checkpoint_every: 10,
            ema_half_life: vec![100.0],
            ema_std: vec![0.1],
            seed: 3,
            ..Settings::default()
        }
    }

    fn train(&self, name: &str, change: impl FnOnce(&mut Settings)) -> PathBuf {
        let mut settings = self.settings();
        change(&mut settings);
        let out = self.path(name);
        Run::start(&out, settings, Device::Cpu).unwrap().finish(&mut |_, _| Ok(())).unwrap();
        out
    }

    /// The command, on the run `name`; started anew or resumed.
    fn spawn(&self, name: &str, more: &str) -> Child {
        let config = self.path("run.toml");
        std::fs::write(&config, self.settings().to_toml().unwrap()).unwrap();
        Command::new(env!("CARGO_BIN_EXE_langevin"))
            .args(["--quiet", "--threads", "1", "train", "--config"])
            .arg(config)
            .arg("--out")
            .arg(self.path(name))
            .args(more.split_whitespace())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

/// What must not depend on kills: every number of the log but for speeds.
fn losses(run: &Path) -> Vec<Entry> {
    let mut log = read_log(run).unwrap();
    for e in &mut log {
        (e.images_per_second, e.data_wait, e.sum_wait, e.memory_mib) = (0.0, 0.0, 0.0, 0.0);
    }
    log
}

/// The bytes of the last checkpoint's state.
fn state(run: &Path) -> Vec<u8> {
    let mut checkpoints: Vec<PathBuf> =
        std::fs::read_dir(run.join("checkpoints")).unwrap().map(|e| e.unwrap().path()).collect();
    checkpoints.sort();
    std::fs::read(checkpoints.last().unwrap().join("state.safetensors")).unwrap()
}

fn weights(run: &Path, model: &str) -> Vec<u8> {
    std::fs::read(run.join(model).join("diffusion_pytorch_model.safetensors")).unwrap()
}

/// Kills the run at moments spread over its life, start and saving included, and resumes it each time.
#[test]
fn a_killed_run_goes_on_bit_for_bit() {
    let place = Place::new();
    let start = Instant::now();
    assert!(place.spawn("whole", "").wait().unwrap().success());
    let whole = start.elapsed();
    let mut begun = false;
    let mut kills = 0;
    let mut random = 12345u32;
    for attempt in 0..400 {
        let mut child = place.spawn("killed", if begun { "--resume" } else { "" });
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // At least long enough to reach the next checkpoint now and then, or nothing would ever be gained.
        let share = 0.02 + 0.35 * (random >> 16) as f64 / 65_536.0;
        let pause = if kills < 20 { whole.mul_f64(share) } else { Duration::from_secs(60) };
        let deadline = Instant::now() + pause;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if Instant::now() >= deadline {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        begun |= place.path("killed/config.toml").exists();
        kills += usize::from(status.is_none());
        if let Some(status) = status {
            let mut message = String::new();
            std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut message).unwrap();
            assert!(status.success(), "attempt {attempt}: {message}");
            if kills >= 20 {
                break;
            }
            // Done before it was killed often enough: from the start again.
            let same = state(&place.path("killed")) == state(&place.path("whole"));
            assert!(same, "after {kills} kills the weights differ");
            std::fs::remove_dir_all(place.path("killed")).unwrap();
            begun = false;
        }
    }
    assert!(kills >= 20, "only {kills} kills");
    assert_eq!(losses(&place.path("killed")), losses(&place.path("whole")));
    assert_eq!(state(&place.path("killed")), state(&place.path("whole")));
    for model in ["model", "model-ema1"] {
        assert_eq!(weights(&place.path("killed"), model), weights(&place.path("whole"), model), "{model}");
    }
    assert_ne!(weights(&place.path("whole"), "model"), weights(&place.path("whole"), "model-ema1"));
}

/// The same through the wgpu device: killed behind its first checkpoint, resumed, and sampled from.
#[test]
fn a_run_on_the_wgpu_device_is_killed_goes_on_bit_for_bit_and_is_sampled_from() {
    if support::wgpu().is_none() {
        return;
    }
    let place = Place::new();
    let flags = "--device wgpu --steps 30 --checkpoint-every 5 --keep 9 --grid-every 15 --grid-n 3";
    let done = |name: &str, more: &str| {
        let out = place.spawn(name, &format!("{flags} {more}")).wait_with_output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    done("whole", "");
    let mut child = place.spawn("killed", flags);
    while !place.path("killed/checkpoints/step-00000005").exists() {
        assert_eq!(child.try_wait().unwrap(), None, "it ended before it could be killed");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!place.path("killed/checkpoints/step-00000030").exists(), "it was done before it was killed");
    done("killed", "--resume");
    let [whole, killed] = ["whole", "killed"].map(|name| place.path(name));
    assert_eq!(losses(&killed), losses(&whole));
    assert_eq!(state(&killed), state(&whole));
    for file in ["model", "model-ema1"].map(|m| format!("{m}/diffusion_pytorch_model.safetensors")) {
        assert_eq!(std::fs::read(killed.join(&file)).unwrap(), std::fs::read(whole.join(&file)).unwrap(), "{file}");
    }
    // The processor sums in other orders, and computes the same.
    let cpu = place.train("cpu", |s| (s.steps, s.checkpoint_every) = (30, 5));
    assert_ne!(state(&cpu), state(&whole));
    for (cpu, wgpu) in losses(&cpu).iter().zip(losses(&whole)) {
        assert_eq!(cpu.step, wgpu.step);
        assert!((cpu.loss - wgpu.loss).abs() < 1e-3 * cpu.loss, "step {}: {} and {}", cpu.step, cpu.loss, wgpu.loss);
    }
    let pictures = [&whole, &killed].map(|run| {
        let out = run.join("samples.png");
        let sample = ["--quiet", "sample", "--device", "wgpu", "--n", "4", "--steps", "3", "--model"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_langevin"));
        let result = command.args(sample).arg(run).arg("--out").arg(&out).output().unwrap();
        assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
        let grids = ["grids/step-00000015.png", "grids/step-00000030.png"].map(|grid| run.join(grid));
        [&grids[0], &grids[1], &out].map(|png| std::fs::read(png).unwrap())
    });
    assert!(pictures[0].iter().all(|png| png.starts_with(b"\x89PNG")));
    assert!(pictures[0] == pictures[1], "pictures differ");
}

#[test]
fn what_is_watched_does_not_change_the_weights() {
    let place = Place::new();
    let plain = place.train("plain", |s| s.steps = 20);
    let watched = place.train("watched", |s| {
        (s.steps, s.grid_every, s.grid_n, s.log_every, s.check_numerics) = (20, 6, 3, 1, true);
        s.save_at = vec![5];
        s.tensorboard = false;
    });
    assert_eq!(state(&plain), state(&watched));
    assert_eq!((losses(&plain).len(), losses(&watched).len()), (3, 20));
    let grids = |run: &Path| std::fs::read_dir(run.join("grids")).map_or(0, |d| d.count());
    assert_eq!((grids(&plain), grids(&watched)), (0, 4));
    assert!(watched.join("step-5/config.json").is_file() && watched.join("log.svg").is_file());
    assert!(std::fs::read_to_string(watched.join("log.svg")).unwrap().contains("norm of the gradient"));
    let events = |run: &Path| {
        std::fs::read_dir(run)
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("events.out.tfevents"))
            .count()
    };
    assert_eq!((events(&plain), events(&watched)), (1, 0));
    // Two runs in one table and one picture.
    let out = Command::new(env!("CARGO_BIN_EXE_langevin"))
        .args(["compare", "--n", "2", "--out"])
        .args([&place.path("both"), &plain, &watched])
        .output()
        .unwrap();
    let table = String::from_utf8(out.stdout).unwrap();
    let line = |name: &str| table.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name}: {table}"));
    assert!(line("step").contains("20 of 20  ") && line("log_every").trim().ends_with('1'), "{table}");
    assert!(!table.contains("\nlr "), "settings that agree are left out: {table}");
    let bins = &read_log(&plain).unwrap()[2].loss_bins;
    for (bin, loss) in bins.iter().enumerate() {
        let cell = loss.map_or("-".to_string(), |loss| format!("{loss:.5}"));
        let line = line(&format!("loss, ln(alpha/sigma) {} ", bin_name(bin)));
        assert_eq!(line.split_whitespace().rev().nth(1), Some(&cell[..]), "{table}");
    }
    assert!(line("data wait, %").split_whitespace().count() == 5 && line("memory, MiB").contains(char::is_numeric));
    let svg = std::fs::read_to_string(place.path("both/log.svg")).unwrap();
    assert!(svg.contains("plain") && svg.contains("watched"));
    let png = std::fs::read(place.path("both/samples.png")).unwrap();
    assert!(png.starts_with(b"\x89PNG"));
}

/// The log's bins hold all samples: their mean, weighted by counts that it does not tell, lies between the extremes; and the
/// first line covers the first `log_every` steps.
#[test]
fn the_log_says_what_happened() {
    let place = Place::new();
    let run = place.train("run", |s| s.steps = 20);
    let log = losses(&run);
    assert_eq!(log.iter().map(|e| e.step).collect::<Vec<_>>(), [7, 14, 20]);
    for e in &log {
        let bins: Vec<f64> = e.loss_bins.iter().flatten().copied().collect();
        let (low, high) = (bins.iter().fold(f64::MAX, |a, b| a.min(*b)), bins.iter().fold(0.0, |a: f64, b| a.max(*b)));
        assert!(bins.len() >= 3 && e.loss_bins.len() == 8 && (low..=high).contains(&e.loss), "{e:?}");
        assert_eq!(e.images, e.step * 4);
    }
    let checkpoints = std::fs::read_dir(run.join("checkpoints")).unwrap().count();
    assert_eq!(checkpoints, 2, "steps 10 and 20");
    let text = std::fs::read_to_string(run.join("config.toml")).unwrap();
    assert!(text.contains("# Peak learning rate\nlr = 0.001\n"), "{text}");
}

/// Steps that last long enough for a batch to be made find theirs ready. How long that is depends on what else the machine does:
/// steps are drawn out until it is enough.
#[test]
fn a_warm_step_does_not_wait_for_data() {
    let place = Place::new();
    let mut run = Run::start(&place.path("run"), Settings { log_every: 1, ..place.settings() }, Device::Cpu).unwrap();
    let (mut pause, mut ready) = (Duration::from_millis(1), 0);
    let result = run.finish(&mut |_, report| {
        match report.data_wait {
            0.0 => ready += 1,
            _ => pause *= 2,
        }
        assert!(pause < Duration::from_secs(10), "step {} waited {} s for data", report.step, report.data_wait);
        std::thread::sleep(pause);
        if ready == 20 { Err(Error::Cancelled) } else { Ok(()) }
    });
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    let log = read_log(&place.path("run")).unwrap();
    assert!(log.iter().filter(|e| e.wait_share() == 0.0).count() == 20, "the log shows it");
}

/// What a run is, how far, and what its log says: while a process trains, after it was stopped, at the end.
#[test]
fn a_run_is_inspected() {
    let place = Place::new();
    let inspect = |more: &[&str]| {
        let out =
            Command::new(env!("CARGO_BIN_EXE_langevin")).arg("inspect").arg(place.path("run")).args(more).output();
        let out = out.unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let json = || serde_json::from_str::<serde_json::Value>(&inspect(&["--json"])).unwrap();
    let settings = Settings { steps: 20, save_at: vec![5], grid_every: 8, grid_n: 2, ..place.settings() };
    let mut run = Run::start(&place.path("run"), settings, Device::Cpu).unwrap();
    let begun = json();
    assert_eq!((&begun["state"], &begun["last"]), (&"running".into(), &serde_json::Value::Null));
    assert_eq!(begun["network"]["parameters"].as_u64(), Some(run.trainer().parameters() as u64));
    let stop = |_: &Run, report: &langevin::trainer::StepReport| match report.step {
        15 => Err(Error::Cancelled),
        _ => Ok(()),
    };
    assert!(matches!(run.finish(&mut { stop }), Err(Error::Cancelled)));
    assert_eq!(json()["state"], "running");
    drop(run);
    std::fs::remove_file(place.path("run/log.svg")).unwrap();
    let stopped = json();
    let log = read_log(&place.path("run")).unwrap();
    let best = log.iter().min_by(|a, b| a.loss.total_cmp(&b.loss)).unwrap();
    assert_eq!(stopped["state"], "stopped");
    assert_eq!(stopped["last"], serde_json::to_value(&log[1]).unwrap());
    assert_eq!(stopped["best"]["step"], best.step);
    assert_eq!(stopped["checkpoints"], serde_json::json!([10, 15]));
    assert_eq!((&stopped["data"]["images"], &stopped["data"]["classes"]), (&24.into(), &2.into()));
    let share = log[1].data_wait * log[1].images_per_second / 4.0;
    assert!((stopped["wait_share"].as_f64().unwrap() - share.min(1.0)).abs() < 1e-12);
    let left = stopped["seconds_left"].as_f64().unwrap();
    assert!((left - 6.0 * 4.0 / log[1].images_per_second).abs() < 1e-9, "6 steps after the line of step 14: {left}");
    let ends = |value: &serde_json::Value, end: &str| assert!(value.as_str().unwrap().ends_with(end), "{value}");
    ends(&stopped["grid"], "grids/step-00000008.png");
    ends(&stopped["kept_models"][0], "step-5");
    ends(&stopped["averages"][1]["model"], "model-ema1");
    ends(&stopped["plots"], "log.svg");
    assert!(place.path("run/log.svg").is_file(), "the plots are drawn anew");
    let changed = |key: &str| stopped["changed"].as_array().unwrap().iter().find(|c| c["key"] == key).cloned();
    assert_eq!(changed("seed"), Some(serde_json::json!({ "key": "seed", "value": "3", "default": "0" })));
    assert_eq!(changed("lr"), None);

    let text = inspect(&[]);
    for part in
        ["stopped; `langevin train --resume`", "14 of 20", "EDMPrecond", "waits for data", "below -3", "seed = 3  (0)"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(inspect(&["--tensors"]).contains("parameters"), "the model in it");
    Run::resume(&place.path("run"), |s| Ok(s.clone()), Device::Cpu).unwrap().finish(&mut |_, _| Ok(())).unwrap();
    let finished = json();
    assert_eq!((&finished["state"], &finished["seconds_left"]), (&"finished".into(), &serde_json::Value::Null));
}

/// Killed after the last checkpoint and before the export of its model.
#[test]
fn a_finished_run_has_its_model() {
    let place = Place::new();
    let run = place.train("run", |s| s.steps = 3);
    let before = weights(&run, "model");
    std::fs::remove_dir_all(run.join("model")).unwrap();
    Run::resume(&run, |s| Ok(s.clone()), Device::Cpu).unwrap().finish(&mut |_, _| Ok(())).unwrap();
    assert_eq!(weights(&run, "model"), before);
}

#[test]
fn one_process_at_a_time() {
    let place = Place::new();
    let out = place.path("run");
    let first = Run::start(&out, place.settings(), Device::Cpu).unwrap();
    let second = Run::resume(&out, |s| Ok(s.clone()), Device::Cpu).unwrap_err();
    assert!(second.to_string().contains("another process trains in"), "{second}");
    drop(first);
    Run::resume(&out, |s| Ok(s.clone()), Device::Cpu).unwrap();
}

/// Ctrl-C, or an embedder's own reason.
#[test]
fn a_stopped_run_has_a_checkpoint_and_goes_on() {
    let place = Place::new();
    let whole = place.train("whole", |s| s.steps = 20);
    let mut run = Run::start(&place.path("run"), Settings { steps: 20, ..place.settings() }, Device::Cpu).unwrap();
    let stop = |_: &Run, report: &langevin::trainer::StepReport| match report.step {
        13 => Err(Error::Cancelled),
        _ => Ok(()),
    };
    assert!(matches!(run.finish(&mut { stop }), Err(Error::Cancelled)));
    drop(run);
    let mut again = Run::resume(&place.path("run"), |s| Ok(s.clone()), Device::Cpu).unwrap();
    assert_eq!(again.trainer().steps_done(), 13);
    again.finish(&mut |_, _| Ok(())).unwrap();
    assert_eq!(state(&whole), state(&place.path("run")));
    assert_eq!(losses(&whole), losses(&place.path("run")));
}

/// Levels far below e⁻²⁰ overflow the loss's weights.
#[test]
fn numbers_that_are_none_stop_the_run_and_keep_its_checkpoint() {
    let place = Place::new();
    let settings = Settings { p_mean: -20.0, p_std: 20.0, checkpoint_every: 1, ..place.settings() };
    let mut run = Run::start(&place.path("run"), settings, Device::Cpu).unwrap();
    let mut good = 0;
    let e = run
        .finish(&mut |_, report| {
            good = report.step;
            Ok(())
        })
        .unwrap_err();
    let Error::NotFinite { what, step, .. } = &e else { panic!("{e}") };
    assert!(*step == good + 1 && what.contains("the output of"), "{e}");
    if good > 0 {
        drop(run);
        let again = Run::resume(&place.path("run"), |s| Ok(s.clone()), Device::Cpu).unwrap();
        assert_eq!(again.trainer().steps_done(), good);
    }
}

#[test]
fn a_checkpoint_of_another_network_is_refused() {
    let place = Place::new();
    let a = place.train("a", |s| s.steps = 2);
    let wider = NETWORK.replace("\"model_channels\": 8", "\"model_channels\": 16");
    std::fs::write(place.path("network.json"), wider).unwrap();
    let e = Run::resume(&a, |s| Ok(s.clone()), Device::Cpu).unwrap_err();
    assert!(matches!(&e, Error::Tensor { reason, .. } if reason.contains("this network has")), "{e}");
}

/// A run in parts computes what the run at once does, up to the order of sums. Adam and clipping would hide a gradient of
/// another scale: a large ε and no clipping let it through.
#[test]
fn parts_of_a_batch_add_up() {
    let place = Place::new();
    let [once, parts] = [1, 2].map(|accumulate| {
        losses(&place.train(&format!("in {accumulate}"), |s| {
            (s.steps, s.accumulate, s.log_every) = (6, accumulate, 1);
            (s.adam_eps, s.max_grad_norm, s.lr) = (1.0, 0.0, 0.05);
        }))
    });
    for (a, b) in once.iter().zip(&parts) {
        assert!((a.loss - b.loss).abs() < 1e-4 * a.loss, "{a:?} and in parts {b:?}");
        assert!((a.grad_norm - b.grad_norm).abs() < 1e-3 * a.grad_norm, "{a:?} and in parts {b:?}");
    }
}

#[test]
fn every_optimiser_and_schedule_trains() {
    let place = Place::new();
    let data = Dataset::open(place.path("bars-images-idx3-ubyte"), &Default::default()).unwrap();
    assert_eq!(data.n, 24);
    let mut seen = Vec::new();
    for (optimizer, lr_schedule) in [("adamw", "constant"), ("adam", "inverse-sqrt"), ("radam", "cosine")] {
        let run = place.train(optimizer, |s| {
            (s.optimizer, s.lr_schedule) = (optimizer.into(), lr_schedule.into());
            (s.steps, s.log_every, s.lr, s.weight_decay) = (60, 20, 3e-3, 0.01);
        });
        let log = losses(&run);
        assert!(log[2].loss < log[0].loss, "{optimizer}: {} to {}", log[0].loss, log[2].loss);
        seen.push(weights(&run, "model"));
    }
    assert!(seen[0] != seen[1] && seen[1] != seen[2] && seen[0] != seen[2]);
}
