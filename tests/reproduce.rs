//! `langevin reproduce w2sd`: the analytic mixtures against numbers of another program, and its files.

use langevin::Error;
use langevin::reproduce::mixture::{Mixture, Way, share_and_mean, ways};
use langevin::reproduce::{Event, Part, Report, Request};

/// Samples of a way; the standard error of a share is at most 0.0035.
const SAMPLES: usize = 20_000;

/// The whole analytic part: every number that another program (NumPy) found, within 0.01.
#[test]
fn mixtures_agree_with_another_program() {
    let place = tempfile::tempdir().unwrap();
    let request = Request { parts: vec![Part::Analytic], ..Request::new(place.path().join("report")) };
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
    let request = Request { parts: vec![Part::Analytic], ..Request::new(place.path()) };
    let stopped = request.run(&mut |_| Err(Error::Cancelled));
    assert!(matches!(stopped, Err(Error::Cancelled)));
    assert_eq!(Report::open(place.path()).unwrap(), Report::default());
    std::fs::write(place.path().join("w2sd.json"), "{").unwrap();
    assert!(request.run(&mut |_| Ok(())).unwrap_err().to_string().contains("w2sd.json"));
    assert!("mixture".parse::<Part>().unwrap_err().to_string().contains("analytic"));
}
