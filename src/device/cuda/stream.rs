//! Launches on the GPU's stream; events for times.

use super::driver::checked;
use super::module::Function;
use super::{Gpu, driver};
use crate::Result;
use cudarc::driver::sys;
use std::ffi::c_void;

/// A launch of a kernel.
#[derive(Debug)]
pub struct Launch {
    pub function: Function,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// The bytes of each parameter.
    pub parameters: Vec<Vec<u8>>,
    /// What it is, for messages.
    pub what: String,
}

impl Launch {
    /// Where the parameters lie, which must be what the entry takes: the driver would read as many as that has, whatever lies there.
    pub(super) fn pointers(&self) -> Result<Vec<*mut c_void>> {
        let (given, wanted) = (self.parameters.iter().map(Vec::len), &self.function.parameters);
        if !given.clone().eq(wanted.iter().copied()) {
            let given: Vec<usize> = given.collect();
            let reason = format!("{}: parameters of {given:?} bytes for a kernel that takes {wanted:?}", self.what);
            return Err(driver::failed(reason));
        }
        Ok(self.parameters.iter().map(|p| p.as_ptr() as *mut c_void).collect())
    }
}

impl Gpu {
    /// Launches a kernel.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if the parameters are not what the entry takes, or the driver refuses.
    pub fn launch(&self, launch: &Launch) -> Result<()> {
        let mut pointers = launch.pointers()?;
        self.enter()?;
        let ([x, y, z], [u, v, w]) = (launch.grid, launch.block);
        // SAFETY: the parameters are as many and as long as the entry's; the driver copies them now.
        let result = unsafe {
            sys::cuLaunchKernel(
                launch.function.handle,
                x,
                y,
                z,
                u,
                v,
                w,
                launch.shared_bytes,
                self.stream(),
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        checked(result, &launch.what)
    }

    /// `count` events.
    pub fn events(&self, count: usize) -> Result<Events> {
        self.enter()?;
        let mut events = Events { gpu: self.clone(), all: Vec::with_capacity(count) };
        for _ in 0..count {
            let mut event = std::ptr::null_mut();
            // SAFETY: an out parameter.
            unsafe { checked(sys::cuEventCreate(&mut event, 0), "making an event")? };
            events.all.push(event);
        }
        Ok(events)
    }
}

/// Points in time.
#[derive(Debug)]
pub struct Events {
    gpu: Gpu,
    all: Vec<sys::CUevent>,
}

impl Events {
    pub(super) fn at(&self, i: usize) -> sys::CUevent {
        self.all[i]
    }

    /// Seconds from event `i` to the next one; both have happened.
    pub fn seconds(&self, i: usize) -> Result<f64> {
        let mut milliseconds = 0.0;
        // SAFETY: events of this context.
        unsafe {
            checked(sys::cuEventElapsedTime(&mut milliseconds, self.all[i], self.all[i + 1]), "reading an event")?;
        }
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: made in this context.
            self.all.iter().for_each(|event| unsafe {
                sys::cuEventDestroy_v2(*event);
            });
        }
    }
}
