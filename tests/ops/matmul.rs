use crate::harness::{Case, Tensor, f32s};
use langevin::ops::BatchedMatmul;

fn matmul(i: &[Tensor], op: BatchedMatmul, [batch, m, n, k]: [usize; 4]) -> Tensor {
    let mut y = Tensor::zeros([batch, m, n]);
    for b in 0..batch {
        for r in 0..m {
            for c in 0..n {
                let term = |l: usize| {
                    i[0].at(&if op.transpose_a { [b, l, r] } else { [b, r, l] })
                        * i[1].at(&if op.transpose_b { [b, c, l] } else { [b, l, c] })
                };
                *y.at_mut(&[b, r, c]) = (0..k).map(term).sum();
            }
        }
    }
    y
}

#[test]
fn batched_matmul() {
    for (transpose_a, transpose_b) in [(false, false), (false, true), (true, false), (true, true)] {
        let op = BatchedMatmul { transpose_a, transpose_b };
        for sizes in [
            [1, 1, 1, 1],
            [2, 3, 5, 4],
            [3, 7, 17, 2],
            [1, 13, 16, 6],
            [2, 72, 136, 200],
            [2, 210, 300, 270],
            [1, 400, 30, 513],
        ] {
            let [b, m, n, k] = sizes;
            let a = if transpose_a { [b, k, m] } else { [b, m, k] };
            let w = if transpose_b { [b, n, k] } else { [b, k, n] };
            let case = Case::new(format!("{op:?} {sizes:?}"), op, vec![f32s(&a, 1), f32s(&w, 2)], |i| {
                vec![matmul(i, op, sizes)]
            });
            if m * n > 1000 { case.forward_only().check() } else { case.check() }
        }
    }
}
