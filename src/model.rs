//! Models: a network with its weights, from a folder, or embedded in the library.

use crate::diffusion::{SamplerConfig, SamplerKind, Space};
use crate::files::write_atomic;
use crate::nn::{
    Adapter, Built, Config, InputSpec, LowRank, Network, Parameter, Routing, adaptable_layers, adapter_parameter,
};
use crate::schedule::{BufferId, Session};
use crate::weights::{Dtype, LoraFile, TensorSpec, Weights, WriteOptions, Writer};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// The largest `config.json` that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Types that weights may have in a file.
pub(crate) const FLOATS: [Dtype; 6] = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64, Dtype::F8_E4M3, Dtype::F8_E5M2];

/// A network and where its weights are. Weights stay in the mapped file until a session asks for them.
#[derive(Debug)]
pub struct Model {
    network: Network,
    weights: Weights,
    config: String,
    scheduler: Option<(PathBuf, String)>,
    path: PathBuf,
    embedded: bool,
    adapters: Vec<Attached>,
}

/// A LoRA on a model: what it adds to the graph, and where its weights are.
#[derive(Debug)]
struct Attached {
    adapter: Adapter,
    file: LoraFile,
    /// The first factor, see [`Adapter::scale`].
    scale: f32,
}

/// Models that ship with the library, trained by langevin itself on MNIST; see `assets/README.md`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Embedded {
    /// An EDM-preconditioned DDPM++ UNet, class-conditional.
    Unet,
    /// An earlier checkpoint of the same run.
    UnetWeak,
    /// A DiT that learned flow matching, class-conditional.
    Dit,
}

impl Embedded {
    /// All of them.
    pub const ALL: [Embedded; 3] = [Embedded::Unet, Embedded::UnetWeak, Embedded::Dit];

    /// The name under which `--model` finds it.
    pub fn name(self) -> &'static str {
        match self {
            Embedded::Unet => "mnist-unet",
            Embedded::UnetWeak => "mnist-unet-weak",
            Embedded::Dit => "mnist-dit",
        }
    }

    /// Its `config.json`.
    pub fn config(self) -> &'static str {
        self.texts().config
    }

    fn texts(self) -> ModelTexts<'static> {
        let (config, scheduler) = match self {
            Embedded::Unet => (include_str!("../assets/mnist-unet/config.json"), None),
            Embedded::UnetWeak => (include_str!("../assets/mnist-unet-weak/config.json"), None),
            Embedded::Dit => (
                include_str!("../assets/mnist-dit/config.json"),
                Some(include_str!("../assets/mnist-dit/scheduler_config.json")),
            ),
        };
        ModelTexts { config, scheduler }
    }

    fn weights(self) -> &'static [u8] {
        macro_rules! asset {
            ($name:literal) => {
                include_bytes!(concat!("../assets/", $name, "/diffusion_pytorch_model.safetensors"))
            };
        }
        match self {
            Embedded::Unet => asset!("mnist-unet"),
            Embedded::UnetWeak => asset!("mnist-unet-weak"),
            Embedded::Dit => asset!("mnist-dit"),
        }
    }
}

impl Model {
    /// Opens a folder in the layout of diffusers (`config.json` and safetensors), an embedded model by its name, the model in a
    /// run's folder, or a folder that PEFT saved an adapter in: the model that it names, adapted.
    pub fn open(path: impl AsRef<Path>) -> Result<Model> {
        let path = path.as_ref();
        if let Some(embedded) = Embedded::ALL.into_iter().find(|e| Path::new(e.name()) == path && !path.exists()) {
            return Model::embedded(embedded);
        }
        if !path.is_dir() {
            let names = Embedded::ALL.map(Embedded::name).join(", ");
            let reason = format!("is neither a model folder nor one of the embedded models ({names})");
            return Err(Error::format(path, reason));
        }
        let path = &model_folder(path);
        if !path.join("config.json").is_file() && LoraFile::is_adapter_folder(path) {
            return Model::open_adapted(path);
        }
        let config_path = path.join("config.json");
        let config = read_text(&config_path)?;
        let network = Network::from_config(&config, &config_path)?;
        let scheduler = scheduler_beside(path)?;
        let (weights, path) = (Weights::open(path)?, path.to_owned());
        Ok(Model { network, weights, config, scheduler, path, embedded: false, adapters: vec![] })
    }

    /// The model of an adapter's folder.
    fn open_adapted(path: &Path) -> Result<Model> {
        let file = LoraFile::open(path)?;
        let missing = || {
            let reason = "its adapter_config.json names no base model; open that model and add this as a LoRA";
            Error::format(path, reason)
        };
        let base = file.base().ok_or_else(missing)?.to_owned();
        if LoraFile::is_adapter_folder(&base) {
            return Err(Error::format(path, format!("its base model {} is an adapter too", base.display())));
        }
        let mut model = Model::open(&base)?;
        model.attach(file, 1.0)?;
        model.scheduler = scheduler_beside(path)?.or(model.scheduler);
        Ok(Model { path: path.to_owned(), embedded: false, ..model })
    }

    /// Adds a LoRA: a safetensors file under kohya's, PEFT's or diffusers' names, or a folder that PEFT saved. It is not merged:
    /// `scale` (1: as trained, any sign) is a number in the arena. Several may be added; the numbers of the first one's
    /// parameters are those of `lora0/…`, and so on.
    ///
    /// # Errors
    /// Those of [`LoraFile::open`]; [`Error::Format`] listing pairs whose layers this network does not have;
    /// [`Error::Tensor`] for one whose shape does not fit.
    pub fn with_lora(mut self, path: impl AsRef<Path>, scale: f64) -> Result<Model> {
        self.attach(LoraFile::open(path)?, scale)?;
        Ok(self)
    }

    fn attach(&mut self, file: LoraFile, scale: f64) -> Result<()> {
        if !scale.is_finite() {
            return Err(Error::invalid("lora", format!("a scale of {scale} is not finite")));
        }
        let [height, width] = self.network.sample_size().unwrap_or([64, 64]);
        let built = self.network.build(&InputSpec::new(1, height, width))?;
        let layers = adaptable_layers(&built.parameters);
        let mut adapter = Adapter { name: format!("lora{}", self.adapters.len()), layers: Default::default() };
        let mut unknown = Vec::new();
        for pair in file.pairs() {
            let Some(layer) = layers.iter().find(|l| pair.adapts(&l.name)) else {
                unknown.push(pair.down.as_str());
                continue;
            };
            let low = LowRank { rank: pair.rank, alpha: pair.alpha };
            if adapter.layers.insert(layer.name.clone(), low).is_some() {
                let reason = format!("is a second pair for `{}`", layer.name);
                return Err(Error::tensor(file.weights().path(), &pair.down, reason));
            }
        }
        if !unknown.is_empty() {
            let names = unknown.iter().take(20).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
            let more = if unknown.len() > 20 { format!(" and {} more", unknown.len() - 20) } else { String::new() };
            let reason = format!("this {} has no layers for {names}{more}", self.network.class_name());
            return Err(Error::format(file.weights().path(), reason));
        }
        let attached = Attached { adapter, file, scale: scale as f32 };
        let adapted = [attached.adapter.clone()];
        let built = self.network.build_adapted(&InputSpec::new(1, height, width), &adapted)?;
        for p in &built.parameters {
            if let (Some(name), weights) = (attached.tensor(&p.name), attached.file.weights()) {
                self.check_tensor(p, weights, &name)?;
            }
        }
        self.adapters.push(attached);
        Ok(())
    }

    /// The LoRAs on it, in the order in which they were added.
    pub fn adapters(&self) -> impl ExactSizeIterator<Item = &Adapter> {
        self.adapters.iter().map(|a| &a.adapter)
    }

    /// A model that ships with the library.
    pub fn embedded(which: Embedded) -> Result<Model> {
        let ModelTexts { config, scheduler } = which.texts();
        let path = PathBuf::from(which.name());
        let network = Network::from_config(config, &path)?;
        Ok(Model {
            network,
            weights: Weights::from_bytes(which.weights())?,
            config: config.into(),
            scheduler: scheduler.map(|text| (path.join("scheduler_config.json"), text.into())),
            path,
            embedded: true,
            adapters: vec![],
        })
    }

    /// The network, without weights.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The weights as the files hold them.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The text of `config.json`.
    pub fn config(&self) -> &str {
        &self.config
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True for a model that ships with the library.
    pub fn is_embedded(&self) -> bool {
        self.embedded
    }

    /// True for EDM networks: they are told sigma and answer denoised images.
    pub fn is_edm(&self) -> bool {
        matches!(self.network.config(), Config::Edm(_))
    }

    /// The settings of a sampler for this model: those of `scheduler_config.json` beside it, or the defaults of the sampler's
    /// class in diffusers; EDM's own levels for EDM networks.
    pub fn sampler_config(&self, kind: SamplerKind) -> Result<SamplerConfig> {
        match &self.scheduler {
            _ if self.is_edm() => Ok(SamplerConfig::edm(kind)),
            Some((path, text)) => SamplerConfig::from_json(kind, text, path),
            None => SamplerConfig::from_json(kind, "{}", "scheduler_config.json"),
        }
    }

    /// The sampler and the number of steps that suit this model: Heun's method for EDM networks, DPM-Solver++ for flow matching,
    /// else DDIM.
    pub fn usual_sampler(&self) -> (SamplerKind, usize) {
        let flow = || {
            let config = self.sampler_config(SamplerKind::Dpmpp2m);
            config.is_ok_and(|c| matches!(c.space, Space::Flow { .. }))
        };
        match self.is_edm() {
            true => (SamplerKind::Heun, 18),
            false if flow() => (SamplerKind::Dpmpp2m, 20),
            false => (SamplerKind::Ddim, 50),
        }
    }

    /// The first-order sampler with one call a step that suits this model: Euler's method for EDM networks and flow matching,
    /// else DDIM.
    pub fn one_call_sampler(&self) -> SamplerKind {
        match self.usual_sampler().0 {
            SamplerKind::Ddim => SamplerKind::Ddim,
            _ => SamplerKind::Euler,
        }
    }

    /// The network's graph for one batch and size, its weights checked against the files: every tensor there, none too many,
    /// all of the right shape.
    pub fn build(&self, spec: &InputSpec) -> Result<Built> {
        self.build_network(&self.network, spec)
    }

    /// The same with tokens going to other experts, see [`Network::with_routing`].
    pub fn build_routed(&self, spec: &InputSpec, routing: Routing) -> Result<Built> {
        self.build_network(&self.network.with_routing(routing)?, spec)
    }

    fn build_network(&self, network: &Network, spec: &InputSpec) -> Result<Built> {
        let adapters: Vec<Adapter> = self.adapters().cloned().collect();
        let built = network.build_adapted(spec, &adapters)?;
        self.check(&built)?;
        Ok(built)
    }

    /// The names under which the files hold a parameter; the first that they lack is the error.
    fn file_names(&self, p: &Parameter) -> std::result::Result<Vec<String>, String> {
        let there = |name: &String| self.weights.info(name).is_some();
        let names = p.tensors();
        match names.iter().find(|name| !there(name)) {
            None => Ok(names),
            Some(missing) => p.former_name().filter(there).map(|name| vec![name]).ok_or_else(|| missing.clone()),
        }
    }

    fn check(&self, built: &Built) -> Result<()> {
        let mut known: std::collections::HashSet<String> = built.fixed.iter().map(|f| f.name.clone()).collect();
        known.extend(built.ignored.iter().cloned());
        let mut missing = Vec::new();
        for p in built.parameters.iter().filter(|p| adapter_parameter(&p.name).is_none()) {
            match self.file_names(p) {
                Ok(names) => {
                    names.iter().try_for_each(|name| self.check_tensor(p, &self.weights, name))?;
                    known.extend(names);
                }
                Err(name) => missing.push(name),
            }
        }
        let path = self.weights.path();
        if let [first, rest @ ..] = &missing[..] {
            let more = if rest.is_empty() { String::new() } else { format!(" (and {} more)", rest.len()) };
            return Err(Error::tensor(path, first, format!("is missing{more}; the configuration asks for it")));
        }
        match self.weights.names().find(|n| !known.contains(*n)) {
            Some(extra) => {
                let reason = format!("is not part of this {}; is it the right config.json?", self.network.class_name());
                Err(Error::tensor(path, extra, reason))
            }
            None => Ok(()),
        }
    }

    /// Fails unless the tensor that holds a parameter has its shape, and numbers that can be weights: integers are quantised
    /// ones, which mean nothing without their scales.
    fn check_tensor(&self, p: &Parameter, weights: &Weights, name: &str) -> Result<()> {
        let Some(info) = weights.info(name) else { return Ok(()) };
        let class = self.network.class_name();
        let reason = if !p.accepts(&info.shape) {
            format!("has shape {:?}, {class} needs {:?}", info.shape, p.tensor_shape())
        } else if !FLOATS.contains(&info.dtype) {
            format!("has dtype {}, {class} needs floating-point weights", info.dtype)
        } else {
            return Ok(());
        };
        Err(Error::tensor(weights.path(), name, reason))
    }

    /// Writes parameters into a session's buffers. The files' pages are let go as soon as they were read.
    pub fn load<'a>(
        &self,
        session: &mut Session,
        places: impl IntoIterator<Item = (BufferId, &'a Parameter)>,
    ) -> Result<()> {
        let mut staging = Vec::new();
        for (id, p) in places {
            self.read(p, &mut staging)?;
            session.fill(id, |place| p.write(&staging, place))??;
        }
        Ok(())
    }

    /// A parameter's numbers in the file's order.
    pub fn read(&self, p: &Parameter, out: &mut Vec<f32>) -> Result<()> {
        out.resize(p.elements(), 0.0);
        let mut weights = &self.weights;
        let mut names = self.file_names(p);
        if let Some(attached) = self.adapters.iter().find(|a| a.owns(p)) {
            if p.name == attached.adapter.scale() {
                out.fill(attached.scale);
                return Ok(());
            }
            weights = attached.file.weights();
            names = attached.tensor(&p.name).map(|name| vec![name]).ok_or_else(|| p.name.clone());
        }
        let names = names.map_err(|name| Error::tensor(weights.path(), name, "is missing"))?;
        let each = (out.len() / names.len().max(1)).max(1);
        for (name, out) in names.iter().zip(out.chunks_exact_mut(each)) {
            weights.read_f32_into(name, out)?;
            weights.release(name);
        }
        Ok(())
    }
}

impl Attached {
    fn owns(&self, p: &Parameter) -> bool {
        adapter_parameter(&p.name).is_some_and(|(adapter, _)| adapter == self.adapter.name)
    }

    /// The name in the file of one of the adapter's weights.
    fn tensor(&self, parameter: &str) -> Option<String> {
        let half = |halves: &[String; 2]| halves.iter().position(|name| name == parameter);
        self.adapter.layers.keys().find_map(|layer| {
            let half = half(&self.adapter.weights(layer))?;
            let pair = self.file.pairs().iter().find(|p| p.adapts(layer))?;
            Some([&pair.down, &pair.up][half].clone())
        })
    }
}

/// The scheduler's configuration in a model's folder, or in the folder beside it.
fn scheduler_beside(folder: &Path) -> Result<Option<(PathBuf, String)>> {
    let candidates = [folder.join("scheduler_config.json"), folder.join("../scheduler/scheduler_config.json")];
    let found = candidates.into_iter().find(|p| p.is_file());
    found.map(|p| read_text(&p).map(|text| (p, text))).transpose()
}

/// A model's folder, where that of the run that trains it may be meant.
fn model_folder(path: &Path) -> PathBuf {
    let inner = path.join("model");
    if !path.join("config.json").is_file() && inner.is_dir() { inner } else { path.to_owned() }
}

/// Networks that ship with langevin without weights: for presets to train.
const PRESET_NETWORKS: [(&str, &str); 3] = [
    ("edm-cifar10", include_str!("../presets/edm-cifar10.json")),
    ("cifar-pair", include_str!("../presets/cifar-pair.json")),
    ("mnist-dit-moe", include_str!("../presets/mnist-dit-moe.json")),
];

/// The text of a network's configuration and what to call it in errors: of a config.json, of the one in a model's or a run's
/// folder, of an embedded model, or of the presets `edm-cifar10`, `cifar-pair` and `mnist-dit-moe`.
pub fn network_text(network: &Path) -> Result<(String, PathBuf)> {
    let named = |name: &str| Path::new(name) == network && !network.exists();
    if let Some(embedded) = Embedded::ALL.into_iter().find(|e| named(e.name())) {
        return Ok((embedded.config().to_owned(), network.to_owned()));
    }
    if let Some((_, text)) = PRESET_NETWORKS.iter().find(|(name, _)| named(name)) {
        return Ok(((*text).to_owned(), network.to_owned()));
    }
    let path = if network.is_dir() { model_folder(network).join("config.json") } else { network.to_owned() };
    let text = read_text(&path)?;
    Ok((text, path))
}

/// The files beside a model's weights.
#[derive(Clone, Copy, Debug)]
pub struct ModelTexts<'a> {
    /// `config.json`
    pub config: &'a str,
    /// `scheduler_config.json`; EDM networks need none.
    pub scheduler: Option<&'a str>,
}

/// Writes a model folder: its texts, and weights that `numbers` gives in the order of the files. `dtype` is how they are
/// stored.
pub fn save(
    folder: &Path,
    texts: ModelTexts,
    built: &Built,
    dtype: Dtype,
    mut numbers: impl FnMut(&Parameter) -> Result<Vec<f32>>,
) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let spec = |name: &str, shape: &[usize]| TensorSpec::new(name, dtype, shape.to_vec());
    let tensors = |p: &Parameter| p.tensors().iter().map(|name| spec(name, p.tensor_shape())).collect::<Vec<_>>();
    let fixed = built.fixed.iter().map(|f| spec(&f.name, &f.shape));
    let specs = built.parameters.iter().flat_map(tensors).chain(fixed).collect();
    let file = folder.join("diffusion_pytorch_model.safetensors");
    let mut writer = Writer::create(file, specs, &WriteOptions::default())?;
    for p in &built.parameters {
        let (numbers, each) = (numbers(p)?, p.tensor_shape().iter().product::<usize>().max(1));
        for (name, part) in p.tensors().iter().zip(numbers.chunks_exact(each)) {
            writer.put_f32(name, part)?;
        }
    }
    built.fixed.iter().try_for_each(|f| writer.put_f32(&f.name, &f.data))?;
    writer.finish()?;
    if let Some(scheduler) = texts.scheduler {
        write_atomic(folder.join("scheduler_config.json"), scheduler.as_bytes())?;
    }
    write_atomic(folder.join("config.json"), texts.config.as_bytes())
}

/// The text of a small file.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let size = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if size > MAX_CONFIG_BYTES {
        return Err(Error::format(path, format!("{size} bytes are too many for a configuration")));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    String::from_utf8(bytes).map_err(|_| Error::format(path, "is not UTF-8 text"))
}
