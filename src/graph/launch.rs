//! What a device is told: kernel, grid, arguments, scalars. Devices know launches, not ops.

use crate::tensor::DType;
use crate::{Error, Result};
use std::fmt;
use std::ops::Range;

/// The text of a shader: files of `shaders/`, one after the other. `wgsl!(dtype; …)` is that for numbers of a type, f32 or f16;
/// without a type it is that for f32.
macro_rules! wgsl {
    (@join $($file:literal),+) => {
        concat!($(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $file, ".wgsl"))),+)
    };
    ($dtype:expr; $($file:literal),+) => {
        match $dtype {
            $crate::tensor::DType::F16 => $crate::graph::wgsl!(@join "lib/f16", $($file),+),
            _ => $crate::graph::wgsl!($($file),+),
        }
    };
    ($($file:literal),+) => { $crate::graph::wgsl!(@join "lib/f32", $($file),+) };
}
pub(crate) use wgsl;

/// The text of a shader that sums over workgroups: `lib/reduce` as the adapter does it best, then these files.
macro_rules! wgsl_with_sums {
    ($target:expr, $dtype:expr; $($file:literal),+) => {
        match $target.sums_by_subgroups() {
            true => $crate::graph::wgsl!($dtype; "lib/reduce_subgroups", $($file),+),
            false => $crate::graph::wgsl!($dtype; "lib/reduce", $($file),+),
        }
    };
}
pub(crate) use wgsl_with_sums;

/// The text of a shader with cooperative matrices of so many rows and columns that multiply numbers of a type.
macro_rules! wgsl_with_matrices {
    ($edge:expr, $dtype:expr; $($file:literal),+) => {
        match ($dtype, $edge) {
            ($crate::tensor::DType::F16, 16) => {
                $crate::graph::wgsl!(@join "lib/cooperative", "lib/f16", "lib/matrices_16", $($file),+)
            }
            ($crate::tensor::DType::F16, _) => {
                $crate::graph::wgsl!(@join "lib/cooperative", "lib/f16", "lib/matrices_8", $($file),+)
            }
            _ => $crate::graph::wgsl!(@join "lib/cooperative", "lib/f32", "lib/matrices_8", $($file),+),
        }
    };
}
pub(crate) use wgsl_with_matrices;

/// A file of `kernels/ptx/sm_80`, or of the folder that is named first, as a [`PtxFile`].
macro_rules! ptx {
    ($folder:literal, $file:literal) => {
        $crate::graph::PtxFile {
            folder: $folder,
            name: $file,
            text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/ptx/", $folder, "/", $file, ".ptx")),
        }
    };
    ($file:literal) => {
        $crate::graph::ptx!("sm_80", $file)
    };
}
pub(crate) use ptx;

/// What a graph is lowered for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Target {
    /// Rust kernels on this machine's processor.
    Cpu,
    /// WGSL shaders on an adapter that offers this.
    Wgpu(WgpuTarget),
    /// PTX kernels, on an NVIDIA GPU or the machine that plays one.
    Cuda(CudaTarget),
}

/// What lowering needs to know of what runs PTX.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CudaTarget {
    /// Compute capability, major and minor: 8.0 at least.
    pub compute: (u32, u32),
    /// Multiprocessors: fewer blocks than that leave some of them idle.
    pub multiprocessors: u32,
    /// Most bytes of a block's shared memory.
    pub shared_bytes: u32,
    /// The machine of [`crate::ptx`] instead of a GPU.
    pub software: bool,
}

impl Default for CudaTarget {
    /// What every GPU of compute capability 8 has; as many multiprocessors as an A100.
    fn default() -> Self {
        CudaTarget { compute: (8, 0), multiprocessors: 108, shared_bytes: 99 * 1024, software: false }
    }
}

/// What lowering needs to know of an adapter that runs WGSL. The default is what WebGPU guarantees everywhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WgpuTarget {
    /// The type `f16` and its storage.
    pub f16: bool,
    /// Subgroup builtins.
    pub subgroups: bool,
    /// Cooperative matrices.
    pub matrices: Matrices,
    /// A processor that plays GPU: memory is near, barriers and workgroup memory are dear.
    pub software: bool,
    /// Most invocations of a workgroup.
    pub workgroup_size: u32,
    /// Most bytes of workgroup memory.
    pub workgroup_bytes: u32,
    /// Most workgroups along one dimension of a grid.
    pub grid: u32,
    /// Most arguments of a launch.
    pub arguments: u32,
    /// Most bytes that a launch sees of one argument.
    pub argument_bytes: u64,
}

/// The square matrices that an adapter's subgroups multiply together, with sums in f32: WebGPU calls them cooperative, Metal
/// matrices of a SIMD group, NVIDIA tensor cores. The default is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Matrices {
    /// Rows and columns where the numbers are f32: 8, or 0 where there are none.
    pub f32: u32,
    /// Rows and columns where the numbers are f16: 16, 8 or 0.
    pub f16: u32,
    /// Invocations of the smallest subgroup.
    pub subgroup: u32,
}

impl Target {
    /// The device's name.
    pub fn name(&self) -> &'static str {
        match self {
            Target::Cpu => "cpu",
            Target::Wgpu(_) => "wgpu",
            Target::Cuda(CudaTarget { software: true, .. }) => "ptx",
            Target::Cuda(_) => "cuda",
        }
    }

    /// True if numbers may lie in memory as that type.
    pub fn stores(&self, dtype: DType) -> bool {
        match (self, dtype) {
            (_, DType::F32 | DType::I32) | (Target::Cuda(_), _) => true,
            (Target::Wgpu(target), DType::F16) => target.f16,
            (Target::Cpu | Target::Wgpu(_), _) => false,
        }
    }

    /// What [`Op::lower`](super::Op::lower) returns where the op has no kernel.
    ///
    /// # Errors
    /// [`Error::Unsupported`], always.
    pub fn lacks<T>(&self, op: &str) -> Result<T> {
        Err(Error::unsupported(format!("`{op}` on the {} device", self.name()), "the op has no kernel there yet"))
    }
}

impl Default for WgpuTarget {
    fn default() -> Self {
        WgpuTarget {
            f16: false,
            subgroups: false,
            matrices: Matrices::default(),
            software: false,
            workgroup_size: 256,
            workgroup_bytes: 16384,
            grid: 65535,
            arguments: 8,
            argument_bytes: 1 << 27,
        }
    }
}

/// From one place where an argument may begin to the next, in bytes.
pub(crate) const PLACES: usize = 256;

impl WgpuTarget {
    /// A processor that plays GPU has cheap barriers among few lanes, and nothing to gain.
    pub(crate) fn sums_by_subgroups(&self) -> bool {
        self.subgroups && !self.software
    }

    /// Rows and columns of the cooperative matrices for products of numbers of that type, if they pay: a processor that plays GPU
    /// has no unit for them.
    pub(crate) fn matrices(&self, dtype: DType) -> Option<u32> {
        let Matrices { f32, f16, subgroup } = self.matrices;
        let edge = if dtype == DType::F16 { f16 } else { f32 };
        // Four subgroups of 4 invocations at least; `shaders/lib/matrix_product.wgsl`.
        let fits = (4..=self.workgroup_size / 4).contains(&subgroup);
        (edge > 0 && fits && !self.software).then_some(edge)
    }

    /// How many of `count` rows a launch can see at once of arguments whose rows have so many bytes: all, or as many as begin and
    /// end where an argument may begin. None if it cannot see that many.
    pub fn rows(&self, count: usize, widths: &[usize]) -> Option<usize> {
        // An argument that begins between two places is seen from the place before it.
        let most = (self.argument_bytes as usize).saturating_sub(PLACES);
        let fit = most / widths.iter().copied().max().unwrap_or(0).max(1);
        let unit = widths.iter().map(|w| PLACES >> w.trailing_zeros().min(PLACES.ilog2())).max().unwrap_or(1);
        let rows = if fit >= count { count } else { fit / unit * unit };
        (rows > 0).then_some(rows)
    }

    /// The grid of `groups` workgroups: one row, or several where one dimension does not hold them. Shaders count groups as
    /// `wg.x + wg.y * count.x` and must not mind a few groups more than asked for.
    pub fn grid(&self, groups: usize) -> [u32; 3] {
        let rows = groups.div_ceil(self.grid as usize).max(1);
        [groups.div_ceil(rows).max(1) as u32, rows as u32, 1]
    }
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
    /// What an earlier launch of the same op left in its scratch memory: the launch's number, the piece.
    Left(usize, usize),
    /// The launch's [counters](Launch::counters).
    Counters,
}

/// A dense tensor, which a PTX kernel does not address but has brought to shared memory box by box (`cp.async.bulk.tensor`); zeros
/// stand for what is outside of it. Axes begin with the one whose numbers lie together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Boxes {
    pub dtype: DType,
    /// Numbers along each axis: one to five axes, all but the first of whose strides are multiples of 16 bytes.
    pub shape: Vec<usize>,
    /// Numbers of a box along each axis, at most 256. Along the first axis they are 32, 64 or 128 bytes, within which chunks of 16 are
    /// swizzled.
    pub extent: Vec<usize>,
    /// Of every axis each so many-th number is taken: 1 for the first axis, 8 at most for the others. All if there are none.
    pub steps: Vec<usize>,
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
#[derive(Clone)]
#[non_exhaustive]
pub enum Kernel {
    /// A Rust function; it spreads over threads by itself, so the grid of a CPU launch is [1, 1, 1].
    Cpu { name: &'static str, run: fn(&Args) },
    /// An entry point of a WGSL shader.
    Wgsl(Shader),
    /// An entry of a PTX module.
    Ptx(Ptx),
}

/// A file of PTX.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PtxFile {
    /// The folder of `kernels/ptx` that it is in: the architecture.
    pub folder: &'static str,
    /// The file's name without its ending, as that of the CUDA source.
    pub name: &'static str,
    pub text: &'static str,
}

/// An entry of a PTX module. Its parameters are the addresses of the launch's arguments, or descriptions of those that come
/// in [`Boxes`], then the launch's scalars: a `u32` for an integer or flag, an `f32` for a float. Conventions: `kernels/README.md`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ptx {
    /// The kernel's name, as on every device.
    pub name: &'static str,
    pub file: PtxFile,
    pub entry: String,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
}

impl Ptx {
    /// The entry for numbers of a type: `name` and the type, `activation_f32`.
    pub fn new(name: &'static str, file: PtxFile, dtype: DType) -> Self {
        Ptx { name, file, entry: format!("{name}_{dtype}"), shared_bytes: 0 }
    }

    /// The entry of that name.
    pub fn entry(self, entry: impl Into<String>) -> Self {
        Ptx { entry: entry.into(), ..self }
    }

    /// Asks for dynamic shared memory.
    pub fn shared(self, bytes: usize) -> Self {
        Ptx { shared_bytes: bytes as u32, ..self }
    }
}

/// An entry point of a WGSL module with its pipeline-overridable constants. Conventions: `shaders/README.md`.
#[derive(Clone, PartialEq, Debug)]
pub struct Shader {
    /// The kernel's name, as on every device.
    pub name: &'static str,
    /// The module's text: a file of `shaders/`, with the files of common code before it.
    pub source: &'static str,
    pub entry: &'static str,
    /// Values of the module's `override` declarations, by name; booleans are 0 and 1.
    pub constants: Vec<(&'static str, f64)>,
}

impl Shader {
    /// The entry point `main` of a module without constants.
    pub fn new(name: &'static str, source: &'static str) -> Self {
        Shader { name, source, entry: "main", constants: vec![] }
    }

    /// Another entry point.
    pub fn entry(mut self, entry: &'static str) -> Self {
        self.entry = entry;
        self
    }

    /// Sets an `override`.
    pub fn constant(mut self, name: &'static str, value: impl Into<f64>) -> Self {
        self.constants.push((name, value.into()));
        self
    }

    /// Sets a boolean `override`.
    pub fn flag(self, name: &'static str, value: bool) -> Self {
        self.constant(name, value as u32)
    }
}

impl Kernel {
    /// The kernel's name, the same on every device.
    pub fn name(&self) -> &'static str {
        match self {
            Kernel::Cpu { name, .. } => name,
            Kernel::Wgsl(shader) => shader.name,
            Kernel::Ptx(ptx) => ptx.name,
        }
    }
}

impl PartialEq for Kernel {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Kernel::Wgsl(a), Kernel::Wgsl(b)) => a == b,
            (Kernel::Ptx(a), Kernel::Ptx(b)) => a == b,
            (Kernel::Cpu { name: a, .. }, Kernel::Cpu { name: b, .. }) => a == b,
            _ => false,
        }
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kernel::Cpu { name, .. } => write!(f, "cpu:{name}"),
            Kernel::Wgsl(shader) => write!(f, "wgsl:{}:{}{:?}", shader.name, shader.entry, shader.constants),
            Kernel::Ptx(ptx) => write!(f, "ptx:{}:{}", ptx.name, ptx.entry),
        }
    }
}

/// Elements that a workgroup of an elementwise shader takes: 256 invocations, 4 each.
pub const FLAT_GROUP: usize = 1024;

/// Threads of a block of an elementwise PTX kernel; each takes 16 bytes of every array.
pub const FLAT_THREADS: usize = 256;

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
    /// How many numbers of 4 bytes `Arg::Counters` names, by which blocks tell one another how far they are. They are zero before the launch, which
    /// leaves them so; nobody else touches them.
    pub counters: usize,
    /// How it may be cut into several launches, each over a stretch of its arrays.
    pub flat: Option<Flat>,
    /// Arguments that may begin anywhere, not only at a multiple of [`ALIGN`](crate::device::ALIGN) bytes as views of a row
    /// or of a batch do. For each the number of the element at which it begins in what the shader sees is appended to
    /// the scalars, in this order. On the wgpu device other arguments are moved where they can be bound, which costs a copy.
    pub anywhere: Vec<usize>,
    /// Arguments of which the launch sees a part, and its bytes, see [`Launch::part`].
    pub parts: Vec<(usize, Range<usize>)>,
    /// Arguments that the kernel has brought in boxes.
    pub boxes: Vec<(usize, Boxes)>,
}

/// A launch over flat arrays of as many elements, of 2 or 4 bytes each, that may as well be several, each over a stretch of them. Its first
/// two scalars are how many elements the stretch has and which element is its first; element `i` of a stretch lies at
/// place `i` of an argument that is cut.
#[derive(Clone, PartialEq, Debug)]
pub struct Flat {
    pub elements: usize,
    /// How many elements a workgroup takes. Stretches start at multiples of it.
    pub per_group: usize,
    /// The arguments that are cut; the others are seen whole by every stretch.
    pub arguments: Vec<usize>,
}

impl Launch {
    /// A launch of a CPU kernel over all inputs and outputs in order: `inputs` of them, then `outputs`.
    pub fn cpu(name: &'static str, run: fn(&Args), inputs: usize, outputs: usize) -> Self {
        let args = (0..inputs).map(Arg::Input).chain((0..outputs).map(Arg::Output)).collect();
        let kernel = Kernel::Cpu { name, run };
        Launch {
            kernel,
            grid: [1; 3],
            block: [1; 3],
            args,
            scalars: vec![],
            scratch: vec![],
            counters: 0,
            flat: None,
            anywhere: vec![],
            parts: vec![],
            boxes: vec![],
        }
    }

    /// A launch of a WGSL shader over `args`. The workgroup's size is the shader's own.
    pub fn wgsl(shader: Shader, grid: [u32; 3], args: impl IntoIterator<Item = Arg>) -> Self {
        let (kernel, args) = (Kernel::Wgsl(shader), args.into_iter().collect());
        let (scalars, scratch, counters, flat, anywhere, parts, boxes) = Default::default();
        Launch { kernel, grid, block: [1; 3], args, scalars, scratch, counters, flat, anywhere, parts, boxes }
    }

    /// A launch of a PTX kernel over `args`: blocks, threads of a block.
    pub fn ptx(kernel: Ptx, grid: [usize; 3], block: usize, args: impl IntoIterator<Item = Arg>) -> Self {
        let (kernel, args) = (Kernel::Ptx(kernel), args.into_iter().collect());
        let (scalars, scratch, counters, flat, anywhere, parts, boxes) = Default::default();
        let (grid, block) = (grid.map(|n| n as u32), [block as u32, 1, 1]);
        Launch { kernel, grid, block, args, scalars, scratch, counters, flat, anywhere, parts, boxes }
    }

    /// A launch of an elementwise PTX kernel over `args`, whose arrays have `elements` numbers of `dtype`. Its first scalar is
    /// `elements`.
    pub fn ptx_flat(kernel: Ptx, dtype: DType, elements: usize, args: impl IntoIterator<Item = Arg>) -> Self {
        let blocks = elements.div_ceil(FLAT_THREADS * 16 / dtype.size()).max(1);
        Launch::ptx(kernel, [blocks, 1, 1], FLAT_THREADS, args).scalar(elements)
    }

    /// Takes argument `i` from those that are cut: every stretch sees all of it.
    pub fn whole(mut self, i: usize) -> Self {
        if let Some(flat) = &mut self.flat {
            flat.arguments.retain(|a| *a != i);
        }
        self
    }

    /// Lets the launch see only some bytes of an argument, or of what it sees of it, wherever that stands among the arguments. They begin at a
    /// multiple of [`ALIGN`](crate::device::ALIGN). So an op makes several launches where an adapter cannot bind an argument whole.
    pub fn part(mut self, arg: Arg, bytes: Range<usize>) -> Self {
        for i in (0..self.args.len()).filter(|i| self.args[*i] == arg) {
            match self.parts.iter_mut().find(|(argument, _)| *argument == i) {
                Some((_, seen)) => *seen = bytes.start + seen.start..bytes.start + seen.end,
                None => self.parts.push((i, bytes.clone())),
            }
        }
        self
    }

    /// The bytes of argument `i` that the launch sees, if not all.
    pub fn seen(&self, i: usize) -> Option<&Range<usize>> {
        self.parts.iter().find(|(argument, _)| *argument == i).map(|(_, bytes)| bytes)
    }

    /// Whether another launch of the op sees something of what this one sees as argument `i`.
    pub(crate) fn shares(&self, i: usize, other: &Launch) -> bool {
        let meet = |o| match (self.seen(i), other.seen(o)) {
            (Some(a), Some(b)) => a.start < b.end && b.start < a.end,
            _ => true,
        };
        (0..other.args.len()).any(|o| other.args[o] == self.args[i] && meet(o))
    }

    /// Whether this launch sees only some of its scratch piece `k`, and none of what another launch sees of that as argument `i`.
    pub(crate) fn leaves(&self, k: usize, other: &Launch, i: usize) -> bool {
        let own = (0..self.args.len()).filter(|a| self.args[*a] == Arg::Scratch(k));
        let mut parts = own.map(|a| (self.seen(a), other.seen(i)));
        parts.all(|parts| matches!(parts, (Some(own), Some(other)) if own.end <= other.start || other.end <= own.start))
    }

    /// Arguments that may begin anywhere, see [`Launch::anywhere`].
    pub fn anywhere(mut self, arguments: impl IntoIterator<Item = usize>) -> Self {
        self.anywhere.extend(arguments);
        self
    }

    /// A launch of a WGSL shader over flat arrays: `inputs` of them, then one output, all of `elements` numbers.
    /// Its first scalars are `elements` and 0, see [`Flat`]; its last ones where each array begins, see
    /// [`Launch::anywhere`]. A workgroup takes [`FLAT_GROUP`] elements.
    pub fn flat(shader: Shader, target: &WgpuTarget, elements: usize, inputs: usize) -> Self {
        let args = (0..inputs).map(Arg::Input).chain([Arg::Output(0)]);
        Launch::over(shader, target, elements, args, 0..=inputs)
    }

    /// As [`Launch::flat`], but over any arguments, of which only those of `cut` are flat arrays of `elements` numbers; the
    /// others are seen whole.
    pub fn over(
        shader: Shader,
        target: &WgpuTarget,
        elements: usize,
        args: impl IntoIterator<Item = Arg>,
        cut: impl IntoIterator<Item = usize>,
    ) -> Self {
        let launch = Launch::wgsl(shader, target.grid(elements.div_ceil(FLAT_GROUP)), args);
        let flat = Flat { elements, per_group: FLAT_GROUP, arguments: cut.into_iter().collect() };
        let all = 0..launch.args.len();
        Launch { flat: Some(flat), ..launch.scalars([elements, 0]).anywhere(all) }
    }

    /// Has argument `i` brought in boxes. It begins at a multiple of 16 bytes, as all do whose numbers have fewer than 4.
    pub fn in_boxes(mut self, i: usize, boxes: Boxes) -> Self {
        self.boxes.push((i, boxes));
        self
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

    /// Adds an argument.
    pub fn arg(mut self, arg: Arg) -> Self {
        self.args.push(arg);
        self
    }

    /// Adds `elements` f32 of scratch as the last argument.
    pub fn with_scratch(mut self, elements: usize) -> Self {
        self.args.push(Arg::Scratch(self.scratch.len()));
        self.scratch.push(elements * 4);
        self
    }

    /// Adds so many counters as the last argument.
    pub fn with_counters(mut self, counters: usize) -> Self {
        self.args.push(Arg::Counters);
        Launch { counters, ..self }
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
        // SAFETY: the region lies inside the arena, is aligned for its numbers, and no launch runs beside this one. Kernels of ops
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
