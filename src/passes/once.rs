//! Nodes that make the same of the same ([`Op::equals`](crate::graph::Op::equals)) become one: every block of a transformer may embed
//! the time for itself, say.
//!
//! For inference. In a graph with gradients, what is made again in the backward pass would be kept all the while instead.

use super::verify::verify;
use crate::Result;
use crate::graph::{Graph, Value};
use std::collections::HashMap;

/// The graph without the nodes that do again what one before them has done.
pub fn once(graph: &Graph) -> Result<Graph> {
    let mut out = Graph::new();
    let mut map = vec![Value(u32::MAX); graph.values().len()];
    out.copy_sources(graph, &mut map);
    // Nodes of the new graph by their inputs.
    let mut done: HashMap<Vec<Value>, Vec<usize>> = HashMap::new();
    for node in graph.nodes() {
        let inputs: Vec<Value> = node.inputs.iter().map(|v| map[v.index()]).collect();
        let same = done.entry(inputs.clone()).or_default();
        let outputs = match same.iter().find(|i| node.op.equals(&*out.nodes()[**i].op)) {
            Some(i) => out.nodes()[*i].outputs.clone(),
            None => {
                same.push(out.nodes().len());
                out.replay(node, &inputs)?
            }
        };
        node.outputs.iter().zip(outputs).for_each(|(old, new)| map[old.index()] = new);
    }
    for (name, value) in graph.outputs() {
        out.output(name, map[value.index()]);
    }
    verify(&out, "common nodes")?;
    Ok(out)
}
