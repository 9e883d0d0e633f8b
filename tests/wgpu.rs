//! The wgpu device beside its ops: memory in pieces, schedules, faults. Skipped where there is no adapter, unless
//! `LANGEVIN_REQUIRE=wgpu`.
#![cfg(feature = "wgpu")]

mod support;

use half::f16;
use langevin::graph::{Graph, Launch, Op, Shader, Signature, Target};
use langevin::ops::{
    Activation, Affine, Attention, AttentionGrad, BatchedMatmul, Binary, Broadcast, Cast, Concat, Conv2d,
    Conv2dWeightGrad, DiffusionUpdate, Dropout, Embedding, Epilogue, Gate, GatherGrad, GradNorm, GroupNorm, LayerNorm,
    Linear, LinearWeightGrad, Optimizer, OptimizerKind, Pad, Padding, Permute, Random, RandomKind, Resample, RmsNorm,
    SampleMix, TimestepEmbedding, TimestepMlp,
};
use langevin::sampler::SampleRequest;
use langevin::schedule::{Buffers, Event, Options, Program, Rows, Schedule, Session, Step};
use langevin::tensor::{DType, TensorType};
use langevin::{Device, Error, Model, Result};
use pollster::block_on;
use support::wgpu as device;

/// A device of someone else's that binds at most `binding` bytes, in buffers of at most `buffer` bytes.
fn narrow(binding: u64, buffer: u64) -> Option<Device> {
    device()?;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = block_on(instance.enumerate_adapters(wgpu::Backends::all())).into_iter().next()?;
    let required_limits =
        wgpu::Limits { max_storage_buffer_binding_size: binding, max_buffer_size: buffer, ..adapter.limits() };
    let required_features = adapter.features() & wgpu::Features::SHADER_F16;
    let description = wgpu::DeviceDescriptor { required_limits, required_features, ..Default::default() };
    let (device, queue) = block_on(adapter.request_device(&description)).unwrap();
    Some(Device::from_wgpu(adapter.get_info(), device, queue).unwrap())
}

/// The session that runs a graph once, every input and output in a buffer of its name.
fn session(device: &Device, graph: &Graph) -> Result<Session> {
    Session::new(device.clone(), Schedule::once("test", graph, device.target(), Options { guard: 256 })?)
}

fn write(session: &mut Session, name: &str, numbers: &[f32]) {
    let id = session.schedule().buffers.find(name).unwrap();
    session.write(id, numbers).unwrap();
}

fn read(session: &mut Session, name: &str) -> Vec<f32> {
    let id = session.schedule().buffers.find(name).unwrap();
    session.read(id).unwrap()
}

#[test]
fn large_arrays_are_cut_and_a_large_arena_lies_in_several_buffers() {
    let Some(device) = narrow(1 << 16, 1 << 20) else { return };
    // 800 KB a value, 13 times what can be bound; no two fit one buffer.
    let n = 200_003;
    let mut g = Graph::new();
    let (a, b) = (g.input("a", TensorType::f32([n])), g.input("b", TensorType::f32([n])));
    let scaled = g.apply(Affine { scale: 2.0, shift: 1.0 }, &[a]).unwrap();
    let sum = g.apply(Binary::Add, &[scaled, b]).unwrap();
    g.output("sum", sum);
    for poisoned in [false, true] {
        let mut session = session(&device, &g).unwrap();
        if poisoned {
            session = session.poisoned();
        }
        write(&mut session, "a", &(0..n).map(|i| i as f32).collect::<Vec<_>>());
        write(&mut session, "b", &vec![0.5; n]);
        session.run(&mut |_, _| Ok(())).unwrap();
        let got = read(&mut session, "sum");
        assert!(got.iter().enumerate().all(|(i, v)| *v == 2.0 * i as f32 + 1.5), "poisoned: {poisoned}");
    }
}

/// Stretches of arrays of 2 and of 4 bytes an element begin at the same elements.
#[test]
fn large_arrays_of_f16_are_cut() {
    let (Some(_), Some(device)) = (support::wgpu_f16(), narrow(1 << 16, 1 << 20)) else { return };
    let n = 200_003;
    let mut g = Graph::new();
    let (a, b) = (g.input("a", TensorType::f32([n])), g.input("b", TensorType::f32([n])));
    let [a, b] = [a, b].map(|v| g.apply(Cast(DType::F16), &[v]).unwrap());
    let scaled = g.apply(Affine { scale: 2.0, shift: 1.0 }, &[a]).unwrap();
    let sum = g.apply(Binary::Add, &[scaled, b]).unwrap();
    let sum = g.apply(Cast(DType::F32), &[sum]).unwrap();
    g.output("sum", sum);
    let mut session = session(&device, &g).unwrap().poisoned();
    session.check_numerics(true);
    // f16 has them exactly, and 997 is no stretch.
    let number = |i: usize| (i % 997) as f32;
    write(&mut session, "a", &(0..n).map(number).collect::<Vec<_>>());
    write(&mut session, "b", &vec![0.5; n]);
    session.run(&mut |_, _| Ok(())).unwrap();
    let got = read(&mut session, "sum");
    // Above 1024 f16 has no halves, and rounds 1.5 to the even neighbour or off.
    let off = got.iter().enumerate().position(|(i, v)| (*v - (2.0 * number(i) + 1.5)).abs() > 0.5);
    assert_eq!(off, None, "{:?}", off.map(|i| got[i]));
}

/// Numbers of 2 bytes in odd numbers are no whole words.
#[test]
fn buffers_of_f16_are_written_and_read() {
    let Some(device) = support::wgpu_f16() else { return };
    let mut buffers = Buffers::new();
    let short = |n: usize| TensorType { dtype: DType::F16, ..TensorType::f32([n]) };
    let ids = [3, 1, 5].map(|n| buffers.declare(format!("of {n}"), short(n)));
    assert!(buffers.view(ids[2], "inside", 1, short(2)).is_err());
    let mut session = Session::new(device, Schedule::new("f16", buffers)).unwrap();
    let numbers = [1.0, -2.0, 0.5, 65504.0, 1.0 / 3.0].map(f16::from_f32);
    for (id, n) in ids.into_iter().zip([3, 1, 5]) {
        session.write(id, &numbers[..n]).unwrap();
    }
    for (id, n) in ids.into_iter().zip([3, 1, 5]) {
        assert_eq!(session.read::<f16>(id).unwrap(), numbers[..n]);
    }
}

/// An infinite number in f16 is found where it was made.
#[test]
fn numerics_of_f16_are_checked() {
    let Some(device) = support::wgpu_f16() else { return };
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([3]));
    let short = g.apply(Cast(DType::F16), &[x]).unwrap();
    let large = g.scoped("layer", |g| g.apply(Binary::Mul, &[short, short])).unwrap();
    let y = g.apply(Cast(DType::F32), &[large]).unwrap();
    g.output("y", y);
    let mut session = session(&device, &g).unwrap();
    session.check_numerics(true);
    write(&mut session, "x", &[1.0, 2.0, 300.0]);
    let error = session.run(&mut |_, _| Ok(())).unwrap_err();
    assert!(matches!(&error, Error::NotFinite { what, .. } if what.contains("mul (layer)")), "{error}");
}

/// A sampler with its network in f16: about the images of f32, its latents f32, its weights half as large.
#[test]
fn a_sampler_stores_its_network_as_f16() {
    let Some(device) = support::wgpu_f16() else { return };
    for name in ["mnist-dit", "mnist-unet"] {
        let model = Model::open(name).unwrap();
        let [(full, full_bytes), (short, short_bytes)] = [DType::F32, DType::F16].map(|dtype| {
            let request = SampleRequest { n: 2, steps: 4, dtype, ..SampleRequest::new(&model) };
            let mut sampler = request.prepare(&model, device.clone()).unwrap();
            let images = sampler.run(&mut |_| Ok(())).unwrap();
            let buffers = &sampler.schedule().buffers;
            for reg in ["latents", "x", "row"] {
                assert_eq!(buffers.get(buffers.find(reg).unwrap()).ty.dtype, DType::F32, "{name}: {reg}");
            }
            (images.data, sampler.schedule().arena_bytes())
        });
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|v| v * v).sum::<f32>().sqrt();
        let off = norm(&mut full.iter().zip(&short).map(|(a, b)| a - b)) / norm(&mut full.iter().copied());
        println!("{name}: images differ by {off:.1e}, arenas of {full_bytes} and {short_bytes} bytes");
        assert!(off > 0.0 && off < 2e-2, "{name}: images differ by {off:.1e}");
        assert!((short_bytes as f64) < 0.6 * full_bytes as f64, "{name}: {short_bytes} of {full_bytes} bytes");
    }
}

#[test]
fn an_optimiser_step_over_large_regions_is_cut() {
    let Some(narrow) = narrow(1 << 17, 1 << 20) else { return };
    // 160 KB a region, more than can be bound, and no multiple of what a workgroup takes.
    let n = 40_003;
    let mut g = Graph::new();
    let regions = ["params", "grads", "m", "v", "average"].map(|name| g.input(name, TensorType::f32([n])));
    let hyper = g.input("hyper", TensorType::f32([9]));
    let norm = g.apply(GradNorm, &[regions[1]]).unwrap();
    let inputs = [&regions[..], &[hyper, norm]].concat();
    let outs = g.apply_all(Optimizer { kind: OptimizerKind::AdamW, emas: 1 }, &inputs).unwrap();
    let names = ["new params", "new m", "new v", "new average", "norm"];
    for (name, out) in names.iter().zip(outs.into_iter().chain([norm])) {
        g.output(*name, out);
    }
    let [cpu, wgpu] = [Device::Cpu, narrow].map(|device| {
        let mut session = session(&device, &g).unwrap().poisoned();
        for (k, name) in ["params", "grads", "m", "v", "average"].into_iter().enumerate() {
            // The pattern repeats at no size of a stretch.
            write(&mut session, name, &(0..n).map(|i| ((i * (k + 3)) % 997) as f32 / 997.0).collect::<Vec<_>>());
        }
        write(&mut session, "hyper", &[1e-2, 0.9, 0.99, 1e-6, 0.1, 3.0, 0.5, 1.0, 0.9]);
        session.run(&mut |_, _| Ok(())).unwrap();
        names.map(|name| read(&mut session, name))
    });
    for ((name, a), b) in names.iter().zip(&cpu).zip(&wgpu) {
        let off = a.iter().zip(b).map(|(a, b)| (a - b).abs() / a.abs().max(0.1)).fold(0.0, f32::max);
        assert!(off < 1e-5, "{name} is off by {off:.1e}");
    }
}

/// 64 KiB are less than a workgroup of the gradient's norm takes.
#[test]
fn a_workgroup_that_sees_too_little_is_refused() {
    let Some(device) = narrow(1 << 16, 1 << 20) else { return };
    let mut g = Graph::new();
    let grads = g.input("grads", TensorType::f32([40_003]));
    let norm = g.apply(GradNorm, &[grads]).unwrap();
    g.output("norm", norm);
    let error = session(&device, &g).unwrap_err();
    assert!(matches!(&error, Error::TooLarge { what, .. } if what.contains("grad_norm")), "{error}");
}

#[test]
fn what_cannot_be_cut_is_refused_by_name_and_size() {
    let Some(device) = narrow(1 << 16, 1 << 20) else { return };
    let mut g = Graph::new();
    let x = g.scoped("head", |g| g.input("x", TensorType::f32([3, 100, 100])));
    let w = g.input("w", TensorType::panels([100, 16]));
    let b = g.input("b", TensorType::f32([3, 16]));
    let linear = Linear(Epilogue { sample_bias: true, ..Default::default() });
    let y = g.scoped("head", |g| g.apply(linear, &[x, w, b])).unwrap();
    g.output("y", y);
    let e = session(&device, &g).unwrap_err();
    assert!(matches!(e, Error::TooLarge { bytes: 120_000, limit: 65_536, .. }), "{e}");
    assert!(e.to_string().contains("argument 0 of linear (head"), "{e}");
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([300_000]));
    g.output("y", x);
    assert!(matches!(session(&device, &g), Err(Error::TooLarge { limit: 1_048_576, .. })));
}

/// x = x + row, for rows 1, 2, 4, 8; then y = x; x and the row lie where nothing is aligned.
#[test]
fn rows_copies_and_the_host_are_as_on_the_cpu() {
    let Some(wgpu) = device() else { return };
    let mut seen = Vec::new();
    for device in [Device::Cpu, wgpu] {
        let mut buffers = Buffers::new();
        let one = || TensorType::f32([1]);
        let (row, all) = (buffers.declare("row", TensorType::f32([2])), buffers.declare("all", TensorType::f32([8])));
        buffers.view(row, "by", 1, one()).unwrap();
        let x = buffers.view(all, "x", 3, one()).unwrap();
        let y = buffers.view(all, "y", 5, one()).unwrap();
        let mut g = Graph::new();
        let (old, by) = (g.input("x", one()), g.input("by", one()));
        let new = g.apply(Binary::Add, &[old, by]).unwrap();
        g.output("x", new);
        let names = buffers.clone();
        let program =
            Program::compile("add", &g, device.target(), &mut buffers, |n| names.find(n), Options::default()).unwrap();
        let mut schedule = Schedule::new("counter", buffers);
        let p = schedule.add(program);
        schedule.rows = Rows { columns: 2, data: vec![9.0, 1.0, 9.0, 2.0, 9.0, 4.0, 9.0, 8.0] };
        schedule.row = Some(row);
        schedule.steps =
            vec![Step::Repeat { rows: 0..4, body: vec![Step::Run(p), Step::Host(9)] }, Step::Copy { from: x, to: y }];
        let mut session = Session::new(device, schedule).unwrap();
        let mut events = Vec::new();
        session
            .run(&mut |session, event| {
                events.push((event, session.read::<f32>(x)?[0]));
                if event == Event::Row(3) { session.write(x, &[100.0f32]) } else { Ok(()) }
            })
            .unwrap();
        let cancelled =
            session.run(&mut |_, event| if event == Event::Row(2) { Err(Error::Cancelled) } else { Ok(()) });
        assert!(matches!(cancelled, Err(Error::Cancelled)));
        session.set_rows(vec![0.5; 8]).unwrap();
        session.load_row(2).unwrap();
        session.run_program(p).unwrap();
        seen.push((events, session.read::<f32>(all).unwrap()));
    }
    assert_eq!(seen[1].1, [0.0, 0.0, 0.0, 111.5, 0.0, 108.0, 0.0, 0.0]);
    assert_eq!(seen[0], seen[1]);
}

/// An operand that begins where it cannot be bound is moved; the weight is one here.
#[test]
fn views_are_moved_to_where_they_can_be_bound() {
    let Some(device) = device() else { return };
    let mut buffers = Buffers::new();
    let all = buffers.declare("all", TensorType::f32([64]));
    let (input, output) = (TensorType::f32([2, 3]), TensorType::f32([2, 1]));
    let x = buffers.view(all, "x", 5, input.clone()).unwrap();
    let y = buffers.view(all, "y", 13, output).unwrap();
    let w = buffers.declare("w", TensorType::panels([3, 1]));
    let mut g = Graph::new();
    let (gx, gw) = (g.input("x", input), g.input("w", TensorType::panels([3, 1])));
    let gy = g.apply(Linear::default(), &[gx, gw]).unwrap();
    g.output("y", gy);
    let names = buffers.clone();
    let options = Options { guard: 64 };
    let program = Program::compile("moved", &g, device.target(), &mut buffers, |n| names.find(n), options).unwrap();
    let mut schedule = Schedule::new("moved", buffers);
    schedule.add(program);
    let mut session = Session::new(device, schedule).unwrap().poisoned();
    session.write(x, &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    session
        .fill(w, |w: &mut [f32]| w.iter_mut().enumerate().for_each(|(i, v)| *v = (i % 16 == 0) as u8 as f32))
        .unwrap();
    session.run_program(0).unwrap();
    assert_eq!(session.read::<f32>(y).unwrap(), [6.0, 15.0]);
    assert_eq!(session.read_part::<f32>(all, 11, 6).unwrap(), [0.0, 0.0, 6.0, 15.0, 0.0, 0.0]);
}

/// What an op makes of some numbers, all operands at odd places.
fn at_odd_places(device: &Device, op: impl Op, inputs: &[TensorType]) -> Vec<f32> {
    let mut buffers = Buffers::new();
    let mut g = Graph::new();
    let mut odd = |name: &str, skip: usize, ty: &TensorType| {
        let around = TensorType { shape: vec![ty.elements() + skip], ..ty.clone() };
        let all = buffers.declare(format!("around {name}"), around);
        buffers.view(all, name, skip, ty.clone()).unwrap()
    };
    let names: Vec<String> = (0..inputs.len()).map(|i| format!("x{i}")).collect();
    let ids: Vec<_> = (0..inputs.len()).map(|i| odd(&names[i], 2 * i + 1, &inputs[i])).collect();
    let values: Vec<_> = names.iter().zip(inputs).map(|(name, ty)| g.input(name, ty.clone())).collect();
    let out = g.apply_all(op, &values).unwrap()[0];
    g.output("y", out);
    let y = odd("y", 15, g.ty(out));
    let places = buffers.clone();
    let options = Options { guard: 64 };
    let program = Program::compile("odd", &g, device.target(), &mut buffers, |n| places.find(n), options).unwrap();
    let mut schedule = Schedule::new("odd", buffers);
    schedule.add(program);
    let mut session = Session::new(device.clone(), schedule).unwrap().poisoned();
    for (id, ty) in ids.iter().zip(inputs) {
        let numbers = (0..ty.elements()).map(|i| i * 7919 % 1000);
        if ty.dtype == DType::I32 {
            session.write(*id, &numbers.map(|v| v as i32 % 5).collect::<Vec<_>>()).unwrap();
        } else {
            session.write(*id, &numbers.map(|v| v as f32 / 8.0).collect::<Vec<_>>()).unwrap();
        }
    }
    session.run_program(0).unwrap();
    session.read(y).unwrap()
}

/// Stretches know which elements they have, and where those are, whatever else they see.
#[test]
fn cut_launches_with_operands_that_are_seen_whole_are_as_on_the_cpu() {
    let Some(wgpu) = narrow(1 << 16, 1 << 20) else { return };
    let (f32s, i32s) = (|shape: &[usize]| TensorType::f32(shape), |shape: &[usize]| TensorType::i32(shape));
    // Some 110 KB of output each.
    let large = f32s(&[3, 9001]);
    let tokens = f32s(&[3, 100, 90]);
    let random = |kind| Random { kind, shape: large.shape.clone(), stream: 2 };
    let check = |name: &str, run: &dyn Fn(&Device) -> Vec<f32>| {
        let (expected, got) = (run(&Device::Cpu), run(&wgpu));
        assert!(expected.len() > 1 << 14 && expected.len() == got.len(), "{name}");
        let close = |e: f32, g: f32| (e - g).abs() <= 1e-5 * e.abs().max(1.0);
        let off = expected.iter().zip(&got).position(|(e, g)| !close(*e, *g));
        assert_eq!(off, None, "{name}: {:?}", off.map(|i| (expected[i], got[i])));
    };
    let seeds = [i32s(&[3, 2]), f32s(&[1])];
    check("uniform", &|d| at_odd_places(d, random(RandomKind::Uniform), &seeds));
    check("normal", &|d| at_odd_places(d, random(RandomKind::Normal), &seeds));
    let [seed, draw] = &seeds;
    let dropout = [large.clone(), seed.clone(), draw.clone()];
    check("dropout", &|d| at_odd_places(d, Dropout { p: 0.3, stream: 1 }, &dropout));
    for terms in [2, 6] {
        let inputs = [vec![f32s(&[terms])], vec![large.clone(); terms]].concat();
        check("update", &|d| at_odd_places(d, DiffusionUpdate { terms, clip: Some(9000.0) }, &inputs));
    }
    let mix = [f32s(&[3]), large.clone(), f32s(&[3]), large.clone()];
    check("sample_mix", &|d| at_odd_places(d, SampleMix { terms: 2 }, &mix));
    check("gate", &|d| at_odd_places(d, Gate, &[tokens.clone(), f32s(&[3, 90]), tokens.clone()]));
    let spread = Broadcast { outer: 3, middle: 100, inner: 90, scale: 2.0, shape: vec![3, 100, 90] };
    check("broadcast", &|d| at_odd_places(d, spread.clone(), &[f32s(&[3, 90])]));
    check("concat", &|d| at_odd_places(d, Concat { axis: 1 }, &[f32s(&[3, 4000]), f32s(&[3, 5001])]));
    check("pad", &|d| at_odd_places(d, Pad { axis: 1, before: 5001, after: 4000 }, &[f32s(&[3, 50])]));
    check("gather_grad", &|d| at_odd_places(d, GatherGrad { count: 100 }, &[f32s(&[3, 90]), i32s(&[3])]));
    check("embedding", &|d| at_odd_places(d, Embedding, &[f32s(&[7, 999]), i32s(&[30])]));
}

/// What an op makes of some numbers, poisoned.
fn made(device: &Device, op: impl Op, inputs: &[TensorType]) -> Vec<f32> {
    let mut g = Graph::new();
    let names: Vec<String> = (0..inputs.len()).map(|i| format!("x{i}")).collect();
    let values: Vec<_> = names.iter().zip(inputs).map(|(name, ty)| g.input(name, ty.clone())).collect();
    let out = g.apply_all(op, &values).unwrap()[0];
    // What the op makes then lies in scratch, with a guard zone behind it.
    let out = g.apply(Affine { scale: 2.0, shift: 1.0 }, &[out]).unwrap();
    let out = g.apply(Affine { scale: 0.5, shift: -0.5 }, &[out]).unwrap();
    g.output("y", out);
    let mut session = session(device, &g).unwrap().poisoned();
    for (k, (name, ty)) in names.iter().zip(inputs).enumerate() {
        let numbers = (0..ty.elements()).map(|i| ((i * (k + 7919)) % 997) as f32 / 997.0 - 0.4);
        write(&mut session, name, &numbers.collect::<Vec<_>>());
    }
    session.run(&mut |_, _| Ok(())).unwrap();
    read(&mut session, "y")
}

/// Differences are small beside the largest number, from which others may come as differences.
fn expect_close(name: &str, expected: &[f32], got: &[f32]) {
    assert_eq!(expected.len(), got.len(), "{name}");
    let most = 1e-5 * expected.iter().fold(1.0, |most: f32, v| most.max(v.abs()));
    let close = |(e, g): (&f32, &f32)| (e - g).abs() < most;
    let off = expected.iter().zip(got).position(|pair| !close(pair));
    assert_eq!(off, None, "{name}: {:?}", off.map(|i| (expected[i], got[i])));
}

/// 64 KiB are seen; x, y and the residual are larger.
#[test]
fn products_and_convolutions_are_cut_by_rows_and_by_samples() {
    let Some(wgpu) = narrow(1 << 16, 1 << 20) else { return };
    let (f32s, panels) = (|shape: &[usize]| TensorType::f32(shape), |shape: &[usize]| TensorType::panels(shape));
    let activation = Activation::Silu;
    let all = Epilogue { sample_bias: true, activation, residual: true, scale: 0.5, ..Epilogue::bias() };
    for [rows, k, n] in [[700, 100, 16], [601, 33, 48], [2000, 4, 16]] {
        let op = Linear(Epilogue { sample_bias: false, ..all });
        let inputs = [f32s(&[rows, k]), panels(&[k, n]), f32s(&[n]), f32s(&[rows, n])];
        let [expected, got] = [&Device::Cpu, &wgpu].map(|device| made(device, op, &inputs));
        expect_close(&format!("linear {rows}, {k}, {n}"), &expected, &got);
    }
    // Of several samples; of one.
    for [b, rows, k, n] in [[17, 40, 64, 16], [3, 100, 128, 64]] {
        let op = Linear(Epilogue { sample_bias: false, gate: true, ..all });
        let inputs = [f32s(&[b, rows, k]), panels(&[k, n]), f32s(&[n]), f32s(&[b, n]), f32s(&[b, rows, n])];
        let [expected, got] = [&Device::Cpu, &wgpu].map(|device| made(device, op, &inputs));
        expect_close(&format!("gated linear {b}, {rows}, {k}, {n}"), &expected, &got);
    }
    let same = Conv2d::same(3, all);
    let down = Conv2d { stride: 2, padding: Padding { top: 0, left: 0, bottom: 1, right: 1 }, ..same };
    let large = Conv2d { kernel: [5, 3], padding: Padding { top: 4, left: 1, bottom: 0, right: 1 }, ..same };
    for (conv, [b, h, w, c], [h_out, w_out, n]) in [
        // Rows of one sample, of several; whole samples; only what is written is large, and too few channels for four at once.
        (same, [1, 70, 32, 16], [70, 32, 32]),
        (same, [2, 64, 16, 16], [64, 16, 64]),
        (same, [37, 8, 8, 16], [8, 8, 16]),
        (same, [1, 64, 64, 3], [64, 64, 16]),
        (down, [1, 99, 32, 16], [49, 16, 64]),
        (large, [1, 70, 32, 16], [70, 32, 16]),
        (Conv2d::same(1, all), [1, 70, 32, 16], [70, 32, 32]),
    ] {
        let taps = conv.kernel[0] * conv.kernel[1];
        let image = f32s(&[b, h_out, w_out, n]);
        let inputs = [f32s(&[b, h, w, c]), panels(&[taps, c, n]), f32s(&[n]), f32s(&[b, n]), image];
        let [expected, got] = [&Device::Cpu, &wgpu].map(|device| made(device, conv, &inputs));
        expect_close(&format!("{conv:?} of {b}, {h}, {w}, {c}"), &expected, &got);
    }
}

#[test]
fn images_are_resampled_in_pieces() {
    let Some(wgpu) = narrow(1 << 16, 1 << 20) else { return };
    for (op, shape) in [
        (Resample::nearest_up(2), [1, 32, 32, 24]),
        (Resample::nearest_up(3), [2, 21, 20, 8]),
        (Resample::box_down(2), [3, 64, 32, 16]),
        (Resample::box_down(3), [2, 66, 21, 32]),
    ] {
        let [expected, got] = [&Device::Cpu, &wgpu].map(|device| made(device, op.clone(), &[TensorType::f32(shape)]));
        expect_close(&format!("{op:?} of {shape:?}"), &expected, &got);
    }
    // A filter that looks across the borders of pieces; samples that are seen whole, and those that are not.
    let filter = [1.0, 3.0, 3.0, 1.0];
    for (op, shape) in [
        (Resample::fir_down(&filter), [1, 64, 32, 16]),
        (Resample::fir_up(&filter), [1, 30, 32, 16]),
        (Resample::fir_up(&filter), [5, 16, 16, 16]),
        (Resample::fir_down(&filter), [3, 64, 32, 16]),
        (Resample { up: 3, down: 2, filter: vec![0.5, 1.0, 2.0, 1.0, 0.25], pad: [3, 9] }, [1, 40, 32, 16]),
        (Resample { up: 1, down: 1, filter: vec![1.0, 2.0], pad: [1, 40] }, [1, 32, 32, 16]),
    ] {
        let [expected, got] = [&Device::Cpu, &wgpu].map(|device| made(device, op.clone(), &[TensorType::f32(shape)]));
        expect_close(&format!("{op:?} of {shape:?}"), &expected, &got);
    }
    // Rows that begin where no argument may begin.
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([1, 200, 33, 3]));
    let y = g.apply(Resample::fir_down(&filter), &[x]).unwrap();
    g.output("y", y);
    let e = session(&wgpu, &g).unwrap_err();
    assert!(matches!(&e, Error::TooLarge { what, .. } if what.contains("resample")), "{e}");
    assert!(e.to_string().contains("cannot be cut"), "{e}");
}

/// A run of an op, and what it is.
type Large = (Box<dyn Fn(&Device, DType) -> Vec<f32>>, String);

/// Ops with what they are given, which is more than 64 KiB in f16 too.
fn large_cases() -> Vec<Large> {
    let (f32s, panels) = (|shape: &[usize]| TensorType::f32(shape), |shape: &[usize]| TensorType::panels(shape));
    let mut cases: Vec<Large> = Vec::new();
    fn add(cases: &mut Vec<Large>, op: impl Op + Clone, inputs: Vec<TensorType>) {
        let name = format!("{op:?} of {}", inputs.iter().map(|ty| ty.to_string()).collect::<Vec<_>>().join(", "));
        cases.push((Box::new(move |device, dtype| stored(device, dtype, op.clone(), &inputs)), name));
    }
    // By samples.
    let attention = Attention { heads: 2, scale: 0.25 };
    add(&mut cases, attention, vec![f32s(&[9, 64, 64]), f32s(&[9, 16, 64]), f32s(&[9, 16, 64])]);
    let product = |transpose_a, transpose_b| BatchedMatmul { transpose_a, transpose_b };
    add(&mut cases, product(false, false), vec![f32s(&[9, 64, 64]), f32s(&[9, 64, 20])]);
    add(&mut cases, product(true, true), vec![f32s(&[10, 64, 64]), f32s(&[10, 24, 64])]);
    // One sample after the other, and each by rows of a.
    add(&mut cases, product(false, true), vec![f32s(&[2, 640, 64]), f32s(&[2, 16, 64])]);
    add(&mut cases, product(false, false), vec![f32s(&[1, 650, 64]), f32s(&[1, 64, 52])]);
    // x and y have the same first axis, or others; the last axis stays, or does not; rows that are no whole places.
    for (shape, axes) in [
        ([9, 40, 8, 16], [0, 2, 1, 3]),
        ([64, 2, 16, 24], [2, 1, 0, 3]),
        ([16, 3, 128, 8], [2, 3, 1, 0]),
        ([130, 1, 300, 1], [2, 0, 1, 3]),
    ] {
        add(&mut cases, Permute(axes.to_vec()), vec![f32s(&shape)]);
    }
    let norm = LayerNorm { eps: 1e-5, affine: true, modulate: true, first: [0; 2] };
    let parameters = [f32s(&[64]), f32s(&[64]), f32s(&[9, 64]), f32s(&[9, 64])];
    add(&mut cases, norm, [&[f32s(&[9, 64, 64])], &parameters[..]].concat());
    add(&mut cases, RmsNorm { eps: 1e-5, affine: true }, vec![f32s(&[9, 64, 64]), f32s(&[64])]);
    let embedding =
        TimestepEmbedding { dim: 32, flip_sin_to_cos: false, freq_shift: 0.0, max_period: 10000.0, scale: 1.0 };
    let mlp = TimestepMlp { embedding, act: Activation::Silu, label: true, last: Activation::Identity };
    let weights = [panels(&[32, 96]), f32s(&[96]), panels(&[96, 144]), f32s(&[144])];
    for samples in [300, 600] {
        add(&mut cases, mlp, [&[f32s(&[samples])], &weights[..], &[f32s(&[samples, 144])]].concat());
    }
    add(&mut cases, Linear(Epilogue::bias()), vec![f32s(&[1100, 64]), panels(&[64, 48]), f32s(&[48])]);
    let same = Conv2d::same(3, Epilogue::bias());
    add(&mut cases, same, vec![f32s(&[1, 70, 32, 32]), panels(&[9, 32, 16]), f32s(&[16])]);
    add(&mut cases, same, vec![f32s(&[37, 8, 8, 32]), panels(&[9, 32, 16]), f32s(&[16])]);
    add(&mut cases, Resample::fir_up(&[1.0, 3.0, 3.0, 1.0]), vec![f32s(&[1, 40, 32, 16])]);
    add(&mut cases, Resample::nearest_up(2), vec![f32s(&[3, 20, 32, 16])]);
    let norm = GroupNorm { groups: 8, eps: 1e-5, activation: Activation::Silu, modulate: true };
    let parameters = [f32s(&[64]), f32s(&[64]), f32s(&[2, 64]), f32s(&[2, 64])];
    add(&mut cases, norm, [&[f32s(&[2, 600, 64])], &parameters[..]].concat());
    cases
}

/// What an op makes of some numbers where the device stores them as that type; a time stays f32.
fn stored(device: &Device, dtype: DType, op: impl Op, inputs: &[TensorType]) -> Vec<f32> {
    let mut g = Graph::new();
    let mut values = Vec::new();
    for (i, ty) in inputs.iter().enumerate() {
        let x = g.input(format!("x{i}"), ty.clone());
        let cast = dtype != DType::F32 && !op.stays_f32(i);
        values.push(if cast { g.apply(Cast(dtype), &[x]).unwrap() } else { x });
    }
    let out = g.apply_all(op, &values).unwrap()[0];
    let out = if dtype == DType::F32 { out } else { g.apply(Cast(DType::F32), &[out]).unwrap() };
    g.output("y", out);
    let mut session = session(device, &g).unwrap().poisoned();
    for (k, ty) in inputs.iter().enumerate() {
        let numbers = (0..ty.elements()).map(|i| ((i * (k + 7919)) % 997) as f32 / 997.0 - 0.4);
        write(&mut session, &format!("x{k}"), &numbers.collect::<Vec<_>>());
    }
    session.run(&mut |_, _| Ok(())).unwrap();
    read(&mut session, "y")
}

/// 64 KiB are seen, in f32 and in f16.
#[test]
fn what_is_too_large_is_cut_into_pieces() {
    let Some(wgpu) = narrow(1 << 16, 1 << 20) else { return };
    for (run, name) in large_cases() {
        let expected = run(&Device::Cpu, DType::F32);
        expect_close(&name, &expected, &run(&wgpu, DType::F32));
        if support::wgpu_f16().is_some() {
            let got = run(&wgpu, DType::F16);
            let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|v| v * v).sum::<f32>().sqrt();
            let off = norm(&mut expected.iter().zip(&got).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied());
            assert!(off < 1e-2, "{name} in f16 is off by {off:.1e}");
        }
    }
}

#[test]
fn gradients_of_what_is_too_large_are_cut_into_pieces() {
    let Some(wgpu) = narrow(1 << 16, 1 << 20) else { return };
    let (f32s, panels) = (|shape: &[usize]| TensorType::f32(shape), |shape: &[usize]| shape.to_vec());
    let check = |name: String, run: &dyn Fn(&Device) -> Vec<f32>| expect_close(&name, &run(&Device::Cpu), &run(&wgpu));
    // The rows of a linear layer; samples; rows of one sample, by four columns and not.
    for [rows, k, n] in [[700, 64, 16], [601, 33, 48], [5000, 8, 16]] {
        let op = LinearWeightGrad { shape: panels(&[k, n]) };
        check(format!("linear {rows}, {k}, {n}"), &|d| {
            stored(d, DType::F32, op.clone(), &[f32s(&[rows, k]), f32s(&[rows, n])])
        });
    }
    let same = Conv2d::same(3, Epilogue::default());
    let down = Conv2d { stride: 2, padding: Padding { top: 0, left: 0, bottom: 1, right: 1 }, ..same };
    for (conv, [b, h, w, c], [h_out, w_out, n]) in [
        (same, [37, 8, 8, 16], [8, 8, 16]),
        (same, [1, 70, 32, 16], [70, 32, 32]),
        (same, [2, 64, 64, 3], [64, 64, 5]),
        (down, [1, 99, 32, 16], [49, 16, 64]),
    ] {
        let op = Conv2dWeightGrad { conv, shape: panels(&[9, c, n]) };
        let inputs = [f32s(&[b, h, w, c]), f32s(&[b, h_out, w_out, n])];
        check(format!("{conv:?} of {b}, {h}, {w}, {c}"), &|d| stored(d, DType::F32, op.clone(), &inputs));
    }
    let attention = AttentionGrad(Attention { heads: 2, scale: 0.25 });
    let [q, k] = [f32s(&[5, 64, 64]), f32s(&[5, 16, 64])];
    let inputs = [q.clone(), k.clone(), k, q.clone(), f32s(&[5, 2, 64]), q];
    check("attention".into(), &|d| stored(d, DType::F32, attention, &inputs));
}

#[test]
fn a_group_norm_of_samples_that_are_seen_in_pieces_is_as_on_the_cpu() {
    let Some(wgpu) = narrow(1 << 16, 1 << 20) else { return };
    let f32s = |shape: &[usize]| TensorType::f32(shape);
    // One sample and several; a stretch of all that can be seen, of little, of one row.
    for ([b, rows, c], groups) in [([1, 1024, 64], 8), ([3, 300, 48], 12), ([2, 331, 64], 4)] {
        for modulate in [false, true] {
            let op = GroupNorm { groups, eps: 1e-5, activation: Activation::Silu, modulate };
            let modulation = vec![f32s(&[b, c]); if modulate { 2 } else { 0 }];
            let inputs = [vec![f32s(&[b, rows, c]), f32s(&[c]), f32s(&[c])], modulation].concat();
            let [expected, got] = [&Device::Cpu, &wgpu].map(|device| made(device, op, &inputs));
            expect_close(&format!("{op:?} of {b}, {rows}, {c}"), &expected, &got);
            let [expected, got] = [&Device::Cpu, &wgpu].map(|device| at_odd_places(device, op, &inputs));
            expect_close(&format!("{op:?} of {b}, {rows}, {c} at odd places"), &expected, &got);
        }
    }
}

/// An op whose shader is given.
#[derive(Debug)]
struct Given(&'static str);

impl Op for Given {
    fn name(&self) -> &'static str {
        "given"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        Ok(vec![inputs[0].clone()])
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let Target::Wgpu(target) = target else { return target.lacks(self.name()) };
        Ok(vec![Launch::flat(Shader::new("given", self.0), target, io.outputs[0].stored(), 1)])
    }
}

#[test]
fn a_rejected_shader_is_an_error_with_its_reason() {
    let Some(device) = device() else { return };
    for (source, reason) in [
        ("fn main( {", "expected"),
        ("@compute @workgroup_size(1) fn other() {}", "main"),
        (
            "@group(0) @binding(9) var<storage, read_write> x: array<f32>;\n@compute @workgroup_size(1) fn main() { x[0] = 1.0; }",
            "binding",
        ),
    ] {
        let mut g = Graph::new();
        let x = g.input("x", TensorType::f32([4]));
        let y = g.apply(Given(source), &[x]).unwrap();
        g.output("y", y);
        let e = session(&device, &g).unwrap_err();
        assert!(matches!(e, Error::Kernel { device: "wgpu", kernel: "given", .. }), "{e}");
        assert!(e.to_string().contains(reason), "{e}");
    }
}

#[test]
fn a_program_for_another_device_is_refused() {
    let Some(device) = device() else { return };
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([4]));
    let y = g.apply(Affine::scale(2.0), &[x]).unwrap();
    g.output("y", y);
    let of = |target| Schedule::once("test", &g, target, Options::default()).unwrap();
    for (device, target) in [(device.clone(), Target::Cpu), (Device::Cpu, device.target())] {
        let run = Session::new(device, of(target)).and_then(|mut session| session.run(&mut |_, _| Ok(())));
        assert!(matches!(run, Err(Error::Verify { .. })));
    }
}

#[test]
fn a_destroyed_device_is_reported_as_lost() {
    let Some(device) = narrow(1 << 20, 1 << 20) else { return };
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([4]));
    let y = g.apply(Affine::scale(2.0), &[x]).unwrap();
    g.output("y", y);
    let mut session = session(&device, &g).unwrap();
    session.run(&mut |_, _| Ok(())).unwrap();
    let Device::Wgpu(gpu) = &device else { panic!("{device} is another device") };
    gpu.device().destroy();
    let e = session.run(&mut |_, _| Ok(())).unwrap_err();
    assert!(matches!(e, Error::DeviceLost { device: "wgpu", .. }), "{e:?}");
}

/// Says to the process that runs a test anew that it is that process.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LIMITED: &str = "LANGEVIN_TEST_LIMITED";

/// In a process of its own, which may not grow: an adapter on the processor takes its memory from there.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn an_arena_without_memory_is_an_error_with_its_size() {
    let Some(device) = device() else { return };
    if !matches!(device.target(), Target::Wgpu(target) if target.software) {
        return eprintln!("skipped: the adapter's memory is its own, and nothing limits it");
    }
    if std::env::var_os(LIMITED).is_none() {
        let this = ["--exact", "an_arena_without_memory_is_an_error_with_its_size", "--nocapture"];
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let out = child.args(this).env(LIMITED, "1").output().unwrap();
        return assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    let of = |n: usize| {
        let mut g = Graph::new();
        let x = g.input("x", TensorType::f32([n]));
        let y = g.apply(Affine::scale(2.0), &[x]).unwrap();
        g.output("y", y);
        g
    };
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find_map(|l| l.strip_prefix("VmSize:")).unwrap();
    let kib: u64 = size.trim().split(' ').next().unwrap().parse().unwrap();
    let most = (kib << 10) + (256 << 20);
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the call reads the struct, which lives until it returns.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
    // Two buffers of 512 MiB.
    let e = session(&device, &of(1 << 27)).unwrap_err();
    assert!(matches!(e, Error::OutOfMemory { device: "wgpu", bytes: 0x4000_0000, .. }), "{e:?}");
    // The device goes on.
    let mut small = session(&device, &of(4)).unwrap();
    write(&mut small, "x", &[1.0, 2.0, 3.0, 4.0]);
    small.run(&mut |_, _| Ok(())).unwrap();
    assert_eq!(read(&mut small, "y"), [2.0, 4.0, 6.0, 8.0]);
}

#[test]
fn a_result_is_a_buffer_for_the_embedder() {
    let Some(device) = device() else { return };
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([4]));
    let y = g.apply(Affine::scale(2.0), &[x]).unwrap();
    g.output("y", y);
    let mut session = session(&device, &g).unwrap();
    write(&mut session, "x", &[1.0, 2.0, 3.0, 4.0]);
    session.run(&mut |_, _| Ok(())).unwrap();
    let id = session.schedule().buffers.find("y").unwrap();
    let (buffer, offset) = session.wgpu_buffer(id).unwrap();
    let Device::Wgpu(gpu) = &device else { panic!("{device} is another device") };
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
    let description = wgpu::BufferDescriptor { label: None, size: 16, usage, mapped_at_creation: false };
    let own = gpu.device().create_buffer(&description);
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(&buffer, offset, &own, 0, 16);
    gpu.queue().submit([encoder.finish()]);
    own.map_async(wgpu::MapMode::Read, .., |_| {});
    gpu.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
    let numbers: Vec<f32> = bytemuck::pod_collect_to_vec(&own.get_mapped_range(..).unwrap());
    assert_eq!(numbers, [2.0, 4.0, 6.0, 8.0]);
    let mut cpu = Graph::new();
    let x = cpu.input("x", TensorType::f32([4]));
    cpu.output("y", x);
    let session = Session::new(Device::Cpu, Schedule::once("cpu", &cpu, Target::Cpu, Options::default()).unwrap());
    assert!(matches!(session.unwrap().wgpu_buffer(id), Err(Error::Unsupported { .. })));
}

#[test]
fn launches_are_timed() {
    let Some(device) = device() else { return };
    let mut g = Graph::new();
    let mut x = g.input("x", TensorType::f32([100_000]));
    for _ in 0..10 {
        x = g.apply(Affine { scale: 0.5, shift: 1.0 }, &[x]).unwrap();
    }
    g.output("y", x);
    let mut session = session(&device, &g).unwrap();
    let mut times = Vec::new();
    session.time_program(0, &mut |i, seconds| times.push((i, seconds))).unwrap();
    assert!(times.iter().map(|t| t.0).eq(0..session.schedule().programs[0].commands.len()));
    assert!(times.iter().map(|t| t.1).sum::<f64>() > 0.0 && times.iter().all(|t| (0.0..1.0).contains(&t.1)));
}
