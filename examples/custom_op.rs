//! An op from outside the crate, with a shape rule, a cost, a gradient and a CPU kernel of its own: applied in a graph,
//! differentiated, run, and checked against f64.
//!
//!     cargo run --release --example custom_op

use langevin::graph::{Args, Cost, Graph, Launch, Node, Op, Signature, Target, Value};
use langevin::ops::{Affine, Binary, elementwise, expect_inputs, expect_plain};
use langevin::passes::autodiff::{Recompute, gradients};
use langevin::schedule::{Options, Schedule, Session};
use langevin::tensor::TensorType;
use langevin::{Device, Error, Result};

/// y = limit · tanh(x / limit): a clamp to ±limit without corners.   x `[…]` → y like x
#[derive(Clone, Copy, Debug)]
struct SoftClamp {
    limit: f32,
}

impl Op for SoftClamp {
    fn name(&self) -> &'static str {
        "soft_clamp"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        expect_plain(self.name(), "x", inputs[0])?;
        Ok(vec![inputs[0].clone()])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 20 * io.out_elements(), bytes: io.bytes() }
    }

    /// dx = dy · (1 − (y / limit)²), made of ops that exist: more graph, and no kernel.
    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        let y = node.outputs[0];
        let squared = g.apply(Binary::Mul, &[y, y])?;
        let slope = g.apply(Affine { scale: -1.0 / (self.limit * self.limit), shift: 1.0 }, &[squared])?;
        Ok(vec![Some(g.apply(Binary::Mul, &[dy, slope])?)])
    }

    fn lower(&self, _: &Signature, target: &Target) -> Result<Vec<Launch>> {
        match target {
            Target::Cpu => Ok(vec![Launch::cpu(self.name(), kernel, 1, 1).scalar(self.limit)]),
            other => Err(Error::unsupported(self.name(), format!("there is no kernel for {other:?}"))),
        }
    }

    /// `elementwise` reads before it writes, so y may lie where x lay.
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}

/// Arguments are the inputs, then the outputs; scalars are those of the launch.
fn kernel(args: &Args) {
    let limit = args.float(0);
    elementwise(args, move |[x]| limit * langevin::cpu::simd::tanh(x / limit));
}

fn main() -> Result<()> {
    const N: usize = 1000;
    let op = SoftClamp { limit: 2.0 };

    // y = soft_clamp(x), and the gradient of Σ dy · y with respect to x.
    let mut graph = Graph::new();
    let [x, dy] = ["x", "dy"].map(|name| graph.input(name, TensorType::f32([N])));
    let y = graph.apply(op, &[x])?;
    let dx = gradients(&mut graph, &[(y, dy)], &[x], Recompute::Off)?[0];
    graph.output("y", y);
    graph.output("dx", dx.ok_or_else(|| Error::unsupported("this example", "x has no gradient"))?);
    print!("{}", graph.print());

    // A guard zone behind every value and poisoned memory: a kernel that misses an element or writes too far is found.
    let device = Device::auto();
    let schedule = Schedule::once("soft clamp", &graph, device.target(), Options { guard: 64 })?;
    let [x, dy, y, dx] = ["x", "dy", "y", "dx"].map(|name| schedule.buffers.find(name));
    let (Some(x), Some(dy), Some(y), Some(dx)) = (x, dy, y, dx) else { return Ok(()) };
    let mut session = Session::new(device, schedule)?.poisoned();
    let xs: Vec<f32> = (0..N).map(|i| i as f32 * 0.01 - 5.0).collect();
    session.write(x, &xs)?;
    session.write(dy, &vec![1.5f32; N])?;
    session.run(&mut |_, _| Ok(()))?;

    // The op in f64, and its slope by central differences.
    let exact = |x: f64| 2.0 * (x / 2.0).tanh();
    let slope = |x: f64| (exact(x + 1e-5) - exact(x - 1e-5)) / 2e-5;
    let error = |got: &[f32], f: &dyn Fn(f64) -> f64| {
        got.iter().zip(&xs).map(|(v, x)| (*v as f64 - f(*x as f64)).abs()).fold(0.0, f64::max)
    };
    let forward = error(&session.read(y)?, &exact);
    let backward = error(&session.read(dx)?, &|x| 1.5 * slope(x));
    println!("largest error: {forward:.1e} forward, {backward:.1e} backward");
    assert!(forward < 1e-5 && backward < 1e-5);
    Ok(())
}
