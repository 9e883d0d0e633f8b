//! langevin: a diffusion engine whose kernels are its own.

pub mod bench;
pub mod cli;
pub mod cpu;
pub mod data;
pub mod device;
pub mod diffusion;
pub mod error;
pub mod files;
pub mod graph;
pub mod image;
pub mod methods;
pub mod model;
pub mod nn;
pub mod ops;
pub mod passes;
pub mod sampler;
pub mod schedule;
pub mod tensor;
pub mod trainer;
pub mod weights;

pub use device::Device;
pub use error::{Error, Result};
pub use model::Model;
