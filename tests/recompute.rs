//! Gradients whose forward values are made again are, bit for bit, those of kept ones, and need less memory.

mod support;

use langevin::Device;
use langevin::graph::{Graph, Value};
use langevin::methods::forward::{Backward, forward};
use langevin::nn::{InputSpec, Network};
use langevin::ops::{Activate, Activation, Epilogue, Linear, Slice};
use langevin::passes::autodiff::{Recompute, gradients};
use langevin::passes::recompute::recompute;
use langevin::schedule::{Options, Program, Session, Space};
use langevin::tensor::{DType, TensorType};
use std::collections::BTreeMap;
use support::{DIT, UNET};

/// With a skip that is resampled, attention and, as the others in this file, dropout.
const EDM: &str = r#"{
    "_class_name": "EDMPrecond", "img_resolution": 8, "img_channels": 1, "label_dim": 2, "sigma_data": 0.5,
    "model_type": "SongUNet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4],
    "dropout": 0.2
}"#;

/// The bits of the output and of every gradient, and the program that made them. With guard zones it is poisoned, and scratch does not
/// lie where gradients are not yet written.
fn run(network: &str, how: Backward, device: &Device, guard: usize) -> (BTreeMap<String, Vec<u32>>, Program) {
    let built = Network::from_config(network, "config.json").unwrap();
    let built = built.build(&InputSpec::new(2, 8, 8).training()).unwrap();
    let schedule = forward(&built, Some(how), device.target(), Options { guard }).unwrap();
    let (buffers, program) = (schedule.buffers.clone(), schedule.programs[0].clone());
    let mut session = Session::new(device.clone(), schedule).unwrap();
    if guard > 0 {
        session = session.poisoned();
    }
    for (n, buffer) in buffers.all().iter().enumerate() {
        let id = buffers.find(&buffer.name).unwrap();
        let number = |i: usize| ((i + 17 * n) as u32).wrapping_mul(2_654_435_761) as f32 / u32::MAX as f32 - 0.45;
        match buffer.ty.dtype {
            _ if buffer.name.as_ref() == "constant" => {}
            DType::I32 => session
                .fill::<i32, _>(id, |data| data.iter_mut().enumerate().for_each(|(i, v)| *v = i as i32 % 2))
                .unwrap(),
            // A noise level must be positive.
            _ if buffer.name.as_ref() == "sigma" => session.write(id, &[0.5f32, 2.0]).unwrap(),
            _ => session
                .fill::<f32, _>(id, |data| data.iter_mut().enumerate().for_each(|(i, v)| *v = number(i)))
                .unwrap(),
        }
    }
    session.run(&mut |_, _| Ok(())).unwrap();
    let outputs = buffers.all().iter().filter(|b| b.name.starts_with("out/"));
    let read = |b: &langevin::schedule::Buffer| {
        let id = buffers.find(&b.name).unwrap();
        (b.name.to_string(), session.read::<f32>(id).unwrap().into_iter().map(f32::to_bits).collect::<Vec<u32>>())
    };
    (outputs.map(read).collect(), program)
}

fn count(program: &Program, op: &str) -> usize {
    program.commands.iter().filter(|c| c.op == op).count()
}

fn agree(network: &str, dtype: DType, device: &Device) {
    let with = |recompute, guard| run(network, Backward { recompute, dtype }, device, guard);
    let ((kept, plain), (again, program)) = (with(Recompute::Off, 256), with(Recompute::Cheap, 256));
    let (lent, in_gradients) = with(Recompute::Cheap, 0);
    assert!(kept.len() > 10 && kept.values().flatten().any(|v| *v != 0));
    for (name, bits) in &kept {
        assert!(bits.iter().all(|b| f32::from_bits(*b).is_finite()), "{name} on {device} in {dtype}");
        assert!(*bits == again[name], "{name} on {device} in {dtype} changes in\n{network}");
        assert!(*bits == lent[name], "{name} on {device} in {dtype} changes in lent memory in\n{network}");
    }
    assert!(program.lower_bound < plain.lower_bound, "{} < {}", program.lower_bound, plain.lower_bound);
    assert!(program.commands.len() > plain.commands.len());
    let twice = |program: &Program| {
        let writes = program.commands.iter().flat_map(|c| c.writes.iter().map(|w| &c.args[*w]));
        let mut places: Vec<usize> = writes.filter(|s| s.space == Space::Buffers).map(|s| s.offset).collect();
        places.sort_unstable();
        places.windows(2).filter(|w| w[0] == w[1]).count()
    };
    assert!(twice(&in_gradients) > twice(&program), "no gradient's place is used before");
    for op in ["linear", "conv2d", "attention", "linear_weight_grad", "conv2d_weight_grad", "attention_grad"] {
        assert_eq!(count(&plain, op), count(&program, op), "{op} runs again");
    }
}

#[test]
fn gradients_have_the_same_bits() {
    let dropout = |network: &str| network.replacen('{', r#"{"dropout": 0.3, "#, 1);
    for network in [UNET, &dropout(DIT), EDM] {
        agree(network, DType::F32, &Device::Cpu);
        for compute in [(8, 0), (9, 0)] {
            agree(network, DType::F32, &Device::ptx(compute));
            agree(network, DType::Bf16, &Device::ptx(compute));
        }
    }
}

/// sum(silu(xW)): what the activation's gradient reads, its input, is kept; its output for the second weight is made again. Of
/// three slices of a product that nothing else reads, none is: the product would have to be kept for them.
#[test]
fn what_saves_nothing_is_kept() {
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([64, 32]));
    let [a, b] = [("a", [32, 96]), ("b", [32, 32])].map(|(name, shape)| g.parameter(name, TensorType::panels(shape)));
    let wide = g.apply(Linear(Epilogue::default()), &[x, a]).unwrap();
    let slices = [0, 32, 64].map(|start| g.apply(Slice { axis: 1, start, len: 32 }, &[wide]).unwrap());
    let outputs = slices.map(|s| {
        let y = g.apply(Activate(Activation::Silu), &[s]).unwrap();
        g.apply(Linear(Epilogue::default()), &[y, b]).unwrap()
    });
    let seeds: Vec<(Value, Value)> =
        outputs.iter().enumerate().map(|(i, y)| (*y, g.input(format!("dy{i}"), TensorType::f32([64, 32])))).collect();
    let grads = gradients(&mut g, &seeds, &[a, b], Recompute::Cheap).unwrap();
    grads.into_iter().enumerate().for_each(|(i, dw)| g.output(format!("dw{i}"), dw.unwrap()));
    let again = recompute(&g).unwrap();
    let count = |g: &Graph, name: &str| g.nodes().iter().filter(|n| n.op.name() == name).count();
    assert_eq!(["slice", "linear", "activation"].map(|name| count(&g, name)), [3, 7, 3]);
    assert_eq!(["slice", "linear", "activation"].map(|name| count(&again, name)), [3, 7, 6]);
    assert_eq!(again.nodes().len(), g.nodes().len() + 3);
}
