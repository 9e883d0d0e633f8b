use crate::harness::{Case, Tensor, f32s};
use langevin::ops::GuidanceRescale;

#[test]
fn guidance_rescale() {
    for shape in [vec![1, 2], vec![3, 5, 4], vec![2, 64, 65, 4]] {
        for phi in [0.0, 0.7, 1.0] {
            let n: usize = shape[1..].iter().product();
            let inputs = vec![f32s(&shape, 1).map(|v| 0.3 * v + 2.0), f32s(&shape, 2).map(|v| 3.0 * v - 1.0)];
            Case::new(format!("guidance_rescale {phi} {shape:?}"), GuidanceRescale { phi }, inputs, |i| {
                let std = |x: &[f64]| {
                    let mean = x.iter().sum::<f64>() / n as f64;
                    (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n as f64 - 1.0)).sqrt()
                };
                let factor = |s: usize| {
                    let ratio = std(&i[0].data[s * n..(s + 1) * n]) / std(&i[1].data[s * n..(s + 1) * n]);
                    phi as f64 * ratio + 1.0 - phi as f64
                };
                let data = (0..i[1].data.len()).map(|k| i[1].data[k] * factor(k / n)).collect();
                vec![Tensor::new(shape.clone(), data)]
            })
            .forward_only()
            .check();
        }
    }
    // A constant prediction has no contrast to restore.
    let inputs = vec![f32s(&[2, 8], 1), f32s(&[2, 8], 2).map(|_| 0.5)];
    Case::new("constant", GuidanceRescale { phi: 0.7 }, inputs, |i| vec![i[1].clone()]).forward_only().check();
}
