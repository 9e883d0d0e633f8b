//! Storage in 16 bits: a graph for inference whose numbers lie in memory as f16 or bf16.
//!
//! It begins at the weights. A parameter is stored so if all that read it can take it so, and what meets such a number
//! is stored so too; ops that cannot take that get f32, and what the graph gives is what it gave before. So a network's weights
//! and activations have 16 bits, and what never meets a weight stays as it was: latents, a sampler's registers, coefficients, times.

use super::verify::verify;
use crate::graph::{Graph, Node, Origin, Target, Value};
use crate::ops::Cast;
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};
use std::collections::HashMap;

/// The graph with its numbers stored as `dtype`, f16 or bf16, for `target`.
///
/// # Errors
/// [`Error::Unsupported`] if the target does not store that.
pub fn store(graph: &Graph, dtype: DType, target: &Target) -> Result<Graph> {
    if !target.stores(dtype) {
        let what = format!("{dtype} on this {} device", target.name());
        let reason = "take f32, or a device that has it (`langevin devices` lists them)";
        return Err(Error::unsupported(what, reason));
    }
    let map = vec![Value(u32::MAX); graph.values().len()];
    let mut pass = Pass { dtype, out: Graph::new(), map, casts: HashMap::new() };
    pass.copy_sources(graph, target);
    for node in graph.nodes() {
        pass.add(node, target)?;
    }
    for (name, value) in graph.outputs() {
        let value = pass.cast(pass.map[value.index()], graph.ty(*value).dtype)?;
        pass.out.output(name, value);
    }
    verify(&pass.out, "storage in f16")?;
    Ok(pass.out)
}

struct Pass {
    /// The type of 16 bits.
    dtype: DType,
    out: Graph,
    /// By value of the old graph: the new one.
    map: Vec<Value>,
    /// What was cast already, to which type: each value once.
    casts: HashMap<(Value, DType), Value>,
}

impl Pass {
    /// Declares what the graph begins with, parameters in their new types.
    fn copy_sources(&mut self, graph: &Graph, target: &Target) {
        let mut read = vec![false; graph.values().len()];
        let mut narrow = vec![true; graph.values().len()];
        for node in graph.nodes() {
            for (i, input) in node.inputs.iter().enumerate() {
                read[input.index()] = true;
                narrow[input.index()] &= node.op.takes(self.dtype, target) && !node.op.stays_f32(i);
            }
        }
        for (i, info) in graph.values().iter().enumerate() {
            let is_narrow = read[i] && narrow[i] && info.ty.dtype == DType::F32;
            self.map[i] = match &info.origin {
                Origin::Node { .. } => continue,
                Origin::Parameter(name) if is_narrow => {
                    self.out.parameter(name, TensorType { dtype: self.dtype, ..info.ty.clone() })
                }
                origin => self.out.source(info.ty.clone(), origin.clone()),
            };
        }
    }

    /// Appends a node, in 16 bits if it can take them and meets them.
    fn add(&mut self, node: &Node, target: &Target) -> Result<()> {
        let inputs: Vec<Value> = node.inputs.iter().map(|v| self.map[v.index()]).collect();
        let meets = inputs.iter().any(|v| self.out.ty(*v).dtype == self.dtype);
        let dtype = if meets && node.op.takes(self.dtype, target) { self.dtype } else { DType::F32 };
        let inputs = inputs.into_iter().enumerate().map(|(i, v)| {
            let dtype = if node.op.stays_f32(i) { DType::F32 } else { dtype };
            self.cast(v, dtype)
        });
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        let outputs = self.out.replay(node, &inputs)?;
        node.outputs.iter().zip(outputs).for_each(|(old, new)| self.map[old.index()] = new);
        Ok(())
    }

    /// A value as f32 or in 16 bits; whole numbers as they are.
    fn cast(&mut self, value: Value, dtype: DType) -> Result<Value> {
        let from = self.out.ty(value).dtype;
        if from == dtype || from == DType::I32 {
            return Ok(value);
        }
        if let Some(done) = self.casts.get(&(value, dtype)) {
            return Ok(*done);
        }
        let cast = self.out.apply(Cast(dtype), &[value])?;
        self.casts.insert((value, dtype), cast);
        Ok(cast)
    }
}
