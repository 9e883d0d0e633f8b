//! Every op on every device against an f64 reference, and its gradient, mid-graph, against f64 finite differences.

mod harness;
#[cfg(feature = "wgpu")]
mod wgsl;

mod activation;
mod attention;
mod cast;
mod concat;
mod conv2d;
mod cross_entropy;
mod elementwise;
mod embedding;
mod experts;
mod gate;
mod geglu;
mod group_norm;
mod guidance_rescale;
mod half_gradients;
mod layer_norm;
mod linear;
mod lora;
mod loss;
mod matmul;
mod optimizer;
mod permute;
mod pool;
mod precondition;
mod random;
mod resample;
mod rms_norm;
mod timestep;
mod views;
