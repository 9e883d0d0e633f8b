//! Low-rank adapters, as a composition of ops.

use super::{Epilogue, Linear, ScaleBy};
use crate::Result;
use crate::graph::{Graph, Value};

/// base + scale · narrow · up   (Hu et al. 2022)   narrow `[…, r]`, what the down-projection (linear or a convolution) gave,
/// up `[r, N]` in panels, scale `[1]`, base `[…, N]`, what the adapted layer gave. The scale is applied to the narrow middle,
/// the sum is the second product's epilogue: two small products are all that an adapter adds.
pub fn lora(g: &mut Graph, narrow: Value, up: Value, scale: Value, base: Value) -> Result<Value> {
    let narrow = g.apply(ScaleBy, &[narrow, scale])?;
    g.apply(Linear(Epilogue { residual: true, ..Epilogue::default() }), &[narrow, up, base])
}
