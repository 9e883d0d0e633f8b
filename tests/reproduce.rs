//! `langevin reproduce w2sd`: the analytic mixtures against numbers of another program, and the other parts on small data.

mod support;

use langevin::reproduce::mixture::{Mixture, Way, share_and_mean, ways};
use langevin::reproduce::{Event, Part, Report, Request};
use langevin::{Device, Error};
use std::path::{Path, PathBuf};

/// Samples of a way; the standard error of a share is at most 0.0035.
const SAMPLES: usize = 20_000;

/// The whole analytic part: every number that another program (NumPy) found, within 0.01.
#[test]
fn mixtures_agree_with_another_program() {
    let place = tempfile::tempdir().unwrap();
    let request = Request { parts: vec![Part::Analytic], ..Request::new(place.path().join("report")).unwrap() };
    let mut steps = 0;
    let report = request
        .run(&mut |event| {
            if let Event::Step(n) = event {
                steps += n;
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(steps, 25);
    let [section] = &report.sections[..] else { panic!("{report:?}") };
    assert!(section.findings.iter().all(|f| f.shown), "{:?}", section.findings);
    let mut compared = 0;
    for row in section.tables.iter().flat_map(|t| &t.rows) {
        let [Some(got), reference, ..] = row.cells[..] else { panic!("{row:?}") };
        let Some(reference) = reference else { continue };
        println!("{}: {:.4}, elsewhere {:.3}", row.name, got.value, reference.value);
        assert!((got.value - reference.value).abs() < 0.01, "{}: {got:?} {reference:?}", row.name);
        compared += 1;
    }
    assert_eq!(compared, 10 + 4 + 5);
    // What was written is what was returned.
    assert_eq!(Report::open(&request.out).unwrap(), report);
    let text = std::fs::read_to_string(request.out.join("w2sd.md")).unwrap();
    assert!(text == report.markdown() && text.contains("| W2SD, old time |"), "{text}");
    for picture in &section.pictures {
        let svg = std::fs::read_to_string(request.out.join(&picture.file)).unwrap();
        assert!(svg.starts_with("<svg") && svg.len() > 5000, "{}", picture.file);
    }
}

#[test]
fn samples_are_a_function_of_the_seed() {
    let pair = [Mixture::line(0.3), Mixture::line(0.1)];
    let sample = |n, seed| ways()[2].1.sample(pair.each_ref(), 5, n, seed).unwrap();
    assert_eq!(sample(100, 1)[..50], sample(50, 1));
    assert_ne!(sample(50, 1), sample(50, 2));
}

/// A mixture whose score is exact is sampled as it is, whatever its weights.
#[test]
fn plain_sampling_keeps_the_weights() {
    for weight in [0.05, 0.5, 0.8] {
        let mixture = Mixture::line(weight);
        let samples = Way::Strong.sample([&mixture, &mixture], 100, SAMPLES, 7).unwrap();
        let share = share_and_mean(&samples, |x| x[0] < 0.0).0;
        assert!((share - weight).abs() < 0.012, "{weight}: {share}");
    }
}

#[test]
fn stopped_runs_stop_and_other_parts_are_kept() {
    let place = tempfile::tempdir().unwrap();
    let request = Request { parts: vec![Part::Analytic], ..Request::new(place.path()).unwrap() };
    let stopped = request.run(&mut |_| Err(Error::Cancelled));
    assert!(matches!(stopped, Err(Error::Cancelled)));
    assert_eq!(Report::open(place.path()).unwrap(), Report::default());
    std::fs::write(place.path().join("w2sd.json"), "{").unwrap();
    assert!(request.run(&mut |_| Ok(())).unwrap_err().to_string().contains("w2sd.json"));
    assert!("mixture".parse::<Part>().unwrap_err().to_string().contains("analytic"));
}

/// CIFAR's binary form: cars and horses in turn, one kind bright above, the other bright below.
fn cars_and_horses(folder: &Path) -> PathBuf {
    let image = |i: usize| {
        let bright = move |p: usize| (p % 1024 < 512) == i.is_multiple_of(2);
        let pixel = move |p: usize| if bright(p) { 200 + (i * 7 + p) % 50 } else { (i * 3 + p) % 40 };
        std::iter::once([1, 7][i % 2]).chain((0..3072).map(move |p| pixel(p) as u8))
    };
    let path = folder.join("data.bin");
    std::fs::write(&path, (0..24).flat_map(image).collect::<Vec<u8>>()).unwrap();
    path
}

/// The names of the works that were begun, and what was said.
fn run(request: &Request) -> (Report, Vec<String>) {
    let mut heard = Vec::new();
    let report = request.run(&mut |event| {
        match event {
            Event::Begin { what, .. } => heard.push(what.to_string()),
            Event::Note(text) => heard.push(text),
            Event::Step(_) => {}
        }
        Ok(())
    });
    (report.unwrap(), heard)
}

fn column(report: &Report, section: usize, column: usize) -> Vec<f64> {
    let table = &report.sections[section].tables[0];
    table.rows.iter().map(|r| r.cells[column].unwrap().value).collect()
}

#[test]
fn a_pair_is_trained_once_and_compared() {
    let place = tempfile::tempdir().unwrap();
    let mut request = Request::new(place.path().join("report")).unwrap();
    request.parts = vec![Part::TimeGap, Part::Cifar];
    request.data = Some(cars_and_horses(place.path()));
    (request.samples, request.steps, request.batch) = (6, 3, 4);
    let settings = &mut request.settings;
    (settings.steps, settings.batch, settings.warmup) = (6, 4, 1);
    (settings.save_at, settings.checkpoint_every) = (vec![2, 4], 3);

    let (report, heard) = run(&request);
    let trained = |heard: &[String]| heard.iter().filter(|h| h.starts_with("training")).cloned().collect::<Vec<_>>();
    assert_eq!(trained(&heard), ["training strong", "training weak", "training the classifier"]);
    assert_eq!(report.sections.iter().map(|s| s.part).collect::<Vec<_>>(), [Part::Cifar, Part::TimeGap]);
    // Strong, weak, W2SD twice, S2WD twice, AutoGuidance, and strong with the evaluations of W2SD.
    assert_eq!(column(&report, 0, 0), [3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 7.0]);
    assert_eq!(column(&report, 0, 1), [3.0, 3.0, 7.0, 7.0, 7.0, 7.0, 6.0, 7.0]);
    for row in &report.sections[0].tables[0].rows {
        let [.., Some(share), Some(farther)] = row.cells[..] else { panic!("{row:?}") };
        let [low, high] = share.interval.unwrap();
        assert!((0.0..=share.value).contains(&low) && (share.value..=1.0).contains(&high), "{row:?}");
        assert!(row.name != "strong" || farther.value == 0.0, "{row:?}");
    }
    assert_eq!(report.sections[0].findings.len(), 4);
    assert!(report.sections[0].text.contains("of 4 images"), "{}", report.sections[0].text);
    // Gaps between checkpoints: one cosine a level, of images that share their noise.
    let cosines = column(&report, 1, 0);
    assert!(cosines.len() == 11 && cosines.iter().all(|c| c.abs() <= 1.0 && *c != 0.0), "{cosines:?}");
    for picture in report.sections.iter().flat_map(|s| &s.pictures) {
        assert!(request.out.join(&picture.file).is_file(), "{}", picture.file);
    }

    // Once more: nothing is trained, and the samples are the same.
    request.parts = vec![Part::Cifar];
    let (again, heard) = run(&request);
    assert_eq!(trained(&heard), [""; 0]);
    assert_eq!(column(&again, 0, 3), column(&report, 0, 3));
    assert_eq!(again.sections[1], report.sections[1], "a part that was not run stays");
    // Other settings would need another folder.
    request.settings.lr *= 2.0;
    let e = request.run(&mut |_| Ok(())).unwrap_err().to_string();
    assert!(e.contains("other settings") && e.contains("lr is"), "{e}");
}

#[test]
fn guidance_is_compared_with_reflection() {
    let place = tempfile::tempdir().unwrap();
    let mut request = Request::new(place.path().join("report")).unwrap();
    let digits: Vec<u8> = (0..40 * 784).map(|p| (p * (p / 784 + 3) / 7 % 251) as u8).collect();
    let mnist = place.path().join("train-images-idx3-ubyte");
    std::fs::write(&mnist, support::idx(&[40, 28, 28], &digits)).unwrap();
    let labels: Vec<u8> = (0..40).map(|i| i % 10).collect();
    std::fs::write(place.path().join("train-labels-idx1-ubyte"), support::idx(&[40], &labels)).unwrap();
    request.parts = vec![Part::Moe, Part::Cifar, Part::GuidanceGap];
    // A network begins with gates of zero; it must have learned something before its experts matter.
    let experts = &mut request.experts;
    (experts.steps, experts.batch, experts.warmup, experts.grid_every) = (8, 2, 1, 0);
    (experts.lr, experts.ema_half_life) = (1e-2, vec![1.0]);
    request.mnist = Some(mnist);
    (request.samples, request.steps, request.device) = (4, 2, Device::Cpu);
    let (report, heard) = run(&request);
    assert_eq!(heard[0], "training moe");
    assert!(heard.iter().any(|h| h.contains("cifar is left out") && h.contains("--data")), "{heard:?}");
    assert_eq!(report.sections.iter().map(|s| s.part).collect::<Vec<_>>(), [Part::GuidanceGap, Part::Moe]);
    // Two calls a guided step; of the one reflection two in the strong leg, one in the weak.
    assert_eq!(column(&report, 0, 1), [4.0, 7.0, 4.0, 7.0, 4.0, 6.0]);
    assert_eq!(column(&report, 0, 3), [2.5, 5.0, 5.0, 4.0, 4.0, 2.5]);
    let percent = [4, 6].map(|c| column(&report, 0, c)).concat();
    assert!(percent.iter().all(|p| (0.0..=100.0).contains(p)), "{percent:?}");
    assert!(column(&report, 0, 5).iter().all(|d| *d > 0.0));
    assert_eq!(report.sections[0].findings.len(), 5);
    // Best experts, W2SD, S2WD, best experts with as many evaluations; two calls a guided step, in every leg.
    assert_eq!(column(&report, 1, 1), [4.0, 8.0, 8.0, 8.0]);
    assert!(report.sections[1].tables[0].rows.iter().all(|r| r.cells[3].is_none()), "no guidance to speak of");
    let distances = column(&report, 1, 5);
    assert!(distances[1] != distances[0] && distances[1] != distances[2], "{distances:?}");
    for wrong in [Request { samples: 0, ..request.clone() }, Request { steps: 1, ..request.clone() }] {
        assert!(matches!(wrong.run(&mut |_| Ok(())), Err(Error::Invalid { .. })));
    }
}
