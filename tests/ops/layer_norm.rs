use crate::harness::{Case, Input, Tensor, f32s};
use langevin::ops::{LayerNorm, LayerNormGrad};
use langevin::tensor::TensorType;

fn inputs(op: LayerNorm, shape: &[usize], mean: f64, std: f64) -> Vec<Input> {
    let (b, c) = (shape[0], shape[shape.len() - 1]);
    let mut inputs = vec![f32s(shape, 1).map(|v| mean + std * v)];
    if op.affine {
        inputs.extend([f32s(&[c], 2), f32s(&[c], 3)]);
    }
    if op.modulate {
        inputs.extend([f32s(&[b, c], 4), f32s(&[b, c], 5)]);
    }
    inputs
}

fn reference(op: LayerNorm, i: &[Tensor]) -> Vec<Tensor> {
    let x = &i[0];
    let c = *x.shape.last().unwrap();
    let rows = x.data.len() / c;
    let per_sample = rows / x.shape[0];
    let (mut y, mut stats) = (Tensor::zeros(x.shape.clone()), Tensor::zeros([rows, 2]));
    for r in 0..rows {
        let row = &x.data[r * c..(r + 1) * c];
        let mean = row.iter().sum::<f64>() / c as f64;
        let rstd = 1.0 / (row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / c as f64 + op.eps as f64).sqrt();
        (stats.data[2 * r], stats.data[2 * r + 1]) = (mean, rstd);
        for (k, v) in row.iter().enumerate() {
            let mut h = (v - mean) * rstd;
            if op.affine {
                h = h * i[1].data[k] + i[2].data[k];
            }
            if op.modulate {
                let at = r / per_sample * c + k;
                let n = i.len();
                h = h * (1.0 + i[n - 2].data[at]) + i[n - 1].data[at];
            }
            y.data[r * c + k] = h;
        }
    }
    vec![y, stats]
}

fn all() -> impl Iterator<Item = LayerNorm> {
    (0..4).map(|k| LayerNorm { eps: 1e-6, affine: k & 1 == 1, modulate: k & 2 == 2, first: [0; 2] })
}

#[test]
fn layer_norm() {
    for shape in [vec![1, 3], vec![2, 5], vec![3, 2, 17], vec![2, 2, 2, 33], vec![1, 4, 16]] {
        for op in all() {
            Case::new(format!("{op:?} {shape:?}"), op, inputs(op, &shape, 0.2, 1.0), |i| reference(op, i)).check();
        }
    }
}

#[test]
fn large_layer_norms() {
    for shape in [vec![2, 150, 384], vec![3, 40, 1001], vec![300, 77], vec![1, 3, 5000], vec![1, 9, 20_000]] {
        for op in all() {
            for (mean, std) in [(0.0, 1.0), (100.0, 0.5), (-3000.0, 20.0)] {
                let inputs = inputs(op, &shape, mean, std);
                Case::new(format!("{op:?} {shape:?} {mean} ± {std}"), op, inputs, |i| reference(op, i))
                    .forward_only()
                    .check();
            }
        }
    }
}

/// Rows in pairs, of few numbers and of more a thread; the last one alone.
#[test]
fn many_rows_of_layer_norm() {
    for (shape, modulate) in [(vec![2, 52_000, 8], true), (vec![1, 102_001, 72], false)] {
        let op = LayerNorm { eps: 1e-6, affine: true, modulate, first: [0; 2] };
        let inputs = inputs(op, &shape, 100.0, 0.5);
        Case::new(format!("{op:?} {shape:?}"), op, inputs, |i| reference(op, i)).forward_only().check();
    }
}

/// Scale and shift are columns of wider operands.
#[test]
fn layer_norm_by_columns() {
    for (shape, first, wide) in [
        ([2, 5, 16], [32, 16], 48),
        ([3, 4, 17], [0, 20], 40),
        ([2, 3, 24], [3, 30], 60),
        ([4, 9, 1152], [1152, 0], 6912),
    ] {
        for op in all().filter(|op| op.modulate).map(|op| LayerNorm { first, ..op }) {
            let (mut inputs, c) = (inputs(op, &shape, 0.2, 1.0), shape[2]);
            let at = inputs.len() - 2;
            inputs[at] = f32s(&[shape[0], wide], 4);
            inputs[at + 1] = f32s(&[shape[0], wide], 5);
            Case::new(format!("{op:?} {shape:?} of {wide}"), op, inputs, |i| {
                let mut i: Vec<Tensor> = i.iter().map(|t| Tensor::new(t.shape.clone(), t.data.clone())).collect();
                for (operand, first) in i[at..].iter_mut().zip(first) {
                    let columns = operand.data.chunks(wide).flat_map(|row| row[first..first + c].to_vec()).collect();
                    *operand = Tensor::new([shape[0], c], columns);
                }
                reference(op, &i)
            })
            .forward_only()
            .check();
        }
    }
}

#[test]
fn layer_norm_gradient_at_large_means() {
    for op in all() {
        Case::new(format!("{op:?}"), op, inputs(op, &[2, 2, 18], 60.0, 0.6), |i| reference(op, i)).check();
    }
}

#[test]
fn layer_norm_gradient_of_long_rows() {
    for (op, shape) in all().map(|op| (op, [1, 2, 520])).chain(all().skip(3).map(|op| (op, [1, 1, 4104]))) {
        let mut inputs = inputs(op, &shape, 0.2, 1.0);
        inputs.iter_mut().skip(1).for_each(|i| i.differentiate = shape[2] < 1000);
        Case::new(format!("{op:?} {shape:?}"), op, inputs, |i| reference(op, i)).check();
    }
}

#[test]
fn layer_norm_gradient_over_several_chunks() {
    // Only the parameters are differentiated: x has too many elements for differences.
    for op in all().filter(|op| op.affine || op.modulate) {
        let mut inputs = inputs(op, &[2, 1100, 5], 0.2, 1.0);
        inputs[0].differentiate = false;
        Case::new(format!("{op:?}"), op, inputs, |i| reference(op, i)).check();
    }
}

/// The gradients of all inputs, analytically.
fn grad_reference(op: LayerNorm, i: &[Tensor]) -> Vec<Tensor> {
    let n = i.len() - 2;
    let (x, stats, dy) = (&i[0], &i[n], &i[n + 1]);
    let c = *x.shape.last().unwrap();
    let rows = x.data.len() / c;
    let per_sample = rows / x.shape[0];
    let mut out: Vec<Tensor> = i[..n].iter().map(|t| Tensor::zeros(t.shape.clone())).collect();
    for r in 0..rows {
        let (mean, rstd) = (stats.data[2 * r], stats.data[2 * r + 1]);
        let mut g = vec![0.0; c];
        for (k, g) in g.iter_mut().enumerate() {
            let (p, at) = (r * c + k, r / per_sample * c + k);
            let (e, norm) = (dy.data[p], (x.data[p] - mean) * rstd);
            let (gamma, beta) = if op.affine { (i[1].data[k], i[2].data[k]) } else { (1.0, 0.0) };
            let scale = if op.modulate { 1.0 + i[n - 2].data[at] } else { 1.0 };
            *g = e * gamma * scale;
            if op.affine {
                out[1].data[k] += e * scale * norm;
                out[2].data[k] += e * scale;
            }
            if op.modulate {
                out[n - 2].data[at] += e * (norm * gamma + beta);
                out[n - 1].data[at] += e;
            }
        }
        let norm = |k: usize| (x.data[r * c + k] - mean) * rstd;
        let total = g.iter().sum::<f64>() / c as f64;
        let product = g.iter().enumerate().map(|(k, g)| g * norm(k)).sum::<f64>() / c as f64;
        for (k, g) in g.iter().enumerate() {
            out[0].data[r * c + k] = rstd * (g - total - norm(k) * product);
        }
    }
    out
}

#[test]
fn large_layer_norm_gradients() {
    // Rows of one warp and of several, held and read again; samples of one stretch and of many.
    let shapes =
        [vec![2, 150, 384], vec![3, 40, 1001], vec![1, 600, 72], vec![1, 3, 5000], vec![40, 9, 64], vec![2, 3, 4096]];
    for (k, shape) in shapes.iter().enumerate() {
        for op in all().skip(k % 2) {
            let mut inputs = inputs(op, shape, 100.0, 0.5);
            let tensors: Vec<Tensor> = inputs.iter().map(|i| Tensor::new(i.ty.shape.clone(), i.data.clone())).collect();
            let stats = reference(op, &tensors).remove(1);
            inputs.push(Input { ty: TensorType::f32(stats.shape), data: stats.data, differentiate: false }.map(|v| v));
            inputs.push(f32s(shape, 9));
            Case::new(format!("grad of {op:?} {shape:?}"), LayerNormGrad(op), inputs, |i| grad_reference(op, i))
                .forward_only()
                .check();
        }
    }
}
