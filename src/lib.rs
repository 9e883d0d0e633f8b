//! langevin: a diffusion engine whose kernels are its own.

pub mod data;
pub mod error;
pub mod files;
pub mod image;
pub mod weights;

pub use error::{Error, Result};
