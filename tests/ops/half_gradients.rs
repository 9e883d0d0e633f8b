//! Gradients of products with numbers stored in 16 bits, held against those in f32 of the same numbers, cut as for small and large GPUs.

use crate::harness::{noise, ptx_devices, relative, run_on};
use half::{bf16, f16};
use langevin::Device;
use langevin::graph::{CudaTarget, Graph, Kernel, Node, Op, Signature, Target, Value};
use langevin::ops::*;
use langevin::passes::autodiff::{Recompute, gradients};
use langevin::tensor::{DType, TensorType};

/// What `build` makes of inputs as they are stored on the ptx device, and of the same in f32 on the CPU: outputs of 16 bits may differ by
/// their rounding, those that are f32 must be as good as f32.
fn compare(
    name: &str,
    inputs: &[TensorType],
    targets: &[CudaTarget],
    build: impl Fn(&mut Graph, &[Value]) -> Vec<Value>,
) {
    for (dtype, rounding) in [(DType::F32, 2e-6), (DType::F16, 1e-3), (DType::Bf16, 8e-3)] {
        let round = |v: f64| match dtype {
            DType::F16 => f16::from_f64(v).to_f64(),
            DType::Bf16 => bf16::from_f64(v).to_f64(),
            _ => v,
        };
        let data: Vec<(String, Vec<f64>)> = inputs
            .iter()
            .enumerate()
            .map(|(i, ty)| (format!("in{i}"), noise(ty.elements(), 1 + i as u64).into_iter().map(round).collect()))
            .collect();
        let graph = |stored: DType| {
            let (mut g, mut types) = (Graph::new(), vec![]);
            let values: Vec<Value> = inputs.iter().zip(&data).map(|(ty, (n, _))| g.input(n, ty.clone())).collect();
            let cast = |g: &mut Graph, v, to| if g.ty(v).dtype == to { v } else { g.apply(Cast(to), &[v]).unwrap() };
            let values: Vec<Value> = values.into_iter().map(|v| cast(&mut g, v, stored)).collect();
            for (i, out) in build(&mut g, &values).into_iter().enumerate() {
                types.push(g.ty(out).dtype);
                let out = cast(&mut g, out, DType::F32);
                g.output(format!("out{i}"), out);
            }
            (g, types)
        };
        let expected = run_on((Device::Cpu, Device::Cpu.target()), &graph(DType::F32).0, &data);
        let (g, types) = graph(dtype);
        let mut seen = vec![];
        for target in targets.iter().copied() {
            let lower = |n: &Node| n.op.lower(&g.signature(n), &Target::Cuda(target)).unwrap();
            let launches: Vec<_> = g.nodes().iter().flat_map(lower).collect();
            if seen.contains(&launches) {
                continue;
            }
            seen.push(launches);
            for device in ptx_devices(target.compute) {
                let got = run_on((device.clone(), Target::Cuda(target)), &g, &data);
                for (i, ty) in types.iter().enumerate() {
                    let out = format!("out{i}");
                    let err = relative(&got[&out], &expected[&out]);
                    let bound = if *ty == dtype { rounding } else { 2e-6 };
                    let name = format!("{name} of {inputs:?} in {dtype} on {device} for {target:?}");
                    assert!(err <= bound, "{name}: output {i}, {ty}, is off by {err:.2e}");
                }
            }
        }
    }
}

/// Few multiprocessors, for which tiles are large; many; and Hopper.
fn targets() -> Vec<CudaTarget> {
    let device = |compute| match Device::ptx(compute).target() {
        Target::Cuda(target) => target,
        other => unreachable!("{other:?}"),
    };
    vec![device((8, 0)), CudaTarget { multiprocessors: 132, ..device((8, 0)) }, device((9, 0))]
}

/// One op, whose output must be of that type: none for the inputs'.
fn check(op: impl Op + Clone, inputs: &[TensorType], out: Option<DType>) {
    check_on(&targets(), op, inputs, out);
}

fn check_on(targets: &[CudaTarget], op: impl Op + Clone, inputs: &[TensorType], out: Option<DType>) {
    compare(&format!("{op:?}"), inputs, targets, |g, values| {
        let outs = g.apply(op.clone(), values).map(|v| vec![v]).unwrap();
        assert_eq!(g.ty(outs[0]).dtype, out.unwrap_or(g.ty(values[0]).dtype), "{op:?}");
        outs
    });
}

fn f32s(shape: &[usize]) -> TensorType {
    TensorType::f32(shape)
}

#[test]
fn weight_gradients() {
    // Sizes of a tile's edge, tiles of 64 and of 128, sums of all rows, and of parts of them.
    let sizes = [[1, 1, 1], [13, 5, 7], [70, 24, 40], [210, 700, 130], [1500, 12, 20], [4200, 72, 24]];
    for [m, k, n] in sizes {
        check(LinearWeightGrad { shape: vec![k, n] }, &[f32s(&[m, k]), f32s(&[m, n])], Some(DType::F32));
    }
    let same = |kernel| Conv2d::same(kernel, Epilogue::default());
    let down = Conv2d { stride: 2, ..same(3) };
    let below = Padding { top: 0, left: 0, bottom: 1, right: 1 };
    for (conv, [b, h, w, c, n]) in [
        (same(3), [2, 5, 4, 1, 2]),
        (same(3), [2, 17, 13, 3, 5]),
        (same(3), [3, 11, 9, 8, 20]),
        (same(3), [2, 7, 70, 16, 136]),
        (same(3), [1, 66, 65, 24, 40]),
        (same(1), [2, 9, 9, 24, 16]),
        (same(5), [1, 6, 7, 4, 17]),
        (down, [3, 12, 11, 8, 12]),
        (down, [2, 9, 10, 3, 8]),
        (Conv2d { padding: below, ..down }, [2, 8, 8, 16, 8]),
        (Conv2d { kernel: [1, 3], padding: Padding::default(), ..down }, [2, 5, 9, 8, 9]),
    ] {
        let p = conv.padding;
        let out = |size, k, near, far| (size + near + far - k) / conv.stride + 1;
        let (oh, ow) = (out(h, conv.kernel[0], p.top, p.bottom), out(w, conv.kernel[1], p.left, p.right));
        let shape = vec![conv.kernel[0] * conv.kernel[1], c, n];
        check(Conv2dWeightGrad { conv, shape }, &[f32s(&[b, h, w, c]), f32s(&[b, oh, ow, n])], Some(DType::F32));
    }
}

/// Tiles of all shapes, several of them a block; channels and columns that end within boxes, patches within images and of parts of one; parts of k;
/// kernels of one tap and of several, padded or not.
#[test]
fn weight_gradients_on_hopper() {
    let hopper = targets()[2];
    let entry_of = |op: &dyn Op, inputs: &[TensorType]| {
        let inputs: Vec<_> = inputs.iter().map(|ty| TensorType { dtype: DType::Bf16, ..ty.clone() }).collect();
        let outputs = op.infer(&inputs.iter().collect::<Vec<_>>()).unwrap();
        let launches = op.lower(&Signature { inputs, outputs }, &Target::Cuda(hopper)).unwrap();
        match &launches[0].kernel {
            Kernel::Ptx(kernel) => (kernel.entry.clone(), launches.len()),
            other => panic!("{other:?}"),
        }
    };
    let tiles = |rows, launches| (format!("weight_grad_{rows}_bf16"), launches);
    for ([m, k, n], entry) in [
        ([90, 200, 264], tiles(128, 1)),
        ([70, 456, 520], tiles(128, 1)),
        ([2100, 192, 256], tiles(128, 2)),
        ([70, 712, 264], tiles(192, 1)),
        ([2600, 136, 200], tiles(192, 2)),
        ([130, 520, 120], tiles(256, 1)),
    ] {
        let (op, inputs) = (LinearWeightGrad { shape: vec![k, n] }, [f32s(&[m, k]), f32s(&[m, n])]);
        assert_eq!(entry_of(&op, &inputs), entry, "{m}x{k}x{n}");
        check_on(&[hopper], op, &inputs, Some(DType::F32));
    }
    let same = |kernel| Conv2d::same(kernel, Epilogue::default());
    let shrinking = Conv2d { padding: Padding::default(), ..same(3) };
    let uneven = Conv2d { kernel: [2, 3], padding: Padding { top: 0, left: 0, bottom: 1, right: 2 }, ..same(3) };
    for (conv, [b, h, w, c, n], entry) in [
        (same(3), [1, 18, 31, 64, 136], tiles(192, 1)),
        (same(3), [3, 7, 15, 72, 120], tiles(256, 1)),
        (uneven, [5, 16, 17, 64, 120], tiles(256, 2)),
        (same(1), [2, 16, 15, 136, 264], tiles(128, 1)),
        (shrinking, [8, 10, 10, 128, 120], tiles(256, 1)),
        (uneven, [3, 8, 14, 64, 136], tiles(128, 1)),
        (uneven, [2, 9, 17, 136, 264], tiles(256, 1)),
    ] {
        let p = conv.padding;
        let (oh, ow) = (h + p.top + p.bottom + 1 - conv.kernel[0], w + p.left + p.right + 1 - conv.kernel[1]);
        let op = Conv2dWeightGrad { conv, shape: vec![conv.kernel[0] * conv.kernel[1], c, n] };
        let inputs = [f32s(&[b, h, w, c]), f32s(&[b, oh, ow, n])];
        assert_eq!(entry_of(&op, &inputs), entry, "{conv:?} of {inputs:?}");
        check_on(&[hopper], op, &inputs, Some(DType::F32));
    }
}

#[test]
fn transposed_weights_and_sums() {
    for (taps, c, n) in [(1, 3, 5), (9, 17, 20), (1, 16, 40), (4, 130, 70)] {
        let shape = if taps == 1 { vec![c, n] } else { vec![taps, c, n] };
        check(TransposeWeight { taps }, &[TensorType::panels(shape)], None);
    }
    for [outer, middle, inner] in [
        [1, 1, 1],
        [2, 7, 3],
        [1, 300, 20],
        [3, 50, 8],
        [1, 2000, 17],
        [2, 9000, 1],
        [5, 33, 1],
        [1, 6000, 4],
        // In stretches, of whole packs.
        [1, 3000, 136],
        [2, 1100, 40],
    ] {
        check(Reduce::sum_middle(outer, middle, inner), &[f32s(&[outer, middle, inner])], Some(DType::F32));
        check(Reduce::mean_middle(outer, middle, inner), &[f32s(&[outer, middle, inner])], Some(DType::F32));
    }
}

/// All gradients of an op: those of parameters, inputs from the first of `parameters` on, are f32.
fn check_all(op: impl Op + Clone, inputs: &[TensorType], parameters: std::ops::Range<usize>) {
    let mut probe = Graph::new();
    let values: Vec<Value> =
        inputs.iter().enumerate().map(|(i, ty)| probe.input(format!("in{i}"), ty.clone())).collect();
    let y = probe.apply(op.clone(), &values).unwrap();
    let all = [inputs, &[probe.ty(y).clone()]].concat();
    compare(&format!("gradients of {op:?}"), &all, &targets(), |g, values| {
        let (dy, operands) = values.split_last().unwrap();
        let y = g.apply(op.clone(), operands).unwrap();
        let grads: Vec<Value> =
            gradients(g, &[(y, *dy)], operands, Recompute::Off).unwrap().into_iter().flatten().collect();
        assert_eq!(grads.len(), operands.len(), "{op:?}");
        for (i, grad) in grads.iter().enumerate() {
            let expected = if parameters.contains(&i) { DType::F32 } else { g.ty(*dy).dtype };
            assert_eq!(g.ty(*grad).dtype, expected, "gradient {i} of {op:?}");
        }
        grads
    });
}

#[test]
fn gradients_of_layers() {
    let panels = |shape: &[usize]| TensorType::panels(shape);
    // Parameters, but for a sample bias: its gradient is a sum on the way to that of the bias.
    let all = Epilogue { bias: true, sample_bias: true, residual: true, scale: 0.5, ..Epilogue::default() };
    for [b, rows, k, n] in [[2, 3, 5, 7], [2, 40, 24, 16], [3, 90, 136, 72]] {
        let (x, y) = (f32s(&[b, rows, k]), f32s(&[b, rows, n]));
        check_all(Linear(all), &[x.clone(), panels(&[k, n]), f32s(&[n]), f32s(&[b, n]), y], 1..4);
        check_all(Linear(Epilogue::bias()), &[x, panels(&[k, n]), f32s(&[n])], 1..3);
    }
    let down = Conv2d { stride: 2, ..Conv2d::same(3, Epilogue::bias()) };
    let below = Padding { top: 0, left: 0, bottom: 1, right: 1 };
    for conv in
        [Conv2d::same(3, Epilogue::bias()), Conv2d::same(1, Epilogue::bias()), down, Conv2d { padding: below, ..down }]
    {
        for [b, h, w, c, n] in [[2, 6, 7, 3, 5], [1, 8, 8, 1, 4], [2, 10, 9, 16, 24]] {
            let taps = conv.kernel[0] * conv.kernel[1];
            check_all(conv, &[f32s(&[b, h, w, c]), panels(&[taps, c, n]), f32s(&[n])], 1..3);
        }
    }
    for (transpose_a, transpose_b) in [(false, false), (false, true), (true, false), (true, true)] {
        for [b, m, n, k] in [[2, 3, 5, 4], [2, 72, 40, 136]] {
            let a = if transpose_a { [b, k, m] } else { [b, m, k] };
            let w = if transpose_b { [b, n, k] } else { [b, k, n] };
            check_all(BatchedMatmul { transpose_a, transpose_b }, &[f32s(&a), f32s(&w)], 0..0);
        }
    }
}
