//! Launches that are made at once, each when those that it waits for have ended.

use super::driver::checked;
use super::{Events, Gpu, Launch};
use crate::Result;
use cudarc::driver::sys;

/// A launch or an event of a graph.
#[derive(Clone, Copy, Debug)]
pub struct Node(sys::CUgraphNode);

/// A graph to which launches are added.
#[derive(Debug)]
pub struct Plan {
    gpu: Gpu,
    graph: sys::CUgraph,
}

impl Gpu {
    /// A graph without launches.
    pub fn plan(&self) -> Result<Plan> {
        self.enter()?;
        let mut graph = std::ptr::null_mut();
        // SAFETY: an out parameter.
        unsafe { checked(sys::cuGraphCreate(&mut graph, 0), "making a program's graph")? };
        Ok(Plan { gpu: self.clone(), graph })
    }
}

impl Plan {
    /// Adds a launch, which begins when the nodes `after` have ended.
    ///
    /// # Errors
    /// As [`Gpu::launch`].
    pub fn launch(&self, launch: &Launch, after: &[Node]) -> Result<Node> {
        let (mut pointers, after) = (launch.pointers()?, handles(after));
        let ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]) = (launch.grid, launch.block);
        let description = sys::CUDA_KERNEL_NODE_PARAMS {
            func: launch.function.handle,
            gridDimX: grid_x,
            gridDimY: grid_y,
            gridDimZ: grid_z,
            blockDimX: block_x,
            blockDimY: block_y,
            blockDimZ: block_z,
            sharedMemBytes: launch.shared_bytes,
            kernelParams: pointers.as_mut_ptr(),
            extra: std::ptr::null_mut(),
            kern: std::ptr::null_mut(),
            ctx: std::ptr::null_mut(),
        };
        let mut node = std::ptr::null_mut();
        // SAFETY: nodes are of this graph; parameters are as many and as long as the entry's, and copied now.
        let result =
            unsafe { sys::cuGraphAddKernelNode_v2(&mut node, self.graph, after.as_ptr(), after.len(), &description) };
        checked(result, &launch.what)?;
        Ok(Node(node))
    }

    /// Adds that event `i` happens when the nodes `after` have ended.
    pub fn record(&self, events: &Events, i: usize, after: &[Node]) -> Result<Node> {
        let (mut node, after) = (std::ptr::null_mut(), handles(after));
        // SAFETY: nodes are of this graph; the event is of this context.
        let result =
            unsafe { sys::cuGraphAddEventRecordNode(&mut node, self.graph, after.as_ptr(), after.len(), events.at(i)) };
        checked(result, "adding an event to a program's graph")?;
        Ok(Node(node))
    }

    /// The graph, ready to be launched.
    pub fn finish(self) -> Result<Graph> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: an out parameter; the graph may go once it is instantiated.
        unsafe {
            checked(sys::cuGraphInstantiateWithFlags(&mut handle, self.graph, 0), "instantiating a program's graph")?;
        }
        Ok(Graph { gpu: self.gpu.clone(), handle })
    }
}

fn handles(nodes: &[Node]) -> Vec<sys::CUgraphNode> {
    nodes.iter().map(|node| node.0).collect()
}

impl Drop for Plan {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: made in this context.
            unsafe { sys::cuGraphDestroy(self.graph) };
        }
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
