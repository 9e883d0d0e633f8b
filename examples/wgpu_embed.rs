//! langevin inside a program that has a wgpu device of its own: both share it, and the result is drawn from the buffer that
//! langevin left it in. The host sees only the finished picture, `wgpu_embed.png`: a small network that maps places to colours.
//!
//!     cargo run --release --example wgpu_embed

use langevin::graph::{Graph, Value};
use langevin::image::Image;
use langevin::ops::{Activation, Affine, Epilogue, GroupNorm, Linear};
use langevin::passes::fuse::{Purpose, fuse};
use langevin::schedule::{Options, Schedule, Session};
use langevin::tensor::{TensorType, to_layout};
use langevin::{Device, Result};
use pollster::block_on;

/// Pixels along a side of what the network makes, and of the picture.
const SIDE: usize = 128;
const PICTURE: u32 = 512;
const WIDTH: usize = 32;

/// A triangle over the whole picture, whose pixels take their colour from the buffer: `[SIDE, SIDE, 3]`, from 0 to 1.
const DRAW: &str = "
override SIDE: u32;
override PICTURE: u32;
@group(0) @binding(0) var<storage, read> colours: array<f32>;

@vertex
fn corner(@builtin(vertex_index) i: u32) -> @builtin(position) vec4<f32> {
    return vec4<f32>(f32(i & 1u) * 4.0 - 1.0, f32(i >> 1u) * 4.0 - 1.0, 0.0, 1.0);
}

@fragment
fn pixel(@builtin(position) at: vec4<f32>) -> @location(0) vec4<f32> {
    let place = vec2<u32>(at.xy) * SIDE / PICTURE;
    let first = (place.y * SIDE + place.x) * 3u;
    return vec4<f32>(colours[first], colours[first + 1u], colours[first + 2u], 1.0);
}
";

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    // The embedder's own: what it draws with.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let Ok(adapter) = block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default())) else {
        println!("nothing was drawn: there is no Vulkan, Metal or DirectX 12 adapter");
        return Ok(());
    };
    // The limits are the adapter's: by default a tensor may have 128 MiB.
    let description = wgpu::DeviceDescriptor { required_limits: adapter.limits(), ..Default::default() };
    let (gpu, queue) = block_on(adapter.request_device(&description))?;

    // langevin's: the same device and queue, and a schedule.
    let device = Device::from_wgpu(adapter.get_info(), gpu.clone(), queue.clone())?;
    let (graph, _) = fuse(&network()?, Purpose::Inference)?;
    let schedule = Schedule::once("colours", &graph, device.target(), Options::default())?;
    let mut session = Session::new(device, schedule)?;
    write_inputs(&mut session)?;
    session.run(&mut |_, _| Ok(()))?;

    // The result, where it is. What the embedder submits now comes after what langevin submitted.
    let colours = session.schedule().buffers.find("colours").ok_or("the schedule has no buffer `colours`")?;
    let (buffer, offset) = session.wgpu_buffer(colours)?;
    let size = wgpu::BufferSize::new(12 * (SIDE * SIDE) as u64);
    let pixels = draw(&gpu, &queue, wgpu::BufferBinding { buffer: &buffer, offset, size })?;
    Image::new(PICTURE as usize, PICTURE as usize, 3, pixels)?.save_png("wgpu_embed.png")?;
    println!("wgpu_embed.png was drawn on {}", adapter.get_info().name);
    Ok(())
}

/// Places `[1, pixels, 4]` (x, y, distance from the middle, 1) to colours `[1, pixels, 3]`: three layers of random weights.
fn network() -> Result<Graph> {
    let mut g = Graph::new();
    let mut x = g.input("places", TensorType::f32([1, SIDE * SIDE, 4]));
    for layer in 0..3 {
        x = linear(&mut g, layer, x, WIDTH)?;
        let [gamma, beta] =
            ["gamma", "beta"].map(|name| g.parameter(format!("{name}{layer}"), TensorType::f32([WIDTH])));
        let norm = GroupNorm { groups: 4, eps: 1e-5, activation: Activation::Silu, modulate: false };
        x = g.apply(norm, &[x, gamma, beta])?;
    }
    let colours = linear(&mut g, 3, x, 3)?;
    let colours = g.apply(Affine { scale: 0.3, shift: 0.5 }, &[colours])?;
    g.output("colours", colours);
    Ok(g)
}

fn linear(g: &mut Graph, layer: usize, x: Value, outputs: usize) -> Result<Value> {
    let inputs = g.ty(x).cols();
    let weight = g.parameter(format!("weight{layer}"), TensorType::panels([inputs, outputs]));
    let bias = g.parameter(format!("bias{layer}"), TensorType::f32([outputs]));
    g.apply(Linear(Epilogue::bias()), &[x, weight, bias])
}

/// Weights of mean 0, drawn from the cosine of their number; gammas 1, betas 0.
fn write_inputs(session: &mut Session) -> Result<()> {
    let noise = |i: usize| (12.9898 * (i + 1) as f32 + 0.01 * (i * i) as f32).cos();
    let buffers = session.schedule().buffers.clone();
    for buffer in buffers.all() {
        let Some(id) = buffers.find(&buffer.name) else { continue };
        let plain: Vec<f32> = match buffer.name.trim_end_matches(|c: char| c.is_ascii_digit()) {
            "places" => (0..SIDE * SIDE).flat_map(|i| place(i % SIDE, i / SIDE)).collect(),
            "weight" => (0..buffer.ty.elements()).map(noise).collect(),
            "gamma" => vec![1.0; WIDTH],
            _ => continue,
        };
        session.fill(id, |stored| to_layout(&buffer.ty, &plain, stored))?;
    }
    Ok(())
}

fn place(column: usize, row: usize) -> [f32; 4] {
    let [x, y] = [column, row].map(|i| 2.0 * i as f32 / SIDE as f32 - 1.0);
    [x, y, 2.0 * x.hypot(y), 1.0]
}

/// Draws the buffer into a texture, and reads that back: RGB.
fn draw(
    gpu: &wgpu::Device,
    queue: &wgpu::Queue,
    colours: wgpu::BufferBinding,
) -> std::result::Result<Vec<u8>, Box<dyn std::error::Error>> {
    let format = wgpu::TextureFormat::Rgba8Unorm;
    let extent = wgpu::Extent3d { width: PICTURE, height: PICTURE, depth_or_array_layers: 1 };
    let texture = gpu.create_texture(&wgpu::TextureDescriptor {
        label: Some("picture"),
        size: extent,
        mip_level_count: 1,
        sample_count: 1,
        dimension: wgpu::TextureDimension::D2,
        format,
        usage: wgpu::TextureUsages::RENDER_ATTACHMENT | wgpu::TextureUsages::COPY_SRC,
        view_formats: &[],
    });
    let shader = wgpu::ShaderModuleDescriptor { label: Some("draw"), source: wgpu::ShaderSource::Wgsl(DRAW.into()) };
    let module = gpu.create_shader_module(shader);
    let constants = [("SIDE", SIDE as f64), ("PICTURE", PICTURE as f64)];
    let compilation_options = wgpu::PipelineCompilationOptions { constants: &constants, ..Default::default() };
    let pipeline = gpu.create_render_pipeline(&wgpu::RenderPipelineDescriptor {
        label: Some("draw"),
        layout: None,
        vertex: wgpu::VertexState {
            module: &module,
            entry_point: Some("corner"),
            compilation_options: Default::default(),
            buffers: &[],
        },
        primitive: Default::default(),
        depth_stencil: None,
        multisample: Default::default(),
        fragment: Some(wgpu::FragmentState {
            module: &module,
            entry_point: Some("pixel"),
            compilation_options,
            targets: &[Some(format.into())],
        }),
        multiview_mask: None,
        cache: None,
    });
    let entries = [wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(colours) }];
    let layout = &pipeline.get_bind_group_layout(0);
    let group = gpu.create_bind_group(&wgpu::BindGroupDescriptor { label: Some("colours"), layout, entries: &entries });
    let picture = gpu.create_buffer(&wgpu::BufferDescriptor {
        label: Some("picture"),
        size: 4 * (PICTURE * PICTURE) as u64,
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let view = texture.create_view(&Default::default());
    let mut encoder = gpu.create_command_encoder(&Default::default());
    let attachment = wgpu::RenderPassColorAttachment {
        view: &view,
        depth_slice: None,
        resolve_target: None,
        ops: Default::default(),
    };
    let attachments = [Some(attachment)];
    let pass = wgpu::RenderPassDescriptor { color_attachments: &attachments, ..Default::default() };
    let mut pass = encoder.begin_render_pass(&pass);
    pass.set_pipeline(&pipeline);
    pass.set_bind_group(0, &group, &[]);
    pass.draw(0..3, 0..1);
    drop(pass);
    let bytes_per_row = Some(4 * PICTURE);
    let to = wgpu::TexelCopyBufferInfo {
        buffer: &picture,
        layout: wgpu::TexelCopyBufferLayout { offset: 0, bytes_per_row, rows_per_image: None },
    };
    encoder.copy_texture_to_buffer(texture.as_image_copy(), to, extent);
    queue.submit([encoder.finish()]);
    picture.map_async(wgpu::MapMode::Read, .., |_| {});
    gpu.poll(wgpu::PollType::wait_indefinitely())?;
    let rgba = picture.get_mapped_range(..)?;
    Ok(rgba.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect())
}
