use crate::harness::{Case, Input, Tensor, f32s, panels};
use crate::linear::{all_epilogues, finish, operands};
use langevin::graph::{Op, Signature};
use langevin::ops::{Activation, Conv2d, Conv2dWeightGrad, Epilogue, Padding};

fn reference(conv: Conv2d, i: &[Tensor]) -> Tensor {
    let [b, h, w, c] = i[0].shape[..] else { unreachable!() };
    let n = *i[1].shape.last().unwrap();
    let ([k0, k1], p, d) = (conv.kernel, conv.padding, conv.input_dilation);
    let oh = ((h - 1) * d + 1 + p.top + p.bottom - k0) / conv.stride + 1;
    let ow = ((w - 1) * d + 1 + p.left + p.right - k1) / conv.stride + 1;
    let mut y = Tensor::zeros([b, oh, ow, n]);
    let inside = |at: usize, pad: usize, size: usize| {
        let at = at as isize - pad as isize;
        (at >= 0 && at % d as isize == 0 && at / (d as isize) < size as isize).then_some(at as usize / d)
    };
    for s in 0..b {
        for oy in 0..oh {
            for ox in 0..ow {
                for ky in 0..k0 {
                    for kx in 0..k1 {
                        let (Some(iy), Some(ix)) =
                            (inside(oy * conv.stride + ky, p.top, h), inside(ox * conv.stride + kx, p.left, w))
                        else {
                            continue;
                        };
                        for co in 0..n {
                            for ci in 0..c {
                                *y.at_mut(&[s, oy, ox, co]) +=
                                    i[0].at(&[s, iy, ix, ci]) * i[1].data[((ky * k1 + kx) * c + ci) * n + co];
                            }
                        }
                    }
                }
            }
        }
    }
    finish(conv.epilogue, &mut y, i);
    y
}

fn check(conv: Conv2d, size: [usize; 5]) {
    case(conv, size).check();
}

fn case(conv: Conv2d, [b, h, w, c, n]: [usize; 5]) -> Case<'static> {
    let e = conv.epilogue;
    let mut inputs = vec![f32s(&[b, h, w, c], 1), panels(&[conv.kernel[0] * conv.kernel[1], c, n], 2)];
    let shape = reference(
        Conv2d { epilogue: Epilogue::default(), ..conv },
        &inputs.iter().map(|i| Tensor::new(i.ty.shape.clone(), i.data.clone())).collect::<Vec<_>>(),
    )
    .shape;
    inputs.extend(operands(e, &shape));
    let case = Case::new(format!("{conv:?} {b}x{h}x{w}x{c}->{n}"), conv, inputs, move |i| vec![reference(conv, i)]);
    if conv.input_dilation > 1 || b * h * w * c > 1000 { case.forward_only() } else { case }
}

#[test]
fn kernels_strides_and_padding() {
    let plain = Conv2d::same(3, Epilogue::bias());
    let down = Conv2d { stride: 2, ..plain };
    let asymmetric = Padding { top: 0, left: 0, bottom: 1, right: 1 };
    for size in [[2, 5, 4, 3, 2], [1, 1, 1, 1, 1], [1, 6, 7, 2, 17]] {
        check(plain, size);
        check(Conv2d::same(1, Epilogue::bias()), size);
        check(Conv2d::same(5, Epilogue::default()), size);
        check(down, size);
        check(Conv2d { kernel: [1; 2], padding: Padding::default(), ..down }, size);
        check(Conv2d { input_dilation: 2, ..plain }, size);
        if size[1] > 1 {
            check(Conv2d { padding: asymmetric, ..down }, size);
            check(Conv2d { kernel: [2; 2], padding: Padding::default(), ..down }, size);
            check(Conv2d { kernel: [2; 2], stride: 1, padding: asymmetric, ..down }, size);
        }
    }
    check(plain, [2, 12, 12, 40, 35]);
    check(down, [2, 12, 12, 40, 35]);
    // Channels and columns of whole accesses.
    let all = all_epilogues().pop().unwrap();
    check(Conv2d { epilogue: all, ..plain }, [3, 7, 9, 24, 40]);
    check(Conv2d::same(1, all), [2, 9, 9, 32, 24]);
    check(Conv2d { padding: asymmetric, ..down }, [2, 13, 11, 16, 72]);
    check(Conv2d { input_dilation: 2, ..plain }, [2, 9, 10, 16, 24]);
    // More than one tile of 128.
    check(Conv2d { epilogue: all, ..plain }, [3, 9, 15, 24, 136]);
    check(Conv2d { epilogue: all, ..down }, [2, 25, 17, 64, 388]);
    check(Conv2d { input_dilation: 2, ..plain }, [2, 9, 10, 16, 136]);
}

/// Data gradients of strided convolutions: pixels by phases, with all taps, some or none, and a sum that begins anywhere.
#[test]
fn zeros_between_pixels() {
    let sum = Epilogue { residual: true, scale: 0.5, ..Epilogue::default() };
    for epilogue in [Epilogue::default(), sum] {
        for input_dilation in [2, 3] {
            for kernel in [[3, 3], [1, 1], [2, 5], [4, 2]] {
                let [top, left] = kernel.map(|k| k - 1);
                for padding in
                    [Padding { top, left, ..Padding::default() }, Padding { top: 0, left: 1, bottom: top, right: left }]
                {
                    let conv = Conv2d { kernel, padding, input_dilation, ..Conv2d::same(1, epilogue) };
                    check(conv, [2, 3, 4, 3, 5]);
                }
            }
        }
        let padding = Padding { top: 1, left: 1, bottom: 2, right: 2 };
        let conv = Conv2d { padding, input_dilation: 2, ..Conv2d::same(3, epilogue) };
        // One pixel; sums of parts of the terms; tiles of 128.
        for size in [[1, 1, 1, 8, 8], [1, 5, 4, 200, 24], [2, 11, 9, 16, 72], [1, 22, 24, 24, 136]] {
            check(conv, size);
        }
    }
}

/// Patches that end within images, of several images, and of parts of one; channels that end within a step; tiles of all widths, several of
/// them a block; in parts; uneven kernels.
#[test]
fn convolutions_on_hopper() {
    let all = all_epilogues().pop().unwrap();
    let plain = Conv2d::same(3, all);
    let far = Padding { top: 0, left: 0, bottom: 1, right: 2 };
    let uneven = Conv2d { kernel: [2, 3], padding: far, epilogue: Epilogue::bias(), ..plain };
    let shrinking = Conv2d { padding: Padding::default(), epilogue: Epilogue::default(), ..plain };
    for (conv, size, entry) in [
        (plain, [1, 18, 31, 64, 136], "product_160_bf16"),
        (plain, [2, 18, 15, 64, 192], "product_192_bf16"),
        (plain, [2, 16, 15, 64, 256], "product_256_bf16"),
        (uneven, [3, 7, 15, 120, 136], "product_160_bf16"),
        (shrinking, [8, 10, 10, 64, 120], "product_128_bf16"),
        (Conv2d::same(1, all), [2, 16, 15, 192, 264], "product_160_bf16"),
        (Conv2d { stride: 2, ..plain }, [1, 18, 33, 64, 136], "product_160_bf16"),
        (Conv2d { stride: 2, padding: far, ..plain }, [5, 16, 18, 72, 136], "product_160_bf16"),
        (plain, [2, 8, 8, 320, 120], "product_64_bf16"),
    ] {
        case(conv, size).on_hopper(entry).check();
    }
}

/// A few channels on one side of images in 16 bits, whose patches end within them; strides, kernels of uneven sides, and columns that end within panels.
#[test]
fn few_channels() {
    for epilogue in [Epilogue::default(), all_epilogues().pop().unwrap()] {
        let plain = Conv2d::same(3, epilogue);
        let down = Conv2d { stride: 2, ..plain };
        let uneven = Conv2d { kernel: [2, 5], padding: Padding { top: 0, left: 1, bottom: 1, right: 3 }, ..plain };
        for (conv, size, entry) in [
            (plain, [2, 9, 7, 4, 72], "conv2d_from_bf16"),
            (down, [1, 11, 9, 3, 333], "conv2d_from_bf16"),
            (uneven, [1, 12, 13, 8, 41], "conv2d_from_bf16"),
            (plain, [2, 10, 19, 64, 4], "conv2d_to_bf16"),
            (plain, [1, 5, 33, 96, 3], "conv2d_to_bf16"),
            (Conv2d { padding: Padding::default(), ..plain }, [1, 18, 18, 32, 1], "conv2d_to_bf16"),
        ] {
            case(conv, size).forward_only().on_hopper(entry).check();
        }
    }
}

/// Kernels of one row or one column and of uneven sides, padded as they keep the size or not at all.
#[test]
fn rectangular_kernels() {
    for kernel in [[1, 7], [7, 1], [1, 3], [3, 1], [2, 5]] {
        let [top, left] = kernel.map(|k| k / 2);
        let same = Padding { top, left, bottom: kernel[0] - 1 - top, right: kernel[1] - 1 - left };
        for padding in [same, Padding::default()] {
            for stride in [1, 2] {
                let conv = Conv2d { kernel, stride, padding, ..Conv2d::same(1, Epilogue::bias()) };
                check(conv, [2, 7, 8, 3, 5]);
            }
        }
        check(Conv2d { kernel, padding: same, ..Conv2d::same(1, Epilogue::bias()) }, [2, 12, 13, 20, 35]);
    }
}

#[test]
fn epilogues() {
    for e in all_epilogues() {
        check(Conv2d::same(3, e), [2, 4, 3, 3, 5]);
    }
    // Large, so that no finite difference is taken across the edge of ReLU.
    check(Conv2d::same(3, Epilogue { activation: Activation::Relu, ..Epilogue::bias() }), [2, 12, 12, 40, 35]);
}

/// The bias by sample is some columns of a wider operand; few channels on one side, products in parts, tiles of Hopper, columns that begin within accesses.
#[test]
fn columns_of_a_wide_operand() {
    let plain = Conv2d::same(3, Epilogue { sample_bias: true, activation: Activation::Silu, ..Epilogue::bias() });
    for (size, first, wide, hopper) in [
        ([2, 4, 3, 3, 5], 3, 23, None),
        ([3, 7, 9, 24, 40], 40, 120, None),
        ([2, 5, 6, 256, 32], 128, 384, None),
        ([2, 9, 7, 4, 72], 8, 90, Some("conv2d_from_bf16")),
        ([2, 16, 15, 64, 256], 128, 512, Some("product_256_bf16")),
    ] {
        let [b, .., n] = size;
        let e = Epilogue { sample_first: first, ..plain.epilogue };
        let narrow = case(plain, size);
        let mut inputs = narrow.inputs.clone();
        inputs[3] = f32s(&[b, wide], 4);
        let conv = Conv2d { epilogue: e, ..plain };
        // What is not read costs nothing.
        let bytes = |conv: Conv2d, inputs: &[Input]| {
            let inputs: Vec<_> = inputs.iter().map(|i| i.ty.clone()).collect();
            let outputs = conv.infer(&inputs.iter().collect::<Vec<_>>()).unwrap();
            conv.cost(&Signature { inputs, outputs }).bytes
        };
        assert_eq!(bytes(conv, &inputs), bytes(plain, &narrow.inputs));
        let reference = narrow.reference;
        let case = Case::new(format!("{e:?} {size:?}"), conv, inputs, move |i| {
            let mut i = i.to_vec();
            let columns = i[3].data.chunks(wide).flat_map(|row| row[first..first + n].to_vec()).collect();
            i[3] = Tensor::new([b, n], columns);
            reference(&i)
        });
        let case = case.forward_only();
        match hopper {
            Some(entry) => case.on_hopper(entry).check(),
            None => case.check(),
        }
    }
}

/// Sums over more pixels than shaders add up in one go; their parts begin in the middle of an image.
#[test]
fn weight_gradients_of_many_pixels() {
    for (conv, [b, h, w, c, n]) in [
        (Conv2d::same(3, Epilogue::default()), [3, 23, 21, 4, 8]),
        (Conv2d::same(3, Epilogue::default()), [3, 23, 21, 3, 5]),
        (Conv2d { stride: 2, ..Conv2d::same(3, Epilogue::default()) }, [5, 30, 27, 8, 20]),
    ] {
        let taps = conv.kernel[0] * conv.kernel[1];
        let (oh, ow) = ((h - 1) / conv.stride + 1, (w - 1) / conv.stride + 1);
        let op = Conv2dWeightGrad { conv, shape: vec![taps, c, n] };
        let inputs = vec![f32s(&[b, h, w, c], 1), f32s(&[b, oh, ow, n], 2)];
        Case::new(format!("{op:?} {b}x{h}x{w}"), op, inputs, |i| {
            let mut dw = Tensor::zeros([taps, c, n]);
            for (s, oy, ox) in (0..b * oh * ow).map(|p| (p / ow / oh, p / ow % oh, p % ow)) {
                for (ky, kx) in (0..taps).map(|t| (t / 3, t % 3)) {
                    let (y, x) = (oy * conv.stride + ky, ox * conv.stride + kx);
                    if !(1..=h).contains(&y) || !(1..=w).contains(&x) {
                        continue;
                    }
                    for (ci, co) in (0..c * n).map(|k| (k / n, k % n)) {
                        *dw.at_mut(&[3 * ky + kx, ci, co]) +=
                            i[0].at(&[s, y - 1, x - 1, ci]) * i[1].at(&[s, oy, ox, co]);
                    }
                }
            }
            vec![dw]
        })
        .forward_only()
        .check();
    }
}
