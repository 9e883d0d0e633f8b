//! Images of a dataset that could not be used.

use std::fmt;

use crate::weights::shown;

/// Images that are remembered by name.
const NAMED: usize = 5;

/// Images that were left out of a [`Dataset`](super::Dataset). Prints as one line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// How many.
    pub count: usize,
    /// The first few of them.
    pub first: Vec<SkippedImage>,
}

/// An image that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedImage {
    /// Its name inside the zip, tar or folder.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Skipped {
    pub(super) fn add(&mut self, name: &str, reason: String) {
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push(SkippedImage { name: name.into(), reason });
        }
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} skipped", self.count)?;
        for (i, image) in self.first.iter().enumerate() {
            write!(f, "{} `{}` {}", if i == 0 { ":" } else { ";" }, shown(&image.name), image.reason)?;
        }
        if self.count > self.first.len() && !self.first.is_empty() {
            write!(f, "; …")?;
        }
        Ok(())
    }
}
