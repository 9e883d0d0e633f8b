//! Every op on every device against an f64 reference, and its gradient, mid-graph, against f64 finite differences.

mod harness;

mod activation;
mod attention;
mod conv2d;
mod elementwise;
mod gate;
mod geglu;
mod group_norm;
mod layer_norm;
mod linear;
mod precondition;
mod rms_norm;
