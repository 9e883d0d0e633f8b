//! The wgpu device: WGSL shaders on whatever Vulkan, Metal or DirectX 12 offers.

mod adapter;
mod arena;
mod pipelines;
mod recording;
mod stream;

pub use adapter::{Gpu, adapters};
pub use arena::Arena;
pub use recording::{Bound, Recording};
pub use stream::Stream;

/// The device's name in errors and on the command line.
const NAME: &str = "wgpu";
