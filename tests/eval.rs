//! Metrics against scipy, their properties, the cache, and the classifier that makes features.

use langevin::classifier::{Classifier, ClassifierTrainConfig, ClassifierTrainer};
use langevin::data::Dataset;
use langevin::eval::{
    Bootstrap, ClassProbabilities, Features, Frechet, Moments, NEIGHBOURS, Origin, Reference, nearest, nearest_others,
    neighbourhood, quantile,
};
use langevin::evaluator::{Extracted, FeatureExtractor, Metric, data_fingerprint, evaluate, pictures};
use langevin::sampler::Images;
use langevin::weights::Dtype;
use langevin::{Device, Error};

/// A 12-bit hash over 4096, as in benches/peers/metrics_scipy.py.
fn hashed(seed: u32, i: usize, j: usize) -> f32 {
    let x = seed.wrapping_mul(0x9E37_79B1);
    let x = x.wrapping_add((i as u32).wrapping_mul(0x85EB_CA77)).wrapping_add((j as u32).wrapping_mul(0xC2B2_AE3D));
    let x = (x ^ (x >> 15)).wrapping_mul(0x2C1B_3C6D);
    let x = (x ^ (x >> 12)).wrapping_mul(0x297A_2D39);
    (x >> 20) as f32 / 4096.0
}

fn rows(seed: u32, n: usize, dim: usize, shift: f32) -> Features {
    let value = |i: usize, j: usize| hashed(seed, i, j) + hashed(seed, i, j + 1) / 2.0 + shift;
    let data = (0..n * dim).map(|at| value(at / dim, at % dim)).collect();
    Features::new("a test", data, dim).unwrap()
}

fn frechet(a: &Features, b: &Features) -> f64 {
    Frechet::new(&Moments::of(a).unwrap()).distance(&Moments::of(b).unwrap()).unwrap()
}

fn prdc(real: &Features, fake: &Features, k: usize) -> [f64; 4] {
    let found = neighbourhood(fake, real, &nearest_others(real, k).unwrap()).unwrap();
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    [&found.precision, &found.recall, &found.density, &found.coverage].map(|x| mean(x))
}

fn near(a: f64, b: f64, bound: f64) {
    assert!((a - b).abs() <= bound * b.abs().max(1.0), "{a} is not {b}");
}

/// Expected values: `python benches/peers/metrics_scipy.py`.
#[test]
fn metrics_agree_with_scipy() {
    type Case = (usize, usize, usize, f32, f32, f64, [[f64; 4]; 2], f64);
    // Precision, recall, density and coverage with 3 neighbours and with 5.
    let large = [[0.78, 0.803333333333, 0.732, 0.693333333333], [0.876, 0.92, 0.716, 0.813333333333]];
    let small = [[0.9, 0.825, 1.18333333333, 0.925], [0.95, 0.925, 1.14666666667, 1.0]];
    let cases: [Case; 3] = [
        (300, 250, 16, 0.125, 0.0, 0.382292607887, large, 1.02925791656),
        (40, 60, 64, 0.0, 0.0, 4.07145603505, small, 3.00811946036),
        (300, 250, 16, 0.125, 1000.0, 0.382292607887, large, 1.02925791656),
    ];
    for (n, m, dim, shift, offset, fd, expected, median) in cases {
        let (real, fake) = (rows(1, n, dim, offset), rows(2, m, dim, offset + shift));
        // scipy takes the root of a singular product to half of the digits.
        near(frechet(&real, &fake), fd, if n > dim { 1e-9 } else { 1e-6 });
        near(frechet(&fake, &real), fd, if n > dim { 1e-9 } else { 1e-6 });
        for (k, expected) in [3, NEIGHBOURS].into_iter().zip(expected) {
            prdc(&real, &fake, k).into_iter().zip(expected).for_each(|(ours, theirs)| near(ours, theirs, 1e-11));
        }
        let mut nearest = nearest(&fake, &real, 1).unwrap();
        nearest.sort_by(f64::total_cmp);
        near(quantile(&nearest, 0.5), median, 1e-11);
    }
    let logits = rows(3, 205, 7, 0.0);
    let logits = Features::new("logits", logits.data().iter().map(|v| 8.0 * v).collect(), 7).unwrap();
    let classes = ClassProbabilities::new(&logits);
    let all: Vec<usize> = (0..205).collect();
    near(classes.score(&all, 10), 2.45312316941, 1e-10);
    near(classes.score(&all, 1), 2.60552567705, 1e-10);
}

#[test]
fn a_set_is_at_no_distance_from_itself_in_any_order() {
    for (n, dim) in [(200, 8), (20, 30), (700, 3)] {
        let a = rows(1, n, dim, 0.0);
        let order: Vec<usize> = (0..n).map(|i| (i * 11 + 3) % n).collect();
        let shuffled = a.select(&order);
        near(frechet(&a, &a), 0.0, 1e-7);
        near(frechet(&a, &shuffled), 0.0, 1e-7);
        let b = rows(2, n, dim, 0.25);
        near(frechet(&b, &shuffled), frechet(&b, &a), 1e-9);
        let [precision, recall, _, coverage] = prdc(&a, &shuffled, NEIGHBOURS);
        assert_eq!([precision, recall, coverage], [1.0; 3]);
        assert_eq!(prdc(&a, &b, 1), prdc(&shuffled, &b, 1));
        // Larger balls hold what smaller ones hold.
        let [small, large] = [1, 9].map(|k| prdc(&a, &b, k));
        assert!([0, 1, 3].iter().all(|i| small[*i] <= large[*i]) && small != large, "{small:?} {large:?}");
    }
}

#[test]
fn a_shift_of_the_mean_is_a_distance_of_its_square() {
    for dim in [1, 5, 40] {
        let (a, b) = (rows(1, 300, dim, 0.0), rows(1, 300, dim, 0.5));
        near(frechet(&a, &b), 0.25 * dim as f64, 1e-7);
    }
    // Scaling a normal distribution by s about its mean: (s − 1)² times its trace.
    let a = rows(1, 300, 6, 0.0);
    let moments = Moments::of(&a).unwrap();
    let scaled = Moments { covariance: moments.covariance.iter().map(|v| 9.0 * v).collect(), ..moments.clone() };
    let trace: f64 = (0..6).map(|i| moments.covariance[i * 7]).sum();
    near(Frechet::new(&moments).distance(&scaled).unwrap(), 4.0 * trace, 1e-9);
}

/// Blocks of queries and of centres, and their borders.
#[test]
fn neighbours_across_blocks_are_those_of_a_plain_search() {
    let (queries, centres) = (rows(1, 515, 3, 0.0), rows(2, 4100, 3, 0.0));
    let found = nearest(&queries, &centres, 2).unwrap();
    for i in [0, 1, 511, 512, 514] {
        let square = |j: usize| -> f64 {
            queries.row(i).iter().zip(centres.row(j)).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum()
        };
        let mut all: Vec<f64> = (0..4100).map(|j| square(j).sqrt()).collect();
        all.sort_by(f64::total_cmp);
        assert_eq!(found[2 * i..2 * i + 2], all[..2], "query {i}");
    }
    let twice = centres.select(&[5, 9, 5]);
    assert_eq!(nearest_others(&twice, 1).unwrap()[0], 0.0, "a copy is a neighbour");
    assert!(nearest_others(&twice, 3).is_err());
}

#[test]
fn intervals_hold_the_value_and_shrink_with_the_number_of_images() {
    let bootstrap = Bootstrap { resamples: 200, seed: 1 };
    let width = |n: usize| {
        let each: Vec<f64> = (0..n).map(|i| hashed(1, i, 0) as f64).collect();
        let estimate = bootstrap.mean(&each).unwrap();
        let [low, high] = estimate.interval.unwrap();
        assert!(low < estimate.value && estimate.value < high);
        high - low
    };
    // Of the mean of uniform numbers: 2 · 1.96 · √(1/12/n).
    for n in [100, 1600] {
        let wanted = 2.0 * 1.96 / (12.0 * n as f64).sqrt();
        assert!((0.8..1.25).contains(&(width(n) / wanted)), "{} is not near {wanted}", width(n));
    }
    assert_eq!(width(100), width(100));
    let (a, b) = (rows(1, 400, 8, 0.0), rows(2, 100, 8, 0.0));
    let to_a = Frechet::new(&Moments::of(&a).unwrap());
    let estimate = bootstrap.estimate(100, |rows| to_a.distance(&Moments::of_rows(&b, rows)?)).unwrap();
    let [low, high] = estimate.interval.unwrap();
    assert!(low < estimate.value && estimate.value < high, "{estimate:?}");
    assert_eq!(Bootstrap { resamples: 0, seed: 1 }.mean(&[1.0, 3.0]).unwrap().interval, None);
}

#[test]
fn bad_features_are_errors() {
    for bad in [f32::NAN, f32::INFINITY] {
        let error = Features::new("the samples", vec![0.0, 1.0, bad, 0.0], 2).unwrap_err().to_string();
        assert!(error.contains("the samples") && error.contains("image 1"), "{error}");
    }
    assert!(Features::new("x", vec![], 2).is_err() && Features::new("x", vec![0.0; 3], 2).is_err());
    assert!(Moments::of(&rows(1, 1, 4, 0.0)).is_err());
    let (a, b) = (rows(1, 20, 4, 0.0), rows(1, 20, 5, 0.0));
    assert!(Frechet::new(&Moments::of(&a).unwrap()).distance(&Moments::of(&b).unwrap()).is_err());
    assert!(nearest(&a, &b, 1).is_err());
    assert!(Moments::of(&rows(1, 4, 4, 0.0)).unwrap().is_singular());
    assert!(!Moments::of(&rows(1, 5, 4, 0.0)).unwrap().is_singular());
}

#[test]
fn a_reference_comes_back_from_its_file_and_no_other_is_taken_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("reference.safetensors");
    let origin = Origin { network: "net-1".into(), data: "data-1".into() };
    for (n, labels) in [(30, Some((0..30).collect())), (NEIGHBOURS, None)] {
        let reference = Reference::new(origin.clone(), rows(1, n, 7, 0.0), labels, NEIGHBOURS).unwrap();
        reference.save(&path).unwrap();
        let opened = Reference::open(&path).unwrap();
        assert_eq!(opened, reference);
        assert_eq!((opened.mismatch("net-1", Some("data-1")), opened.mismatch("net-1", None)), (None, None));
        for (network, data, word) in [("net-2", "data-1", "net-2"), ("net-1", "data-2", "data-2")] {
            assert!(opened.mismatch(network, Some(data)).unwrap().contains(word));
        }
        for k in [1, 2, 7] {
            let fresh =
                Reference::new(origin.clone(), reference.features.clone(), reference.labels.clone(), k).unwrap();
            assert_eq!(opened.clone().with_neighbours(k).unwrap(), fresh);
            assert_eq!(fresh.near.is_some(), n > k);
        }
    }
    let bytes = std::fs::read(&path).unwrap();
    for cut in [0, 7, 100, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        assert!(Reference::open(&path).is_err());
    }
    let nan: Vec<u8> = f64::NAN.to_le_bytes().into();
    let hurt = [&bytes[..bytes.len() - 8], &nan].concat();
    std::fs::write(&path, hurt).unwrap();
    assert!(Reference::open(&path).is_err(), "a NaN in the statistics");
}

/// Bars: class 0 lies, class 1 stands; brightness differs.
fn bars(n: usize, seed: u32) -> Dataset {
    let side = 8;
    let pixel = |i: usize, y: usize, x: usize| {
        let along = if i.is_multiple_of(2) { y } else { x };
        let noise = (hashed(seed, i, y * side + x) * 60.0) as u8;
        if along / 2 == (hashed(seed, i, 99) * 4.0) as usize { 190 + noise } else { noise }
    };
    let images = (0..n).flat_map(|i| (0..side * side).map(move |p| pixel(i, p / side, p % side))).collect();
    let labels = Some((0..n as u32).map(|i| i % 2).collect());
    Dataset { images, n, height: side, width: side, channels: 1, labels, class_count: 2, ..Dataset::default() }
}

#[test]
fn a_classifier_learns_and_its_distances_tell_sets_apart() {
    let data = bars(128, 1);
    let config = ClassifierTrainConfig { batch: 32, steps: 30, flip: true, seed: 3, ..Default::default() };
    let mut trainer = ClassifierTrainer::new(config.clone(), &data, Device::Cpu).unwrap();
    let losses: Vec<f32> = (0..config.steps).map(|_| trainer.step().unwrap()).collect();
    assert!(losses[29] < 0.3 * losses[0], "{losses:?}");
    let folder = tempfile::tempdir().unwrap();
    trainer.save(folder.path(), Dtype::F32).unwrap();
    let classifier = Classifier::open(folder.path()).unwrap();
    let mut network = FeatureExtractor::classifier(classifier, Device::Cpu).unwrap();
    // 73 is no multiple of the extractor's batch.
    let test = bars(73, 2);
    let accuracy = network.accuracy(&test, &mut |_| Ok(())).unwrap();
    assert!(accuracy > 0.95, "{accuracy}");

    let reference = network.reference(&data, NEIGHBOURS, &mut |_| Ok(())).unwrap();
    let mut take = |data: &Dataset| {
        let extracted = network.extract("the samples", data, &mut |_| Ok(())).unwrap();
        let bootstrap = Bootstrap { resamples: 20, seed: 0 };
        let labels = data.labels.as_deref();
        evaluate(&network, &extracted, labels, &reference, &[], bootstrap, &mut |_| Ok(())).unwrap()
    };
    let value = |e: &langevin::evaluator::Evaluation, name: &str| {
        e.rows.iter().find(|r| r.name == name).unwrap_or_else(|| panic!("no {name}")).estimate.value
    };
    let same = take(&data);
    near(value(&same, "fd-classifier"), 0.0, 1e-6);
    assert_eq!([value(&same, "precision"), value(&same, "memorised"), value(&same, "nn-distance")], [1.0, 1.0, 0.0]);
    assert_eq!(value(&same, "class-agreement"), 1.0);
    assert_eq!([value(&same, "class-share/0"), value(&same, "class-share/1")], [0.5, 0.5]);
    assert!(value(&same, "is-classifier") > 1.5);
    let other = take(&test);
    let mut inverted = test.clone();
    inverted.images.iter_mut().for_each(|p| *p = 255 - *p);
    let wrong = take(&inverted);
    for name in ["fd-classifier", "fd-classifier/0", "fd-classifier/1"] {
        let values = [&same, &other, &wrong].map(|e| value(e, name));
        assert!(values[0] < values[1] && 3.0 * values[1] < values[2], "{name} {values:?}");
    }
    assert!(value(&other, "memorised") < 0.5);
    assert!(other.notes.iter().any(|n| n.contains("singular")), "{:?}", other.notes);
}

#[test]
fn what_cannot_be_measured_is_said() {
    let side = 28;
    let image = |i: usize| (0..side * side).map(move |p| (hashed(1, i, p) * 255.0) as u8);
    let images = (0..4).flat_map(image).collect();
    let data = Dataset { images, n: 4, height: side, width: side, channels: 1, labels: None, ..Dataset::default() };
    let mut network = FeatureExtractor::classifier(Classifier::embedded().unwrap(), Device::Cpu).unwrap();
    let reference = network.reference(&data, NEIGHBOURS, &mut |_| Ok(())).unwrap();
    let samples = network.extract("the samples", &data, &mut |_| Ok(())).unwrap();
    let run = |samples: &Extracted, metrics: &[Metric]| {
        let bootstrap = Bootstrap { resamples: 5, seed: 0 };
        evaluate(&network, samples, None, &reference, metrics, bootstrap, &mut |_| Ok(()))
    };
    let all = run(&samples, &[]).unwrap();
    assert!(all.rows.iter().any(|r| r.name == "fd-classifier"));
    for word in ["singular", "no prdc", "no nn", "no per-class"] {
        assert!(all.notes.iter().any(|n| n.contains(word)), "{word}: {:?}", all.notes);
    }
    for metric in [Metric::Prdc, Metric::Nn, Metric::PerClass] {
        assert!(matches!(run(&samples, &[metric]), Err(Error::Invalid { .. })), "{metric:?}");
    }
    let blind = Extracted { logits: None, ..samples };
    assert!(run(&blind, &[Metric::Is]).is_err());
    let one = Dataset { images: data.images[..side * side].to_vec(), n: 1, ..data.clone() };
    assert!(network.reference(&one, NEIGHBOURS, &mut |_| Ok(())).is_err());
    let wide = Dataset { width: 14, n: 8, ..data.clone() };
    let error = network.extract("the samples", &wide, &mut |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("28×14×1") && error.contains("train-classifier"), "{error}");
    assert!(ClassifierTrainer::new(ClassifierTrainConfig::default(), &data, Device::Cpu).is_err(), "no labels");
    assert_ne!(data_fingerprint(&data), data_fingerprint(&one));
    let nan = Images { data: vec![f32::NAN; 4], shape: [1, 1, 2, 2] };
    assert!(pictures(&nan, None).is_err());
    let colour = Images { data: vec![-1.0, 1.0, 0.0, 2.0, -3.0, 1.0], shape: [1, 3, 1, 2] };
    assert_eq!(pictures(&colour, Some(vec![4])).unwrap().images, [0, 128, 0, 255, 255, 255]);
}
