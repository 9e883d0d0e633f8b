use crate::harness::{Case, Tensor, f32s, noise, relative, run_graph};
use langevin::graph::Graph;
use langevin::ops::{Linear, ScaleBy, lora};
use langevin::tensor::TensorType;

#[test]
fn scale_by() {
    for shape in [vec![1, 1], vec![3, 17], vec![5, 5000]] {
        let case = Case::new(format!("scale_by {shape:?}"), ScaleBy, vec![f32s(&shape, 1), f32s(&[1], 4)], |i| {
            vec![i[0].map(|v| v * i[1].data[0])]
        });
        if shape[1] > 100 { case.forward_only().check() } else { case.check() }
    }
}

#[test]
fn low_rank_branch() {
    let (m, k, r, n) = (6, 20, 3, 17);
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([2, 3, k]));
    let down = g.input("down", TensorType::panels([k, r]));
    let up = g.input("up", TensorType::panels([r, n]));
    let scale = g.input("scale", TensorType::f32([1]));
    let base = g.input("base", TensorType::f32([2, 3, n]));
    let narrow = g.apply(Linear::default(), &[x, down]).unwrap();
    let y = lora(&mut g, narrow, up, scale, base).unwrap();
    g.output("y", y);
    let sizes = [("x", m * k), ("down", k * r), ("up", r * n), ("scale", 1), ("base", m * n)];
    let data: Vec<(String, Vec<f64>)> =
        sizes.iter().enumerate().map(|(i, (name, len))| (name.to_string(), noise(*len, i as u64))).collect();
    let [x, down, up, scale, base] = [0, 1, 2, 3, 4].map(|i| &data[i].1);
    let product = |a: &[f64], b: &[f64], k: usize, n: usize| -> Vec<f64> {
        (0..a.len() / k * n).map(|i| (0..k).map(|l| a[i / n * k + l] * b[l * n + i % n]).sum()).collect()
    };
    let branch = product(&product(x, down, k, r), up, r, n);
    let expected = Tensor::new([m, n], branch.iter().zip(base).map(|(b, y)| y + scale[0] * b).collect());
    assert!(relative(&run_graph(&g, &data)["y"], &expected.data) < 1e-6);
}
