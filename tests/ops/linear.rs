use crate::activation::reference as act;
use crate::harness::{Case, Input, Tensor, f32s, panels, run_on_gpus};
use langevin::graph::Graph;
use langevin::ops::{
    Activation, Cast, Epilogue, Linear, LinearGeglu, LinearWeightGrad, OneOfMany, TransposeWeight, TransposeWeights,
};
use langevin::tensor::{DType, PANEL, TensorType};

/// The epilogue in f64; operands from input 2.
pub fn finish(e: Epilogue, y: &mut Tensor, inputs: &[Tensor]) {
    let (n, b) = (*y.shape.last().unwrap(), y.shape[0]);
    let per_sample = y.data.len() / n / b;
    let mut next = 2;
    let mut operand = |there: bool| {
        next += there as usize;
        there.then(|| &inputs[next - 1])
    };
    let (bias, sample, gate) = (operand(e.bias), operand(e.sample_bias), operand(e.gate));
    let residual = operand(e.residual);
    for (i, y) in y.data.iter_mut().enumerate() {
        let at = i / n / per_sample * n + i % n;
        *y += bias.map_or(0.0, |t| t.data[i % n]) + sample.map_or(0.0, |t| t.data[at]);
        *y = (act(e.activation, *y) * gate.map_or(1.0, |t| t.data[at]) + residual.map_or(0.0, |t| t.data[i]))
            * e.scale as f64;
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
        Epilogue { gate: true, residual: true, ..Epilogue::bias() },
        Epilogue { gate: true, activation: Activation::Silu, ..none },
        Epilogue {
            bias: true,
            sample_bias: true,
            activation: Activation::GeluTanh,
            residual: true,
            scale: 0.7,
            ..none
        },
    ]
}

/// The operands of an epilogue for an output of that shape.
pub fn operands(e: Epilogue, shape: &[usize]) -> Vec<Input> {
    let (b, n) = (shape[0], *shape.last().unwrap());
    let all = [(e.bias, f32s(&[n], 3)), (e.sample_bias || e.gate, f32s(&[b, n], 4)), (e.residual, f32s(shape, 5))];
    all.into_iter().filter_map(|(there, input)| there.then_some(input)).collect()
}

#[test]
fn linear() {
    for (batch, rows, k, n) in [(1, 1, 1, 1), (2, 3, 5, 7), (3, 1, 17, 16), (1, 13, 4, 33)] {
        for e in all_epilogues() {
            let mut inputs = vec![f32s(&[batch, rows, k], 1), panels(&[k, n], 2)];
            inputs.extend(operands(e, &[batch, rows, n]));
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
    let gate = Epilogue { gate: true, sample_bias: false, ..all };
    let few = [(2, 67, 136, 72, 1.0), (3, 1, 1032, 40, 1.0), (1, 33, 64, 200, 1000.0)];
    let many = [(3, 89, 136, 200, 1.0), (1, 257, 40, 250, 1000.0)];
    let sizes = few.into_iter().chain(many);
    for ((batch, rows, k, n, size), all) in sizes.flat_map(|sizes| [(sizes, all), (sizes, gate)]) {
        let mut inputs = vec![f32s(&[batch, rows, k], 1).map(|v| size * v), panels(&[k, n], 2)];
        inputs.extend(operands(all, &[batch, rows, n]));
        Case::new(format!("linear {batch}x{rows}x{k}x{n} {all:?}"), Linear(all), inputs, |i| {
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

/// The gate, or the bias by sample, is some columns of a wider operand.
#[test]
fn columns_of_a_wide_operand() {
    let gate = Epilogue { gate: true, residual: true, ..Epilogue::bias() };
    let bias = Epilogue { sample_bias: true, activation: Activation::Silu, ..Epilogue::default() };
    // Few rows and many; parts; columns that begin within accesses.
    for ([b, rows, k, n], first, wide) in
        [([3, 5, 24, 40], 40, 120), ([2, 67, 136, 72], 8, 90), ([2, 1, 16, 20], 3, 23), ([2, 60, 2888, 104], 104, 208)]
    {
        for e in [gate, bias].map(|e| Epilogue { sample_first: first, ..e }) {
            let mut inputs = vec![f32s(&[b, rows, k], 1), panels(&[k, n], 2)];
            inputs.extend(operands(e, &[b, rows, n]));
            let at = 2 + e.bias as usize;
            inputs[at] = f32s(&[b, wide], 4);
            Case::new(format!("linear {b}x{rows}x{k}x{n} {e:?}"), Linear(e), inputs, |i| {
                let mut y = Tensor::zeros([b, rows, n]);
                for (x, y) in i[0].data.chunks(k).zip(y.data.chunks_mut(n)) {
                    for (x, w) in x.iter().zip(i[1].data.chunks(n)) {
                        y.iter_mut().zip(w).for_each(|(y, w)| *y += x * w);
                    }
                }
                let mut i: Vec<Tensor> = i.iter().map(|t| Tensor::new(t.shape.clone(), t.data.clone())).collect();
                let columns = i[at].data.chunks(wide).flat_map(|row| row[first..first + n].to_vec()).collect();
                i[at] = Tensor::new([b, n], columns);
                finish(e, &mut y, &i);
                vec![y]
            })
            .forward_only()
            .check();
        }
    }
}

/// Tiles of all widths, several of them a block, with every epilogue; few tiles of many terms, in parts; ends that are not sent from registers; sizes that end
/// within tiles and steps.
#[test]
fn linear_on_hopper() {
    let all = all_epilogues();
    // What is activated and then gated has no tiles of its own.
    let gated = |e: &Epilogue| e.gate && e.activation != Activation::Identity;
    let entry = |e: &Epilogue| if gated(e) { "product_128_bf16" } else { "product_160_bf16" };
    let each = all.iter().map(|e| (*e, [3, 96, 136, 264], entry(e)));
    let last = *all.last().unwrap();
    let gate = Epilogue { gate: true, residual: true, ..Epilogue::bias() };
    let after = Epilogue { gate: true, sample_bias: false, activation: Activation::Silu, ..last };
    let others = [
        (last, [1, 250, 840, 1000], "product_256_bf16"),
        (gate, [5, 48, 840, 1000], "product_256_bf16"),
        (last, [1, 370, 648, 376], "product_192_bf16"),
        (gate, [2, 176, 648, 376], "product_192_bf16"),
        (last, [1, 370, 72, 376], "product_128_bf16"),
        (after, [1, 370, 72, 376], "product_128_bf16"),
        // Sixteen rows of several samples.
        (last, [3, 99, 136, 264], "product_128_bf16"),
        (Epilogue { activation: Activation::Relu, ..last }, [3, 99, 136, 264], "product_128_bf16"),
        // In parts.
        (last, [2, 112, 2888, 160], "product_160_bf16"),
        (gate, [2, 112, 2888, 160], "product_160_bf16"),
        (last, [2, 60, 2888, 100], "product_128_bf16"),
        (gate, [2, 60, 2888, 100], "product_128_bf16"),
        (last, [2, 48, 2888, 104], "product_64_bf16"),
        (gate, [2, 64, 2888, 136], "product_64_bf16"),
    ];
    for (e, [batch, rows, k, n], entry) in each.chain(others) {
        let mut inputs = vec![f32s(&[batch, rows, k], 1), panels(&[k, n], 2)];
        inputs.extend(operands(e, &[batch, rows, n]));
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

/// More weights than a block has threads, some of several blocks; with room between them, and what is made of the last comes first.
#[test]
fn transposed_weights_of_one_array() {
    let mut sizes = vec![(1, 40, 24), (9, 17, 20), (4, 130, 70)];
    sizes.extend((0..270).map(|i| (1 + i % 3, 1 + i % 5, 18)));
    let stored = |taps: usize, c: usize, n: usize| taps * c * n.next_multiple_of(PANEL);
    let elements: usize = sizes.iter().map(|(taps, c, n)| stored(*taps, *n, *c)).sum();
    let (mut from, mut to, mut weights) = (0, elements, vec![]);
    for (taps, c, n) in sizes {
        to -= stored(taps, n, c);
        weights.push(OneOfMany { from, to, taps, c, n });
        from += stored(taps, c, n) + 2 * PANEL;
    }
    // Whole numbers that bf16 holds.
    let x: Vec<f64> = (0..from).map(|i| (i * 7 % 251) as f64).collect();
    let mut expected = vec![0.0; elements];
    for w in &weights {
        let place = |rows: usize, row: usize, col: usize| col / PANEL * rows * PANEL + row * PANEL + col % PANEL;
        for t in 0..w.taps {
            for (a, b) in (0..w.c).flat_map(|a| (0..w.n).map(move |b| (a, b))) {
                let turned = place(w.taps * w.n, (w.taps - 1 - t) * w.n + b, a);
                expected[w.to + turned] = x[w.from + place(w.taps * w.c, t * w.c + a, b)];
            }
        }
    }
    let op = TransposeWeights { weights, elements };
    let mut g = Graph::new();
    let input = g.input("x", TensorType::f32([from]));
    let (narrow, table) = (g.apply(Cast(DType::Bf16), &[input]).unwrap(), op.table(&mut g).unwrap());
    let short = TransposeWeights { elements: elements - PANEL, ..op.clone() };
    assert!(g.apply(short, &[narrow, table]).is_err() && g.apply(op.clone(), &[input, table]).is_err());
    let turned = g.apply(op, &[narrow, table]).unwrap();
    let out = g.apply(Cast(DType::F32), &[turned]).unwrap();
    g.output("out", out);
    for (device, got) in run_on_gpus("transpose_weights", &g, &[("x".into(), x)]) {
        assert!(got["out"] == expected, "on {device}");
    }
}

/// A linear layer of `[batch, rows, k]` to 2 d columns, and the gated GELU of that.
fn linear_geglu_case<'a>([batch, rows, k, d]: [usize; 4], bias: bool) -> Case<'a> {
    let mut inputs = vec![f32s(&[batch, rows, k], 1), panels(&[k, 2 * d], 2)];
    inputs.extend(bias.then(|| f32s(&[2 * d], 3)));
    Case::new(format!("linear_geglu {batch}x{rows}x{k}x{d} {bias}"), LinearGeglu { bias }, inputs, move |i| {
        let mut y = Tensor::zeros([batch, rows, d]);
        for (x, y) in i[0].data.chunks(k).zip(y.data.chunks_mut(d)) {
            let mut wide = i.get(2).map_or(vec![0.0; 2 * d], |bias| bias.data.clone());
            for (x, w) in x.iter().zip(i[1].data.chunks(2 * d)) {
                wide.iter_mut().zip(w).for_each(|(wide, w)| *wide += x * w);
            }
            let (a, b) = wide.split_at(d);
            y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (a, b))| *y = a * act(Activation::Gelu, *b));
        }
        vec![y]
    })
}

#[test]
fn linear_geglu() {
    for bias in [false, true] {
        for sizes in [[1, 1, 1, 1], [2, 3, 5, 7], [1, 13, 4, 33]] {
            linear_geglu_case(sizes, bias).check();
        }
        // More rows than a tile has; so many terms that the product comes in parts.
        for sizes in [[3, 89, 136, 104], [2, 10, 2088, 34]] {
            linear_geglu_case(sizes, bias).forward_only().check();
        }
    }
}

/// Tiles of all widths, several of them a block and one for two warpgroups; parts; rows and columns that end within tiles, and fewer columns than half a
/// tile has.
#[test]
fn linear_geglu_on_hopper() {
    for (sizes, bias, size) in [
        ([2, 200, 136, 208], true, 128),
        ([1, 99, 200, 112], false, 128),
        ([1, 40, 136, 16], true, 128),
        ([1, 60, 2888, 64], true, 128),
        ([2, 60, 2888, 96], false, 128),
        ([3, 96, 136, 144], true, 160),
        ([2, 112, 2888, 80], true, 160),
        ([1, 370, 648, 192], true, 192),
        ([1, 370, 648, 176], false, 192),
    ] {
        let entry = format!("product_geglu_{size}_bf16");
        linear_geglu_case(sizes, bias).forward_only().on_hopper(&entry).check();
    }
}
