//! Every op on every device against an f64 reference, and its gradient, mid-graph, against f64 finite differences.

mod harness;

mod activation;
mod conv2d;
mod elementwise;
mod linear;
