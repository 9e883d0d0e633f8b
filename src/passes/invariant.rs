//! What a loop would make again in every turn although nothing in it changes goes before the loop: keys and values of a text, embeddings of a
//! class, positions. For inference.

use super::hoist::small_bytes;
use super::verify::verify;
use crate::Result;
use crate::graph::{Graph, Origin, Value};
use std::collections::HashSet;

/// Cuts the graph of a loop's turn in two: what is small and depends on no input that `changes` from turn to turn, and the rest. What the first leaves for the rest are
/// its outputs and the other's inputs of the names that `name` makes of their numbers; if it leaves nothing, there is no first.
pub fn split(
    graph: &Graph,
    changes: impl Fn(&str) -> bool,
    name: impl Fn(usize) -> String,
) -> Result<(Option<Graph>, Graph)> {
    let (nodes, mut before) = (graph.nodes(), vec![false; graph.nodes().len()]);
    let most = small_bytes(graph);
    for (i, node) in nodes.iter().enumerate() {
        let same = node.inputs.iter().all(|v| match graph.origin(*v) {
            Origin::Node { node, .. } => before[*node],
            Origin::Input(input) => !changes(input),
            Origin::Parameter(_) | Origin::Constant(_) => true,
        });
        before[i] = same && node.outputs.iter().all(|v| graph.ty(*v).bytes() <= most);
    }
    // From the end: what the turn reads. A view costs nothing and is made in the turn, so that no copy of what it sees is kept.
    let mut inside: Vec<bool> = before.iter().map(|before| !before).collect();
    let mut read: HashSet<Value> = graph.outputs().iter().map(|(_, v)| *v).collect();
    for (i, node) in nodes.iter().enumerate().rev() {
        let wanted = node.outputs.iter().any(|v| read.contains(v));
        inside[i] |= wanted && node.op.view(&graph.signature(node)).is_some();
        if inside[i] {
            read.extend(&node.inputs);
        }
    }
    let outside = nodes.iter().zip(&inside).filter(|(_, inside)| !**inside).flat_map(|(node, _)| &node.outputs);
    let kept: Vec<Value> = outside.copied().filter(|v| read.contains(v)).collect();
    if kept.is_empty() {
        return Ok((None, graph.clone()));
    }
    let (mut first, map) = part(graph, &before, |_, _| None)?;
    kept.iter().enumerate().for_each(|(i, v)| first.output(name(i), map[v.index()]));
    let number = |value: Value| kept.iter().position(|v| *v == value);
    let (mut turn, map) =
        part(graph, &inside, |turn, value| number(value).map(|i| turn.input(name(i), graph.ty(value).clone())))?;
    graph.outputs().iter().for_each(|(name, v)| turn.output(name, map[v.index()]));
    verify(&first, "what goes before a loop")?;
    verify(&turn, "a loop's turn")?;
    Ok((Some(first), turn))
}

/// The graph of the `chosen` nodes, with sources that they read and what `given` puts in place of other nodes' outputs; and its values by those of the old one.
fn part(
    graph: &Graph,
    chosen: &[bool],
    given: impl Fn(&mut Graph, Value) -> Option<Value>,
) -> Result<(Graph, Vec<Value>)> {
    let (mut out, mut map) = (Graph::new(), vec![Value(u32::MAX); graph.values().len()]);
    let nodes = || graph.nodes().iter().zip(chosen).filter(|(_, chosen)| **chosen).map(|(node, _)| node);
    let mut read: HashSet<Value> = nodes().flat_map(|node| &node.inputs).copied().collect();
    read.extend(graph.outputs().iter().map(|(_, v)| *v));
    out.copy_sources_where(graph, &mut map, |value| read.contains(&value));
    for node in graph.nodes() {
        for value in &node.outputs {
            if let Some(given) = given(&mut out, *value) {
                map[value.index()] = given;
            }
        }
    }
    for node in nodes() {
        let inputs: Vec<Value> = node.inputs.iter().map(|v| map[v.index()]).collect();
        let outputs = out.replay(node, &inputs)?;
        node.outputs.iter().zip(outputs).for_each(|(old, new)| map[old.index()] = new);
    }
    Ok((out, map))
}
