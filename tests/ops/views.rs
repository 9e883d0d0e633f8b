//! Ops whose operands begin anywhere, as views of rows and batches do: at every multiple of 4 bytes.

use crate::harness::{noise, ptx_devices, relative};
use half::{bf16, f16};
use langevin::Device;
use langevin::graph::{Graph, Op, Value};
use langevin::ops::*;
use langevin::schedule::{Buffers, Options, Program, Schedule, Session};
use langevin::tensor::{DType, Layout, TensorType, to_layout};
use std::sync::Arc;

/// The numbers of an operand: noise, or indices from 0 to 2.
fn numbers(seed: usize, ty: &TensorType) -> Vec<f64> {
    match ty.dtype {
        DType::I32 => (0..ty.elements()).map(|i| (i * 7 % 3) as f64).collect(),
        _ => noise(ty.elements(), 1 + seed as u64),
    }
}

/// The outputs of an op whose operands lie `skip` elements behind an aligned place,
/// but for weights in panels, which are storages of their own.
fn at(skip: usize, device: Device, op: &Arc<dyn Op>, inputs: &[TensorType], data: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let (mut buffers, mut g) = (Buffers::new(), Graph::new());
    let mut place = |name: &str, ty: &TensorType| {
        let skip = if ty.layout == Layout::Panels { 0 } else { skip };
        let all =
            buffers.declare(format!("around {name}"), TensorType { shape: vec![ty.stored() + skip], ..ty.clone() });
        buffers.view(all, name, skip, ty.clone()).unwrap()
    };
    let names: Vec<String> = (0..inputs.len()).map(|i| format!("x{i}")).collect();
    let ids: Vec<_> = names.iter().zip(inputs).map(|(name, ty)| place(name, ty)).collect();
    let values: Vec<_> = names.iter().zip(inputs).map(|(name, ty)| g.input(name, ty.clone())).collect();
    let outs = g.apply_arc(op.clone(), &values).unwrap();
    for (i, out) in outs.iter().enumerate() {
        g.output(format!("y{i}"), *out);
        place(&format!("y{i}"), g.ty(*out));
    }
    let (places, options) = (buffers.clone(), Options { guard: 64 });
    let program = Program::compile("odd", &g, device.target(), &mut buffers, |n| places.find(n), options).unwrap();
    let mut schedule = Schedule::new("odd", buffers);
    schedule.add(program);
    let mut session = Session::new(device, schedule).unwrap().poisoned();
    for ((id, ty), numbers) in ids.iter().zip(inputs).zip(data) {
        let (plain, mut stored) = (numbers.iter().map(|v| *v as f32).collect::<Vec<_>>(), vec![0.0; ty.stored()]);
        to_layout(ty, &plain, &mut stored);
        match ty.dtype {
            DType::I32 => session.write(*id, &numbers.iter().map(|v| *v as i32).collect::<Vec<_>>()),
            DType::F16 => session.write(*id, &stored.iter().map(|v| f16::from_f32(*v)).collect::<Vec<_>>()),
            DType::Bf16 => session.write(*id, &stored.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>()),
            DType::F32 => session.write(*id, &stored),
        }
        .unwrap();
    }
    session.run_program(0).unwrap();
    let read = |(i, out): (usize, &Value)| -> Vec<f64> {
        let y = places.find(&format!("y{i}")).unwrap();
        match g.ty(*out).dtype {
            DType::I32 => session.read::<i32>(y).unwrap().into_iter().map(f64::from).collect(),
            DType::F16 => session.read::<f16>(y).unwrap().into_iter().map(f64::from).collect(),
            DType::Bf16 => session.read::<bf16>(y).unwrap().into_iter().map(f64::from).collect(),
            DType::F32 => session.read::<f32>(y).unwrap().into_iter().map(f64::from).collect(),
        }
    };
    outs.iter().enumerate().map(read).collect()
}

fn check(op: impl Op, inputs: impl AsRef<[TensorType]>) {
    let data: Vec<_> = inputs.as_ref().iter().enumerate().map(|(seed, ty)| numbers(seed, ty)).collect();
    check_with(op, inputs.as_ref(), &data);
}

fn check_with(op: impl Op, inputs: &[TensorType], data: &[Vec<f64>]) {
    compare(&(Arc::new(op) as Arc<dyn Op>), inputs, inputs, data, &[0, 1, 2, 3], 2e-6);
}

/// As `check`, and with numbers of 16 bits, of which views begin at multiples of 256 bytes.
fn check_all(op: impl Op, inputs: impl AsRef<[TensorType]>) {
    let (op, inputs): (Arc<dyn Op>, _) = (Arc::new(op), inputs.as_ref());
    let data: Vec<_> = inputs.iter().enumerate().map(|(seed, ty)| numbers(seed, ty)).collect();
    compare(&op, inputs, inputs, &data, &[0, 1, 2, 3], 2e-6);
    for (dtype, bound) in [(DType::F16, 1e-3), (DType::Bf16, 8e-3)] {
        assert!(op.takes(dtype, &Device::ptx((8, 0)).target()), "{op:?} in {dtype}");
        let is_narrow = |i: usize| inputs[i].dtype == DType::F32 && !op.stays_f32(i);
        let narrow = |(i, ty): (usize, &TensorType)| TensorType {
            dtype: if is_narrow(i) { dtype } else { ty.dtype },
            ..ty.clone()
        };
        let types: Vec<_> = inputs.iter().enumerate().map(narrow).collect();
        let round = |v: f64| if dtype == DType::F16 { f16::from_f64(v).to_f64() } else { bf16::from_f64(v).to_f64() };
        let mut rounded = data.clone();
        rounded.iter_mut().enumerate().filter(|(i, _)| is_narrow(*i)).flat_map(|(_, v)| v).for_each(|v| *v = round(*v));
        compare(&op, inputs, &types, &rounded, &[0, 128], bound);
    }
}

/// The op on numbers of `types`, at places `skips`, against itself on the CPU on those of f32.
fn compare(
    op: &Arc<dyn Op>,
    inputs: &[TensorType],
    types: &[TensorType],
    data: &[Vec<f64>],
    skips: &[usize],
    bound: f64,
) {
    let expected = at(0, Device::Cpu, op, inputs, data);
    for &skip in skips {
        for device in ptx_devices((8, 0)) {
            let got = at(skip, device.clone(), op, types, data);
            for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
                let err = relative(got, expected);
                let where_ = format!("{op:?} of {types:?} on {device}, {skip} elements behind an aligned place");
                assert!(err <= bound, "{where_}: output {i} is off by {err:.2e}");
            }
        }
    }
}

#[test]
fn copies() {
    let f32s = |shape: &[usize]| TensorType::f32(shape);
    for inner in [8, 6, 5] {
        let x = f32s(&[3, 4, inner]);
        for axis in 0..3 {
            check(Slice { axis, start: 1, len: 2 }, [x.clone()]);
            check(Pad { axis, before: 4, after: 8 }, [x.clone()]);
            check(Concat { axis }, [x.clone(), x.clone(), x.clone(), x.clone(), x.clone()]);
        }
        check(Permute(vec![1, 0, 2]), [x.clone()]);
        check(Permute(vec![2, 1, 0]), [x.clone()]);
        check(ResizeNearest { height: 7, width: 3 }, [f32s(&[2, 3, 4, inner])]);
        check(
            Broadcast { outer: 3, middle: 6, inner: 4 * inner, scale: 0.5, shape: vec![3, 6, 4, inner] },
            [x.clone()],
        );
        let index = TensorType::i32([3]);
        check(Embedding, [f32s(&[4, inner]), index.clone()]);
        check(Gather, [x.clone(), index.clone()]);
        let (pairs, places) = (TensorType::i32([6]), TensorType::i32([3, 2]));
        let weights = f32s(&[3, 2]);
        check(DispatchTokens { weighted: true }, [f32s(&[3, inner]), pairs.clone(), places.clone(), weights.clone()]);
        check(CombineTokens { weighted: true }, [f32s(&[6, inner]), pairs, places.clone(), weights]);
        check(CombineWeightsGrad, [f32s(&[3, inner]), f32s(&[6, inner]), places]);
        check(EmbeddingGrad { rows: 4 }, [f32s(&[3, inner]), index.clone()]);
        check(GatherGrad { count: 3 }, [f32s(&[3, 4, inner]), index]);
    }
    check(Permute(vec![0, 2, 1]), [f32s(&[2, 40, 36])]);
}

#[test]
fn sums_and_windows() {
    let f32s = |shape: &[usize]| TensorType::f32(shape);
    for channels in [8, 3] {
        let x = f32s(&[2, 5, 6, channels]);
        let window = PoolWindow::same(3);
        check(AveragePool { window, count_padding: false }, [x.clone()]);
        for count_padding in [false, true] {
            let pool = AveragePool { window, count_padding };
            check_all(AveragePoolGrad { pool, shape: x.shape.clone() }, [x.clone()]);
        }
        check(MaxPool(window), [x.clone()]);
        check(MaxPoolGrad(window), [x.clone(), x.clone()]);
        check(Resample::fir_down(&[1.0, 3.0, 3.0, 1.0]), [x.clone()]);
        check(Resample::nearest_up(2), [x.clone()]);
        check_all(ResizeNearestGrad { height: 3, width: 3 }, [x.clone()]);
        check(Reduce::sum_middle(2, 30, channels), [x]);
    }
    for n in [20, 33, 5000] {
        let (x, labels) = (f32s(&[4, n]), TensorType::i32([4]));
        check(Argmax, [x.clone()]);
        check(Reduce::mean_middle(4, n, 1), [x.clone()]);
        check(CrossEntropy, [x.clone(), labels.clone()]);
        check(CrossEntropyGrad, [x.clone(), labels, f32s(&[4])]);
        let route = Route { chosen: 3, routing: Routing::Top, normalize: true };
        if n < 1000 {
            check(route, [x]);
        }
    }
    check(GroupByExpert { experts: 3 }, [TensorType::i32([300, 2])]);
}

#[test]
fn products() {
    let f32s = |shape: &[usize]| TensorType::f32(shape);
    let panels = |shape: &[usize]| TensorType::panels(shape);
    let epilogue =
        Epilogue { sample_bias: true, activation: Activation::Silu, residual: true, scale: 0.7, ..Epilogue::bias() };
    // Few rows and many, sums of all of k and of parts.
    for (rows, k, n) in [(2, 24, 20), (2, 23, 9), (20, 24, 20), (20, 600, 17)] {
        let operands = [f32s(&[n]), f32s(&[2, n]), f32s(&[2, rows, n])];
        let (x, y) = (f32s(&[2, rows, k]), f32s(&[2, rows, n]));
        check(Linear(epilogue), [&[x.clone(), panels(&[k, n])][..], &operands].concat());
        check(LinearWeightGrad { shape: vec![k, n] }, [x.clone(), y]);
        check(BatchedMatmul::default(), [x.clone(), f32s(&[2, k, n])]);
        check(BatchedMatmul { transpose_a: true, transpose_b: true }, [f32s(&[2, k, rows]), f32s(&[2, n, k])]);
    }
    for (c, n) in [(8, 20), (3, 9)] {
        let conv = Conv2d::same(3, epilogue);
        let (x, y) = (f32s(&[2, 5, 6, c]), f32s(&[2, 5, 6, n]));
        check(conv, [x.clone(), panels(&[9, c, n]), f32s(&[n]), f32s(&[2, n]), y.clone()]);
        let conv = Conv2d::same(3, Epilogue::default());
        check(Conv2dWeightGrad { conv, shape: vec![9, c, n] }, [x, y]);
    }
}

#[test]
fn attention() {
    let f32s = |shape: &[usize]| TensorType::f32(shape);
    let (op, q, k) = (Attention { heads: 2, scale: 0.3 }, f32s(&[2, 5, 16]), f32s(&[2, 7, 16]));
    check(op, [q.clone(), k.clone(), k.clone()]);
    // Two parts, put together by a second launch.
    let far = f32s(&[1, 300, 8]);
    check(Attention { heads: 1, scale: 0.3 }, [f32s(&[1, 3, 8]), far.clone(), far]);
    let lse = f32s(&[2, 2, 5]);
    check(AttentionGrad(op), [q.clone(), k.clone(), k, q.clone(), lse, q]);
}

#[test]
fn norms() {
    let f32s = |shape: &[usize]| TensorType::f32(shape);
    for (channels, groups) in [(24, 2), (24, 8), (10, 5), (7, 7), (640, 32)] {
        let (x, c, m) = (f32s(&[2, 9, channels]), f32s(&[channels]), f32s(&[2, channels]));
        for affine in [false, true] {
            let op = RmsNorm { eps: 1e-5, affine };
            let inputs = [&[x.clone()][..], &vec![c.clone(); affine as usize]].concat();
            check(op, inputs.clone());
            check_all(RmsNormGrad(op), [&inputs[..], &[f32s(&[18]), x.clone()]].concat());
            let op = LayerNorm { eps: 1e-5, affine, modulate: !affine, first: [0; 2] };
            let parameter = if affine { &c } else { &m };
            let inputs = [x.clone(), parameter.clone(), parameter.clone()];
            check(op, inputs.clone());
            check_all(LayerNormGrad(op), [&inputs[..], &[f32s(&[18, 2]), x.clone()]].concat());
        }
        for activation in [Activation::Silu, Activation::Identity, Activation::Gelu] {
            let op = GroupNorm { groups, eps: 1e-5, activation, modulate: true };
            let inputs = [x.clone(), c.clone(), c.clone(), m.clone(), m.clone()];
            check(op, inputs.clone());
            check_all(GroupNormGrad(op), [&inputs[..], &[f32s(&[2, groups, 2]), x.clone()]].concat());
        }
    }
}

#[test]
fn elementwise() {
    let f32s = |shape: &[usize]| TensorType::f32(shape);
    for n in [1024, 1030, 3] {
        let x = f32s(&[n]);
        let two = [x.clone(), x.clone()];
        for activation in [Activation::Silu, Activation::Gelu] {
            check(Activate(activation), [x.clone()]);
            check_all(ActivateGrad(activation), two.clone());
        }
        check(Affine { scale: 0.5, shift: 2.0 }, [x.clone()]);
        check(Binary::Sub, two);
        check(Reciprocal, [x.clone()]);
        check_all(ScaleBy, [x.clone(), f32s(&[1])]);
        for terms in [1, 6] {
            let op = DiffusionUpdate { terms, clip: Some(0.5) };
            check(op, [vec![f32s(&[terms])], vec![x.clone(); terms]].concat());
        }
    }
    for shape in [[2, 9, 24], [2, 300, 8], [3, 5, 7]] {
        let (x, of_sample, gate) = (f32s(&shape), f32s(&shape[..1]), f32s(&[shape[0], shape[2]]));
        check(SampleMix { terms: 1 }, [of_sample.clone(), x.clone()]);
        check(SampleMix { terms: 2 }, [of_sample.clone(), x.clone(), of_sample, x.clone()]);
        check(Gate, [x.clone(), gate.clone(), x.clone()]);
        check_all(GateGrad, [x.clone(), gate, x.clone()]);
        let halves = f32s(&[shape[0], shape[1], 2 * shape[2]]);
        check(Geglu, [halves.clone()]);
        check_all(GegluGrad, [halves, x]);
    }
}

#[test]
fn random_numbers() {
    for shape in [[2, 64], [2, 61]] {
        let (x, seeds, draw) = (TensorType::f32(shape), TensorType::i32([2, 2]), TensorType::f32([1]));
        check_all(Dropout { p: 0.3, stream: 1 }, [x, seeds.clone(), draw.clone()]);
        for kind in [RandomKind::Normal, RandomKind::Uniform] {
            check(Random { kind, shape: shape.to_vec(), stream: 1 }, [seeds.clone(), draw.clone()]);
        }
    }
}

#[test]
fn sums_of_samples() {
    // Samples of one stretch and of several.
    for n in [20, 21, 5000, 9001] {
        let (x, of_sample) = (TensorType::f32([2, n]), TensorType::f32([2]));
        check(GuidanceRescale { phi: 0.7 }, [x.clone(), x.clone()]);
        check(GradNorm, [x.clone()]);
        for kind in [LossKind::Mse, LossKind::L2, LossKind::PseudoHuber { c: 0.1 }] {
            check(Loss { kind }, [x.clone(), x.clone(), of_sample.clone()]);
            check(LossGrad { kind }, [x.clone(), x.clone(), of_sample.clone(), of_sample.clone()]);
        }
    }
}

#[test]
fn optimizer() {
    for n in [5, 4096, 20_001] {
        let inputs = [vec![TensorType::f32([n]); 6], vec![TensorType::f32([10]), TensorType::f32([1])]].concat();
        let mut data: Vec<_> = inputs.iter().enumerate().map(|(seed, ty)| numbers(seed, ty)).collect();
        data[3].iter_mut().for_each(|v| *v = v.abs());
        data[6] = vec![1e-2, 0.9, 0.99, 1e-3, 0.1, 7.0, 0.5, 1.0, 0.9, 0.99];
        data[7] = vec![3.0];
        check_with(Optimizer { kind: OptimizerKind::AdamW, emas: 2 }, &inputs, &data);
    }
}
