use crate::harness::{Case, Tensor, f32s};
use langevin::ops::Gate;

fn reference(i: &[Tensor]) -> Vec<Tensor> {
    let (x, gate, residual) = (&i[0], &i[1], &i[2]);
    let c = *x.shape.last().unwrap();
    let per_sample = x.data.len() / x.shape[0];
    let y = (0..x.data.len()).map(|k| residual.data[k] + gate.data[k / per_sample * c + k % c] * x.data[k]);
    vec![Tensor::new(x.shape.clone(), y.collect())]
}

#[test]
fn gate() {
    for shape in [vec![1, 1], vec![2, 5], vec![3, 2, 17], vec![2, 2, 2, 33], vec![1, 4, 16]] {
        let inputs = vec![f32s(&shape, 1), f32s(&[shape[0], shape[shape.len() - 1]], 2), f32s(&shape, 3)];
        Case::new(format!("gate {shape:?}"), Gate, inputs, reference).check();
    }
    for shape in [vec![2, 300, 100], vec![1, 33, 17, 96]] {
        let inputs = vec![f32s(&shape, 1), f32s(&[shape[0], shape[shape.len() - 1]], 2), f32s(&shape, 3)];
        Case::new(format!("gate {shape:?}"), Gate, inputs, reference).forward_only().check();
    }
}

#[test]
fn gate_gradient_over_several_chunks() {
    // Only the gate is differentiated: x has too many elements for differences.
    let shape = [2, 1100, 5];
    let inputs = vec![f32s(&shape, 1).fixed(), f32s(&[2, 5], 2), f32s(&shape, 3).fixed()];
    Case::new("several chunks", Gate, inputs, reference).check();
}
