//! A schedule built by hand: one program, a row table, a loop over its rows. Prints the plan, then runs it.
//!
//!     cargo run --release --example plan

use langevin::graph::Graph;
use langevin::ops::{Activate, Activation, DiffusionUpdate, Epilogue, Linear};
use langevin::passes::fuse::{Purpose, fuse};
use langevin::schedule::{Buffers, Event, Options, Program, Report, Rows, Schedule, Session, Step};
use langevin::tensor::TensorType;
use langevin::{Device, Result};

fn main() -> Result<()> {
    const WIDTH: usize = 16;
    const STEPS: usize = 8;
    let device = Device::auto();

    // One Euler step of dx/dt = silu(x·W + b): x ← c₀·x + c₁·f(x), with c from the current row.
    let mut graph = Graph::new();
    let x = graph.input("x", TensorType::f32([1, WIDTH]));
    let row = graph.input("row", TensorType::f32([2]));
    let weight = graph.parameter("weight", TensorType::panels([WIDTH, WIDTH]));
    let bias = graph.parameter("bias", TensorType::f32([WIDTH]));
    let f = graph.apply(Linear(Epilogue::bias()), &[x, weight, bias])?;
    let f = graph.apply(Activate(Activation::Silu), &[f])?;
    let next = graph.apply(DiffusionUpdate { terms: 2, clip: None }, &[row, x, f])?;
    graph.output("x", next);

    // The activation moves into the linear layer's epilogue.
    let (graph, merges) = fuse(&graph, Purpose::Inference)?;
    merges.iter().for_each(|merge| println!("fused: {merge}"));
    println!("{}", graph.print());

    // Buffers outlive programs. The output `x` has the buffer of the input `x`: it is updated in place.
    let mut buffers = Buffers::new();
    let sources = graph.inputs().chain(graph.parameters());
    let ids: Vec<_> = sources.map(|(value, name)| buffers.declare(name, graph.ty(value).clone())).collect();
    let [x, row, weight, bias] = ids[..] else { return Ok(()) };
    let names = buffers.clone();
    let options = Options::default();
    let program = Program::compile("euler", &graph, device.target(), &mut buffers, |port| names.find(port), options)?;

    // Steps over the program, and the scalars that change from one to the next.
    let mut schedule = Schedule::new("flow", buffers);
    let euler = schedule.add(program.with_nfe(1));
    schedule.rows = Rows { columns: 2, data: (0..STEPS).flat_map(|i| [1.0, 0.5 / (i + 1) as f32]).collect() };
    schedule.row = Some(row);
    schedule.steps = vec![Step::Repeat { rows: 0..STEPS, body: vec![Step::Run(euler)] }, Step::Host(0)];
    println!("{}\n", Report::new(&schedule));

    // A session checks the schedule and makes the arena.
    let mut session = Session::new(device, schedule)?;
    session.write(x, &[1.0f32; WIDTH])?;
    session.write(bias, &[-0.5f32; WIDTH])?;
    session.fill(weight, |numbers: &mut [f32]| numbers.fill(1.0 / WIDTH as f32))?;
    session.run(&mut |session, event| {
        match event {
            Event::Row(row) => println!("row {row}: x = {:.4}", session.read::<f32>(x)?[0]),
            Event::Host(_) => println!("done:  x = {:.4}", session.read::<f32>(x)?[0]),
            Event::Mark(_) => {}
        }
        Ok(())
    })
}
