//! What a run on the wgpu device asks of the host's allocator, counted by that of this program: what wgpu itself takes to encode
//! and submit the same dispatches, and nothing on top. Skipped where there is no adapter, unless `LANGEVIN_REQUIRE=wgpu`.
#![cfg(feature = "wgpu")]

mod support;

use langevin::graph::Graph;
use langevin::ops::Affine;
use langevin::schedule::{Options, Rows, Schedule, Session, Step};
use langevin::tensor::TensorType;
use langevin::{Device, device};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

static CALLS: AtomicUsize = AtomicUsize::new(0);
static LIVE: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: everything is passed on to the system's allocator; the rest only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, SeqCst);
        LIVE.fetch_add(layout.size(), SeqCst);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), SeqCst);
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        CALLS.fetch_add(1, SeqCst);
        LIVE.fetch_add(size, SeqCst);
        LIVE.fetch_sub(layout.size(), SeqCst);
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The fewest allocations of several calls, after two that may keep what they take.
fn allocations(mut f: impl FnMut()) -> usize {
    (0..2).for_each(|_| f());
    let counted = (0..5).map(|_| {
        let before = CALLS.load(SeqCst);
        f();
        CALLS.load(SeqCst) - before
    });
    counted.min().unwrap()
}

/// `launches` of one kernel, each over the result of the last.
fn chain(device: &Device, launches: usize) -> Schedule {
    let mut g = Graph::new();
    let mut x = g.input("x", TensorType::f32([64]));
    for i in 0..launches {
        x = g.apply(Affine { scale: 0.5, shift: i as f32 }, &[x]).unwrap();
    }
    g.output("y", x);
    Schedule::once("chain", &g, device.target(), Options::default()).unwrap()
}

/// As many dispatches of one shader, each with scalars and arguments of its own, encoded, submitted and waited for by hand.
fn by_hand(gpu: &device::wgpu::Gpu, dispatches: u64) -> impl FnMut() {
    let source = "@group(0) @binding(0) var<uniform> s: vec4<f32>;
        @group(0) @binding(1) var<storage, read_write> x: array<f32>;
        @group(0) @binding(2) var<storage, read_write> y: array<f32>;
        @compute @workgroup_size(64) fn main(@builtin(local_invocation_index) i: u32) { y[i] = s.x * x[i] + s.y; }";
    let (gpu, queue) = (gpu.device().clone(), gpu.queue().clone());
    let module = gpu.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: None,
        source: wgpu::ShaderSource::Wgsl(source.into()),
    });
    let pipeline = gpu.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: Some("main"),
        compilation_options: Default::default(),
        cache: None,
    });
    let buffer = |size, usage| {
        gpu.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    };
    let scalars = buffer(256 * dispatches, wgpu::BufferUsages::UNIFORM);
    let arena = buffer(256 * (dispatches + 1), wgpu::BufferUsages::STORAGE);
    let layout = pipeline.get_bind_group_layout(0);
    let window = |binding, buffer, number: u64| {
        let size = wgpu::BufferSize::new(256);
        let window = wgpu::BufferBinding { buffer, offset: 256 * number, size };
        wgpu::BindGroupEntry { binding, resource: wgpu::BindingResource::Buffer(window) }
    };
    let group = |i| {
        let entries = [window(0, &scalars, i), window(1, &arena, i), window(2, &arena, i + 1)];
        gpu.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries })
    };
    let groups: Vec<_> = (0..dispatches).map(group).collect();
    move || {
        let mut encoder = gpu.create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default()).forget_lifetime();
        for group in &groups {
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, group, &[]);
            pass.dispatch_workgroups(1, 1, 1);
        }
        drop(pass);
        queue.submit([encoder.finish()]);
        gpu.poll(wgpu::PollType::wait_indefinitely()).unwrap();
    }
}

/// One test: the counts are of the whole program.
#[test]
fn a_run_allocates_what_wgpu_takes_and_nothing_more() {
    let Some(device) = support::wgpu() else { return };
    let Device::Wgpu(gpu) = &device else { panic!("{device} is another device") };
    for launches in [1, 32, 224] {
        let mut session = Session::new(device.clone(), chain(&device, launches)).unwrap();
        let ours = allocations(|| session.run(&mut |_, _| Ok(())).unwrap());
        let theirs = allocations(by_hand(gpu, launches as u64));
        println!("{launches} launches, one submission: {ours} allocations, by hand {theirs}");
        assert!(ours <= theirs + 2, "{launches} launches: {ours} allocations, wgpu alone {theirs}");
    }

    // A loop keeps nothing from row to row, however long it is.
    let mut schedule = chain(&device, 16);
    let row = schedule.buffers.declare("row", TensorType::f32([4]));
    schedule.row = Some(row);
    schedule.rows = Rows { columns: 4, data: vec![1.0; 4 * 400] };
    let mut growth = |rows: usize| {
        schedule.steps = vec![Step::Repeat { rows: 0..rows, body: vec![Step::Run(0)] }];
        let mut session = Session::new(device.clone(), schedule.clone()).unwrap();
        let mut run = || session.run(&mut |_, _| Ok(())).unwrap();
        (0..2).for_each(|_| run());
        let (calls, live) = (CALLS.load(SeqCst), LIVE.load(SeqCst));
        run();
        (CALLS.load(SeqCst) - calls, LIVE.load(SeqCst).saturating_sub(live))
    };
    let ([few, _], [many, kept]) = (<[usize; 2]>::from(growth(100)), <[usize; 2]>::from(growth(400)));
    println!("100 rows of 16 launches: {few} allocations; 400 rows: {many}, {kept} bytes kept");
    assert!(kept < 4096, "{kept} bytes are kept of a run of 400 rows");
    assert!(many as f64 <= 4.4 * few as f64, "a row takes more, the more there are: {few}, then {many}");
}
