//! Passes over graphs: reverse mode, recomputation, simplification and fusion, verification, storage in f16, layers joined, weights transposed before, memory planning.

pub mod autodiff;
pub mod fuse;
pub mod hoist;
pub mod invariant;
pub mod join;
pub mod once;
pub mod plan;
pub mod recompute;
pub mod storage;
pub mod turned;
pub mod verify;
