use crate::harness::{Case, Input, Tensor, f32s};
use langevin::ops::{RmsNorm, RmsNormGrad};
use langevin::tensor::TensorType;

fn inputs(op: RmsNorm, shape: &[usize], mean: f64) -> Vec<Input> {
    let mut inputs = vec![f32s(shape, 1).map(|v| mean + v)];
    if op.affine {
        inputs.push(f32s(&shape[shape.len() - 1..], 2));
    }
    inputs
}

fn reference(op: RmsNorm, i: &[Tensor]) -> Vec<Tensor> {
    let x = &i[0];
    let c = *x.shape.last().unwrap();
    let rows = x.data.len() / c;
    let (mut y, mut all) = (Tensor::zeros(x.shape.clone()), Tensor::zeros([rows]));
    for r in 0..rows {
        let row = &x.data[r * c..(r + 1) * c];
        let rstd = 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / c as f64 + op.eps as f64).sqrt();
        all.data[r] = rstd;
        for (k, v) in row.iter().enumerate() {
            y.data[r * c + k] = v * rstd * if op.affine { i[1].data[k] } else { 1.0 };
        }
    }
    vec![y, all]
}

#[test]
fn rms_norm() {
    for affine in [false, true] {
        // A large eps, or the gradient of one column would be all rounding.
        let op = RmsNorm { eps: 0.1, affine };
        for shape in [vec![1], vec![7], vec![2, 5], vec![3, 2, 17], vec![2, 2, 2, 33]] {
            Case::new(format!("{op:?} {shape:?}"), op, inputs(op, &shape, 0.2), |i| reference(op, i)).check();
        }
        for (shape, mean) in
            [(vec![2, 300, 64], 0.0), (vec![50, 1001], 100.0), (vec![3, 5000], 0.0), (vec![1, 9, 20_000], 0.1)]
        {
            Case::new(format!("{op:?} {shape:?}"), op, inputs(op, &shape, mean), |i| reference(op, i))
                .forward_only()
                .check();
        }
    }
}

#[test]
fn rms_norm_gradient_of_long_rows() {
    for (affine, shape) in [(true, [2, 520]), (false, [1, 4104])] {
        let op = RmsNorm { eps: 1e-6, affine };
        Case::new(format!("{op:?} {shape:?}"), op, inputs(op, &shape, 0.2), |i| reference(op, i)).check();
    }
}

#[test]
fn rms_norm_gradient_over_several_chunks() {
    // Only gamma is differentiated: x has too many elements for differences.
    let op = RmsNorm { eps: 1e-6, affine: true };
    let mut inputs = inputs(op, &[2, 1100, 5], 0.2);
    inputs[0].differentiate = false;
    Case::new("several chunks", op, inputs, |i| reference(op, i)).check();
}

/// The gradients of all inputs, analytically.
fn grad_reference(op: RmsNorm, i: &[Tensor]) -> Vec<Tensor> {
    let n = i.len() - 2;
    let (x, rstd, dy) = (&i[0], &i[n], &i[n + 1]);
    let c = *x.shape.last().unwrap();
    let mut out: Vec<Tensor> = i[..n].iter().map(|t| Tensor::zeros(t.shape.clone())).collect();
    for (r, rstd) in rstd.data.iter().enumerate() {
        let g = |k: usize| dy.data[r * c + k] * if op.affine { i[1].data[k] } else { 1.0 };
        let norm = |k: usize| x.data[r * c + k] * rstd;
        let product = (0..c).map(|k| g(k) * norm(k)).sum::<f64>() / c as f64;
        for k in 0..c {
            out[0].data[r * c + k] = rstd * (g(k) - norm(k) * product);
            if op.affine {
                out[1].data[k] += dy.data[r * c + k] * norm(k);
            }
        }
    }
    out
}

#[test]
fn large_rms_norm_gradients() {
    for affine in [false, true] {
        let op = RmsNorm { eps: 1e-6, affine };
        for (shape, mean) in [(vec![300, 64], 0.0), (vec![50, 1001], 3.0), (vec![9, 1152], 0.0), (vec![3, 5000], 0.1)] {
            let mut inputs = inputs(op, &shape, mean);
            let tensors: Vec<Tensor> = inputs.iter().map(|i| Tensor::new(i.ty.shape.clone(), i.data.clone())).collect();
            let rstd = reference(op, &tensors).remove(1);
            inputs.push(Input { ty: TensorType::f32(rstd.shape), data: rstd.data, differentiate: false }.map(|v| v));
            inputs.push(f32s(&shape, 9));
            Case::new(format!("grad of {op:?} {shape:?}"), RmsNormGrad(op), inputs, |i| grad_reference(op, i))
                .forward_only()
                .check();
        }
    }
}
