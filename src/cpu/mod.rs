//! What CPU kernels are made of: SIMD by run-time detection, threads from rayon, the one inner kernel of matrix products.

mod activation;
pub mod gemm;
pub mod philox;
pub mod simd;
pub mod threads;

pub use activation::Activation;

/// What this processor offers, in words.
pub fn describe() -> String {
    format!("{} threads, {}", rayon::current_num_threads(), simd::level().describe())
}
