//! Weights on disk: safetensors files and model folders in the diffusers layout, read through a memory map and written
//! atomically. Tensors keep the order of dimensions that the file has (NCHW, OIHW); transposing is the loader's
//! business.

mod convert;
mod folder;
mod header;
mod lora;
mod write;

pub use folder::{ShardIndex, Weights};
pub(crate) use header::shown;
pub use header::{Header, TensorInfo};
pub use lora::{LoraFile, LoraPair, LoraSpec, write_lora};
pub use safetensors::Dtype;
pub use write::{TensorSpec, WriteOptions, Writer, write};

use crate::{Error, Result};

/// The type of saved weights that a word names: `f32`, `f16` or `bf16`.
///
/// # Errors
/// [`Error::Invalid`] for any other word.
pub fn weight_type(name: &str) -> Result<Dtype> {
    match name {
        "f32" => Ok(Dtype::F32),
        "f16" => Ok(Dtype::F16),
        "bf16" => Ok(Dtype::BF16),
        other => Err(Error::invalid("save_dtype", format!("`{other}` is none of f32, f16, bf16"))),
    }
}

/// Longest JSON header or index that is read; the safetensors format sets the same bound for headers.
pub(crate) const MAX_HEADER_BYTES: usize = 100_000_000;
