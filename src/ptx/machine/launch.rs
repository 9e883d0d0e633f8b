//! How a kernel is launched, and whether that fits it.

use super::super::check::Failure;
use super::super::count::Counters;
use super::super::memory::{Memory, SHARED_START, Window};
use super::super::module::{Entry, Space, Variable};
use super::super::parse::MAX_SHARED;

/// Most threads of a block, and blocks of a cluster on any GPU.
const MAX_THREADS: u64 = 1024;
const MAX_CLUSTER: u64 = 8;
/// Bytes of local memory of all threads that run at a time, at most.
const MAX_LOCAL_OF_ALL: u64 = 1 << 30;

/// How a kernel is launched.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z: 1024 at most.
    pub block: [u32; 3],
    /// Bytes of `.extern .shared` memory.
    pub shared_bytes: u32,
    /// The bytes of each parameter.
    pub arguments: Vec<Vec<u8>>,
    /// What it may touch of global memory besides the module's variables; all allocations if the list is empty.
    pub windows: Vec<Window>,
    /// Instructions of warps after which the launch fails, so that an endless loop ends.
    pub budget: u64,
}

impl Launch {
    /// A launch without dynamic shared memory and arguments, and a budget of 10⁹ instructions.
    pub fn new(grid: [u32; 3], block: [u32; 3]) -> Self {
        Launch { grid, block, shared_bytes: 0, arguments: Vec::new(), windows: Vec::new(), budget: 1_000_000_000 }
    }

    /// Adds an argument: an address, or a scalar.
    pub fn argument(mut self, value: impl bytemuck::NoUninit) -> Self {
        self.arguments.push(bytemuck::bytes_of(&value).to_vec());
        self
    }

    /// Adds a window that may be read, and written if `writable`.
    pub fn window(mut self, name: &str, address: u64, bytes: u64, writable: bool) -> Self {
        self.windows.push(Window { name: name.to_owned(), address, bytes, writable });
        self
    }
}

impl Entry {
    /// Runs the kernel over `memory` until all of its threads have ended.
    ///
    /// # Errors
    /// [`Failure::Request`] if the launch does not fit the kernel, [`Failure::Fault`] at the first thing that the kernel
    /// does wrong.
    pub fn launch(&self, memory: &mut Memory, launch: &Launch) -> Result<Counters, Failure> {
        let parameters = self.check(launch).map_err(Failure::Request)?;
        let addresses = self.place(memory).map_err(|e| Failure::Request(e.to_string()))?;
        memory.begin_launch(&launch.windows).map_err(|e| Failure::Request(e.to_string()))?;
        let counters = self.run(memory, launch, &parameters, &addresses);
        let distinct = memory.end_launch();
        let mut counters = counters?;
        [counters.loads.distinct_bytes, counters.stores.distinct_bytes] = distinct;
        Ok(counters)
    }

    /// The bytes of all parameters, if the launch fits.
    fn check(&self, launch: &Launch) -> Result<Vec<u8>, String> {
        let name = &self.name;
        let threads: u64 = launch.block.iter().map(|n| u64::from(*n)).product();
        let [x, y, z] = launch.grid;
        let grid = (1..1 << 31).contains(&x) && (1..1 << 16).contains(&y) && (1..1 << 16).contains(&z);
        if !grid || threads == 0 || threads > MAX_THREADS {
            return Err(format!("a grid of {:?} blocks of {:?} threads is not possible", launch.grid, launch.block));
        }
        if let Some(required) = self.limits.threads.filter(|r| *r != launch.block) {
            return Err(format!("`{name}` requires blocks of {required:?} threads, not {:?}", launch.block));
        }
        if let Some(most) = self.limits.most_threads.filter(|most| threads > u64::from(*most)) {
            return Err(format!("`{name}` takes {most} threads a block at most, not {threads}"));
        }
        let cluster = self.limits.cluster;
        let blocks = cluster.iter().fold(1, |all: u64, n| all.saturating_mul(u64::from(*n)));
        let whole = (0..3).all(|axis| cluster[axis] > 0 && launch.grid[axis].is_multiple_of(cluster[axis]));
        if !whole || blocks > MAX_CLUSTER {
            return Err(format!("a grid of {:?} blocks cannot be in clusters of {cluster:?}", launch.grid));
        }
        if self.local_bytes * threads * blocks > MAX_LOCAL_OF_ALL {
            let local = self.local_bytes;
            return Err(format!(
                "`{name}` has {local} bytes of local memory a thread, {threads} threads and {blocks} blocks at once: too much"
            ));
        }
        if self.shared_bytes(launch) > MAX_SHARED {
            return Err(format!(
                "`{name}` has {} bytes of static shared memory, and {} more are asked for, where {MAX_SHARED} \
                 are possible",
                self.static_shared, launch.shared_bytes
            ));
        }
        let expected = || self.parameters.iter().map(|p| p.to_string()).collect::<Vec<_>>().join(", ");
        if launch.arguments.len() != self.parameters.len() {
            let (given, wanted) = (launch.arguments.len(), self.parameters.len());
            return Err(format!("`{name}` takes {wanted} arguments ({}), and {given} were given", expected()));
        }
        let mut bytes = Vec::new();
        for (i, (parameter, argument)) in self.parameters.iter().zip(&launch.arguments).enumerate() {
            if argument.len() as u64 != parameter.bytes {
                return Err(format!(
                    "argument {i} of `{name}` has {} bytes where `{parameter}` takes {}; all parameters: {}",
                    argument.len(),
                    parameter.bytes,
                    expected()
                ));
            }
            bytes.resize(parameter.offset as usize, 0);
            bytes.extend(argument);
        }
        Ok(bytes)
    }

    /// All bytes of a block's shared memory.
    pub(super) fn shared_bytes(&self, launch: &Launch) -> u64 {
        let dynamic = self.variables.iter().filter(|v| v.dynamic).map(|v| v.offset - SHARED_START).max();
        dynamic.unwrap_or(self.static_shared) + u64::from(launch.shared_bytes)
    }

    /// The address of every variable in its space.
    fn place(&self, memory: &mut Memory) -> crate::Result<Vec<u64>> {
        let place = |v: &Variable| match v.space {
            Space::Global | Space::Const => memory.variable(self.module, v),
            _ => Ok(v.offset),
        };
        self.variables.iter().map(place).collect()
    }
}
