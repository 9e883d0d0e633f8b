//! NVIDIA GPUs through the driver's API. Nothing of CUDA is needed to build or to start: the driver's library is looked for when a GPU is asked for.

mod arena;
mod driver;
mod graph;
mod module;
mod stream;
mod tensor;

pub use arena::Arena;
pub use graph::{Graph, Node, Plan};
pub use module::Function;
pub use stream::{Events, Launch};

use crate::Result;
use crate::graph::{CudaTarget, Ptx};
use crate::tensor::DType;
use cudarc::driver::sys;
use driver::{checked, failed};
use module::Modules;
use std::fmt;
use std::sync::{Arc, Mutex};

/// The oldest driver: that of CUDA 12.0, which knows PTX ISA 8.0.
const OLDEST_DRIVER: i32 = 12000;
/// The oldest GPUs: those with `cp.async` and `mma.sync` of bf16.
const OLDEST_GPU: (u32, u32) = (8, 0);

/// A GPU with a context and a stream on it.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// Context and stream are of somebody else.
    borrowed: bool,
    name: String,
    driver: i32,
    memory: usize,
    target: CudaTarget,
    modules: Mutex<Modules>,
}

// SAFETY: contexts and streams may be used from any thread; every call makes the context current on its thread first.
unsafe impl Send for Inner {}
unsafe impl Sync for Inner {}

impl Gpu {
    /// The first GPU (`CUDA_VISIBLE_DEVICES` says which that is), on its primary context and a stream of its own.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if there is no driver, an old one, no GPU, or an old one.
    pub fn open() -> Result<Gpu> {
        driver::probe()?;
        let mut count = 0;
        // SAFETY: the driver's functions are there, which `probe` saw to; out parameters are of the types that they write.
        unsafe {
            checked(sys::cuInit(0), "initialising the driver")?;
            checked(sys::cuDeviceGetCount(&mut count), "counting GPUs")?;
        }
        if count == 0 {
            return Err(failed("the driver sees no GPU (CUDA_VISIBLE_DEVICES may hide it)"));
        }
        let (mut device, mut context, mut stream) = (0, std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: as above.
        unsafe { checked(sys::cuDeviceGet(&mut device, 0), "opening the GPU")? };
        let target = describe(device)?;
        // SAFETY: as above; the context is retained until `Inner` is dropped.
        unsafe {
            checked(sys::cuDevicePrimaryCtxRetain(&mut context, device), "taking the GPU's context")?;
            let created = checked(sys::cuCtxSetCurrent(context), "entering the GPU's context").and_then(|()| {
                checked(
                    sys::cuStreamCreate(&mut stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32),
                    "making a stream",
                )
            });
            if created.is_err() {
                sys::cuDevicePrimaryCtxRelease_v2(device);
            }
            created?;
        }
        Gpu::new(device, context, stream, false, target)
    }

    /// The GPU of an embedder's context; all work goes to the embedder's stream.
    ///
    /// ```no_run
    /// use cudarc::driver::sys::{CUcontext, CUstream};
    /// use langevin::device::{Device, cuda::Gpu};
    ///
    /// fn share(context: CUcontext, stream: CUstream) -> langevin::Result<Device> {
    ///     // SAFETY: both live longer than the session.
    ///     Ok(Device::Cuda(unsafe { Gpu::from_parts(context, stream) }?))
    /// }
    /// ```
    ///
    /// # Safety
    /// Context and stream must be valid, belong together, and outlive everything that is made of the `Gpu`.
    ///
    /// # Errors
    /// As [`Gpu::open`].
    pub unsafe fn from_parts(context: sys::CUcontext, stream: sys::CUstream) -> Result<Gpu> {
        driver::probe()?;
        let mut device = 0;
        // SAFETY: the caller's context is valid.
        unsafe {
            checked(sys::cuCtxSetCurrent(context), "entering the embedder's context")?;
            checked(sys::cuCtxGetDevice(&mut device), "asking for the context's GPU")?;
        }
        Gpu::new(device, context, stream, true, describe(device)?)
    }

    fn new(
        device: sys::CUdevice,
        context: sys::CUcontext,
        stream: sys::CUstream,
        borrowed: bool,
        target: CudaTarget,
    ) -> Result<Gpu> {
        let (mut driver, mut memory, mut name) = (0, 0, [0; 256]);
        // From here on dropping `inner` gives context and stream back.
        let mut inner = Inner {
            device,
            context,
            stream,
            borrowed,
            name: String::new(),
            driver,
            memory,
            target,
            modules: Mutex::default(),
        };
        // SAFETY: out parameters are of the types that the driver writes; the name is a buffer of that length.
        unsafe {
            checked(sys::cuDriverGetVersion(&mut driver), "asking for the driver's version")?;
            checked(sys::cuDeviceTotalMem_v2(&mut memory, device), "asking for the GPU's memory")?;
            checked(
                sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as i32 - 1, device),
                "asking for the GPU's name",
            )?;
            inner.name = driver::text(name.as_ptr());
        }
        (inner.driver, inner.memory) = (driver, memory);
        Ok(Gpu(Arc::new(inner)))
    }

    /// What graphs are lowered for.
    pub fn target(&self) -> CudaTarget {
        self.0.target
    }

    /// The stream that everything runs on.
    pub fn stream(&self) -> sys::CUstream {
        self.0.stream
    }

    /// The most GFLOP/s that it can do at its highest clock with numbers stored as `dtype`: of its FMA units in f32, of its tensor
    /// cores in 16 bits with sums in f32. `None` where the rate of its generation is not known here.
    pub fn peak_gflops(&self, dtype: DType) -> Option<f64> {
        let Inner { device, target, .. } = &*self.0;
        // Multiply-adds a clock of a multiprocessor: CUDA's programming guide and NVIDIA's papers on A100 and H100.
        let rate = match (dtype, target.compute) {
            (DType::F32, (8, 0)) => 64,
            (DType::F32, _) => 128,
            (DType::F16 | DType::Bf16, (8, 0)) => 1024,
            (DType::F16 | DType::Bf16, (9, 0)) => 2048,
            _ => return None,
        };
        let kilohertz = attribute(*device, sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE).ok()?;
        Some(2.0 * f64::from(rate * target.multiprocessors) * f64::from(kilohertz) / 1e6)
    }

    /// The entry of a kernel, loaded when it is first asked for.
    ///
    /// # Errors
    /// [`Error::Kernel`](crate::Error::Kernel) with the driver's log if it refuses the file, or has no such entry.
    pub fn function(&self, kernel: &Ptx) -> Result<Function> {
        self.enter()?;
        self.0.modules.lock().unwrap_or_else(|e| e.into_inner()).function(kernel, self.0.target.shared_bytes)
    }

    /// Makes the context current on this thread.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as `Inner`.
        unsafe { checked(sys::cuCtxSetCurrent(self.0.context), "entering the GPU's context") }
    }

    /// Bytes of the GPU's memory that nothing has.
    fn free_bytes(&self) -> Result<usize> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: out parameters.
        unsafe { checked(sys::cuMemGetInfo_v2(&mut free, &mut total), "asking for free memory")? };
        Ok(free)
    }
}

fn attribute(device: sys::CUdevice, which: sys::CUdevice_attribute) -> Result<u32> {
    let mut value = 0;
    // SAFETY: an out parameter.
    unsafe { checked(sys::cuDeviceGetAttribute(&mut value, which, device), "asking what the GPU has")? };
    Ok(value.max(0) as u32)
}

/// What a GPU offers.
fn describe(device: sys::CUdevice) -> Result<CudaTarget> {
    use sys::CUdevice_attribute as Attribute;
    let attribute = |which| attribute(device, which);
    let compute = (
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    if compute < OLDEST_GPU {
        let ((major, minor), (least, zero)) = (compute, OLDEST_GPU);
        return Err(failed(format!(
            "the GPU has compute capability {major}.{minor}, the kernels need {least}.{zero}: take `--device wgpu`"
        )));
    }
    Ok(CudaTarget {
        compute,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        software: false,
    })
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: nothing that was made of this GPU lives any more; modules go first, as they are the context's.
        unsafe {
            sys::cuCtxSetCurrent(self.context);
            self.modules.get_mut().unwrap_or_else(|e| e.into_inner()).unload();
            if !self.borrowed {
                sys::cuStreamDestroy_v2(self.stream);
                sys::cuDevicePrimaryCtxRelease_v2(self.device);
            }
        }
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
        write!(f, "Gpu({self})")
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { name, driver, memory, target, .. } = &*self.0;
        let ((major, minor), driver) = (target.compute, (driver / 1000, driver % 1000 / 10));
        let (gib, count) = (*memory as f64 / (1u64 << 30) as f64, target.multiprocessors);
        write!(f, "{name}, compute capability {major}.{minor}, {count} multiprocessors, {gib:.0} GiB")?;
        write!(f, ", driver for CUDA {}.{}", driver.0, driver.1)
    }
}
