//! langevin: a diffusion engine whose kernels are its own.

pub mod device;
pub mod error;
pub mod graph;
pub mod nn;
pub mod ops;
pub mod passes;
pub mod schedule;
pub mod tensor;

pub use device::Device;
pub use error::{Error, Result};
