//! Dropout with masks that are made again instead of kept.

use super::lines::divisor;
use super::random::{BLOCK, expect_seeds, sample_blocks};
use super::{expect_inputs, expect_real};
use crate::cpu::philox;
use crate::cpu::threads::Ptr;
use crate::graph::{Arg, Args, Cost, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, ptx, wgsl};
use crate::simd;
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// y = x·mask/(1 − p), mask = [u ≥ p] (Srivastava et al. 2014); inputs x `[B, …]`, seeds i32 `[B, 2]`, draw `[1]`. The uniform
/// u of each element is that of [`super::Random`] with the same seeds, draw and `stream`. The gradient is the same op on dy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    pub p: f32,
    pub stream: u32,
}

impl Dropout {
    /// The least word of the generator of which a number is made, by its upper 24 bits, that is p or more.
    fn least_word(&self) -> usize {
        ((self.p as f64 * 16_777_216.0).ceil() as usize) << 8
    }
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 3)?;
        expect_real(self.name(), "x", inputs[0])?;
        expect_seeds(self.name(), inputs[1], inputs[2], &inputs[0].shape)?;
        if !(0.0..1.0).contains(&self.p) {
            return Err(Error::shape(self.name(), format!("p must lie in [0, 1), is {}", self.p)));
        }
        Ok(vec![inputs[0].clone()])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 17 * io.out_elements(), bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], wanted: &[bool]) -> Result<Vec<Option<Value>>> {
        let (Some(dy), true) = (dy[0], wanted[0]) else { return Ok(vec![None; 3]) };
        Ok(vec![Some(g.apply(*self, &[dy, node.inputs[1], node.inputs[2]])?), None, None])
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn takes(&self, _: DType, target: &Target) -> bool {
        matches!(target, Target::Cuda(_))
    }

    fn stays_f32(&self, input: usize) -> bool {
        input == 2
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let n: usize = io.inputs[0].shape[1..].iter().product();
        let sizes = [n, self.stream as usize];
        Ok(vec![match target {
            Target::Cuda(_) => {
                let (dtype, args) = (io.inputs[0].dtype, (0..3).map(Arg::Input).chain([Arg::Output(0)]));
                let kernel = Ptx::new(self.name(), ptx!("dropout"), dtype);
                let launch = Launch::ptx_flat(kernel, dtype, io.outputs[0].elements(), args);
                let launch = launch.scalars(divisor(n)).scalars([self.stream as usize, self.least_word()]);
                launch.scalar(1.0 / (1.0 - self.p))
            }
            Target::Cpu => Launch::cpu(self.name(), kernel, 3, 1).scalars(sizes).scalar(self.p),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!("lib/flat", "lib/multiply", "lib/philox", "dropout"));
                let args = (0..3).map(Arg::Input).chain([Arg::Output(0)]);
                let launch = Launch::over(shader, target, io.outputs[0].elements(), args, [0, 3]);
                launch.scalars(sizes).scalars([self.p, 1.0 / (1.0 - self.p)])
            }
        }])
    }
}

fn kernel(args: &Args) {
    let (n, stream, p) = (args.int(0), args.int(1) as u32, args.float(2));
    let (seeds, draw) = (args.slice::<i32>(1), args.slice::<f32>(2)[0] as u32);
    let (x, out) = (Ptr::from_raw(args.ptr(0).0), Ptr::from_raw(args.ptr(3).0));
    sample_blocks(seeds, n, |sample, key, first, len| {
        let at = sample * n + first;
        let (x, out) = (x.raw().wrapping_add(at), out.raw().wrapping_add(at));
        mask(key, first as u32 / 4, [draw, stream, 0], p, x, out, len);
    });
}

simd! {
    fn mask(key: [u32; 2], first: u32, rest: [u32; 3], p: f32, x: *const f32, out: *mut f32, n: usize) {
        let scale = 1.0 / (1.0 - p);
        for block in 0..n.div_ceil(BLOCK) {
            let words = philox::block(key, first + (block * philox::LANES) as u32, rest);
            let at = block * BLOCK;
            let len = BLOCK.min(n - at);
            let mut buffer = [0.0f32; BLOCK];
            // SAFETY: `n` elements lie at both pointers; a block is read before it is written.
            unsafe { std::ptr::copy_nonoverlapping(x.add(at), buffer.as_mut_ptr(), len) };
            for (l, x) in buffer.chunks_exact_mut(4).enumerate() {
                for (word, x) in x.iter_mut().enumerate() {
                    *x = if philox::uniform(words[word][l]) >= p { *x * scale } else { 0.0 };
                }
            }
            // SAFETY: as above.
            unsafe { std::ptr::copy_nonoverlapping(buffer.as_ptr(), out.add(at), len) };
        }
    }
}
