//! Reads diffusers' `scheduler_config.json`.
//!
//! The sampler is chosen by name, not by the file: any scheduler's file configures any sampler, as far as the diffusers
//! class *of that sampler* knows the keys, and a key that is absent means that class's default (diffusers 0.42).
//!
//! | sampler | class | defaults that differ |
//! |---|---|---|
//! | `ddim`, `ddpm` | DDIMScheduler, DDPMScheduler | `clip_sample` true, `timestep_spacing` leading |
//! | `euler`, `euler-a` | Euler(Ancestral)DiscreteScheduler | |
//! | `heun` | HeunDiscreteScheduler | betas 0.00085 to 0.012 |
//! | `dpmpp-2m`, `dpmpp-2m-sde` | DPMSolverMultistepScheduler | |
//! | `unipc` | UniPCMultistepScheduler | |
//!
//! `_class_name` matters in two cases: FlowMatchEulerDiscreteScheduler means a flow-matching model, and EDM*Scheduler
//! an EDM-preconditioned one. Keys that are not known are ignored; a known one whose value cannot be honoured is an
//! error.
//!
//! DDIM's steps lead where that class leads them, also where that is not the next timestep visited
//! ([`DdimTarget::Stride`]); [`SamplerConfig::new`] has the consistent choice.
//!
//! Where langevin goes another way than the diffusers classes:
//!
//! * Schedules are computed in f64. (diffusers keeps betas and sigmas in float32, which moves results by up to 1e-5.)
//! * A single step with linspace spacing starts at `T - 1`, not at 0, where there is nothing to denoise.
//! * Trailing spacing yields `n` timesteps for every `n`; for some, float rounding makes diffusers append timestep -1.
//! * DDPM's last step adds no noise, whatever its timestep.
//! * Multistep solvers round the timesteps of Karras and exponential grids (diffusers truncates some), pass on those of
//!   flow matching as they are, and make any step to zero noise one of first order (diffusers' UniPC can yield NaN).
//! * Churn raises the level before the model is asked, and the model is told the raised level.
//! * Any prediction type works with any sampler, and zero terminal SNR with `heun` too.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::config::{DdimTarget, DpmTerm, FinalSigma, SamplerConfig, SamplerKind, SigmaGrid, Space, UniPcB, Variance};
use super::precond::Prediction;
use super::schedule::{Betas, Spacing, VpSchedule};
use crate::{Error, Result};

impl SamplerConfig {
    /// Sampler `kind`'s settings from the text of a `scheduler_config.json`; `path` is for error messages.
    ///
    /// # Errors
    /// [`Error::Format`] if `text` is not a JSON object; [`Error::Config`] naming the key whose value is of the wrong
    /// type, out of range or not supported.
    ///
    /// ```
    /// use langevin::diffusion::{SamplerConfig, SamplerKind, Spacing};
    /// let text = r#"{"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}"#;
    /// let config = SamplerConfig::from_json(SamplerKind::Ddim, text, "scheduler_config.json")?;
    /// assert_eq!((config.spacing, config.steps_offset, config.clip), (Spacing::Leading, 1, Some(1.0)));
    /// # Ok::<(), langevin::Error>(())
    /// ```
    pub fn from_json(kind: SamplerKind, text: &str, path: impl AsRef<Path>) -> Result<SamplerConfig> {
        let path = path.as_ref();
        let value: Value =
            serde_json::from_str(&quote_non_finite(text)).map_err(|error| Error::format(path, error.to_string()))?;
        let Value::Object(map) = value else {
            return Err(Error::format(path, "not a JSON object"));
        };
        let fields = Fields { path: path.to_owned(), map };
        let mut config = read(kind, &fields).map_err(|error| match error {
            Error::Invalid { option, reason } => Error::config(path, option, reason),
            Error::Unsupported { what, reason } => Error::config(path, what, format!("not supported: {reason}")),
            other => other,
        })?;
        if kind == SamplerKind::Ddim {
            config.ddim_target = DdimTarget::Stride;
        }
        Ok(config)
    }
}

/// Python writes `-Infinity`, `Infinity` and `NaN` into JSON, which has no such numbers: makes strings of them.
fn quote_non_finite(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 16);
    let mut rest = text;
    let mut in_string = false;
    while let Some(next) = rest.chars().next() {
        let word = ["-Infinity", "Infinity", "NaN"].into_iter().find(|word| !in_string && rest.starts_with(word));
        let taken = match word {
            Some(word) => {
                quoted.extend(["\"", word, "\""]);
                word.len()
            }
            None => {
                // A backslash takes the character after it along.
                let escaped = if in_string && next == '\\' { rest.chars().nth(1).map_or(0, char::len_utf8) } else { 0 };
                in_string ^= next == '"';
                let taken = next.len_utf8() + escaped;
                quoted.push_str(&rest[..taken]);
                taken
            }
        };
        rest = &rest[taken..];
    }
    quoted
}

/// The file's keys.
struct Fields {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Fields {
    /// The value of `key`, if it is there and not null.
    fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value).map(Some).map_err(|error| self.error(key, error.to_string())),
        }
    }

    fn or<T: DeserializeOwned>(&self, key: &str, default: T) -> Result<T> {
        Ok(self.get(key)?.unwrap_or(default))
    }

    fn string(&self, key: &str, default: &str) -> Result<String> {
        self.or(key, default.to_owned())
    }

    fn error(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::config(&self.path, key, reason)
    }

    /// What to say of a value that is none of those known.
    fn unknown(&self, key: &str, value: &str, known: &str) -> Error {
        self.error(key, format!("`{value}` is not supported, only {known}"))
    }

    /// An error if one of these flags is set.
    fn refuse(&self, keys: &[&str]) -> Result<()> {
        for key in keys {
            if self.or(key, false)? {
                return Err(self.error(key, "true is not supported"));
            }
        }
        Ok(())
    }
}

fn read(kind: SamplerKind, fields: &Fields) -> Result<SamplerConfig> {
    fields.refuse(&["thresholding", "use_beta_sigmas", "use_lu_lambdas", "use_dynamic_shifting"])?;
    let class = fields.string("_class_name", "")?;
    let mut config = if class.starts_with("FlowMatch") {
        flow(kind, fields, "shift")?
    } else if class.starts_with("EDM") {
        edm(kind, fields)?
    } else if is_multistep(kind) && fields.or("use_flow_sigmas", false)? {
        flow(kind, fields, "flow_shift")?
    } else {
        vp(kind, fields)?
    };
    match kind {
        SamplerKind::Ddim => {
            config.clip = clip(fields, true)?;
            config.set_alpha_to_one = fields.or("set_alpha_to_one", true)?;
        }
        SamplerKind::Ddpm => {
            config.clip = clip(fields, true)?;
            config.variance = variance(fields)?;
        }
        SamplerKind::Euler => euler(&mut config, fields)?,
        SamplerKind::EulerA => {}
        SamplerKind::Heun => {
            config.clip = clip(fields, false)?;
            config.sigma_grid = sigma_grid(fields)?;
        }
        SamplerKind::Dpmpp2m | SamplerKind::Dpmpp2mSde => dpmpp(&mut config, fields)?,
        SamplerKind::UniPc => unipc(&mut config, fields)?,
    }
    if !matches!(config.space, Space::Vp(_)) {
        config.clip = config.clip.filter(|_| fields.map.contains_key("clip_sample"));
    }
    config.validate(kind)?;
    Ok(config)
}

fn is_multistep(kind: SamplerKind) -> bool {
    matches!(kind, SamplerKind::Dpmpp2m | SamplerKind::Dpmpp2mSde | SamplerKind::UniPc)
}

fn vp(kind: SamplerKind, fields: &Fields) -> Result<SamplerConfig> {
    let prediction = fields.string("prediction_type", "epsilon")?.parse()?;
    let num_train_timesteps = fields.or("num_train_timesteps", 1000)?;
    let rescale = fields.or("rescale_betas_zero_snr", false)?;
    let schedule = VpSchedule::new(&betas(kind, fields)?, num_train_timesteps, rescale)?;
    let mut config = SamplerConfig::new(kind, Space::Vp(schedule), prediction);
    if let Some(spacing) = fields.get::<String>("timestep_spacing")? {
        config.spacing = spacing.parse::<Spacing>()?;
    }
    config.steps_offset = fields.or("steps_offset", 0)?;
    if config.steps_offset >= num_train_timesteps {
        return Err(fields.error("steps_offset", format!("{} leads out of the schedule", config.steps_offset)));
    }
    Ok(config)
}

fn betas(kind: SamplerKind, fields: &Fields) -> Result<Betas> {
    if let Some(betas) = fields.get("trained_betas")? {
        return Ok(Betas::Explicit(betas));
    }
    let (start, end) = if kind == SamplerKind::Heun { (0.00085, 0.012) } else { (1e-4, 0.02) };
    let (start, end) = (fields.or("beta_start", start)?, fields.or("beta_end", end)?);
    let name = fields.string("beta_schedule", "linear")?;
    match name.as_str() {
        "linear" => Ok(Betas::Linear { start, end }),
        "scaled_linear" => Ok(Betas::ScaledLinear { start, end }),
        "squaredcos_cap_v2" => Ok(Betas::SquaredCosine),
        "sigmoid" => Ok(Betas::Sigmoid { start, end }),
        _ => Err(fields.unknown("beta_schedule", &name, "linear, scaled_linear, squaredcos_cap_v2, sigmoid")),
    }
}

fn edm(kind: SamplerKind, fields: &Fields) -> Result<SamplerConfig> {
    let space = Space::Edm {
        sigma_min: fields.or("sigma_min", 0.002)?,
        sigma_max: fields.or("sigma_max", 80.0)?,
        rho: fields.or("rho", 7.0)?,
    };
    // The network preconditions itself and answers denoised latents, whatever it predicts inside.
    let mut config = SamplerConfig::new(kind, space, Prediction::Sample);
    if fields.string("sigma_schedule", "karras")? == "exponential" {
        config.sigma_grid = SigmaGrid::Exponential;
    }
    Ok(config)
}

fn flow(kind: SamplerKind, fields: &Fields, shift: &str) -> Result<SamplerConfig> {
    fields.refuse(&["invert_sigmas", "stochastic_sampling", "use_karras_sigmas", "use_exponential_sigmas"])?;
    if fields.get::<f64>("shift_terminal")?.is_some() {
        return Err(fields.error("shift_terminal", "is not supported"));
    }
    let num_train_timesteps = fields.or("num_train_timesteps", 1000)?;
    let space = Space::Flow { shift: fields.or(shift, 1.0)?, num_train_timesteps };
    let prediction = fields.string("prediction_type", "flow_prediction")?.parse()?;
    Ok(SamplerConfig::new(kind, space, prediction))
}

fn clip(fields: &Fields, default: bool) -> Result<Option<f64>> {
    let range = fields.or("clip_sample_range", 1.0)?;
    Ok(fields.or("clip_sample", default)?.then_some(range))
}

fn variance(fields: &Fields) -> Result<Variance> {
    let name = fields.string("variance_type", "fixed_small")?;
    match name.as_str() {
        "fixed_small" | "fixed_small_log" => Ok(Variance::FixedSmall),
        "fixed_large" => Ok(Variance::FixedLarge),
        _ => Err(fields.unknown("variance_type", &name, "fixed_small, fixed_small_log, fixed_large")),
    }
}

fn euler(config: &mut SamplerConfig, fields: &Fields) -> Result<()> {
    for (key, known) in [("interpolation_type", "linear"), ("timestep_type", "discrete")] {
        let name = fields.string(key, known)?;
        if name != known {
            return Err(fields.unknown(key, &name, known));
        }
    }
    set_grid(config, fields)?;
    sigma_range(config, fields)
}

fn dpmpp(config: &mut SamplerConfig, fields: &Fields) -> Result<()> {
    let algorithm = fields.string("algorithm_type", "dpmsolver++")?;
    if !matches!(algorithm.as_str(), "dpmsolver++" | "sde-dpmsolver++" | "deis") {
        return Err(fields.unknown("algorithm_type", &algorithm, "dpmsolver++, sde-dpmsolver++"));
    }
    let variance = fields.string("variance_type", "")?;
    if variance.starts_with("learned") {
        return Err(fields.unknown("variance_type", &variance, "fixed ones"));
    }
    let term = fields.string("solver_type", "midpoint")?;
    config.solver.dpm_term = match term.as_str() {
        "heun" => DpmTerm::Heun,
        "midpoint" | "logrho" | "bh1" | "bh2" => DpmTerm::Midpoint,
        _ => return Err(fields.unknown("solver_type", &term, "midpoint, heun")),
    };
    config.lambda_min = lambda_min(fields)?;
    config.solver.euler_at_final = fields.or("euler_at_final", false)?;
    multistep(config, fields)
}

fn unipc(config: &mut SamplerConfig, fields: &Fields) -> Result<()> {
    if !fields.or("predict_x0", true)? {
        return Err(fields.error("predict_x0", "false is not supported"));
    }
    if fields.get::<Value>("solver_p")?.is_some() {
        return Err(fields.error("solver_p", "another scheduler as the predictor is not supported"));
    }
    let b = fields.string("solver_type", "bh2")?;
    config.solver.unipc_b = match b.as_str() {
        "bh1" => UniPcB::H,
        "bh2" | "midpoint" | "heun" | "logrho" => UniPcB::ExpM1,
        _ => return Err(fields.unknown("solver_type", &b, "bh1, bh2")),
    };
    config.solver.disable_corrector = fields.or("disable_corrector", vec![])?;
    if matches!(config.space, Space::Vp(_)) {
        sigma_range(config, fields)?;
    }
    multistep(config, fields)
}

fn multistep(config: &mut SamplerConfig, fields: &Fields) -> Result<()> {
    config.solver.order = fields.or("solver_order", 2)?;
    config.solver.lower_order_final = fields.or("lower_order_final", true)?;
    set_grid(config, fields)
}

fn set_grid(config: &mut SamplerConfig, fields: &Fields) -> Result<()> {
    let end = fields.string("final_sigmas_type", "zero")?;
    config.final_sigma = match end.as_str() {
        "zero" => FinalSigma::Zero,
        "sigma_min" => FinalSigma::SigmaMin,
        _ => return Err(fields.unknown("final_sigmas_type", &end, "zero, sigma_min")),
    };
    if matches!(config.space, Space::Vp(_)) {
        config.sigma_grid = sigma_grid(fields)?;
    }
    Ok(())
}

fn sigma_grid(fields: &Fields) -> Result<SigmaGrid> {
    match (fields.or("use_karras_sigmas", false)?, fields.or("use_exponential_sigmas", false)?) {
        (false, false) => Ok(SigmaGrid::Timesteps),
        (true, false) => Ok(SigmaGrid::Karras),
        (false, true) => Ok(SigmaGrid::Exponential),
        (true, true) => Err(fields.error("use_karras_sigmas", "excludes use_exponential_sigmas")),
    }
}

fn sigma_range(config: &mut SamplerConfig, fields: &Fields) -> Result<()> {
    config.sigma_min = fields.get("sigma_min")?;
    config.sigma_max = fields.get("sigma_max")?;
    Ok(())
}

fn lambda_min(fields: &Fields) -> Result<Option<f64>> {
    match fields.get::<Value>("lambda_min_clipped")? {
        Some(Value::String(infinite)) if infinite == "-Infinity" => Ok(None),
        _ => fields.get("lambda_min_clipped"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: SamplerKind, text: &str) -> Result<SamplerConfig> {
        SamplerConfig::from_json(kind, text, "s.json")
    }

    #[test]
    fn absent_keys_are_the_class_defaults() {
        for kind in SamplerKind::ALL {
            let config = read(kind, "{}").unwrap();
            let mut expected = SamplerConfig::ddpm_linear(kind).unwrap();
            match kind {
                SamplerKind::Ddim => (expected.clip, expected.ddim_target) = (Some(1.0), DdimTarget::Stride),
                SamplerKind::Ddpm => expected.clip = Some(1.0),
                SamplerKind::Heun => {
                    let betas = Betas::Linear { start: 0.00085, end: 0.012 };
                    expected.space = Space::Vp(VpSchedule::new(&betas, 1000, false).unwrap());
                }
                _ => {}
            }
            assert_eq!(config, expected, "{kind}");
        }
    }

    #[test]
    fn files_as_diffusers_writes_them() {
        let text = r#"{"_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.42.1",
            "lambda_min_clipped": -Infinity, "trained_betas": null, "variance_type": null,
            "algorithm_type": "dpmsolver++", "new": [NaN, "a\"NaN"]}"#;
        assert_eq!(read(SamplerKind::Dpmpp2m, text).unwrap(), read(SamplerKind::Dpmpp2m, "{}").unwrap());
        assert!(read(SamplerKind::Euler, text).is_ok());
        let flow =
            read(SamplerKind::Euler, r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3}"#).unwrap();
        assert_eq!(flow, SamplerConfig::flow(SamplerKind::Euler, 3.0));
        let edm = read(SamplerKind::Heun, r#"{"_class_name": "EDMEulerScheduler"}"#).unwrap();
        assert_eq!(edm, SamplerConfig::edm(SamplerKind::Heun));
        assert_eq!(quote_non_finite(r#"{"é NaN \\": NaN}"#), r#"{"é NaN \\": "NaN"}"#);
    }

    #[test]
    fn what_cannot_be_honoured_is_an_error_that_names_the_key() {
        use SamplerKind::*;
        for (kind, key, value) in [
            (Ddim, "thresholding", "true"),
            (Ddim, "clip_sample_range", "-1"),
            (Ddim, "clip_sample_range", "\"wide\""),
            (Ddim, "num_train_timesteps", "0"),
            (Ddim, "num_train_timesteps", "-5"),
            (Ddim, "num_train_timesteps", "1e18"),
            (Ddim, "num_train_timesteps", "1000000000000"),
            (Ddim, "beta_schedule", "\"laplace\""),
            (Ddim, "beta_start", "NaN"),
            (Ddim, "prediction_type", "\"score\""),
            (Ddim, "timestep_spacing", "\"random\""),
            (Ddim, "steps_offset", "1000"),
            (Ddim, "steps_offset", "18446744073709551615"),
            (Ddim, "trained_betas", "[0.1, 0.2]"),
            (Ddpm, "variance_type", "\"learned_range\""),
            (Ddpm, "variance_type", "\"fixed_large_log\""),
            (Euler, "interpolation_type", "\"log_linear\""),
            (Euler, "timestep_type", "\"continuous\""),
            (Euler, "final_sigmas_type", "\"one\""),
            (Euler, "use_beta_sigmas", "true"),
            (Dpmpp2m, "solver_order", "3"),
            (Dpmpp2m, "solver_order", "0"),
            (Dpmpp2m, "algorithm_type", "\"dpmsolver\""),
            (Dpmpp2m, "solver_type", "\"rk4\""),
            (Dpmpp2m, "use_lu_lambdas", "true"),
            (Dpmpp2mSde, "lambda_min_clipped", "NaN"),
            (UniPc, "solver_order", "4"),
            (UniPc, "predict_x0", "false"),
            (UniPc, "disable_corrector", "[-1]"),
        ] {
            let error = read(kind, &format!("{{\"{key}\": {value}}}")).unwrap_err().to_string();
            assert!(error.starts_with("s.json: field `") && error.contains(key), "{key} {value}: {error}");
        }
        for text in ["", "[]", "{", "\"a", "\"\\", "{\"a\": Infinity Infinity}"] {
            assert!(matches!(read(Ddim, text), Err(Error::Format { .. })), "{text}");
        }
        for betas in [r#"{"beta_start": 0}"#, r#"{"beta_end": 1.5}"#] {
            assert!(matches!(read(Ddim, betas), Err(Error::Config { .. })));
        }
    }
}
