use crate::harness::{Case, Tensor, f32s};
use langevin::ops::{Loss, LossKind};

fn loss(kind: LossKind, i: &[Tensor]) -> Tensor {
    let (b, n) = (i[0].shape[0], i[0].data.len() / i[0].shape[0]);
    let each = (0..b).map(|s| {
        let square: f64 = (s * n..(s + 1) * n).map(|k| (i[0].data[k] - i[1].data[k]).powi(2)).sum();
        i[2].data[s]
            * match kind {
                LossKind::Mse => square / n as f64,
                LossKind::L2 => square.sqrt(),
                LossKind::PseudoHuber { c } => (square + (c as f64).powi(2)).sqrt() - c as f64,
            }
    });
    Tensor::new([b], each.collect())
}

const KINDS: [LossKind; 4] =
    [LossKind::Mse, LossKind::L2, LossKind::PseudoHuber { c: 0.03 }, LossKind::PseudoHuber { c: 3.0 }];

#[test]
fn losses_and_all_their_gradients() {
    for kind in KINDS {
        for shape in [vec![1, 1], vec![3, 5], vec![2, 3, 4, 5], vec![4, 17]] {
            let inputs = vec![f32s(&shape, 1), f32s(&shape, 2), f32s(&shape[..1], 3)];
            Case::new(format!("{kind:?} {shape:?}"), Loss { kind }, inputs, |i| vec![loss(kind, i)]).check();
        }
        let shape = [3, 70, 71, 3];
        let inputs = vec![f32s(&shape, 1), f32s(&shape, 2), f32s(&[3], 3)];
        Case::new(format!("large {kind:?}"), Loss { kind }, inputs, |i| vec![loss(kind, i)]).forward_only().check();
    }
}

#[test]
fn no_difference_has_no_gradient() {
    use crate::harness::run_graph;
    use langevin::graph::Graph;
    use langevin::passes::autodiff::{Recompute, gradients};
    use langevin::tensor::TensorType;
    for kind in KINDS {
        let mut g = Graph::new();
        let p = g.input("p", TensorType::f32([2, 3]));
        let t = g.input("t", TensorType::f32([2, 3]));
        let w = g.input("w", TensorType::f32([2]));
        let y = g.apply(Loss { kind }, &[p, t, w]).unwrap();
        let d = gradients(&mut g, &[(y, w)], &[p, t], Recompute::Off).unwrap();
        g.output("y", y);
        g.output("p'", d[0].unwrap());
        g.output("t'", d[1].unwrap());
        let data = [("p", vec![0.5; 6]), ("t", vec![0.5; 6]), ("w", vec![2.0; 2])];
        let got = run_graph(&g, &data.map(|(n, d)| (n.to_string(), d)));
        assert!(got.values().flatten().all(|v| *v == 0.0), "{kind:?} {got:?}");
    }
}
