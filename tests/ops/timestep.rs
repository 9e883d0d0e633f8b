use crate::activation::reference as act;
use crate::harness::{Case, Tensor, f32s, panels};
use langevin::ops::{Activation, FourierEmbedding, TimestepEmbedding, TimestepMlp};

fn embed(t: &Tensor, e: TimestepEmbedding) -> Tensor {
    let (b, half) = (t.data.len(), e.dim / 2);
    let mut y = Tensor::zeros([b, e.dim]);
    for s in 0..b {
        for j in 0..half {
            let bottom = half as f64 - e.freq_shift as f64;
            let exponent = if j == 0 { 0.0 } else { -(e.max_period as f64).ln() * j as f64 / bottom };
            let arg = e.scale as f64 * t.data[s] * exponent.exp();
            let at = if e.flip_sin_to_cos { [half + j, j] } else { [j, half + j] };
            *y.at_mut(&[s, at[0]]) = arg.sin();
            *y.at_mut(&[s, at[1]]) = arg.cos();
        }
    }
    y
}

fn kinds() -> Vec<TimestepEmbedding> {
    let e = TimestepEmbedding { dim: 32, flip_sin_to_cos: false, freq_shift: 0.0, max_period: 1e4, scale: 1.0 };
    vec![
        e,
        TimestepEmbedding { flip_sin_to_cos: true, ..e },
        TimestepEmbedding { dim: 33, freq_shift: 1.0, ..e },
        TimestepEmbedding { dim: 128, freq_shift: 1.0, ..e },
        TimestepEmbedding { dim: 2, freq_shift: 1.0, ..e },
        TimestepEmbedding { dim: 1, ..e },
        TimestepEmbedding { dim: 6, max_period: 100.0, scale: 1000.0, ..e },
        TimestepEmbedding { dim: 20, scale: 1e6, ..e },
    ]
}

#[test]
fn timestep_embedding() {
    for e in kinds() {
        for b in [1, 5, 300] {
            let t = f32s(&[b], 1).map(|v| (v * 500.0 + 500.0).floor()).fixed();
            let case = Case::new(format!("{e:?} {b}"), e, vec![t], |i| vec![embed(&i[0], e)]);
            Case { bound: 2e-7, ..case }.forward_only().check();
        }
    }
    // Where it stands in diffusers and EDM: t = 1000, the second frequency of four.
    let e = TimestepEmbedding { dim: 8, ..kinds()[0] };
    let y = embed(&Tensor::new([1], vec![1000.0]), e);
    assert!((y.data[1] - (1000.0 * 1e4f64.powf(-0.25)).sin()).abs() < 1e-12);
}

#[test]
fn fourier_embedding() {
    for (log, flip) in [(false, false), (false, true), (true, false), (true, true)] {
        for (b, half) in [(1, 1), (3, 16), (200, 65)] {
            let t = f32s(&[b], 1).map(|v| v * 39.0 + 40.0).fixed();
            let freqs = f32s(&[half], 2).map(|v| v * 16.0).fixed();
            let op = FourierEmbedding { log, flip_sin_to_cos: flip };
            let case = Case::new(format!("{op:?} {b} {half}"), op, vec![t, freqs], |i| {
                let mut y = Tensor::zeros([b, 2 * half]);
                for (s, j) in (0..b * half).map(|k| (k / half, k % half)) {
                    let t = if log { i[0].data[s].ln() } else { i[0].data[s] };
                    let arg = std::f64::consts::TAU * i[1].data[j] * t;
                    y.data[s * 2 * half + j] = if flip { arg.cos() } else { arg.sin() };
                    y.data[s * 2 * half + half + j] = if flip { arg.sin() } else { arg.cos() };
                }
                vec![y]
            });
            Case { bound: 2e-7, ..case }.forward_only().check();
        }
    }
}

#[test]
fn timestep_mlp() {
    // The last one has more outputs than one launch makes where each block makes the hidden layer.
    for (b, hidden, n) in [(1, 1, 1), (3, 17, 5), (2, 16, 33), (6, 150, 37)] {
        for (e, act_kind, label, last) in [
            (kinds()[4], Activation::Silu, false, Activation::Silu),
            (TimestepEmbedding { dim: 7, ..kinds()[2] }, Activation::Silu, true, Activation::Identity),
            (TimestepEmbedding { dim: 8, ..kinds()[1] }, Activation::Gelu, true, Activation::Silu),
        ] {
            let mut inputs = vec![
                f32s(&[b], 1).map(|v| v * 500.0 + 500.0).fixed(),
                panels(&[e.dim, hidden], 2),
                f32s(&[hidden], 3),
                panels(&[hidden, n], 4),
                f32s(&[n], 5),
            ];
            if label {
                inputs.push(f32s(&[b, n], 6));
            }
            let op = TimestepMlp { embedding: e, act: act_kind, label, last };
            let case = Case::new(format!("{op:?} {b} {hidden} {n}"), op, inputs, |i| {
                let layer = |x: &Tensor, w: &Tensor, bias: &Tensor| {
                    let (k, n) = (w.shape[0], w.shape[1]);
                    let at = |r: usize, c: usize| (0..k).map(|l| x.data[r * k + l] * w.data[l * n + c]).sum::<f64>();
                    Tensor::new([b, n], (0..b * n).map(|i| at(i / n, i % n) + bias.data[i % n]).collect())
                };
                let h = layer(&embed(&i[0], e), &i[1], &i[2]).map(|v| act(act_kind, v));
                let mut y = layer(&h, &i[3], &i[4]);
                if label {
                    y.data.iter_mut().zip(&i[5].data).for_each(|(y, l)| *y += l);
                }
                vec![y.map(|v| act(last, v))]
            });
            if hidden > 100 { case.forward_only().check() } else { case.check() }
        }
    }
}
