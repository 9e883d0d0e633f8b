//! Launches, bound to their places: made once a program, encoded as often as it runs.

use super::adapter::Gpu;
use super::arena::Arena;
use super::pipelines::Key;
use crate::device::ALIGN;
use crate::graph::{Flat, PLACES, Scalar, Shader};
use crate::{Error, Result};
use std::ops::Range;
use wgpu::{BindGroup, Buffer, BufferUsages, ComputePass, ComputePipeline};

/// A launch with its arguments at their places in the arena.
#[derive(Clone, Debug)]
pub struct Bound<'a> {
    pub shader: &'a Shader,
    pub grid: [u32; 3],
    /// Offset and size of every argument, in bytes.
    pub places: Vec<(usize, usize)>,
    pub scalars: &'a [Scalar],
    pub flat: Option<&'a Flat>,
    /// The op and its place in the model, for errors.
    pub what: String,
}

impl Bound<'_> {
    /// The shader to compile, and its name for errors.
    fn key(&self, checked: bool) -> (Key, &'static str) {
        (Key::new(self.shader, self.places.len(), checked), self.shader.name)
    }
}

/// Launches that are ready to be encoded.
#[derive(Debug)]
pub struct Recording {
    dispatches: Vec<Dispatch>,
    /// By launch: the number of its first dispatch; at the end, the number of all.
    first: Vec<usize>,
}

#[derive(Debug)]
struct Dispatch {
    pipeline: ComputePipeline,
    group: BindGroup,
    grid: [u32; 3],
}

const _: () = assert!(ALIGN == PLACES);

/// A stretch of a launch, or all of it.
struct Stretch {
    launch: usize,
    grid: [u32; 3],
    /// Which elements of an argument that is cut: the first, and how many.
    cut: Option<(usize, usize)>,
    scalars: Vec<u32>,
}

impl Recording {
    /// Compiles the shaders of launches, in parallel, so that recording these does not wait for them one by one.
    ///
    /// # Errors
    /// [`Error::Kernel`] if one is rejected.
    pub fn compile<'a>(gpu: &Gpu, launches: impl IntoIterator<Item = &'a Bound<'a>>) -> Result<()> {
        let wanted: Vec<_> = launches.into_iter().map(|launch| launch.key(false)).collect();
        gpu.pipelines().get(gpu, &wanted).map(drop)
    }

    /// Binds launches. With `guard` every access is checked, and a launch sees so many bytes behind each argument, so that
    /// what it writes there can be found.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if an argument is larger than the adapter can bind and the launch cannot be cut, and what
    /// compiling its shaders may return.
    pub fn new(gpu: &Gpu, arena: &Arena, launches: &[Bound], guard: Option<usize>) -> Result<Recording> {
        let mut stretches = Vec::new();
        let mut first = Vec::new();
        for (i, launch) in launches.iter().enumerate() {
            first.push(stretches.len());
            stretches.extend(cut(gpu, i, launch)?);
        }
        first.push(stretches.len());
        let wanted: Vec<_> = stretches.iter().map(|s| launches[s.launch].key(guard.is_some())).collect();
        let pipelines = gpu.pipelines().get(gpu, &wanted)?;
        let slots: Vec<usize> = stretches.iter().map(|s| (4 * s.scalars.len()).next_multiple_of(16).max(16)).collect();
        let (scalars, starts) = upload_scalars(gpu, &stretches, &slots)?;
        let groups = stretches.iter().zip(starts.iter().zip(&slots)).map(|(s, (start, bytes))| {
            let scalars = wgpu::BufferBinding {
                buffer: &scalars,
                offset: *start as u64,
                size: wgpu::BufferSize::new(*bytes as u64),
            };
            bind(gpu, arena, s, &launches[s.launch], scalars, guard.unwrap_or(0))
        });
        let groups = groups.collect::<Result<Vec<_>>>()?;
        let dispatches = stretches.iter().zip(pipelines).zip(groups);
        let dispatches = dispatches.map(|((s, pipeline), group)| Dispatch { pipeline, group, grid: s.grid }).collect();
        Ok(Recording { dispatches, first })
    }

    /// Number of launches.
    pub fn len(&self) -> usize {
        self.first.len() - 1
    }

    /// True if there is no launch.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The dispatches of some launches.
    pub(super) fn dispatches(&self, launches: Range<usize>) -> Range<usize> {
        self.first[launches.start]..self.first[launches.end]
    }

    /// Adds dispatches to a pass.
    pub(super) fn encode(&self, pass: &mut ComputePass, dispatches: Range<usize>) {
        for d in &self.dispatches[dispatches] {
            pass.set_pipeline(&d.pipeline);
            pass.set_bind_group(0, &d.group, &[]);
            pass.dispatch_workgroups(d.grid[0], d.grid[1], d.grid[2]);
        }
    }
}

/// A number as a shader reads it.
fn word(scalar: &Scalar) -> u32 {
    match scalar {
        Scalar::Int(v) => *v as u32,
        Scalar::Float(v) => v.to_bits(),
    }
}

/// A launch as stretches whose arguments can be bound: itself, nearly always.
fn cut(gpu: &Gpu, number: usize, launch: &Bound) -> Result<Vec<Stretch>> {
    let (target, limits) = (gpu.target(), gpu.device().limits());
    let scalars: Vec<u32> = launch.scalars.iter().map(word).collect();
    let most = limits.max_storage_buffer_binding_size as usize;
    let large = |bytes: usize| bytes + ALIGN > most;
    let too_large = |argument: usize, bytes: usize| Error::TooLarge {
        what: format!("argument {argument} of {}, which cannot be cut into smaller pieces,", launch.what),
        bytes: bytes as u64,
        limit: most as u64,
    };
    let is_cut = |i: usize| launch.flat.is_some_and(|f| f.arguments.contains(&i));
    let sizes = || launch.places.iter().map(|(_, bytes)| *bytes).enumerate();
    if let Some((i, bytes)) = sizes().find(|(i, bytes)| large(*bytes) && !is_cut(*i)) {
        return Err(too_large(i, bytes));
    }
    let (Some(flat), true) = (launch.flat, sizes().any(|(_, bytes)| large(bytes))) else {
        return Ok(vec![Stretch { launch: number, grid: launch.grid, cut: None, scalars }]);
    };
    // Whole groups, and whole alignments of numbers of 2 or 4 bytes, so that every stretch of an argument starts like its first.
    let unit = flat.per_group.max(ALIGN / 2);
    let widest = flat.arguments.iter().map(|i| element_bytes(flat, launch.places[*i].1)).max().unwrap_or(4);
    let step = (most - ALIGN) / widest / unit * unit;
    if step == 0 {
        return Err(too_large(flat.arguments[0], widest * unit + ALIGN));
    }
    let stretches = (0..flat.elements).step_by(step).map(|start| {
        let count = step.min(flat.elements - start);
        let mut scalars = scalars.clone();
        scalars[..2].copy_from_slice(&[count as u32, start as u32]);
        let grid = target.grid(count.div_ceil(flat.per_group));
        Stretch { launch: number, grid, cut: Some((start, count)), scalars }
    });
    Ok(stretches.collect())
}

/// Bytes of an element of an argument that is cut: it has as many elements as the launch. (A copy's last word may be half there.)
fn element_bytes(flat: &Flat, bytes: usize) -> usize {
    bytes.div_ceil(flat.elements.max(1))
}

/// All scalars in one buffer, and where those of each stretch start.
fn upload_scalars(gpu: &Gpu, stretches: &[Stretch], slots: &[usize]) -> Result<(Buffer, Vec<usize>)> {
    let mut starts = Vec::new();
    let mut bytes = 0;
    for slot in slots {
        starts.push(bytes);
        bytes += slot.next_multiple_of(ALIGN);
    }
    let mut words = vec![0u32; bytes / 4];
    for (s, start) in stretches.iter().zip(&starts) {
        words[start / 4..start / 4 + s.scalars.len()].copy_from_slice(&s.scalars);
    }
    let buffer = gpu.buffer("scalars", bytes as u64, BufferUsages::UNIFORM | BufferUsages::COPY_DST)?;
    gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(&words));
    Ok((buffer, starts))
}

fn bind(
    gpu: &Gpu,
    arena: &Arena,
    stretch: &Stretch,
    launch: &Bound,
    scalars: wgpu::BufferBinding,
    guard: usize,
) -> Result<BindGroup> {
    let most = gpu.device().limits().max_storage_buffer_binding_size as usize;
    let mut entries = vec![wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(scalars) }];
    for (i, (offset, bytes)) in launch.places.iter().enumerate() {
        let is_cut = launch.flat.is_some_and(|f| f.arguments.contains(&i));
        let (offset, bytes) = match stretch.cut.filter(|_| is_cut) {
            Some((start, count)) => {
                let each = launch.flat.map_or(4, |flat| element_bytes(flat, *bytes));
                (offset + each * start, each * count)
            }
            None => (*offset, *bytes),
        };
        let start = offset / ALIGN * ALIGN;
        let end = (offset + bytes).next_multiple_of(ALIGN) + guard;
        // The last value of the arena has no padding behind it, and there may be no room for a guard zone in what is bound.
        let size = (end - start).min(arena.behind(start)).min(most).max(4);
        let (buffer, at) = arena.find(start, size)?;
        let binding = wgpu::BufferBinding { buffer, offset: at, size: wgpu::BufferSize::new(size as u64) };
        let resource = wgpu::BindingResource::Buffer(binding);
        entries.push(wgpu::BindGroupEntry { binding: i as u32 + 1, resource });
    }
    let (layout, _) = gpu.pipelines().layout(gpu, launch.places.len());
    let description = wgpu::BindGroupDescriptor { label: Some(launch.shader.name), layout: &layout, entries: &entries };
    let refused = |e: wgpu::Error| Error::Device { device: super::NAME, reason: format!("{}: {e}", launch.what) };
    gpu.catch(|| gpu.device().create_bind_group(&description), refused)
}
