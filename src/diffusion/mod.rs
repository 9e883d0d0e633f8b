//! Samplers as data: a pure function from a configuration to a list of steps with explicit coefficients.
//!
//! Everything here is f64 arithmetic on the host; nothing knows of graphs or devices. Latents at a noise
//! [`Level`] are `x = alpha x0 + sigma eps`. A model is asked about them and its answer, whatever it
//! [predicts](Prediction), yields estimates of `x0` and `eps` that are linear in latents and answer. So each
//! [`Step`] of a sampler is a few model calls and a few linear combinations of registers, and only their coefficients
//! change from step to step: the bulk of a [`Trajectory`] is one loop over a table.
//!
//! ```
//! use langevin::diffusion::{Options, SamplerConfig, SamplerKind, trajectory};
//!
//! let ddim = SamplerConfig::ddpm_linear(SamplerKind::Ddim)?;
//! let trajectory = trajectory(SamplerKind::Ddim, &ddim, 10, &Options::default())?;
//! assert_eq!((trajectory.nfe(), trajectory.groups().len()), (10, 1));
//!
//! // The best noise predictor for data that are all 0.5: the sampler finds them.
//! let alpha_bar = |t: f64| (0..=t as usize).map(|t| 0.9999 - 0.0199 * t as f64 / 999.0).product::<f64>();
//! let mut model = |_leg: usize, x: &[f64], t: f64| {
//!     x.iter().map(|x| (x - 0.5 * alpha_bar(t).sqrt()) / (1.0 - alpha_bar(t)).sqrt()).collect()
//! };
//! let image = trajectory.simulate(&[1.0, -0.3], &mut model, &mut |_draw, len| vec![0.0; len])?;
//! assert!(image.iter().all(|pixel| (pixel - 0.5).abs() < 1e-9));
//! # Ok::<(), langevin::Error>(())
//! ```

pub mod config;
pub mod expr;
pub mod guidance;
pub mod levels;
pub mod objective;
pub mod precond;
pub mod reflection;
pub mod samplers;
pub mod schedule;
pub mod scheduler_config;
pub mod trajectory;

pub use config::{
    Churn, DdimTarget, DpmTerm, FinalSigma, Options, SamplerConfig, SamplerKind, SigmaGrid, Solver, Space, UniPcB,
    Variance,
};
pub use expr::Expr;
pub use guidance::{Guidance, Interval};
pub use levels::{Ladder, Level, Rung, ladder};
pub use objective::{FlowTimes, Levels, NoiseLevel, Objective, Weighting};
pub use precond::{EdmPrecond, Linear, Prediction};
pub use reflection::{Back, QueryTime, ReflectLevels, Reflection};
pub use samplers::trajectory;
pub use schedule::{Betas, Spacing, VpSchedule};
pub use trajectory::{Reg, Stage, Step, Trajectory};
