//! The graph: a static, typed DAG of ops. Shapes and dtypes are known when it is built; nodes stand in a valid order.

mod launch;
mod op;
mod replace;

pub use launch::{
    Arg, Args, Boxes, CudaTarget, FLAT_GROUP, FLAT_THREADS, Flat, Kernel, Launch, Matrices, Ptx, PtxFile, Region,
    Scalar, Shader, Target, WgpuTarget,
};
pub(crate) use launch::{PLACES, ptx, wgsl, wgsl_with_matrices, wgsl_with_sums};
pub use op::{Cost, Op, Signature};
pub use replace::{replace_kernel, unused_replacement};

use crate::tensor::TensorType;
use crate::{Error, Result};
use std::fmt::Write as _;
use std::sync::Arc;

/// A value of a [`Graph`]: an input, a parameter, a constant, or an output of a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Value(pub(crate) u32);

impl Value {
    /// Index into the graph's values.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a value comes from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// Bound to a buffer by name when the program is built.
    Input(Arc<str>),
    /// A weight, bound by its public name.
    Parameter(Arc<str>),
    /// Small data fixed when the graph is built (frequencies, position tables).
    Constant(Arc<[f32]>),
    /// Output number `output` of node number `node`.
    Node { node: usize, output: usize },
}

/// Type and origin of a value.
#[derive(Clone, Debug)]
pub struct ValueInfo {
    pub ty: TensorType,
    pub origin: Origin,
}

/// One application of an op.
#[derive(Clone, Debug)]
pub struct Node {
    pub op: Arc<dyn Op>,
    pub inputs: Vec<Value>,
    pub outputs: Vec<Value>,
    /// Where in the model it stands, e.g. `down_blocks.0.resnets.1`.
    pub scope: Arc<str>,
    /// The recomputation block it belongs to, see [`Graph::block`].
    pub block: Option<u32>,
    /// It belongs to the backward pass.
    pub backward: bool,
}

/// A static DAG of ops over typed values.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    nodes: Vec<Node>,
    values: Vec<ValueInfo>,
    outputs: Vec<(Arc<str>, Value)>,
    scope: Vec<String>,
    block: Option<u32>,
    blocks: u32,
    backward: bool,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// The nodes, in an order in which they can run.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All values.
    pub fn values(&self) -> &[ValueInfo] {
        &self.values
    }

    /// Named outputs.
    pub fn outputs(&self) -> &[(Arc<str>, Value)] {
        &self.outputs
    }

    /// Type of a value.
    pub fn ty(&self, value: Value) -> &TensorType {
        &self.values[value.index()].ty
    }

    /// Shape of a value.
    pub fn shape(&self, value: Value) -> &[usize] {
        &self.ty(value).shape
    }

    /// Where a value comes from.
    pub fn origin(&self, value: Value) -> &Origin {
        &self.values[value.index()].origin
    }

    /// The node that makes `value`, if one does.
    pub fn producer(&self, value: Value) -> Option<&Node> {
        match self.origin(value) {
            Origin::Node { node, .. } => Some(&self.nodes[*node]),
            _ => None,
        }
    }

    fn value(&mut self, ty: TensorType, origin: Origin) -> Value {
        self.values.push(ValueInfo { ty, origin });
        Value((self.values.len() - 1) as u32)
    }

    /// A named input.
    pub fn input(&mut self, name: impl AsRef<str>, ty: TensorType) -> Value {
        self.value(ty, Origin::Input(name.as_ref().into()))
    }

    /// A named parameter. Asking twice for one name gives the same value.
    pub fn parameter(&mut self, name: impl AsRef<str>, ty: TensorType) -> Value {
        let name = name.as_ref();
        if let Some((value, _)) = self.parameters().find(|(v, n)| n.as_ref() == name && *self.ty(*v) == ty) {
            return value;
        }
        self.value(ty, Origin::Parameter(name.into()))
    }

    /// A constant with `ty.elements()` numbers.
    pub fn constant(&mut self, ty: TensorType, data: Vec<f32>) -> Result<Value> {
        if ty.stored() != data.len() {
            return Err(Error::shape("constant", format!("{ty} needs {} numbers, got {}", ty.stored(), data.len())));
        }
        Ok(self.value(ty, Origin::Constant(data.into())))
    }

    /// Names an output. One value may have several names.
    pub fn output(&mut self, name: impl AsRef<str>, value: Value) {
        self.outputs.push((name.as_ref().into(), value));
    }

    /// Renames every output.
    pub fn rename_outputs(&mut self, rename: impl Fn(&str) -> String) {
        self.outputs.iter_mut().for_each(|(name, _)| *name = rename(name).into());
    }

    /// The value of a named output.
    pub fn find_output(&self, name: &str) -> Option<Value> {
        self.outputs.iter().find(|(n, _)| &**n == name).map(|(_, v)| *v)
    }

    /// All inputs with their names, in the order they were declared.
    pub fn inputs(&self) -> impl Iterator<Item = (Value, &Arc<str>)> {
        self.values.iter().enumerate().filter_map(|(i, v)| match &v.origin {
            Origin::Input(name) => Some((Value(i as u32), name)),
            _ => None,
        })
    }

    /// All parameters with their names, in the order they were declared.
    pub fn parameters(&self) -> impl Iterator<Item = (Value, &Arc<str>)> {
        self.values.iter().enumerate().filter_map(|(i, v)| match &v.origin {
            Origin::Parameter(name) => Some((Value(i as u32), name)),
            _ => None,
        })
    }

    /// Applies an op; all its outputs.
    pub fn apply_all(&mut self, op: impl Op, inputs: &[Value]) -> Result<Vec<Value>> {
        self.apply_arc(Arc::new(op), inputs)
    }

    /// Applies an op; its first output.
    pub fn apply(&mut self, op: impl Op, inputs: &[Value]) -> Result<Value> {
        Ok(self.apply_all(op, inputs)?[0])
    }

    /// Applies a shared op; all its outputs.
    pub fn apply_arc(&mut self, op: Arc<dyn Op>, inputs: &[Value]) -> Result<Vec<Value>> {
        let types: Vec<&TensorType> = inputs.iter().map(|v| self.ty(*v)).collect();
        let outputs = op.infer(&types).map_err(|e| self.locate(e))?;
        let node = self.nodes.len();
        let outputs = outputs
            .into_iter()
            .enumerate()
            .map(|(output, ty)| self.value(ty, Origin::Node { node, output }))
            .collect::<Vec<_>>();
        let scope = self.scope.join(".").into();
        let (block, backward) = (self.block, self.backward);
        self.nodes.push(Node { op, inputs: inputs.to_vec(), outputs: outputs.clone(), scope, block, backward });
        Ok(outputs)
    }

    /// Adds the place in the model to a shape error.
    fn locate(&self, e: Error) -> Error {
        match e {
            Error::Shape { op, reason } if !self.scope.is_empty() => {
                Error::Shape { op: format!("{} ({op})", self.scope.join(".")), reason }
            }
            e => e,
        }
    }

    /// Runs `build` with `name` added to the scope.
    pub fn scoped<T>(&mut self, name: impl Into<String>, build: impl FnOnce(&mut Graph) -> T) -> T {
        self.scope.push(name.into());
        let out = build(self);
        self.scope.pop();
        out
    }

    /// Runs `build`; its nodes form one recomputation block: reverse mode may drop what they make and make it again.
    pub fn block<T>(&mut self, build: impl FnOnce(&mut Graph) -> T) -> T {
        let outer = self.block;
        self.blocks += 1;
        self.block = Some(self.blocks);
        let out = build(self);
        self.block = outer;
        out
    }

    /// Runs `build`; its nodes belong to the backward pass.
    pub(crate) fn in_backward<T>(&mut self, build: impl FnOnce(&mut Graph) -> T) -> T {
        let outer = std::mem::replace(&mut self.backward, true);
        let out = build(self);
        self.backward = outer;
        out
    }

    /// Like `nodes` being replayed: appends a node under the scope of another one, in its block and pass.
    pub(crate) fn replay(&mut self, node: &Node, inputs: &[Value]) -> Result<Vec<Value>> {
        let scope = std::mem::replace(&mut self.scope, vec![node.scope.to_string()]);
        let block = std::mem::replace(&mut self.block, node.block);
        let backward = std::mem::replace(&mut self.backward, node.backward);
        let out = self.apply_arc(node.op.clone(), inputs);
        self.scope = scope;
        self.block = block;
        self.backward = backward;
        out
    }

    /// Copies `other` into this graph: `bind` says which value stands for each of its inputs (and may do so for
    /// parameters); the result maps every value of `other` to its copy.
    pub fn inline(&mut self, other: &Graph, bind: impl Fn(&Origin) -> Option<Value>) -> Result<Vec<Value>> {
        let mut map = vec![Value(u32::MAX); other.values.len()];
        for (i, info) in other.values.iter().enumerate() {
            map[i] = match (&info.origin, bind(&info.origin)) {
                (Origin::Node { .. }, _) => continue,
                (_, Some(value)) => value,
                (Origin::Input(name), None) => self.input(name, info.ty.clone()),
                (Origin::Parameter(name), None) => self.parameter(name, info.ty.clone()),
                (Origin::Constant(data), None) => self.value(info.ty.clone(), Origin::Constant(data.clone())),
            };
        }
        for node in &other.nodes {
            let inputs: Vec<Value> = node.inputs.iter().map(|v| map[v.index()]).collect();
            for (old, new) in node.outputs.iter().zip(self.replay(node, &inputs)?) {
                map[old.index()] = new;
            }
        }
        Ok(map)
    }

    /// Declares an input, a parameter or a constant.
    pub(crate) fn source(&mut self, ty: TensorType, origin: Origin) -> Value {
        self.value(ty, origin)
    }

    /// Declares every input, parameter and constant of `other`, in its order.
    pub(crate) fn copy_sources(&mut self, other: &Graph, map: &mut [Value]) {
        self.copy_sources_where(other, map, |_| true);
    }

    /// [`Graph::copy_sources`] of those that are wanted.
    pub(crate) fn copy_sources_where(&mut self, other: &Graph, map: &mut [Value], wanted: impl Fn(Value) -> bool) {
        for (i, info) in other.values.iter().enumerate() {
            if !matches!(info.origin, Origin::Node { .. }) && wanted(Value(i as u32)) {
                map[i] = self.source(info.ty.clone(), info.origin.clone());
            }
        }
        self.blocks = self.blocks.max(other.blocks);
    }

    /// Sum of the cost of every node.
    pub fn cost(&self) -> Cost {
        self.nodes.iter().map(|n| n.op.cost(&self.signature(n))).fold(Cost::default(), |a, b| a + b)
    }

    /// Types of a node's inputs and outputs.
    pub fn signature(&self, node: &Node) -> Signature {
        Signature {
            inputs: node.inputs.iter().map(|v| self.ty(*v).clone()).collect(),
            outputs: node.outputs.iter().map(|v| self.ty(*v).clone()).collect(),
        }
    }

    /// One line a node: `%7 = silu(%6)  f32[2, 8, 8, 32]  # down_blocks.0`.
    pub fn print(&self) -> String {
        let mut out = String::new();
        let list = |vs: &[Value]| vs.iter().map(|v| format!("%{}", v.0)).collect::<Vec<_>>().join(", ");
        for (i, info) in self.values.iter().enumerate() {
            let _ = match &info.origin {
                Origin::Input(name) => writeln!(out, "%{i} = input {name}  {}", info.ty),
                Origin::Parameter(name) => writeln!(out, "%{i} = parameter {name}  {}", info.ty),
                Origin::Constant(_) => writeln!(out, "%{i} = constant  {}", info.ty),
                Origin::Node { .. } => Ok(()),
            };
        }
        for node in &self.nodes {
            let types = node.outputs.iter().map(|v| self.ty(*v).to_string()).collect::<Vec<_>>().join(", ");
            let (outs, ins) = (list(&node.outputs), list(&node.inputs));
            let _ = writeln!(out, "{outs} = {:?}({ins})  {types}  # {}", node.op, node.scope);
        }
        for (name, value) in &self.outputs {
            let _ = writeln!(out, "output {name} = %{}", value.0);
        }
        out
    }
}
