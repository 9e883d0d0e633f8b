//! `langevin train` under `mpirun`. Skipped, with the reason, where there is no MPI, unless `LANGEVIN_REQUIRE` names `mpi`.

mod support;

use langevin::run::{Settings, read_log};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const NETWORK: &str = r#"{
    "_class_name": "EDMPrecond", "img_resolution": 8, "img_channels": 1, "label_dim": 2, "sigma_data": 0.5,
    "model_type": "SongUNet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4],
    "dropout": 0.1
}"#;

/// Why there is nothing to test, if so.
fn absent() -> Option<&'static str> {
    if !cfg!(feature = "mpi") {
        return Some("langevin was built without the feature `mpi`");
    }
    let mpirun = Command::new("mpirun").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if mpirun.is_ok_and(|s| s.success()) { None } else { Some("there is no mpirun") }
}

/// True if the test must be left out; says why.
fn skipped() -> bool {
    let Some(reason) = absent() else { return false };
    let required = std::env::var("LANGEVIN_REQUIRE").is_ok_and(|names| names.split(',').any(|n| n.trim() == "mpi"));
    assert!(!required, "LANGEVIN_REQUIRE names mpi, but {reason}");
    println!("skipped: {reason}");
    true
}

/// A folder with a network, data and settings.
struct Place(TempDir);

impl Place {
    fn new(change: impl FnOnce(&mut Settings)) -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        std::fs::write(place.path("network.json"), NETWORK).unwrap();
        support::write_bars(place.0.path());
        let mut settings = Settings {
            network: place.path("network.json").display().to_string(),
            data: place.path("bars-images-idx3-ubyte").display().to_string(),
            steps: 12,
            batch: 4,
            warmup: 0,
            log_every: 1,
            checkpoint_every: 5,
            keep: 9,
            // Adam would hide a gradient of another scale.
            adam_eps: 1.0,
            lr: 0.05,
            ..Settings::default()
        };
        change(&mut settings);
        std::fs::write(place.path("run.toml"), settings.to_toml().unwrap()).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The command on the run `name`, by so many processes; 0: without mpirun.
    fn spawn(&self, name: &str, ranks: usize, more: &[&str]) -> Child {
        let langevin = env!("CARGO_BIN_EXE_langevin");
        let mut command = Command::new(if ranks > 0 { "mpirun" } else { langevin });
        if ranks > 0 {
            command.args(["-n", &ranks.to_string(), "--oversubscribe", "--allow-run-as-root", "--bind-to", "none"]);
            command.arg(langevin);
        }
        command.args(["--threads", "1", "train", "--config"]).arg(self.path("run.toml"));
        command.arg("--out").arg(self.path(name)).args(more);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// The same to its end.
    fn train(&self, name: &str, ranks: usize, more: &[&str]) -> Output {
        ended(self.spawn(name, ranks, more))
    }

    fn checkpoints(&self, name: &str) -> Vec<String> {
        names(&self.path(name).join("checkpoints"))
    }
}

/// Waits for a process; one that hangs is ended, and the test with it.
fn ended(mut child: Child) -> Output {
    let deadline = Instant::now() + Duration::from_secs(240);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("it hangs: {:?}", child.wait_with_output().unwrap());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

fn succeeded(out: &Output) -> String {
    let (said, noted) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}{noted}");
    format!("{said}{noted}")
}

/// Names in a folder; those of event files end at their first digit.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|n| n.to_string_lossy().into_owned()).collect();
    names.iter_mut().filter(|n| n.starts_with("events")).for_each(|n| n.truncate("events.out.tfevents".len()));
    names.sort();
    names
}

/// Step, loss and norm of the gradient of every line agree but for the order of sums.
fn assert_close(one: &Path, other: &Path) {
    let (one, other) = (read_log(one).unwrap(), read_log(other).unwrap());
    assert_eq!(one.iter().map(|e| e.step).collect::<Vec<_>>(), other.iter().map(|e| e.step).collect::<Vec<_>>());
    for (a, b) in one.iter().zip(&other) {
        assert!((a.loss - b.loss).abs() < 1e-4 * a.loss, "{a:?} and {b:?}");
        assert!((a.grad_norm - b.grad_norm).abs() < 1e-3 * a.grad_norm, "{a:?} and {b:?}");
    }
}

#[test]
fn two_processes_train_as_one() {
    if skipped() {
        return;
    }
    let place = Place::new(|_| {});
    succeeded(&place.train("one", 0, &[]));
    let said = succeeded(&place.train("two", 2, &[]));
    assert_eq!(said.matches("12 steps: ").count(), 1, "only one of them speaks: {said}");
    assert!(said.contains("2 processes; this one has 1 threads"), "{said}");
    let (one, two) = (place.path("one"), place.path("two"));
    assert_close(&one, &two);
    assert!(read_log(&two).unwrap().iter().all(|e| e.ranks == 2 && e.sum_wait > 0.0));
    assert_eq!(names(&one), names(&two));
    assert_eq!(place.checkpoints("two"), ["step-00000005", "step-00000010", "step-00000012"]);
    // From a checkpoint of one process on with two, and the other way round.
    for (run, ranks) in [("one", 2), ("two", 0)] {
        std::fs::remove_dir_all(place.path(run).join("checkpoints/step-00000010")).unwrap();
        std::fs::remove_dir_all(place.path(run).join("checkpoints/step-00000012")).unwrap();
        succeeded(&place.train(run, ranks, &["--resume"]));
        let log = read_log(&place.path(run)).unwrap();
        let expected = |step: usize| if (step > 5) == (run == "one") { 2 } else { 1 };
        assert!(log.iter().all(|e| e.ranks == expected(e.step)), "{log:?}");
    }
    assert_close(&one, &two);
}

/// Levels far below e⁻²⁰ overflow the weights of a sample, which one process has.
#[test]
fn numbers_that_are_none_stop_both() {
    if skipped() {
        return;
    }
    let place = Place::new(|s| (s.p_mean, s.p_std, s.steps) = (-20.0, 20.0, 100));
    let out = place.train("run", 2, &[]);
    let noted = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && noted.contains("the output of") && noted.contains("at step"), "{noted}");
}

#[test]
fn a_batch_that_cannot_be_shared_is_refused() {
    if skipped() {
        return;
    }
    let place = Place::new(|s| s.batch = 5);
    let out = place.train("run", 2, &[]);
    let noted = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && noted.contains("batch: 5 images are not for 2 processes"), "{noted}");
    assert!(!place.path("run/config.toml").exists());
}

/// Ctrl-C for one process: both stop, with a checkpoint, and can be resumed.
#[cfg(target_os = "linux")]
#[test]
fn one_process_that_is_interrupted_stops_both() {
    if skipped() {
        return;
    }
    let place = Place::new(|s| (s.steps, s.checkpoint_every) = (100_000, 0));
    let child = place.spawn("run", 2, &[]);
    let log = place.path("run/log.jsonl");
    let deadline = Instant::now() + Duration::from_secs(120);
    while std::fs::read_to_string(&log).unwrap_or_default().lines().count() < 3 {
        assert!(Instant::now() < deadline, "no step was made");
        std::thread::sleep(Duration::from_millis(20));
    }
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    let ranks: Vec<&str> = children.split_whitespace().collect();
    assert_eq!(ranks.len(), 2, "{children}");
    assert!(Command::new("kill").args(["-INT", ranks[1]]).status().unwrap().success());
    let out = ended(child);
    let noted = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && noted.contains("with a checkpoint"), "{noted}");
    assert_eq!(place.checkpoints("run").len(), 1);
}
