//! Selective recomputation, also known as selective activation checkpointing: what is cheap to make is made again for the backward
//! pass instead of being kept for it.   (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"; Korthikanti et al. 2022,
//! "Reducing Activation Recomputation in Large Transformer Models", section 5)
//!
//! A norm's output is made again from its input, which the norm's gradient reads anyway; a dropout's from its seeds; a concatenation
//! from its parts. Products, convolutions and attention never run twice. What runs twice does so with the same kernels on the same
//! inputs, so that every gradient has the bits that it has without this pass.

use super::verify::verify;
use crate::Result;
use crate::graph::{Graph, Node, Value};
use std::collections::HashMap;

/// A value is worth a launch if it saves this part of all that the backward pass keeps, or more.
const LEAST: f64 = 1e-3;

/// The graph of a forward and backward pass, with cheap values of the forward pass made again in front of the node of the backward
/// pass that reads them first. Values that cross the borders of blocks ([`Graph::block`]) are kept: each chain of values that are made
/// again ends inside of its block. The graph should be as it is lowered, fused and with its numbers stored as they will be.
///
/// # Errors
/// Those of verification.
pub fn recompute(graph: &Graph) -> Result<Graph> {
    let fates = Choice::new(graph).run();
    let mut pass = Pass { graph, fates, out: Graph::new(), map: vec![], again: HashMap::new() };
    pass.map = vec![Value(u32::MAX); graph.values().len()];
    pass.out.copy_sources(graph, &mut pass.map);
    for node in graph.nodes() {
        pass.add(node)?;
    }
    for (name, value) in graph.outputs() {
        pass.out.output(name, pass.map[value.index()]);
    }
    verify(&pass.out, "recomputation")?;
    Ok(pass.out)
}

/// What becomes of a value of the forward pass once the backward pass begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// Nothing needs it, so far.
    Open,
    Kept,
    Again,
}

/// The value whose storage a value of the forward pass has: its own, or that of what it is a view of.
fn base(graph: &Graph, mut value: Value) -> Value {
    while let Some(node) = graph.producer(value).filter(|n| n.op.view(&graph.signature(n)).is_some()) {
        value = node.inputs[0];
    }
    value
}

/// Decides value by value, in the order of the forward pass: one is made again if that saves more than must be kept for it.
struct Choice<'a> {
    graph: &'a Graph,
    /// By value; that of a view is that of its base.
    fates: Vec<Fate>,
    /// The backward pass reads it.
    needed: Vec<bool>,
    /// Another block of the forward pass reads it.
    crosses: Vec<bool>,
    /// Bytes that are worth a launch.
    least: usize,
}

impl<'a> Choice<'a> {
    fn new(graph: &'a Graph) -> Self {
        let n = graph.values().len();
        let (mut needed, mut crosses) = (vec![false; n], vec![false; n]);
        for node in graph.nodes() {
            for value in node.inputs.iter().map(|v| base(graph, *v)) {
                let Some(producer) = graph.producer(value).filter(|p| !p.backward) else { continue };
                needed[value.index()] |= node.backward;
                crosses[value.index()] |= !node.backward && node.block != producer.block;
            }
        }
        let kept: usize = (0..n).filter(|i| needed[*i]).map(|i| graph.ty(Value(i as u32)).bytes()).sum();
        let least = ((kept as f64 * LEAST) as usize).max(1);
        Choice { graph, fates: vec![Fate::Open; n], needed, crosses, least }
    }

    fn run(mut self) -> Vec<Fate> {
        for node in self.graph.nodes().iter().filter(|n| !n.backward && n.op.view(&self.graph.signature(n)).is_none()) {
            for value in node.outputs.iter().filter(|v| self.needed[v.index()]) {
                let mut fates = vec![];
                let saves = |price: usize| self.bytes(*value).saturating_sub(price) >= self.least;
                if self.may_run_again(*value, node) && saves(self.price_of_all(&node.inputs, &mut fates)) {
                    fates.push((*value, Fate::Again));
                } else {
                    fates = vec![(*value, Fate::Kept)];
                }
                fates.into_iter().for_each(|(v, fate)| self.fates[v.index()] = fate);
            }
        }
        self.fates
    }

    fn bytes(&self, value: Value) -> usize {
        self.graph.ty(value).bytes()
    }

    /// True if `node` may make `value` again: it is cheap, and the value is one of its block alone, or made of nothing but what
    /// buffers hold, as a weight in 16 bits is.
    fn may_run_again(&self, value: Value, node: &Node) -> bool {
        let from_sources = || node.inputs.iter().all(|v| self.graph.producer(*v).is_none());
        node.op.is_cheap() && self.bytes(value) >= self.least && (!self.crosses[value.index()] || from_sources())
    }

    fn price_of_all(&self, values: &[Value], fates: &mut Vec<(Value, Fate)>) -> usize {
        values.iter().map(|v| self.price(*v, fates)).sum()
    }

    /// Bytes that must be kept besides, so that the backward pass has `value`; what that decides is added to `fates`.
    fn price(&self, value: Value, fates: &mut Vec<(Value, Fate)>) -> usize {
        let value = base(self.graph, value);
        let Some(node) = self.graph.producer(value) else { return 0 };
        if self.fates[value.index()] != Fate::Open || fates.iter().any(|(v, _)| *v == value) {
            return 0;
        }
        let (bytes, mut deeper) = (self.bytes(value), fates.clone());
        if self.may_run_again(value, node) {
            let price = self.price_of_all(&node.inputs, &mut deeper);
            if price < bytes {
                deeper.push((value, Fate::Again));
                *fates = deeper;
                return price;
            }
        }
        fates.push((value, Fate::Kept));
        bytes
    }
}

struct Pass<'a> {
    graph: &'a Graph,
    fates: Vec<Fate>,
    out: Graph,
    /// By value of the old graph: the new one.
    map: Vec<Value>,
    /// Values that were made again.
    again: HashMap<Value, Value>,
}

impl Pass<'_> {
    fn add(&mut self, node: &Node) -> Result<()> {
        let inputs =
            node.inputs.iter().map(|v| if node.backward { self.backward(*v) } else { Ok(self.map[v.index()]) });
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        let outputs = self.out.replay(node, &inputs)?;
        node.outputs.iter().zip(outputs).for_each(|(old, new)| self.map[old.index()] = new);
        Ok(())
    }

    /// The value that the backward pass reads in place of `value`; makes it, if that has not been done.
    fn backward(&mut self, value: Value) -> Result<Value> {
        if self.fates[base(self.graph, value).index()] != Fate::Again {
            return Ok(self.map[value.index()]);
        }
        if let Some(done) = self.again.get(&value) {
            return Ok(*done);
        }
        let Some(node) = self.graph.producer(value) else { return Ok(self.map[value.index()]) };
        let inputs = node.inputs.iter().map(|v| self.backward(*v)).collect::<Result<Vec<_>>>()?;
        let outputs = self.out.replay(&Node { backward: true, ..node.clone() }, &inputs)?;
        self.again.extend(node.outputs.iter().copied().zip(outputs));
        Ok(self.again[&value])
    }
}
