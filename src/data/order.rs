//! Which image is sample number s of a run.

use std::collections::BTreeMap;

use super::Dataset;
use super::shuffle::{mix, permute};
use crate::{Error, Result};

/// In which order a run sees the images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Epoch after epoch, each a permutation of all images.
    #[default]
    Plain,
    /// Rounds of one image of each class that has images, the classes in a new order each round. The images of a class
    /// come in passes, each a permutation of them: those of rare classes come more often.
    ClassBalanced,
}

impl std::str::FromStr for Order {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "plain" => Ok(Order::Plain),
            "class-balanced" => Ok(Order::ClassBalanced),
            other => Err(Error::invalid("order", format!("`{other}` is none of plain, class-balanced"))),
        }
    }
}

/// The images of a run, sample by sample: a pure function of seed and sample number. No order is stored; a class-balanced
/// sequence keeps the indices of each class, 8 bytes an image.
#[derive(Clone, Debug)]
pub struct Sequence {
    seed: u64,
    n: u64,
    /// The images of each class that has any; empty for the plain order.
    classes: Vec<Vec<usize>>,
}

impl Sequence {
    /// The sequence over a dataset, which must have images, and for [`Order::ClassBalanced`] labels.
    pub fn new(order: Order, data: &Dataset, seed: u64) -> Result<Self> {
        if data.n == 0 {
            return Err(Error::invalid("data", "holds no images"));
        }
        let classes = match (order, &data.labels) {
            (Order::Plain, _) => Vec::new(),
            (Order::ClassBalanced, Some(labels)) => by_class(labels),
            (Order::ClassBalanced, None) => {
                return Err(Error::invalid("order", "class-balanced needs labels, and the data set has none"));
            }
        };
        Ok(Sequence { seed, n: data.n as u64, classes })
    }

    /// The index of the image that is sample number `sample`.
    pub fn index(&self, sample: u64) -> usize {
        if self.classes.is_empty() {
            return permute(sample % self.n, sample / self.n, self.seed, self.n) as usize;
        }
        let count = self.classes.len() as u64;
        let round = sample / count;
        let class = permute(sample % count, round, self.seed, count);
        let images = &self.classes[class as usize];
        let n = images.len() as u64;
        // Classes of one size would otherwise all be permuted alike.
        let seed = mix(self.seed ^ mix(class + 1));
        images[permute(round % n, round / n, seed, n) as usize]
    }
}

/// The indices of the images of each class that has any.
fn by_class(labels: &[u32]) -> Vec<Vec<usize>> {
    let mut classes: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (index, label) in labels.iter().enumerate() {
        classes.entry(*label).or_default().push(index);
    }
    classes.into_values().collect()
}
