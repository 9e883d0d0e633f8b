//! From a graph to a program: what is live, where values lie, and the launches at their places.

use super::{BufferId, Buffers, Command, Live, Options, Slice, Space};
use crate::device::ALIGN;
use crate::graph::{
    Arg, Args, Cost, Graph, Kernel, Launch, Node, Origin, Ptx, Scalar, Shader, Signature, Target, Value, ptx, wgsl,
};
use crate::passes::plan::{Block, Lent, Plan, plan};
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};
use std::collections::HashMap;

/// Where a value's storage is.
#[derive(Clone, Copy, PartialEq)]
enum Home {
    Unused,
    Buffer(BufferId),
    /// Block number in the plan.
    Scratch(usize),
}

/// Where blocks lie.
pub(super) struct Places {
    pub plan: Plan,
    /// Bytes of the memory that buffers lend, in the plan.
    lent: usize,
    /// Its pieces, in order: offset in the plan, offset of the buffers that lend it.
    pieces: Vec<(usize, usize)>,
}

impl Places {
    /// `bytes` from the start of a block.
    fn slice(&self, block: usize, bytes: usize) -> Slice {
        let offset = self.plan.offsets[block];
        if offset >= self.lent {
            return Slice { space: Space::Scratch, offset: offset - self.lent, bytes };
        }
        let (start, buffers) = self.pieces[self.pieces.partition_point(|(start, _)| *start <= offset) - 1];
        Slice { space: Space::Buffers, offset: buffers + offset - start, bytes }
    }
}

pub(super) struct Compiler<'a> {
    graph: &'a Graph,
    target: Target,
    options: Options,
    launches: Vec<Vec<Launch>>,
    /// The node is needed for a bound output.
    live: Vec<bool>,
    /// The value whose storage a value uses, or a part of it: itself, or what it is a view of or written over.
    root: Vec<usize>,
    /// Bytes from where its root begins to where a value begins.
    skip: Vec<usize>,
    /// By node: the launches before its own; and those of all nodes. A node without launches counts as one.
    starts: Vec<usize>,
    /// By root: first definition and last use, as launches.
    span: Vec<(usize, usize)>,
    home: Vec<Home>,
    blocks: Vec<Block>,
    /// Outputs that need a copy at the end: value, buffer.
    copies: Vec<(Value, BufferId)>,
    /// Outputs that are what a buffer held at first, where the program writes over it: value, block that keeps it, buffer.
    kept: Vec<(Value, usize, BufferId)>,
    scratch: HashMap<(usize, usize), Vec<usize>>,
    /// By node and launch.
    counters: HashMap<(usize, usize), Slice>,
    /// By node, launch and argument: the block that stands for a view which the launch cannot bind where it lies.
    moved: HashMap<(usize, usize, usize), usize>,
}

impl<'a> Compiler<'a> {
    pub fn new(graph: &'a Graph, target: Target, options: Options) -> Result<Self> {
        let n = graph.values().len();
        let lower = |node: &Node| {
            let io = graph.signature(node);
            check_types(node, &io, &target)?;
            let launches = if node.op.view(&io).is_some() { Ok(vec![]) } else { node.op.lower(&io, &target) };
            launches.map_err(|e| match e {
                Error::Shape { op, reason } => Error::Shape { op: format!("{} ({op})", node.scope), reason },
                e => e,
            })
        };
        let launches: Vec<Vec<Launch>> = graph.nodes().iter().map(lower).collect::<Result<_>>()?;
        let mut starts = vec![0];
        starts.extend(launches.iter().scan(0, |end, launches| {
            *end += launches.len().max(1);
            Some(*end)
        }));
        Ok(Compiler {
            graph,
            target,
            options,
            launches,
            starts,
            live: vec![false; graph.nodes().len()],
            root: (0..n).collect(),
            skip: vec![0; n],
            span: vec![(usize::MAX, 0); n],
            home: vec![Home::Unused; n],
            blocks: vec![],
            copies: vec![],
            kept: vec![],
            scratch: HashMap::new(),
            counters: HashMap::new(),
            moved: HashMap::new(),
        })
    }

    /// Decides for every value whether it lives in a buffer or in scratch, and for how long.
    pub fn bind(&mut self, name: &str, buffers: &mut Buffers, bind: &dyn Fn(&str) -> Option<BufferId>) -> Result<()> {
        let outputs: Vec<(Value, BufferId)> =
            self.graph.outputs().iter().filter_map(|(n, v)| bind(n).map(|b| (*v, b))).collect();
        self.mark_live(&outputs);
        self.bind_sources(name, buffers, bind)?;
        self.share_storage(&outputs);
        let end = self.end();
        self.measure_spans();
        for (number, &(value, buffer)) in outputs.iter().enumerate() {
            let (b, ty) = (buffers.get(buffer), self.graph.ty(value));
            if b.ty.bytes() != ty.bytes() {
                let reason = format!("output {ty} is bound to `{}` ({})", b.name, b.ty);
                return Err(Error::Verify { pass: "binding", reason });
            }
            let root = self.root[value.index()];
            if self.is_overwritten(root, number, &outputs, buffers) {
                let bytes = ty.bytes().next_multiple_of(ALIGN) + self.options.guard;
                self.kept.push((value, self.blocks.len(), buffer));
                self.blocks.push(Block { first: 0, last: end, bytes });
            } else if self.home[root] == Home::Unused && self.fills(value) && self.writable(root, buffer, buffers) {
                self.home[root] = Home::Buffer(buffer);
            } else {
                self.copies.push((value, buffer));
                self.span[root].1 = end;
            }
        }
        self.add_blocks();
        self.add_counters(buffers);
        self.move_views(buffers);
        Ok(())
    }

    fn mark_live(&mut self, outputs: &[(Value, BufferId)]) {
        let mut needed = vec![false; self.graph.values().len()];
        outputs.iter().for_each(|(v, _)| needed[v.index()] = true);
        for (i, node) in self.graph.nodes().iter().enumerate().rev() {
            if node.outputs.iter().any(|v| needed[v.index()]) {
                self.live[i] = true;
                node.inputs.iter().for_each(|v| needed[v.index()] = true);
            }
        }
    }

    fn live_nodes(&self) -> impl Iterator<Item = (usize, &'a Node)> + use<'a, '_> {
        self.graph.nodes().iter().enumerate().filter(|(i, _)| self.live[*i])
    }

    fn bind_sources(
        &mut self,
        program: &str,
        buffers: &mut Buffers,
        bind: &dyn Fn(&str) -> Option<BufferId>,
    ) -> Result<()> {
        let mut used = vec![false; self.graph.values().len()];
        self.live_nodes().for_each(|(_, n)| n.inputs.iter().for_each(|v| used[v.index()] = true));
        self.graph.outputs().iter().for_each(|(n, v)| used[v.index()] |= bind(n).is_some());
        for (i, info) in self.graph.values().iter().enumerate().filter(|(i, _)| used[*i]) {
            let id = match &info.origin {
                Origin::Node { .. } => continue,
                Origin::Constant(data) => buffers.constant(&info.ty, data),
                Origin::Input(port) | Origin::Parameter(port) => bind(port).ok_or_else(|| Error::Verify {
                    pass: "binding",
                    reason: format!("{program}: nothing is bound to `{port}`"),
                })?,
            };
            let b = buffers.get(id);
            if b.bytes() != info.ty.bytes() {
                let reason = format!("{program}: {:?} {} is bound to `{}` ({})", info.origin, info.ty, b.name, b.ty);
                return Err(Error::Verify { pass: "binding", reason });
            }
            self.home[i] = Home::Buffer(id);
        }
        Ok(())
    }

    /// Views share their input's storage; ops that may run in place take over an input that nothing needs afterwards, unless
    /// they make an output: that is better written straight into its buffer.
    fn share_storage(&mut self, outputs: &[(Value, BufferId)]) {
        let mut last_use = vec![0; self.graph.values().len()];
        for (i, node) in self.live_nodes() {
            node.inputs.iter().for_each(|v| last_use[v.index()] = i);
        }
        for (_, v) in self.graph.outputs() {
            last_use[v.index()] = usize::MAX;
        }
        // By root: the last use of anything that shares its storage.
        let mut root_last = vec![0; self.graph.values().len()];
        for (i, node) in self.graph.nodes().iter().enumerate().filter(|(i, _)| self.live[*i]) {
            for output in &node.outputs {
                root_last[output.index()] = last_use[output.index()];
            }
            let view = node.op.view(&self.graph.signature(node));
            let pairs: &[(usize, usize)] = if view.is_some() { &[(0, 0)] } else { node.op.in_place() };
            for (input, output) in pairs {
                let (Some(from), Some(to)) = (node.inputs.get(*input), node.outputs.get(*output)) else { continue };
                let root = self.root[from.index()];
                let same_size = self.fills(*from) && self.graph.ty(*from).bytes() == self.graph.ty(*to).bytes();
                let once = node.inputs.iter().filter(|v| self.root[v.index()] == root).count() == 1;
                let free = self.home[root] == Home::Unused && root_last[root] == i && once;
                let free = free && !outputs.iter().any(|(v, _)| v == to);
                if view.is_some() || (same_size && free) {
                    self.root[to.index()] = root;
                    self.skip[to.index()] = self.skip[from.index()] + view.unwrap_or(0);
                    root_last[root] = root_last[root].max(last_use[to.index()]);
                    break;
                }
            }
        }
    }

    /// True if a value is all of its root's storage.
    fn fills(&self, value: Value) -> bool {
        self.graph.ty(value).bytes() == self.graph.ty(Value(self.root[value.index()] as u32)).bytes()
    }

    fn measure_spans(&mut self) {
        for (i, node) in self.graph.nodes().iter().enumerate().filter(|(i, _)| self.live[*i]) {
            let inputs = node.inputs.iter().enumerate().map(|(k, v)| (v, Arg::Input(k)));
            let outputs = node.outputs.iter().enumerate().map(|(k, v)| (v, Arg::Output(k)));
            for (v, arg) in inputs.chain(outputs) {
                let (first, last) = self.launches_with(i, arg).unwrap_or((self.starts[i], self.starts[i + 1] - 1));
                let span = &mut self.span[self.root[v.index()]];
                *span = (span.0.min(first), span.1.max(last));
            }
        }
    }

    /// The first and the last launch of a node that have an argument.
    fn launches_with(&self, node: usize, arg: Arg) -> Option<(usize, usize)> {
        let launches = &self.launches[node];
        let first = launches.iter().position(|launch| launch.args.contains(&arg))?;
        let last = launches.iter().rposition(|launch| launch.args.contains(&arg))?;
        Some((self.starts[node] + first, self.starts[node] + last))
    }

    /// The number of launches.
    fn end(&self) -> usize {
        self.starts[self.graph.nodes().len()]
    }

    /// The node that a launch is of.
    fn node_at(&self, launch: usize) -> usize {
        self.starts.partition_point(|start| *start <= launch) - 1
    }

    /// True if a scratch root may be written straight into `buffer`: nothing reads the buffer's old content after the first
    /// write, except an op at that very write that may run in place.
    fn writable(&self, root: usize, buffer: BufferId, buffers: &Buffers) -> bool {
        let (first, target) = (self.node_at(self.span[root].0), buffers.get(buffer));
        let overlaps = |other: BufferId| buffers.overlap(other, buffer);
        let shares = |v: &Value| matches!(self.home[self.root[v.index()]], Home::Buffer(b) if overlaps(b));
        if self.home.iter().enumerate().any(|(i, h)| {
            matches!(h, Home::Buffer(b) if overlaps(*b)) && matches!(self.graph.values()[i].origin, Origin::Node { .. })
        }) {
            return false;
        }
        self.live_nodes().filter(|(i, _)| *i >= first).all(|(i, node)| {
            let readers: Vec<usize> = (0..node.inputs.len()).filter(|k| shares(&node.inputs[*k])).collect();
            readers.is_empty()
                || (i == first
                    && readers.iter().all(|k| {
                        let exact = self.home[self.root[node.inputs[*k].index()]] == Home::Buffer(buffer)
                            || matches!(self.home[self.root[node.inputs[*k].index()]], Home::Buffer(b) if buffers.get(b).offset == target.offset);
                        // A part of what the buffer holds begins elsewhere, or ends sooner.
                        let exact = exact && self.fills(node.inputs[*k]);
                        exact && node.op.in_place().iter().any(|(a, o)| a == k && node.outputs.get(*o).is_some_and(|v| self.root[v.index()] == root))
                    }))
        }) && !self.copies.iter().any(|(v, _)| shares(v))
    }

    /// True if a root's buffer is an input's, and an output other than number `number` is written over it: all outputs are
    /// functions of what the buffers held at first.
    fn is_overwritten(&self, root: usize, number: usize, outputs: &[(Value, BufferId)], buffers: &Buffers) -> bool {
        let Home::Buffer(source) = self.home[root] else { return false };
        let from_node = matches!(self.graph.values()[root].origin, Origin::Node { .. });
        let others = outputs.iter().enumerate().filter(|(i, _)| *i != number);
        !from_node && others.into_iter().any(|(_, (_, target))| buffers.overlap(source, *target))
    }

    fn add_blocks(&mut self) {
        for (i, node) in self.graph.nodes().iter().enumerate().filter(|(i, _)| self.live[*i]) {
            for v in &node.outputs {
                let root = self.root[v.index()];
                if self.home[root] == Home::Unused {
                    let bytes = self.graph.ty(Value(root as u32)).bytes().next_multiple_of(ALIGN) + self.options.guard;
                    let (first, last) = self.span[root];
                    self.blocks.push(Block { first, last, bytes });
                    self.home[root] = Home::Scratch(self.blocks.len() - 1);
                }
            }
            for (l, launch) in self.launches[i].iter().enumerate() {
                let first = self.starts[i] + l;
                let pieces: Vec<Block> = launch
                    .scratch
                    .iter()
                    .enumerate()
                    .map(|(k, bytes)| {
                        let bytes = bytes.next_multiple_of(ALIGN) + self.options.guard;
                        let last = self.launches_with(i, Arg::Left(l, k)).map_or(first, |(_, last)| last);
                        Block { first, last, bytes }
                    })
                    .collect();
                let ids = self.blocks.len()..self.blocks.len() + pieces.len();
                self.scratch.insert((i, l), ids.collect());
                self.blocks.extend(pieces);
            }
        }
    }

    /// Gives a buffer, which is zero at first, to the counters of every launch.
    fn add_counters(&mut self, buffers: &mut Buffers) {
        for (i, _) in self.graph.nodes().iter().enumerate().filter(|(i, _)| self.live[*i]) {
            for (l, launch) in self.launches[i].iter().enumerate().filter(|(_, launch)| launch.counters > 0) {
                let id = buffers.declare("counters", TensorType::i32([launch.counters]));
                let (offset, bytes) = (buffers.get(id).offset, buffers.get(id).bytes());
                self.counters.insert((i, l), Slice { space: Space::Buffers, offset, bytes });
            }
        }
    }

    /// Gives a block to every argument that begins where its launch cannot bind it: a view in the middle of a buffer.
    fn move_views(&mut self, buffers: &Buffers) {
        for (i, node) in self.graph.nodes().iter().enumerate().filter(|(i, _)| self.live[*i]) {
            for (l, launch) in self.launches[i].iter().enumerate() {
                let movable = |a: &usize| matches!(launch.kernel, Kernel::Wgsl(_)) && !launch.anywhere.contains(a);
                for a in (0..launch.args.len()).filter(movable) {
                    let value = match launch.args[a] {
                        Arg::Input(k) => node.inputs[k],
                        Arg::Output(k) => node.outputs[k],
                        Arg::Scratch(_) | Arg::Left(..) | Arg::Counters => continue,
                    };
                    let Home::Buffer(b) = self.home[self.root[value.index()]] else { continue };
                    if !buffers.get(b).offset.is_multiple_of(ALIGN) {
                        let bytes = self.graph.ty(value).bytes().next_multiple_of(ALIGN) + self.options.guard;
                        let at = self.starts[i] + l;
                        self.moved.insert((i, l, a), self.blocks.len());
                        self.blocks.push(Block { first: at, last: at, bytes });
                    }
                }
            }
        }
    }

    pub fn plan(&self, buffers: &Buffers) -> Places {
        let (lent, pieces) = self.lent(buffers);
        Places { plan: plan(&self.blocks, &lent), lent: lent.bytes, pieces }
    }

    /// The memory of buffers that the program writes and does not read is free until it does: that of gradients, while activations
    /// are kept. Pieces of it as in [`Places`]. Guard zones lie behind scratch alone, and where a wgpu arena is cut a buffer stays whole,
    /// not what lies across two.
    fn lent(&self, buffers: &Buffers) -> (Lent, Vec<(usize, usize)>) {
        let (mut lent, mut pieces) = (Lent::default(), vec![]);
        if self.options.guard > 0 || matches!(self.target, Target::Wgpu(_)) {
            return (lent, pieces);
        }
        let end = self.end();
        let mut written = self.written(buffers).into_iter().peekable();
        let mut begins = true;
        while let Some((from, to, first)) = written.next() {
            if begins {
                pieces.push((lent.bytes, from));
            }
            lent.taken.push((lent.bytes, Block { first, last: end, bytes: to - from }));
            lent.bytes += to - from;
            // Behind what nothing follows there is a wall.
            begins = written.peek().is_none_or(|next| next.0 != to);
            if begins {
                lent.taken.push((lent.bytes, Block { first: 0, last: end, bytes: ALIGN }));
                lent.bytes += ALIGN;
            }
        }
        (lent, pieces)
    }

    /// Where the program writes what buffers hold in the end, and reads nothing: offsets of start and end, in their order, and the first
    /// launch that writes there.
    fn written(&self, buffers: &Buffers) -> Vec<(usize, usize, usize)> {
        let end = self.end();
        let (mut read, mut written) = (vec![], vec![]);
        for (i, home) in self.home.iter().enumerate() {
            match (home, &self.graph.values()[i].origin) {
                (Home::Buffer(b), Origin::Node { .. }) => written.push((*b, self.span[i].0)),
                (Home::Buffer(b), _) => read.push(*b),
                _ => {}
            }
        }
        written.extend(self.copies.iter().map(|(_, b)| (*b, end)));
        written.extend(self.kept.iter().map(|(_, _, b)| (*b, end)));
        let lone = |(n, (b, _)): &(usize, &(BufferId, usize))| {
            let others = written.iter().enumerate().filter(|(i, _)| i != n).map(|(_, (b, _))| b);
            !others.chain(&read).any(|other| buffers.overlap(*b, *other))
        };
        let mut places: Vec<(usize, usize, usize)> = written
            .iter()
            .enumerate()
            .filter(lone)
            .map(|(_, (b, first))| (buffers.get(*b).offset, buffers.get(*b).offset + buffers.get(*b).bytes(), *first))
            .filter(|(from, to, _)| from.is_multiple_of(ALIGN) && to.is_multiple_of(ALIGN) && from < to)
            .collect();
        places.sort_unstable();
        places
    }

    /// What is alive at a launch.
    pub fn live(&self, at: usize) -> Vec<Live> {
        let of_node = |block: usize, node: &Node, ty: Option<TensorType>| {
            let Block { first, last, bytes } = self.blocks[block];
            let (op, scope, backward) = (node.op.name(), node.scope.clone(), node.backward);
            let span = [first, last].map(|launch| self.node_at(launch));
            (first <= at && at <= last).then_some(Live { bytes, op, scope, backward, ty, span })
        };
        let values = (0..self.home.len()).filter_map(|i| {
            let (Home::Scratch(block), value) = (self.home[i], Value(i as u32)) else { return None };
            of_node(block, self.graph.producer(value)?, Some(self.graph.ty(value).clone()))
        });
        let scratch = self.scratch.iter().flat_map(|((node, _), blocks)| blocks.iter().map(|block| (*node, *block)));
        let scratch = scratch.filter_map(|(node, block)| of_node(block, &self.graph.nodes()[node], None));
        let mut live: Vec<Live> = values.chain(scratch).collect();
        live.sort_by_key(|l| (usize::MAX - l.bytes, l.span));
        live
    }

    fn slice(&self, value: Value, buffers: &Buffers, places: &Places) -> Result<Slice> {
        let (bytes, skip) = (self.graph.ty(value).bytes(), self.skip[value.index()]);
        match self.home[self.root[value.index()]] {
            Home::Buffer(b) => Ok(Slice { space: Space::Buffers, offset: buffers.get(b).offset + skip, bytes }),
            Home::Scratch(block) => {
                let all = places.slice(block, skip + bytes);
                Ok(Slice { offset: all.offset + skip, bytes, ..all })
            }
            Home::Unused => Err(Error::Verify { pass: "memory", reason: format!("%{} has no place", value.0) }),
        }
    }

    pub fn emit(&self, buffers: &Buffers, places: &Places) -> Result<Vec<Command>> {
        let mut commands = Vec::new();
        for (value, block, _) in &self.kept {
            let from = self.slice(*value, buffers, places)?;
            commands.push(copy(self.target, from, places.slice(*block, from.bytes)));
        }
        for (i, node) in self.live_nodes() {
            for (l, launch) in self.launches[i].iter().enumerate() {
                let mut args = Vec::with_capacity(launch.args.len());
                let (mut writes, mut outputs, mut partial) = (Vec::new(), Vec::new(), Vec::new());
                let is_input = |a: &usize| matches!(launch.args[*a], Arg::Input(_));
                let reads = (0..launch.args.len()).filter(is_input).collect();
                let mut back = Vec::new();
                let (before, after) = (&self.launches[i][..l], &self.launches[i][l + 1..]);
                let scratch =
                    |of: usize, k: usize| places.slice(self.scratch[&(i, of)][k], self.launches[i][of].scratch[k]);
                for (a, arg) in launch.args.iter().enumerate() {
                    let all = match arg {
                        Arg::Input(k) => self.slice(node.inputs[*k], buffers, places)?,
                        Arg::Output(k) => {
                            // Later launches of an op may read what earlier ones wrote.
                            if !before.iter().any(|b| launch.shares(a, b)) {
                                writes.push(args.len());
                            }
                            if !after.iter().any(|b| launch.shares(a, b)) {
                                outputs.push((args.len(), self.graph.ty(node.outputs[*k]).dtype));
                            }
                            self.slice(node.outputs[*k], buffers, places)?
                        }
                        Arg::Scratch(k) => {
                            writes.push(args.len());
                            scratch(l, *k)
                        }
                        Arg::Left(of, k) => {
                            // What the launch that has the scratch memory does not see of it, others fill.
                            if self.launches[i][*of].leaves(*k, launch, a)
                                && !before.iter().any(|b| launch.shares(a, b))
                            {
                                writes.push(args.len());
                            }
                            scratch(*of, *k)
                        }
                        Arg::Counters => self.counters[&(i, l)],
                    };
                    let seen = launch.seen(a).cloned().unwrap_or(0..all.bytes);
                    let of_more = matches!(arg, Arg::Input(k) if !self.fills(node.inputs[*k]));
                    if of_more || seen.end < all.bytes {
                        partial.push(a);
                    }
                    args.push(Slice { offset: all.offset + seen.start, bytes: seen.len(), ..all });
                }
                for (a, slice) in args.iter_mut().enumerate() {
                    let Some(block) = self.moved.get(&(i, l, a)) else { continue };
                    let there = std::mem::replace(slice, places.slice(*block, slice.bytes));
                    if matches!(launch.args[a], Arg::Output(_)) {
                        back.push(copy(self.target, *slice, there));
                    }
                    if !writes.contains(&a) {
                        commands.push(copy(self.target, there, *slice));
                    }
                }
                let cost = if l == 0 { node.op.cost(&self.graph.signature(node)) } else { Cost::default() };
                let (op, scope) = (node.op.name(), node.scope.clone());
                commands.push(Command {
                    writes,
                    reads,
                    outputs,
                    partial,
                    op,
                    scope,
                    cost,
                    ..command(launch.clone(), args)
                });
                commands.append(&mut back);
            }
        }
        let place =
            |buffer: BufferId, bytes| Slice { space: Space::Buffers, offset: buffers.get(buffer).offset, bytes };
        for (value, block, buffer) in &self.kept {
            let bytes = self.graph.ty(*value).bytes();
            commands.push(copy(self.target, places.slice(*block, bytes), place(*buffer, bytes)));
        }
        for (value, buffer) in &self.copies {
            let from = self.slice(*value, buffers, places)?;
            let to = place(*buffer, from.bytes);
            if from != to {
                let partial = if self.fills(*value) { vec![] } else { vec![0] };
                commands.push(Command { partial, ..copy(self.target, from, to) });
            }
        }
        Ok(commands)
    }
}

/// Fails where a node's numbers are stored as its op cannot take them on the target.
fn check_types(node: &Node, io: &Signature, target: &Target) -> Result<()> {
    let types = || io.inputs.iter().chain(&io.outputs).map(|ty| ty.dtype);
    let short = types().find(|dtype| matches!(dtype, DType::F16 | DType::Bf16));
    match short {
        Some(dtype) if !node.op.takes(dtype, target) => {
            let what = format!("`{}` ({}) in {dtype} on this {} device", node.op.name(), node.scope, target.name());
            Err(Error::unsupported(what, "store its numbers as f32; `passes::storage` casts where an op needs it"))
        }
        _ => Ok(()),
    }
}

/// A launch at its places; what it belongs to is left open.
fn command(launch: Launch, args: Vec<Slice>) -> Command {
    let mut scalars = launch.scalars;
    scalars.extend(launch.anywhere.iter().map(|a| Scalar::Int(args[*a].offset % ALIGN / 4)));
    Command {
        kernel: launch.kernel.replaced(),
        grid: launch.grid,
        block: launch.block,
        args,
        scalars,
        boxes: launch.boxes,
        flat: launch.flat,
        writes: vec![],
        reads: vec![],
        outputs: vec![],
        partial: vec![],
        op: "",
        scope: "".into(),
        cost: Cost::default(),
    }
}

/// A launch that copies bytes.
fn copy(target: Target, from: Slice, to: Slice) -> Command {
    let launch = match target {
        Target::Cpu => Launch::cpu("copy", |args: &Args| args.slice_mut::<u8>(1).copy_from_slice(args.slice(0)), 1, 1),
        Target::Wgpu(target) => {
            Launch::flat(Shader::new("copy", wgsl!("lib/flat", "copy")), &target, from.bytes.div_ceil(4), 1)
        }
        Target::Cuda(_) => {
            let kernel = Ptx::new("copy", ptx!("copy"), DType::F32);
            Launch::ptx_flat(kernel, DType::F32, from.bytes.div_ceil(4), [Arg::Input(0), Arg::Output(0)])
        }
    };
    let cost = Cost { flops: 0, bytes: 2 * from.bytes as u64 };
    Command { writes: vec![1], reads: vec![0], outputs: vec![], op: "copy", cost, ..command(launch, vec![from, to]) }
}
