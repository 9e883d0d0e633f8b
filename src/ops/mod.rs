//! The ops. One op, one name; each file holds all that is true of it on every device: what it computes, shapes, gradient,
//! cost, and its CPU kernel.
//!
//! No ops, and so without kernels of their names, are what several share: how they are cut for a GPU (`chain`, `hopper`, `hopper_weight_grad`, `lanes`,
//! `lines`, `norm`, `pieces`, `pool`, `product`) and `lora`, which is products. `reshape` is a view, which takes no launch; the kernels of
//! `linear_geglu` are entries of Hopper's `product`, and elsewhere it is the launches of `linear` and `geglu`.

mod activation;
mod affine;
mod argmax;
mod attention;
mod average_pool;
mod binary;
mod broadcast;
mod cast;
mod chain;
mod combine_tokens;
mod concat;
mod conv2d;
mod cross_entropy;
mod diffusion_update;
mod dispatch_tokens;
mod dropout;
mod edm_coefficients;
mod embedding;
mod expert_linear;
mod gate;
mod gather;
mod geglu;
mod grad_norm;
mod group_by_expert;
mod group_norm;
mod guidance_rescale;
mod hopper;
mod hopper_weight_grad;
mod lanes;
mod layer_norm;
mod linear;
mod linear_geglu;
mod lines;
mod lora;
mod loss;
mod matmul;
mod max_pool;
mod norm;
mod optimizer;
mod pad;
mod permute;
mod pieces;
mod pool;
mod product;
mod random;
mod reciprocal;
mod reduce;
mod resample;
mod reshape;
mod resize_nearest;
mod rms_norm;
mod route;
mod sample_mix;
mod scale_by;
mod slice;
mod timestep_embedding;
mod timestep_mlp;
mod transpose_weight;

pub use crate::cpu::Activation;
pub use activation::{Activate, ActivateGrad};
pub use affine::Affine;
pub use argmax::Argmax;
pub use attention::{Attention, AttentionGrad};
pub use average_pool::{AveragePool, AveragePoolGrad};
pub use binary::Binary;
pub use broadcast::Broadcast;
pub use cast::Cast;
pub use combine_tokens::{CombineTokens, CombineWeightsGrad};
pub use concat::Concat;
pub use conv2d::{Conv2d, Conv2dWeightGrad, Padding};
pub use cross_entropy::{CrossEntropy, CrossEntropyGrad};
pub use diffusion_update::DiffusionUpdate;
pub use dispatch_tokens::DispatchTokens;
pub use dropout::Dropout;
pub use edm_coefficients::EdmCoefficients;
pub use embedding::{Embedding, EmbeddingGrad};
pub use expert_linear::{ExpertLinear, ExpertLinearWeightGrad};
pub use gate::{Gate, GateGrad};
pub use gather::{Gather, GatherGrad};
pub use geglu::{Geglu, GegluGrad};
pub use grad_norm::GradNorm;
pub use group_by_expert::GroupByExpert;
pub use group_norm::{GroupNorm, GroupNormGrad};
pub use guidance_rescale::GuidanceRescale;
pub use layer_norm::{LayerNorm, LayerNormGrad};
pub use linear::{Epilogue, Linear, LinearWeightGrad};
pub use linear_geglu::LinearGeglu;
pub use lora::lora;
pub use loss::{Loss, LossGrad, LossKind};
pub use matmul::BatchedMatmul;
pub use max_pool::{MaxPool, MaxPoolGrad};
pub use optimizer::{Optimizer, OptimizerKind, power_ema_decay, power_ema_gamma};
pub use pad::Pad;
pub use permute::Permute;
pub use pool::PoolWindow;
pub use random::{Random, RandomKind};
pub use reciprocal::Reciprocal;
pub use reduce::{Reduce, Reduction};
pub use resample::Resample;
pub use reshape::Reshape;
pub use resize_nearest::{ResizeNearest, ResizeNearestGrad};
pub use rms_norm::{RmsNorm, RmsNormGrad};
pub use route::{Route, RouteGrad, Routing};
pub use sample_mix::SampleMix;
pub use scale_by::ScaleBy;
pub use slice::Slice;
pub use timestep_embedding::{FourierEmbedding, TimestepEmbedding};
pub use timestep_mlp::TimestepMlp;
pub use transpose_weight::{OneOfMany, TransposeWeight, TransposeWeights};

use crate::graph::Args;
use crate::tensor::{DType, Layout, TensorType};
use crate::{Error, Result};

/// Fails unless there are `n` inputs.
pub fn expect_inputs(op: &str, inputs: &[&TensorType], n: usize) -> Result<()> {
    if inputs.len() == n { Ok(()) } else { Err(Error::shape(op, format!("takes {n} inputs, got {}", inputs.len()))) }
}

/// Fails unless `ty` is a row-major f32 tensor of that shape.
pub fn expect_shape(op: &str, what: &str, ty: &TensorType, shape: &[usize]) -> Result<()> {
    expect_typed(op, what, ty, DType::F32, shape)
}

/// Fails unless `ty` is a row-major tensor of that type and shape.
pub fn expect_typed(op: &str, what: &str, ty: &TensorType, dtype: DType, shape: &[usize]) -> Result<()> {
    if ty.shape == shape && ty.layout == Layout::Plain && ty.dtype == dtype {
        return Ok(());
    }
    Err(Error::shape(op, format!("{what} must be {dtype}{shape:?}, is {ty}")))
}

/// Fails unless `ty` is row-major f32.
pub fn expect_plain(op: &str, what: &str, ty: &TensorType) -> Result<()> {
    if ty.layout == Layout::Plain && ty.dtype == DType::F32 {
        return Ok(());
    }
    Err(Error::shape(op, format!("{what} must be row-major f32, is {ty}")))
}

/// Fails unless `ty` is row-major, f32, f16 or bf16: for ops that [take 16 bits](crate::graph::Op::takes).
pub fn expect_real(op: &str, what: &str, ty: &TensorType) -> Result<()> {
    if ty.layout == Layout::Plain && matches!(ty.dtype, DType::F32 | DType::F16 | DType::Bf16) {
        return Ok(());
    }
    Err(Error::shape(op, format!("{what} must be row-major f32, f16 or bf16, is {ty}")))
}

/// A whole elementwise CPU kernel: `out = f(inputs)` over arguments of one size, f32. Inputs are arguments `0..N`, the output
/// is argument `N`; it may be one of the inputs (in place), since every chunk of 16 is read before it is written.
pub fn elementwise<const N: usize>(args: &Args, f: impl Fn([f32; N]) -> f32 + Sync + Copy) {
    use crate::cpu::threads::{Ptr, ranges};
    let inputs: [_; N] = std::array::from_fn(|i| Ptr::from_raw(args.ptr(i).0));
    let (out, n) = args.ptr(N);
    let out = Ptr::from_raw(out);
    ranges(n, 16, |start, end| {
        map_range(inputs.map(|p| p.raw().wrapping_add(start)), out.raw().wrapping_add(start), end - start, f)
    });
}

crate::simd! {
    fn map_range[const N: usize, F: Fn([f32; N]) -> f32](inputs: [*mut f32; N], out: *mut f32, n: usize, f: F) {
        let mut i = 0;
        // Plain loops over arrays: closures handed to the standard library would not be inlined, and nothing vectorised.
        while i + 16 <= n {
            let mut x = [[0.0f32; 16]; N];
            let mut y = [0.0f32; 16];
            // SAFETY: `n` elements lie at every pointer; all 16 are read before they are written.
            unsafe {
                for k in 0..N {
                    x[k] = (inputs[k].add(i) as *const [f32; 16]).read_unaligned();
                }
                for l in 0..16 {
                    let mut v = [0.0f32; N];
                    for k in 0..N {
                        v[k] = x[k][l];
                    }
                    y[l] = f(v);
                }
                (out.add(i) as *mut [f32; 16]).write_unaligned(y);
            }
            i += 16;
        }
        while i < n {
            let mut v = [0.0f32; N];
            // SAFETY: as above.
            unsafe {
                for k in 0..N {
                    v[k] = *inputs[k].add(i);
                }
                *out.add(i) = f(v);
            }
            i += 1;
        }
    }
}
