//! Programs: a graph lowered for one device, with every tensor at its place in the arena.

use crate::device::ALIGN;
use crate::graph::{
    Arg, Args, Boxes, Cost, Flat, Graph, Kernel, Launch, Node, Origin, Ptx, Scalar, Shader, Signature, Target, Value,
    ptx, wgsl,
};
use crate::passes::plan::{Block, Lent, Plan, plan};
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// A named place in the arena that outlives programs: weights, latents, optimiser state, the current row.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffer {
    pub name: Arc<str>,
    pub ty: TensorType,
    /// Bytes from the start of the arena.
    pub offset: usize,
}

impl Buffer {
    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        self.ty.bytes()
    }
}

/// Names a [`Buffer`] of a [`Buffers`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BufferId(pub(crate) usize);

/// The buffers of a schedule, one after the other from the start of the arena.
#[derive(Clone, Debug, Default)]
pub struct Buffers {
    all: Vec<Buffer>,
    constants: Vec<(BufferId, Arc<[f32]>)>,
    bytes: usize,
}

impl Buffers {
    /// No buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reserves a buffer.
    pub fn declare(&mut self, name: impl AsRef<str>, ty: TensorType) -> BufferId {
        let offset = self.bytes;
        self.bytes += ty.bytes().next_multiple_of(ALIGN);
        self.push(name.as_ref().into(), ty, offset)
    }

    /// A buffer inside another one: `skip` elements from its start. Numbers of less than 4 bytes begin at a multiple of
    /// [`ALIGN`](crate::device::ALIGN) bytes.
    pub fn view(&mut self, parent: BufferId, name: impl AsRef<str>, skip: usize, ty: TensorType) -> Result<BufferId> {
        let p = self.get(parent);
        let offset = p.offset + skip * p.ty.dtype.size();
        if ty.dtype.size() < 4 && !offset.is_multiple_of(ALIGN) {
            let reason =
                format!("{ty} at element {skip} of `{}`: views of it begin at multiples of {ALIGN} bytes", p.name);
            return Err(Error::Verify { pass: "buffers", reason });
        }
        if offset + ty.bytes() > p.offset + p.bytes() {
            let reason = format!("{ty} at element {skip} does not lie inside `{}` ({})", p.name, p.ty);
            return Err(Error::Verify { pass: "buffers", reason });
        }
        Ok(self.push(name.as_ref().into(), ty, offset))
    }

    fn push(&mut self, name: Arc<str>, ty: TensorType, offset: usize) -> BufferId {
        self.all.push(Buffer { name, ty, offset });
        BufferId(self.all.len() - 1)
    }

    /// The buffer that holds a constant; equal data is stored once.
    fn constant(&mut self, ty: &TensorType, data: &Arc<[f32]>) -> BufferId {
        if let Some((id, _)) = self.constants.iter().find(|(_, d)| same_bits(d, data)) {
            return *id;
        }
        let id = self.declare("constant", ty.clone());
        self.constants.push((id, data.clone()));
        id
    }

    /// Constants with their data, to be written when the arena is made.
    pub fn constants(&self) -> &[(BufferId, Arc<[f32]>)] {
        &self.constants
    }

    /// The buffer that `id` names.
    pub fn get(&self, id: BufferId) -> &Buffer {
        &self.all[id.0]
    }

    /// All buffers.
    pub fn all(&self) -> &[Buffer] {
        &self.all
    }

    /// The first buffer of that name.
    pub fn find(&self, name: &str) -> Option<BufferId> {
        self.all.iter().position(|b| b.name.as_ref() == name).map(BufferId)
    }

    /// True if two buffers share a byte.
    fn overlap(&self, a: BufferId, b: BufferId) -> bool {
        let (a, b) = (self.get(a), self.get(b));
        a.offset < b.offset + b.bytes() && b.offset < a.offset + a.bytes()
    }

    /// Bytes of all buffers.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Equal as bits: 0 is not -0, a NaN is itself.
fn same_bits(a: &[f32], b: &[f32]) -> bool {
    bytemuck::cast_slice::<f32, u8>(a) == bytemuck::cast_slice::<f32, u8>(b)
}

/// Which part of the arena an offset counts from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Space {
    /// The buffers, from the start of the arena.
    Buffers,
    /// The scratch region behind them, shared by all programs.
    Scratch,
}

/// A place in the arena.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slice {
    pub space: Space,
    pub offset: usize,
    pub bytes: usize,
}

/// One launch with its arguments at their places.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    pub kernel: Kernel,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub args: Vec<Slice>,
    pub scalars: Vec<Scalar>,
    /// Arguments that the kernel has brought in boxes.
    pub boxes: Vec<(usize, Boxes)>,
    /// How it may be cut, see [`Flat`].
    pub flat: Option<Flat>,
    /// Arguments that the launch writes and none of its op did before it; a poisoned run fills those that are not also read with NaN before it.
    pub writes: Vec<usize>,
    /// Inputs of the op, which the launch only reads. Arguments in neither list are what earlier launches of the op left, and counters.
    pub reads: Vec<usize>,
    /// Arguments that hold outputs of the op, whole after this launch, and their types.
    pub outputs: Vec<(usize, DType)>,
    /// Arguments that go on behind what the launch sees of them: parts of views' storage, and [`Launch::part`].
    pub partial: Vec<usize>,
    pub op: &'static str,
    pub scope: Arc<str>,
    /// Cost of the op; zero for all but the first launch of one op.
    pub cost: Cost,
}

impl Command {
    /// Scratch arguments that the launch writes and does not read, with their numbers.
    pub(super) fn fresh(&self) -> impl Iterator<Item = (usize, &Slice)> {
        let overlaps =
            |a: &Slice, b: &Slice| a.space == b.space && a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
        self.writes.iter().filter_map(move |w| {
            let slice = &self.args[*w];
            let read = self.args.iter().enumerate().any(|(i, a)| !self.writes.contains(&i) && overlaps(a, slice));
            (slice.space == Space::Scratch && !read).then_some((*w, slice))
        })
    }
}

/// How a graph is turned into a program.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Bytes left free behind every scratch value, to catch writes past its end; rounded up to a multiple of
    /// [`ALIGN`](crate::device::ALIGN).
    pub guard: usize,
}

/// Where a program tells the host how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Commands that have run by then.
    pub after: usize,
    /// What the host is told.
    pub number: usize,
}

/// What scratch holds where a program needs most of it: an op's output or its own scratch.
#[derive(Clone, Debug, PartialEq)]
pub struct Live {
    pub bytes: usize,
    pub op: &'static str,
    pub scope: Arc<str>,
    /// Made in the backward pass.
    pub backward: bool,
    /// None for an op's own scratch.
    pub ty: Option<TensorType>,
    /// The first and the last node of the graph that need it.
    pub span: [usize; 2],
}

/// A graph lowered for one device: data, printable, comparable.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    pub name: String,
    pub commands: Vec<Command>,
    /// In the order of the commands.
    pub marks: Vec<Mark>,
    /// Scratch bytes that it takes, and that any plan would take.
    pub peak: usize,
    pub lower_bound: usize,
    /// What is alive where that bound comes from, the largest first.
    pub live: Vec<Live>,
    /// Network evaluations that a run of it counts for.
    pub nfe: usize,
    pub guard: usize,
}

impl Program {
    /// Sum over its launches.
    pub fn cost(&self) -> Cost {
        self.commands.iter().map(|c| c.cost).fold(Cost::default(), |a, b| a + b)
    }

    /// Lowers `graph` for `target`. `bind` says which buffer stands for an input, a parameter or an output, by name; all must
    /// be bound, and outputs that are not are dropped. An output may be bound to the buffer of an input: it is updated.
    pub fn compile(
        name: impl Into<String>,
        graph: &Graph,
        target: Target,
        buffers: &mut Buffers,
        bind: impl Fn(&str) -> Option<BufferId>,
        options: Options,
    ) -> Result<Program> {
        let name = name.into();
        let options = Options { guard: options.guard.next_multiple_of(ALIGN) };
        let mut c = Compiler::new(graph, target, options)?;
        c.bind(&name, buffers, &bind)?;
        let places = c.plan(buffers);
        let commands = c.emit(buffers, &places)?;
        let Plan { peak, lower_bound, fullest, .. } = places.plan;
        let (guard, live) = (options.guard, c.live(fullest));
        Ok(Program { name, commands, marks: vec![], peak, lower_bound, live, nfe: 0, guard })
    }

    /// The number of commands after which none reads or writes `buffer` any more.
    pub fn done_with(&self, buffer: &Buffer) -> usize {
        let end = buffer.offset + buffer.bytes();
        let touches = |s: &Slice| s.space == Space::Buffers && s.offset < end && buffer.offset < s.offset + s.bytes;
        self.commands.iter().rposition(|c| c.args.iter().any(touches)).map_or(0, |last| last + 1)
    }

    /// Tells the host once the first `after` commands of each mark have run, the marks being in that order; runs the program
    /// beside a mark before it does.
    pub(crate) fn with_marks<'a>(mut self, more: impl IntoIterator<Item = (Mark, Option<&'a Program>)>) -> Program {
        let commands = std::mem::take(&mut self.commands);
        let mut done = 0;
        for (mark, program) in more {
            self.commands.extend_from_slice(&commands[done..mark.after]);
            done = mark.after;
            if let Some(program) = program {
                self.commands.extend_from_slice(&program.commands);
                self.peak = self.peak.max(program.peak);
            }
            self.marks.push(Mark { after: self.commands.len(), ..mark });
        }
        self.commands.extend_from_slice(&commands[done..]);
        self
    }

    /// Marks that one run counts for `nfe` network evaluations.
    pub fn with_nfe(mut self, nfe: usize) -> Self {
        self.nfe = nfe;
        self
    }
}

/// Where a value's storage is.
#[derive(Clone, Copy, PartialEq)]
enum Home {
    Unused,
    Buffer(BufferId),
    /// Block number in the plan.
    Scratch(usize),
}

/// Where blocks lie.
struct Places {
    plan: Plan,
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

struct Compiler<'a> {
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
    fn new(graph: &'a Graph, target: Target, options: Options) -> Result<Self> {
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
    fn bind(&mut self, name: &str, buffers: &mut Buffers, bind: &dyn Fn(&str) -> Option<BufferId>) -> Result<()> {
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

    fn plan(&self, buffers: &Buffers) -> Places {
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
    fn live(&self, at: usize) -> Vec<Live> {
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

    fn emit(&self, buffers: &Buffers, places: &Places) -> Result<Vec<Command>> {
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
