//! Storage in 16 bits: a graph whose numbers lie in memory as f16 or bf16.
//!
//! It begins at the weights. What meets a number of 16 bits is stored so too, if the op can take that; ops that cannot get f32, and
//! what the graph gives is what it gave before. So a network's activations and their gradients have 16 bits, and what never meets a
//! weight stays as it was: latents, a sampler's registers, coefficients, times, losses.

use super::verify::verify;
use crate::graph::{Graph, Node, Origin, Target, Value};
use crate::ops::Cast;
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// The graph of an inference with its numbers stored as `dtype`, f16 or bf16, for `target`: parameters too, if all that read one can
/// take it so.
///
/// # Errors
/// [`Error::Unsupported`] if the target does not store that.
pub fn store(graph: &Graph, dtype: DType, target: &Target) -> Result<Graph> {
    Pass::run(graph, dtype, target, None)
}

/// The graph of a training step with its numbers stored as `dtype`. Parameters and their gradients stay f32, for the optimiser; what
/// reads a parameter gets a copy of it in 16 bits, made once a step.   (Micikevicius et al. 2018, "Mixed precision training")
///
/// # Errors
/// [`Error::Unsupported`] if the target does not store that.
pub fn mixed_precision(graph: &Graph, dtype: DType, target: &Target) -> Result<Graph> {
    Pass::run(graph, dtype, target, Some(&|_| None))
}

/// [`mixed_precision`] where copies of parameters in 16 bits are there already: `copies` says under which parameter's name.
///
/// # Errors
/// [`Error::Unsupported`] if the target does not store that.
pub fn mixed_precision_with_copies(graph: &Graph, dtype: DType, target: &Target, copies: Copies) -> Result<Graph> {
    Pass::run(graph, dtype, target, Some(copies))
}

/// The name of a parameter's copy in 16 bits, if there is one.
type Copies<'a> = &'a dyn Fn(&str) -> Option<String>;

struct Pass<'a> {
    /// The type of 16 bits.
    dtype: DType,
    target: &'a Target,
    /// Parameters stay f32; who has a copy.
    masters: Option<Copies<'a>>,
    out: Graph,
    /// By value of the old graph: the new one.
    map: Vec<Value>,
    /// By value of the old graph: true for a parameter, where 16 bits begin.
    weights: Vec<bool>,
    /// What was cast already, to which type: each value once.
    casts: HashMap<(Value, DType), Value>,
}

impl<'a> Pass<'a> {
    fn run(graph: &Graph, dtype: DType, target: &'a Target, masters: Option<Copies<'a>>) -> Result<Graph> {
        if !target.stores(dtype) {
            let what = format!("{dtype} on this {} device", target.name());
            let reason = "take f32, or a device that has it (`langevin devices` lists them)";
            return Err(Error::unsupported(what, reason));
        }
        let weights =
            graph.values().iter().map(|v| matches!(v.origin, Origin::Parameter(_)) && v.ty.dtype == DType::F32);
        let (weights, map) = (weights.collect(), vec![Value(u32::MAX); graph.values().len()]);
        let mut pass = Pass { dtype, target, masters, out: Graph::new(), map, weights, casts: HashMap::new() };
        pass.copy_sources(graph);
        for node in graph.nodes() {
            pass.add(node)?;
        }
        for (name, value) in graph.outputs() {
            let value = pass.cast(pass.map[value.index()], graph.ty(*value).dtype, None)?;
            pass.out.output(name, value);
        }
        verify(&pass.out, "storage in 16 bits")?;
        Ok(pass.out)
    }

    /// Declares what the graph begins with. Parameters become narrow, if they may and all that read them can take that.
    fn copy_sources(&mut self, graph: &Graph) {
        let (mut read, mut narrow) = (vec![false; self.map.len()], self.weights.clone());
        for node in graph.nodes() {
            for (i, input) in node.inputs.iter().enumerate() {
                read[input.index()] = true;
                narrow[input.index()] &= node.op.takes(self.dtype, self.target) && !node.op.stays_f32(i);
            }
        }
        for (i, info) in graph.values().iter().enumerate() {
            let is_narrow = read[i] && narrow[i] && self.masters.is_none();
            self.map[i] = match &info.origin {
                Origin::Node { .. } => continue,
                Origin::Parameter(name) if is_narrow => {
                    self.out.parameter(name, TensorType { dtype: self.dtype, ..info.ty.clone() })
                }
                origin => self.out.source(info.ty.clone(), origin.clone()),
            };
            self.weights[i] &= is_narrow || self.masters.is_some();
        }
    }

    /// Appends a node, in 16 bits if it can take them and meets them.
    fn add(&mut self, node: &Node) -> Result<()> {
        let is_narrow = |v: &Value| self.weights[v.index()] || self.out.ty(self.map[v.index()]).dtype == self.dtype;
        let meets = node.inputs.iter().any(is_narrow);
        let dtype = if meets && node.op.takes(self.dtype, self.target) { self.dtype } else { DType::F32 };
        let inputs = node.inputs.iter().enumerate().map(|(i, v)| {
            let dtype = if node.op.stays_f32(i) { DType::F32 } else { dtype };
            self.cast(self.map[v.index()], dtype, Some(node))
        });
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        let outputs = self.out.replay(node, &inputs)?;
        node.outputs.iter().zip(outputs).for_each(|(old, new)| self.map[old.index()] = new);
        Ok(())
    }

    /// A value as f32 or in 16 bits, for `reader` if that is a node; whole numbers as they are.
    fn cast(&mut self, value: Value, dtype: DType, reader: Option<&Node>) -> Result<Value> {
        let from = self.out.ty(value).dtype;
        if from == dtype || from == DType::I32 {
            return Ok(value);
        }
        if let Some(done) = self.casts.get(&(value, dtype)) {
            return Ok(*done);
        }
        let copy = match (self.out.origin(value), self.masters) {
            (Origin::Parameter(name), Some(copies)) => copies(name),
            _ => None,
        };
        let cast = match (copy, reader) {
            (Some(name), _) => {
                let ty = TensorType { dtype, ..self.out.ty(value).clone() };
                self.out.parameter(name, ty)
            }
            (None, Some(node)) => self.out.replay(&Node { op: Arc::new(Cast(dtype)), ..node.clone() }, &[value])?[0],
            (None, None) => self.out.apply(Cast(dtype), &[value])?,
        };
        self.casts.insert((value, dtype), cast);
        Ok(cast)
    }
}
