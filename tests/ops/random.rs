use crate::harness::{Case, Tensor, f32s, i32s, noise, run_graph};
use langevin::graph::Graph;
use langevin::ops::{Dropout, Random, RandomKind};
use langevin::tensor::TensorType;

/// Philox 4x32-10, one counter at a time.
fn philox(key: [u32; 2], mut c: [u32; 4]) -> [u32; 4] {
    for round in 0..10u32 {
        let k = [
            key[0].wrapping_add(round.wrapping_mul(0x9E37_79B9)),
            key[1].wrapping_add(round.wrapping_mul(0xBB67_AE85)),
        ];
        let (a, b) = (0xD251_1F53u64 * c[0] as u64, 0xCD9E_8D57u64 * c[2] as u64);
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
    }
    c
}

fn number(kind: RandomKind, seed: &[f64], e: usize, draw: u32, stream: u32) -> f64 {
    let w = philox([seed[0] as i32 as u32, seed[1] as i32 as u32], [e as u32 / 4, draw, stream, 0]);
    let u = |i: usize| (w[i] >> 8) as f64 / 16_777_216.0;
    match (kind, e % 4) {
        (RandomKind::Uniform, i) => u(i),
        (RandomKind::Normal, i) => {
            let (r, angle) =
                ((-2.0 * (u(i & 2) + 1.0 / 16_777_216.0).ln()).sqrt(), std::f64::consts::TAU * u((i & 2) + 1));
            r * if i % 2 == 0 { angle.cos() } else { angle.sin() }
        }
    }
}

const SEEDS: [i32; 6] = [1, 2, -5, 77, i32::MIN, i32::MAX];

#[test]
fn random_numbers_are_philox() {
    for kind in [RandomKind::Normal, RandomKind::Uniform] {
        for shape in [vec![1], vec![3, 1], vec![2, 5, 3], vec![3, 63], vec![2, 65], vec![3, 9001]] {
            let (b, n) = (shape[0], shape[1..].iter().product::<usize>());
            for (draw, stream) in [(0, 0), (17, 3), (16_777_215, u32::MAX)] {
                let op = Random { kind, shape: shape.clone(), stream };
                let inputs = vec![i32s(&[b, 2], &SEEDS[..2 * b]), f32s(&[1], 1).map(|_| draw as f64).fixed()];
                let case = Case::new(format!("{op:?}"), op, inputs, |i| {
                    let at = |k: usize| number(kind, &i[0].data[k / n * 2..], k % n, draw, stream);
                    vec![Tensor::new(shape.clone(), (0..b * n).map(at).collect())]
                });
                Case { bound: 3e-7, ..case }.forward_only().check();
            }
        }
    }
}

fn draw(kind: RandomKind, shape: &[usize], seeds: &[f64], draw: f64) -> Vec<f64> {
    let mut g = Graph::new();
    let s = g.input("seeds", TensorType::i32([shape[0], 2]));
    let d = g.input("draw", TensorType::f32([1]));
    let y = g.apply(Random { kind, shape: shape.to_vec(), stream: 0 }, &[s, d]).unwrap();
    g.output("y", y);
    run_graph(&g, &[("seeds".into(), seeds.to_vec()), ("draw".into(), vec![draw])]).remove("y").unwrap()
}

#[test]
fn moments_and_independence_of_the_batch() {
    let n = 1 << 20;
    let x = draw(RandomKind::Normal, &[1, n], &[3.0, 0.0], 0.0);
    let mean = |f: &dyn Fn(usize) -> f64| (0..n - 1).map(f).sum::<f64>() / (n - 1) as f64;
    // Standard errors at 2²⁰ samples: 0.001 of the mean, 0.0014 of the variance, 0.0096 of the fourth moment.
    assert!(mean(&|i| x[i]).abs() < 0.004);
    assert!((mean(&|i| x[i] * x[i]) - 1.0).abs() < 0.006);
    assert!(mean(&|i| x[i].powi(3)).abs() < 0.016);
    assert!((mean(&|i| x[i].powi(4)) - 3.0).abs() < 0.04);
    for lag in 1..5 {
        assert!((0..n - lag).map(|i| x[i] * x[i + lag]).sum::<f64>().abs() / (n as f64) < 0.004, "lag {lag}");
    }
    let u = draw(RandomKind::Uniform, &[1, n], &[3.0, 0.0], 0.0);
    assert!((mean(&|i| u[i]) - 0.5).abs() < 0.0012 && (mean(&|i| u[i] * u[i]) - 1.0 / 3.0).abs() < 0.0012);
    assert!(u.iter().all(|v| (0.0..1.0).contains(v)));
    // An image is the same alone and in a batch; other seeds and other draws give others.
    let batch = draw(RandomKind::Normal, &[3, 50], &[1.0, 0.0, 3.0, 0.0, 3.0, 1.0], 0.0);
    assert_eq!(batch[50..100], x[..50]);
    assert!(batch[100..].iter().zip(&x).all(|(a, b)| a != b));
    let later = draw(RandomKind::Normal, &[1, 50], &[3.0, 0.0], 1.0);
    assert!(later.iter().zip(&x).all(|(a, b)| a != b));
}

#[test]
fn dropout() {
    for shape in [vec![2, 3], vec![3, 5, 13], vec![1, 65], vec![3, 4, 40]] {
        for p in [0.0, 0.25, 0.9] {
            let (b, n) = (shape[0], shape[1..].iter().product::<usize>());
            let inputs = vec![f32s(&shape, 1), i32s(&[b, 2], &SEEDS[..2 * b]), f32s(&[1], 1).map(|_| 9.0).fixed()];
            Case::new(format!("dropout {p} {shape:?}"), Dropout { p, stream: 4 }, inputs, |i| {
                let keep = |k: usize| number(RandomKind::Uniform, &i[1].data[k / n * 2..], k % n, 9, 4) >= p as f64;
                let y = (0..b * n).map(|k| if keep(k) { i[0].data[k] / (1.0 - p as f64) } else { 0.0 });
                vec![Tensor::new(shape.clone(), y.collect())]
            })
            .check();
        }
    }
    let n = 100_000;
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([1, n]));
    let s = g.input("seeds", TensorType::i32([1, 2]));
    let d = g.input("draw", TensorType::f32([1]));
    let y = g.apply(Dropout { p: 0.3, stream: 0 }, &[x, s, d]).unwrap();
    assert!(g.apply(Dropout { p: 1.0, stream: 0 }, &[x, s, d]).is_err());
    g.output("y", y);
    let data = [("x", noise(n, 1).iter().map(|v| v + 2.0).collect()), ("seeds", vec![5.0, 6.0]), ("draw", vec![0.0])];
    let y = run_graph(&g, &data.map(|(n, d)| (n.to_string(), d))).remove("y").unwrap();
    let dropped = y.iter().filter(|v| **v == 0.0).count() as f64 / n as f64;
    assert!((dropped - 0.3).abs() < 0.006, "{dropped}");
}
