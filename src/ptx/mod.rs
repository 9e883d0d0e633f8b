//! A machine that executes PTX on the CPU, to find bugs in kernels and what makes them slow, without a GPU.
//!
//! [`Module::parse`] reads PTX text, [`Entry::launch`](module::Entry::launch) runs a kernel of it over [`Memory`], block by block
//! and warp by warp, with the lanes of a warp in step: where they part at a branch they meet again at its immediate
//! post-dominator. It stops with a [`Fault`] at the first access out of bounds, read of what nothing wrote, race in shared
//! memory or divergent barrier, and else returns [`Counters`].
//!
//! It knows nothing of langevin's graphs and devices. `docs/architecture.md` says what it does not do.

pub mod check;
pub mod count;
mod flow;
mod instr;
mod lex;
pub mod machine;
pub mod memory;
pub mod module;
mod parse;
pub mod tensor;

pub use check::{Failure, Fault, FaultKind};
pub use count::Counters;
pub use machine::Launch;
pub use memory::{Memory, Window};
pub use module::{Entry, Module, ParseError};
pub use tensor::TensorMap;
