use crate::activation::reference as act;
use crate::harness::{Case, Tensor, f32s, panels};
use langevin::ops::{Activation, Epilogue, Linear, LinearWeightGrad, TransposeWeight};

/// The epilogue in f64; operands from input 2.
pub fn finish(e: Epilogue, y: &mut Tensor, inputs: &[Tensor]) {
    let (n, b) = (*y.shape.last().unwrap(), y.shape[0]);
    let per_sample = y.data.len() / n / b;
    let mut next = 2;
    let mut operand = |there: bool| {
        next += there as usize;
        there.then(|| &inputs[next - 1])
    };
    let (bias, sample, residual) = (operand(e.bias), operand(e.sample_bias), operand(e.residual));
    for (i, y) in y.data.iter_mut().enumerate() {
        *y += bias.map_or(0.0, |t| t.data[i % n]) + sample.map_or(0.0, |t| t.data[i / n / per_sample * n + i % n]);
        *y = (act(e.activation, *y) + residual.map_or(0.0, |t| t.data[i])) * e.scale as f64;
    }
}

pub fn all_epilogues() -> Vec<Epilogue> {
    let none = Epilogue::default();
    vec![
        none,
        Epilogue::bias(),
        Epilogue { activation: Activation::Silu, ..Epilogue::bias() },
        Epilogue { sample_bias: true, ..Epilogue::bias() },
        Epilogue { residual: true, scale: 0.5, ..none },
        Epilogue { bias: true, sample_bias: true, activation: Activation::GeluTanh, residual: true, scale: 0.7 },
    ]
}

#[test]
fn linear() {
    for (batch, rows, k, n) in [(1, 1, 1, 1), (2, 3, 5, 7), (3, 1, 17, 16), (1, 13, 4, 33)] {
        for e in all_epilogues() {
            let mut inputs = vec![f32s(&[batch, rows, k], 1), panels(&[k, n], 2)];
            if e.bias {
                inputs.push(f32s(&[n], 3))
            }
            if e.sample_bias {
                inputs.push(f32s(&[batch, n], 4))
            }
            if e.residual {
                inputs.push(f32s(&[batch, rows, n], 5))
            }
            Case::new(format!("linear {batch}x{rows}x{k}x{n} {e:?}"), Linear(e), inputs, |i| {
                let mut y = Tensor::zeros([batch, rows, n]);
                for r in 0..batch * rows {
                    for c in 0..n {
                        y.data[r * n + c] = (0..k).map(|l| i[0].data[r * k + l] * i[1].data[l * n + c]).sum();
                    }
                }
                finish(e, &mut y, i);
                vec![y]
            })
            .check();
        }
    }
}

/// Rows of whole accesses, more of them than a tile has, with every part of an epilogue; few rows of many terms; sums of large numbers.
#[test]
fn linear_of_whole_accesses() {
    let all = all_epilogues().pop().unwrap();
    let few = [(2, 67, 136, 72, 1.0), (3, 1, 1032, 40, 1.0), (1, 33, 64, 200, 1000.0)];
    let many = [(3, 89, 136, 200, 1.0), (1, 257, 40, 250, 1000.0)];
    for (batch, rows, k, n, size) in few.into_iter().chain(many) {
        let inputs = vec![
            f32s(&[batch, rows, k], 1).map(|v| size * v),
            panels(&[k, n], 2),
            f32s(&[n], 3),
            f32s(&[batch, n], 4),
            f32s(&[batch, rows, n], 5),
        ];
        Case::new(format!("linear {batch}x{rows}x{k}x{n}"), Linear(all), inputs, |i| {
            let mut y = Tensor::zeros([batch, rows, n]);
            for r in 0..batch * rows {
                for c in 0..n {
                    y.data[r * n + c] = (0..k).map(|l| i[0].data[r * k + l] * i[1].data[l * n + c]).sum();
                }
            }
            finish(all, &mut y, i);
            vec![y]
        })
        .forward_only()
        .check();
    }
}

/// Tiles of all widths, several of them a block, with every epilogue; few tiles of many terms, in parts; ends that are not sent from registers; sizes that end
/// within tiles and steps.
#[test]
fn linear_on_hopper() {
    let all = all_epilogues();
    let each = all.iter().map(|e| (*e, [3, 99, 136, 264], "product_160_bf16"));
    let last = *all.last().unwrap();
    let others = [
        (last, [1, 250, 840, 1000], "product_256_bf16"),
        (last, [1, 370, 136, 760], "product_192_bf16"),
        (last, [1, 370, 72, 376], "product_128_bf16"),
        (Epilogue { activation: Activation::Relu, ..last }, [3, 99, 136, 264], "product_128_bf16"),
        // In parts.
        (last, [2, 60, 2888, 160], "product_160_bf16"),
        (last, [2, 60, 2888, 100], "product_128_bf16"),
    ];
    for (e, [batch, rows, k, n], entry) in each.chain(others) {
        let mut inputs = vec![f32s(&[batch, rows, k], 1), panels(&[k, n], 2)];
        if e.bias {
            inputs.push(f32s(&[n], 3))
        }
        if e.sample_bias {
            inputs.push(f32s(&[batch, n], 4))
        }
        if e.residual {
            inputs.push(f32s(&[batch, rows, n], 5))
        }
        let case = Case::new(format!("linear {batch}x{rows}x{k}x{n} {e:?}"), Linear(e), inputs, |i| {
            let mut y = Tensor::zeros([batch, rows, n]);
            for (x, y) in i[0].data.chunks(k).zip(y.data.chunks_mut(n)) {
                for (x, w) in x.iter().zip(i[1].data.chunks(n)) {
                    y.iter_mut().zip(w).for_each(|(y, w)| *y += x * w);
                }
            }
            finish(e, &mut y, i);
            vec![y]
        });
        case.forward_only().on_hopper(entry).check();
    }
}

#[test]
fn large_linear_and_weight_grad() {
    let (m, k, n) = (210, 700, 130);
    // The second has so many columns and rows that shaders make it by tiles of 128, and the last so many terms that they cut them.
    for (m, k, n) in [(m, k, n), (2000, 24, 1012), (20, 2088, 68)] {
        Case::new(format!("linear {m}x{k}x{n}"), Linear::default(), vec![f32s(&[m, k], 1), panels(&[k, n], 2)], |i| {
            let mut y = Tensor::zeros([m, n]);
            for r in 0..m {
                for c in 0..n {
                    y.data[r * n + c] = (0..k).map(|l| i[0].data[r * k + l] * i[1].data[l * n + c]).sum();
                }
            }
            vec![y]
        })
        .forward_only()
        .check();
    }
    // The second sums so many rows that shaders do it in parts.
    for (m, k, n) in [(m, k, n), (1500, 12, 20)] {
        let (op, inputs) = (LinearWeightGrad { shape: vec![k, n] }, vec![f32s(&[m, k], 1), f32s(&[m, n], 2)]);
        Case::new(format!("weight grad {m}x{k}x{n}"), op, inputs, |i| {
            let mut w = Tensor::zeros([k, n]);
            for l in 0..k {
                for c in 0..n {
                    w.data[l * n + c] = (0..m).map(|r| i[0].data[r * k + l] * i[1].data[r * n + c]).sum();
                }
            }
            vec![w]
        })
        .forward_only()
        .check();
    }
}

#[test]
fn transpose_weight() {
    for (taps, c, n) in [(1, 3, 5), (9, 2, 3), (9, 17, 20), (1, 16, 40)] {
        let (input, output) = if taps == 1 { (vec![c, n], vec![n, c]) } else { (vec![taps, c, n], vec![taps, n, c]) };
        Case::new(format!("transpose_weight {taps} {c} {n}"), TransposeWeight { taps }, vec![panels(&input, 1)], |i| {
            let mut w = Tensor::zeros(output.clone());
            for t in 0..taps {
                for a in 0..c {
                    for b in 0..n {
                        w.data[(t * n + b) * c + a] = i[0].data[((taps - 1 - t) * c + a) * n + b];
                    }
                }
            }
            vec![w]
        })
        .check();
    }
}
