use crate::harness::{Case, Tensor, f32s};
use langevin::ops::{EdmCoefficients, Reciprocal, SampleMix};

fn mix(i: &[Tensor]) -> Vec<Tensor> {
    let mut y = Tensor::zeros(i[1].shape.clone());
    let width = y.data.len() / y.shape[0];
    for pair in i.chunks(2) {
        for (k, v) in y.data.iter_mut().enumerate() {
            *v += pair[0].data[k / width] * pair[1].data[k];
        }
    }
    vec![y]
}

#[test]
fn sample_mix() {
    for shape in [&[2, 3, 5][..], &[1, 1], &[3, 17], &[2, 20, 33, 19]] {
        let [a, x, b, z] = [f32s(&shape[..1], 1), f32s(shape, 2), f32s(&shape[..1], 3), f32s(shape, 4)];
        for (terms, inputs) in [(1, vec![a.clone(), x.clone()]), (2, vec![a, x, b, z])] {
            let case = Case::new(format!("sample_mix {terms} {shape:?}"), SampleMix { terms }, inputs, mix);
            if shape.len() == 4 { case.forward_only().check() } else { case.check() }
        }
    }
}

#[test]
fn reciprocal() {
    let x = f32s(&[3, 7], 1).map(|x| x + if x < 0.0 { -0.5 } else { 0.5 });
    Case::new("reciprocal", Reciprocal, vec![x], |i| vec![i[0].map(|x| 1.0 / x)]).check();
}

#[test]
fn edm_coefficients() {
    let sigma = f32s(&[9], 1).map(|x| (5.0 * x).exp()).fixed();
    let reference = |i: &[Tensor]| {
        let s = 0.5f64;
        let root = |x: f64| (x * x + s * s).sqrt();
        let skip = i[0].map(|x| s * s / (x * x + s * s));
        vec![skip, i[0].map(|x| x * s / root(x)), i[0].map(|x| 1.0 / root(x)), i[0].map(|x| x.ln() / 4.0)]
    };
    Case::new("edm_coefficients", EdmCoefficients { sigma_data: 0.5 }, vec![sigma], reference).forward_only().check();
}
