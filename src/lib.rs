//! langevin: a diffusion engine whose kernels are its own.

pub mod error;

pub use error::{Error, Result};
