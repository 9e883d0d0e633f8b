use crate::harness::{Case, Tensor, f32s};
use langevin::ops::{Resample, ResizeNearest};

/// The definition: zeros between pixels, padding, correlation with f ⊗ f, every down-th pixel.
fn resample(x: &Tensor, r: &Resample) -> Tensor {
    let [b, h, w, c] = x.shape[..] else { panic!() };
    let len = r.filter.len();
    let size = |n: usize| (n * r.up + r.pad[0] + r.pad[1] - len) / r.down + 1;
    let mut y = Tensor::zeros([b, size(h), size(w), c]);
    let pixel = |o: usize, k: usize, n: usize| {
        let at = (o * r.down + k) as isize - r.pad[0] as isize;
        (at >= 0 && at % r.up as isize == 0 && (at as usize) / r.up < n).then_some(at as usize / r.up)
    };
    for image in 0..b {
        for oy in 0..size(h) {
            for ox in 0..size(w) {
                for (i, j) in (0..len * len).map(|k| (k / len, k % len)) {
                    let (Some(iy), Some(ix)) = (pixel(oy, i, h), pixel(ox, j, w)) else { continue };
                    for ch in 0..c {
                        let f = r.filter[i] as f64 * r.filter[j] as f64;
                        *y.at_mut(&[image, oy, ox, ch]) += f * x.at(&[image, iy, ix, ch]);
                    }
                }
            }
        }
    }
    y
}

#[test]
fn resampling_and_its_gradient() {
    let all = [
        Resample::nearest_up(2),
        Resample::nearest_up(3),
        Resample::box_down(2),
        Resample::box_down(3),
        Resample::fir_up(&[1.0, 1.0]),
        Resample::fir_down(&[1.0, 1.0]),
        Resample::fir_up(&[1.0, 3.0, 3.0, 1.0]),
        Resample::fir_down(&[1.0, 3.0, 3.0, 1.0]),
        Resample::fir_down(&[1.0, 2.0, 4.0, 3.0, 1.0]),
        Resample { up: 3, down: 2, filter: vec![0.5, -1.0, 2.0, 0.25], pad: [1, 4] },
        Resample { up: 1, down: 1, filter: vec![2.0], pad: [0, 0] },
    ];
    for op in all {
        for shape in [[1, 4, 4, 1], [2, 5, 4, 3], [1, 3, 6, 17]] {
            Case::new(format!("{op:?} {shape:?}"), op.clone(), vec![f32s(&shape, 1)], |i| vec![resample(&i[0], &op)])
                .check();
        }
        Case::new(format!("large {op:?}"), op.clone(), vec![f32s(&[2, 30, 31, 20], 1)], |i| vec![resample(&i[0], &op)])
            .forward_only()
            .check();
    }
}

/// EDM's layers as PyTorch defines them: a convolution of stride 2, and a transposed one, with padding (L − 1)/2.
#[test]
fn edm_conventions() {
    for f in [vec![1.0, 1.0], vec![1.0, 3.0, 3.0, 1.0], vec![1.0, 2.0, 5.0, 1.0]] {
        let (len, sum) = (f.len(), f.iter().sum::<f32>() as f64);
        let g = |i: usize| f[i] as f64 / sum;
        let pad = (len - 1) / 2;
        let shape = [2, 6, 4, 3];
        Case::new("fir_down", Resample::fir_down(&f), vec![f32s(&shape, 1)], |x| {
            let mut y = Tensor::zeros([2, 3, 2, 3]);
            for (b, oy, ox, c) in indices([2, 3, 2, 3]) {
                for (i, j) in (0..len * len).map(|k| (k / len, k % len)) {
                    let (iy, ix) = ((2 * oy + i).wrapping_sub(pad), (2 * ox + j).wrapping_sub(pad));
                    if iy < 6 && ix < 4 {
                        *y.at_mut(&[b, oy, ox, c]) += g(i) * g(j) * x[0].at(&[b, iy, ix, c]);
                    }
                }
            }
            vec![y]
        })
        .check();
        Case::new("fir_up", Resample::fir_up(&f), vec![f32s(&shape, 1)], |x| {
            let mut y = Tensor::zeros([2, 12, 8, 3]);
            for (b, iy, ix, c) in indices(shape) {
                for (i, j) in (0..len * len).map(|k| (k / len, k % len)) {
                    let (oy, ox) = ((2 * iy + i).wrapping_sub(pad), (2 * ix + j).wrapping_sub(pad));
                    if oy < 12 && ox < 8 {
                        *y.at_mut(&[b, oy, ox, c]) += 4.0 * g(i) * g(j) * x[0].at(&[b, iy, ix, c]);
                    }
                }
            }
            vec![y]
        })
        .check();
    }
}

fn indices([b, h, w, c]: [usize; 4]) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    (0..b * h * w * c).map(move |k| (k / (h * w * c), k / (w * c) % h, k / c % w, k % c))
}

#[test]
fn resize_nearest() {
    for (from, to) in [([4, 4], [8, 8]), ([3, 5], [7, 6]), ([8, 7], [3, 2]), ([1, 1], [2, 3]), ([5, 4], [5, 4])] {
        for c in [1, 3, 16] {
            let ([h, w], [height, width]) = (from, to);
            let op = ResizeNearest { height, width };
            Case::new(format!("resize {from:?} {to:?} {c}"), op, vec![f32s(&[2, h, w, c], 1)], |x| {
                let mut y = Tensor::zeros([2, height, width, c]);
                for (b, oy, ox, ch) in indices([2, height, width, c]) {
                    let source =
                        |o: usize, n: usize, m: usize| (o as f64 * n as f64 / m as f64 + 1e-9).floor() as usize;
                    *y.at_mut(&[b, oy, ox, ch]) = x[0].at(&[b, source(oy, h, height), source(ox, w, width), ch]);
                }
                vec![y]
            })
            .check();
        }
    }
}
