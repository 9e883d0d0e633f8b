//! Passes over graphs: reverse mode, simplification and fusion, verification, memory planning.

pub mod autodiff;
pub mod fuse;
pub mod plan;
pub mod verify;
