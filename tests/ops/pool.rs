use crate::harness::{Case, Tensor, f32s, run_graph};
use langevin::graph::Graph;
use langevin::ops::{AveragePool, MaxPool, MaxPoolGrad, Padding, PoolWindow};
use langevin::tensor::TensorType;

/// The shape of y, and for each of its elements the indices of the pixels under its window in x.
fn windows(p: PoolWindow, shape: &[usize]) -> (Vec<usize>, Vec<Vec<usize>>) {
    let [b, h, w, c] = shape[..] else { unreachable!() };
    let out = |n: usize, k: usize, pad: usize| (n + pad - k) / p.stride + 1;
    let (oh, ow) =
        (out(h, p.kernel[0], p.padding.top + p.padding.bottom), out(w, p.kernel[1], p.padding.left + p.padding.right));
    let mut all = Vec::new();
    for k in 0..b * oh * ow * c {
        let (image, oy, ox, ch) = (k / (oh * ow * c), k / (ow * c) % oh, k / c % ow, k % c);
        let mut under = Vec::new();
        for (ky, kx) in (0..p.kernel[0] * p.kernel[1]).map(|t| (t / p.kernel[1], t % p.kernel[1])) {
            let (y, x) =
                ((oy * p.stride + ky).wrapping_sub(p.padding.top), (ox * p.stride + kx).wrapping_sub(p.padding.left));
            if y < h && x < w {
                under.push(((image * h + y) * w + x) * c + ch);
            }
        }
        all.push(under);
    }
    (vec![b, oh, ow, c], all)
}

fn pool(p: PoolWindow, x: &Tensor, f: impl Fn(&[f64]) -> f64) -> Vec<Tensor> {
    let (shape, all) = windows(p, &x.shape);
    let values = all.iter().map(|under| f(&under.iter().map(|i| x.data[*i]).collect::<Vec<_>>())).collect();
    vec![Tensor::new(shape, values)]
}

fn all_windows() -> Vec<PoolWindow> {
    let uneven = Padding { top: 0, left: 1, bottom: 1, right: 2 };
    vec![
        PoolWindow::valid(3, 2),
        PoolWindow::valid(2, 2),
        PoolWindow::same(3),
        PoolWindow { stride: 2, ..PoolWindow::same(3) },
        PoolWindow::valid(2, 3),
        PoolWindow { kernel: [2, 3], stride: 1, padding: uneven },
    ]
}

const SHAPES: [[usize; 4]; 3] = [[1, 3, 3, 1], [2, 5, 4, 3], [1, 4, 7, 17]];

#[test]
fn max_pool() {
    for p in all_windows() {
        for shape in SHAPES {
            // A permutation of spaced numbers: no two within a step of finite differences.
            let n: usize = shape.iter().product();
            let mut x = f32s(&shape, 1);
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by(|a, b| x.data[*a].total_cmp(&x.data[*b]));
            order.iter().enumerate().for_each(|(rank, i)| x.data[*i] = (rank as f64 - n as f64 / 2.0) / 64.0);
            let largest = |v: &[f64]| v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            Case::new(format!("{p:?} {shape:?}"), MaxPool(p), vec![x], |i| pool(p, &i[0], largest)).check();
        }
        Case::new(format!("large {p:?}"), MaxPool(p), vec![f32s(&[2, 30, 31, 20], 1)], |i| {
            pool(p, &i[0], |v| v.iter().copied().fold(f64::NEG_INFINITY, f64::max))
        })
        .forward_only()
        .check();
    }
}

#[test]
fn average_pool() {
    for window in all_windows() {
        for count_padding in [false, true] {
            let op = AveragePool { window, count_padding };
            let taps = (window.kernel[0] * window.kernel[1]) as f64;
            let mean = |v: &[f64]| v.iter().sum::<f64>() / if count_padding { taps } else { v.len() as f64 };
            for shape in SHAPES {
                Case::new(format!("{op:?} {shape:?}"), op, vec![f32s(&shape, 1)], |i| pool(window, &i[0], mean))
                    .check();
            }
            Case::new(format!("large {op:?}"), op, vec![f32s(&[2, 30, 31, 20], 1)], |i| pool(window, &i[0], mean))
                .forward_only()
                .check();
        }
    }
}

#[test]
fn the_first_of_equal_pixels_has_the_gradient_and_nan_stays() {
    let p = PoolWindow::valid(2, 1);
    let mut g = Graph::new();
    let (x, dy) = (g.input("x", TensorType::f32([1, 2, 3, 1])), g.input("dy", TensorType::f32([1, 1, 2, 1])));
    let y = g.apply(MaxPool(p), &[x]).unwrap();
    let dx = g.apply(MaxPoolGrad(p), &[x, dy]).unwrap();
    g.output("y", y);
    g.output("dx", dx);
    let run = |x: [f64; 6]| run_graph(&g, &[("x".into(), x.to_vec()), ("dy".into(), vec![1.0, 10.0])]);
    assert_eq!(run([2.0, 2.0, 1.0, 2.0, 0.0, 2.0])["dx"], [1.0, 10.0, 0.0, 0.0, 0.0, 0.0]);
    let nan = run([f64::NAN, 5.0, 1.0, 7.0, 0.0, 2.0]);
    assert!(nan["y"][0].is_nan() && nan["y"][1] == 5.0);
}

#[test]
fn windows_that_do_not_fit_are_errors() {
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([1, 4, 2, 3]));
    let bad = [
        PoolWindow::valid(3, 1),
        PoolWindow { stride: 0, ..PoolWindow::same(3) },
        PoolWindow { kernel: [0, 1], ..PoolWindow::same(1) },
        PoolWindow { padding: Padding::same(3), ..PoolWindow::same(3) },
    ];
    for p in bad {
        assert!(g.apply(MaxPool(p), &[x]).is_err(), "{p:?}");
        assert!(g.apply(AveragePool { window: p, count_padding: true }, &[x]).is_err(), "{p:?}");
    }
}
