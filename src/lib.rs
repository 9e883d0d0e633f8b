//! langevin: a diffusion engine whose kernels are its own.

pub mod diffusion;
pub mod error;

pub use error::{Error, Result};
