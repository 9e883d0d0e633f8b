//! Memory planning and the executor: random graphs, poisoned and guarded, against an interpreter; schedules step by step.

use langevin::cpu::Activation;
use langevin::graph::{Graph, Value};
use langevin::ops::{Activate, Affine, Binary, Broadcast, Reduce, Reshape};
use langevin::schedule::{BufferId, Buffers, Event, Options, Program, Rows, Schedule, Session, Step};
use langevin::tensor::TensorType;
use langevin::{Device, Error};
use proptest::prelude::*;

/// A value with what it must hold.
struct Known {
    value: Value,
    shape: Vec<usize>,
    data: Vec<f32>,
}

impl Known {
    fn largest(&self) -> f32 {
        self.data.iter().fold(0.0, |m, v| m.max(v.abs()))
    }
}

/// A graph under construction, every value of it already computed by plain loops.
struct Interpreter {
    graph: Graph,
    values: Vec<Known>,
}

/// Inputs: two of their own, and a region that is also seen as its two halves, as parameters are in training.
const INPUTS: [(&str, &[usize]); 5] =
    [("a", &[4, 96]), ("b", &[384]), ("region", &[2, 384]), ("low", &[384]), ("high", &[384])];

/// What outputs may be bound to.
const TARGETS: [(&str, usize); 9] = [
    ("a", 384),
    ("b", 384),
    ("region", 768),
    ("low", 384),
    ("high", 384),
    ("out384", 384),
    ("more384", 384),
    ("out768", 768),
    ("out192", 192),
];

fn number(i: usize) -> f32 {
    ((i * 37 + 11) % 64) as f32 / 32.0 - 1.0
}

fn first_data(name: &str) -> Vec<f32> {
    let numbers = |from: usize, n: usize| (from..from + n).map(number).collect();
    match name {
        "a" => numbers(0, 384),
        "b" => numbers(100, 384),
        "region" => numbers(200, 768),
        "low" => numbers(200, 384),
        _ => numbers(584, 384),
    }
}

impl Interpreter {
    fn new() -> Self {
        let mut graph = Graph::new();
        let input = |(name, shape): &(&str, &[usize])| Known {
            value: graph.input(name, TensorType::f32(shape.to_vec())),
            shape: shape.to_vec(),
            data: first_data(name),
        };
        let mut values: Vec<Known> = INPUTS.iter().map(input).collect();
        let data: Vec<f32> = (300..684).map(number).collect();
        let value = graph.constant(TensorType::f32([384]), data.clone()).unwrap();
        values.push(Known { value, shape: vec![384], data });
        Interpreter { graph, values }
    }

    fn push(&mut self, value: Value, shape: Vec<usize>, data: Vec<f32>) {
        assert_eq!(self.graph.shape(value), shape);
        self.values.push(Known { value, shape, data });
    }

    /// Adds the op that three random numbers spell.
    fn op(&mut self, kind: u8, x: usize, extra: usize) {
        let x = x % self.values.len();
        match kind % 6 {
            0 => self.affine(x, if extra.is_multiple_of(2) { -0.5 } else { 0.5 }),
            1 | 2 => self.binary(x, extra),
            3 => self.activate(x),
            4 => self.reshape(x, extra),
            _ => self.resize(x, extra),
        }
    }

    fn affine(&mut self, x: usize, scale: f32) {
        let k = &self.values[x];
        let value = self.graph.apply(Affine { scale, shift: 0.25 }, &[k.value]).unwrap();
        self.push(value, k.shape.clone(), self.values[x].data.iter().map(|v| scale * v + 0.25).collect());
    }

    fn binary(&mut self, x: usize, extra: usize) {
        let same: Vec<usize> =
            (0..self.values.len()).filter(|y| self.values[*y].shape == self.values[x].shape).collect();
        let y = same[extra / 3 % same.len()];
        let (a, b) = (&self.values[x], &self.values[y]);
        // Numbers must stay small enough to be compared.
        if a.largest() * b.largest() > 50.0 || a.largest() + b.largest() > 50.0 {
            return self.affine(x, 0.125);
        }
        let (op, f): (Binary, fn(f32, f32) -> f32) = match extra % 3 {
            0 => (Binary::Add, |a, b| a + b),
            1 => (Binary::Sub, |a, b| a - b),
            _ => (Binary::Mul, |a, b| a * b),
        };
        let value = self.graph.apply(op, &[a.value, b.value]).unwrap();
        let data = a.data.iter().zip(&b.data).map(|(a, b)| f(*a, *b)).collect();
        self.push(value, a.shape.clone(), data);
    }

    fn activate(&mut self, x: usize) {
        let k = &self.values[x];
        let value = self.graph.apply(Activate(Activation::Silu), &[k.value]).unwrap();
        self.push(value, k.shape.clone(), self.values[x].data.iter().map(|v| v / (1.0 + (-v).exp())).collect());
    }

    fn reshape(&mut self, x: usize, extra: usize) {
        let k = &self.values[x];
        let n = k.data.len();
        let shape = match extra % 3 {
            0 => vec![n],
            1 => vec![2, n / 2],
            _ => vec![n / 6, 6],
        };
        let value = self.graph.apply(Reshape(shape.clone()), &[k.value]).unwrap();
        self.push(value, shape, self.values[x].data.clone());
    }

    /// Halves by summing the two halves, or doubles by repeating.
    fn resize(&mut self, x: usize, extra: usize) {
        let k = &self.values[x];
        let n = k.data.len();
        let halve = n > 192 && (n > 768 || extra.is_multiple_of(2));
        let (value, data): (Value, Vec<f32>) = if halve {
            let value = self.graph.apply(Reduce::sum_middle(1, 2, n / 2).to_shape([n / 2]), &[k.value]).unwrap();
            (value, (0..n / 2).map(|i| k.data[i] + k.data[n / 2 + i]).collect())
        } else {
            let spread = Broadcast { outer: 1, middle: 2, inner: n, scale: 1.0, shape: vec![2 * n] };
            (self.graph.apply(spread, &[k.value]).unwrap(), k.data.repeat(2))
        };
        self.push(value, vec![data.len()], data);
    }

    /// Names outputs after the buffers they go to; what those must hold afterwards.
    fn outputs(&mut self, wanted: &[(usize, usize)]) -> Vec<(&'static str, Vec<f32>)> {
        let mut bound: Vec<(&str, Vec<f32>)> = Vec::new();
        for (target, pick) in wanted {
            let (name, size) = TARGETS[target % TARGETS.len()];
            let halves = ["low", "high"];
            let clash = |other: &str| {
                other == name
                    || (other == "region" && halves.contains(&name))
                    || (name == "region" && halves.contains(&other))
            };
            let fits: Vec<&Known> = self.values.iter().filter(|k| k.data.len() == size).collect();
            if fits.is_empty() || bound.iter().any(|(other, _)| clash(other)) {
                continue;
            }
            // Late values are the interesting ones.
            let known = fits[fits.len() - 1 - pick % fits.len()];
            self.graph.output(format!("to {name}"), known.value);
            bound.push((name, known.data.clone()));
        }
        bound
    }
}

/// Declares all buffers, the halves inside of the region.
fn buffers() -> Buffers {
    let mut buffers = Buffers::new();
    for (name, size) in TARGETS {
        match (name, buffers.find("region")) {
            ("low", Some(region)) => buffers.view(region, name, 0, TensorType::f32([384])).unwrap(),
            ("high", Some(region)) => buffers.view(region, name, 384, TensorType::f32([384])).unwrap(),
            _ => buffers.declare(name, TensorType::f32([size])),
        };
    }
    buffers
}

/// Poisoned with guard zones, or as programs run that may use the memory of what they have not yet written.
fn run(graph: &Graph, guard: usize) -> Session {
    let mut all = buffers();
    let names = all.clone();
    let bind = |port: &str| names.find(port.strip_prefix("to ").unwrap_or(port));
    let program = Program::compile("random", graph, Device::Cpu.target(), &mut all, bind, Options { guard }).unwrap();
    assert!(program.peak >= program.lower_bound);
    let mut schedule = Schedule::new("random", all);
    let p = schedule.add(program);
    schedule.steps.push(Step::Run(p));
    let mut session = Session::new(Device::Cpu, schedule).unwrap();
    if guard > 0 {
        session = session.poisoned();
    }
    for (name, size) in TARGETS {
        let id = names.find(name).unwrap();
        let input = INPUTS.iter().any(|(n, _)| *n == name);
        session.write(id, &if input { first_data(name) } else { vec![f32::NAN; size] }).unwrap();
    }
    session.run(&mut |_, _| Ok(())).unwrap();
    session
}

/// What the buffer must hold: what an output left there, or what was there before.
fn wanted(name: &str, bound: &[(&str, Vec<f32>)]) -> Option<Vec<f32>> {
    let of = |n: &str| bound.iter().find(|(o, _)| *o == n).map(|(_, d)| d.clone());
    match (name, of("region")) {
        ("low", Some(all)) => Some(all[..384].to_vec()),
        ("high", Some(all)) => Some(all[384..].to_vec()),
        ("region", None) => Some([wanted("low", bound)?, wanted("high", bound)?].concat()),
        _ => of(name).or_else(|| INPUTS.iter().any(|(n, _)| *n == name).then(|| first_data(name))),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// No two live values overlap, nothing is written over before its last reader, and outputs that go to the buffers of
    /// inputs (`x = update(x)`, exchanges, halves of a region) see only what was there before.
    #[test]
    fn programs_compute_what_their_graphs_say(
        ops in prop::collection::vec((any::<u8>(), 0usize..1000, 0usize..1000), 0..24),
        outputs in prop::collection::vec((0usize..100, 0usize..6), 1..7),
    ) {
        let mut interpreter = Interpreter::new();
        ops.iter().for_each(|(kind, x, extra)| interpreter.op(*kind, *x, *extra));
        let bound = interpreter.outputs(&outputs);
        for guard in [64, 0] {
            let mut session = run(&interpreter.graph, guard);
            for (name, _) in TARGETS {
                let Some(wanted) = wanted(name, &bound) else { continue };
                let id = session.schedule().buffers.find(name).unwrap();
                let got = session.read::<f32>(id).unwrap();
                let close = got.iter().zip(&wanted).all(|(g, w)| (g - w).abs() <= 1e-3);
                prop_assert!(close, "{name}: {got:?} instead of {wanted:?}\n{}", interpreter.graph.print());
            }
        }
    }
}

/// x = x + row, for rows 1, 2, 4, 8; then y = x.
struct Counter {
    session: Session,
    x: BufferId,
    y: BufferId,
}

fn counter() -> Counter {
    let mut buffers = Buffers::new();
    let one = || TensorType::f32([1]);
    let [row, x, y] = ["row", "x", "y"].map(|name| buffers.declare(name, one()));
    let mut g = Graph::new();
    let (old, by) = (g.input("x", one()), g.input("row", one()));
    let new = g.apply(Binary::Add, &[old, by]).unwrap();
    g.output("x", new);
    let names = buffers.clone();
    let program =
        Program::compile("add", &g, Device::Cpu.target(), &mut buffers, |n| names.find(n), Options::default()).unwrap();
    let mut schedule = Schedule::new("counter", buffers);
    let p = schedule.add(program);
    schedule.rows = Rows { columns: 1, data: vec![1.0, 2.0, 4.0, 8.0] };
    schedule.row = Some(row);
    schedule.steps = vec![
        Step::Host(7),
        Step::Repeat { rows: 0..4, body: vec![Step::Run(p), Step::Host(9)] },
        Step::Copy { from: x, to: y },
    ];
    Counter { session: Session::new(Device::Cpu, schedule).unwrap(), x, y }
}

#[test]
fn a_schedule_runs_its_steps_in_order() {
    let mut c = counter();
    let (x, mut seen) = (c.x, Vec::new());
    c.session
        .run(&mut |session, event| {
            seen.push((event, session.read::<f32>(x)?[0]));
            Ok(())
        })
        .unwrap();
    let rows = [(Event::Row(0), 0.0), (Event::Row(1), 1.0), (Event::Row(2), 3.0), (Event::Row(3), 7.0)];
    let after = [1.0, 3.0, 7.0, 15.0].map(|v| (Event::Host(9), v));
    let steps = rows.into_iter().zip(after).flat_map(|(a, b)| [a, b]);
    assert_eq!(seen, [(Event::Host(7), 0.0)].into_iter().chain(steps).collect::<Vec<_>>());
    assert_eq!(c.session.read::<f32>(c.y).unwrap(), [15.0]);
}

#[test]
fn a_cancelled_session_runs_again() {
    let mut c = counter();
    let cancel = c.session.run(&mut |_, event| if event == Event::Row(2) { Err(Error::Cancelled) } else { Ok(()) });
    assert!(matches!(cancel, Err(Error::Cancelled)));
    assert_eq!(c.session.read::<f32>(c.x).unwrap(), [3.0]);
    assert_eq!(c.session.read::<f32>(c.y).unwrap(), [0.0]);
    c.session.write(c.x, &[100.0f32]).unwrap();
    c.session.run(&mut |_, _| Ok(())).unwrap();
    assert_eq!(c.session.read::<f32>(c.y).unwrap(), [115.0]);
}

#[test]
fn the_host_may_change_what_comes_next() {
    let mut c = counter();
    let x = c.x;
    let zero = |session: &mut Session, event| if event == Event::Row(3) { session.write(x, &[0.0f32]) } else { Ok(()) };
    c.session.run(&mut { zero }).unwrap();
    assert_eq!(c.session.read::<f32>(c.y).unwrap(), [8.0]);
    c.session.set_rows(vec![1.0; 4]).unwrap();
    assert!(c.session.set_rows(vec![1.0; 5]).is_err());
    assert!(c.session.write(x, &[0.0f32; 2]).is_err());
    c.session.run(&mut |_, _| Ok(())).unwrap();
    assert_eq!(c.session.read::<f32>(c.y).unwrap(), [12.0]);
}

#[test]
fn schedules_that_cannot_run_are_refused() {
    type Spoil = fn(&mut Schedule);
    let spoils: [(&str, Spoil); 5] = [
        ("there is no program 9", |s| s.steps.push(Step::Run(9))),
        ("rows 2..5 of 4", |s| s.steps.push(Step::Repeat { rows: 2..5, body: vec![] })),
        ("there is no program 3", |s| s.steps.push(Step::Repeat { rows: 0..1, body: vec![Step::Run(3)] })),
        ("the row buffer holds 1 numbers, rows 2", |s| s.rows.columns = 2),
        ("copy of `row`", |s| {
            let (from, to) = (s.row.unwrap(), s.buffers.declare("wide", TensorType::f32([2])));
            s.steps.push(Step::Copy { from, to });
        }),
    ];
    for (reason, spoil) in spoils {
        let mut schedule = counter().session.schedule().clone();
        spoil(&mut schedule);
        let e = Session::new(Device::Cpu, schedule).unwrap_err().to_string();
        assert!(e.contains(reason), "{e}");
    }
}

#[test]
fn what_is_not_bound_or_does_not_fit_is_refused() {
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([4]));
    let y = g.apply(Affine::scale(2.0), &[x]).unwrap();
    g.output("y", y);
    for (sizes, reason) in [([4, 5], "output"), ([3, 4], "is bound to `x`")] {
        let mut buffers = Buffers::new();
        let ids = ["x", "y"].map(|n| buffers.declare(n, TensorType::f32([sizes[(n == "y") as usize]])));
        let bind = |n: &str| Some(ids[(n == "y") as usize]);
        let e = Program::compile("bad", &g, Device::Cpu.target(), &mut buffers, bind, Options::default()).unwrap_err();
        assert!(e.to_string().contains(reason), "{e}");
    }
    let mut buffers = Buffers::new();
    let y = buffers.declare("y", TensorType::f32([4]));
    let bind = |n: &str| (n == "y").then_some(y);
    let e = Program::compile("bad", &g, Device::Cpu.target(), &mut buffers, bind, Options::default()).unwrap_err();
    assert!(e.to_string().contains("nothing is bound to `x`"), "{e}");
}
