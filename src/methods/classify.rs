//! Training of a classifier: network, cross-entropy, backward and optimiser as one schedule.

use super::forward::Backward;
use super::train::{Regions, TrainLowering, optimizer_program};
use crate::graph::{Graph, Origin, Value};
use crate::nn::{Built, Parameter};
use crate::ops::{CrossEntropy, Optimizer, Reduce};
use crate::passes::autodiff::gradients;
use crate::passes::fuse::{Purpose, fuse};
use crate::schedule::{BufferId, Buffers, Program, Rows, Schedule, Step};
use crate::tensor::TensorType;
use crate::{Error, Result};
use std::collections::HashMap;

/// A training schedule and the names of what the host writes and reads.
#[derive(Clone, Debug)]
pub struct ClassifierTraining {
    /// One run is one step; its row holds [`Optimizer`]'s numbers.
    pub schedule: Schedule,
    /// NHWC.
    pub images: BufferId,
    /// i32 `[B]`
    pub labels: BufferId,
    /// f32 `[B]`: the loss of each sample.
    pub losses: BufferId,
    /// All parameters, one after the other.
    pub params: BufferId,
    /// Where each parameter lies there, in elements.
    pub offsets: Vec<(Parameter, usize)>,
}

/// The schedule of one step of a network that answers `logits`; `how.emas` must be 0.
pub fn classify(network: &Built, how: TrainLowering) -> Result<ClassifierTraining> {
    let mut buffers = Buffers::new();
    let row = buffers.declare("row", TensorType::f32([Optimizer::HYPER]));
    let regions = Regions::declare(network, 0, Backward::default(), &mut buffers)?;
    let graph = step_graph(network, how)?;
    for (value, name) in graph.inputs() {
        buffers.declare(name, graph.ty(value).clone());
    }
    let missing = |what: &str| Error::Verify { pass: "training", reason: format!("there is no buffer `{what}`") };
    let [images, labels] = ["sample", "labels"].map(|name| buffers.find(name).ok_or_else(|| missing(name)));
    let (images, labels) = (images?, labels?);
    let losses = buffers.declare("losses", TensorType::f32(buffers.get(labels).ty.shape.clone()));
    let known = buffers.clone();
    let bind = |port: &str| regions.views.get(port).copied().or_else(|| known.find(port));
    let step =
        Program::compile("forward and backward", &graph, how.target, &mut buffers, bind, how.options)?.with_nfe(1);
    let grad_norm = buffers.declare("grad_norm", TensorType::f32([1]));
    let update = optimizer_program(&regions, regions.grads, how, row, grad_norm, &mut buffers)?;
    let columns = Optimizer::HYPER;
    let schedule = Schedule {
        name: "train a classifier".into(),
        buffers,
        programs: vec![step, update],
        steps: vec![Step::Repeat { rows: 0..1, body: vec![Step::Run(0), Step::Run(1)] }],
        rows: Rows { columns, data: vec![0.0; columns] },
        row: Some(row),
    };
    schedule.verify()?;
    Ok(ClassifierTraining { schedule, images, labels, losses, params: regions.params, offsets: regions.offsets })
}

/// Network, loss and all gradients.
fn step_graph(network: &Built, how: TrainLowering) -> Result<Graph> {
    let inner = fuse(&network.graph, Purpose::Training)?.0;
    let mut g = Graph::new();
    let inputs: HashMap<String, Value> =
        inner.inputs().map(|(v, name)| (name.to_string(), g.input(name, inner.ty(v).clone()))).collect();
    let map = g.inline(&inner, |origin| match origin {
        Origin::Input(name) => inputs.get(name.as_ref()).copied(),
        _ => None,
    })?;
    let Some(logits) = inner.find_output("logits") else {
        return Err(Error::Verify { pass: "training", reason: "the network has no output `logits`".into() });
    };
    let logits = map[logits.index()];
    let batch = g.shape(logits)[0];
    let labels = g.input("labels", TensorType::i32([batch]));
    let losses = g.apply(CrossEntropy, &[logits, labels])?;
    let loss = g.apply(Reduce::mean_middle(1, batch, 1).to_shape([1]), &[losses])?;
    g.output("losses", losses);
    let one = g.constant(TensorType::f32([1]), vec![1.0])?;
    let (parameters, names): (Vec<Value>, Vec<String>) =
        g.parameters().map(|(v, name)| (v, format!("grad.{name}"))).unzip();
    let grads = gradients(&mut g, &[(loss, one)], &parameters, how.backward.recompute)?;
    for (name, grad) in names.into_iter().zip(grads) {
        if let Some(grad) = grad {
            g.output(name, grad);
        }
    }
    how.backward.finish(&g, &how.target, &|_| None)
}
