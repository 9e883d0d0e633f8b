//! Reverse mode as a graph-to-graph pass.

use crate::graph::{Graph, Node, Value};
use crate::ops::Binary;
use crate::tensor::DType;
use crate::{Error, Result};
use std::collections::HashMap;

/// Whether activations are kept for the backward pass or made again: activation checkpointing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Recompute {
    /// Keep all: fastest.
    #[default]
    Off,
    /// Make again what is cheap to make, such as norms and activations; keep products, convolutions and attention. The pass
    /// [`recompute`](super::recompute::recompute) does that with the finished graph; to [`gradients`] it is the same as `Off`.
    Cheap,
    /// Keep only what crosses the borders of blocks ([`Graph::block`]); run each block's forward again before its backward.
    Blocks,
}

impl Recompute {
    /// What suits a training step whose activations are stored as `dtype`, where nothing is asked for: `Cheap` in 16 bits, on devices
    /// with time to spare, else `Off`.
    pub fn auto(dtype: DType) -> Self {
        if dtype == DType::F32 { Recompute::Off } else { Recompute::Cheap }
    }

    /// What a setting names; `auto` is [`Recompute::auto`] of `dtype`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for any other name.
    pub fn parse(name: &str, dtype: DType) -> Result<Self> {
        match name {
            "auto" => Ok(Recompute::auto(dtype)),
            "off" => Ok(Recompute::Off),
            "cheap" => Ok(Recompute::Cheap),
            "blocks" => Ok(Recompute::Blocks),
            _ => Err(Error::invalid("recompute", format!("`{name}` is none of auto, off, cheap, blocks"))),
        }
    }
}

/// Appends the backward pass to `graph`. `seeds` are pairs (value, its gradient); the result holds the gradient of each value
/// of `wrt`, `None` where nothing depends on it.
pub fn gradients(
    graph: &mut Graph,
    seeds: &[(Value, Value)],
    wrt: &[Value],
    recompute: Recompute,
) -> Result<Vec<Option<Value>>> {
    for (value, seed) in seeds {
        if graph.shape(*value) != graph.shape(*seed) {
            let reason = format!("the seed is {}, its value {}", graph.ty(*seed), graph.ty(*value));
            return Err(Error::shape("gradient", reason));
        }
    }
    graph.in_backward(|graph| reverse(graph, seeds, wrt, recompute))
}

fn reverse(
    graph: &mut Graph,
    seeds: &[(Value, Value)],
    wrt: &[Value],
    recompute: Recompute,
) -> Result<Vec<Option<Value>>> {
    let forward: Vec<Node> = graph.nodes().to_vec();
    let wanted = depends_on(graph, &forward, wrt);
    let mut pass = Reverse { graph, gradients: HashMap::new(), again: HashMap::new() };
    for (value, seed) in seeds {
        pass.accumulate(*value, *seed)?;
    }
    let mut current_block = None;
    for (i, node) in forward.iter().enumerate().rev() {
        let dy: Vec<Option<Value>> = node.outputs.iter().map(|v| pass.gradients.get(v).copied()).collect();
        let needs: Vec<bool> = node.inputs.iter().map(|v| wanted[v.index()]).collect();
        if dy.iter().all(Option::is_none) || !needs.contains(&true) {
            continue;
        }
        if recompute == Recompute::Blocks && node.block != current_block {
            current_block = node.block;
            pass.again.clear();
            if let Some(block) = node.block {
                pass.rerun(&forward[..=i], block)?;
            }
        }
        let node = pass.renamed(node);
        let grads = pass.backward(&node, &dy, &needs)?;
        for ((input, grad), needed) in forward[i].inputs.iter().zip(grads).zip(needs) {
            if let (Some(grad), true) = (grad, needed) {
                pass.accumulate(*input, grad)?;
            }
        }
    }
    Ok(wrt.iter().map(|v| pass.gradients.get(v).copied()).collect())
}

/// Which values depend on one of `wrt`.
fn depends_on(graph: &Graph, forward: &[Node], wrt: &[Value]) -> Vec<bool> {
    let mut wanted = vec![false; graph.values().len()];
    wrt.iter().for_each(|v| wanted[v.index()] = true);
    for node in forward {
        if node.inputs.iter().any(|v| wanted[v.index()]) {
            node.outputs.iter().for_each(|v| wanted[v.index()] = true);
        }
    }
    wanted
}

struct Reverse<'a> {
    graph: &'a mut Graph,
    gradients: HashMap<Value, Value>,
    /// Forward values of the current block that were computed again.
    again: HashMap<Value, Value>,
}

impl Reverse<'_> {
    fn accumulate(&mut self, value: Value, gradient: Value) -> Result<()> {
        let sum = match self.gradients.get(&value) {
            Some(sum) => self.graph.apply(Binary::Add, &[*sum, gradient])?,
            None => gradient,
        };
        self.gradients.insert(value, sum);
        Ok(())
    }

    /// The gradient rule of one node, its nodes placed in the scope of the forward node.
    fn backward(&mut self, node: &Node, dy: &[Option<Value>], needs: &[bool]) -> Result<Vec<Option<Value>>> {
        let op = node.op.clone();
        let grads = self.graph.scoped(node.scope.to_string(), |g| op.grad(g, node, dy, needs))?;
        if grads.len() != node.inputs.len() {
            let reason = format!("{} gave {} gradients for {} inputs", op.name(), grads.len(), node.inputs.len());
            return Err(Error::Verify { pass: "reverse mode", reason });
        }
        Ok(grads)
    }

    /// Appends the forward nodes of `block` again.
    fn rerun(&mut self, forward: &[Node], block: u32) -> Result<()> {
        for node in forward.iter().filter(|n| n.block == Some(block)) {
            let inputs: Vec<Value> = node.inputs.iter().map(|v| *self.again.get(v).unwrap_or(v)).collect();
            let outputs = self.graph.replay(&Node { block: None, backward: true, ..node.clone() }, &inputs)?;
            self.again.extend(node.outputs.iter().copied().zip(outputs));
        }
        Ok(())
    }

    /// The node with the values that were computed again in place of the kept ones.
    fn renamed(&self, node: &Node) -> Node {
        let rename = |vs: &[Value]| vs.iter().map(|v| *self.again.get(v).unwrap_or(v)).collect();
        Node { inputs: rename(&node.inputs), outputs: rename(&node.outputs), ..node.clone() }
    }
}
