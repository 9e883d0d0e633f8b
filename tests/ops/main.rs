//! Every op on every device against an f64 reference, and its gradient, mid-graph, against f64 finite differences.

mod harness;

mod activation;
mod concat;
mod conv2d;
mod elementwise;
mod embedding;
mod guidance_rescale;
mod linear;
mod lora;
mod loss;
mod matmul;
mod optimizer;
mod permute;
mod random;
mod resample;
mod timestep;
