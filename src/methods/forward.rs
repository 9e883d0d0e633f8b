//! One evaluation of a network, with its gradients if asked for.

use crate::Result;
use crate::graph::{Graph, Target};
use crate::nn::Built;
use crate::passes::autodiff::{Recompute, gradients};
use crate::passes::fuse::{Purpose, fuse};
use crate::passes::hoist::hoist;
use crate::passes::once::once;
use crate::passes::recompute::recompute;
use crate::passes::storage::mixed_precision_with_copies;
use crate::passes::verify::verify;
use crate::schedule::{Buffers, Options, Program, Schedule, Step};
use crate::tensor::DType;

/// How gradients are made.
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    pub recompute: Recompute,
    /// Type in memory of activations, their gradients and copies of the weights, f32, f16 or bf16. Weights and their gradients are f32.
    pub dtype: DType,
}

impl Default for Backward {
    fn default() -> Self {
        Backward { recompute: Recompute::default(), dtype: DType::F32 }
    }
}

impl Backward {
    /// A graph with all of its gradients, ready to be lowered. `copies` names what holds a parameter in 16 bits besides.
    pub(super) fn finish(
        &self,
        graph: &Graph,
        target: &Target,
        copies: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Graph> {
        verify(graph, "reverse mode")?;
        let (graph, _) = fuse(graph, Purpose::Inference)?;
        let graph = match self.dtype {
            DType::F32 => graph,
            dtype => mixed_precision_with_copies(&graph, dtype, target, copies)?,
        };
        // After storage, whose casts are cheap too. Of what crosses the borders of blocks, only they are made again.
        if self.recompute == Recompute::Off { Ok(graph) } else { recompute(&graph) }
    }
}

/// The schedule that runs `network` once. Buffers: inputs and the output under the graph's names, weights under
/// `weights/{parameter}`. With `grad`: the input `grad_output`, the output `d_sample`, and `grad.{parameter}` of every
/// trainable parameter, the gradients of Σ output · grad_output.
///
/// # Errors
/// [`Error::Unsupported`](crate::Error::Unsupported) for a type that the target does not store.
pub fn forward(network: &Built, grad: Option<Backward>, target: Target, options: Options) -> Result<Schedule> {
    let purpose = if grad.is_some() { Purpose::Training } else { Purpose::Inference };
    let (mut graph, _) = fuse(&network.graph, purpose)?;
    if let Some(backward) = grad {
        add_gradients(network, &mut graph, backward.recompute)?;
        graph = backward.finish(&graph, &target, &|_| None)?;
    } else {
        graph = hoist(&once(&graph)?)?;
    }
    // An input and an output may have one name: that of the buffer of an output says which it is.
    graph.rename_outputs(|name| format!("out/{name}"));
    let mut buffers = Buffers::new();
    for (value, name) in graph.inputs() {
        buffers.declare(name, graph.ty(value).clone());
    }
    let weight = |name: &str| format!("weights/{name}");
    for joined in &network.joined {
        buffers.declare_joined(joined, weight)?;
    }
    for (value, name) in graph.parameters() {
        if buffers.find(&weight(name)).is_none() {
            buffers.declare(weight(name), graph.ty(value).clone());
        }
    }
    for (name, value) in graph.outputs() {
        buffers.declare(name, graph.ty(*value).clone());
    }
    let names = buffers.clone();
    let parameters: std::collections::HashSet<&str> = graph.parameters().map(|(_, n)| n.as_ref()).collect();
    let bind = |port: &str| if parameters.contains(port) { names.find(&weight(port)) } else { names.find(port) };
    let program = Program::compile("forward", &graph, target, &mut buffers, bind, options)?.with_nfe(1);
    let mut schedule = Schedule::new("forward", buffers);
    let p = schedule.add(program);
    schedule.steps.push(Step::Run(p));
    Ok(schedule)
}

fn add_gradients(network: &Built, graph: &mut Graph, recompute: Recompute) -> Result<()> {
    let Some((_, output)) = graph.outputs().first().cloned() else { return Ok(()) };
    let seed = graph.input("grad_output", graph.ty(output).clone());
    let trainable: std::collections::HashSet<&str> =
        network.parameters.iter().filter(|p| p.trainable).map(|p| p.name.as_str()).collect();
    let mut wrt: Vec<(String, crate::graph::Value)> = graph
        .parameters()
        .filter(|(_, n)| trainable.contains(n.as_ref()))
        .map(|(v, n)| (format!("grad.{n}"), v))
        .collect();
    wrt.extend(graph.inputs().filter(|(_, n)| n.as_ref() == "sample").map(|(v, _)| ("d_sample".to_string(), v)));
    let values: Vec<_> = wrt.iter().map(|(_, v)| *v).collect();
    let grads = gradients(graph, &[(output, seed)], &values, recompute)?;
    for ((name, _), grad) in wrt.into_iter().zip(grads) {
        if let Some(grad) = grad {
            graph.output(name, grad);
        }
    }
    Ok(())
}
