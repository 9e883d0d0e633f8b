//! Checks a graph's invariants; run after every pass.

use crate::graph::{Graph, Origin};
use crate::{Error, Result};

/// Every input stands before its use, every node's types follow from its inputs', every output exists.
pub fn verify(graph: &Graph, pass: &'static str) -> Result<()> {
    let fail = |reason: String| Err(Error::Verify { pass, reason });
    for (i, node) in graph.nodes().iter().enumerate() {
        for input in &node.inputs {
            match graph.origin(*input) {
                Origin::Node { node: from, .. } if *from >= i => {
                    return fail(format!("node {i} ({}) uses a value made by node {from}", node.op.name()));
                }
                _ => {}
            }
        }
        let io = graph.signature(node);
        let inferred = node.op.infer(&io.inputs.iter().collect::<Vec<_>>())?;
        if inferred != io.outputs {
            return fail(format!("node {i} ({}) makes {inferred:?}, recorded as {:?}", node.op.name(), io.outputs));
        }
        for (output, value) in node.outputs.iter().enumerate() {
            match graph.origin(*value) {
                Origin::Node { node: n, output: o } if (*n, *o) == (i, output) => {}
                other => return fail(format!("output {output} of node {i} says that it comes from {other:?}")),
            }
        }
    }
    match graph.outputs().iter().find(|(_, v)| v.index() >= graph.values().len()) {
        Some((name, _)) => fail(format!("output `{name}` names no value")),
        None => Ok(()),
    }
}
