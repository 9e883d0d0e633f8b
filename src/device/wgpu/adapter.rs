//! Adapters, and the connection to one.

use super::NAME;
use super::pipelines::Pipelines;
use crate::device::{ALIGN, AdapterReport};
use crate::graph::{Matrices, WgpuTarget};
use crate::{Error, Result};
use pollster::block_on;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wgpu::{Adapter, AdapterInfo, CooperativeScalarType, DeviceType, ErrorFilter, Features, Instance};

/// Names an adapter by a part of its name, if there are several.
const CHOICE: &str = "LANGEVIN_ADAPTER";

/// What a device needs to have cooperative matrices.
const MATRICES: Features = Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(Features::SUBGROUP);

/// A connection to an adapter. Clones share it, with its compiled shaders.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    info: AdapterInfo,
    device: wgpu::Device,
    queue: wgpu::Queue,
    target: WgpuTarget,
    faults: Arc<Faults>,
    pipelines: Pipelines,
}

/// What went wrong where no call could return it; the first of each kind.
#[derive(Default)]
struct Faults {
    lost: Mutex<Option<String>>,
    error: Mutex<Option<String>>,
}

/// What a mutex guards, even if a thread panicked while it held it: these hold whole values only.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(reason: impl fmt::Display) -> Error {
    Error::Device { device: NAME, reason: reason.to_string() }
}

/// The adapters that the environment allows, the most promising first.
pub fn adapters() -> Vec<AdapterReport> {
    find_adapters().iter().map(report).collect()
}

fn report(adapter: &Adapter) -> AdapterReport {
    let (info, features, limits) = (adapter.get_info(), adapter.features(), adapter.limits());
    AdapterReport {
        software: info.device_type == DeviceType::Cpu,
        matrices: matrices(adapter),
        backend: format!("{:?}", info.backend),
        driver: format!("{} {}", info.driver, info.driver_info).trim().into(),
        name: info.name,
        f16: features.contains(Features::SHADER_F16),
        subgroups: features.contains(Features::SUBGROUP),
        timestamps: features.contains(Features::TIMESTAMP_QUERY),
        buffer_bytes: limits.max_buffer_size,
        argument_bytes: limits.max_storage_buffer_binding_size,
        arguments: limits.max_storage_buffers_per_shader_stage,
        workgroup_size: limits.max_compute_invocations_per_workgroup,
        workgroup_bytes: limits.max_compute_workgroup_storage_size,
    }
}

/// The cooperative matrices of an adapter that shaders know.
fn matrices(adapter: &Adapter) -> Matrices {
    if !adapter.features().contains(MATRICES) {
        return Matrices::default();
    }
    let offered = adapter.cooperative_matrix_properties();
    let largest = |numbers, edges: &[u32]| {
        let offers = |edge: &u32| {
            offered.iter().any(|p| {
                [p.m_size, p.n_size, p.k_size] == [*edge; 3]
                    && (p.ab_type, p.cr_type) == (numbers, CooperativeScalarType::F32)
            })
        };
        edges.iter().copied().find(offers).unwrap_or(0)
    };
    Matrices {
        f32: largest(CooperativeScalarType::F32, &[8]),
        f16: largest(CooperativeScalarType::F16, &[16, 8]),
        subgroup: adapter.get_info().subgroup_min_size,
    }
}

fn find_adapters() -> Vec<Adapter> {
    let mut description = wgpu::InstanceDescriptor::new_without_display_handle();
    description.backends = Instance::enabled_backend_features();
    description.flags = wgpu::InstanceFlags::empty();
    let all = block_on(Instance::new(description).enumerate_adapters(Instance::enabled_backend_features()));
    let wanted = std::env::var(CHOICE).unwrap_or_default().to_lowercase();
    let mut found: Vec<Adapter> =
        all.into_iter().filter(|a| a.get_info().name.to_lowercase().contains(&wanted)).collect();
    found.sort_by_key(|a| match a.get_info().device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    });
    found
}

impl Gpu {
    /// Connects to the most promising adapter, or shares the connection that there is.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no adapter or it refuses the connection.
    pub fn open() -> Result<Gpu> {
        static FIRST: Mutex<Option<Gpu>> = Mutex::new(None);
        let mut first = lock(&FIRST);
        match &*first {
            Some(gpu) if lock(&gpu.0.faults.lost).is_none() => Ok(gpu.clone()),
            _ => Ok(first.insert(Gpu::connect()?).clone()),
        }
    }

    fn connect() -> Result<Gpu> {
        let adapters = find_adapters();
        let Some(adapter) = adapters.first() else {
            return Err(failed(match std::env::var(CHOICE) {
                Ok(name) => format!("no adapter's name contains `{name}` ({CHOICE})"),
                Err(_) => "there is no Vulkan, Metal or DirectX 12 adapter; is a driver installed?".into(),
            }));
        };
        let useful = Features::SHADER_F16
            | Features::SUBGROUP
            | Features::TIMESTAMP_QUERY
            | Features::PIPELINE_CACHE
            | Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        // The defaults stop at 128 MiB an argument, whatever the adapter could do.
        let description = wgpu::DeviceDescriptor {
            label: Some("langevin"),
            required_features: adapter.features() & useful,
            required_limits: adapter.limits(),
            // SAFETY: of experimental features only cooperative matrices are asked for, and only the shaders of products use
            // them: in uniform control flow, inside of arrays in workgroup memory that tests run with checks on.
            experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
            ..Default::default()
        };
        let (device, queue) = block_on(adapter.request_device(&description))
            .map_err(|e| failed(format!("{} refuses: {e}", adapter.get_info().name)))?;
        Gpu::with_matrices(adapter.get_info(), device, queue, matrices(adapter))
    }

    /// Shares a device and a queue that someone else made; `info` is their adapter's. Ask for the adapter's limits when
    /// making the device: the defaults stop at 128 MiB a tensor. Cooperative matrices are used if the device has the feature and its adapter
    /// is among those that [`adapters`] finds: a device does not tell which ones it has.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the device's storage bindings must start at multiples of more than 256 bytes.
    pub fn from_parts(info: AdapterInfo, device: wgpu::Device, queue: wgpu::Queue) -> Result<Gpu> {
        let has = device.features().contains(MATRICES);
        let adapter = has.then(|| find_adapters().into_iter().find(|adapter| adapter.get_info() == info)).flatten();
        let matrices = adapter.as_ref().map(matrices).unwrap_or_default();
        Gpu::with_matrices(info, device, queue, matrices)
    }

    fn with_matrices(info: AdapterInfo, device: wgpu::Device, queue: wgpu::Queue, matrices: Matrices) -> Result<Gpu> {
        let (limits, features) = (device.limits(), device.features());
        let alignment = limits.min_storage_buffer_offset_alignment.max(limits.min_uniform_buffer_offset_alignment);
        if alignment as usize > ALIGN {
            return Err(Error::unsupported(&info.name, format!("bindings start at multiples of {alignment} bytes")));
        }
        let target = WgpuTarget {
            f16: features.contains(Features::SHADER_F16),
            subgroups: features.contains(Features::SUBGROUP),
            matrices,
            software: info.device_type == DeviceType::Cpu,
            workgroup_size: limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x),
            workgroup_bytes: limits.max_compute_workgroup_storage_size,
            grid: limits.max_compute_workgroups_per_dimension,
            arguments: limits.max_storage_buffers_per_shader_stage,
            argument_bytes: limits.max_storage_buffer_binding_size,
        };
        let faults = Arc::new(Faults::default());
        let of = faults.clone();
        device.set_device_lost_callback(move |reason, text| {
            lock(&of.lost).get_or_insert(format!("{reason:?}: {text}"));
        });
        let of = faults.clone();
        device.on_uncaptured_error(Arc::new(move |e| {
            lock(&of.error).get_or_insert(e.to_string());
        }));
        let pipelines = Pipelines::new(&device, &info);
        Ok(Gpu(Arc::new(Inner { info, device, queue, target, faults, pipelines })))
    }

    /// The adapter.
    pub fn info(&self) -> &AdapterInfo {
        &self.0.info
    }

    /// The wgpu device.
    pub fn device(&self) -> &wgpu::Device {
        &self.0.device
    }

    /// The wgpu queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.0.queue
    }

    /// What lowering needs to know of it.
    pub fn target(&self) -> WgpuTarget {
        self.0.target
    }

    pub(super) fn pipelines(&self) -> &Pipelines {
        &self.0.pipelines
    }

    /// Fails if the device was lost, or a call failed that could not say so.
    pub(super) fn check(&self) -> Result<()> {
        let error = lock(&self.0.faults.error).take();
        if error.is_some() {
            // A lost device fails at first, and says only when polled that it is lost.
            let _ = self.device().poll(wgpu::PollType::Poll);
        }
        match (lock(&self.0.faults.lost).clone(), error) {
            (Some(reason), _) => Err(Error::DeviceLost { device: NAME, reason }),
            (None, Some(reason)) => Err(failed(reason)),
            (None, None) => Ok(()),
        }
    }

    /// Runs `make` and gives the error that it caused to `describe`.
    pub(super) fn catch<T>(&self, make: impl FnOnce() -> T, describe: impl Fn(wgpu::Error) -> Error) -> Result<T> {
        let filters = [ErrorFilter::OutOfMemory, ErrorFilter::Validation, ErrorFilter::Internal];
        let scopes = filters.map(|f| self.device().push_error_scope(f));
        let made = make();
        // The last scope must be the first to go.
        let errors = scopes.into_iter().rev().filter_map(|scope| block_on(scope.pop()));
        match errors.last() {
            Some(e) => Err(describe(e)),
            None => self.check().map(|()| made),
        }
    }

    /// A buffer of `bytes`.
    pub(crate) fn buffer(&self, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        let limit = self.device().limits().max_buffer_size;
        if bytes > limit {
            return Err(Error::TooLarge { what: format!("the {label} of the wgpu device"), bytes, limit });
        }
        let description =
            wgpu::BufferDescriptor { label: Some(label), size: bytes.max(4), usage, mapped_at_creation: false };
        self.catch(
            || self.device().create_buffer(&description),
            |e| match e {
                wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory { device: NAME, what: label.to_owned(), bytes },
                e => failed(format!("the {label} of {bytes} bytes: {e}")),
            },
        )
    }

    /// Waits until the submission (all of them, if none is named) is done.
    pub(super) fn wait(&self, submission: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let polled = self.device().poll(wgpu::PollType::Wait { submission_index: submission, timeout: None });
        self.check()?;
        polled.map(|_| ()).map_err(failed)
    }
}

impl PartialEq for Gpu {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Gpu {}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({}, {:?})", self.0.info.name, self.0.info.backend)
    }
}
