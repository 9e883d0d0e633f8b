use crate::activation::reference as act;
use crate::harness::{Case, Input, Tensor, f32s};
use langevin::graph::Graph;
use langevin::ops::{Activation, GroupNorm, GroupNormGrad};
use langevin::tensor::TensorType;

const EPS: f32 = 1e-5;

fn op(groups: usize, activation: Activation, modulate: bool) -> GroupNorm {
    GroupNorm { groups, eps: EPS, activation, modulate }
}

fn inputs(shape: &[usize], modulate: bool, mean: f64, std: f64) -> Vec<Input> {
    let (b, c) = (shape[0], shape[shape.len() - 1]);
    let mut inputs = vec![f32s(shape, 1).map(|v| mean + std * v), f32s(&[c], 2), f32s(&[c], 3)];
    if modulate {
        inputs.extend([f32s(&[b, c], 4), f32s(&[b, c], 5)]);
    }
    inputs
}

/// n ↦ the argument of the activation, for channel c of sample b.
fn modulated(i: &[Tensor], modulate: bool, b: usize, c: usize, n: f64) -> f64 {
    let channels = i[1].data.len();
    let h = n * i[1].data[c] + i[2].data[c];
    if modulate { h * (1.0 + i[3].data[b * channels + c]) + i[4].data[b * channels + c] } else { h }
}

/// y and stats.
fn reference(op: GroupNorm, i: &[Tensor]) -> Vec<Tensor> {
    let x = &i[0];
    let (b, c) = (x.shape[0], *x.shape.last().unwrap());
    let (rows, width) = (x.data.len() / b / c, c / op.groups);
    let (mut y, mut stats) = (Tensor::zeros(x.shape.clone()), Tensor::zeros([b, op.groups, 2]));
    for s in 0..b {
        for g in 0..op.groups {
            let places = (0..rows * width).map(|k| (s * rows + k / width) * c + g * width + k % width);
            let n = (rows * width) as f64;
            let mean = places.clone().map(|p| x.data[p]).sum::<f64>() / n;
            let variance = places.clone().map(|p| (x.data[p] - mean).powi(2)).sum::<f64>() / n;
            let rstd = 1.0 / (variance + op.eps as f64).sqrt();
            stats.data[(s * op.groups + g) * 2] = mean;
            stats.data[(s * op.groups + g) * 2 + 1] = rstd;
            for p in places {
                y.data[p] = act(op.activation, modulated(i, op.modulate, s, p % c, (x.data[p] - mean) * rstd));
            }
        }
    }
    vec![y, stats]
}

#[test]
fn group_norm() {
    let all = [Activation::Identity, Activation::Silu, Activation::Gelu, Activation::GeluTanh];
    for (shape, groups) in
        [(vec![1, 6], 1), (vec![2, 3, 6], 3), (vec![2, 2, 3, 10], 5), (vec![3, 5, 17], 17), (vec![1, 2, 2, 36], 2)]
    {
        for (k, modulate) in [(0, false), (1, false), (1, true), (2, true), (3, false)] {
            let op = op(groups, all[k], modulate);
            let inputs = inputs(&shape, modulate, 0.3, 1.0);
            Case::new(format!("{op:?} {shape:?}"), op, inputs, |i| reference(op, i)).check();
        }
    }
}

/// Not by finite differences: some would be taken across the edge.
#[test]
fn group_norm_with_relu() {
    let (op, shape) = (op(3, Activation::Relu, true), [2, 5, 4, 12]);
    Case::new(format!("{op:?}"), op, inputs(&shape, true, 0.3, 1.0), |i| reference(op, i)).forward_only().check();
}

#[test]
fn large_group_norms() {
    // Several chunks a sample, with samples and with chunks as tasks.
    for (shape, groups) in [
        (vec![1, 33, 31, 96], 32),
        (vec![4, 20, 20, 100], 4),
        (vec![1, 700, 3], 1),
        (vec![2, 5, 5000], 8),
        (vec![2, 5, 4608], 2),
        (vec![16, 15, 15, 24], 6),
        // Groups that end within a pack, in one block and in stretches; of one channel.
        (vec![2, 9, 9, 320], 32),
        (vec![1, 50, 50, 80], 8),
        (vec![1, 11, 64], 64),
        // In stretches, with packs of one group and of two.
        (vec![1, 9000, 16], 2),
        (vec![1, 8500, 16], 4),
    ] {
        for (mean, std) in [(0.0, 1.0), (100.0, 0.5), (-3000.0, 20.0)] {
            let op = op(groups, Activation::Silu, true);
            let inputs = inputs(&shape, true, mean, std);
            Case::new(format!("{op:?} {shape:?} {mean} ± {std}"), op, inputs, |i| reference(op, i))
                .forward_only()
                .check();
        }
    }
}

/// Samples whose rows a cluster's blocks share out: with rows that threads read twice, a last block with fewer rows, threads without channels.
#[test]
fn group_norms_of_clusters() {
    for (shape, groups, blocks) in [
        (vec![1, 50, 50, 80], 8, 8),
        (vec![1, 9000, 16], 2, 8),
        (vec![1, 1100, 120], 4, 8),
        (vec![5, 40, 40, 48], 4, 4),
    ] {
        for (modulate, mean, std) in [(true, 0.0, 1.0), (false, 40.0, 0.5)] {
            let op = op(groups, Activation::Silu, modulate);
            let inputs = inputs(&shape, modulate, mean, std);
            let case = Case::new(format!("{op:?} {shape:?} {mean}"), op, inputs, |i| reference(op, i)).forward_only();
            case.on_hopper(&format!("group_norm_clusters_{blocks}_bf16")).check();
        }
    }
}

/// So many numbers that shaders for hardware take them by stretches.
#[test]
fn group_norm_of_many_numbers() {
    for (modulate, mean) in [(true, -3000.0), (false, 0.5)] {
        let op = op(16, Activation::Silu, modulate);
        let inputs = inputs(&[2, 41, 41, 160], modulate, mean, 20.0);
        Case::new(format!("{op:?} {mean}"), op, inputs, |i| reference(op, i)).forward_only().check();
    }
}

#[test]
fn a_misleading_start_costs_no_digits() {
    // The first rows say nothing of the mean of the rest.
    let op = op(4, Activation::Identity, false);
    let mut inputs = inputs(&[1, 4000, 16], false, 50.0, 0.5);
    inputs[0].data[..100 * 16].fill(0.0);
    Case::new("misleading start", op, inputs, |i| reference(op, i)).forward_only().check();
}

#[test]
fn group_norm_gradient_at_large_means() {
    let op = op(2, Activation::Silu, true);
    let case = Case::new("large mean", op, inputs(&[2, 3, 2, 6], true, 60.0, 0.6), |i| reference(op, i));
    case.check();
}

/// The gradients of all inputs, analytically.
fn grad_reference(op: GroupNorm, i: &[Tensor]) -> Vec<Tensor> {
    let n = if op.modulate { 5 } else { 3 };
    let (x, stats, dy) = (&i[0], &i[n], &i[n + 1]);
    let (b, c) = (x.shape[0], *x.shape.last().unwrap());
    let (rows, width) = (x.data.len() / b / c, c / op.groups);
    let mut out: Vec<Tensor> = i[..n].iter().map(|t| Tensor::zeros(t.shape.clone())).collect();
    for s in 0..b {
        for g in 0..op.groups {
            let (mean, rstd) = (stats.data[(s * op.groups + g) * 2], stats.data[(s * op.groups + g) * 2 + 1]);
            let (mut total, mut product, mut dn) = (0.0, 0.0, vec![0.0; rows * width]);
            for (k, dn) in dn.iter_mut().enumerate() {
                let ch = g * width + k % width;
                let p = (s * rows + k / width) * c + ch;
                let norm = (x.data[p] - mean) * rstd;
                let h = modulated(i, op.modulate, s, ch, norm);
                // Small, so that next to no element lies within it of the edge of ReLU.
                let d = 1e-8;
                let e = dy.data[p] * (act(op.activation, h + d) - act(op.activation, h - d)) / (2.0 * d);
                let scale = if op.modulate { 1.0 + i[3].data[s * c + ch] } else { 1.0 };
                *dn = e * scale * i[1].data[ch];
                total += *dn;
                product += *dn * norm;
                out[1].data[ch] += e * scale * norm;
                out[2].data[ch] += e * scale;
                if op.modulate {
                    out[3].data[s * c + ch] += e * (norm * i[1].data[ch] + i[2].data[ch]);
                    out[4].data[s * c + ch] += e;
                }
            }
            let count = (rows * width) as f64;
            for (k, dn) in dn.iter().enumerate() {
                let p = (s * rows + k / width) * c + g * width + k % width;
                out[0].data[p] = rstd * (dn - total / count - (x.data[p] - mean) * rstd * product / count);
            }
        }
    }
    out
}

#[test]
fn large_group_norm_gradients() {
    let cases = [
        (vec![1, 33, 31, 96], 32, false, Activation::Silu),
        (vec![4, 20, 20, 100], 4, true, Activation::Relu),
        (vec![2, 3, 2304], 1, true, Activation::Identity),
        (vec![1, 7, 625], 1, false, Activation::Silu),
        // Of whole groups in a block: some to a pack, and such that end within packs; and in stretches.
        (vec![2, 16, 17, 64], 16, true, Activation::Silu),
        (vec![3, 9, 9, 80], 8, true, Activation::Silu),
        (vec![2, 5, 64], 2, false, Activation::Identity),
        (vec![1, 5000, 16], 2, true, Activation::Silu),
    ];
    for (shape, groups, modulate, act) in cases {
        let op = op(groups, act, modulate);
        let mut inputs = inputs(&shape, modulate, 0.5, 1.0);
        let tensors: Vec<Tensor> = inputs.iter().map(|i| Tensor::new(i.ty.shape.clone(), i.data.clone())).collect();
        let stats = reference(op, &tensors).remove(1);
        inputs.push(Input { ty: TensorType::f32(stats.shape), data: stats.data, differentiate: false }.map(|v| v));
        inputs.push(f32s(&shape, 9));
        Case::new(format!("grad of {op:?} {shape:?}"), GroupNormGrad(op), inputs, |i| grad_reference(op, i))
            .forward_only()
            .check();
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([2, 4, 6]));
    let c = g.input("c", TensorType::f32([6]));
    let d = g.input("d", TensorType::f32([5]));
    assert!(g.apply(op(4, Activation::Identity, false), &[x, c, c]).is_err());
    assert!(g.apply(op(0, Activation::Identity, false), &[x, c, c]).is_err());
    assert!(g.apply(op(3, Activation::Identity, false), &[x, c, d]).is_err());
    assert!(g.apply(op(3, Activation::Identity, true), &[x, c, c]).is_err());
    assert!(g.apply(op(3, Activation::Identity, true), &[x, c, c, c, c]).is_err());
    assert!(g.apply(op(3, Activation::Identity, false), &[x, c, c]).is_ok());
}
