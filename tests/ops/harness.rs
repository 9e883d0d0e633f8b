//! One table drives everything: an op, its inputs, and what it computes in f64.

use half::f16;
use langevin::Device;
use langevin::graph::{Graph, Op, Target, Value, WgpuTarget};
use langevin::ops::Affine;
use langevin::passes::autodiff::{Recompute, gradients};
use langevin::passes::verify::verify;
use langevin::schedule::{Buffers, Options, Program, Schedule, Session, Step};
use langevin::tensor::{DType, Layout, TensorType, from_layout, to_layout};
use std::sync::Arc;

/// An input of a case: its type and its numbers, row-major.
#[derive(Clone)]
pub struct Input {
    pub ty: TensorType,
    pub data: Vec<f64>,
    /// Check the gradient with respect to it.
    pub differentiate: bool,
}

/// A tensor in f64, row-major.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

impl Tensor {
    pub fn new(shape: impl Into<Vec<usize>>, data: Vec<f64>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.iter().product::<usize>(), data.len());
        Tensor { shape, data }
    }

    pub fn zeros(shape: impl Into<Vec<usize>>) -> Self {
        let shape = shape.into();
        let n = shape.iter().product();
        Tensor { shape, data: vec![0.0; n] }
    }

    /// The element at a multi-index.
    pub fn at(&self, index: &[usize]) -> f64 {
        self.data[self.offset(index)]
    }

    pub fn at_mut(&mut self, index: &[usize]) -> &mut f64 {
        let i = self.offset(index);
        &mut self.data[i]
    }

    fn offset(&self, index: &[usize]) -> usize {
        assert_eq!(index.len(), self.shape.len());
        index.iter().zip(&self.shape).fold(0, |a, (i, n)| {
            assert!(i < n);
            a * n + i
        })
    }

    /// The same with every element mapped.
    pub fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Tensor { shape: self.shape.clone(), data: self.data.iter().map(|x| f(*x)).collect() }
    }
}

/// Reproducible numbers, uniform in ±1, exactly representable in f32.
pub fn noise(n: usize, seed: u64) -> Vec<f64> {
    let mut s = seed.wrapping_mul(0x9E3779B97F4A7C15) ^ 0xD1B54A32D192ED03;
    (0..n)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            ((s >> 40) as f64 / (1u64 << 23) as f64 - 1.0) as f32 as f64
        })
        .collect()
}

/// A differentiable f32 input with uniform noise.
pub fn f32s(shape: &[usize], seed: u64) -> Input {
    let ty = TensorType::f32(shape);
    Input { data: noise(ty.elements(), seed), ty, differentiate: true }
}

/// A differentiable weight in panels; shape `[…, N]`.
pub fn panels(shape: &[usize], seed: u64) -> Input {
    let ty = TensorType::panels(shape);
    Input { data: noise(ty.elements(), seed), ty, differentiate: true }
}

/// An i32 input.
pub fn i32s(shape: &[usize], data: &[i32]) -> Input {
    Input { ty: TensorType::i32(shape), data: data.iter().map(|v| *v as f64).collect(), differentiate: false }
}

impl Input {
    /// The same numbers, gradient not checked.
    pub fn fixed(self) -> Self {
        Input { differentiate: false, ..self }
    }

    /// The numbers mapped (and rounded to f32).
    pub fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Input { data: self.data.iter().map(|x| f(*x) as f32 as f64).collect(), ..self }
    }
}

/// Inputs to outputs, in f64.
pub type Reference<'a> = Box<dyn Fn(&[Tensor]) -> Vec<Tensor> + 'a>;

/// A check of one op.
pub struct Case<'a> {
    pub name: String,
    pub op: Arc<dyn Op>,
    pub inputs: Vec<Input>,
    /// What the op computes. Outputs that return `None`-like empty tensors are not compared.
    pub reference: Reference<'a>,
    /// Relative bound on outputs, by norm.
    pub bound: f64,
    /// Relative bound on gradients, by norm.
    pub grad_bound: f64,
    /// Which outputs are differentiated through (all f32 ones by default).
    pub differentiate_outputs: Vec<usize>,
}

impl<'a> Case<'a> {
    pub fn new(
        name: impl Into<String>,
        op: impl Op,
        inputs: Vec<Input>,
        reference: impl Fn(&[Tensor]) -> Vec<Tensor> + 'a,
    ) -> Self {
        Case {
            name: name.into(),
            op: Arc::new(op),
            inputs,
            reference: Box::new(reference),
            bound: 1e-5,
            grad_bound: 1e-4,
            differentiate_outputs: vec![0],
        }
    }

    /// No gradient check.
    pub fn forward_only(mut self) -> Self {
        self.differentiate_outputs.clear();
        self
    }

    /// Runs the op on every device under poison, against the reference; then its gradients mid-graph.
    pub fn check(&self) {
        let tensors: Vec<Tensor> =
            self.inputs.iter().map(|i| Tensor::new(i.ty.shape.clone(), i.data.clone())).collect();
        let expected = (self.reference)(&tensors);
        // Outputs: the op's own inputs are computed values (not buffers), so in-place and lifetimes are exercised.
        let mut g = Graph::new();
        let inputs = self.declare(&mut g);
        let outs = g.apply_arc(self.op.clone(), &inputs).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        for (i, out) in outs.iter().enumerate() {
            g.output(format!("out{i}"), *out);
        }
        assert_eq!(expected.len(), outs.len(), "{}: the reference must give every output", self.name);
        for (device, got) in self.run(&g, &[]) {
            for (i, (e, out)) in expected.iter().zip(&outs).enumerate() {
                assert_eq!(e.shape, g.shape(*out), "{}: shape of output {i}", self.name);
                let err = relative(&got[&format!("out{i}")], &e.data);
                let name = format!("{} on {device}", self.name);
                assert!(err <= self.bound, "{name}: output {i} is off by {err:.2e} (bound {:.1e})", self.bound);
            }
        }
        if !self.differentiate_outputs.is_empty() {
            self.check_gradients(&tensors);
        }
        let halves = |i: &usize| self.op.takes_f16(*i) && self.inputs[*i].ty.dtype == DType::F32;
        (0..self.inputs.len()).filter(halves).for_each(|i| self.check_f16(i, &tensors, &expected));
    }

    /// An input stored as f16, where a device has it: as good as f32 for numbers that f16 holds, near enough for others.
    fn check_f16(&self, input: usize, tensors: &[Tensor], expected: &[Tensor]) {
        let mut half = tensors.to_vec();
        half[input].data.iter_mut().for_each(|v| *v = f16::from_f64(*v).to_f64());
        let exact = (self.reference)(&half);
        let mut inputs = self.inputs.clone();
        inputs[input].ty.dtype = DType::F16;
        let case = Case {
            inputs,
            reference: Box::new(|_| vec![]),
            op: self.op.clone(),
            name: format!("{} with f16 weights", self.name),
            differentiate_outputs: vec![],
            ..*self
        };
        let mut g = Graph::new();
        let values = case.declare(&mut g);
        for (i, out) in g.apply_arc(case.op.clone(), &values).unwrap().into_iter().enumerate() {
            g.output(format!("out{i}"), out);
        }
        for (device, got) in case.run(&g, &[]) {
            for (i, (exact, expected)) in exact.iter().zip(expected).enumerate() {
                let got = &got[&format!("out{i}")];
                let (off, rounded) = (relative(got, &exact.data), relative(got, &expected.data));
                assert!(off <= self.bound, "{} on {device}: output {i} is off by {off:.2e}", case.name);
                assert!(rounded <= 1e-2, "{} on {device}: output {i} is off by {rounded:.2e}", case.name);
            }
        }
    }

    /// Declares the inputs; f32 ones go through a copy (affine 1·x + 0), so that the op stands mid-graph.
    fn declare(&self, g: &mut Graph) -> Vec<Value> {
        self.inputs
            .iter()
            .enumerate()
            .map(|(i, input)| {
                let v = g.input(format!("in{i}"), input.ty.clone());
                if input.ty.dtype == DType::F32 { g.apply(Affine::scale(1.0), &[v]).unwrap() } else { v }
            })
            .collect()
    }

    fn check_gradients(&self, tensors: &[Tensor]) {
        let mut g = Graph::new();
        let inputs = self.declare(&mut g);
        let outs = g.apply_arc(self.op.clone(), &inputs).unwrap();
        // Upstream gradients are noise, handed in as inputs.
        let mut seeds = Vec::new();
        let mut seed_data = Vec::new();
        for o in &self.differentiate_outputs {
            let ty = g.ty(outs[*o]).clone();
            seed_data.push(noise(ty.elements(), 77 + *o as u64));
            seeds.push((outs[*o], g.input(format!("dy{o}"), ty)));
        }
        let wanted: Vec<usize> = (0..self.inputs.len()).filter(|i| self.inputs[*i].differentiate).collect();
        let wrt: Vec<Value> = wanted.iter().map(|i| inputs[*i]).collect();
        let grads = gradients(&mut g, &seeds, &wrt, Recompute::Off).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        for (i, grad) in wanted.iter().zip(&grads) {
            let grad = grad.unwrap_or_else(|| panic!("{}: no gradient for input {i}", self.name));
            assert_eq!(g.ty(grad), &self.inputs[*i].ty, "{}: type of gradient {i}", self.name);
            g.output(format!("d{i}"), grad);
        }
        verify(&g, "reverse mode").unwrap();
        let mut extra = Vec::new();
        for (o, data) in self.differentiate_outputs.iter().zip(&seed_data) {
            extra.push((format!("dy{o}"), data.clone()));
        }
        let results = self.run(&g, &extra);
        for i in &wanted {
            let expected = self.finite_differences(tensors, *i, &seed_data);
            for (device, got) in &results {
                let value = &got[&format!("d{i}")];
                let err = relative(value, &expected);
                assert!(
                    err <= self.grad_bound,
                    "{} on {device}: gradient of input {i} is off by {err:.2e} (bound {:.1e})\n got {:?}\n expected {:?}",
                    self.name,
                    self.grad_bound,
                    &value[..value.len().min(8)],
                    &expected[..expected.len().min(8)]
                );
            }
        }
    }

    /// Central differences of Σ out · dy in f64, fourth order.
    fn finite_differences(&self, tensors: &[Tensor], input: usize, dy: &[Vec<f64>]) -> Vec<f64> {
        let h = 1e-3;
        let mut work = tensors.to_vec();
        let mut at = |k: usize, d: f64| {
            let keep = work[input].data[k];
            work[input].data[k] = keep + d;
            let outs = (self.reference)(&work);
            work[input].data[k] = keep;
            self.differentiate_outputs
                .iter()
                .zip(dy)
                .map(|(o, dy)| outs[*o].data.iter().zip(dy).map(|(a, b)| a * b).sum::<f64>())
                .sum::<f64>()
        };
        (0..tensors[input].data.len())
            .map(|k| (8.0 * (at(k, h) - at(k, -h)) - (at(k, 2.0 * h) - at(k, -2.0 * h))) / (12.0 * h))
            .collect()
    }

    /// Every output of the graph on every device.
    fn run(&self, g: &Graph, extra: &[(String, Vec<f64>)]) -> Vec<(Device, Outputs)> {
        let data: Vec<(String, Vec<f64>)> = self
            .inputs
            .iter()
            .enumerate()
            .map(|(i, x)| (format!("in{i}"), x.data.clone()))
            .chain(extra.iter().cloned())
            .collect();
        let places = places(&self.name, g).into_iter();
        places.map(|place| (place.0.clone(), run_on(place, g, &data))).collect()
    }
}

/// The outputs of a graph by name, row-major in f64.
pub type Outputs = std::collections::HashMap<String, Vec<f64>>;

/// The devices that can run a graph here, with the targets to lower it for: a software adapter also runs what is meant for
/// hardware. A missing adapter is printed; `LANGEVIN_REQUIRE=wgpu` makes it a failure. Shaders are validated in any case.
fn places(name: &str, g: &Graph) -> Vec<(Device, Target)> {
    let f16 = g.values().iter().any(|v| v.ty.dtype == DType::F16);
    for target in [false, true].map(|software| WgpuTarget { software, f16, ..Default::default() }) {
        for node in g.nodes().iter().filter(|n| !n.op.is_view()) {
            match node.op.lower(&g.signature(node), &Target::Wgpu(target)) {
                Err(e) => panic!("{name}: {e}"),
                #[cfg(feature = "wgpu")]
                Ok(launches) => launches.iter().for_each(|l| crate::wgsl::validate(l, &target)),
                #[cfg(not(feature = "wgpu"))]
                Ok(_) => {}
            }
        }
    }
    // The CPU device computes with f32 alone, and says so.
    let mut places = if f16 { vec![] } else { vec![(Device::Cpu, Target::Cpu)] };
    match adapter() {
        Ok(device) if f16 && !matches!(device.target(), Target::Wgpu(WgpuTarget { f16: true, .. })) => {
            eprintln!("{name}: not run on wgpu: the adapter has no f16")
        }
        Ok(device) => {
            if let Target::Wgpu(target @ WgpuTarget { software: true, .. }) = device.target() {
                places.push((device.clone(), Target::Wgpu(WgpuTarget { software: false, ..target })));
            }
            places.push((device.clone(), device.target()));
        }
        Err(reason) => eprintln!("{name}: not run on wgpu: {reason}"),
    }
    places
}

/// The wgpu device, or why there is none.
fn adapter() -> Result<Device, &'static str> {
    static FOUND: std::sync::OnceLock<Result<Device, String>> = std::sync::OnceLock::new();
    let found = FOUND.get_or_init(|| Device::wgpu().map_err(|e| e.to_string()));
    let required = std::env::var("LANGEVIN_REQUIRE").is_ok_and(|r| r.split(',').any(|d| d == "wgpu"));
    match found {
        Ok(device) => Ok(device.clone()),
        Err(reason) if required => panic!("LANGEVIN_REQUIRE asks for wgpu: {reason}"),
        Err(reason) => Err(reason),
    }
}

/// The outputs of a graph on the CPU device. Those of other devices must be about the same.
pub fn run_graph(g: &Graph, data: &[(String, Vec<f64>)]) -> Outputs {
    let cpu = run_on((Device::Cpu, Target::Cpu), g, data);
    for place in places("a graph", g).into_iter().skip(1) {
        let device = place.0.clone();
        let got = run_on(place, g, data);
        for (name, expected) in &cpu {
            let err = relative(&got[name], expected);
            let finite = expected.iter().all(|v| v.is_finite());
            assert!(!finite || err <= 1e-4, "`{name}` on {device} is off the cpu's by {err:.2e}");
        }
    }
    cpu
}

/// Runs a graph under poison with guard zones.
fn run_on((device, target): (Device, Target), g: &Graph, data: &[(String, Vec<f64>)]) -> Outputs {
    let mut buffers = Buffers::new();
    for (v, name) in g.inputs() {
        buffers.declare(name, g.ty(v).clone());
    }
    for (name, v) in g.outputs() {
        buffers.declare(name, g.ty(*v).clone());
    }
    let ids = buffers.clone();
    let program = Program::compile("case", g, target, &mut buffers, |n| ids.find(n), Options { guard: 64 }).unwrap();
    let mut schedule = Schedule::new("case", buffers);
    let p = schedule.add(program);
    schedule.steps.push(Step::Run(p));
    let mut session = Session::new(device, schedule).unwrap().poisoned();
    for (name, numbers) in data {
        let Some(id) = ids.find(name) else { continue };
        let ty = ids.get(id).ty.clone();
        if ty.dtype == DType::I32 {
            session.write(id, &numbers.iter().map(|v| *v as i32).collect::<Vec<_>>()).unwrap();
        } else {
            let plain: Vec<f32> = numbers.iter().map(|v| *v as f32).collect();
            let mut stored = vec![0.0; ty.stored()];
            to_layout(&ty, &plain, &mut stored);
            if ty.dtype == DType::F16 {
                session.write(id, &stored.iter().map(|v| f16::from_f32(*v)).collect::<Vec<_>>()).unwrap();
            } else {
                session.write(id, &stored).unwrap();
            }
        }
    }
    session.run(&mut |_, _| Ok(())).unwrap();
    let mut out = Outputs::new();
    for (name, v) in g.outputs() {
        let ty = g.ty(*v);
        let id = ids.find(name).unwrap();
        let numbers: Vec<f64> = if ty.dtype == DType::I32 {
            session.read::<i32>(id).unwrap().iter().map(|v| *v as f64).collect()
        } else {
            let stored = session.read::<f32>(id).unwrap();
            if ty.layout == Layout::Panels {
                let sum: f64 = stored.iter().map(|v| v.abs() as f64).sum();
                let plain: f64 = from_layout(ty, &stored).iter().map(|v| v.abs() as f64).sum();
                assert!((sum - plain).abs() <= 1e-6 * sum.max(1.0), "the padding of a weight is not zero");
            }
            from_layout(ty, &stored).iter().map(|v| *v as f64).collect()
        };
        out.insert(name.to_string(), numbers);
    }
    out
}

/// ‖a − b‖ / ‖b‖; infinite where `a` is not finite.
pub fn relative(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    if a.iter().any(|v| !v.is_finite()) {
        return f64::INFINITY;
    }
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-6)
}
