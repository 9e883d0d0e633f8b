//! Quality of samples in numbers, over feature matrices; f64 throughout. Nothing here knows which network made the features:
//! [`crate::evaluator`] does.
//!
//! | value | function | source |
//! |---|---|---|
//! | Fréchet distance | [`Frechet`] | Heusel et al. 2017 |
//! | precision, recall | [`neighbourhood`] | Kynkäänniemi et al. 2019 |
//! | density, coverage | [`neighbourhood`] | Naeem et al. 2020 |
//! | inception score's form | [`ClassProbabilities::score`] | Salimans et al. 2016 |
//! | distance to the training set | [`nearest`] | |
//! | intervals | [`Bootstrap`], of shares [`wilson`] | Efron 1979, Wilson 1927 |

mod bootstrap;
mod frechet;
mod inception;
mod neighbours;
mod reference;
mod wilson;

pub use bootstrap::{Bootstrap, Estimate, quantile};
pub use frechet::{Frechet, Moments};
pub use inception::{ClassProbabilities, SPLITS};
pub use neighbours::{NEIGHBOURS, Neighbourhood, nearest, nearest_others, neighbourhood};
pub use reference::{Origin, Reference};
pub use wilson::wilson;

use crate::{Error, Result};

/// One row of numbers for each image of a set.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    data: Vec<f32>,
    n: usize,
    dim: usize,
}

impl Features {
    /// `data` is `[n, dim]`, row-major. Fails where it is no such matrix, or holds a NaN or an infinity; `what` names the set.
    pub fn new(what: &str, data: Vec<f32>, dim: usize) -> Result<Features> {
        if data.is_empty() || dim == 0 || !data.len().is_multiple_of(dim) {
            let reason = format!("{} numbers are not rows of {dim}", data.len());
            return Err(Error::shape(format!("features of {what}"), reason));
        }
        if let Some(at) = data.iter().position(|v| !v.is_finite()) {
            let reason = format!("the features of image {} hold {}", at / dim, data[at]);
            return Err(Error::invalid(what, reason));
        }
        Ok(Features { n: data.len() / dim, data, dim })
    }

    /// Images.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Numbers of an image.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// All numbers, row after row.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// The numbers of image `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.dim..(i + 1) * self.dim]
    }

    /// The images of these numbers, in this order.
    pub fn select(&self, rows: &[usize]) -> Features {
        let data = rows.iter().flat_map(|i| self.row(*i)).copied().collect();
        Features { data, n: rows.len(), dim: self.dim }
    }

    /// Fails unless both sets are rows of one network.
    fn expect_same_dim(&self, other: &Features) -> Result<()> {
        if self.dim == other.dim {
            return Ok(());
        }
        Err(Error::shape("features", format!("one set has {} numbers an image, the other {}", self.dim, other.dim)))
    }
}
