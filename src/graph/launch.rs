//! What a device is told: kernel, grid, arguments, scalars. Devices know launches, not ops.

use std::fmt;

/// What a graph is lowered for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Target {
    /// Rust kernels on this machine's processor.
    Cpu,
}

/// An argument of a launch, before memory is planned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arg {
    /// Input i of the op.
    Input(usize),
    /// Output i of the op.
    Output(usize),
    /// Piece i of the launch's own scratch memory.
    Scratch(usize),
}

/// A number handed to a kernel.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Scalar {
    Int(usize),
    Float(f32),
}

impl From<usize> for Scalar {
    fn from(v: usize) -> Self {
        Scalar::Int(v)
    }
}

impl From<bool> for Scalar {
    fn from(v: bool) -> Self {
        Scalar::Int(v as usize)
    }
}

impl From<f32> for Scalar {
    fn from(v: f32) -> Self {
        Scalar::Float(v)
    }
}

/// The code that a launch runs.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub enum Kernel {
    /// A Rust function; it spreads over threads by itself, so the grid of a CPU launch is [1, 1, 1].
    Cpu { name: &'static str, run: fn(&Args) },
}

impl Kernel {
    /// The kernel's name, the same on every device.
    pub fn name(&self) -> &'static str {
        match self {
            Kernel::Cpu { name, .. } => name,
        }
    }
}

impl PartialEq for Kernel {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kernel::Cpu { name, .. } => write!(f, "cpu:{name}"),
        }
    }
}

/// One kernel launch of an op.
#[derive(Clone, PartialEq, Debug)]
pub struct Launch {
    pub kernel: Kernel,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub args: Vec<Arg>,
    pub scalars: Vec<Scalar>,
    /// Sizes in bytes of the scratch pieces that `Arg::Scratch` names.
    pub scratch: Vec<usize>,
}

impl Launch {
    /// A launch of a CPU kernel over all inputs and outputs in order: `inputs` of them, then `outputs`.
    pub fn cpu(name: &'static str, run: fn(&Args), inputs: usize, outputs: usize) -> Self {
        let args = (0..inputs).map(Arg::Input).chain((0..outputs).map(Arg::Output)).collect();
        let kernel = Kernel::Cpu { name, run };
        Launch { kernel, grid: [1; 3], block: [1; 3], args, scalars: vec![], scratch: vec![] }
    }

    /// Adds a scalar.
    pub fn scalar(mut self, value: impl Into<Scalar>) -> Self {
        self.scalars.push(value.into());
        self
    }

    /// Adds scalars.
    pub fn scalars<S: Into<Scalar>>(mut self, values: impl IntoIterator<Item = S>) -> Self {
        self.scalars.extend(values.into_iter().map(Into::into));
        self
    }

    /// Adds `elements` f32 of scratch as the last argument.
    pub fn with_scratch(mut self, elements: usize) -> Self {
        self.args.push(Arg::Scratch(self.scratch.len()));
        self.scratch.push(elements * 4);
        self
    }
}

/// A piece of the arena handed to a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    pub(crate) ptr: *mut u8,
    pub(crate) bytes: usize,
}

// SAFETY: a region is an address range of an arena that outlives every launch; the planner decides who may write where.
unsafe impl Send for Region {}
unsafe impl Sync for Region {}

/// Arguments of a running CPU kernel, in the order of [`Launch::args`].
pub struct Args<'a> {
    pub(crate) regions: &'a [Region],
    pub(crate) scalars: &'a [Scalar],
}

impl Args<'_> {
    /// Number of tensor arguments.
    pub fn len(&self) -> usize {
        self.regions.len()
    }

    /// True if there is no tensor argument.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Argument `i` as numbers to read.
    pub fn slice<T: bytemuck::Pod>(&self, i: usize) -> &[T] {
        let r = &self.regions[i];
        // SAFETY: the region lies inside the arena, is 64-byte aligned, and no launch runs beside this one. Kernels of ops
        // that may run in place use `ptr` instead, so that no `&` and `&mut` to one place exist at a time.
        unsafe { std::slice::from_raw_parts(r.ptr as *const T, r.bytes / size_of::<T>()) }
    }

    /// Argument `i`, an output, as numbers to write. Take each output once.
    #[allow(clippy::mut_from_ref)]
    pub fn slice_mut<T: bytemuck::Pod>(&self, i: usize) -> &mut [T] {
        let r = &self.regions[i];
        // SAFETY: as in `slice`; the planner gives every output memory that overlaps no other live value.
        unsafe { std::slice::from_raw_parts_mut(r.ptr as *mut T, r.bytes / size_of::<T>()) }
    }

    /// Argument `i` as a pointer and its length in elements, for kernels that may run in place.
    pub fn ptr(&self, i: usize) -> (*mut f32, usize) {
        (self.regions[i].ptr as *mut f32, self.regions[i].bytes / 4)
    }

    /// Scalar `i`, an integer (0 if it is a float: a bug in the op that lowered it).
    pub fn int(&self, i: usize) -> usize {
        match self.scalars[i] {
            Scalar::Int(v) => v,
            Scalar::Float(_) => 0,
        }
    }

    /// Scalar `i`, a float.
    pub fn float(&self, i: usize) -> f32 {
        match self.scalars[i] {
            Scalar::Int(v) => v as f32,
            Scalar::Float(v) => v,
        }
    }

    /// Scalar `i` as a flag.
    pub fn flag(&self, i: usize) -> bool {
        self.int(i) != 0
    }
}
