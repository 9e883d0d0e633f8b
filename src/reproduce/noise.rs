//! Gaussian numbers on the host.

use crate::cpu::philox;

/// The Philox stream of the numbers here.
const STREAM: u32 = 1 << 19;

/// `n` numbers of mean 0 and variance 1 by Box & Muller (1958), each a function of the seed and its place alone.
pub(super) fn normals(seed: u64, n: usize) -> Vec<f64> {
    let key = [seed as u32, (seed >> 32) as u32];
    let per_block = 4 * philox::LANES;
    let pair = |radius: u32, angle: u32| {
        let u = (f64::from(radius) + 1.0) / 2f64.powi(32);
        let (sin, cos) = (std::f64::consts::TAU * f64::from(angle) / 2f64.powi(32)).sin_cos();
        let r = (-2.0 * u.ln()).sqrt();
        [r * cos, r * sin]
    };
    let block = |b: usize| {
        let words = philox::block(key, (b * philox::LANES) as u32, [0, STREAM, 0]);
        (0..philox::LANES).flat_map(move |l| [[0, 1], [2, 3]].map(|[a, b]| pair(words[a][l], words[b][l])))
    };
    let mut numbers: Vec<f64> = (0..n.div_ceil(per_block)).flat_map(block).flatten().collect();
    numbers.truncate(n);
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_a_gaussian() {
        let numbers = normals(3, 100_000);
        let moment = |p: i32| numbers.iter().map(|x| x.powi(p)).sum::<f64>() / numbers.len() as f64;
        assert!(moment(1).abs() < 0.012 && (moment(2) - 1.0).abs() < 0.02 && (moment(4) - 3.0).abs() < 0.12);
        assert_eq!(numbers[..100], normals(3, 100), "a number does not depend on how many there are");
        assert_ne!(numbers[..100], normals(4, 100));
    }
}
