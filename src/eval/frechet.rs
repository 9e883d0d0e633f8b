//! The Fréchet distance of two normal distributions.

use super::Features;
use crate::{Error, Result};
use nalgebra::{DMatrix, DVector};

/// Rows whose scatter is summed at a time: enough for a matrix product to be worth it.
const BLOCK: usize = 512;

/// Mean and covariance (over n − 1) of a set's features.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    pub n: usize,
    /// `[dim]`
    pub mean: Vec<f64>,
    /// `[dim, dim]`
    pub covariance: Vec<f64>,
}

impl Moments {
    /// Of all images.
    pub fn of(features: &Features) -> Result<Moments> {
        let all: Vec<usize> = (0..features.n()).collect();
        Moments::of_rows(features, &all)
    }

    /// Of these images, with repetitions. One pass: blocks are centred by themselves and merged with what came before (Chan,
    /// Golub & LeVeque 1983), so that a mean far from zero costs no digits.
    pub fn of_rows(features: &Features, rows: &[usize]) -> Result<Moments> {
        if rows.len() < 2 {
            let reason = format!("a covariance needs more than one image, there is {}", rows.len());
            return Err(Error::invalid("images", reason));
        }
        let dim = features.dim();
        let (mut n, mut mean, mut scatter) = (0.0, DVector::zeros(dim), DMatrix::zeros(dim, dim));
        for rows in rows.chunks(BLOCK) {
            let column = |r: usize, i: usize| features.row(rows[i])[r] as f64;
            let mut block = DMatrix::from_fn(dim, rows.len(), column);
            let centre = block.column_mean();
            block.column_iter_mut().for_each(|mut c| c -= &centre);
            scatter.gemm(1.0, &block, &block.transpose(), 1.0);
            let (m, delta) = (rows.len() as f64, centre - &mean);
            scatter.ger(n * m / (n + m), &delta, &delta, 1.0);
            mean.axpy(m / (n + m), &delta, 1.0);
            n += m;
        }
        scatter /= n - 1.0;
        Ok(Moments { n: rows.len(), mean: mean.data.into(), covariance: scatter.data.into() })
    }

    /// Numbers of an image.
    pub fn dim(&self) -> usize {
        self.mean.len()
    }

    /// True if there are too few images for a covariance of full rank: its distances say little.
    pub fn is_singular(&self) -> bool {
        self.n < self.dim() + 1
    }

    fn matrix(&self) -> DMatrix<f64> {
        DMatrix::from_row_slice(self.dim(), self.dim(), &self.covariance)
    }
}

/// d² = ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 √(Σ₁Σ₂))   (Dowson & Landau 1982; Heusel et al. 2017), one side fixed.
///
/// With Σ₁ = A·Aᵀ the product Σ₁Σ₂ has the eigenvalues of the symmetric AᵀΣ₂A; its root's trace is the sum of their roots. A is
/// the Cholesky factor, or √Σ₁ by its eigenvectors where Σ₁ is singular.
#[derive(Clone, Debug)]
pub struct Frechet {
    mean: DVector<f64>,
    trace: f64,
    factor: DMatrix<f64>,
}

impl Frechet {
    /// Distances to this set.
    pub fn new(reference: &Moments) -> Frechet {
        let covariance = reference.matrix();
        let trace = covariance.trace();
        let factor = match covariance.clone().cholesky() {
            Some(cholesky) => cholesky.l(),
            None => {
                let eigen = covariance.symmetric_eigen();
                let roots = eigen.eigenvalues.map(|v| v.max(0.0).sqrt());
                eigen.eigenvectors * DMatrix::from_diagonal(&roots)
            }
        };
        Frechet { mean: DVector::from_column_slice(&reference.mean), trace, factor }
    }

    /// The (squared) distance of another set, never below 0.
    pub fn distance(&self, other: &Moments) -> Result<f64> {
        if other.dim() != self.mean.len() {
            let reason = format!("one set has {} numbers an image, the other {}", self.mean.len(), other.dim());
            return Err(Error::shape("features", reason));
        }
        let covariance = other.matrix();
        let means = (DVector::from_column_slice(&other.mean) - &self.mean).norm_squared();
        let product = self.factor.transpose() * &covariance * &self.factor;
        // The eigenvalues are those of the lower triangle; rounding makes the upper one differ.
        let roots: f64 = product.symmetric_eigenvalues().iter().map(|v| v.max(0.0).sqrt()).sum();
        Ok((means + self.trace + covariance.trace() - 2.0 * roots).max(0.0))
    }
}
