//! Compiled shaders: made once, shared by all sessions, and kept on disk where the adapter can take them back.

use super::NAME;
use super::adapter::{Gpu, lock};
use crate::graph::Shader;
use crate::{Error, Result};
use rayon::prelude::*;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;
use wgpu::{AdapterInfo, BindGroupLayout, BufferBindingType, ComputePipeline, Features, PipelineLayout, ShaderModule};

/// What tells one compiled shader from another. Texts are compared by content: one file may be embedded twice.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key {
    source: &'static str,
    entry: &'static str,
    constants: Vec<(&'static str, u64)>,
    arguments: usize,
    checked: bool,
}

impl Key {
    /// `checked`: every access is checked against its binding.
    pub(super) fn new(shader: &Shader, arguments: usize, checked: bool) -> Key {
        let constants = shader.constants.iter().map(|(name, v)| (*name, v.to_bits())).collect();
        Key { source: shader.source, entry: shader.entry, constants, arguments, checked }
    }
}

/// The compiled shaders of a device.
#[derive(Debug)]
pub(super) struct Pipelines {
    ready: Mutex<HashMap<Key, ComputePipeline>>,
    modules: Mutex<HashMap<(&'static str, bool), ShaderModule>>,
    layouts: Mutex<HashMap<usize, (BindGroupLayout, PipelineLayout)>>,
    driver: Option<wgpu::PipelineCache>,
    file: Option<PathBuf>,
}

impl Pipelines {
    pub(super) fn new(device: &wgpu::Device, info: &AdapterInfo) -> Pipelines {
        let offered = device.features().contains(Features::PIPELINE_CACHE);
        let file = offered.then(|| cache_file(info)).flatten();
        let data = file.as_ref().and_then(|f| std::fs::read(f).ok());
        let description =
            wgpu::PipelineCacheDescriptor { label: Some("langevin"), data: data.as_deref(), fallback: true };
        // SAFETY: the file holds what `get_data` returned, under the key of this adapter; wgpu and the driver check both.
        let driver = offered.then(|| unsafe { device.create_pipeline_cache(&description) });
        let (ready, modules, layouts) = Default::default();
        Pipelines { ready, modules, layouts, driver, file }
    }

    /// The bind group layout of shaders with so many arguments: the scalars, then the arguments.
    pub(super) fn layout(&self, gpu: &Gpu, arguments: usize) -> (BindGroupLayout, PipelineLayout) {
        let make = || {
            let entry = |binding: u32| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: match binding {
                        0 => BufferBindingType::Uniform,
                        _ => BufferBindingType::Storage { read_only: false },
                    },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            };
            let entries: Vec<_> = (0..=arguments as u32).map(entry).collect();
            let label = Some("langevin");
            let group =
                gpu.device().create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
            let layout = gpu.device().create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label,
                bind_group_layouts: &[Some(&group)],
                immediate_size: 0,
            });
            (group, layout)
        };
        lock(&self.layouts).entry(arguments).or_insert_with(make).clone()
    }

    /// Makes those that are missing, in parallel; all of them in the order asked for.
    ///
    /// # Errors
    /// [`Error::Kernel`] with the text of naga or of the driver, if a shader is rejected.
    pub(super) fn get(&self, gpu: &Gpu, wanted: &[(Key, &'static str)]) -> Result<Vec<ComputePipeline>> {
        let mut missing: Vec<&(Key, &'static str)> = Vec::new();
        {
            let ready = lock(&self.ready);
            for w in wanted {
                if !ready.contains_key(&w.0) && !missing.iter().any(|m| m.0 == w.0) {
                    missing.push(w);
                }
            }
        }
        let made = missing.par_iter().map(|(key, name)| Ok((key.clone(), self.compile(gpu, key, name)?)));
        let made = made.collect::<Result<Vec<_>>>()?;
        let any = !made.is_empty();
        let mut ready = lock(&self.ready);
        ready.extend(made);
        let found = wanted.iter().map(|(key, _)| ready[key].clone()).collect();
        drop(ready);
        if any {
            self.keep();
        }
        Ok(found)
    }

    fn compile(&self, gpu: &Gpu, key: &Key, name: &'static str) -> Result<ComputePipeline> {
        let rejected = |e: wgpu::Error| Error::Kernel { device: NAME, kernel: name, reason: e.to_string() };
        let module = lock(&self.modules).get(&(key.source, key.checked)).cloned();
        let module = match module {
            Some(module) => module,
            None => {
                let module = gpu.catch(|| self.module(gpu, key, name), rejected)?;
                lock(&self.modules).insert((key.source, key.checked), module.clone());
                module
            }
        };
        let (_, layout) = self.layout(gpu, key.arguments);
        let constants: Vec<(&str, f64)> = key.constants.iter().map(|(n, v)| (*n, f64::from_bits(*v))).collect();
        let description = wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(&layout),
            module: &module,
            entry_point: Some(key.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                // No shader reads workgroup memory before it was written.
                zero_initialize_workgroup_memory: key.checked,
            },
            cache: self.driver.as_ref(),
        };
        gpu.catch(|| gpu.device().create_compute_pipeline(&description), rejected)
    }

    fn module(&self, gpu: &Gpu, key: &Key, name: &'static str) -> ShaderModule {
        let source = wgpu::ShaderSource::Wgsl(key.source.into());
        let description = wgpu::ShaderModuleDescriptor { label: Some(name), source };
        if key.checked {
            return gpu.device().create_shader_module(description);
        }
        // SAFETY: shaders are part of the program like its other unsafe code. Each stays inside of its arguments, which the
        // tests of ops check with all checks on and guard zones behind every value, has no endless loop, and divides by
        // nothing that may be zero.
        unsafe { gpu.device().create_shader_module_trusted(description, wgpu::ShaderRuntimeChecks::unchecked()) }
    }

    /// Writes the driver's cache to disk. It only saves time, so a failure changes nothing else.
    fn keep(&self) {
        let data = self.driver.as_ref().and_then(|d| d.get_data());
        if let (Some(file), Some(data)) = (&self.file, data) {
            let folder = file.parent().map(std::fs::create_dir_all);
            let part = file.with_extension(format!("{}.part", std::process::id()));
            if folder.is_some_and(|made| made.is_ok()) && std::fs::write(&part, data).is_ok() {
                let _ = std::fs::rename(&part, file);
            }
        }
    }
}

/// Where an adapter's compiled shaders are kept between runs: in the user's cache folder.
fn cache_file(info: &AdapterInfo) -> Option<PathBuf> {
    let key = wgpu::util::pipeline_cache_key(info)?;
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let folder = set("XDG_CACHE_HOME").or_else(|| set("LOCALAPPDATA")).or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(folder.join("langevin").join(key))
}
