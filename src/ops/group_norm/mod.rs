//! Group normalisation over channels-last tensors, with an activation and a modulation by sample.

mod cpu;
mod cuda;
mod wgpu;

use super::norm::{self, Chunks, expect_parameters, parameter_count};
use super::{Activation, expect_inputs, expect_real, expect_shape, expect_typed};
use crate::graph::{Arg, Cost, Graph, Launch, Node, Op, Shader, Signature, Target, Value, wgsl_with_sums};
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// y = act(n·gamma + beta), or with `modulate` act((n·gamma + beta)·(1 + scale) + shift), where n = (x − mean)·rstd and
/// mean, rstd = 1/√(variance + eps) are those of each sample's group of C/groups neighbouring channels (Wu & He 2018).
/// x `[B, …, C]`, gamma `[C]`, beta `[C]` (scale `[B, C]`, shift `[B, C]`) → y like x, stats `[B, groups, 2]`: mean, rstd
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNorm {
    pub groups: usize,
    pub eps: f32,
    pub activation: Activation,
    pub modulate: bool,
}

impl GroupNorm {
    fn inputs(&self) -> usize {
        1 + parameter_count(true, self.modulate)
    }

    /// Checks x and the parameters; the type of the statistics.
    fn check(&self, op: &str, inputs: &[&TensorType]) -> Result<TensorType> {
        let x = inputs[0];
        expect_real(op, "x", x)?;
        if x.shape.len() < 2 || x.cols() == 0 || self.groups == 0 || !x.cols().is_multiple_of(self.groups) {
            return Err(Error::shape(
                op,
                format!("x must be [B, .., C], C a multiple of {} groups, is {x}", self.groups),
            ));
        }
        expect_parameters(op, inputs, true, self.modulate, None)?;
        Ok(TensorType::f32([x.shape[0], self.groups, 2]))
    }

    fn chunks(&self, x: &TensorType) -> Chunks {
        let samples = x.shape[0];
        Chunks::new(samples, x.rows() / samples.max(1), x.cols())
    }

    /// FLOPs of the activation (or its derivative) an element.
    fn activation_flops(&self) -> u64 {
        if self.activation == Activation::Identity { 0 } else { 8 }
    }

    fn scalars(&self, launch: Launch, c: &Chunks) -> Launch {
        let launch = launch.scalars([c.samples, c.rows, c.channels, self.groups, self.activation as usize]);
        launch.scalar(self.modulate).scalar(self.eps)
    }
}

impl Op for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, self.inputs())?;
        let stats = self.check(self.name(), inputs)?;
        Ok(vec![inputs[0].clone(), stats])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: io.out_elements() * (7 + self.activation_flops()), bytes: io.bytes() }
    }

    fn grad(&self, g: &mut Graph, node: &Node, dy: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        let Some(dy) = dy[0] else { return Ok(vec![None; node.inputs.len()]) };
        let inputs = [&node.inputs[..], &[node.outputs[1], dy]].concat();
        Ok(g.apply_all(GroupNormGrad(*self), &inputs)?.into_iter().map(Some).collect())
    }

    fn takes(&self, dtype: DType, target: &Target) -> bool {
        target.stores(dtype)
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let c = self.chunks(&io.inputs[0]);
        if let Target::Wgpu(target) = target
            && let Some(rows) = self.stretch(target, io.inputs[0].dtype, &c)
        {
            return Ok(self.large(target, io.inputs[0].dtype, &c, rows));
        }
        if let Target::Wgpu(target) = target
            && let Some(launch) = self.held(target, io.inputs[0].dtype, &c)
        {
            return Ok(vec![launch]);
        }
        if let Target::Wgpu(target) = target
            && !target.software
            && c.channels.is_multiple_of(4)
            && self.spreads(&c)
        {
            return Ok(self.spread(target, io.inputs[0].dtype, &c));
        }
        Ok(vec![match target {
            Target::Cuda(target) => return Ok(self.kernels(target, io.inputs[0].dtype, &c)),
            Target::Cpu => {
                // Mean and squared deviations of every group of every chunk in f64; three coefficients a channel.
                let launch = Launch::cpu(self.name(), cpu::forward, self.inputs(), 2)
                    .with_scratch(4 * c.samples * c.count * self.groups)
                    .with_scratch(3 * c.samples * c.channels);
                self.scalars(launch, &c)
            }
            Target::Wgpu(target) => {
                let text = wgsl_with_sums!(target, io.inputs[0].dtype; "lib/activation", "group_norm");
                let shader = Shader::new(self.name(), text)
                    .entry(if (c.channels / self.groups).is_multiple_of(4) { "quads" } else { "main" })
                    .flag("MODULATE", self.modulate)
                    .constant("ACTIVATION", self.activation as u32)
                    // Barriers among few invocations are cheap for a processor.
                    .constant("REDUCE_LANES", if target.software { 8 } else { 256 });
                let modulation = if self.modulate { [3, 4] } else { [0, 0] };
                let inputs = [0, 1, 2].into_iter().chain(modulation).map(Arg::Input);
                let groups = c.samples * self.groups;
                Launch::wgsl(shader, target.grid(groups), inputs.chain([Arg::Output(0), Arg::Output(1)]))
                    .scalars([c.rows, c.channels, self.groups, groups])
                    .scalar(self.eps)
            }
        }])
    }
}

/// The backward of [`GroupNorm`]: its inputs, its stats, dy → the gradients of its inputs, in their order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNormGrad(pub GroupNorm);

impl Op for GroupNormGrad {
    fn name(&self) -> &'static str {
        "group_norm_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let n = self.0.inputs();
        expect_inputs(self.name(), inputs, n + 2)?;
        let stats = self.0.check(self.name(), inputs)?;
        expect_shape(self.name(), "stats", inputs[n], &stats.shape)?;
        expect_typed(self.name(), "dy", inputs[n + 1], inputs[0].dtype, &inputs[0].shape)?;
        Ok(norm::gradient_types(&inputs[..n], true))
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: io.out_elements() * (13 + self.0.activation_flops()), bytes: io.bytes() }
    }

    fn takes(&self, _: DType, target: &Target) -> bool {
        matches!(target, Target::Cuda(_))
    }

    fn stays_f32(&self, input: usize) -> bool {
        input == self.0.inputs()
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        let c = self.0.chunks(&io.inputs[0]);
        let n = self.0.inputs();
        if let Target::Cuda(target) = target {
            return Ok(self.kernels(target, io.inputs[0].dtype, &c));
        }
        if let Target::Wgpu(target) = target {
            return Ok(self.shaders(target, &c));
        }
        // Two sums a channel: of every chunk, of every sample; five coefficients a channel.
        let launch = Launch::cpu(self.name(), cpu::backward, n + 2, n)
            .with_scratch(2 * c.samples * c.count * c.channels)
            .with_scratch(2 * c.samples * c.channels)
            .with_scratch(5 * c.samples * c.channels);
        Ok(vec![self.0.scalars(launch, &c)])
    }
}
