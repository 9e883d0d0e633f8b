use crate::harness::{Case, Input, Tensor, f32s, noise, relative, run_graph, run_on_gpus};
use half::{bf16, f16};
use langevin::Device;
use langevin::graph::{Graph, Kernel, Launch, Op, Signature};
use langevin::ops::{Attention, AttentionGrad, Cast};
use langevin::tensor::{DType, TensorType};

/// Batch, queries, keys, heads, columns of a head of q and k, of v.
type Sizes = [usize; 6];

fn op(s: Sizes) -> Attention {
    Attention { heads: s[3], scale: 1.0 / (s[4] as f32).sqrt() }
}

fn inputs([b, tq, tk, heads, d, dv]: Sizes, spread: f64) -> Vec<Input> {
    let q = f32s(&[b, tq, heads * d], 1).map(|v| v * spread);
    vec![q, f32s(&[b, tk, heads * d], 2), f32s(&[b, tk, heads * dv], 3)]
}

/// Calls `f(sample, head, query, P)` for every row of the softmax and returns lse.
fn rows(s: Sizes, q: &[f64], k: &[f64], mut f: impl FnMut(usize, usize, usize, &[f64])) -> Vec<f64> {
    let ([b, tq, tk, heads, d, _], scale) = (s, op(s).scale as f64);
    let mut all = Vec::new();
    for (i, h) in (0..b * heads).map(|k| (k / heads, k % heads)) {
        for t in 0..tq {
            let q = &q[((i * tq + t) * heads + h) * d..][..d];
            let key = |j: usize| &k[((i * tk + j) * heads + h) * d..][..d];
            let scores: Vec<f64> =
                (0..tk).map(|j| q.iter().zip(key(j)).map(|(a, b)| a * b).sum::<f64>() * scale).collect();
            let top = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
            let lse = top + scores.iter().map(|v| (v - top).exp()).sum::<f64>().ln();
            all.push(lse);
            f(i, h, t, &scores.iter().map(|v| (v - lse).exp()).collect::<Vec<_>>());
        }
    }
    all
}

fn reference(s: Sizes, i: &[Tensor]) -> Vec<Tensor> {
    let [b, tq, tk, heads, _, dv] = s;
    let mut y = Tensor::zeros([b, tq, heads * dv]);
    let lse = rows(s, &i[0].data, &i[1].data, |b, h, t, p| {
        for (j, p) in p.iter().enumerate() {
            for c in 0..dv {
                y.data[((b * tq + t) * heads + h) * dv + c] += p * i[2].data[((b * tk + j) * heads + h) * dv + c];
            }
        }
    });
    vec![y, Tensor::new([b, heads, tq], lse)]
}

/// dq, dk, dv for q, k, v, y, lse, dy.
fn grad_reference(s: Sizes, i: &[Tensor]) -> Vec<Tensor> {
    let [_, tq, tk, heads, d, dv] = s;
    let scale = op(s).scale as f64;
    let mut out: Vec<Tensor> = i[..3].iter().map(|t| Tensor::zeros(t.shape.clone())).collect();
    rows(s, &i[0].data, &i[1].data, |b, h, t, p| {
        let at = |rows: usize, t: usize, width: usize| ((b * rows + t) * heads + h) * width;
        let dy = &i[5].data[at(tq, t, dv)..][..dv];
        let dp: Vec<f64> =
            (0..tk).map(|j| dy.iter().zip(&i[2].data[at(tk, j, dv)..]).map(|(a, b)| a * b).sum()).collect();
        let delta: f64 = dy.iter().zip(&i[3].data[at(tq, t, dv)..]).map(|(a, b)| a * b).sum();
        for j in 0..tk {
            let ds = p[j] * (dp[j] - delta) * scale;
            for (o, dy) in out[2].data[at(tk, j, dv)..].iter_mut().zip(dy) {
                *o += p[j] * dy;
            }
            for c in 0..d {
                out[0].data[at(tq, t, d) + c] += ds * i[1].data[at(tk, j, d) + c];
                out[1].data[at(tk, j, d) + c] += ds * i[0].data[at(tq, t, d) + c];
            }
        }
    });
    out
}

/// The inputs of the backward.
fn grad_inputs(s: Sizes, spread: f64) -> Vec<Input> {
    let mut inputs = inputs(s, spread);
    let tensors: Vec<Tensor> = inputs.iter().map(|i| Tensor::new(i.ty.shape.clone(), i.data.clone())).collect();
    for t in reference(s, &tensors) {
        inputs.push(Input { ty: TensorType::f32(t.shape), data: t.data, differentiate: false }.map(|v| v));
    }
    inputs.push(f32s(&[s[0], s[1], s[3] * s[5]], 4));
    inputs
}

#[test]
fn attention() {
    for s in [
        [1, 1, 1, 1, 1, 1],
        [2, 3, 5, 1, 4, 4],
        [1, 7, 2, 3, 5, 3],
        [2, 1, 9, 2, 3, 17],
        [1, 18, 17, 2, 2, 2],
        [1, 5, 1, 2, 16, 16],
    ] {
        let mut inputs = inputs(s, 2.0);
        if s[2] == 1 {
            // A single key has weight 1: there is no gradient to q and k, only rounding.
            inputs[..2].iter_mut().for_each(|i| i.differentiate = false);
        }
        Case::new(format!("attention {s:?}"), op(s), inputs, |i| reference(s, i)).check();
    }
}

/// Sizes beyond the blocks of both kernels, and every kind of remainder.
const LARGE: [Sizes; 7] = [
    [1, 256, 256, 1, 64, 64],
    [2, 131, 77, 3, 40, 40],
    [1, 300, 515, 1, 33, 20],
    [1, 70, 400, 2, 160, 160],
    [1, 65, 150, 1, 512, 512],
    [1, 1, 300, 1, 8, 8],
    [5, 67, 129, 4, 16, 24],
];

#[test]
fn large_attention() {
    for s in LARGE {
        for spread in [1.0, 40.0] {
            Case::new(format!("attention {s:?} {spread}"), op(s), inputs(s, spread), |i| reference(s, i))
                .forward_only()
                .check();
        }
    }
}

/// As many workgroups as it takes for cooperative matrices, where an adapter has them: heads of one slice and of two, the last of them narrower.
#[test]
fn many_heads_in_f16() {
    for s in [[4, 70, 33, 16, 24, 40], [4, 33, 17, 8, 176, 164]] {
        let case = Case::new(format!("attention {s:?}"), op(s), inputs(s, 2.0), |i| reference(s, i));
        case.check_outputs(DType::F16, 1e-3);
    }
}

#[test]
fn large_attention_gradients() {
    for s in LARGE {
        let case = Case::new(format!("{s:?}"), AttentionGrad(op(s)), grad_inputs(s, 3.0), |i| grad_reference(s, i));
        case.check_outputs(DType::F32, 2e-5);
    }
}

/// A head for every instance of the kernels for CUDA, few queries for which keys are cut into parts, heads of v alone too wide for one block.
#[test]
fn heads_of_every_size() {
    for s in [
        [1, 130, 70, 1, 30, 32],
        [1, 33, 65, 2, 48, 48],
        [1, 1, 700, 2, 72, 72],
        [2, 40, 33, 1, 80, 80],
        [1, 129, 50, 1, 96, 88],
        [1, 20, 260, 1, 128, 128],
        [1, 66, 40, 1, 256, 256],
        [1, 3, 300, 1, 8, 300],
    ] {
        let case = Case::new(format!("attention {s:?}"), op(s), inputs(s, 2.0), |i| reference(s, i));
        case.forward_only().check();
        let (op, inputs) = (AttentionGrad(op(s)), grad_inputs(s, 2.0));
        let case = Case::new(format!("gradient {s:?}"), op, inputs, |i| grad_reference(s, i));
        case.check_outputs(DType::F32, 2e-5);
    }
}

/// The backward where numbers are stored in 16 bits, lse in f32, against the reference of the rounded numbers; `bound` is for f16.
fn check_half_gradients(s: Sizes, inputs: &[Input], bound: f64) {
    for (dtype, bound) in [(DType::F16, bound), (DType::Bf16, 8.0 * bound)] {
        let round = |v: f64| match dtype {
            DType::F16 => f16::from_f64(v).to_f64(),
            _ => bf16::from_f64(v).to_f64(),
        };
        let rounded = |i: &Input| Tensor::new(i.ty.shape.clone(), i.data.iter().map(|v| round(*v)).collect());
        let mut tensors: Vec<Tensor> = inputs.iter().map(rounded).collect();
        let [y, lse] = reference(s, &tensors[..3]).try_into().unwrap();
        // A single key has weight 1: with another y than v there is a gradient to q and k, not only rounding.
        let shift = if s[2] == 1 { 0.5 } else { 0.0 };
        (tensors[3], tensors[4]) = (y.map(|v| round(v + shift)), lse);
        let mut g = Graph::new();
        let mut cast = |(i, t): (usize, &Tensor)| {
            let v = g.input(format!("in{i}"), TensorType::f32(t.shape.clone()));
            if i == 4 { v } else { g.apply(Cast(dtype), &[v]).unwrap() }
        };
        let values: Vec<_> = tensors.iter().enumerate().map(&mut cast).collect();
        for (i, d) in g.apply_all(AttentionGrad(op(s)), &values).unwrap().into_iter().enumerate() {
            assert_eq!(g.ty(d).dtype, dtype);
            let d = g.apply(Cast(DType::F32), &[d]).unwrap();
            g.output(format!("d{i}"), d);
        }
        let data: Vec<_> = tensors.iter().enumerate().map(|(i, t)| (format!("in{i}"), t.data.clone())).collect();
        let expected = grad_reference(s, &tensors);
        for (device, got) in run_on_gpus("gradient", &g, &data) {
            for (i, e) in expected.iter().enumerate() {
                let err = relative(&got[&format!("d{i}")], &e.data);
                let name = format!("gradient {i} of {s:?} in {dtype} on {device}");
                assert!(err <= bound, "{name} is off by {err:.2e} (bound {bound:.1e})");
            }
        }
    }
}

#[test]
fn half_gradients_of_every_width() {
    for s in [
        [2, 5, 7, 2, 8, 8],
        [1, 130, 70, 3, 30, 32],
        [1, 33, 129, 2, 40, 40],
        [2, 131, 77, 1, 64, 64],
        [1, 65, 67, 2, 72, 72],
        [2, 40, 33, 1, 80, 80],
        [1, 129, 50, 1, 96, 88],
        [1, 31, 33, 1, 128, 128],
        [1, 70, 90, 2, 160, 160],
        [1, 66, 40, 1, 256, 256],
        [1, 35, 70, 1, 264, 320],
    ] {
        check_half_gradients(s, &grad_inputs(s, 2.0), 2e-3);
    }
}

/// Rows that are no multiple of 16 bytes, heads of v narrower and wider, fewer others than a tile has, others in parts.
#[test]
fn half_gradients_of_odd_sizes() {
    for s in [
        [1, 1, 1, 1, 1, 1],
        [1, 18, 17, 3, 5, 3],
        [1, 40, 70, 1, 33, 100],
        [1, 33, 20, 1, 101, 8],
        [1, 3, 40, 1, 8, 300],
        [1, 40, 3, 1, 300, 8],
        [1, 1, 700, 2, 72, 72],
        [1, 700, 1, 2, 72, 72],
        [1, 300, 515, 1, 33, 20],
        [1, 300, 40, 1, 160, 24],
        [1, 290, 300, 1, 301, 9],
    ] {
        check_half_gradients(s, &grad_inputs(s, 2.0), 2e-3);
    }
}

/// Sharp softmaxes, sizes beyond the blocks, many heads, large dy.
#[test]
fn half_gradients_of_large_numbers() {
    for (s, spread) in LARGE.into_iter().zip([40.0, 40.0, 12.0, 40.0, 12.0, 40.0, 3.0]) {
        let mut inputs = grad_inputs(s, spread);
        inputs[5] = inputs[5].clone().map(|v| 300.0 * v);
        check_half_gradients(s, &inputs, 3e-3);
    }
}

/// Checks the backward in 16 bits, and that on Hopper it is launches of these entries, without `attention_grad_` and the type.
fn check_hopper_gradients(s: Sizes, spread: f64, expected: &[String]) {
    let inputs = grad_inputs(s, spread);
    let halves = |(i, input): (usize, &Input)| TensorType {
        dtype: if i == 4 { DType::F32 } else { DType::Bf16 },
        ..input.ty.clone()
    };
    let types: Vec<TensorType> = inputs.iter().enumerate().map(halves).collect();
    let (op, outputs) = (AttentionGrad(op(s)), types[..3].to_vec());
    let launches = op.lower(&Signature { inputs: types, outputs }, &Device::ptx((9, 0)).target()).unwrap();
    let entry = |launch: Launch| match launch.kernel {
        Kernel::Ptx(kernel) => kernel.entry.replace("attention_grad_", "").replace("_bf16", ""),
        other => panic!("{other:?}"),
    };
    let entries: Vec<String> = launches.into_iter().map(entry).collect();
    assert_eq!(entries, expected);
    check_half_gradients(s, &inputs, 3e-3);
}

/// The backward for Hopper: rows beyond a block of every instance, several tiles of others, remainders, narrower heads of v, sharp softmaxes.
#[test]
fn half_gradients_of_hopper() {
    for (s, columns) in [
        ([1, 195, 200, 2, 40, 40], 40),
        ([2, 130, 67, 1, 64, 56], 64),
        ([1, 131, 129, 2, 72, 80], 80),
        ([1, 140, 190, 1, 128, 104], 128),
    ] {
        check_hopper_gradients(s, 40.0, &["terms".into(), format!("by_key_{columns}"), format!("by_query_{columns}")]);
    }
}

/// The backward for Hopper where there are many keys and queries: several blocks of keys, which begin at queries of their own, remainders, narrower
/// heads, sharp softmaxes.
#[test]
fn half_gradients_of_many() {
    for (s, spread, columns) in [
        ([1, 520, 515, 2, 40, 40], 40.0, 40),
        ([1, 520, 515, 1, 64, 64], 2.0, 64),
        ([1, 513, 640, 1, 128, 112], 40.0, 128),
    ] {
        let of = |part: &str| format!("once{part}_{columns}");
        check_hopper_gradients(s, spread, &["once_limits".into(), of("_terms"), of(""), of("_finish")]);
    }
}

/// A head for every instance of the kernels for Hopper, blocks of 64, 128 and 256 queries for four multiprocessors, and blocks that go from some queries to
/// others: remainders of queries and keys, one tile of keys and several, narrower heads of v, and scores that outgrow the maximum again and again.
#[test]
fn heads_of_hopper() {
    for (s, spread, entry) in [
        ([1, 130, 200, 2, 40, 40], 40.0, "40"),
        ([1, 257, 97, 2, 40, 32], 2.0, "40"),
        ([2, 65, 1, 2, 64, 64], 2.0, "64"),
        ([1, 192, 193, 2, 64, 48], 40.0, "64"),
        ([1, 129, 1000, 2, 64, 64], 40.0, "64"),
        ([1, 130, 777, 2, 128, 128], 40.0, "128"),
        ([1, 200, 129, 2, 72, 72], 2.0, "72"),
        ([1, 129, 77, 2, 80, 80], 40.0, "80"),
        ([1, 256, 300, 2, 128, 128], 40.0, "128"),
        ([4, 70, 100, 1, 96, 88], 2.0, "128"),
        ([3, 66, 130, 1, 160, 160], 40.0, "160"),
        ([4, 250, 450, 1, 40, 40], 40.0, "40"),
        ([4, 200, 450, 1, 80, 80], 2.0, "80"),
        ([1, 70, 97, 2, 40, 40], 2.0, "40"),
        ([2, 64, 130, 2, 64, 64], 40.0, "64"),
        ([1, 5, 65, 2, 80, 72], 2.0, "80"),
        ([3, 260, 330, 1, 128, 128], 40.0, "128"),
        ([1, 65, 130, 2, 128, 128], 2.0, "few_128"),
        ([1, 100, 70, 1, 160, 152], 40.0, "few_160"),
        ([2, 130, 129, 1, 256, 256], 40.0, "few_256"),
    ] {
        let case = Case::new(format!("attention {s:?} {spread}"), op(s), inputs(s, spread), |i| reference(s, i));
        case.forward_only().on_hopper(&format!("attention_{entry}_bf16")).check();
    }
}

/// Some exponentials of the kernels for Hopper are polynomials, of numbers that are made to fit: a key of NaN stays one for all queries.
#[test]
fn a_key_of_nan_is_nan_to_every_query() {
    let [queries, keys, d] = [140, 200, 40];
    let mut g = Graph::new();
    let mut half = |name: &str, rows: usize| {
        let x = g.input(name, TensorType::f32([1, rows, d]));
        g.apply(Cast(DType::Bf16), &[x]).unwrap()
    };
    let inputs = [half("q", queries), half("k", keys), half("v", keys)];
    let y = g.apply_all(op([1, queries, keys, 1, d, d]), &inputs).unwrap()[0];
    let y = g.apply(Cast(DType::F32), &[y]).unwrap();
    g.output("y", y);
    let finite = [("q", queries), ("k", keys), ("v", keys)].map(|(n, rows)| (n.to_string(), noise(rows * d, 1)));
    for (device, got) in run_on_gpus("finite keys", &g, &finite) {
        assert!(got["y"].iter().all(|v| v.is_finite()), "{device}");
    }
    for key in [7, 100, 199] {
        let mut data = finite.clone();
        data[1].1[key * d] = f64::NAN;
        for (device, got) in run_on_gpus("a key of NaN", &g, &data) {
            assert!(got["y"].iter().all(|v| v.is_nan()), "key {key} on {device}");
        }
    }
}

/// softmax(−|scale| · q kᵀ) is that of −q.
#[test]
fn negative_scales() {
    let s = [1, 20, 40, 2, 16, 16];
    let turned = |i: &[Tensor]| reference(s, &[i[0].map(|v| -v), i[1].clone(), i[2].clone()]);
    let op = Attention { scale: -op(s).scale, ..op(s) };
    Case::new("a negative scale", op, inputs(s, 4.0), turned).check();
    // Many queries.
    let s = [1, 130, 40, 2, 64, 64];
    let turned = |i: &[Tensor]| reference(s, &[i[0].map(|v| -v), i[1].clone(), i[2].clone()]);
    let op = Attention { heads: s[3], scale: -self::op(s).scale };
    Case::new("a negative scale", op, inputs(s, 4.0), turned).forward_only().check();
}

#[test]
fn extreme_scores_stay_finite() {
    let s = [1, 20, 300, 1, 4, 4];
    let mut inputs = inputs(s, 1e4);
    inputs[1].data[..4].fill(1e3);
    let mut case = Case::new("extreme", op(s), inputs, |i| reference(s, i)).forward_only();
    case.bound = 1e-3;
    case.check();
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let s = [1, 200, 300, 2, 40, 40];
    let mut g = Graph::new();
    let mut data = Vec::new();
    let values: Vec<_> = grad_inputs(s, 3.0)
        .into_iter()
        .enumerate()
        .map(|(i, input)| {
            data.push((format!("in{i}"), input.data));
            g.input(format!("in{i}"), input.ty)
        })
        .collect();
    let forward = g.apply_all(op(s), &values[..3]).unwrap();
    let backward = g.apply_all(AttentionGrad(op(s)), &values).unwrap();
    forward.into_iter().chain(backward).enumerate().for_each(|(i, v)| g.output(format!("out{i}"), v));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run_graph(&g, &data))
    };
    let one = run(1);
    for threads in [2, 5] {
        assert!(run(threads) == one, "{threads} threads");
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let mut g = Graph::new();
    let mut input = |shape: &[usize]| g.input("x", TensorType::f32(shape));
    let (q, k, v) = (input(&[2, 3, 8]), input(&[2, 5, 8]), input(&[2, 5, 12]));
    let (other, empty) = (input(&[3, 5, 8]), input(&[2, 0, 8]));
    let op = |heads| Attention { heads, scale: 1.0 };
    assert!(g.apply(op(4), &[q, k, v]).is_ok());
    assert!(g.apply(op(0), &[q, k, v]).is_err());
    assert!(g.apply(op(8), &[q, k, v]).is_err());
    assert!(g.apply(op(4), &[q, other, v]).is_err());
    assert!(g.apply(op(4), &[q, other, other]).is_err());
    assert!(g.apply(op(4), &[q, empty, empty]).is_err());
    assert!(g.apply(op(4), &[q, k]).is_err());
}
