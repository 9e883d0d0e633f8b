//! EDM's preconditioning coefficients.

use super::{expect_inputs, expect_shape};
use crate::graph::{
    Arg, Args, Cost, FLAT_THREADS, Graph, Launch, Node, Op, Ptx, Shader, Signature, Target, Value, ptx, wgsl,
};
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};

/// σ `[B]` → c_skip, c_out, c_in, c_noise, each `[B]`; with s = sigma_data:
///   c_skip = s²/(σ² + s²)   c_out = σ·s/√(σ² + s²)   c_in = 1/√(σ² + s²)   c_noise = ln(σ)/4
/// (Karras et al. 2022, table 1), formed in f64.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EdmCoefficients {
    pub sigma_data: f32,
}

impl Op for EdmCoefficients {
    fn name(&self) -> &'static str {
        "edm_coefficients"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        expect_inputs(self.name(), inputs, 1)?;
        let [samples] = inputs[0].shape[..] else {
            return Err(Error::shape(self.name(), format!("sigma must be [B], is {}", inputs[0])));
        };
        expect_shape(self.name(), "sigma", inputs[0], &[samples])?;
        Ok(vec![inputs[0].clone(); 4])
    }

    fn cost(&self, io: &Signature) -> Cost {
        Cost { flops: 40 * io.out_elements(), bytes: io.bytes() }
    }

    /// Noise levels are data: nothing flows back.
    fn grad(&self, _: &mut Graph, _: &Node, _: &[Option<Value>], _: &[bool]) -> Result<Vec<Option<Value>>> {
        Ok(vec![None])
    }

    fn lower(&self, io: &Signature, target: &Target) -> Result<Vec<Launch>> {
        Ok(vec![match target {
            Target::Cuda(_) => {
                let (kernel, n) =
                    (Ptx::new(self.name(), ptx!("edm_coefficients"), DType::F32), io.inputs[0].elements());
                let args = [Arg::Input(0)].into_iter().chain((0..4).map(Arg::Output));
                let blocks = n.div_ceil(FLAT_THREADS).max(1);
                Launch::ptx(kernel, [blocks, 1, 1], FLAT_THREADS, args).scalar(n).scalar(self.sigma_data)
            }
            Target::Cpu => Launch::cpu(self.name(), kernel, 1, 4).scalar(self.sigma_data),
            Target::Wgpu(target) => {
                let (shader, n) = (Shader::new(self.name(), wgsl!("edm_coefficients")), io.inputs[0].elements());
                let args = [Arg::Input(0)].into_iter().chain((0..4).map(Arg::Output));
                let launch = Launch::wgsl(shader, target.grid(n.div_ceil(64)), args);
                launch.scalar(n).scalar(self.sigma_data).anywhere([0])
            }
        }])
    }
}

fn kernel(args: &Args) {
    let data = args.float(0) as f64;
    let sigma = args.slice::<f32>(0);
    let [skip, out, input, noise] = [1, 2, 3, 4].map(|i| args.slice_mut::<f32>(i));
    for (i, sigma) in sigma.iter().enumerate() {
        let sigma = *sigma as f64;
        let variance = sigma * sigma + data * data;
        skip[i] = (data * data / variance) as f32;
        out[i] = (sigma * data / variance.sqrt()) as f32;
        input[i] = (1.0 / variance.sqrt()) as f32;
        noise[i] = (sigma.ln() / 4.0) as f32;
    }
}
