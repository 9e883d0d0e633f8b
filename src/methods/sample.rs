//! Sampling: a [`Trajectory`] over networks becomes a schedule.
//!
//! Steps of one shape become one program and one loop over the row table. Inside a program the sampler's registers are
//! values; only those that a later step reads live in buffers. Guidance is folded into the coefficients: where the answer
//! `out` stands in an update with coefficient c, the conditional answer gets c·g and the unconditional c·(1 − g), so that
//! CFG and the sampler's step are one `diffusion_update`. What no step changes, keys and values of a text say, a program makes before the loop.

use crate::diffusion::reflection::leg;
use crate::diffusion::{Guidance, Reg, Stage, Step, Trajectory};
use crate::graph::{Graph, Origin, Target, Value};
use crate::nn::{Built, Parameter, adapter_parameter};
use crate::ops::{Broadcast, DiffusionUpdate, GuidanceRescale, Random, RandomKind, Slice};
use crate::passes::fuse::{Purpose, fuse};
use crate::passes::hoist::hoist;
use crate::passes::invariant::split;
use crate::passes::once::once;
use crate::schedule::{BufferId, Buffers, Options, Program, Rows, Schedule, Step as ScheduleStep};
use crate::tensor::TensorType;
use crate::{Error, Result};
use std::collections::{HashMap, HashSet};

/// A network with its weights and inputs, by the names their buffers have: `{weights}/conv_in.weight`, `{inputs}/class_labels`,
/// and `{scales}/lora0/scale`: two denoisers may share an adapter and scale it differently.
#[derive(Clone, Copy, Debug)]
pub struct Denoiser<'a> {
    pub network: &'a Built,
    pub weights: &'a str,
    pub inputs: &'a str,
    pub scales: &'a str,
}

impl Denoiser<'_> {
    /// The network's inputs that steps do not drive, with the names of their buffers.
    fn conditions(&self) -> impl Iterator<Item = (Value, String)> {
        let inputs = self.network.graph.inputs().filter(|(_, n)| !is_driven(n));
        inputs.map(|(value, name)| (value, format!("{}/{name}", self.inputs)))
    }

    /// The prefix of a parameter's buffer.
    fn prefix(&self, parameter: &str) -> &str {
        match adapter_parameter(parameter) {
            Some((_, "scale")) => self.scales,
            _ => self.weights,
        }
    }
}

/// What a [`Stage::Query`] asks, by its leg: a denoiser, and what guides it.
#[derive(Clone, Copy, Debug)]
pub struct Operator<'a> {
    pub denoiser: Denoiser<'a>,
    pub guidance: Guidance,
    /// The unconditional denoiser (or the weaker one, for autoguidance).
    pub guide: Option<Denoiser<'a>>,
}

/// Choices that do not change what is computed.
#[derive(Clone, Copy, Debug)]
pub struct Lowering {
    pub target: Target,
    pub fuse: bool,
    pub options: Options,
    /// Draw the first latents on the device from the seeds, instead of reading them from the buffer `latents`.
    pub draw_latents: bool,
}

/// A sampling schedule and the names of what the host writes and reads.
#[derive(Clone, Debug)]
pub struct Sampling {
    pub schedule: Schedule,
    /// The result, NHWC.
    pub result: BufferId,
    /// Latents of unit variance, NHWC.
    pub latents: BufferId,
    /// i32 `[B, 2]`: one 64-bit seed an image.
    pub seeds: BufferId,
    /// Every weight with its buffer and the prefix of its denoiser.
    pub weights: Vec<(BufferId, String, Parameter)>,
    /// Merges that fusion made.
    pub fusions: Vec<String>,
}

/// Philox streams, far from those of dropout layers: the first latents, and noise that the sampler adds.
const LATENTS: u32 = 1 << 16;
const SAMPLER_NOISE: u32 = LATENTS + 1;

/// The schedule that runs `trajectory` on latents of type `latents` (NHWC); operator i answers leg i.
pub fn sample(
    trajectory: &Trajectory,
    operators: &[Operator],
    latents: &TensorType,
    how: Lowering,
) -> Result<Sampling> {
    let mut builder = Builder::new(trajectory, operators, latents, how)?;
    builder.declare()?;
    builder.init(trajectory.init_scale)?;
    for group in trajectory.groups() {
        builder.group(&trajectory.steps[group.clone()], group.start)?;
    }
    builder.finish()
}

/// A register, or the unconditional side of a guided answer.
type Slot = (Reg, bool);

/// A port that reads the row: its name, first column and length.
type Span = (String, usize, usize);

/// A stage after guidance was worked in.
#[derive(Clone, Debug)]
enum Instruction {
    /// `scale` is `None` where it is 1 in every step of a group.
    Network {
        leg: usize,
        guide: bool,
        x: Slot,
        to: Slot,
        time: f64,
        scale: Option<f64>,
    },
    Update {
        to: Slot,
        terms: Vec<(Slot, f64)>,
        clip: Option<f64>,
    },
    Rescale {
        cond: Slot,
        combined: Slot,
        to: Slot,
        phi: f64,
    },
    Noise {
        to: Slot,
        draw: u32,
    },
}

impl Instruction {
    /// Its numbers in the row table.
    fn numbers(&self) -> Vec<f64> {
        match self {
            Instruction::Network { time, scale, .. } => [*time].into_iter().chain(*scale).collect(),
            Instruction::Update { terms, .. } => terms.iter().map(|t| t.1).collect(),
            Instruction::Noise { draw, .. } => vec![*draw as f64],
            Instruction::Rescale { .. } => vec![],
        }
    }
}

struct Builder<'a> {
    trajectory: &'a Trajectory,
    operators: &'a [Operator<'a>],
    latents_ty: TensorType,
    how: Lowering,
    /// Registers that a step reads before it writes them, and the result: they live in buffers.
    persistent: HashSet<Reg>,
    columns: usize,
    buffers: Buffers,
    /// Index of the row buffer.
    row: Option<BufferId>,
    rows: Vec<f32>,
    programs: Vec<Program>,
    steps: Vec<ScheduleStep>,
    weights: Vec<(BufferId, String, Parameter)>,
    fusions: Vec<String>,
}

impl<'a> Builder<'a> {
    fn new(
        trajectory: &'a Trajectory,
        operators: &'a [Operator<'a>],
        latents: &TensorType,
        how: Lowering,
    ) -> Result<Self> {
        let mut persistent = HashSet::from([trajectory.out, Reg::X]);
        persistent.extend(trajectory.kept.iter().copied());
        for step in &trajectory.steps {
            let mut written = HashSet::new();
            for stage in &step.stages {
                persistent.extend(stage.reads().into_iter().filter(|r| !written.contains(r)));
                written.insert(stage.writes());
                if let Stage::Query { leg, .. } = stage
                    && *leg >= operators.len()
                {
                    return Err(Error::Verify { pass: "sampling", reason: format!("no operator answers leg {leg}") });
                }
            }
        }
        Ok(Builder {
            trajectory,
            operators,
            latents_ty: latents.clone(),
            how,
            persistent,
            columns: 0,
            buffers: Buffers::new(),
            row: None,
            rows: vec![],
            programs: vec![],
            steps: vec![],
            weights: vec![],
            fusions: vec![],
        })
    }

    fn declare(&mut self) -> Result<()> {
        let widths =
            self.trajectory.steps.iter().map(|s| self.expand(s).iter().map(|i| i.numbers().len()).sum::<usize>());
        self.columns = widths.max().unwrap_or(0);
        self.row = Some(self.buffers.declare("row", TensorType::f32([self.columns])));
        let batch = self.latents_ty.shape[0];
        self.buffers.declare("seeds", TensorType::i32([batch, 2]));
        self.buffers.declare("latents", self.latents_ty.clone());
        let mut registers: Vec<Reg> = self.persistent.iter().copied().collect();
        registers.sort();
        for reg in registers {
            self.buffers.declare(reg.0, self.latents_ty.clone());
        }
        let denoisers: Vec<_> = self.denoisers().collect();
        // First, because others may have the same weights as they are.
        for denoiser in &denoisers {
            for joined in &denoiser.network.joined {
                let place = |name: &str| format!("{}/{name}", denoiser.prefix(name));
                if self.buffers.find(&place(&joined.name)).is_none() {
                    self.buffers.declare_joined(joined, place)?;
                }
            }
        }
        denoisers.iter().for_each(|denoiser| self.declare_denoiser(denoiser));
        Ok(())
    }

    /// All that is asked, maybe more than once.
    fn denoisers(&self) -> impl Iterator<Item = Denoiser<'a>> + use<'a, '_> {
        self.operators.iter().flat_map(|o| [Some(o.denoiser), o.guide]).flatten()
    }

    fn declare_denoiser(&mut self, denoiser: &Denoiser) {
        let graph = &denoiser.network.graph;
        for (value, name) in denoiser.conditions() {
            if self.buffers.find(&name).is_none() {
                self.buffers.declare(name, graph.ty(value).clone());
            }
        }
        for parameter in &denoiser.network.parameters {
            let prefix = denoiser.prefix(&parameter.name);
            let name = format!("{prefix}/{}", parameter.name);
            let there = self.buffers.find(&name);
            if !self.weights.iter().any(|(id, ..)| Some(*id) == there) {
                let id = there.unwrap_or_else(|| self.buffers.declare(name, parameter.ty.clone()));
                self.weights.push((id, prefix.to_owned(), parameter.clone()));
            }
        }
    }

    /// x = init_scale · latents, the latents drawn first if asked for.
    fn init(&mut self, init_scale: f64) -> Result<()> {
        if self.how.draw_latents {
            let mut g = Graph::new();
            let seeds = g.input("seeds", TensorType::i32([self.latents_ty.shape[0], 2]));
            let draw = g.constant(TensorType::f32([1]), vec![0.0])?;
            let shape = self.latents_ty.shape.clone();
            let z = g.apply(Random { kind: RandomKind::Normal, shape, stream: LATENTS }, &[seeds, draw])?;
            g.output("latents", z);
            self.program("draw latents", &g, 0, |_| None)?;
        }
        let mut g = Graph::new();
        let z = g.input("latents", self.latents_ty.clone());
        let scale = g.constant(TensorType::f32([1]), vec![init_scale as f32])?;
        let x = g.apply(DiffusionUpdate { terms: 1, clip: None }, &[scale, z])?;
        g.output("x", x);
        self.program("scale latents", &g, 0, |_| None)
    }

    /// Compiles `graph`, whose ports are named after buffers or found by `bind`, and runs it once.
    fn program(
        &mut self,
        name: &str,
        graph: &Graph,
        nfe: usize,
        bind: impl Fn(&str) -> Option<BufferId>,
    ) -> Result<()> {
        let names = self.buffers.clone();
        let bind = |port: &str| bind(port).or_else(|| names.find(port));
        let program = Program::compile(name, graph, self.how.target, &mut self.buffers, bind, self.how.options)?;
        self.programs.push(program.with_nfe(nfe));
        self.steps.push(ScheduleStep::Run(self.programs.len() - 1));
        Ok(())
    }

    /// Steps of one shape: one program, run for each of their rows.
    fn group(&mut self, steps: &[Step], first: usize) -> Result<()> {
        let mut instructions: Vec<Vec<Instruction>> = steps.iter().map(|s| self.expand(s)).collect();
        drop_unit_scales(&mut instructions);
        for step in &instructions {
            let start = self.rows.len();
            self.rows.extend(step.iter().flat_map(Instruction::numbers).map(|v| v as f32));
            self.rows.resize(start + self.columns, 0.0);
        }
        let nfe = instructions[0].iter().filter(|i| matches!(i, Instruction::Network { .. })).count();
        let (graph, spans) = self.step_graph(&instructions[0])?;
        let graph = if self.how.fuse {
            let (graph, log) = fuse(&graph, Purpose::Inference)?;
            self.fusions.extend(log);
            let graph = once(&graph)?;
            // One step alone would make it as often.
            hoist(&if steps.len() > 1 { self.before(&graph, first)? } else { graph })?
        } else {
            graph
        };
        let mut views = HashMap::new();
        if let Some(row) = self.row {
            for (name, start, len) in spans {
                let view = self.buffers.view(row, &name, start, TensorType::f32([len]))?;
                views.insert(name, view);
            }
        }
        let name = if steps[0].reflects() { format!("reflect and step {first}") } else { format!("step {first}") };
        self.program(&name, &graph, nfe, |port| views.get(port).copied())?;
        let body = self.steps.pop().into_iter().collect();
        self.steps.push(ScheduleStep::Repeat { rows: first..first + steps.len(), body });
        Ok(())
    }

    /// Has what of the steps from `first` on is the same for all of them made before them; the graph of the rest.
    fn before(&mut self, graph: &Graph, first: usize) -> Result<Graph> {
        let conditions: HashSet<String> =
            self.denoisers().flat_map(|d| d.conditions().map(|(_, name)| name).collect::<Vec<_>>()).collect();
        let name = |i: usize| format!("kept {i} for step {first}");
        let (before, turn) = split(graph, |input| !conditions.contains(input), name)?;
        if let Some(before) = before {
            for (name, value) in before.outputs() {
                self.buffers.declare(name, before.ty(*value).clone());
            }
            self.program(&format!("before step {first}"), &before, 0, |_| None)?;
        }
        Ok(turn)
    }

    /// Works guidance into a step's stages.
    fn expand(&self, step: &Step) -> Vec<Instruction> {
        let mut out = Vec::new();
        // Guided answers whose two sides were not combined yet.
        let mut split: HashMap<Reg, Guidance> = HashMap::new();
        let combine = |reg: Reg, g: Guidance| Instruction::Update {
            to: (reg, false),
            terms: vec![((reg, false), g.guidance_scale), ((reg, true), 1.0 - g.guidance_scale)],
            clip: None,
        };
        for stage in &step.stages {
            match stage {
                Stage::Query { leg: number, x, out: to, time, scale } => {
                    let operator = &self.operators[*number];
                    let g = operator.guidance;
                    // The interval is the ordinary step's.
                    let guided = (step.guided || *number != leg::MAIN) && operator.guide.is_some();
                    let ask = |guide, side| Instruction::Network {
                        leg: *number,
                        guide,
                        x: (*x, false),
                        to: (*to, side),
                        time: *time,
                        scale: Some(*scale),
                    };
                    split.remove(to);
                    if !guided || !g.needs_uncond() {
                        out.push(ask(false, false));
                    } else if !g.needs_cond() {
                        out.push(ask(true, false));
                    } else {
                        out.extend([ask(false, false), ask(true, true)]);
                        if g.rescale > 0.0 {
                            let Instruction::Update { terms, .. } = combine(*to, g) else { continue };
                            out.push(Instruction::Update { to: (*to, true), terms, clip: None });
                            let (cond, combined) = ((*to, false), (*to, true));
                            out.push(Instruction::Rescale { cond, combined, to: (*to, false), phi: g.rescale });
                        } else {
                            split.insert(*to, g);
                        }
                    }
                }
                Stage::Update { to, terms, clip } => {
                    let extra = terms.iter().filter(|t| split.contains_key(&t.0)).count();
                    if terms.len() + extra > DiffusionUpdate::MAX_TERMS {
                        out.extend(terms.iter().filter_map(|t| split.remove(&t.0).map(|g| combine(t.0, g))));
                    }
                    let mut all = Vec::new();
                    for (reg, c) in terms {
                        match split.get(reg) {
                            Some(g) => {
                                all.push(((*reg, false), c * g.guidance_scale));
                                all.push(((*reg, true), c * (1.0 - g.guidance_scale)));
                            }
                            None => all.push(((*reg, false), *c)),
                        }
                    }
                    split.remove(to);
                    out.push(Instruction::Update { to: (*to, false), terms: all, clip: *clip });
                }
                Stage::Noise { to, draw } => {
                    split.remove(to);
                    out.push(Instruction::Noise { to: (*to, false), draw: *draw });
                }
            }
        }
        let mut left: Vec<(Reg, Guidance)> = split.into_iter().filter(|(r, _)| self.persistent.contains(r)).collect();
        left.sort_by_key(|(r, _)| *r);
        out.extend(left.into_iter().map(|(r, g)| combine(r, g)));
        out
    }

    /// One step as a graph, and its ports that read the row.
    fn step_graph(&self, instructions: &[Instruction]) -> Result<(Graph, Vec<Span>)> {
        let mut g = Graph::new();
        let mut slots: HashMap<Slot, Value> = HashMap::new();
        let mut spans = Vec::new();
        let mut column = 0;
        let mut written = HashSet::new();
        for instruction in instructions {
            let mut numbers = |g: &mut Graph, len: usize| {
                let name = format!("row[{column}..{}]", column + len);
                spans.push((name.clone(), column, len));
                column += len;
                g.input(name, TensorType::f32([len]))
            };
            let (to, value) = match instruction {
                Instruction::Network { leg, guide, x, to, scale, .. } => {
                    let time = numbers(&mut g, 1);
                    let scale = scale.map(|_| numbers(&mut g, 1));
                    let mut x = self.read(&mut g, &mut slots, *x);
                    if let Some(scale) = scale {
                        x = g.apply(DiffusionUpdate { terms: 1, clip: None }, &[scale, x])?;
                    }
                    let operator = &self.operators[*leg];
                    let denoiser = operator.guide.filter(|_| *guide).unwrap_or(operator.denoiser);
                    (*to, self.network(&mut g, &denoiser, x, time)?)
                }
                Instruction::Update { to, terms, clip } => {
                    let mut inputs = vec![numbers(&mut g, terms.len())];
                    inputs.extend(terms.iter().map(|t| self.read(&mut g, &mut slots, t.0)));
                    let op = DiffusionUpdate { terms: terms.len(), clip: clip.map(|c| c as f32) };
                    (*to, g.apply(op, &inputs)?)
                }
                Instruction::Rescale { cond, combined, to, phi } => {
                    let inputs = [*cond, *combined].map(|s| self.read(&mut g, &mut slots, s));
                    (*to, g.apply(GuidanceRescale { phi: *phi as f32 }, &inputs)?)
                }
                Instruction::Noise { to, .. } => {
                    let draw = numbers(&mut g, 1);
                    let seeds = g.input("seeds", TensorType::i32([self.latents_ty.shape[0], 2]));
                    let shape = self.latents_ty.shape.clone();
                    let op = Random { kind: RandomKind::Normal, shape, stream: SAMPLER_NOISE };
                    (*to, g.apply(op, &[seeds, draw])?)
                }
            };
            slots.insert(to, value);
            written.insert(to);
        }
        let mut outputs: Vec<Reg> =
            written.into_iter().filter(|(r, side)| !side && self.persistent.contains(r)).map(|(r, _)| r).collect();
        outputs.sort();
        for reg in outputs {
            g.output(reg.0, slots[&(reg, false)]);
        }
        Ok((g, spans))
    }

    /// The value of a register: what the step wrote, or its buffer.
    fn read(&self, g: &mut Graph, slots: &mut HashMap<Slot, Value>, slot: Slot) -> Value {
        *slots.entry(slot).or_insert_with(|| g.input(slot.0.0, self.latents_ty.clone()))
    }

    /// Inlines a network: its answer for x at `time`, with as many channels as x.
    fn network(&self, g: &mut Graph, denoiser: &Denoiser, x: Value, time: Value) -> Result<Value> {
        let inner = &denoiser.network.graph;
        let batch = self.latents_ty.shape[0];
        let times = Broadcast { outer: 1, middle: batch, inner: 1, scale: 1.0, shape: vec![batch] };
        let times = g.apply(times, &[time])?;
        let mut ports: HashMap<String, Value> = HashMap::new();
        for (value, name) in inner.inputs() {
            let port = match name.as_ref() {
                "sample" => x,
                "timestep" | "sigma" => times,
                other => g.input(format!("{}/{other}", denoiser.inputs), inner.ty(value).clone()),
            };
            ports.insert(name.to_string(), port);
        }
        let mut weights: HashMap<String, Value> = HashMap::new();
        for (value, name) in inner.parameters() {
            let port = g.parameter(format!("{}/{name}", denoiser.prefix(name)), inner.ty(value).clone());
            weights.insert(name.to_string(), port);
        }
        let map = g.inline(inner, |origin| match origin {
            Origin::Input(name) => ports.get(name.as_ref()).copied(),
            Origin::Parameter(name) => weights.get(name.as_ref()).copied(),
            _ => None,
        })?;
        let Some((_, out)) = inner.outputs().first() else {
            return Err(Error::Verify { pass: "sampling", reason: "the network has no output".into() });
        };
        let (out, channels) = (map[out.index()], self.latents_ty.cols());
        if g.ty(out).cols() == channels {
            return Ok(out);
        }
        // Networks that learn their variance answer twice as many channels: the first half is the mean.
        g.apply(Slice { axis: 3, start: 0, len: channels }, &[out])
    }

    fn finish(self) -> Result<Sampling> {
        let missing = |what: &str| Error::Verify { pass: "sampling", reason: format!("there is no buffer `{what}`") };
        let find = |name: &str| self.buffers.find(name).ok_or_else(|| missing(name));
        let (result, latents, seeds) = (find(self.trajectory.out.0)?, find("latents")?, find("seeds")?);
        let mut schedule = Schedule::new(
            if self.trajectory.steps.iter().any(Step::reflects) { "w2sd" } else { "sample" },
            self.buffers,
        );
        schedule.programs = self.programs;
        schedule.steps = self.steps;
        schedule.rows = Rows { columns: self.columns, data: self.rows };
        schedule.row = self.row;
        schedule.verify()?;
        Ok(Sampling { schedule, result, latents, seeds, weights: self.weights, fusions: self.fusions })
    }
}

/// Inputs that the sampler itself gives to a network.
fn is_driven(name: &str) -> bool {
    matches!(name, "sample" | "timestep" | "sigma")
}

/// Takes out the scales that are 1 in every step, so that networks are asked about the latents as they are.
fn drop_unit_scales(steps: &mut [Vec<Instruction>]) {
    let unit = |i: &Instruction| matches!(i, Instruction::Network { scale: Some(1.0), .. });
    for at in 0..steps.first().map_or(0, Vec::len) {
        if !steps.iter().all(|step| unit(&step[at])) {
            continue;
        }
        for step in &mut *steps {
            if let Instruction::Network { scale, .. } = &mut step[at] {
                *scale = None;
            }
        }
    }
}
