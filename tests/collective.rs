//! Several processes that train together, as threads of one: they compute what one process computes.

mod support;

use langevin::collective::{Collective, Piece, agree, same};
use langevin::data::Dataset;
use langevin::diffusion::Objective;
use langevin::run::{Run, Settings, read_log};
use langevin::trainer::{StepReport, TrainConfig, Trainer};
use langevin::weights::Weights;
use langevin::{Device, Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use support::{DIT, UNET};
use tempfile::TempDir;

const EDM: &str = r#"{
    "_class_name": "EDMPrecond", "img_resolution": 8, "img_channels": 1, "label_dim": 2, "sigma_data": 0.5,
    "model_type": "SongUNet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4],
    "dropout": 0.1
}"#;

/// One of several threads that stand for processes. A sum takes its numbers when it begins and gives them back when it is
/// waited for, as late as it may; in between they are NaN, so that whoever touches them is found out.
#[derive(Debug)]
struct Threads {
    rank: usize,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
    begun: Vec<(Piece, Vec<f32>)>,
}

fn threads(size: usize) -> Vec<Threads> {
    let mut all: Vec<Threads> =
        (0..size).map(|rank| Threads { rank, to: vec![], from: vec![], begun: vec![] }).collect();
    for from in 0..size {
        for to in 0..size {
            let (send, receive) = channel();
            all[from].to.push(send);
            all[to].from.push(receive);
        }
    }
    all
}

impl Threads {
    fn tell(&self, bytes: &[u8]) -> Result<()> {
        let gone = |_| Error::Thread { what: "another rank", reason: "it is gone".into() };
        self.to.iter().try_for_each(|to| to.send(bytes.to_vec()).map_err(gone))
    }

    fn hear(&self, rank: usize) -> Result<Vec<u8>> {
        let failed = |e| Error::Thread { what: "another rank", reason: format!("{rank}: {e}") };
        self.from[rank].recv_timeout(Duration::from_secs(60)).map_err(failed)
    }
}

// SAFETY: pieces are touched in `start_sum` and `wait` only.
unsafe impl Collective for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn bucket(&self) -> usize {
        500
    }

    fn start_sum(&mut self, piece: Piece) -> Result<()> {
        // SAFETY: it is on its way from here on.
        let numbers = unsafe { piece.numbers() };
        self.tell(bytemuck::cast_slice(numbers))?;
        numbers.fill(f32::NAN);
        self.begun.push((piece, vec![0.0; numbers.len()]));
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        for (piece, mut sum) in std::mem::take(&mut self.begun) {
            for rank in 0..self.size() {
                let bytes = self.hear(rank)?;
                let numbers: &[f32] = &bytemuck::pod_collect_to_vec(&bytes);
                assert_eq!(numbers.len(), sum.len(), "ranks sum different pieces");
                sum.iter_mut().zip(numbers).for_each(|(a, b)| *a += b);
            }
            // SAFETY: on its way still.
            let numbers = unsafe { piece.numbers() };
            assert!(numbers.iter().all(|v| v.is_nan()), "somebody wrote what is being summed");
            numbers.copy_from_slice(&sum);
        }
        Ok(())
    }

    fn broadcast(&mut self, root: usize, bytes: &mut Vec<u8>) -> Result<()> {
        if root == self.rank {
            self.tell(bytes)?;
        }
        *bytes = self.hear(root)?;
        Ok(())
    }
}

/// What `work` returns on each of `size` ranks.
fn together<T: Send>(size: usize, work: impl Fn(Box<dyn Collective>) -> T + Sync) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = threads(size).into_iter().map(|t| scope.spawn(move || work(Box::new(t)))).collect();
        ranks.into_iter().map(|r| r.join().unwrap()).collect()
    })
}

fn bars() -> Arc<Dataset> {
    let dir = tempfile::tempdir().unwrap();
    support::write_bars(dir.path());
    Arc::new(Dataset::open(dir.path().join("bars-images-idx3-ubyte"), &Default::default()).unwrap())
}

/// Adam and clipping would hide a gradient of another scale: a large ε lets it through, and a norm that clips every step shows
/// whether it is that of the whole batch.
fn config() -> TrainConfig {
    TrainConfig {
        batch: 12,
        steps: 6,
        learning_rate: 0.05,
        warmup: 0,
        eps: 1.0,
        max_grad_norm: 0.05,
        flip: 0.5,
        seed: 5,
        ..TrainConfig::default()
    }
}

/// Six steps: reports, and all weights, moments and averages as they are in a file.
fn six_steps(mut trainer: Trainer) -> (Vec<StepReport>, Vec<u8>) {
    let reports = (0..6).map(|_| trainer.step().unwrap()).collect();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state.safetensors");
    trainer.save_state(&file).unwrap();
    (reports, std::fs::read(file).unwrap())
}

fn all_numbers(state: &[u8]) -> Vec<f32> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state.safetensors");
    std::fs::write(&file, state).unwrap();
    let weights = Weights::open(&file).unwrap();
    let mut names: Vec<&str> = weights.names().collect();
    names.sort();
    let mut all = Vec::new();
    for name in names {
        let mut numbers = vec![0.0; weights.info(name).unwrap().shape.iter().product()];
        weights.read_f32_into(name, &mut numbers).unwrap();
        all.extend(numbers);
    }
    all
}

#[test]
fn several_train_as_one() {
    let data = bars();
    let path = Path::new("config.json");
    for (network, size, accumulate) in [(EDM, 2, 1), (EDM, 3, 2), (UNET, 2, 3), (UNET, 4, 1), (DIT, 3, 1), (DIT, 2, 2)]
    {
        let config = TrainConfig { accumulate, ..config() };
        let one = Trainer::new(config.clone(), network, path, data.clone(), Device::Cpu).unwrap();
        let (reports, state) = six_steps(one);
        let several = together(size, |ranks| {
            six_steps(Trainer::among(ranks, config.clone(), network, path, data.clone(), Device::Cpu).unwrap())
        });
        let name = format!("{size} ranks, {accumulate} parts, {network}");
        for (theirs, bytes) in &several {
            assert!(*bytes == several[0].1, "not the same weights on all ranks: {name}");
            for (a, b) in reports.iter().zip(theirs) {
                assert!((a.loss - b.loss).abs() < 1e-4 * a.loss, "{} and {}: {name}", a.loss, b.loss);
                let off = (a.grad_norm - b.grad_norm).abs();
                assert!(off < 1e-3 * a.grad_norm, "{} and {}: {name}", a.grad_norm, b.grad_norm);
                assert_eq!(a.samples.len(), b.samples.len());
                for (a, b) in a.samples.iter().zip(&b.samples) {
                    assert!(a.0 == b.0 && (a.1 - b.1).abs() < 1e-3 * a.1.abs(), "{a:?} and {b:?}: {name}");
                }
            }
        }
        let (one, several) = (all_numbers(&state), all_numbers(&several[0].1));
        let off = one.iter().zip(&several).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1e-5, "weights are off by {off}: {name}");
    }
}

/// Sums begin while the backward pass is under way, also in the last of several parts.
#[test]
fn buckets_are_finished_on_the_way() {
    let data = bars();
    for (network, accumulate) in [(EDM, 1), (UNET, 1), (DIT, 1), (UNET, 2)] {
        let config = TrainConfig { accumulate, ..config() };
        let marks = together(2, |ranks| {
            let trainer =
                Trainer::among(ranks, config.clone(), network, Path::new("config.json"), data.clone(), Device::Cpu);
            let trainer = trainer.unwrap();
            let programs = &trainer.session().schedule().programs;
            let marked: Vec<_> = programs.iter().filter(|p| !p.marks.is_empty()).collect();
            assert_eq!(marked.len(), 1);
            let share = |after: usize| after as f64 / marked[0].commands.len() as f64;
            marked[0].marks.iter().map(|m| (m.number, share(m.after))).collect::<Vec<_>>()
        });
        assert_eq!(marks[0], marks[1]);
        let marks = &marks[0];
        assert!(marks.len() >= 4 && marks.iter().enumerate().all(|(i, m)| m.0 == i), "{marks:?}");
        assert!(marks.windows(2).all(|w| w[0].1 <= w[1].1) && marks[1].1 < 0.8, "{marks:?}");
    }
    let alone = Trainer::new(config(), EDM, Path::new("config.json"), data, Device::Cpu).unwrap();
    assert!(alone.session().schedule().programs.iter().all(|p| p.marks.is_empty()));
}

/// A share of an image is not to be had.
#[test]
fn shares_are_whole() {
    let data = bars();
    for (size, accumulate) in [(5, 1), (2, 4)] {
        let config = TrainConfig { accumulate, ..config() };
        let refused = together(size, |ranks| {
            Trainer::among(ranks, config.clone(), EDM, Path::new("config.json"), data.clone(), Device::Cpu)
                .unwrap_err()
                .to_string()
        });
        assert!(refused.iter().all(|e| e.contains(&format!("12 images are not for {size} processes"))), "{refused:?}");
    }
}

/// Levels far below e⁻²⁰ overflow the weights of a few samples, which one rank has.
#[test]
fn numbers_that_are_none_on_one_rank_stop_all() {
    let data = bars();
    let objective = Some(Objective::edm(-20.0, 20.0, 0.5).unwrap());
    for check_numerics in [false, true] {
        let config = TrainConfig { objective: objective.clone(), check_numerics, steps: 50, ..config() };
        let fail = |mut trainer: Trainer| {
            let e = (0..50).find_map(|_| trainer.step().err()).expect("infinite weights went unnoticed");
            let Error::NotFinite { what, step, .. } = &e else { panic!("{e}") };
            assert!(what.contains("the output of"), "{e}");
            let again = trainer.step().unwrap_err();
            assert_eq!((trainer.steps_done() + 1, again.to_string()), (*step, e.to_string()));
            e.to_string()
        };
        let path = Path::new("config.json");
        let one = fail(Trainer::new(config.clone(), EDM, path, data.clone(), Device::Cpu).unwrap());
        let several = together(3, |ranks| {
            fail(Trainer::among(ranks, config.clone(), EDM, path, data.clone(), Device::Cpu).unwrap())
        });
        let step = |e: &str| e.rsplit(' ').next().unwrap().to_owned();
        assert!(several.iter().all(|e| *e == several[0] && step(e) == step(&one)), "{several:?}, alone {one}");
    }
}

#[test]
fn all_know_who_failed_and_why() {
    type Mine = fn() -> Result<u8>;
    let cases: [(Mine, &str); 4] = [
        (|| Ok(7), ""),
        (|| Err(Error::Cancelled), "cancelled"),
        (|| Err(Error::NotFinite { what: "it".into(), value: f32::NAN, step: 3 }), "it became NaN at step 3"),
        (|| Err(Error::invalid("lr", "is odd")), "process 1: lr: is odd"),
    ];
    for (second, words) in cases {
        let said = together(3, |mut ranks| {
            let mine = if ranks.rank() == 1 { second() } else { Ok(7) };
            agree(&mut *ranks, mine).map_err(|e| e.to_string())
        });
        match words {
            "" => assert!(said.iter().all(|s| *s == Ok(7)), "{said:?}"),
            words => {
                assert!(said.iter().all(|s| s.as_ref().is_err_and(|e| words.ends_with(e.as_str()))), "{said:?}");
                assert_eq!(said[0].as_ref().unwrap_err(), words);
            }
        }
    }
    let equal = together(2, |mut ranks| same(&mut *ranks, "data", "a").is_ok());
    let other = together(2, |mut ranks| {
        let text = ["a", "b"][ranks.rank()];
        same(&mut *ranks, "data", text).unwrap_err().to_string()
    });
    assert_eq!(equal, [true, true]);
    assert!(other.iter().all(|e| e.contains("data: is not what the first process has")), "{other:?}");
}

/// A folder with a network and data.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        std::fs::write(place.path("network.json"), EDM).unwrap();
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
            steps: 12,
            batch: 4,
            log_every: 3,
            checkpoint_every: 5,
            adam_eps: 1.0,
            lr: 0.05,
            ..Settings::default()
        }
    }

    /// The run `name` on so many ranks, from its start or from its last checkpoint; what each rank says at the end. `watch` is
    /// told rank and step.
    fn train(&self, name: &str, size: usize, watch: impl Fn(usize, usize) -> Result<()> + Sync) -> Vec<Result<()>> {
        let out = self.path(name);
        let resume = out.join("config.toml").exists();
        together(size, |ranks| {
            let rank = ranks.rank();
            let mut run = match resume {
                true => Run::resume_among(ranks, &out, |s| Ok(s.clone()), Device::Cpu)?,
                false => Run::start_among(ranks, &out, self.settings(), Device::Cpu)?,
            };
            run.finish(&mut |_, report| watch(rank, report.step))
        })
    }

    /// Names in a run's folder; those of event files end at their first digit.
    fn files(&self, name: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(name)).unwrap().map(|e| e.unwrap().file_name());
        let mut names: Vec<String> = entries.map(|n| n.to_string_lossy().into_owned()).collect();
        names.iter_mut().filter(|n| n.starts_with("events")).for_each(|n| n.truncate("events.out.tfevents".len()));
        names.sort();
        names
    }

    fn losses(&self, name: &str) -> Vec<(usize, f64, Vec<Option<f64>>)> {
        read_log(&self.path(name)).unwrap().into_iter().map(|e| (e.step, e.loss, e.loss_bins)).collect()
    }
}

fn close(a: &[(usize, f64, Vec<Option<f64>>)], b: &[(usize, f64, Vec<Option<f64>>)]) -> bool {
    let near = |a: &f64, b: &f64| (a - b).abs() < 1e-4 * a.abs();
    let same = |a: &Option<f64>, b: &Option<f64>| match (a, b) {
        (Some(a), Some(b)) => near(a, b),
        (a, b) => a == b,
    };
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| a.0 == b.0 && near(&a.1, &b.1) && a.2.iter().zip(&b.2).all(|(a, b)| same(a, b)))
}

#[test]
fn a_run_is_written_once() {
    let place = Place::new();
    for (name, size) in [("one", 1), ("two", 2)] {
        assert!(place.train(name, size, |_, _| Ok(())).iter().all(|r| r.is_ok()));
        assert!(read_log(&place.path(name)).unwrap().iter().all(|e| e.ranks == size));
    }
    assert_eq!(place.files("one"), place.files("two"));
    let (one, two) = (place.losses("one"), place.losses("two"));
    assert!(one.len() == 4 && close(&one, &two), "{one:?} and {two:?}");
}

/// Whoever is told to stop: all do, with a checkpoint, and any number of ranks goes on.
#[test]
fn one_rank_stops_all_and_others_go_on() {
    let place = Place::new();
    place.train("whole", 1, |_, _| Ok(()));
    for (name, stop) in [("a", 0), ("b", 1)] {
        let cancel = |rank, step| if (rank, step) == (stop, 7) { Err(Error::Cancelled) } else { Ok(()) };
        let said = place.train(name, 2, cancel);
        assert!(said.iter().all(|r| matches!(r, Err(Error::Cancelled))), "{said:?}");
        assert!(place.path(name).join("checkpoints/step-00000007").is_dir());
        assert!(place.train(name, 4 - 3 * stop, |_, _| Ok(())).iter().all(|r| r.is_ok()));
        let (whole, parts) = (place.losses("whole"), place.losses(name));
        assert!(close(&whole, &parts), "{whole:?} and {parts:?}");
    }
    let fail = |rank, step| if (rank, step) == (1, 2) { Err(Error::invalid("x", "is odd")) } else { Ok(()) };
    let said: Vec<String> = place.train("c", 2, fail).into_iter().map(|r| r.unwrap_err().to_string()).collect();
    assert_eq!(said, ["process 1: x: is odd", "x: is odd"]);
}

#[test]
fn ranks_with_other_data_or_settings_are_refused() {
    let place = Place::new();
    let other = place.path("other");
    std::fs::create_dir(&other).unwrap();
    support::write_bars(&other);
    let file = other.join("bars-images-idx3-ubyte");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    type Change<'a> = &'a (dyn Fn(&mut Settings) + Sync);
    let changes: [(Change, &str); 3] = [
        (&|s| s.seed = 9, "settings: is not what the first process has"),
        (&|s| s.data = file.display().to_string(), "data: is not what the first process has"),
        (&|s| s.network = "nowhere".into(), "nowhere"),
    ];
    for (i, (change, words)) in changes.into_iter().enumerate() {
        let out = place.path(&format!("run {i}"));
        let said = together(2, |ranks| {
            let mut settings = place.settings();
            if ranks.rank() == 1 {
                change(&mut settings);
            }
            Run::start_among(ranks, &out, settings, Device::Cpu).map(|_| ()).unwrap_err().to_string()
        });
        assert!(said.iter().all(|e| e.contains(words)), "{said:?}");
        assert!(!out.join("config.toml").exists(), "a run that never began");
    }
}

/// Two processes that know nothing of each other would both train all of it.
#[cfg(not(feature = "mpi"))]
#[test]
fn without_mpi_a_launcher_is_refused() {
    let place = Place::new();
    for name in ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"] {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_langevin"))
            .args(["train", "--network", "network.json", "--data", "bars-images-idx3-ubyte", "--out", "run"])
            .current_dir(place.0.path())
            .env(name, "2")
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&out.stderr);
        let words = ["training by 2 processes is not supported", "--features mpi"];
        assert!(out.status.code() == Some(1) && words.iter().all(|w| message.contains(w)), "{message}");
        assert!(!place.path("run").exists());
    }
}
