use crate::harness::{Case, Tensor, f32s};
use langevin::ops::Permute;

fn permute(x: &Tensor, axes: &[usize]) -> Tensor {
    let mut y = Tensor::zeros(axes.iter().map(|a| x.shape[*a]).collect::<Vec<_>>());
    let mut to = vec![0; axes.len()];
    for k in 0..y.data.len() {
        let mut rest = k;
        for i in (0..axes.len()).rev() {
            to[i] = rest % y.shape[i];
            rest /= y.shape[i];
        }
        let mut from = vec![0; axes.len()];
        axes.iter().zip(&to).for_each(|(a, i)| from[*a] = *i);
        y.data[k] = x.at(&from);
    }
    y
}

fn orders(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![vec![]];
    }
    let mut all = Vec::new();
    for shorter in orders(n - 1) {
        for at in 0..n {
            let mut order = shorter.clone();
            order.insert(at, n - 1);
            all.push(order);
        }
    }
    all
}

#[test]
fn every_order() {
    for shape in [vec![3], vec![2, 5], vec![1, 1], vec![2, 3, 4], vec![2, 3, 1, 5], vec![2, 17, 3, 18]] {
        let large = shape.iter().product::<usize>() > 200;
        for axes in orders(shape.len()) {
            let case =
                Case::new(format!("permute {shape:?} {axes:?}"), Permute(axes.clone()), vec![f32s(&shape, 1)], |i| {
                    vec![permute(&i[0], &axes)]
                });
            if large { case.forward_only().check() } else { case.check() }
        }
    }
}

#[test]
fn large_transposes() {
    for (shape, axes) in [
        (vec![2, 130, 131], vec![0, 2, 1]),
        (vec![2, 130, 66], vec![0, 2, 1]),
        (vec![2, 70, 3, 64], vec![2, 0, 3, 1]),
        (vec![2, 3, 400], vec![0, 2, 1]),
        (vec![2, 400, 3], vec![0, 2, 1]),
        (vec![2, 96, 3, 32], vec![0, 2, 1, 3]),
        (vec![2, 31, 33, 20], vec![0, 3, 1, 2]),
        (vec![33, 5, 4, 60], vec![3, 1, 0, 2]),
        (vec![5, 40, 3, 70], vec![2, 3, 0, 1]),
    ] {
        Case::new(format!("permute {shape:?} {axes:?}"), Permute(axes.clone()), vec![f32s(&shape, 1)], |i| {
            vec![permute(&i[0], &axes)]
        })
        .forward_only()
        .check();
    }
}
