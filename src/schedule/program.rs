//! Programs: a graph lowered for one device, with every tensor at its place in the arena.

use super::compile::Compiler;
use super::{Buffer, BufferId, Buffers};
use crate::Result;
use crate::device::ALIGN;
use crate::graph::{Boxes, Cost, Flat, Graph, Kernel, Scalar, Target};
use crate::passes::plan::Plan;
use crate::tensor::{DType, TensorType};
use std::sync::Arc;

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
    /// Arguments that go on behind what the launch sees of them: parts of views' storage, and [`Launch::part`](crate::graph::Launch::part).
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
