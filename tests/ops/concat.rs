use crate::harness::{Case, Tensor, f32s};
use langevin::graph::Graph;
use langevin::ops::{Concat, Pad, Slice};
use langevin::tensor::TensorType;

/// (outer, size, inner) of an axis.
fn around(shape: &[usize], axis: usize) -> [usize; 3] {
    [shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product()]
}

fn concat(inputs: &[Tensor], axis: usize) -> Tensor {
    let mut shape = inputs[0].shape.clone();
    shape[axis] = inputs.iter().map(|t| t.shape[axis]).sum();
    let [outer, _, inner] = around(&shape, axis);
    let mut data = Vec::new();
    for o in 0..outer {
        for t in inputs {
            let run = t.shape[axis] * inner;
            data.extend_from_slice(&t.data[o * run..(o + 1) * run]);
        }
    }
    Tensor::new(shape, data)
}

fn part(x: &Tensor, axis: usize, start: usize, len: usize) -> Tensor {
    let [outer, n, inner] = around(&x.shape, axis);
    let mut shape = x.shape.clone();
    shape[axis] = len;
    let rows = (0..outer).flat_map(|o| x.data[(o * n + start) * inner..(o * n + start + len) * inner].to_vec());
    Tensor::new(shape, rows.collect())
}

fn zeros_around(x: &Tensor, axis: usize, before: usize, after: usize) -> Tensor {
    let zeros = |n: usize| {
        let mut shape = x.shape.clone();
        shape[axis] = n;
        Tensor::zeros(shape)
    };
    concat(&[zeros(before), x.clone(), zeros(after)], axis)
}

#[test]
fn concat_slice_and_pad() {
    for (shape, axis) in
        [(vec![2, 3, 5], 2), (vec![2, 3, 5], 1), (vec![2, 3, 5], 0), (vec![7], 0), (vec![1, 1, 1, 1], 3)]
    {
        for parts in [2, 3, 5] {
            let sizes = (0..parts).map(|i| {
                let mut s = shape.clone();
                s[axis] += i % 3;
                s
            });
            let inputs = sizes.enumerate().map(|(i, s)| f32s(&s, i as u64)).collect();
            Case::new(format!("concat {shape:?} {axis} {parts}"), Concat { axis }, inputs, |i| vec![concat(i, axis)])
                .check();
        }
        let n = shape[axis];
        for (start, end) in [(0, n), (0, n.div_ceil(2)), (n / 2, n)] {
            let op = Slice { axis, start, len: end - start };
            Case::new(format!("{shape:?} {op:?}"), op, vec![f32s(&shape, 3)], |i| {
                vec![part(&i[0], axis, start, end - start)]
            })
            .check();
        }
        for (before, after) in [(0, 0), (2, 0), (0, 3), (1, 2)] {
            let op = Pad { axis, before, after };
            Case::new(format!("{shape:?} {op:?}"), op, vec![f32s(&shape, 3)], |i| {
                vec![zeros_around(&i[0], axis, before, after)]
            })
            .check();
        }
    }
}

#[test]
fn large_concat_slice_and_pad() {
    for axis in 0..3 {
        let (a, b) = (vec![9, 50, 67], {
            let mut s = vec![9, 50, 67];
            s[axis] = 21;
            s
        });
        Case::new("large concat", Concat { axis }, vec![f32s(&a, 1), f32s(&b, 2)], |i| vec![concat(i, axis)])
            .forward_only()
            .check();
        let shape = [81, 90, 67];
        Case::new("large slice", Slice { axis, start: 5, len: 60 }, vec![f32s(&shape, 1)], |i| {
            vec![part(&i[0], axis, 5, 60)]
        })
        .forward_only()
        .check();
        Case::new("large pad", Pad { axis, before: 3, after: 14 }, vec![f32s(&a, 1)], |i| {
            vec![zeros_around(&i[0], axis, 3, 14)]
        })
        .forward_only()
        .check();
    }
}

#[test]
fn wrong_shapes_are_errors() {
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([2, 3]));
    let y = g.input("y", TensorType::f32([3, 3]));
    let i = g.input("i", TensorType::i32([2, 3]));
    assert!(g.apply(Concat { axis: 0 }, &[x, y]).is_ok());
    for (op, inputs) in [(1, vec![x, y]), (2, vec![x, x]), (0, vec![x]), (0, vec![]), (0, vec![x, i])] {
        assert!(g.apply(Concat { axis: op }, &inputs).is_err());
    }
    assert!(g.apply(Slice { axis: 1, start: 2, len: 2 }, &[x]).is_err());
    assert!(g.apply(Slice { axis: 1, start: usize::MAX, len: 2 }, &[x]).is_err());
    assert!(g.apply(Pad { axis: 2, before: 0, after: 1 }, &[x]).is_err());
}
