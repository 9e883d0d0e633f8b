//! A driver that plays a GPU: the functions of libcuda that langevin calls, over the machine that executes PTX. With it the cuda device can be
//! tested to the last call where there is no GPU; `tests/cuda.rs` does. One context, one stream, everything at once.
//!
//! ```sh
//! cargo build --example fake_libcuda
//! mkdir fake && ln -s "$PWD/target/debug/examples/libfake_libcuda.so" fake/libcuda.so
//! LD_LIBRARY_PATH=fake langevin devices
//! ```
#![allow(non_snake_case)]

use langevin::ptx::tensor::{Element, Swizzle, TensorMap};
use langevin::ptx::{Entry, Launch, Memory, Module};
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::{Arc, LazyLock, Mutex};

type Status = c_int;
const SUCCESS: Status = 0;
const INVALID_VALUE: Status = 1;
const OUT_OF_MEMORY: Status = 2;
const INVALID_IMAGE: Status = 200;
const NOT_FOUND: Status = 500;
const LAUNCH_FAILED: Status = 719;
/// Attributes of functions.
const SHARED_SIZE: c_int = 1;
const MAX_DYNAMIC_SHARED_SIZE: c_int = 8;

/// A launch with its parameters, kept by a graph.
type Kept = (Arc<Entry>, Launch);

/// A launch of a graph, or an event, and the numbers of the nodes that it waits for, from 1.
#[derive(Clone)]
struct Node {
    after: Vec<usize>,
    launch: Option<Kept>,
}

/// `CUDA_KERNEL_NODE_PARAMS`.
#[repr(C)]
pub struct KernelNode {
    function: usize,
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    parameters: *const *const u8,
}

#[derive(Default)]
struct Driver {
    memory: Memory,
    /// Bytes of each allocation.
    sizes: HashMap<u64, usize>,
    modules: HashMap<usize, Module>,
    functions: HashMap<usize, Arc<Entry>>,
    /// What functions were allowed.
    dynamic_shared: HashMap<usize, c_uint>,
    graphs: HashMap<usize, Vec<Node>>,
    handles: usize,
    /// What a launch did wrong: found at the next wait, as on a GPU.
    fault: Option<String>,
}

static DRIVER: LazyLock<Mutex<Driver>> = LazyLock::new(Mutex::default);

/// The number that an environment variable has.
fn set(name: &str, default: i64) -> i64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// Most shared memory of a block.
fn most_shared() -> u64 {
    if set("FAKE_COMPUTE", 80) >= 90 { 227 * 1024 } else { 99 * 1024 }
}

fn with<T>(f: impl FnOnce(&mut Driver) -> T) -> T {
    f(&mut DRIVER.lock().unwrap_or_else(|e| e.into_inner()))
}

impl Driver {
    fn handle(&mut self) -> usize {
        self.handles += 1;
        self.handles
    }

    fn run(&mut self, (entry, launch): &Kept) {
        if let Err(failure) = entry.launch(&mut self.memory, launch) {
            eprintln!("fake_libcuda: {failure}");
            self.fault.get_or_insert(failure.to_string());
        }
    }

    /// A launch with its parameters, if it may be made.
    ///
    /// # Safety
    /// `parameters` must be as many pointers as the function takes, to as many bytes.
    unsafe fn launch(
        &self,
        function: usize,
        [grid, block]: [[c_uint; 3]; 2],
        shared: c_uint,
        parameters: *const *const u8,
    ) -> Result<Kept, Status> {
        let entry = self.functions.get(&function).cloned().ok_or(INVALID_VALUE)?;
        let unasked = (48 * 1024 - entry.static_shared_bytes().min(48 * 1024)) as c_uint;
        if shared > self.dynamic_shared.get(&function).copied().unwrap_or(unasked) {
            return Err(INVALID_VALUE);
        }
        let mut launch = Launch::new(grid, block);
        launch.shared_bytes = shared;
        // SAFETY: the caller's pointers are valid.
        let bytes = |(i, bytes): (usize, u64)| unsafe {
            std::slice::from_raw_parts(*parameters.add(i), bytes as usize).to_vec()
        };
        launch.arguments = entry.parameters.iter().map(|p| p.bytes).enumerate().map(bytes).collect();
        Ok((entry, launch))
    }

    /// Adds a node behind others to a graph.
    ///
    /// # Safety
    /// `after` must point to as many numbers as are told, and `node` to a place for one.
    unsafe fn add(
        &mut self,
        graph: usize,
        after: *const usize,
        count: usize,
        launch: Option<Kept>,
        node: *mut usize,
    ) -> Status {
        // SAFETY: the caller's pointers are valid.
        let after = if count == 0 { vec![] } else { unsafe { std::slice::from_raw_parts(after, count) }.to_vec() };
        match self.graphs.get_mut(&graph) {
            Some(nodes) if after.iter().all(|number| (1..=nodes.len()).contains(number)) => {
                nodes.push(Node { after, launch });
                // SAFETY: as above.
                unsafe { *node = nodes.len() };
                SUCCESS
            }
            _ => INVALID_VALUE,
        }
    }

    /// Runs a graph's nodes, of those that may run always the one that was added last: whoever waits for too little comes too early.
    fn run_all(&mut self, nodes: &[Node]) {
        let mut done = vec![false; nodes.len() + 1];
        for _ in nodes {
            let ready = |i: &usize| !done[i + 1] && nodes[*i].after.iter().all(|number| done[*number]);
            let Some(next) = (0..nodes.len()).rev().find(ready) else { return };
            nodes[next].launch.iter().for_each(|launch| self.run(launch));
            done[next + 1] = true;
        }
    }

    fn in_use(&self) -> usize {
        self.sizes.values().sum()
    }
}

/// Defines functions of the driver that do what the body says and return a status.
macro_rules! driver {
    ($($name:ident($($argument:ident: $ty:ty),*) $body:block)*) => {
        $(
            /// As the driver's function of that name.
            ///
            /// # Safety
            /// As that one's: pointers must be valid.
            #[allow(unused_unsafe)]
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($argument: $ty),*) -> Status {
                // SAFETY: the caller's pointers are valid.
                unsafe { $body }
            }
        )*
    };
}

driver! {
    cuInit(_flags: c_uint) { SUCCESS }
    cuDriverGetVersion(version: *mut c_int) { *version = set("FAKE_DRIVER", 12000) as c_int; SUCCESS }
    cuDeviceGetCount(count: *mut c_int) { *count = set("FAKE_GPUS", 1) as c_int; SUCCESS }
    cuDeviceGet(device: *mut c_int, number: c_int) { *device = number; SUCCESS }
    cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) { *bytes = set("FAKE_MEMORY", 1 << 30) as usize; SUCCESS }
    cuDeviceGetName(name: *mut c_char, length: c_int, _device: c_int) {
        let text = b"a fake GPU\0";
        text.iter().take(length as usize).enumerate().for_each(|(i, c)| *name.add(i) = *c as c_char);
        SUCCESS
    }
    cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, _device: c_int) {
        *value = match attribute {
            13 => 1_410_000,
            16 => 4,
            75 => set("FAKE_COMPUTE", 80) as c_int / 10,
            76 => set("FAKE_COMPUTE", 80) as c_int % 10,
            97 => most_shared() as c_int,
            _ => return INVALID_VALUE,
        };
        SUCCESS
    }
    cuDevicePrimaryCtxRetain(context: *mut usize, _device: c_int) { *context = 1; SUCCESS }
    cuDevicePrimaryCtxRelease_v2(_device: c_int) { SUCCESS }
    cuCtxSetCurrent(_context: usize) { SUCCESS }
    cuCtxGetDevice(device: *mut c_int) { *device = 0; SUCCESS }
    cuStreamCreate(stream: *mut usize, _flags: c_uint) { *stream = 1; SUCCESS }
    cuStreamDestroy_v2(_stream: usize) { SUCCESS }
    cuStreamSynchronize(_stream: usize) { with(|d| if d.fault.is_some() { LAUNCH_FAILED } else { SUCCESS }) }
    cuGetErrorString(status: Status, text: *mut *const c_char) {
        *text = match status {
            LAUNCH_FAILED => c"unspecified launch failure",
            OUT_OF_MEMORY => c"out of memory",
            _ => c"an error",
        }.as_ptr();
        SUCCESS
    }

    cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        with(|d| {
            *total = set("FAKE_MEMORY", 1 << 30) as usize;
            *free = *total - d.in_use();
            SUCCESS
        })
    }
    cuMemAlloc_v2(address: *mut u64, bytes: usize) {
        with(|d| {
            if bytes > set("FAKE_MEMORY", 1 << 30) as usize - d.in_use() {
                return OUT_OF_MEMORY;
            }
            let Ok(base) = d.memory.allocate("an allocation", bytes) else { return OUT_OF_MEMORY };
            d.sizes.insert(base, bytes);
            *address = base;
            SUCCESS
        })
    }
    cuMemFree_v2(address: u64) { with(|d| if d.sizes.remove(&address).is_some() { SUCCESS } else { INVALID_VALUE }) }
    cuMemHostAlloc(at: *mut *mut c_void, bytes: usize, _flags: c_uint) {
        // The length lies before it, for the way back.
        let mut words = vec![0u128; bytes.div_ceil(16) + 1].into_boxed_slice();
        words[0] = words.len() as u128;
        *at = (Box::into_raw(words) as *mut u128).add(1).cast();
        SUCCESS
    }
    cuMemFreeHost(at: *mut c_void) {
        let start = at.cast::<u128>().sub(1);
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(start, *start as usize)));
        SUCCESS
    }
    cuMemsetD8Async(at: u64, value: u8, bytes: usize, _stream: usize) {
        with(|d| d.memory.slice_mut(at, bytes).map_or(INVALID_VALUE, |place| { place.fill(value); SUCCESS }))
    }
    cuMemcpyHtoDAsync_v2(to: u64, from: *const u8, bytes: usize, _stream: usize) {
        let from = std::slice::from_raw_parts(from, bytes);
        with(|d| d.memory.slice_mut(to, bytes).map_or(INVALID_VALUE, |place| { place.copy_from_slice(from); SUCCESS }))
    }
    cuMemcpyDtoHAsync_v2(to: *mut u8, from: u64, bytes: usize, _stream: usize) {
        let to = std::slice::from_raw_parts_mut(to, bytes);
        with(|d| d.memory.slice(from, bytes).map_or(INVALID_VALUE, |place| { to.copy_from_slice(place); SUCCESS }))
    }
    cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, _stream: usize) {
        with(|d| {
            let Ok(copied) = d.memory.slice(from, bytes).map(<[u8]>::to_vec) else { return INVALID_VALUE };
            d.memory.slice_mut(to, bytes).map_or(INVALID_VALUE, |place| { place.copy_from_slice(&copied); SUCCESS })
        })
    }

    cuModuleLoadDataEx(module: *mut usize, image: *const c_char, count: c_uint, _options: *mut c_int, values: *mut *mut c_void) {
        match Module::parse(&CStr::from_ptr(image).to_string_lossy()) {
            Ok(parsed) => with(|d| {
                *module = d.handle();
                d.modules.insert(*module, parsed);
                SUCCESS
            }),
            Err(e) => {
                // The options are a log and its length.
                let says = e.to_string();
                if count == 2 {
                    let (log, length) = (*values as *mut u8, *values.add(1) as usize);
                    says.bytes().take(length - 1).enumerate().for_each(|(i, c)| *log.add(i) = c);
                }
                INVALID_IMAGE
            }
        }
    }
    cuModuleUnload(module: usize) { with(|d| if d.modules.remove(&module).is_some() { SUCCESS } else { INVALID_VALUE }) }
    cuModuleGetFunction(function: *mut usize, module: usize, name: *const c_char) {
        with(|d| {
            let found = d.modules.get(&module).and_then(|m| m.entry(&CStr::from_ptr(name).to_string_lossy())).cloned();
            let Some(entry) = found else { return NOT_FOUND };
            *function = d.handle();
            d.functions.insert(*function, entry);
            SUCCESS
        })
    }
    cuTensorMapEncodeTiled(
        map: *mut [u8; 128], element: c_uint, rank: c_uint, address: u64, shape: *const u64, strides: *const u64, tile: *const u32,
        steps: *const u32, interleave: c_uint, swizzle: c_uint, _promotion: c_uint, fill: c_uint
    ) {
        let (rank, kinds) = (rank as usize, [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128]);
        let element = match element {
            6 => Element::F16,
            9 => Element::Bf16,
            _ => return INVALID_VALUE,
        };
        let Some(swizzle) = kinds.get(swizzle as usize).copied().filter(|_| interleave == 0 && fill == 0) else {
            return INVALID_VALUE;
        };
        let described = TensorMap {
            element,
            address,
            shape: std::slice::from_raw_parts(shape, rank).to_vec(),
            strides: std::slice::from_raw_parts(strides, rank - 1).to_vec(),
            tile: std::slice::from_raw_parts(tile, rank).to_vec(),
            steps: std::slice::from_raw_parts(steps, rank).to_vec(),
            swizzle,
        };
        described.encode().map_or(INVALID_VALUE, |bytes| { *map = bytes; SUCCESS })
    }
    cuFuncGetAttribute(value: *mut c_int, attribute: c_int, function: usize) {
        with(|d| match (d.functions.get(&function), attribute) {
            (Some(entry), SHARED_SIZE) => { *value = entry.static_shared_bytes() as c_int; SUCCESS }
            _ => INVALID_VALUE,
        })
    }
    cuFuncSetAttribute(function: usize, attribute: c_int, value: c_int) {
        with(|d| match (d.functions.get(&function), attribute) {
            (Some(entry), MAX_DYNAMIC_SHARED_SIZE) if entry.static_shared_bytes() + value as u64 <= most_shared() => {
                d.dynamic_shared.insert(function, value as c_uint);
                SUCCESS
            }
            _ => INVALID_VALUE,
        })
    }
    cuLaunchKernel(
        function: usize, x: c_uint, y: c_uint, z: c_uint, u: c_uint, v: c_uint, w: c_uint, shared: c_uint, _stream: usize,
        parameters: *const *const u8, _extra: *mut *mut c_void
    ) {
        with(|d| match d.launch(function, [[x, y, z], [u, v, w]], shared, parameters) {
            Ok(kept) => { d.run(&kept); SUCCESS }
            Err(status) => status,
        })
    }

    cuGraphCreate(graph: *mut usize, _flags: c_uint) {
        with(|d| {
            *graph = d.handle();
            d.graphs.insert(*graph, vec![]);
            SUCCESS
        })
    }
    cuGraphAddKernelNode_v2(node: *mut usize, graph: usize, after: *const usize, count: usize, description: *const KernelNode) {
        let k = &*description;
        with(|d| {
            let kept = match d.launch(k.function, [k.grid, k.block], k.shared, k.parameters) {
                Ok(kept) => kept,
                Err(status) => return status,
            };
            d.add(graph, after, count, Some(kept), node)
        })
    }
    cuGraphAddEventRecordNode(node: *mut usize, graph: usize, after: *const usize, count: usize, _event: usize) {
        with(|d| d.add(graph, after, count, None, node))
    }
    cuGraphInstantiateWithFlags(made: *mut usize, graph: usize, _flags: u64) {
        with(|d| {
            let Some(kept) = d.graphs.get(&graph).cloned() else { return INVALID_VALUE };
            *made = d.handle();
            d.graphs.insert(*made, kept);
            SUCCESS
        })
    }
    cuGraphLaunch(graph: usize, _stream: usize) {
        with(|d| {
            let Some(kept) = d.graphs.get(&graph).cloned() else { return INVALID_VALUE };
            d.run_all(&kept);
            SUCCESS
        })
    }
    cuGraphDestroy(graph: usize) { with(|d| if d.graphs.remove(&graph).is_some() { SUCCESS } else { INVALID_VALUE }) }
    cuGraphExecDestroy(graph: usize) { with(|d| if d.graphs.remove(&graph).is_some() { SUCCESS } else { INVALID_VALUE }) }

    cuEventCreate(event: *mut usize, _flags: c_uint) { *event = 1; SUCCESS }
    cuEventElapsedTime(milliseconds: *mut f32, _start: usize, _end: usize) { *milliseconds = 1.0; SUCCESS }
    cuEventDestroy_v2(_event: usize) { SUCCESS }
}
