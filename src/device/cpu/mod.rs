//! The CPU device: Rust kernels, SIMD by run-time detection, threads from rayon.

pub mod gemm;
pub mod philox;
pub mod simd;
pub mod threads;

/// What this processor offers, in words.
pub fn describe() -> String {
    format!("{} threads, {}", rayon::current_num_threads(), simd::level().describe())
}
