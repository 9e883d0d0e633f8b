//! Devices: where an arena lives and who runs launches. They know kernels and memory, not ops.

mod arena;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub use arena::{ALIGN, Arena};

use crate::cpu;
use crate::graph::Target;
use crate::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// A device that programs run on.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Device {
    /// This machine's processor; threads are those of rayon's global pool.
    Cpu,
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
}

impl Device {
    /// The fastest device that knows every op: today the processor.
    pub fn auto() -> Device {
        Device::Cpu
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
        let absent = |name, what: &str| DeviceReport {
            name,
            available: false,
            detail: format!("this version of langevin has no {what} yet"),
        };
        vec![
            absent("cuda", "CUDA kernels"),
            report_wgpu(),
            DeviceReport { name: "cpu", available: true, detail: cpu::describe() },
            absent("ptx", "PTX to execute"),
        ]
    }

    /// What graphs are lowered for on this device.
    pub fn target(&self) -> Target {
        match self {
            Device::Cpu => Target::Cpu,
            #[cfg(feature = "wgpu")]
            Device::Wgpu(gpu) => Target::Wgpu(gpu.target()),
        }
    }

    /// The device's name, as on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            #[cfg(feature = "wgpu")]
            Device::Wgpu(_) => "wgpu",
        }
    }
}

/// Why a build has no wgpu device.
#[cfg(not(feature = "wgpu"))]
const NOT_BUILT: &str = "this build of langevin is without it (the feature `wgpu`)";

#[cfg(not(feature = "wgpu"))]
fn report_wgpu() -> DeviceReport {
    DeviceReport { name: "wgpu", available: false, detail: NOT_BUILT.into() }
}

#[cfg(feature = "wgpu")]
fn report_wgpu() -> DeviceReport {
    let adapters = wgpu::adapters();
    let software = |a: &::wgpu::AdapterInfo| a.device_type == ::wgpu::DeviceType::Cpu;
    let describe = |a: &::wgpu::AdapterInfo| {
        let kind = if software(a) { ", on the processor" } else { "" };
        format!("{} ({:?}{kind})", a.name, a.backend)
    };
    match adapters.first() {
        None => {
            let detail = "there is no Vulkan, Metal or DirectX 12 adapter, or LANGEVIN_ADAPTER names none";
            DeviceReport { name: "wgpu", available: false, detail: detail.into() }
        }
        Some(_) => {
            let names: Vec<String> = adapters.iter().map(describe).collect();
            let detail = format!("{}; part of the ops have shaders", names.join(", "));
            DeviceReport { name: "wgpu", available: true, detail }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Device {
    type Err = Error;

    /// `auto` or a device's name.
    fn from_str(name: &str) -> Result<Device> {
        if name == "auto" {
            return Ok(Device::auto());
        }
        if name == "wgpu" {
            return Device::wgpu();
        }
        match Device::report().into_iter().find(|r| r.name == name) {
            Some(r) if r.available => Ok(Device::Cpu),
            Some(r) => Err(Error::Device { device: r.name, reason: r.detail }),
            None => Err(Error::invalid("device", format!("`{name}` is none of auto, cuda, wgpu, cpu, ptx"))),
        }
    }
}
