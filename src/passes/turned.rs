//! Weights that a backward pass transposes are transposed before it, all at once: each by itself is a small launch, in front of the product
//! that waits for it.

use super::verify::verify;
use crate::Result;
use crate::graph::{Graph, Node, Origin, Value};
use crate::ops::TransposeWeight;
use crate::tensor::TensorType;

/// A transposed weight that a graph reads as a parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Turned {
    /// Its own name, and that of the parameter which it is made of.
    pub name: String,
    pub of: String,
    pub taps: usize,
    pub ty: TensorType,
}

/// The graph with a parameter in place of every [`TransposeWeight`] of one of those that `may` be transposed before, and these parameters.
pub fn turned_before(graph: &Graph, may: &dyn Fn(&str) -> bool) -> Result<(Graph, Vec<Turned>)> {
    let (mut out, mut all) = (Graph::new(), Vec::<Turned>::new());
    let mut map = vec![Value(u32::MAX); graph.values().len()];
    out.copy_sources(graph, &mut map);
    for node in graph.nodes() {
        let Some(turned) = turned_of(graph, node).filter(|turned| may(&turned.of)) else {
            let inputs: Vec<Value> = node.inputs.iter().map(|v| map[v.index()]).collect();
            let outputs = out.replay(node, &inputs)?;
            node.outputs.iter().zip(outputs).for_each(|(old, new)| map[old.index()] = new);
            continue;
        };
        map[node.outputs[0].index()] = out.parameter(&turned.name, turned.ty.clone());
        if !all.contains(&turned) {
            all.push(turned);
        }
    }
    for (name, value) in graph.outputs() {
        out.output(name, map[value.index()]);
    }
    verify(&out, "weights transposed before")?;
    Ok((out, all))
}

/// What `node` makes, if that is the transpose of a parameter.
fn turned_of(graph: &Graph, node: &Node) -> Option<Turned> {
    let taps = node.op.downcast::<TransposeWeight>()?.taps;
    let Origin::Parameter(of) = graph.origin(node.inputs[0]) else { return None };
    let (name, ty) = (format!("{of} transposed over {taps} taps"), graph.ty(node.outputs[0]).clone());
    Some(Turned { name, of: of.to_string(), taps, ty })
}
