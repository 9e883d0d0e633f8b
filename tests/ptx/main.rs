//! The PTX machine: each instruction against values worked out by hand, each detector with a kernel that provokes it, and
//! kernels that NVRTC 12.0 compiled (`*.cu` to `*.ptx`, `--gpu-architecture=compute_80`, `gemm_sm90` with `compute_90a`, all
//! without the variables of `nv/target`) against f64 references.

mod support;

mod barrier;
mod cluster;
mod compiled;
mod compiled_functions;
mod control;
mod copy;
mod counters;
mod float;
mod integer;
mod matrix;
mod memory;
mod mutations;
mod races;
mod refusals;
mod warp;
mod wgmma;
