//! Confidence intervals of shares.

use super::Estimate;

/// The share of `hits` in `n` with its 95 % interval (Wilson 1927), which stays inside 0..1 and is sound for few hits as well.
/// Without any trial nothing is known: 1/2, from 0 to 1.
pub fn wilson(hits: usize, n: usize) -> Estimate {
    const Z: f64 = 1.959_963_984_540_054;
    if n == 0 {
        return Estimate { value: 0.5, interval: Some([0.0, 1.0]) };
    }
    let (n, share) = (n as f64, hits as f64 / n as f64);
    let shrunk = 1.0 + Z * Z / n;
    let centre = (share + Z * Z / (2.0 * n)) / shrunk;
    let half = Z / shrunk * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    Estimate { value: share, interval: Some([(centre - half).max(0.0), (centre + half).min(1.0)]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_intervals() {
        // Newcombe 1998 (Statistics in Medicine 17, table I), method 3.
        for (hits, n, low, high) in
            [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
        {
            let [a, b] = wilson(hits, n).interval.unwrap();
            assert!((a - low).abs() < 1e-4 && (b - high).abs() < 1e-4, "{hits} of {n}: {a} {b}");
        }
        assert_eq!(wilson(0, 0).interval, Some([0.0, 1.0]));
    }
}
