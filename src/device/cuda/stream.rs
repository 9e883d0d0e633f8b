//! Launches on the GPU's stream, alone or many at once as a graph; events for times.

use super::driver::checked;
use super::module::Function;
use super::{Gpu, driver};
use crate::Result;
use cudarc::driver::sys;
use std::ffi::c_void;

impl Gpu {
    /// Launches a kernel; `parameters` are the bytes of each.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if they are not what the entry takes, or the driver refuses.
    pub fn launch(
        &self,
        function: &Function,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        parameters: &[Vec<u8>],
        what: &str,
    ) -> Result<()> {
        // The driver would read as many as the entry has, whatever lies there.
        if !parameters.iter().map(Vec::len).eq(function.parameters.iter().copied()) {
            let given: Vec<usize> = parameters.iter().map(Vec::len).collect();
            let wanted = &function.parameters;
            return Err(driver::failed(format!(
                "{what}: parameters of {given:?} bytes for a kernel that takes {wanted:?}"
            )));
        }
        self.enter()?;
        let mut pointers: Vec<*mut c_void> = parameters.iter().map(|p| p.as_ptr() as *mut c_void).collect();
        let ([x, y, z], [u, v, w]) = (grid, block);
        // SAFETY: the parameters are as many and as long as the entry's; the driver copies them now.
        let result = unsafe {
            sys::cuLaunchKernel(
                function.handle,
                x,
                y,
                z,
                u,
                v,
                w,
                shared_bytes,
                self.stream(),
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        checked(result, what)
    }

    /// What `launches` puts on the stream, as a graph that can be launched again and again.
    pub fn capture(&self, launches: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let (mut graph, mut handle) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the stream is ours while it captures; the graph is destroyed once it is instantiated.
        unsafe {
            checked(sys::cuStreamBeginCapture_v2(self.stream(), mode), "capturing a program")?;
            let captured = launches();
            let ended = checked(sys::cuStreamEndCapture(self.stream(), &mut graph), "capturing a program");
            captured.and(ended)?;
            let made = sys::cuGraphInstantiateWithFlags(&mut handle, graph, 0);
            sys::cuGraphDestroy(graph);
            checked(made, "instantiating a program's graph")?;
        }
        Ok(Graph { gpu: self.clone(), handle })
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

/// Launches that are made at once.
#[derive(Debug)]
pub struct Graph {
    gpu: Gpu,
    handle: sys::CUgraphExec,
}

// SAFETY: a handle that may be used from any thread, by one at a time.
unsafe impl Send for Graph {}

impl Graph {
    /// Launches all.
    pub fn launch(&self) -> Result<()> {
        self.gpu.enter()?;
        // SAFETY: the graph is instantiated.
        unsafe { checked(sys::cuGraphLaunch(self.handle, self.gpu.stream()), "launching a program's graph") }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: instantiated in this context; the driver keeps what still runs.
            unsafe { sys::cuGraphExecDestroy(self.handle) };
        }
    }
}

/// Points in time on the stream.
#[derive(Debug)]
pub struct Events {
    gpu: Gpu,
    all: Vec<sys::CUevent>,
}

impl Events {
    /// Event `i` happens when what a graph under capture has up to here is done.
    pub fn record(&self, i: usize) -> Result<()> {
        let external = sys::CUevent_record_flags_enum::CU_EVENT_RECORD_EXTERNAL as u32;
        // SAFETY: an event of this context; with the flag the graph has it as a node, without it would only order what follows.
        unsafe { checked(sys::cuEventRecordWithFlags(self.all[i], self.gpu.stream(), external), "recording an event") }
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
