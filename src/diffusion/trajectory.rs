//! What a sampler produces: an explicit list of steps over named registers, with every coefficient worked out.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use super::expr::Expr;
use super::levels::Level;
use super::reflection::leg;
use crate::{Error, Result};

/// A model on the host: from leg, scaled latents and time to its answer.
pub type Denoiser<'a> = dyn FnMut(usize, &[f64], f64) -> Vec<f64> + 'a;

/// Noise on the host: from the number of the draw and a length to that many values.
pub type Noise<'a> = dyn FnMut(u32, usize) -> Vec<f64> + 'a;

/// The most terms an [`Stage::Update`] may have.
pub const MAX_TERMS: usize = 6;

/// A register of the sampler's state: a tensor of the latents' shape living on the device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Reg(pub &'static str);

impl Reg {
    /// The latents.
    pub const X: Reg = Reg("x");
    /// What the model answered.
    pub const OUT: Reg = Reg("out");
    /// The denoised latents that follow from the answer.
    pub const X0: Reg = Reg("x0");
    /// Denoised latents of one step ago.
    pub const X0_PREV: Reg = Reg("x0_prev");
    /// Denoised latents of two steps ago.
    pub const X0_PREV2: Reg = Reg("x0_prev2");
    /// Denoised latents of three steps ago.
    pub const X0_PREV3: Reg = Reg("x0_prev3");
    /// Latents after a trial step (Heun).
    pub const X_HAT: Reg = Reg("x_hat");
    /// What the model answered at `x_hat`.
    pub const OUT_HAT: Reg = Reg("out_hat");
    /// Denoised latents at `x_hat`.
    pub const X0_HAT: Reg = Reg("x0_hat");
    /// Corrected latents the current step started from (UniPC).
    pub const X_LAST: Reg = Reg("x_last");
    /// Fresh Gaussian noise.
    pub const NOISE: Reg = Reg("noise");
}

impl fmt::Display for Reg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// `out = model_leg(scale * x, time)`: one call of the model.
    Query {
        /// Which model, weights and guidance to ask; 0 is the main one.
        leg: usize,
        /// The latents to ask about.
        x: Reg,
        /// Where the answer goes.
        out: Reg,
        /// What the model is told: a timestep (VP, flow; it may have a fraction) or sigma (EDM).
        time: f64,
        /// What the latents are multiplied by on their way in.
        scale: f64,
    },
    /// `to = sum_i coefficient_i * register_i`, all right-hand sides read before `to` is written.
    Update {
        /// Where the sum goes; it may be one of the terms.
        to: Reg,
        /// At most [`MAX_TERMS`] registers, each once.
        terms: Vec<(Reg, f64)>,
        /// Clamp the sum to `[-clip, clip]`.
        clip: Option<f64>,
    },
    /// `to ~ N(0, I)`, a stream of its own for each draw.
    Noise {
        /// Where the noise goes.
        to: Reg,
        /// The number of the draw, counted from 0 through the trajectory.
        draw: u32,
    },
}

impl Stage {
    /// Asks leg 0 about the latents in `x`, which lie at `level`.
    pub fn query(level: Level, x: Reg, out: Reg) -> Stage {
        Stage::Query { leg: 0, x, out, time: level.time, scale: level.scale }
    }

    /// `to = expr`.
    pub fn update(to: Reg, expr: impl Into<Expr>) -> Stage {
        Stage::Update { to, terms: expr.into().into_terms(), clip: None }
    }

    /// `to = expr`, clamped to `[-clip, clip]` if there is a `clip`.
    pub fn clipped(to: Reg, expr: impl Into<Expr>, clip: Option<f64>) -> Stage {
        Stage::Update { to, terms: expr.into().into_terms(), clip }
    }

    /// `noise ~ N(0, I)`, the draw named after the step it is drawn in.
    pub fn noise(step: usize) -> Stage {
        Stage::Noise { to: Reg::NOISE, draw: u32::try_from(step).unwrap_or(u32::MAX) }
    }

    /// Whether the two do the same to the same registers, numbers aside.
    pub fn same_shape(&self, other: &Stage) -> bool {
        match (self, other) {
            (Stage::Query { leg, x, out, .. }, Stage::Query { leg: leg2, x: x2, out: out2, .. }) => {
                (leg, x, out) == (leg2, x2, out2)
            }
            (Stage::Update { to, terms, clip }, Stage::Update { to: to2, terms: terms2, clip: clip2 }) => {
                to == to2
                    && clip.is_some() == clip2.is_some()
                    && terms.iter().map(|term| term.0).eq(terms2.iter().map(|term| term.0))
            }
            (Stage::Noise { to, .. }, Stage::Noise { to: to2, .. }) => to == to2,
            _ => false,
        }
    }

    /// The numbers in the stage, in the order of its fields: `[time, scale]`, `[coefficients.., clip?]`, or `[draw]`.
    pub fn numbers(&self) -> Vec<f64> {
        match self {
            Stage::Query { time, scale, .. } => vec![*time, *scale],
            Stage::Update { terms, clip, .. } => terms.iter().map(|term| term.1).chain(*clip).collect(),
            Stage::Noise { draw, .. } => vec![f64::from(*draw)],
        }
    }

    /// The registers that the stage reads.
    pub fn reads(&self) -> Vec<Reg> {
        match self {
            Stage::Query { x, .. } => vec![*x],
            Stage::Update { terms, .. } => terms.iter().map(|term| term.0).collect(),
            Stage::Noise { .. } => vec![],
        }
    }

    /// The register that the stage writes.
    pub fn writes(&self) -> Reg {
        match self {
            Stage::Query { out: to, .. } | Stage::Update { to, .. } | Stage::Noise { to, .. } => *to,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stage::Query { leg, x, out, time, scale } => write!(f, "{out} = model{leg}({scale:.6} {x}, {time:.4})"),
            Stage::Noise { to, draw } => write!(f, "{to} ~ N(0, I) #{draw}"),
            Stage::Update { to, terms, clip } => {
                write!(f, "{to} =")?;
                for (reg, coefficient) in terms {
                    write!(f, " {coefficient:+.6} {reg}")?;
                }
                clip.map_or(Ok(()), |clip| write!(f, ", clipped to ±{clip}"))
            }
        }
    }
}

/// One step of a sampler, from one noise level to the next.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What to do, in order.
    pub stages: Vec<Stage>,
    /// False where the guidance interval leaves this step out, so that the conditional answer is used as it is.
    pub guided: bool,
    /// Noise-to-signal ratios `sigma / alpha` that the step leads from and to; for reports. Infinite at pure noise.
    pub level: (f64, f64),
}

impl Step {
    /// Whether the two steps do the same to the same registers, numbers aside.
    pub fn same_shape(&self, other: &Step) -> bool {
        self.guided == other.guided
            && self.stages.len() == other.stages.len()
            && self.stages.iter().zip(&other.stages).all(|(a, b)| a.same_shape(b))
    }

    /// All numbers of the step, stage by stage: its row in a table of coefficients.
    /// Rows of steps of the same shape have the same length.
    pub fn numbers(&self) -> Vec<f64> {
        self.stages.iter().flat_map(Stage::numbers).collect()
    }

    /// Whether a reflection stands before the ordinary step.
    pub fn reflects(&self) -> bool {
        self.stages.iter().any(|stage| matches!(stage, Stage::Query { leg: leg::STRONG, .. }))
    }

    /// How often the step calls the model.
    pub fn nfe(&self) -> usize {
        self.stages.iter().filter(|stage| matches!(stage, Stage::Query { .. })).count()
    }
}

/// A sampler's whole way from noise to latents.
///
/// Contract with whoever runs it: register `x` starts as `init_scale` times noise of unit variance, **all others start
/// as zeros** (a multistep sampler reads its still empty history with coefficient 0), and the result is in `out`.
#[derive(Clone, Debug, PartialEq)]
pub struct Trajectory {
    /// The standard deviation of the first `x`.
    pub init_scale: f64,
    /// The steps, noisiest first.
    pub steps: Vec<Step>,
    /// The register that holds the result.
    pub out: Reg,
    /// Registers that the host reads between steps, besides `x` and the result.
    pub kept: Vec<Reg>,
}

impl Trajectory {
    /// Number of function evaluations: how often the model is called. A guided call counts once.
    pub fn nfe(&self) -> usize {
        self.steps.iter().map(Step::nfe).sum()
    }

    /// All registers, sorted by name.
    pub fn registers(&self) -> Vec<Reg> {
        let stages = self.steps.iter().flat_map(|step| &step.stages);
        let mut registers: Vec<Reg> =
            stages.flat_map(|stage| stage.reads().into_iter().chain([stage.writes()])).collect();
        registers.extend([Reg::X, self.out]);
        registers.sort();
        registers.dedup();
        registers
    }

    /// Maximal runs of consecutive steps of the same shape; each can be one loop over a table of coefficients.
    pub fn groups(&self) -> Vec<Range<usize>> {
        let mut groups: Vec<Range<usize>> = Vec::new();
        for (i, step) in self.steps.iter().enumerate() {
            match groups.last_mut() {
                Some(group) if self.steps[group.start].same_shape(step) => group.end = i + 1,
                _ => groups.push(i..i + 1),
            }
        }
        groups
    }

    /// Runs the trajectory on the host in f64.
    ///
    /// `latents` is noise of unit variance; `denoiser(leg, scaled_x, time)` is the model; `noise(draw, len)` gives the
    /// noise of a draw.
    ///
    /// # Errors
    /// [`Error::Shape`] if `denoiser` or `noise` answers with another length than that of `latents`.
    pub fn simulate(&self, latents: &[f64], denoiser: &mut Denoiser, noise: &mut Noise) -> Result<Vec<f64>> {
        let len = latents.len();
        let mut registers: HashMap<Reg, Vec<f64>> =
            self.registers().into_iter().map(|reg| (reg, vec![0.0; len])).collect();
        registers.insert(Reg::X, latents.iter().map(|z| self.init_scale * z).collect());
        for stage in self.steps.iter().flat_map(|step| &step.stages) {
            let value = match stage {
                Stage::Query { leg, x, time, scale, .. } => {
                    let scaled: Vec<f64> = registers[x].iter().map(|x| scale * x).collect();
                    denoiser(*leg, &scaled, *time)
                }
                Stage::Update { terms, clip, .. } => (0..len)
                    .map(|i| terms.iter().map(|(reg, coefficient)| coefficient * registers[reg][i]).sum::<f64>())
                    .map(|sum| clip.map_or(sum, |clip| sum.clamp(-clip, clip)))
                    .collect(),
                Stage::Noise { draw, .. } => noise(*draw, len),
            };
            if value.len() != len {
                let reason = format!("{} values for `{}`, the latents have {len}", value.len(), stage.writes());
                return Err(Error::shape("simulate", reason));
            }
            registers.insert(stage.writes(), value);
        }
        Ok(registers.remove(&self.out).unwrap_or_default())
    }

    /// Checks what every sampler promises: finite numbers and few enough terms.
    pub(super) fn verified(self) -> Result<Trajectory> {
        for (i, step) in self.steps.iter().enumerate() {
            if let Some(number) = step.numbers().into_iter().find(|number| !number.is_finite()) {
                let reason = format!("step {i} would need the coefficient {number}: the noise levels are too extreme");
                return Err(Error::invalid("sampler", reason));
            }
            let terms = |stage: &Stage| matches!(stage, Stage::Update { terms, .. } if terms.len() > MAX_TERMS);
            if step.stages.iter().any(terms) {
                return Err(Error::Verify { pass: "sampler", reason: format!("step {i} has too many terms") });
            }
        }
        Ok(self)
    }
}

impl fmt::Display for Trajectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "x = {:.6} N(0, I)", self.init_scale)?;
        for (i, step) in self.steps.iter().enumerate() {
            let unguided = if step.guided { "" } else { ", unguided" };
            writeln!(f, "step {i}: sigma {:.6} to {:.6}{unguided}", step.level.0, step.level.1)?;
            for stage in &step.stages {
                writeln!(f, "  {stage}")?;
            }
        }
        write!(f, "result in {}, {} model calls", self.out, self.nfe())
    }
}
