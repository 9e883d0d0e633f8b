//! Resizing of images and tables in f64, as PyTorch's `interpolate` with `align_corners=False` does it.

/// How pixels between pixels are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filter {
    /// Two pixels a side, whatever the factor.
    Bilinear,
    /// Four pixels a side, whatever the factor: the cubic of Keys (1981) with a = −3/4.
    Bicubic,
    /// The cubic with a = −1/2, widened by the factor where an image shrinks, so that every pixel counts.
    BicubicAntialias,
}

impl Filter {
    /// The weight of a pixel at distance t.
    fn weight(self, t: f64) -> f64 {
        match self {
            Filter::Bilinear => (1.0 - t.abs()).max(0.0),
            Filter::Bicubic => cubic(t.abs(), -0.75),
            Filter::BicubicAntialias => cubic(t.abs(), -0.5),
        }
    }

    /// Pixels with a weight on either side.
    fn radius(self) -> usize {
        if self == Filter::Bilinear { 1 } else { 2 }
    }

    /// The pixels of a line of n that output `o` of m is made of, with their weights.
    fn taps(self, o: usize, n: usize, m: usize) -> Vec<(usize, f64)> {
        let factor = n as f64 / m as f64;
        let center = (o as f64 + 0.5) * factor;
        if self == Filter::BicubicAntialias {
            let widening = factor.max(1.0);
            let reach = self.radius() as f64 * widening;
            let (first, end) = ((center - reach + 0.5).max(0.0) as usize, ((center + reach + 0.5) as usize).min(n));
            let weight = |i: usize| self.weight((i as f64 + 0.5 - center) / widening);
            let sum: f64 = (first..end).map(weight).sum();
            return (first..end).map(|i| (i, weight(i) / sum)).collect();
        }
        // Pixels outside of the line are those at its ends.
        let at = center - 0.5;
        let first = at.floor() as isize + 1 - self.radius() as isize;
        let inside = |i: isize| i.clamp(0, n as isize - 1) as usize;
        (first..first + 2 * self.radius() as isize).map(|i| (inside(i), self.weight(i as f64 - at))).collect()
    }
}

/// Keys' cubic at t ≥ 0.
fn cubic(t: f64, a: f64) -> f64 {
    if t < 1.0 {
        ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0
    } else if t < 2.0 {
        ((t - 5.0) * t + 8.0) * t * a - 4.0 * a
    } else {
        0.0
    }
}

/// A resizing of images from one size to another.
#[derive(Clone, PartialEq, Debug)]
pub struct Resize {
    from: [usize; 2],
    /// For every line, and every column, of the output.
    rows: Vec<Vec<(usize, f64)>>,
    cols: Vec<Vec<(usize, f64)>>,
}

impl Resize {
    /// From (height, width) to (height, width), all at least 1.
    pub fn new(from: [usize; 2], to: [usize; 2], filter: Filter) -> Self {
        let taps = |axis: usize| (0..to[axis]).map(|o| filter.taps(o, from[axis], to[axis])).collect();
        Resize { from, rows: taps(0), cols: taps(1) }
    }

    /// Resizes one image `[height, width, channels]`.
    pub fn apply<T: Copy + Into<f64>>(&self, image: &[T], channels: usize) -> Vec<f64> {
        let line = self.from[1] * channels;
        let mut mixed = vec![0.0; line];
        let mut out = Vec::with_capacity(self.rows.len() * self.cols.len() * channels);
        for taps in &self.rows {
            mixed.fill(0.0);
            for (row, weight) in taps {
                for (sum, v) in mixed.iter_mut().zip(&image[row * line..][..line]) {
                    *sum += weight * (*v).into();
                }
            }
            for taps in &self.cols {
                let sum = |c: usize| taps.iter().map(|(col, weight)| weight * mixed[col * channels + c]).sum::<f64>();
                out.extend((0..channels).map(sum));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Filter; 3] = [Filter::Bilinear, Filter::Bicubic, Filter::BicubicAntialias];

    #[test]
    fn the_same_size_is_the_same_image_and_weights_sum_to_one() {
        let image: Vec<u8> = (0..5 * 4 * 3).map(|i| (i * 37 % 256) as u8).collect();
        for filter in ALL {
            let same = Resize::new([5, 4], [5, 4], filter).apply(&image, 3);
            assert!(same.iter().zip(&image).all(|(a, b)| (a - f64::from(*b)).abs() < 1e-12), "{filter:?}");
            for (n, m) in [(1, 7), (7, 1), (5, 13), (13, 5), (32, 299), (500, 224)] {
                for o in 0..m {
                    let taps = filter.taps(o, n, m);
                    let sum: f64 = taps.iter().map(|t| t.1).sum();
                    assert!((sum - 1.0).abs() < 1e-12 && taps.iter().all(|t| t.0 < n), "{filter:?} {n} {m} {o}");
                }
            }
        }
    }

    /// Values of PyTorch 2.15's `interpolate` in float64.
    #[test]
    fn lines_agree_with_pytorch() {
        let line = [3.0, -1.0, 4.0, 1.0, 5.0];
        let cases = [
            (Filter::Bilinear, vec![1.666666667, 4.0, 3.666666667]),
            (Filter::Bilinear, vec![3.0, 1.25, -0.6875, 2.4375, 3.0625, 1.1875, 3.25, 5.0]),
            (Filter::Bicubic, vec![1.462962963, 4.0, 3.574074074]),
            (
                Filter::Bicubic,
                vec![
                    3.371337891,
                    0.87701416,
                    -0.90814209,
                    2.669128418,
                    3.475402832,
                    0.99798584,
                    3.038513184,
                    5.371337891,
                ],
            ),
            (Filter::BicubicAntialias, vec![1.276923077, 2.027906977, 3.4]),
            (
                Filter::BicubicAntialias,
                vec![
                    3.287822878,
                    1.169083229,
                    -0.920043945,
                    2.726196289,
                    3.418334961,
                    1.009887695,
                    3.269779655,
                    5.287822878,
                ],
            ),
        ];
        for (filter, expected) in cases {
            // The line across, and down.
            let across = Resize::new([1, 5], [1, expected.len()], filter).apply(&line, 1);
            let down = Resize::new([5, 1], [expected.len(), 1], filter).apply(&line, 1);
            for got in [across, down] {
                assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-8), "{filter:?}: {got:?}");
            }
        }
    }
}
