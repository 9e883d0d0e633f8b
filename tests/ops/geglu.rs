use crate::activation::reference as act;
use crate::harness::{Case, Tensor, f32s};
use langevin::graph::Graph;
use langevin::ops::{Activation, Geglu};
use langevin::tensor::TensorType;

fn reference(i: &[Tensor]) -> Vec<Tensor> {
    let mut shape = i[0].shape.clone();
    let d = shape[shape.len() - 1] / 2;
    *shape.last_mut().unwrap() = d;
    let rows = i[0].data.chunks_exact(2 * d);
    vec![Tensor::new(shape, rows.flat_map(|r| (0..d).map(|k| r[k] * act(Activation::Gelu, r[d + k]))).collect())]
}

#[test]
fn geglu() {
    for shape in [vec![2], vec![3, 10], vec![2, 2, 34], vec![1, 32]] {
        Case::new(format!("geglu {shape:?}"), Geglu, vec![f32s(&shape, 1).map(|v| 3.0 * v)], reference).check();
    }
    Case::new("large geglu", Geglu, vec![f32s(&[2, 100, 250], 1).map(|v| 5.0 * v)], reference).forward_only().check();
}

#[test]
fn an_odd_width_is_refused() {
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([2, 5]));
    assert!(g.apply(Geglu, &[x]).is_err());
}
