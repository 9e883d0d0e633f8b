//! Whole networks against PyTorch on every device: outputs and every gradient, under poison with guard zones.
//!
//! Each folder of `tests/golden` is a case: `model/` as diffusers saves it (random weights), `inputs.safetensors`, and
//! `expected.safetensors` with the output and the gradients of Σ output · grad_output. A network of experts has two outputs,
//! `top_experts`, of which the gradients are, and `bottom_experts`. More cases of the same layout
//! are run from the folder that the environment variable `LANGEVIN_GOLDEN` names.

mod support;

use langevin::Device;
use langevin::graph::{Graph, Value};
use langevin::nn::{Built, InputSpec, Network, Routing, nchw_to_nhwc, nhwc_to_nchw};
use langevin::passes::autodiff::{Recompute, gradients};
use langevin::passes::fuse::{Purpose, fuse};
use langevin::passes::storage::mixed_precision;
use langevin::passes::verify::verify;
use langevin::schedule::{Buffers, Options, Program, Schedule, Session, Step};
use langevin::tensor::DType;
use safetensors::{Dtype, SafeTensors};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Bounds on ‖a − b‖ / ‖b‖.
const OUTPUT: f64 = 1e-4;
/// Of one parameter, and of all of them.
const GRADIENT: [f64; 2] = [1e-3, 1e-3];
/// Where weights and activations are stored as f16, the output.
const STORED_F16: f64 = 1e-2;
/// Three bits less than f16.
const STORED_BF16: f64 = 3e-2;
/// Gradients, with activations and their gradients in bf16: of one parameter, where much may cancel, and of all of them.
const GRADIENT_BF16: [f64; 2] = [2e-1, 6e-2];
/// Gradients this much smaller than the largest are zero but for rounding (a softmax does not see the bias of its
/// keys); they are held against the largest.
const ZERO: f64 = 1e-5;
/// The same in bf16, whose rounding is greater by as much.
const ZERO_BF16: f64 = 1e-1;

struct Tensor {
    shape: Vec<usize>,
    data: Vec<f32>,
}

type Tensors = HashMap<String, Tensor>;

fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |view: &safetensors::tensor::TensorView| {
        let data: Vec<f32> = match view.dtype() {
            Dtype::F32 => view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::I64 => {
                view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f32).collect()
            }
            other => panic!("{}: {other:?}", path.display()),
        };
        Tensor { shape: view.shape().to_vec(), data }
    };
    file.tensors().iter().map(|(name, view)| (name.clone(), tensor(view))).collect()
}

fn norm(x: impl Iterator<Item = f64>) -> f64 {
    x.map(|v| v * v).sum::<f64>().sqrt()
}

/// ‖a − b‖ and ‖b‖
fn distance(a: &[f32], b: &[f32]) -> [f64; 2] {
    assert_eq!(a.len(), b.len());
    let difference = norm(a.iter().zip(b).map(|(a, b)| (*a - *b) as f64));
    [if a.iter().all(|v| v.is_finite()) { difference } else { f64::INFINITY }, norm(b.iter().map(|v| *v as f64))]
}

struct Case {
    name: String,
    device: Device,
    network: Network,
    weights: Tensors,
    inputs: Tensors,
    expected: Tensors,
    /// Name of the expected output.
    output: &'static str,
}

impl Case {
    fn read(dir: &Path, device: Device) -> Case {
        let config = dir.join("model/config.json");
        let text = std::fs::read_to_string(&config).unwrap();
        let expected = read(&dir.join("expected.safetensors"));
        let output = ["sample", "denoised", "top_experts"].into_iter().find(|name| expected.contains_key(*name));
        Case {
            name: format!("{} on {device}", dir.file_name().unwrap().to_string_lossy()),
            device,
            network: Network::from_config(&text, &config).unwrap(),
            weights: read(&dir.join("model/diffusion_pytorch_model.safetensors")),
            inputs: read(&dir.join("inputs.safetensors")),
            output: output.unwrap_or_else(|| panic!("{}: no output is expected", dir.display())),
            expected,
        }
    }

    /// The case of the experts with the lowest scores, where the network has experts.
    fn weak(mut self) -> Option<Case> {
        let expected = self.expected.contains_key("bottom_experts");
        assert_eq!(self.network.with_routing(Routing::Bottom).is_ok(), expected, "{}", self.name);
        self.network = self.network.with_routing(Routing::Bottom).ok()?;
        self.output = "bottom_experts";
        self.name += ", bottom experts";
        Some(self)
    }

    fn build(&self) -> Built {
        let shape = &self.inputs["sample"].shape;
        let tokens = self.inputs.get("encoder_hidden_states").map_or(77, |t| t.shape[1]);
        self.network.build(&InputSpec { tokens, ..InputSpec::new(shape[0], shape[2], shape[3]) }).unwrap()
    }

    /// The file holds the network's parameters and fixed tensors, no more, no fewer.
    fn check_names(&self, built: &Built) {
        let mut known = built.fixed.len();
        for (p, name) in built.parameters.iter().flat_map(|p| p.tensors().into_iter().map(move |name| (p, name))) {
            let tensor = self.weights.get(&name).unwrap_or_else(|| panic!("{}: no `{name}` in the file", self.name));
            assert_eq!(p.tensor_shape(), tensor.shape, "{}: {name}", self.name);
            known += 1;
        }
        for f in &built.fixed {
            let tensor = &self.weights[&f.name];
            assert_eq!((&f.shape, &f.data), (&tensor.shape, &tensor.data), "{}: {}", self.name, f.name);
        }
        assert_eq!(known, self.weights.len(), "{}", self.name);
    }

    /// An input as the graph wants it: NHWC, one time for each sample.
    fn input(&self, name: &str, batch: usize) -> Vec<f32> {
        let t = &self.inputs[name];
        match t.shape[..] {
            [b, c, h, w] => nchw_to_nhwc(&t.data, [b, c, h, w]),
            [1] if batch > 1 => vec![t.data[0]; batch],
            _ => t.data.clone(),
        }
    }

    /// Compiles and runs a graph; its outputs by name.
    fn run(&self, built: &Built, graph: &Graph) -> HashMap<String, Vec<f32>> {
        let mut buffers = Buffers::new();
        for joined in &built.joined {
            buffers.declare_joined(joined, str::to_owned).unwrap();
        }
        for (value, name) in graph.inputs().chain(graph.parameters()) {
            if buffers.find(name).is_none() {
                buffers.declare(name, graph.ty(value).clone());
            }
        }
        for (name, value) in graph.outputs() {
            buffers.declare(name, graph.ty(*value).clone());
        }
        let ids = buffers.clone();
        let (target, options) = (self.device.target(), Options { guard: 256 });
        let program = Program::compile(&*self.name, graph, target, &mut buffers, |n| ids.find(n), options).unwrap();
        let mut schedule = Schedule::new(&*self.name, buffers);
        let p = schedule.add(program);
        schedule.steps.push(Step::Run(p));
        let session = Session::new(self.device.clone(), schedule.clone()).unwrap().poisoned();
        let outputs = self.run_session(session, built, graph);
        #[cfg(feature = "cuda")]
        if let Device::Cuda(_) = self.device {
            // A poisoned run is launch by launch, others run what shares no memory side by side.
            let side_by_side = self.run_session(Session::new(self.device.clone(), schedule).unwrap(), built, graph);
            let bits = |numbers: &[f32]| numbers.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert!(
                outputs.iter().all(|(name, o)| bits(o) == bits(&side_by_side[name])),
                "{}: launches run too early",
                self.name
            );
        }
        outputs
    }

    fn run_session(&self, mut session: Session, built: &Built, graph: &Graph) -> HashMap<String, Vec<f32>> {
        let ids = session.schedule().buffers.clone();
        for (value, name) in graph.inputs() {
            let data = self.input(name, graph.shape(value)[0]);
            let id = ids.find(name).unwrap();
            match graph.ty(value).dtype {
                DType::I32 => session.write(id, &data.iter().map(|v| *v as i32).collect::<Vec<_>>()).unwrap(),
                _ => session.write(id, &data).unwrap(),
            }
        }
        for p in &built.parameters {
            let id = ids.find(&p.name).unwrap();
            let numbers: Vec<f32> = p.tensors().iter().flat_map(|name| self.weights[name].data.clone()).collect();
            session.fill(id, |place| p.write(&numbers, place)).unwrap().unwrap();
        }
        session.run(&mut |_, _| Ok(())).unwrap();
        let read = |(name, _): &(std::sync::Arc<str>, Value)| {
            let id = ids.find(name).unwrap();
            (name.to_string(), session.read::<f32>(id).unwrap())
        };
        graph.outputs().iter().map(read).collect()
    }

    /// The output of the graph fused for inference against PyTorch's; what it is off by.
    fn check_inference(&self, built: &Built) -> f64 {
        let (graph, _) = fuse(&built.graph, Purpose::Inference).unwrap();
        let got = self.run(built, &graph);
        self.compare_output(built, &graph, &got)
    }

    /// Output and gradients against PyTorch's, activations stored as `dtype`; what they are off by.
    fn check(&self, built: &Built, mut graph: Graph, recompute: Recompute, dtype: DType) -> [f64; 2] {
        let output = graph.find_output(built.output).unwrap();
        let seed = graph.input("grad_output", graph.ty(output).clone());
        let inputs = graph.inputs().filter(|(_, n)| self.expected.contains_key(&format!("d_{n}")));
        let mut wrt: Vec<(String, Value)> = inputs.map(|(v, n)| (format!("d_{n}"), v)).collect();
        let names: HashMap<&str, Value> = graph.parameters().map(|(v, n)| (n.as_ref(), v)).collect();
        for p in built.parameters.iter().filter(|p| p.trainable) {
            wrt.push((format!("grad.{}", p.name), names[p.name.as_str()]));
        }
        let values: Vec<Value> = wrt.iter().map(|(_, v)| *v).collect();
        let grads = gradients(&mut graph, &[(output, seed)], &values, recompute).unwrap();
        for ((name, _), grad) in wrt.iter().zip(grads) {
            graph.output(name, grad.unwrap_or_else(|| panic!("{}: nothing depends on {name}", self.name)));
        }
        verify(&graph, "reverse mode").unwrap();
        if dtype != DType::F32 {
            graph = mixed_precision(&graph, dtype, &self.device.target()).unwrap();
        }
        let got = self.run(built, &graph);
        [self.compare_output(built, &graph, &got), self.compare_gradients(built, &graph, &got)]
    }

    /// A value that was computed, as files hold it.
    fn to_file(&self, built: &Built, graph: &Graph, got: &HashMap<String, Vec<f32>>, name: &str) -> Vec<f32> {
        let (data, value) = (&got[name], graph.find_output(name).unwrap());
        match (name.strip_prefix("grad."), graph.shape(value)) {
            (Some(p), _) => built.parameters.iter().find(|q| q.name == p).unwrap().from_arena(data),
            (None, &[b, h, w, c]) => nhwc_to_nchw(data, [b, h, w, c]),
            (None, _) => data.clone(),
        }
    }

    fn compare_output(&self, built: &Built, graph: &Graph, got: &HashMap<String, Vec<f32>>) -> f64 {
        let expected = &self.expected[self.output];
        let [off, size] = distance(&self.to_file(built, graph, got, built.output), &expected.data);
        let bound = if has(graph, DType::Bf16) {
            STORED_BF16
        } else if has(graph, DType::F16) {
            STORED_F16
        } else {
            OUTPUT
        };
        assert!(off <= bound * size, "{}: the output is off by {:.1e}", self.name, off / size);
        off / size
    }

    fn compare_gradients(&self, built: &Built, graph: &Graph, got: &HashMap<String, Vec<f32>>) -> f64 {
        let to_file = |name: &str| self.to_file(built, graph, got, name);
        let wanted = self.expected.iter().filter(|(n, _)| n.starts_with("grad.") || n.starts_with("d_"));
        let all: Vec<(&String, [f64; 2])> = wanted.map(|(n, t)| (n, distance(&to_file(n), &t.data))).collect();
        let (bound, zero) = if has(graph, DType::Bf16) { (GRADIENT_BF16, ZERO_BF16) } else { (GRADIENT, ZERO) };
        let largest = all.iter().map(|(_, [_, size])| *size).fold(0.0, f64::max);
        let whole = |i: usize| norm(all.iter().map(|(_, lengths)| lengths[i]));
        let error = whole(0) / whole(1);
        assert!(error <= bound[1], "{}: the whole gradient is off by {error:.1e}", self.name);
        let mut worst = 0.0f64;
        for (name, [off, size]) in all {
            let error = off / if size < zero * largest { largest } else { size };
            assert!(error <= bound[0], "{}: {name} is off by {error:.1e}", self.name);
            worst = worst.max(error);
        }
        worst
    }
}

/// True if a number of the graph is stored so.
fn has(graph: &Graph, dtype: DType) -> bool {
    graph.values().iter().any(|v| v.ty.dtype == dtype)
}

fn cases() -> Vec<PathBuf> {
    // The suite for GPUs runs this program on another machine, in a folder that has the files.
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let here = if built.exists() { built } else { "tests/golden".into() };
    let roots = [Some(here), std::env::var_os("LANGEVIN_GOLDEN").map(PathBuf::from)];
    let list = |root: PathBuf| std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path());
    let mut dirs: Vec<PathBuf> = roots.into_iter().flatten().flat_map(list).collect();
    dirs.retain(|d| d.join("model/config.json").is_file());
    dirs.sort();
    dirs
}

fn check_weak(case: Case) {
    if let Some(case) = case.weak() {
        println!("{:<40} inference, fused: output {:.1e}", case.name, case.check_inference(&case.build()));
    }
}

#[test]
fn networks_agree_with_pytorch() {
    for dir in cases() {
        let case = Case::read(&dir, Device::Cpu);
        let built = case.build();
        case.check_names(&built);
        println!("{:<40} inference, fused: output {:.1e}", case.name, case.check_inference(&built));
        let (fused, _) = fuse(&built.graph, Purpose::Training).unwrap();
        for (what, graph) in [("as built", &built.graph), ("fused", &fused)] {
            for recompute in [Recompute::Off, Recompute::Blocks] {
                let [output, gradient] = case.check(&built, graph.clone(), recompute, DType::F32);
                println!("{:<40} {what}, {recompute:?}: output {output:.1e}, worst gradient {gradient:.1e}", case.name);
            }
        }
        check_weak(case);
    }
}

/// The graphs are those of the CPU device, so one form of each is enough.
fn check_all_on(device: Device) {
    for dir in cases() {
        let case = Case::read(&dir, device.clone());
        let built = case.build();
        let inference = case.check_inference(&built);
        let (fused, _) = fuse(&built.graph, Purpose::Training).unwrap();
        let [output, gradient] = case.check(&built, fused, Recompute::Off, DType::F32);
        println!("{:<40} inference {inference:.1e}, output {output:.1e}, worst gradient {gradient:.1e}", case.name);
        check_weak(case);
    }
}

/// Weights and activations stored in 16 bits, sums in f32: the output alone, of the graph for inference.
fn check_all_stored(dtype: DType, device: Device) {
    for dir in cases() {
        let case = Case::read(&dir, device.clone());
        let built = case.build().for_inference(dtype, &device.target()).unwrap();
        let short = built.parameters.iter().filter(|p| p.ty.dtype == dtype).count();
        assert!(2 * short > built.parameters.len(), "{}: {short} parameters are {dtype}", case.name);
        println!("{:<40} inference in {dtype} {:.1e}", case.name, case.check_inference(&built));
    }
}

/// Training with activations and their gradients in bf16, weights and their gradients in f32.
fn check_all_mixed(device: Device) {
    for dir in cases() {
        let case = Case::read(&dir, device.clone());
        let built = case.build();
        let (fused, _) = fuse(&built.graph, Purpose::Training).unwrap();
        let [output, gradient] = case.check(&built, fused, Recompute::Off, DType::Bf16);
        println!("{:<40} in bf16: output {output:.1e}, worst gradient {gradient:.1e}", case.name);
    }
}

#[test]
fn networks_agree_with_pytorch_on_wgpu() {
    support::wgpu().into_iter().for_each(check_all_on);
}

#[test]
fn networks_in_f16_agree_with_pytorch() {
    support::wgpu_f16().into_iter().for_each(|device| check_all_stored(DType::F16, device));
}

#[test]
fn networks_agree_with_pytorch_on_cuda() {
    let Some(device) = support::cuda() else { return };
    check_all_stored(DType::F16, device.clone());
    check_all_stored(DType::Bf16, device.clone());
    check_all_mixed(device.clone());
    check_all_on(device);
}

#[test]
fn networks_agree_with_pytorch_on_ptx() {
    check_all_on(Device::ptx((8, 0)));
}

#[test]
fn networks_in_16_bits_agree_with_pytorch_on_ptx() {
    check_all_stored(DType::F16, Device::ptx((8, 0)));
    check_all_stored(DType::Bf16, Device::ptx((8, 0)));
}

#[test]
fn training_in_bf16_agrees_with_pytorch_on_ptx() {
    check_all_mixed(Device::ptx((8, 0)));
}
