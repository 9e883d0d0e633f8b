//! Devices: where an arena lives and who runs launches. They know kernels and memory, not ops.

mod arena;

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
    /// The fastest device there is: today the processor is the only one that this version has.
    pub fn auto() -> Device {
        Device::Cpu
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
            absent("wgpu", "WGSL kernels"),
            DeviceReport { name: "cpu", available: true, detail: cpu::describe() },
            absent("ptx", "PTX to execute"),
        ]
    }

    /// What graphs are lowered for on this device.
    pub fn target(&self) -> Target {
        match self {
            Device::Cpu => Target::Cpu,
        }
    }

    /// The device's name, as on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
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
        match Device::report().into_iter().find(|r| r.name == name) {
            Some(r) if r.available => Ok(Device::Cpu),
            Some(r) => Err(Error::Device { device: r.name, reason: r.detail }),
            None => Err(Error::invalid("device", format!("`{name}` is none of auto, cuda, wgpu, cpu, ptx"))),
        }
    }
}
