//! How near the memory planner comes to the lower bound on networks that people run.

use langevin::Device;
use langevin::graph::{Graph, Value};
use langevin::nn::{Built, InputSpec, Network};
use langevin::passes::autodiff::{Recompute, gradients};
use langevin::passes::fuse::{Purpose, fuse};
use langevin::passes::recompute::recompute;
use langevin::schedule::{Buffers, Options, Program};

const DDPM_CIFAR10: &str = r#"{
    "_class_name": "UNet2DModel", "sample_size": 32, "block_out_channels": [128, 256, 256, 256], "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": null, "downsample_padding": 0, "flip_sin_to_cos": false, "freq_shift": 1, "norm_eps": 1e-6
}"#;

const DIT_S_2: &str = r#"{
    "_class_name": "DiTTransformer2DModel", "sample_size": 32, "num_layers": 12, "num_attention_heads": 6,
    "attention_head_dim": 64, "in_channels": 4, "out_channels": 8, "patch_size": 2
}"#;

/// Everything bound to buffers: inputs, parameters, outputs.
fn compile(name: &str, graph: &Graph) -> Program {
    let mut buffers = Buffers::new();
    for (value, name) in graph.inputs().chain(graph.parameters()) {
        buffers.declare(name, graph.ty(value).clone());
    }
    for (name, value) in graph.outputs() {
        buffers.declare(name, graph.ty(*value).clone());
    }
    let ids = buffers.clone();
    Program::compile(name, graph, Device::Cpu.target(), &mut buffers, |n| ids.find(n), Options::default()).unwrap()
}

/// The network with the gradients of all its parameters.
fn training(built: &Built, recompute: Recompute) -> Graph {
    let (mut graph, _) = fuse(&built.graph, Purpose::Training).unwrap();
    let output = graph.find_output(built.output).unwrap();
    let seed = graph.input("grad_output", graph.ty(output).clone());
    let wrt: Vec<(Value, String)> = graph.parameters().map(|(v, n)| (v, format!("grad.{n}"))).collect();
    let values: Vec<Value> = wrt.iter().map(|(v, _)| *v).collect();
    let grads = gradients(&mut graph, &[(output, seed)], &values, recompute).unwrap();
    for ((_, name), grad) in wrt.iter().zip(grads) {
        graph.output(name, grad.unwrap());
    }
    graph
}

/// Planned bytes over the least; with those of gradients, whose memory is planned too.
fn ratio(what: &str, program: &Program, gradients: usize) -> f64 {
    let mib = |bytes: usize| bytes as f64 / 1048576.0;
    let ratio = (gradients + program.peak) as f64 / (gradients + program.lower_bound) as f64;
    println!("{what:<40} {:>9.2} MiB, lower bound {:>9.2}: {ratio:.4}", mib(program.peak), mib(program.lower_bound));
    ratio
}

#[test]
fn plans_come_near_the_lower_bound() {
    for (name, config) in [("ddpm-cifar10", DDPM_CIFAR10), ("DiT-S/2", DIT_S_2)] {
        let network = Network::from_config(config, "config.json").unwrap();
        for batch in [1, 8] {
            let built = network.build(&InputSpec::new(batch, 32, 32)).unwrap();
            let forward = compile(name, &fuse(&built.graph, Purpose::Inference).unwrap().0);
            assert!(ratio(&format!("{name}, batch {batch}, forward"), &forward, 0) <= 1.02);
            let mut peaks = Vec::new();
            for how in [Recompute::Off, Recompute::Cheap, Recompute::Blocks] {
                let graph = training(&built, how);
                let graph = if how == Recompute::Cheap { recompute(&graph).unwrap() } else { graph };
                let program = compile(name, &graph);
                let gradients = graph.parameters().map(|(v, _)| graph.ty(v).bytes()).sum();
                let what = format!("{name}, batch {batch}, training, {how:?}");
                assert!(ratio(&what, &program, gradients) <= 1.05);
                peaks.push(program.peak);
            }
            // What one image needs mostly lies where gradients will be.
            assert!(batch == 1 || peaks[1].max(peaks[2]) < peaks[0], "{name}: recomputation saves nothing");
        }
    }
}
