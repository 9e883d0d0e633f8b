//! The form of the inception score, over any classifier.

use super::Features;

/// Parts that a set is cut into, as is usual; the score is the mean over them.
pub const SPLITS: usize = 10;

/// What a classifier thinks of each image.
#[derive(Clone, Debug)]
pub struct ClassProbabilities {
    /// p(y|x) `[n, classes]`
    probabilities: Vec<f64>,
    /// Σ_y p(y|x) ln p(y|x) of each image.
    negative_entropy: Vec<f64>,
    classes: usize,
}

impl ClassProbabilities {
    /// From logits.
    pub fn new(logits: &Features) -> ClassProbabilities {
        let classes = logits.dim();
        let mut probabilities = Vec::with_capacity(logits.data().len());
        let mut negative_entropy = Vec::with_capacity(logits.n());
        for row in logits.data().chunks_exact(classes) {
            let largest = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b)) as f64;
            let log_sum = row.iter().map(|v| (*v as f64 - largest).exp()).sum::<f64>().ln() + largest;
            let log_p = row.iter().map(|v| *v as f64 - log_sum);
            negative_entropy.push(log_p.clone().map(|l| l * l.exp()).sum());
            probabilities.extend(log_p.map(f64::exp));
        }
        ClassProbabilities { probabilities, negative_entropy, classes }
    }

    /// Images.
    pub fn n(&self) -> usize {
        self.negative_entropy.len()
    }

    /// exp(E KL(p(y|x) ‖ p(y)))   (Salimans et al. 2016), the mean over `splits` parts of these images; from 1 to the number of
    /// classes. With few images in a part the score is too low.
    pub fn score(&self, rows: &[usize], splits: usize) -> f64 {
        let parts = splits.clamp(1, rows.len().max(1));
        let part = |i: usize| &rows[i * rows.len() / parts..(i + 1) * rows.len() / parts];
        (0..parts).map(|i| self.part_score(part(i))).sum::<f64>() / parts as f64
    }

    fn part_score(&self, rows: &[usize]) -> f64 {
        let mut marginal = vec![0.0; self.classes];
        for i in rows {
            let p = &self.probabilities[i * self.classes..(i + 1) * self.classes];
            marginal.iter_mut().zip(p).for_each(|(m, p)| *m += p / rows.len() as f64);
        }
        let conditional = rows.iter().map(|i| self.negative_entropy[*i]).sum::<f64>() / rows.len() as f64;
        let marginal: f64 = marginal.iter().filter(|m| **m > 0.0).map(|m| m * m.ln()).sum();
        (conditional - marginal).exp()
    }

    /// The most probable class of each image.
    pub fn predictions(&self) -> Vec<u32> {
        let best = |row: &[f64]| {
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            row.iter().position(|p| *p == largest).unwrap_or(0) as u32
        };
        self.probabilities.chunks_exact(self.classes).map(best).collect()
    }

    /// Classes.
    pub fn classes(&self) -> usize {
        self.classes
    }
}
