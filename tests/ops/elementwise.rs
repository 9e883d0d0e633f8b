use crate::harness::{Case, Tensor, f32s, panels};
use langevin::ops::{Affine, Binary, Broadcast, DiffusionUpdate, Reduce, Reshape};

#[test]
fn binary_ops() {
    for n in [1, 15, 16, 33, 40_000] {
        for op in [Binary::Add, Binary::Sub, Binary::Mul, Binary::AddScaled(0.7)] {
            let f = move |a: f64, b: f64| match op {
                Binary::Add => a + b,
                Binary::Sub => a - b,
                Binary::Mul => a * b,
                Binary::AddScaled(scale) => (a + b) * scale as f64,
            };
            let case = Case::new(format!("{op:?} {n}"), op, vec![f32s(&[n], 1), f32s(&[n], 2)], |i| {
                vec![Tensor::new([n], i[0].data.iter().zip(&i[1].data).map(|(a, b)| f(*a, *b)).collect())]
            });
            if n < 1000 { case.check() } else { case.forward_only().check() }
        }
    }
}

#[test]
fn affine_and_reshape() {
    Case::new("affine", Affine { scale: -2.5, shift: 0.75 }, vec![f32s(&[3, 7], 1)], |i| {
        vec![i[0].map(|x| -2.5 * x + 0.75)]
    })
    .check();
    Case::new("affine of a weight", Affine::scale(3.0), vec![panels(&[3, 5], 1)], |i| vec![i[0].map(|x| 3.0 * x)])
        .check();
    Case::new("reshape", Reshape(vec![3, 4]), vec![f32s(&[2, 6], 1)], |i| vec![Tensor::new([3, 4], i[0].data.clone())])
        .check();
}

fn sum_middle(x: &Tensor, [o, m, n]: [usize; 3], scale: f64) -> Tensor {
    let mut out = Tensor::zeros([o, n]);
    for a in 0..o {
        for b in 0..m {
            for c in 0..n {
                out.data[a * n + c] += x.data[(a * m + b) * n + c] * scale;
            }
        }
    }
    out
}

#[test]
fn reduce_and_broadcast() {
    for d in [
        [1, 1, 1],
        [2, 5, 3],
        [3, 130, 17],
        [1, 700, 1],
        [4, 3, 1],
        [2, 100, 200],
        [3, 2, 300],
        [2, 9001, 1],
        [1, 3000, 8],
    ] {
        let [o, m, n] = d;
        let big = o * m * n > 2000;
        let sum = Case::new(format!("sum {d:?}"), Reduce::sum_middle(o, m, n), vec![f32s(&d, 5)], |i| {
            vec![sum_middle(&i[0], d, 1.0)]
        });
        if big {
            sum.forward_only().check()
        } else {
            sum.check()
        }
        let mean = Case::new(format!("mean {d:?}"), Reduce::mean_middle(o, m, n), vec![f32s(&d, 5)], |i| {
            vec![sum_middle(&i[0], d, 1.0 / m as f64)]
        });
        if big {
            mean.forward_only().check()
        } else {
            mean.check()
        }
        let spread = Broadcast { outer: o, middle: m, inner: n, scale: 1.5, shape: d.to_vec() };
        let spread = Case::new(format!("broadcast {d:?}"), spread, vec![f32s(&[o, n], 5)], |i| {
            let data = (0..o * m * n).map(|k| 1.5 * i[0].data[k / (m * n) * n + k % n]).collect();
            vec![Tensor::new(d, data)]
        });
        if big { spread.forward_only().check() } else { spread.check() }
    }
}

#[test]
fn diffusion_update() {
    for terms in 1..=6 {
        for n in [1, 7, 16, 50, 20_000] {
            for clip in [None, Some(0.8)] {
                let inputs = std::iter::once(f32s(&[terms], 9).map(|c| if c.abs() < 0.1 { 0.0 } else { c }))
                    .chain((0..terms).map(|i| f32s(&[n], 10 + i as u64)))
                    .collect();
                let op = DiffusionUpdate { terms, clip };
                Case::new(format!("{op:?} {n}"), op, inputs, |i| {
                    let y = (0..n).map(|k| {
                        let y: f64 = (0..terms).map(|t| i[0].data[t] * i[t + 1].data[k]).sum();
                        clip.map_or(y, |c| y.clamp(-c as f64, c as f64))
                    });
                    vec![Tensor::new([n], y.collect())]
                })
                .forward_only()
                .check();
            }
        }
    }
}
