//! Linear combinations with coefficients by sample.

use super::lines::by_pack;
use super::{Binary, Reduce, expect_inputs, expect_plain, expect_shape};
use crate::cpu::threads::{Ptr, ranges};
use crate::graph::{Arg, Args, Cost, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, ptx, wgsl};
use crate::simd;
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// y = a·x, or a·x + b·z with two terms; inputs: a `[B]`, x `[B, …]` (, b `[B]`, z like x) → y like x. What
/// preconditioning does to a network's input and output (Karras et al. 2022, equation 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleMix {
    /// 1 or 2
    pub terms: usize,
}

impl Op for SampleMix {
    fn name(&self) -> &'static str {
        "sample_mix"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        if !(1..=2).contains(&self.terms) {
            return Err(Error::shape(self.name(), format!("{} terms; it takes 1 or 2", self.terms)));
        }
        expect_inputs(self.name(), inputs, 2 * self.terms)?;
        let x = inputs[1];
        expect_plain(self.name(), "x", x)?;
        let Some(samples) = x.shape.first().filter(|_| x.shape.len() > 1) else {
            return Err(Error::shape(self.name(), format!("x must be [B, ..], is {x}")));
        };
        for pair in inputs.chunks(2) {
            expect_shape(self.name(), "coefficient", pair[0], &[*samples])?;
            expect_shape(self.name(), "x", pair[1], &x.shape)?;
        }
        Ok(vec![x.clone()])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: (2 * self.terms as u64 - 1) * io.out_elements(), bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], wanted: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None; node.inputs.len()]) };
        let (samples, elements) = (g.shape(dy)[0], g.ty(dy).elements());
        let mut grads = Vec::new();
        for (pair, wanted) in node.inputs.chunks(2).zip(wanted.chunks(2)) {
            grads.push(if wanted[0] {
                let products = g.apply(Binary::Mul, &[pair[1], dy])?;
                let sum = Reduce::sum_middle(samples, elements / samples.max(1), 1).to_shape([samples]);
                Some(g.apply(sum, &[products])?)
            } else {
                None
            });
            grads.push(if wanted[1] { Some(g.apply(SampleMix { terms: 1 }, &[pair[0], dy])?) } else { None });
        }
        Ok(grads)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        if self.terms == 2 { &[(3, 0), (1, 0)] } else { &[(1, 0)] }
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let x = &io.inputs[1];
        let width = x.elements() / x.shape[0].max(1);
        Ok(vec![match target {
            Target::Cuda(_) => {
                let args = (0..4).map(|i| Arg::Input(i % (2 * self.terms))).chain([Arg::Output(0)]);
                let kernel = Ptx::new(self.name(), ptx!("sample_mix"), DType::F32);
                by_pack(kernel, DType::F32, x.elements(), width, args).scalar(self.terms == 2)
            }
            Target::Cpu => Launch::cpu(self.name(), kernel, 2 * self.terms, 1).scalars([self.terms, width]),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!("lib/flat", "sample_mix")).flag("TWO", self.terms == 2);
                // The first term stands for the second where that is absent.
                let args = (0..4).map(|i| Arg::Input(i % (2 * self.terms))).chain([Arg::Output(0)]);
                Launch::over(shader, target, x.elements(), args, [1, 3, 4]).scalar(width)
            }
        }])
    }
}

fn kernel(args: &Args) {
    let (terms, width) = (args.int(0), args.int(1));
    let (y, n) = args.ptr(2 * terms);
    let y = Ptr::from_raw(y);
    let term = |i: usize| (args.slice::<f32>(2 * i), Ptr::from_raw(args.ptr(2 * i + 1).0));
    let (a, x) = term(0);
    let second = (terms == 2).then(|| term(1));
    ranges(n, 16, |start, end| {
        let mut at = start;
        while at < end {
            let (sample, stop) = (at / width, end.min((at / width + 1) * width));
            let (x, y) = (x.raw().wrapping_add(at), y.raw().wrapping_add(at));
            match second {
                Some((b, z)) => mix::<2>([a[sample], b[sample]], [x, z.raw().wrapping_add(at)], y, stop - at),
                None => mix::<1>([a[sample]], [x], y, stop - at),
            }
            at = stop;
        }
    });
}

simd! {
    fn mix[const N: usize](coefficients: [f32; N], inputs: [*mut f32; N], y: *mut f32, n: usize) {
        let mut i = 0;
        while i + 16 <= n {
            // SAFETY: `n` elements lie at every pointer; all 16 are read before they are written (y may be an input).
            unsafe {
                let mut sum = [0.0f32; 16];
                for k in 0..N {
                    let x = (inputs[k].add(i) as *const [f32; 16]).read_unaligned();
                    for l in 0..16 {
                        sum[l] += coefficients[k] * x[l];
                    }
                }
                (y.add(i) as *mut [f32; 16]).write_unaligned(sum);
            }
            i += 16;
        }
        while i < n {
            let mut sum = 0.0;
            for k in 0..N {
                // SAFETY: as above.
                sum += coefficients[k] * unsafe { *inputs[k].add(i) };
            }
            // SAFETY: as above.
            unsafe { *y.add(i) = sum };
            i += 1;
        }
    }
}
