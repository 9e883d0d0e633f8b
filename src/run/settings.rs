//! A run's settings: one flat TOML file, every key documented where it is declared.
//!
//! The same list makes the struct, its defaults, `langevin train --explain`, the comments of a run's `config.toml` and the
//! flags of `langevin train`.

use crate::diffusion::{Betas, FlowTimes, Levels, Objective, Prediction, Weighting};
use crate::nn::{Config, Network};
use crate::ops::OptimizerKind;
use crate::passes::autodiff::Recompute;
use crate::tensor::DType;
use crate::trainer::{Ema, LoraConfig, LrSchedule, TrainConfig};
use crate::weights::{Dtype, weight_type};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;
use toml::{Table, Value};

/// A key of the settings.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// What it belongs to.
    pub group: &'static str,
    pub name: &'static str,
    pub help: &'static str,
    /// Has no influence on the weights: may change when a run is resumed.
    pub free: bool,
}

macro_rules! settings {
    (@free) => { false };
    (@free free) => { true };
    ($($group:literal { $($(#[doc = $help:literal])+ $name:ident: $ty:ty = $default:expr $(, $free:ident)?;)+ })+) => {
        /// Everything that a training run is made of. Paths are relative to where the command is run.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Settings {
            $($($(#[doc = $help])+ pub $name: $ty,)+)+
        }

        impl Default for Settings {
            fn default() -> Self {
                Settings { $($($name: $default,)+)+ }
            }
        }

        impl Settings {
            /// All keys, in the order of the file.
            pub const KEYS: &'static [Key] = &[$($(Key {
                group: $group,
                name: stringify!($name),
                help: concat!($($help),+),
                free: settings!(@free $($free)?),
            },)+)+];
        }
    };
}

settings! {
    "Network" {
        /// The network: a config.json, a folder with one, or the name of an embedded model or preset network [default: that of `from`]
        network: String = String::new();
        /// Start from this model's weights (a folder or an embedded model) instead of random ones
        from: String = String::new();
        /// What is made again in the backward pass instead of kept for it: off, cheap (norms, activations: equal results), blocks (all but what crosses the borders of blocks); auto: cheap in 16 bits, else off
        recompute: String = "auto".into();
        /// Type of activations and their gradients in memory: f32, or bf16 where the device has it; weights and what the optimiser keeps are f32
        dtype: String = "f32".into();
    }
    "Adapter" {
        /// Train a low-rank adapter (LoRA) of this rank on the model of `from`, whose weights stay as they are; 0: train all weights
        lora_rank: usize = 0;
        /// The adapter adds lora_alpha / lora_rank times its product; 0: as much as the rank
        lora_alpha: f64 = 0.0;
        /// What is adapted: attention, mlp, conv, all, or ends of layers' names such as to_q
        lora_targets: Vec<String> = vec!["attention".into()];
    }
    "Data" {
        /// Images: EDM-style zip, IDX (.gz), CIFAR binary, WebDataset tar, or folder of class folders
        data: String = String::new();
        /// Take images of these classes only, e.g. 1,7:500 for all of class 1 and the first 500 of class 7
        classes: String = String::new();
        /// Resize the shorter side of every image to this many pixels and crop the centre square; 0: take images as they are
        resize: usize = 0;
        /// Convert images to grey (1) or RGB (3); 0: RGB if any image is, grey ones among them converted
        channels: usize = 0;
        /// Refuse broken images and images of another size instead of skipping them
        strict: bool = false;
        /// Probability of mirroring an image left to right
        flip: f64 = 0.0;
        /// Every class equally often, instead of every image
        class_balanced: bool = false;
        /// Probability of training a sample without its label, for classifier-free guidance
        label_dropout: f64 = 0.1;
    }
    "Objective" {
        /// What the network answers: epsilon, sample, v_prediction (VP schedule), flow_prediction (straight path); auto: what the model of `from` does, else noise; for EDM networks denoised images
        prediction: String = "auto".into();
        /// VP: linear, scaled_linear, squaredcos_cap_v2 or sigmoid
        beta_schedule: String = "linear".into();
        /// VP: first beta
        beta_start: f64 = 1e-4;
        /// VP: last beta
        beta_end: f64 = 0.02;
        /// VP and flow: number of timesteps
        num_train_timesteps: usize = 1000;
        /// VP: rescale the schedule so that the last timestep is pure noise
        rescale_betas_zero_snr: bool = false;
        /// Flow: how times are drawn, logit-normal or uniform
        flow_times: String = "logit-normal".into();
        /// Flow: mean of the logit; greater means more noise
        logit_mean: f64 = 0.0;
        /// Flow: standard deviation of the logit
        logit_std: f64 = 1.0;
        /// Flow: shift of the times towards noise; 1: none
        flow_shift: f64 = 1.0;
        /// EDM: mean of ln sigma
        p_mean: f64 = -1.2;
        /// EDM: standard deviation of ln sigma
        p_std: f64 = 1.2;
        /// How much a noise level counts: uniform, min-snr, p2 or edm; auto: edm for EDM networks, else uniform
        weighting: String = "auto".into();
        /// Where min-snr's weight stops growing
        min_snr_gamma: f64 = 5.0;
        /// Strength of p2
        p2_gamma: f64 = 1.0;
        /// Offset of p2
        p2_k: f64 = 1.0;
    }
    "Optimiser" {
        /// All steps of the run
        steps: usize = 1000;
        /// Images a step
        batch: usize = 64;
        /// Parts of a step's images that are run one after the other to need less memory
        accumulate: usize = 1;
        /// adamw, adam or radam
        optimizer: String = "adamw".into();
        /// Peak learning rate
        lr: f64 = 1e-3;
        /// After the warm-up: cosine (to zero over the run), constant or inverse-sqrt
        lr_schedule: String = "cosine".into();
        /// Steps over which the learning rate rises
        warmup: usize = 100;
        /// Decay of the gradient's average
        beta1: f64 = 0.9;
        /// Decay of the squared gradient's average
        beta2: f64 = 0.999;
        /// Keeps the optimiser's division finite
        adam_eps: f64 = 1e-8;
        /// Weight decay, decoupled for adamw
        weight_decay: f64 = 0.0;
        /// Clip the gradient to this norm; 0: do not
        max_grad_norm: f64 = 1.0;
        /// Averages of the weights: images after which a weight's share has halved; the first average is the export
        ema_half_life: Vec<f64> = vec![20_000.0];
        /// Power-function averages of the weights: their relative standard deviations, at most 0.288
        ema_std: Vec<f64> = vec![];
        /// Seed of weights, order, noise and dropout
        seed: u64 = 0;
    }
    "Output" {
        /// Steps between lines of log.jsonl
        log_every: usize = 50, free;
        /// Steps between checkpoints; 0: only at the end
        checkpoint_every: usize = 0, free;
        /// Checkpoints to keep; older ones are removed
        keep: usize = 2, free;
        /// Steps after which the model is exported for good, into the folder step-N
        save_at: Vec<usize> = vec![], free;
        /// Type of exported weights: f32, f16 or bf16
        save_dtype: String = "f32".into(), free;
        /// Steps between sample grids; 0: none
        grid_every: usize = 0, free;
        /// Images of a grid
        grid_n: usize = 20, free;
        /// Guidance scale of a grid
        grid_guidance: f64 = 1.0, free;
        /// Write event files for TensorBoard
        tensorboard: bool = true, free;
        /// Stop at the first op that leaves NaN or infinity, and name it; slow
        check_numerics: bool = false, free;
    }
}

impl Settings {
    /// Reads settings from layers of TOML tables, later ones over earlier ones; each comes with what to call it in errors.
    ///
    /// # Errors
    /// [`Error::Config`] for a key that does not exist, with the nearest one that does, or a value of the wrong type.
    pub fn from_layers<'a>(layers: impl IntoIterator<Item = (&'a Path, &'a Table)>) -> Result<Settings> {
        let mut merged = Table::new();
        for (path, table) in layers {
            for (key, value) in table {
                check_key(path, key)?;
                // Alone, so that the error names the file it stands in.
                Settings::from_table(Table::from_iter([(key.clone(), value.clone())]))
                    .map_err(|reason| Error::config(path, key, reason))?;
                merged.insert(key.clone(), value.clone());
            }
        }
        Settings::from_table(merged).map_err(|reason| Error::invalid("settings", reason))
    }

    fn from_table(table: Table) -> Result<Settings, String> {
        Settings::deserialize(Value::Table(table)).map_err(|e| e.message().trim().to_owned())
    }

    /// The text of a settings file.
    pub fn to_toml(&self) -> Result<String> {
        let table = Table::try_from(self).map_err(|e| Error::invalid("settings", e.to_string()))?;
        let mut text = String::new();
        let mut group = "";
        for key in Settings::KEYS {
            if key.group != group {
                group = key.group;
                let space = if text.is_empty() { "" } else { "\n" };
                text += &format!("{space}# --- {group} ---\n");
            }
            if let Some(value) = table.get(key.name) {
                text += &format!("# {}\n{} = {value}\n", key.help.trim(), key.name);
            }
        }
        Ok(text)
    }

    /// Keys whose values differ and that a run cannot change on the way, with both values.
    pub fn conflicts(&self, other: &Settings) -> Result<Vec<String>> {
        let fixed = self.differences(other)?.into_iter().filter(|(key, ..)| !key.free);
        Ok(fixed.map(|(key, a, b)| format!("{} is {b}, was {a}", key.name)).collect())
    }

    /// Keys whose values differ, with the values here and in `other` as TOML writes them.
    pub fn differences(&self, other: &Settings) -> Result<Vec<(&'static Key, String, String)>> {
        let table = |s| Table::try_from(s).map_err(|e| Error::invalid("settings", e.to_string()));
        let (a, b) = (table(self)?, table(other)?);
        let shown = |t: &Table, name: &str| t.get(name).map(Value::to_string).unwrap_or_default();
        let keys = Settings::KEYS.iter().filter(|key| a.get(key.name) != b.get(key.name));
        Ok(keys.map(|key| (key, shown(&a, key.name), shown(&b, key.name))).collect())
    }

    /// What the trainer needs to know, for `network`.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the key.
    pub fn train_config(&self, network: &Network) -> Result<TrainConfig> {
        let half_lives = self.ema_half_life.iter().map(|images| Ema::HalfLife(*images));
        let optimizer = match self.optimizer.as_str() {
            "adamw" => OptimizerKind::AdamW,
            "adam" => OptimizerKind::Adam,
            "radam" => OptimizerKind::RAdam,
            other => return Err(Error::invalid("optimizer", format!("`{other}` is none of adamw, adam, radam"))),
        };
        let dtype = self.dtype()?;
        let config = TrainConfig {
            batch: self.batch,
            accumulate: self.accumulate,
            steps: self.steps,
            optimizer,
            learning_rate: self.lr,
            lr_schedule: self.lr_schedule.parse::<LrSchedule>()?,
            warmup: self.warmup,
            betas: [self.beta1, self.beta2],
            eps: self.adam_eps,
            weight_decay: self.weight_decay,
            max_grad_norm: self.max_grad_norm,
            emas: half_lives.chain(self.ema_std.iter().map(|std| Ema::Power(*std))).collect(),
            label_dropout: self.label_dropout,
            flip: self.flip,
            class_balanced: self.class_balanced,
            objective: Some(self.objective(network)?),
            lora: self.lora()?,
            recompute: Recompute::parse(&self.recompute, dtype)?,
            dtype,
            check_numerics: self.check_numerics,
            seed: self.seed,
        };
        config.check()?;
        Ok(config)
    }

    fn dtype(&self) -> Result<DType> {
        match self.dtype.as_str() {
            "f32" => Ok(DType::F32),
            "f16" => Ok(DType::F16),
            "bf16" => Ok(DType::Bf16),
            other => Err(Error::invalid("dtype", format!("`{other}` is none of f32, bf16"))),
        }
    }

    /// The adapter that is trained, if one is.
    fn lora(&self) -> Result<Option<LoraConfig>> {
        if self.lora_rank == 0 {
            return Ok(None);
        }
        if self.from.is_empty() {
            return Err(Error::invalid("lora_rank", "an adapter is trained on a model: `from` must name one"));
        }
        let alpha = if self.lora_alpha == 0.0 { self.lora_rank as f64 } else { self.lora_alpha };
        Ok(Some(LoraConfig { rank: self.lora_rank, alpha, targets: self.lora_targets.clone() }))
    }

    /// What is learned.
    fn objective(&self, network: &Network) -> Result<Objective> {
        let sigma_data = match network.config() {
            Config::Edm(edm) => Some(edm.sigma_data as f64),
            _ => None,
        };
        let prediction = match (self.prediction.as_str(), sigma_data) {
            ("auto", Some(_)) => Prediction::Sample,
            ("auto", None) => Prediction::Epsilon,
            (name, None) => name.parse()?,
            (name, Some(_)) => {
                let reason = format!("`{name}`: this network is EDM-preconditioned and answers denoised images");
                return Err(Error::invalid("prediction", reason));
            }
        };
        let levels = match (sigma_data, prediction) {
            (Some(_), _) => Levels::Edm { p_mean: self.p_mean, p_std: self.p_std },
            (None, Prediction::Flow) => Levels::Flow {
                times: self.times()?,
                shift: self.flow_shift,
                num_train_timesteps: self.num_train_timesteps,
            },
            (None, _) => Levels::vp(self.betas()?, self.num_train_timesteps, self.rescale_betas_zero_snr)?,
        };
        let weighting = match (self.weighting.as_str(), sigma_data) {
            ("auto" | "edm", Some(sigma_data)) => Weighting::Edm { sigma_data },
            ("edm", None) => Weighting::Edm { sigma_data: 0.5 },
            ("auto" | "uniform", _) => Weighting::Uniform,
            ("min-snr", _) => Weighting::MinSnr { gamma: self.min_snr_gamma },
            ("p2", _) => Weighting::P2 { gamma: self.p2_gamma, k: self.p2_k },
            (other, _) => {
                let reason = format!("`{other}` is none of auto, uniform, min-snr, p2, edm");
                return Err(Error::invalid("weighting", reason));
            }
        };
        Objective::new(levels, prediction, weighting)
    }

    fn times(&self) -> Result<FlowTimes> {
        Ok(match self.flow_times.parse()? {
            FlowTimes::LogitNormal { .. } => FlowTimes::LogitNormal { mean: self.logit_mean, std: self.logit_std },
            uniform => uniform,
        })
    }

    fn betas(&self) -> Result<Betas> {
        let (start, end) = (self.beta_start, self.beta_end);
        Ok(match self.beta_schedule.as_str() {
            "linear" => Betas::Linear { start, end },
            "scaled_linear" => Betas::ScaledLinear { start, end },
            "squaredcos_cap_v2" => Betas::SquaredCosine,
            "sigmoid" => Betas::Sigmoid { start, end },
            other => {
                let reason = format!("`{other}` is none of linear, scaled_linear, squaredcos_cap_v2, sigmoid");
                return Err(Error::invalid("beta_schedule", reason));
            }
        })
    }

    /// The type of exported weights.
    pub fn export_dtype(&self) -> Result<Dtype> {
        weight_type(&self.save_dtype)
    }
}

/// Fails for a key that does not exist, and names the one that was meant.
fn check_key(path: &Path, key: &str) -> Result<()> {
    if Settings::KEYS.iter().any(|k| k.name == key) {
        return Ok(());
    }
    let likeness = |k: &&Key| strsim::jaro_winkler(k.name, key);
    let nearest = Settings::KEYS.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    let hint = nearest.filter(|k| likeness(k) > 0.75).map(|k| format!("; is `{}` meant?", k.name)).unwrap_or_default();
    Err(Error::config(path, key, format!("there is no such key{hint}")))
}

/// Settings that ship with langevin, by name.
pub const PRESETS: [(&str, &str); 5] = [
    ("mnist-unet", include_str!("../../presets/mnist-unet.toml")),
    ("mnist-dit", include_str!("../../presets/mnist-dit.toml")),
    ("mnist-dit-moe", include_str!("../../presets/mnist-dit-moe.toml")),
    ("edm-cifar10", include_str!("../../presets/edm-cifar10.toml")),
    ("cifar-pair", include_str!("../../presets/cifar-pair.toml")),
];

/// The table of a preset.
pub fn preset(name: &str) -> Result<Table> {
    let Some((_, text)) = PRESETS.iter().find(|(n, _)| *n == name) else {
        let names = PRESETS.map(|(n, _)| n).join(", ");
        return Err(Error::invalid("--preset", format!("`{name}` is none of {names}")));
    };
    parse(Path::new(name), text)
}

/// Parses the text of a settings file.
pub fn parse(path: &Path, text: &str) -> Result<Table> {
    text.parse::<Table>().map_err(|e| Error::format(path, e.to_string().trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings> {
        let path = Path::new("run.toml");
        Settings::from_layers([(path, &parse(path, text)?)])
    }

    #[test]
    fn defaults_survive_their_own_text() {
        let text = Settings::default().to_toml().unwrap();
        assert_eq!(read(&text).unwrap(), Settings::default());
        let odd = Settings { data: "a \"b\"\\c\nd".into(), ema_std: vec![0.05, 0.1], lr: 1e-7, ..Settings::default() };
        assert_eq!(read(&odd.to_toml().unwrap()).unwrap(), odd);
        for key in Settings::KEYS {
            assert!(text.contains(&format!("\n{} = ", key.name)) && key.help.len() > 5, "{}", key.name);
        }
    }

    #[test]
    fn later_layers_win() {
        let (a, b) =
            (parse(Path::new("a"), "lr = 1.0\nbatch = 3").unwrap(), parse(Path::new("b"), "lr = 2.0").unwrap());
        let settings = Settings::from_layers([(Path::new("a"), &a), (Path::new("b"), &b)]).unwrap();
        assert_eq!((settings.lr, settings.batch, settings.steps), (2.0, 3, 1000));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, words) in [
            ("learn_rate = 1", vec!["run.toml", "learn_rate", "no such key"]),
            ("batch_size = 1", vec!["batch_size", "`batch` meant"]),
            ("warm_up = 1", vec!["warm_up", "`warmup` meant"]),
            ("batch = \"many\"", vec!["run.toml", "`batch`", "invalid type"]),
            ("batch = -1", vec!["`batch`", "invalid value"]),
            ("lr = ", vec!["run.toml", "line 1"]),
        ] {
            let e = read(text).unwrap_err().to_string();
            assert!(words.iter().all(|w| e.contains(w)), "{text}: {e}");
        }
    }

    #[test]
    fn only_what_shapes_the_weights_conflicts() {
        let base = Settings::default();
        let other = Settings { keep: 9, log_every: 1, lr: 0.5, seed: 3, ..base.clone() };
        assert_eq!(base.conflicts(&other).unwrap(), ["lr is 0.5, was 0.001", "seed is 3, was 0"]);
        assert!(base.conflicts(&base).unwrap().is_empty());
    }

    #[test]
    fn presets_are_valid() {
        for (name, _) in PRESETS {
            let table = preset(name).unwrap();
            let settings = Settings::from_layers([(Path::new(name), &table)]).unwrap();
            let network = crate::model::network_text(Path::new(&settings.network)).unwrap();
            let network = Network::from_config(&network.0, &network.1).unwrap();
            settings.train_config(&network).unwrap();
        }
    }
}
