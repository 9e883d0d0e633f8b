use crate::harness::{Case, Tensor, f32s, i32s, run_graph};
use langevin::graph::Graph;
use langevin::ops::{Argmax, Embedding, EmbeddingGrad, Gather};
use langevin::tensor::TensorType;

fn rows(x: &Tensor, index: &Tensor, c: usize) -> Vec<f64> {
    index.data.iter().flat_map(|i| x.data[*i as usize * c..(*i as usize + 1) * c].to_vec()).collect()
}

#[test]
fn embedding() {
    for (v, c, index) in [(5, 3, vec![4, 0, 4, 2]), (1, 1, vec![0]), (7, 17, vec![6, 6, 6, 1, 0])] {
        let inputs = vec![f32s(&[v, c], 1), i32s(&[index.len()], &index)];
        Case::new(format!("embedding {v}x{c}"), Embedding, inputs, |i| {
            vec![Tensor::new([index.len(), c], rows(&i[0], &i[1], c))]
        })
        .check();
    }
    let index: Vec<i32> = (0..300).map(|i| i * 7 % 53).collect();
    Case::new("large embedding", Embedding, vec![f32s(&[53, 100], 1), i32s(&[300], &index)], |i| {
        vec![Tensor::new([300, 100], rows(&i[0], &i[1], 100))]
    })
    .forward_only()
    .check();
    Case::new("large gradient", EmbeddingGrad { rows: 54 }, vec![f32s(&[300, 100], 1), i32s(&[300], &index)], |i| {
        let mut y = Tensor::zeros([54, 100]);
        for k in 0..300 * 100 {
            y.data[index[k / 100] as usize * 100 + k % 100] += i[0].data[k];
        }
        vec![y]
    })
    .forward_only()
    .check();
}

#[test]
fn an_index_out_of_range_gives_nan_and_nothing_worse() {
    let mut g = Graph::new();
    let table = g.input("table", TensorType::f32([2, 3]));
    let index = g.input("index", TensorType::i32([4]));
    let x = g.input("x", TensorType::f32([4, 2, 3]));
    let y = g.apply(Embedding, &[table, index]).unwrap();
    let z = g.apply(Gather, &[x, index]).unwrap();
    let d = g.apply(EmbeddingGrad { rows: 2 }, &[y, index]).unwrap();
    for (name, v) in [("y", y), ("z", z), ("d", d)] {
        g.output(name, v);
    }
    let data = [("table", vec![1.0; 6]), ("index", vec![0.0, 2.0, -1.0, 1.0]), ("x", vec![2.0; 24])];
    let got = run_graph(&g, &data.map(|(n, d)| (n.to_string(), d)));
    for name in ["y", "z"] {
        let nan: Vec<bool> = got[name].chunks(3).map(|r| r.iter().all(|v| v.is_nan())).collect();
        assert_eq!(nan, [false, true, true, false], "{name}");
    }
    assert!(got["d"].iter().all(|v| *v == 1.0));
}

#[test]
fn gather() {
    for (shape, index) in [(vec![3, 4, 5], vec![3, 0, 2]), (vec![2, 3], vec![1, 1]), (vec![1, 1, 2, 2], vec![0])] {
        let inner: usize = shape[2..].iter().product();
        let inputs = vec![f32s(&shape, 1), i32s(&[shape[0]], &index)];
        Case::new(format!("gather {shape:?}"), Gather, inputs, |i| {
            let at = |b: usize| (b * shape[1] + index[b] as usize) * inner;
            let data = (0..shape[0]).flat_map(|b| i[0].data[at(b)..at(b) + inner].to_vec()).collect();
            vec![Tensor::new([&shape[..1], &shape[2..]].concat(), data)]
        })
        .check();
    }
}

#[test]
fn argmax() {
    for (shape, n) in [(vec![5, 7], 7), (vec![9], 9), (vec![2, 3, 1], 1), (vec![40, 1000], 1000), (vec![2, 9001], 9001)]
    {
        // Steps of a quarter: there are ties, and the first one counts.
        let x = f32s(&shape, 1).map(|v| (v * 4.0).round() / 4.0 - 3.0);
        Case::new(format!("argmax {shape:?}"), Argmax, vec![x], |i| {
            let first = |r: &[f64]| (0..n).fold(0, |best, k| if r[k] > r[best] { k } else { best }) as f64;
            vec![Tensor::new(&shape[..shape.len() - 1], i[0].data.chunks(n).map(first).collect())]
        })
        .forward_only()
        .check();
    }
}
