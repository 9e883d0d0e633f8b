//! Fusion: pairs of nodes become one, until no pair is left.
//!
//! A pair is a producer whose first output one consumer alone reads. What can be merged:
//! * group_norm → activation: the norm's own activation
//! * linear, conv2d → activation: the epilogue's (inference only: its gradient would make the product again)
//! * linear, conv2d → add: the epilogue's residual; where a row is a sample, an activation may follow (inference only)
//! * linear, conv2d → gate: the epilogue's gate and residual (inference only, for the same reason)
//! * linear, conv2d → affine without shift: the epilogue's scale
//! * linear → geglu: one linear_geglu, if the linear adds a bias at most (inference only: its gradient would make the product again)
//! * add → affine without shift: a scaled sum
//! * slice → layer_norm, linear: columns of a row of every sample, read where they lie (inference only)
//! * timestep_embedding (→ cast) → linear → activation → linear (→ activation): one timestep_mlp (inference only)

use super::verify::verify;
use crate::Result;
use crate::graph::{Graph, Node, Op, Origin, Value};
use crate::ops::{
    Activate, Activation, Affine, Binary, Cast, Conv2d, Epilogue, Gate, Geglu, GroupNorm, LayerNorm, Linear,
    LinearGeglu, Slice, TimestepEmbedding, TimestepMlp,
};
use std::sync::Arc;

/// What the fused graph is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// It will only be run.
    Inference,
    /// It will be differentiated.
    Training,
}

/// The fused graph and one line for each merge: `conv2d + add -> conv2d  # up_blocks.0.resnets.1`.
pub fn fuse(graph: &Graph, purpose: Purpose) -> Result<(Graph, Vec<String>)> {
    let mut graph = graph.clone();
    let mut log = Vec::new();
    loop {
        let merges = find(&graph, purpose);
        if merges.is_empty() {
            return Ok((graph, log));
        }
        log.extend(merges.iter().map(|m| describe(&graph, m)));
        graph = rewrite(&graph, &merges)?;
        verify(&graph, "fusion")?;
    }
}

/// Nodes `producers` go into node `consumer`, which becomes `op` over `inputs`.
struct Merge {
    producers: Vec<usize>,
    consumer: usize,
    op: Arc<dyn Op>,
    inputs: Vec<Value>,
}

fn describe(graph: &Graph, m: &Merge) -> String {
    let name = |i: &usize| graph.nodes()[*i].op.name();
    let parts: Vec<&str> = m.producers.iter().chain([&m.consumer]).map(name).collect();
    format!("{} -> {}  # {}", parts.join(" + "), m.op.name(), graph.nodes()[m.consumer].scope)
}

/// Merges that do not touch each other.
fn find(graph: &Graph, purpose: Purpose) -> Vec<Merge> {
    let mut uses = vec![0; graph.values().len()];
    graph.nodes().iter().for_each(|n| n.inputs.iter().for_each(|v| uses[v.index()] += 1));
    graph.outputs().iter().for_each(|(_, v)| uses[v.index()] += 1);
    let mut taken = vec![false; graph.nodes().len()];
    let mut merges = Vec::new();
    let once = |v: Value| uses[v.index()] == 1;
    for (consumer, node) in graph.nodes().iter().enumerate() {
        if let Some((producers, op, inputs)) = columns(graph, node, once).filter(|_| purpose == Purpose::Inference) {
            producers.iter().chain([&consumer]).for_each(|i| taken[*i] = true);
            merges.push(Merge { producers, consumer, op, inputs });
        }
        for (slot, value) in node.inputs.iter().enumerate() {
            let Origin::Node { node: producer, output: 0 } = *graph.origin(*value) else { continue };
            let from = &graph.nodes()[producer];
            let lonely = uses[value.index()] == 1 && from.outputs[1..].iter().all(|v| uses[v.index()] == 0);
            if taken[consumer] || taken[producer] || !lonely || from.block != node.block {
                continue;
            }
            let merged = match timestep_mlp(graph, from, node, slot).filter(|_| purpose == Purpose::Inference) {
                Some((before, op, inputs)) => {
                    let before = before.iter().map(|v| producer_of(graph, *v).filter(|_| once(*v)));
                    let producers: Option<Vec<usize>> = before.chain([Some(producer)]).collect();
                    producers.map(|producers| (producers, op, inputs))
                }
                None => merge(graph, from, node, slot, purpose).map(|(op, inputs)| (vec![producer], op, inputs)),
            };
            if let Some((producers, op, inputs)) = merged.filter(|m| m.0.iter().all(|i| !taken[*i])) {
                producers.iter().chain([&consumer]).for_each(|i| taken[*i] = true);
                merges.push(Merge { producers, consumer, op, inputs });
            }
        }
    }
    merges
}

fn producer_of(graph: &Graph, value: Value) -> Option<usize> {
    match graph.origin(value) {
        Origin::Node { node, .. } => Some(*node),
        _ => None,
    }
}

/// Rows up to which one op for a timestep's layers in 16 bits is faster than several.
const MLP_ROWS: usize = 16;

/// Merged op and its inputs.
type Merged = (Arc<dyn Op>, Vec<Value>);
/// What goes into a merged op (nodes, or the values that they make), that op, and its inputs.
type MergedFrom<T> = (Vec<T>, Arc<dyn Op>, Vec<Value>);

/// If a node reads columns of every sample's row of a wider value that are put together for it alone: the slices that do it, and the op that
/// reads them where they lie, with its inputs.
fn columns(graph: &Graph, node: &Node, once: impl Fn(Value) -> bool) -> Option<MergedFrom<usize>> {
    let slice = |operand: usize| {
        let value = *node.inputs.get(operand)?;
        let producer = producer_of(graph, value).filter(|_| once(value))?;
        let from = &graph.nodes()[producer];
        let Slice { axis: 1, start, .. } = *from.op.downcast()? else { return None };
        (graph.shape(value).len() == 2 && from.block == node.block).then_some((producer, start, from.inputs[0]))
    };
    let mut inputs = node.inputs.clone();
    if let Some(norm) = node.op.downcast::<LayerNorm>().filter(|norm| norm.modulate) {
        let at = 1 + 2 * norm.affine as usize;
        let (scale, shift) = (slice(at)?, slice(at + 1)?);
        (inputs[at], inputs[at + 1]) = (scale.2, shift.2);
        let same = graph.shape(scale.2) == graph.shape(shift.2) && norm.first == [0; 2];
        let op = LayerNorm { first: [scale.1, shift.1], ..*norm };
        return same.then(|| (vec![scale.0, shift.0], Arc::new(op) as _, inputs));
    }
    let Linear(epilogue) = *node.op.downcast().filter(|Linear(e)| (e.sample_bias || e.gate) && e.sample_first == 0)?;
    let at = 2 + epilogue.bias as usize;
    let (producer, sample_first, wide) = slice(at)?;
    inputs[at] = wide;
    Some((vec![producer], Arc::new(Linear(Epilogue { sample_first, ..epilogue })), inputs))
}

/// If `node` is the second layer of a timestep's MLP and `from` the first: the values before that, and the op that is all of it.
fn timestep_mlp(graph: &Graph, from: &Node, node: &Node, slot: usize) -> Option<MergedFrom<Value>> {
    let (Linear(first), Linear(second)) = (from.op.downcast::<Linear>()?, node.op.downcast::<Linear>()?);
    let mut before = vec![from.inputs[0]];
    let mut source = graph.producer(from.inputs[0])?;
    if source.op.downcast::<Cast>().is_some() {
        before.insert(0, source.inputs[0]);
        source = graph.producer(source.inputs[0])?;
    }
    let embedding = *source.op.downcast::<TimestepEmbedding>()?;
    let (act, last) = (first.activation, second.activation);
    let plain = |layer: &Epilogue| *layer == Epilogue { activation: layer.activation, ..Epilogue::bias() };
    let plain = plain(first) && plain(second) && slot == 0;
    let inputs = [&source.inputs[..1], &from.inputs[1..], &node.inputs[1..]].concat();
    let op = TimestepMlp { embedding, act, label: false, last };
    // Products of 16 bits have matrix units, which pay from so many rows on.
    let few = before.len() == 1 || graph.shape(from.inputs[0])[0] <= MLP_ROWS;
    (plain && few).then(|| (before, Arc::new(op) as _, inputs))
}

/// The op that does what `from` and then `node`, which reads it at input `slot`, do; with its inputs.
fn merge(graph: &Graph, from: &Node, node: &Node, slot: usize, purpose: Purpose) -> Option<Merged> {
    if let (Some(norm), Some(Activate(activation))) = (from.op.downcast::<GroupNorm>(), node.op.downcast::<Activate>())
    {
        let plain = norm.activation == Activation::Identity;
        return plain.then(|| (Arc::new(GroupNorm { activation: *activation, ..*norm }) as _, from.inputs.clone()));
    }
    if let (Some(Binary::Add), Some(affine)) = (from.op.downcast(), node.op.downcast::<Affine>()) {
        // The sum is an epilogue's, if it can be.
        let last = !from.inputs.iter().any(|v| graph.producer(*v).and_then(epilogue).is_some());
        return (last && affine.shift == 0.0)
            .then(|| (Arc::new(Binary::AddScaled(affine.scale)) as _, from.inputs.clone()));
    }
    if let (Some(Linear(epilogue)), Some(Geglu)) = (from.op.downcast(), node.op.downcast()) {
        let plain = *epilogue == Epilogue { bias: epilogue.bias, ..Default::default() };
        return (plain && purpose == Purpose::Inference)
            .then(|| (Arc::new(LinearGeglu { bias: epilogue.bias }) as _, from.inputs.clone()));
    }
    let epilogue = epilogue(from)?;
    let open = !epilogue.residual && epilogue.scale == 1.0;
    let mut inputs = from.inputs.clone();
    let merged = if let Some(Activate(activation)) = node.op.downcast::<Activate>() {
        let free = epilogue.activation == Activation::Identity && !epilogue.gate && epilogue.scale == 1.0;
        // What is added before the activation has a row for each sample.
        let by_row = !epilogue.sample_bias && graph.shape(from.outputs[0]).len() == 2;
        let free = free && (!epilogue.residual || by_row) && purpose == Purpose::Inference;
        let sample_bias = epilogue.sample_bias || epilogue.residual;
        free.then_some(Epilogue { activation: *activation, sample_bias, residual: false, ..epilogue })?
    } else if let Some(Binary::Add) = node.op.downcast::<Binary>() {
        inputs.push(node.inputs[1 - slot]);
        let plain = graph.ty(node.inputs[1 - slot]) == graph.ty(node.inputs[slot]);
        (open && plain).then_some(Epilogue { residual: true, ..epilogue })?
    } else if node.op.downcast::<Gate>().is_some() {
        inputs.extend(&node.inputs[1..]);
        let free = open && slot == 0 && !epilogue.gate && !epilogue.sample_bias && purpose == Purpose::Inference;
        free.then_some(Epilogue { gate: true, residual: true, ..epilogue })?
    } else if let Some(affine) = node.op.downcast::<Affine>() {
        (affine.shift == 0.0).then_some(Epilogue { scale: epilogue.scale * affine.scale, ..epilogue })?
    } else {
        return None;
    };
    Some((with_epilogue(from, merged)?, inputs))
}

/// The epilogue of a linear layer or a convolution.
pub(super) fn epilogue(node: &Node) -> Option<Epilogue> {
    node.op.downcast::<Linear>().map(|l| l.0).or_else(|| node.op.downcast::<Conv2d>().map(|c| c.epilogue))
}

/// Its op with another epilogue.
pub(super) fn with_epilogue(node: &Node, epilogue: Epilogue) -> Option<Arc<dyn Op>> {
    if node.op.downcast::<Linear>().is_some() {
        return Some(Arc::new(Linear(epilogue)));
    }
    node.op.downcast::<Conv2d>().map(|c| Arc::new(Conv2d { epilogue, ..*c }) as _)
}

/// The graph with every producer of `merges` gone and every consumer replaced.
fn rewrite(graph: &Graph, merges: &[Merge]) -> Result<Graph> {
    let mut out = Graph::new();
    let mut map = vec![Value(u32::MAX); graph.values().len()];
    out.copy_sources(graph, &mut map);
    for (i, node) in graph.nodes().iter().enumerate() {
        if merges.iter().any(|m| m.producers.contains(&i)) {
            continue;
        }
        let merged = merges.iter().find(|m| m.consumer == i);
        let (op, inputs) = merged.map_or((node.op.clone(), &node.inputs), |m| (m.op.clone(), &m.inputs));
        let inputs: Vec<Value> = inputs.iter().map(|v| map[v.index()]).collect();
        let outputs = out.replay(&Node { op, ..node.clone() }, &inputs)?;
        node.outputs.iter().zip(outputs).for_each(|(old, new)| map[old.index()] = new);
    }
    for (name, value) in graph.outputs() {
        out.output(name, map[value.index()]);
    }
    Ok(out)
}
