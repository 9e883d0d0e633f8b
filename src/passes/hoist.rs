//! What depends on few numbers goes first: embeddings of times and labels, what a transformer's blocks make of them, keys and values of a text
//! where they are not made [before a loop](super::invariant).
//!
//! In its own place such a node is small and late: it would wait until its memory is free of what blocks before it left there, and all that
//! follows would wait for it. Up front its result has memory of its own, and a device that runs launches beside each other has done it long
//! before it is needed. For inference.

use super::verify::verify;
use crate::Result;
use crate::graph::{Graph, Node, Origin, Value};

/// What is small has so many times fewer bytes than the largest value at least.
const SHARE: usize = 16;

/// The most bytes of a small value: what is as small may lie in memory of its own.
pub(super) fn small_bytes(graph: &Graph) -> usize {
    let bytes = |v: &Value| graph.ty(*v).bytes();
    graph.nodes().iter().flat_map(|n| &n.outputs).map(bytes).max().unwrap_or(0) / SHARE
}

/// The graph with nodes first that are made of small values alone, parameters apart; otherwise in its order.
pub fn hoist(graph: &Graph) -> Result<Graph> {
    let most = small_bytes(graph);
    let small = |v: &Value| graph.ty(*v).bytes() <= most;
    let mut early = Vec::with_capacity(graph.nodes().len());
    for node in graph.nodes() {
        let of_early = node.inputs.iter().all(|v| match graph.origin(*v) {
            Origin::Node { node, .. } => early[*node],
            Origin::Input(_) => small(v),
            Origin::Parameter(_) | Origin::Constant(_) => true,
        });
        early.push(of_early && node.outputs.iter().all(small));
    }
    let mut out = Graph::new();
    let mut map = vec![Value(u32::MAX); graph.values().len()];
    out.copy_sources(graph, &mut map);
    let chosen = |first: bool| graph.nodes().iter().zip(&early).filter(move |(_, early)| **early == first);
    let nodes: Vec<&Node> = chosen(true).chain(chosen(false)).map(|(node, _)| node).collect();
    for node in nodes {
        let inputs: Vec<Value> = node.inputs.iter().map(|v| map[v.index()]).collect();
        let outputs = out.replay(node, &inputs)?;
        node.outputs.iter().zip(outputs).for_each(|(old, new)| map[old.index()] = new);
    }
    for (name, value) in graph.outputs() {
        out.output(name, map[value.index()]);
    }
    verify(&out, "hoisting")?;
    Ok(out)
}
