//! Devices: where an arena lives and who runs launches. They know kernels and memory, not ops.

mod arena;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod ptx;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub use arena::{ALIGN, Arena};

use crate::cpu;
use crate::graph::{CudaTarget, Matrices, Target};
use crate::tensor::DType;
use crate::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// A device that programs run on.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Device {
    /// This machine's processor; threads are those of rayon's global pool.
    Cpu,
    /// PTX kernels on an NVIDIA GPU.
    #[cfg(feature = "cuda")]
    Cuda(cuda::Gpu),
    /// PTX kernels on the machine of [`crate::ptx`], for what such a GPU is given: to test kernels, not to be fast.
    Ptx(CudaTarget),
    /// WGSL shaders through Vulkan, Metal or DirectX 12.
    #[cfg(feature = "wgpu")]
    Wgpu(wgpu::Gpu),
}

/// What is known of a device on this machine.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DeviceReport {
    pub name: &'static str,
    pub available: bool,
    /// What it is, or why it is not there.
    pub detail: String,
    /// Of the wgpu device: every adapter, the one that is used first.
    pub adapters: Vec<AdapterReport>,
}

/// An adapter of the wgpu device, and what it offers.
#[derive(Clone, Debug, serde::Serialize)]
pub struct AdapterReport {
    pub name: String,
    /// Vulkan, Metal, ...
    pub backend: String,
    /// The driver's name and version, as far as it tells them.
    pub driver: String,
    /// A processor that plays GPU.
    pub software: bool,
    pub f16: bool,
    pub subgroups: bool,
    /// Cooperative matrices.
    pub matrices: Matrices,
    /// Kernels are timed by the adapter's own clock.
    pub timestamps: bool,
    /// Most bytes of one buffer; a larger arena is cut between tensors.
    pub buffer_bytes: u64,
    /// Most bytes of one tensor that a kernel sees. Elementwise kernels, linear layers, convolutions, group norms and
    /// nearest-neighbour resampling are cut into several, others refused.
    pub argument_bytes: u64,
    /// Most tensors of a kernel.
    pub arguments: u32,
    /// Most invocations of a workgroup, and bytes of its memory.
    pub workgroup_size: u32,
    pub workgroup_bytes: u32,
}

impl fmt::Display for AdapterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.software { ", on the processor" } else { "" };
        writeln!(f, "{} ({}{kind}), driver {}", self.name, self.backend, self.driver)?;
        let yes = |there| if there { "yes" } else { "no" };
        writeln!(
            f,
            "f16: {}, subgroups: {}, timestamps: {}",
            yes(self.f16),
            yes(self.subgroups),
            yes(self.timestamps)
        )?;
        let Matrices { f32, f16, subgroup } = self.matrices;
        if f32 + f16 > 0 {
            let sizes = [(f32, "f32"), (f16, "f16")].map(|(n, dtype)| match n {
                0 => format!("none of {dtype}"),
                n => format!("{n}×{n} of {dtype}"),
            });
            writeln!(f, "cooperative matrices: {}; subgroups of {subgroup} or more", sizes.join(", "))?;
        }
        let mib = |bytes: u64| bytes / 1048576;
        write!(
            f,
            "a buffer holds {} MiB; a kernel sees {} tensors of {} MiB; workgroups of {} with {} KiB",
            mib(self.buffer_bytes),
            self.arguments,
            mib(self.argument_bytes),
            self.workgroup_size,
            self.workgroup_bytes / 1024
        )
    }
}

/// What the host has done so far to have a device run launches that it does not run itself.
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub struct HostWork {
    /// Launches encoded; one that is cut counts as several.
    pub dispatches: usize,
    pub submissions: usize,
    pub encode_seconds: f64,
    /// In the driver's submission; one that runs submissions one by one on the processor may wait there.
    pub submit_seconds: f64,
}

impl Device {
    /// The device that runs everything: the processor. [`Device::auto_for`] looks further.
    pub fn auto() -> Device {
        Device::Cpu
    }

    /// The best device for something: the first of [`Device::report`]'s that is hardware of its own and that `fits` accepts,
    /// which should lower what is to run; otherwise the processor. `passed` is told which device was passed over, and why.
    pub fn auto_for(fits: impl Fn(&Device) -> Result<()>, mut passed: impl FnMut(String)) -> Device {
        // Without a driver there is nothing to tell.
        if let Ok(device) = Device::cuda() {
            match fits(&device) {
                Ok(()) => return device,
                Err(e) => passed(format!("auto takes another device than cuda: {e}")),
            }
        }
        let Some(adapter) = report_wgpu().adapters.into_iter().next() else { return Device::Cpu };
        let reason = match Device::wgpu_hardware(&adapter).and_then(|device| fits(&device).map(|()| device)) {
            Ok(device) => return device,
            Err(e) => e,
        };
        passed(format!("auto takes cpu and not wgpu on {}: {reason}", adapter.name));
        Device::Cpu
    }

    /// The most GFLOP/s that the device can do with numbers stored as `dtype`, where that is known: of GPUs on the cuda device.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub fn peak_gflops(&self, dtype: DType) -> Option<f64> {
        match self {
            #[cfg(feature = "cuda")]
            Device::Cuda(gpu) => gpu.peak_gflops(dtype),
            _ => None,
        }
    }

    /// The ptx device as a GPU of that compute capability.
    pub fn ptx(compute: (u32, u32)) -> Device {
        Device::Ptx(ptx::target(compute))
    }

    /// The wgpu device, if the adapter is hardware.
    fn wgpu_hardware(adapter: &AdapterReport) -> Result<Device> {
        match adapter.software {
            true => Err(Error::Device {
                device: "wgpu",
                reason: "that is this processor, which the cpu device uses better".into(),
            }),
            false => Device::wgpu(),
        }
    }

    /// The cuda device on the first GPU.
    ///
    /// # Errors
    /// [`Error::Device`] that says what is missing or too old.
    #[cfg(feature = "cuda")]
    pub fn cuda() -> Result<Device> {
        Ok(Device::Cuda(cuda::Gpu::open()?))
    }

    /// The cuda device, in a build that has none.
    #[cfg(not(feature = "cuda"))]
    pub fn cuda() -> Result<Device> {
        Err(Error::Device {
            device: "cuda",
            reason: "this build of langevin is without it (the feature `cuda`)".into(),
        })
    }

    /// The wgpu device on the most promising adapter; `LANGEVIN_ADAPTER` chooses one by a part of its name.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no adapter, or it refuses.
    #[cfg(feature = "wgpu")]
    pub fn wgpu() -> Result<Device> {
        Ok(Device::Wgpu(wgpu::Gpu::open()?))
    }

    /// The wgpu device on someone else's device and queue, see [`wgpu::Gpu::from_parts`].
    #[cfg(feature = "wgpu")]
    pub fn from_wgpu(info: ::wgpu::AdapterInfo, device: ::wgpu::Device, queue: ::wgpu::Queue) -> Result<Device> {
        Ok(Device::Wgpu(wgpu::Gpu::from_parts(info, device, queue)?))
    }

    /// The wgpu device, in a build that has none.
    #[cfg(not(feature = "wgpu"))]
    pub fn wgpu() -> Result<Device> {
        Err(Error::Device { device: "wgpu", reason: NOT_BUILT.into() })
    }

    /// Every device langevin knows, in `auto`'s order of preference, with the reason where one is not there.
    pub fn report() -> Vec<DeviceReport> {
        vec![
            report_cuda(),
            report_wgpu(),
            DeviceReport { name: "cpu", available: true, detail: cpu::describe(), adapters: vec![] },
            DeviceReport {
                name: "ptx",
                available: true,
                detail: "executes the kernels for NVIDIA GPUs on this processor, to test them; slow".into(),
                adapters: vec![],
            },
        ]
    }

    /// What graphs are lowered for on this device.
    pub fn target(&self) -> Target {
        match self {
            Device::Cpu => Target::Cpu,
            #[cfg(feature = "cuda")]
            Device::Cuda(gpu) => Target::Cuda(gpu.target()),
            Device::Ptx(target) => Target::Cuda(*target),
            #[cfg(feature = "wgpu")]
            Device::Wgpu(gpu) => Target::Wgpu(gpu.target()),
        }
    }

    /// The device's name, as on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => "cuda",
            Device::Ptx(_) => "ptx",
            #[cfg(feature = "wgpu")]
            Device::Wgpu(_) => "wgpu",
        }
    }
}

fn report_cuda() -> DeviceReport {
    #[cfg(feature = "cuda")]
    let found = cuda::Gpu::open().map(|gpu| gpu.to_string());
    #[cfg(not(feature = "cuda"))]
    let found = Device::cuda().map(|_| String::new());
    let (available, detail) = match found {
        Ok(detail) => (true, detail),
        Err(Error::Device { reason, .. }) => (false, reason),
        Err(e) => (false, e.to_string()),
    };
    DeviceReport { name: "cuda", available, detail, adapters: vec![] }
}

/// Why a build has no wgpu device.
#[cfg(not(feature = "wgpu"))]
const NOT_BUILT: &str = "this build of langevin is without it (the feature `wgpu`)";

#[cfg(not(feature = "wgpu"))]
fn report_wgpu() -> DeviceReport {
    DeviceReport { name: "wgpu", available: false, detail: NOT_BUILT.into(), adapters: vec![] }
}

#[cfg(feature = "wgpu")]
fn report_wgpu() -> DeviceReport {
    let adapters = wgpu::adapters();
    let detail = match &adapters[..] {
        [] => "there is no Vulkan, Metal or DirectX 12 adapter, or LANGEVIN_ADAPTER names none".into(),
        [first, ..] => format!("{} ({})", first.name, first.backend),
    };
    DeviceReport { name: "wgpu", available: !adapters.is_empty(), detail, adapters }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Device {
    type Err = Error;

    /// A device's name, or `auto` for [`Device::auto`]; `ptx:90` is the ptx device as a GPU of compute capability 9.0.
    fn from_str(name: &str) -> Result<Device> {
        match name {
            "auto" => return Ok(Device::auto()),
            // Not by the report, which would list all adapters.
            "cpu" => return Ok(Device::Cpu),
            "cuda" => return Device::cuda(),
            "ptx" => return Ok(Device::ptx((8, 0))),
            "ptx:90" => return Ok(Device::ptx((9, 0))),
            "wgpu" => return Device::wgpu(),
            _ => {}
        }
        match Device::report().into_iter().find(|r| r.name == name) {
            Some(r) => Err(Error::Device { device: r.name, reason: r.detail }),
            None => Err(Error::invalid("device", format!("`{name}` is none of auto, cuda, wgpu, cpu, ptx"))),
        }
    }
}
