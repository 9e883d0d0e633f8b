//! Linear layers that make of one embedding what the blocks of a UNet add to their samples become one: two dozen launches of a weight each become a
//! launch of a weight that is theirs side by side.
//!
//! Such a weight is no copy: panels of 16 columns lie one after the other, so that a layer's own weight and bias are a part of it, and are read from a
//! file as before. For inference.

use super::fuse::{epilogue, with_epilogue};
use super::verify::verify;
use crate::Result;
use crate::graph::{Graph, Node, Origin, Value};
use crate::ops::{Epilogue, Linear};
use crate::tensor::{Layout, PANEL, TensorType};
use std::collections::{HashMap, HashSet};

/// A parameter that others are parts of.
#[derive(Clone, Debug, PartialEq)]
pub struct Joined {
    pub name: String,
    pub ty: TensorType,
    /// Their names, the numbers before each, and their types.
    pub parts: Vec<(String, usize, TensorType)>,
}

/// A joined layer may have up to a quarter more columns than its parts in all, which begin where parts may.
const WASTE: usize = 4;

/// The graph with one linear layer in place of each set of those that read the same value and whose results are added to samples, and the parameters
/// that it has instead of theirs. Parts begin at multiples of `align` bytes.
pub fn join(graph: &Graph, align: usize) -> Result<(Graph, Vec<Joined>)> {
    let sets = sets(graph, align);
    let mut joined: Vec<Joined> = Vec::new();
    let (mut out, mut map) = (Graph::new(), vec![Value(u32::MAX); graph.values().len()]);
    let parts: HashSet<Value> =
        sets.iter().flat_map(|set| &set.layers).flat_map(|l| graph.nodes()[l.node].inputs[1..].to_vec()).collect();
    out.copy_sources_where(graph, &mut map, |value| !parts.contains(&value));
    let mut wide: HashMap<Value, (Value, usize)> = HashMap::new();
    for (i, node) in graph.nodes().iter().enumerate() {
        if let Some(set) = sets.iter().find(|set| set.layers[0].node == i) {
            let parameters = set.parameters(graph);
            let ports = parameters.iter().map(|p| out.parameter(&p.name, p.ty.clone()));
            let inputs: Vec<Value> =
                [map[node.inputs[0].index()]].into_iter().chain(ports.collect::<Vec<_>>()).collect();
            let y = out.replay(node, &inputs)?[0];
            wide.extend(set.layers.iter().map(|l| (graph.nodes()[l.node].outputs[0], (y, l.first))));
            joined.extend(parameters);
        }
        if sets.iter().any(|set| set.layers.iter().any(|l| l.node == i)) {
            continue;
        }
        let inputs: Vec<Value> = node.inputs.iter().map(|v| wide.get(v).map_or(map[v.index()], |(y, _)| *y)).collect();
        let first = node.inputs.iter().find_map(|v| wide.get(v)).map(|(_, first)| *first);
        let reading = |first| with_epilogue(node, Epilogue { sample_first: first, ..epilogue(node)? });
        let op = first.and_then(reading).unwrap_or_else(|| node.op.clone());
        let outputs = out.replay(&Node { op, ..node.clone() }, &inputs)?;
        node.outputs.iter().zip(outputs).for_each(|(old, new)| map[old.index()] = new);
    }
    for (name, value) in graph.outputs() {
        out.output(name, map[value.index()]);
    }
    verify(&out, "joining")?;
    Ok((out, joined))
}

/// A linear layer of a set, and the column at which its own begin.
struct Layer {
    node: usize,
    first: usize,
}

/// Layers that become one.
struct Set {
    layers: Vec<Layer>,
    columns: usize,
}

/// The sets of two layers and more.
fn sets(graph: &Graph, align: usize) -> Vec<Set> {
    let mut uses = vec![0; graph.values().len()];
    graph.nodes().iter().for_each(|n| n.inputs.iter().for_each(|v| uses[v.index()] += 1));
    graph.outputs().iter().for_each(|(_, v)| uses[v.index()] += 1);
    let once = |v: &Value| uses[v.index()] == 1;
    let added: HashSet<Value> = graph.nodes().iter().filter_map(|n| Some(n.inputs[sample_bias(n)?])).collect();
    let mut by_source: Vec<((Value, usize), Vec<usize>)> = Vec::new();
    for (i, node) in graph.nodes().iter().enumerate() {
        let own = |v: &Value| once(v) && matches!(graph.origin(*v), Origin::Parameter(_));
        let plain = node.op.downcast().is_some_and(|Linear(e)| *e == Epilogue { bias: e.bias, ..Epilogue::default() });
        let output = node.outputs[0];
        if !plain || !once(&output) || !added.contains(&output) || !node.inputs[1..].iter().all(own) {
            continue;
        }
        let key = (node.inputs[0], node.inputs.len());
        match by_source.iter_mut().find(|set| set.0 == key) {
            Some(set) => set.1.push(i),
            None => by_source.push((key, vec![i])),
        }
    }
    by_source.into_iter().filter_map(|(_, nodes)| Set::of(graph, nodes, align)).collect()
}

impl Set {
    /// None where there is but one layer, or too much room between them.
    fn of(graph: &Graph, nodes: Vec<usize>, align: usize) -> Option<Set> {
        let columns = |node: &usize| graph.ty(graph.nodes()[*node].outputs[0]).cols();
        let weight = graph.ty(graph.nodes()[nodes[0]].inputs[1]);
        let step = (align / weight.dtype.size()).max(PANEL);
        let needed: usize = nodes.iter().map(columns).sum();
        let (mut layers, mut end) = (Vec::new(), 0);
        for node in &nodes {
            layers.push(Layer { node: *node, first: end });
            end += columns(node).next_multiple_of(step);
        }
        let pays = layers.len() > 1 && weight.layout == Layout::Panels && end <= needed + needed / WASTE;
        pays.then_some(Set { layers, columns: end })
    }

    /// The weight, and the bias if there are any.
    fn parameters(&self, graph: &Graph) -> Vec<Joined> {
        let first = &graph.nodes()[self.layers[0].node];
        let parameter = |input: usize| {
            let ty = graph.ty(first.inputs[input]);
            // Numbers of a column.
            let rows = if input == 1 { ty.rows() } else { 1 };
            let mut shape = ty.shape.clone();
            shape.iter_mut().last().into_iter().for_each(|n| *n = self.columns);
            let part = |layer: &Layer| {
                let value = graph.nodes()[layer.node].inputs[input];
                let Origin::Parameter(name) = graph.origin(value) else { return None };
                Some((name.to_string(), layer.first * rows, graph.ty(value).clone()))
            };
            let parts: Vec<_> = self.layers.iter().filter_map(part).collect();
            Joined {
                name: format!("{} and {} more", parts[0].0, parts.len() - 1),
                ty: TensorType { shape, ..ty.clone() },
                parts,
            }
        };
        (1..first.inputs.len()).map(parameter).collect()
    }
}

/// Which input of a node is added to all rows of a sample, one that is as wide as what the node makes.
fn sample_bias(node: &Node) -> Option<usize> {
    let epilogue = epilogue(node).filter(|e| e.sample_bias && e.sample_first == 0)?;
    Some(2 + epilogue.bias as usize)
}
