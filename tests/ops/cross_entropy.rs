use crate::harness::{Case, Tensor, f32s, i32s, run_graph};
use langevin::graph::Graph;
use langevin::ops::CrossEntropy;
use langevin::passes::autodiff::{Recompute, gradients};
use langevin::tensor::TensorType;

fn reference(i: &[Tensor]) -> Tensor {
    let [b, c] = i[0].shape[..] else { panic!() };
    let loss = |s: usize| {
        let row = &i[0].data[s * c..(s + 1) * c];
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        largest + row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln() - row[i[1].data[s] as usize]
    };
    Tensor::new([b], (0..b).map(loss).collect())
}

#[test]
fn cross_entropy_and_its_gradient() {
    for (b, c, spread) in [(1, 1, 1.0), (3, 2, 5.0), (7, 10, 1.0), (5, 10, 40.0), (2, 1000, 3.0), (2, 5001, 3.0)] {
        let labels: Vec<i32> = (0..b).map(|i| (i * 7 % c) as i32).collect();
        let inputs = vec![f32s(&[b, c], 1).map(|x| x * spread), i32s(&[b], &labels)];
        Case::new(format!("{b}x{c} spread {spread}"), CrossEntropy, inputs, |i| vec![reference(i)]).check();
    }
    let labels: Vec<i32> = (0..3000).map(|i| i * 7 % 10).collect();
    let inputs = vec![f32s(&[3000, 10], 1), i32s(&[3000], &labels)];
    Case::new("many", CrossEntropy, inputs, |i| vec![reference(i)]).forward_only().check();
}

#[test]
fn large_logits_do_not_overflow_and_a_wrong_label_gives_nan() {
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([4, 2]));
    let labels = g.input("labels", TensorType::i32([4]));
    let dy = g.input("dy", TensorType::f32([4]));
    let y = g.apply(CrossEntropy, &[x, labels]).unwrap();
    let dx = gradients(&mut g, &[(y, dy)], &[x], Recompute::Off).unwrap()[0].unwrap();
    g.output("y", y);
    g.output("dx", dx);
    let data = [
        ("x", vec![1e30, -1e30, 1e30, -1e30, 1.0, 2.0, 1.0, 2.0]),
        ("labels", vec![0.0, 1.0, 2.0, -1.0]),
        ("dy", vec![1.0; 4]),
    ];
    let got = run_graph(&g, &data.map(|(n, d)| (n.to_string(), d)));
    assert_eq!(got["y"][..2], [0.0, 2e30f32 as f64]);
    assert!(got["y"][2].is_nan() && got["y"][3].is_nan());
    assert_eq!(got["dx"][..4], [0.0, 0.0, 1.0, -1.0]);
}
