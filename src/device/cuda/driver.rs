//! The driver's library: whether it is there, whole and new enough, and what its errors say.

use super::OLDEST_DRIVER;
use crate::{Error, Result};
use cudarc::driver::sys::{self, CUresult};
use std::ffi::{CStr, c_char};
use std::sync::OnceLock;

/// Every function of the driver that this device calls. `cudarc` panics where one is missing, so all are looked for first.
const FUNCTIONS: &[&str] = &[
    "cuCtxGetDevice",
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuGetErrorString",
    "cuGraphAddEventRecordNode",
    "cuGraphAddKernelNode_v2",
    "cuGraphCreate",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuTensorMapEncodeTiled",
];

/// Fails unless the driver's library is there, has all functions, and is new enough. Looked for once a process.
pub(super) fn probe() -> Result<()> {
    static FOUND: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    FOUND.get_or_init(look).clone().map_err(failed)
}

fn look() -> std::result::Result<(), String> {
    // SAFETY: loading NVIDIA's library runs its initialisers, as every program with CUDA does.
    if !unsafe { sys::is_culib_present() } {
        return Err("NVIDIA's driver (libcuda) is not installed".into());
    }
    // SAFETY: the library is there; the type is not used to call anything.
    let has = |name: &&&str| unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes()).is_ok() };
    let missing = FUNCTIONS.iter().find(|name| !has(name));
    if let Some(name) = missing {
        return Err(format!("NVIDIA's driver has no `{name}`: install one for CUDA 12.0 or newer"));
    }
    let mut version = 0;
    // SAFETY: an out parameter; this function may be called before `cuInit`.
    let result = unsafe { sys::cuDriverGetVersion(&mut version) };
    if result != CUresult::CUDA_SUCCESS {
        return Err(format!("NVIDIA's driver does not tell its version ({result:?})"));
    }
    if version < OLDEST_DRIVER {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return Err(format!("NVIDIA's driver is for CUDA {major}.{minor}: install one for CUDA 12.0 or newer"));
    }
    Ok(())
}

pub(super) fn failed(reason: impl Into<String>) -> Error {
    Error::Device { device: "cuda", reason: reason.into() }
}

/// An error of the driver as langevin's; what cannot be recovered from is [`Error::DeviceLost`].
pub(super) fn checked(result: CUresult, what: &str) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut says = std::ptr::null();
    // SAFETY: an out parameter; the text is the driver's own.
    unsafe { sys::cuGetErrorString(result, &mut says) };
    let says = if says.is_null() { String::new() } else { format!(" ({})", text(says)) };
    let reason = format!("{what}: {result:?}{says}");
    match result {
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_LAUNCH_FAILED
        | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
        | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT => Err(Error::DeviceLost { device: "cuda", reason }),
        _ => Err(failed(reason)),
    }
}

/// Text that ends with a zero.
pub(super) fn text(from: *const c_char) -> String {
    // SAFETY: the callers have it from the driver, which ends it with a zero.
    unsafe { CStr::from_ptr(from) }.to_string_lossy().into_owned()
}
