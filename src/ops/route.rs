//! Which experts a token goes to, and what their answers count.

use super::embedding::expect_i32;
use super::{expect_inputs, expect_plain, expect_shape};
use crate::cpu::threads::{Ptr, ranges};
use crate::graph::{
    Arg, Args, Cost, FLAT_THREADS, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, WgpuTarget, ptx,
    wgsl,
};
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// Tokens of a workgroup of the shaders.
const TOKENS: usize = 64;
/// Keeps the sum of the chosen weights from being zero where they are made to sum to 1.
const TINY: f32 = 1e-20;

/// The experts that a token goes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Routing {
    /// Those with the highest gate scores, as the network was trained.
    #[default]
    Top,
    /// Those with the lowest: a weaker network of the same weights and the same cost.
    Bottom,
}

impl std::str::FromStr for Routing {
    type Err = Error;

    fn from_str(text: &str) -> Result<Routing> {
        match text {
            "top" => Ok(Routing::Top),
            "bottom" => Ok(Routing::Bottom),
            other => Err(Error::invalid("experts", format!("`{other}` is none of top, bottom"))),
        }
    }
}

/// Chooses `chosen` of E experts for each token.   logits `[T, E]` → weights `[T, chosen]`, experts i32 `[T, chosen]`
///
/// The scores are softmax(logits). The chosen ones come in order, the most extreme first; of equal ones the expert with the smaller
/// number. A chosen expert's weight is its score, with `normalize` divided by the sum of the chosen scores   (Shazeer et al. 2017;
/// Fei et al. 2024). NaN is neither higher nor lower than anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub chosen: usize,
    pub routing: Routing,
    pub normalize: bool,
}

/// T, E of the logits, of which at least `chosen` must be there.
fn dims(op: &str, logits: &TensorType, chosen: usize) -> Result<[usize; 2]> {
    expect_plain(op, "logits", logits)?;
    match logits.shape[..] {
        [tokens, experts] if (1..=experts).contains(&chosen) => Ok([tokens, experts]),
        _ => Err(Error::shape(op, format!("logits must be [T, E] with E ≥ {chosen} ≥ 1 chosen experts, are {logits}"))),
    }
}

/// The launch of a shader that takes an invocation a token.
fn by_token(shader: Shader, target: &WgpuTarget, sizes: [usize; 3], args: impl IntoIterator<Item = Arg>) -> Launch {
    Launch::wgsl(shader, target.grid(sizes[0].div_ceil(TOKENS)), args).scalars(sizes)
}

/// The launch of a PTX kernel that takes a group of a warp's lanes a token.
fn by_group(kernel: Ptx, sizes: [usize; 3], args: impl IntoIterator<Item = Arg>) -> Result<Launch> {
    let [tokens, experts, _] = sizes;
    // What a token has chosen is a bit of a lane.
    if experts > 32 * 32 {
        let reason = format!("{experts} experts; there is room for {}", 32 * 32);
        return Err(Error::unsupported(format!("`{}` on the cuda device", kernel.name), reason));
    }
    let lanes = experts.next_power_of_two().min(32);
    let blocks = (tokens * lanes).div_ceil(FLAT_THREADS);
    Ok(Launch::ptx(kernel, [blocks, 1, 1], FLAT_THREADS, args).scalars(sizes).scalar(lanes))
}

impl Op for Route {
    fn name(&self) -> &'static str {
        "route"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        let [tokens, _] = dims(self.name(), inputs[0], self.chosen)?;
        Ok(vec![TensorType::f32([tokens, self.chosen]), TensorType::i32([tokens, self.chosen])])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: io.inputs[0].elements() as u64 * (9 + self.chosen as u64), bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], wanted: &[bool]) -> Result<Vec<Option<Value>>> {
        let (Some(dy), true) = (dy[0], wanted[0]) else { return Ok(vec![None]) };
        let grad = RouteGrad { normalize: self.normalize };
        Ok(vec![Some(g.apply(grad, &[node.inputs[0], node.outputs[1], dy])?)])
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let sizes = [io.inputs[0].rows(), io.inputs[0].cols(), self.chosen];
        let lowest = self.routing == Routing::Bottom;
        Ok(vec![match target {
            Target::Cuda(_) => {
                let args = [Arg::Input(0), Arg::Output(0), Arg::Output(1)];
                by_group(Ptx::new(self.name(), ptx!("route"), DType::F32), sizes, args)?
                    .scalars([lowest, self.normalize])
            }
            Target::Cpu => Launch::cpu(self.name(), kernel, 1, 2).scalars(sizes).scalars([lowest, self.normalize]),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!("route"));
                let shader = shader.flag("LOWEST", lowest).flag("NORMALIZE", self.normalize);
                by_token(shader, target, sizes, [Arg::Input(0), Arg::Output(0), Arg::Output(1)])
            }
        }])
    }
}

/// The scores of one token.
fn softmax(logits: &[f32], scores: &mut Vec<f32>) {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    scores.clear();
    scores.extend(logits.iter().map(|l| (l - largest).exp()));
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|s| *s /= sum);
}

/// What the weights of the chosen experts are divided by.
fn divisor(normalize: bool, chosen: impl Iterator<Item = f32>) -> f32 {
    if normalize { chosen.sum::<f32>() + TINY } else { 1.0 }
}

fn kernel(args: &Args) {
    let [tokens, count, chosen] = [0, 1, 2].map(|i| args.int(i));
    let (lowest, normalize) = (args.flag(3), args.flag(4));
    let logits = args.slice::<f32>(0);
    let (weights, experts) = (Ptr::new(args.slice_mut::<f32>(1)), Ptr::new(args.slice_mut::<i32>(2)));
    ranges(tokens, 1, |start, end| {
        let mut scores = Vec::with_capacity(count);
        for t in start..end {
            let logits = &logits[t * count..][..count];
            // SAFETY: one token's places.
            let (weights, experts) = unsafe { (weights.part(t * chosen, chosen), experts.part(t * chosen, chosen)) };
            softmax(logits, &mut scores);
            for j in 0..chosen {
                let free = (0..count).filter(|e| !experts[..j].contains(&(*e as i32)));
                let beats = |a: usize, b: usize| if lowest { logits[a] < logits[b] } else { logits[a] > logits[b] };
                let best = free.reduce(|best, e| if beats(e, best) { e } else { best }).unwrap_or(0);
                (experts[j], weights[j]) = (best as i32, scores[best]);
            }
            let divisor = divisor(normalize, weights.iter().copied());
            weights.iter_mut().for_each(|w| *w /= divisor);
        }
    });
}

/// The backward of [`Route`]: logits `[T, E]`, the chosen experts i32 `[T, chosen]`, the gradient of their weights → dlogits.
/// Which experts are chosen is constant almost everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteGrad {
    pub normalize: bool,
}

impl Op for RouteGrad {
    fn name(&self) -> &'static str {
        "route_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 3)?;
        let chosen = inputs[2].cols();
        let [tokens, _] = dims(self.name(), inputs[0], chosen)?;
        expect_i32(self.name(), "experts", inputs[1], &[tokens, chosen])?;
        expect_shape(self.name(), "the gradient of the weights", inputs[2], &[tokens, chosen])?;
        Ok(vec![inputs[0].clone()])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 11 * io.out_elements(), bytes: io.bytes() }
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let sizes = [io.inputs[0].rows(), io.inputs[0].cols(), io.inputs[2].cols()];
        Ok(vec![match target {
            Target::Cuda(_) => {
                let args = [Arg::Input(0), Arg::Input(1), Arg::Input(2), Arg::Output(0)];
                let kernel = Ptx::new(self.name(), ptx!("route_grad"), DType::F32);
                by_group(kernel, sizes, args)?.scalar(self.normalize)
            }
            Target::Cpu => Launch::cpu(self.name(), grad_kernel, 3, 1).scalars(sizes).scalar(self.normalize),
            Target::Wgpu(target) => {
                let shader = Shader::new(self.name(), wgsl!("route_grad")).flag("NORMALIZE", self.normalize);
                by_token(shader, target, sizes, [Arg::Input(0), Arg::Input(1), Arg::Input(2), Arg::Output(0)])
            }
        }])
    }
}

fn grad_kernel(args: &Args) {
    let [tokens, count, chosen] = [0, 1, 2].map(|i| args.int(i));
    let normalize = args.flag(3);
    let (logits, experts, dweights) = (args.slice::<f32>(0), args.slice::<i32>(1), args.slice::<f32>(2));
    let out = Ptr::new(args.slice_mut::<f32>(3));
    ranges(tokens, 1, |start, end| {
        let mut scores = Vec::with_capacity(count);
        for t in start..end {
            // SAFETY: one token's places.
            let out = unsafe { out.part(t * count, count) };
            softmax(&logits[t * count..][..count], &mut scores);
            let pairs = || {
                let of = |(e, dw): (&i32, &f32)| Some((usize::try_from(*e).ok().filter(|e| *e < count)?, *dw));
                experts[t * chosen..][..chosen].iter().zip(&dweights[t * chosen..][..chosen]).filter_map(of)
            };
            let divisor = divisor(normalize, pairs().map(|(e, _)| scores[e]));
            // What every chosen weight loses where another one's score grows.
            let lost = if normalize { pairs().map(|(e, dw)| dw * scores[e] / divisor).sum::<f32>() } else { 0.0 };
            let dscore = |dw: f32| (dw - lost) / divisor;
            let dot: f32 = pairs().map(|(e, dw)| dscore(dw) * scores[e]).sum();
            out.iter_mut().zip(&scores).for_each(|(o, s)| *o = -s * dot);
            pairs().for_each(|(e, dw)| out[e] += scores[e] * dscore(dw));
        }
    });
}
