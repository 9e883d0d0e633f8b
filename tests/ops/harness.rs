//! One table drives everything: an op, its inputs, and what it computes in f64.

use half::{bf16, f16};
use langevin::Device;
use langevin::graph::{CudaTarget, Graph, Kernel, Matrices, Op, Signature, Target, Value, WgpuTarget};
use langevin::ops::{Affine, Cast};
use langevin::passes::autodiff::{Recompute, gradients};
use langevin::passes::storage::mixed_precision;
use langevin::passes::verify::verify;
use langevin::schedule::{Buffers, Options, Program, Schedule, Session, Step};
use langevin::tensor::{DType, Layout, TensorType, from_layout, to_layout};
use std::sync::Arc;

/// A GPU that runs PTX.
fn cuda() -> Target {
    Target::Cuda(CudaTarget::default())
}

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
    #[inline]
    pub fn at(&self, index: &[usize]) -> f64 {
        self.data[self.offset(index)]
    }

    #[inline]
    pub fn at_mut(&mut self, index: &[usize]) -> &mut f64 {
        let i = self.offset(index);
        &mut self.data[i]
    }

    #[inline]
    fn offset(&self, index: &[usize]) -> usize {
        assert_eq!(index.len(), self.shape.len());
        let mut offset = 0;
        // References spend most of their time here, and iterators over two lists are not inlined in test builds.
        #[expect(clippy::needless_range_loop)]
        for axis in 0..index.len() {
            assert!(index[axis] < self.shape[axis]);
            offset = offset * self.shape[axis] + index[axis];
        }
        offset
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
    /// Relative bound on outputs, by norm, where numbers are stored as f16, an eighth of that for bf16; inputs are rounded before.
    pub f16_bound: f64,
    /// Relative bound on gradients, by norm.
    pub grad_bound: f64,
    /// Which outputs are differentiated through (all f32 ones by default).
    pub differentiate_outputs: Vec<usize>,
    /// Only on GPUs of compute capability 9.0, in 16 bits: other kernels of the op have cases of their own.
    pub hopper_only: bool,
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
            f16_bound: 1e-3,
            grad_bound: 1e-4,
            differentiate_outputs: vec![0],
            hopper_only: false,
        }
    }

    /// No gradient check.
    pub fn forward_only(mut self) -> Self {
        self.differentiate_outputs.clear();
        self
    }

    /// For such GPUs alone. Sees to it that there the op's first launch in bf16 is of an entry.
    pub fn on_hopper(mut self, entry: &str) -> Self {
        self.hopper_only = true;
        let narrow = |ty: &TensorType| match ty.dtype {
            DType::F32 => TensorType { dtype: DType::Bf16, ..ty.clone() },
            _ => ty.clone(),
        };
        let inputs: Vec<TensorType> = self.inputs.iter().map(|i| narrow(&i.ty)).collect();
        let outputs = self.op.infer(&inputs.iter().collect::<Vec<_>>()).unwrap();
        let launches = self.op.lower(&Signature { inputs, outputs }, &Device::ptx((9, 0)).target()).unwrap();
        match &launches[0].kernel {
            Kernel::Ptx(kernel) => assert_eq!(kernel.entry, entry, "{}", self.name),
            other => panic!("{}: {other:?}", self.name),
        }
        self
    }

    /// Runs the op on every device under poison, against the reference; then its gradients mid-graph; then, if it takes them,
    /// with numbers stored as f16 and bf16, and its gradients in bf16.
    pub fn check(&self) {
        let differentiate = !self.differentiate_outputs.is_empty();
        if !self.hopper_only {
            self.check_outputs(DType::F32, self.bound);
            if differentiate {
                self.check_gradients(DType::F32, self.grad_bound);
            }
        }
        if self.op.takes(DType::F16, &Target::Wgpu(WgpuTarget { f16: true, ..Default::default() })) {
            self.check_outputs(DType::F16, self.f16_bound);
        }
        if self.op.takes(DType::Bf16, &cuda()) {
            // Three bits less.
            let bound = 8.0 * self.f16_bound;
            self.check_outputs(DType::Bf16, bound);
            // Runs are trained in bf16. Kernels of gradients in f16 are the same templates, and have tests of their own.
            if differentiate {
                self.check_gradients(DType::Bf16, 4.0 * bound);
            }
        }
    }

    /// The inputs' numbers, rounded as a type stores them.
    fn tensors(&self, dtype: DType) -> Vec<Tensor> {
        let round = |i: &Input| i.data.iter().map(|v| rounded(&i.ty, *v, dtype)).collect();
        let tensor = |i: &Input| Tensor::new(i.ty.shape.clone(), round(i));
        self.inputs.iter().map(tensor).collect()
    }

    /// Runs the op on every device under poison, numbers stored as `dtype`, against the reference.
    pub fn check_outputs(&self, dtype: DType, bound: f64) {
        let tensors = self.tensors(dtype);
        let expected = (self.reference)(&tensors);
        // Outputs: the op's own inputs are computed values (not buffers), so in-place and lifetimes are exercised.
        let mut g = Graph::new();
        let mut inputs = self.declare(&mut g, |g, name, ty| g.input(name, ty));
        if dtype != DType::F32 {
            let narrow = inputs.iter_mut().enumerate().filter(|(i, _)| !self.op.stays_f32(*i));
            narrow.for_each(|(_, v)| *v = cast(&mut g, *v, DType::F32, dtype));
        }
        let outs = g.apply_arc(self.op.clone(), &inputs).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        for (i, out) in outs.iter().enumerate() {
            let out = if dtype == DType::F32 { *out } else { cast(&mut g, *out, dtype, DType::F32) };
            g.output(format!("out{i}"), out);
        }
        assert_eq!(expected.len(), outs.len(), "{}: the reference must give every output", self.name);
        let places = if self.hopper_only { hopper_places(&self.name) } else { places(&self.name, &g) };
        for (device, got) in self.run(places, &g, &tensors, &[]) {
            for (i, (e, out)) in expected.iter().zip(&outs).enumerate() {
                assert_eq!(e.shape, g.shape(*out), "{}: shape of output {i}", self.name);
                let err = relative(&got[&format!("out{i}")], &e.data);
                let name = format!("{} in {dtype} on {device}", self.name);
                assert!(err <= bound, "{name}: output {i} is off by {err:.2e} (bound {bound:.1e})");
            }
        }
    }

    /// Declares the inputs, f32 ones as `floats`; those go through a copy (affine 1·x + 0), so that the op stands mid-graph.
    fn declare(&self, g: &mut Graph, floats: fn(&mut Graph, &str, TensorType) -> Value) -> Vec<Value> {
        self.inputs
            .iter()
            .enumerate()
            .map(|(i, input)| {
                let name = format!("in{i}");
                if input.ty.dtype != DType::F32 {
                    return g.input(name, input.ty.clone());
                }
                let v = floats(g, &name, input.ty.clone());
                g.apply(Affine::scale(1.0), &[v]).unwrap()
            })
            .collect()
    }

    /// Gradients stored as `dtype`; in 16 bits as a training step stores them, on the devices that do.
    fn check_gradients(&self, dtype: DType, bound: f64) {
        let tensors = &self.tensors(dtype);
        let mut g = Graph::new();
        // Storage in 16 bits begins at parameters.
        let inputs = self.declare(&mut g, |g, name, ty| g.parameter(name, ty));
        let outs = g.apply_arc(self.op.clone(), &inputs).unwrap();
        // Upstream gradients are noise, handed in as inputs.
        let mut seeds = Vec::new();
        let mut seed_data = Vec::<Vec<f64>>::new();
        for o in &self.differentiate_outputs {
            let ty = g.ty(outs[*o]).clone();
            seed_data.push(noise(ty.elements(), 77 + *o as u64).iter().map(|v| rounded(&ty, *v, dtype)).collect());
            seeds.push((outs[*o], g.parameter(format!("dy{o}"), ty)));
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
        let places = match dtype {
            DType::F32 => places(&self.name, &g),
            dtype => {
                g = mixed_precision(&g, dtype, &cuda()).unwrap();
                if self.hopper_only { hopper_places(&self.name) } else { ptx_places(&self.name, &g) }
            }
        };
        let results = self.run(places, &g, tensors, &extra);
        for i in &wanted {
            let expected = self.finite_differences(tensors, *i, &seed_data);
            for (device, got) in &results {
                let value = &got[&format!("d{i}")];
                let err = relative(value, &expected);
                assert!(
                    err <= bound,
                    "{} in {dtype} on {device}: gradient of input {i} is off by {err:.2e} (bound {bound:.1e})\n got {:?}\n expected {:?}",
                    self.name,
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

    /// Every output of the graph on every one of those devices.
    fn run(
        &self,
        places: Vec<(Device, Target)>,
        g: &Graph,
        inputs: &[Tensor],
        extra: &[(String, Vec<f64>)],
    ) -> Vec<(Device, Outputs)> {
        let data: Vec<(String, Vec<f64>)> = inputs
            .iter()
            .enumerate()
            .map(|(i, x)| (format!("in{i}"), x.data.clone()))
            .chain(extra.iter().cloned())
            .collect();
        places.into_iter().map(|place| (place.0.clone(), run_on(place, g, &data))).collect()
    }
}

/// A number of a tensor of that type where f32 is stored as `dtype`.
fn rounded(ty: &TensorType, v: f64, dtype: DType) -> f64 {
    match (ty.dtype, dtype) {
        (DType::F32, DType::F16) => f16::from_f64(v).to_f64(),
        (DType::F32, DType::Bf16) => bf16::from_f64(v).to_f64(),
        _ => v,
    }
}

/// A value of type `from` as `to`; others as they are.
fn cast(g: &mut Graph, value: Value, from: DType, to: DType) -> Value {
    if g.ty(value).dtype == from { g.apply(Cast(to), &[value]).unwrap() } else { value }
}

/// The outputs of a graph by name, row-major in f64.
pub type Outputs = std::collections::HashMap<String, Vec<f64>>;

/// The devices that can run a graph here, with the targets to lower it for: a software adapter also runs what is meant for
/// hardware, with its subgroups and cooperative matrices and without. What stores f16 runs on adapters that have it. A missing adapter is printed;
/// `LANGEVIN_REQUIRE=wgpu` (or `f16`) makes it a failure. Shaders are validated in any case.
fn places(name: &str, g: &Graph) -> Vec<(Device, Target)> {
    let has = |dtype| g.values().iter().any(|v| v.ty.dtype == dtype);
    let (f16, bf16) = (has(DType::F16), has(DType::Bf16));
    let mut places = ptx_places(name, g);
    if bf16 {
        return places;
    }
    let plain = WgpuTarget { f16, ..Default::default() };
    // What has matrices of 16 has more workgroup memory too.
    let workgroup_bytes = |f16| if f16 == 16 { 48 << 10 } else { plain.workgroup_bytes };
    let with = |f32, f16| WgpuTarget {
        subgroups: true,
        matrices: Matrices { f32, f16, subgroup: 32 },
        workgroup_bytes: workgroup_bytes(f16),
        ..plain
    };
    for target in [plain, with(0, 0), with(8, 8), with(0, 16), WgpuTarget { software: true, ..plain }] {
        for node in g.nodes().iter().filter(|n| n.op.view(&g.signature(n)).is_none()) {
            match node.op.lower(&g.signature(node), &Target::Wgpu(target)) {
                Err(e) => panic!("{name}: {e}"),
                #[cfg(feature = "wgpu")]
                Ok(launches) => launches.iter().for_each(|l| crate::wgsl::validate(l, &target)),
                #[cfg(not(feature = "wgpu"))]
                Ok(_) => {}
            }
        }
    }
    if !f16 || g.nodes().iter().all(|n| n.op.takes(DType::F16, &Target::Cpu)) {
        places.insert(0, (Device::Cpu, Target::Cpu));
    }
    match adapter() {
        Ok(device) if f16 && !device.target().stores(DType::F16) => {
            assert!(!required("f16"), "LANGEVIN_REQUIRE asks for f16, which the adapter does not have");
            eprintln!("{name}: not run in f16, which the adapter does not have");
        }
        Ok(device) => {
            if let Target::Wgpu(target @ WgpuTarget { software: true, .. }) = device.target() {
                places.push((device.clone(), Target::Wgpu(WgpuTarget { software: false, ..target })));
            }
            if let Target::Wgpu(target @ WgpuTarget { subgroups: true, .. }) = device.target() {
                let target = WgpuTarget { software: false, subgroups: false, matrices: Matrices::default(), ..target };
                places.push((device.clone(), Target::Wgpu(target)));
            }
            places.push((device.clone(), device.target()));
        }
        Err(reason) => eprintln!("{name}: not run on wgpu: {reason}"),
    }
    only(places)
}

/// The ptx device and the cuda device, where there is one, as every GPU for which the graph is lowered differently.
fn ptx_places(name: &str, g: &Graph) -> Vec<(Device, Target)> {
    let mut places =
        different(name, g, [(8, 0), (9, 0)].map(Device::ptx).map(|device| (device.clone(), device.target())));
    if let Some(device) = gpu() {
        let of_gpu = device.target();
        let older = match of_gpu {
            Target::Cuda(target) => Target::Cuda(CudaTarget { compute: (8, 0), ..target }),
            other => other,
        };
        places.extend(different(name, g, [of_gpu, older].map(|target| (device.clone(), target))));
    }
    only(places)
}

/// The ptx device as a GPU of compute capability 9.0, and the cuda device, if it is one.
fn hopper_places(name: &str) -> Vec<(Device, Target)> {
    let places = [Device::ptx((9, 0))].into_iter().chain(gpu()).map(|device| (device.clone(), device.target()));
    let hopper = |target: &Target| matches!(target, Target::Cuda(target) if target.compute == (9, 0));
    let places = only(places.filter(|(_, target)| hopper(target)).collect());
    if places.is_empty() {
        eprintln!("{name}: not run: LANGEVIN_ONLY names no device of compute capability 9.0");
    }
    places
}

/// Those places whose launches of the graph are not those of a place before them.
fn different(name: &str, g: &Graph, candidates: [(Device, Target); 2]) -> Vec<(Device, Target)> {
    let [first, second] = candidates;
    let lower = |(device, target): &(Device, Target)| {
        let nodes = g.nodes().iter().filter(|n| n.op.view(&g.signature(n)).is_none());
        let launches = nodes.map(|n| n.op.lower(&g.signature(n), target)).collect::<Result<Vec<_>, _>>();
        launches.unwrap_or_else(|e| panic!("{name} on {device}: {e}"))
    };
    if lower(&first) == lower(&second) { vec![first] } else { vec![first, second] }
}

/// The devices that run PTX: `ptx` as a GPU of that compute capability, and the cuda device, where there is one.
pub fn ptx_devices(compute: (u32, u32)) -> Vec<Device> {
    let devices = [Device::ptx(compute)].into_iter().chain(gpu());
    only(devices.map(|device| (device.clone(), device.target())).collect()).into_iter().map(|place| place.0).collect()
}

/// What is left of the places if `LANGEVIN_ONLY` names devices: where there is a GPU, tests for it need not wait for the processor. A GPU that it names is
/// required.
fn only(mut places: Vec<(Device, Target)>) -> Vec<(Device, Target)> {
    if let Ok(only) = std::env::var("LANGEVIN_ONLY") {
        let known = |name: &str| ["cpu", "wgpu", "cuda", "ptx"].contains(&name);
        assert!(only.split(',').all(known), "LANGEVIN_ONLY names a device that is none: {only}");
        places.retain(|(_, target)| only.split(',').any(|name| name == target.name()));
    }
    places
}

/// The outputs of a graph on the ptx and cuda devices alone.
pub fn run_on_gpus(name: &str, g: &Graph, data: &[(String, Vec<f64>)]) -> Vec<(Device, Outputs)> {
    let places = ptx_places(name, g).into_iter();
    places.map(|place| (place.0.clone(), run_on(place, g, data))).collect()
}

/// The cuda device, where there is one; why not is printed once.
fn gpu() -> Option<Device> {
    static FOUND: std::sync::OnceLock<Option<Device>> = std::sync::OnceLock::new();
    let found = FOUND.get_or_init(|| match Device::cuda() {
        Ok(device) => Some(device),
        Err(e) if required("cuda") => panic!("LANGEVIN_REQUIRE asks for cuda: {e}"),
        Err(e) => {
            eprintln!("not run on cuda: {e}");
            None
        }
    });
    found.clone()
}

/// True if `LANGEVIN_REQUIRE` has a word, or `LANGEVIN_ONLY`.
fn required(word: &str) -> bool {
    ["LANGEVIN_REQUIRE", "LANGEVIN_ONLY"]
        .iter()
        .any(|n| std::env::var(n).is_ok_and(|r| r.split(',').any(|w| w == word)))
}

/// The wgpu device, or why there is none.
fn adapter() -> Result<Device, &'static str> {
    static FOUND: std::sync::OnceLock<Result<Device, String>> = std::sync::OnceLock::new();
    let found = FOUND.get_or_init(|| Device::wgpu().map_err(|e| e.to_string()));
    match found {
        Ok(device) => Ok(device.clone()),
        Err(reason) if required("wgpu") || required("f16") => panic!("LANGEVIN_REQUIRE asks for wgpu: {reason}"),
        Err(reason) => Err(reason),
    }
}

/// The outputs of a graph on the CPU device. Those of other devices must be about the same.
pub fn run_graph(g: &Graph, data: &[(String, Vec<f64>)]) -> Outputs {
    let cpu = run_on((Device::Cpu, Target::Cpu), g, data);
    for place in places("a graph", g).into_iter().filter(|(device, _)| *device != Device::Cpu) {
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
pub fn run_on((device, target): (Device, Target), g: &Graph, data: &[(String, Vec<f64>)]) -> Outputs {
    let mut buffers = Buffers::new();
    for (v, name) in g.inputs().chain(g.parameters()) {
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
            match ty.dtype {
                DType::F16 => session.write(id, &stored.iter().map(|v| f16::from_f32(*v)).collect::<Vec<_>>()),
                DType::Bf16 => session.write(id, &stored.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>()),
                _ => session.write(id, &stored),
            }
            .unwrap();
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
