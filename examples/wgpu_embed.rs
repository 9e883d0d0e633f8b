//! langevin inside a program that has a wgpu device of its own: both share it, and the samples are drawn from the buffer that
//! langevin left them in. The host sees only the finished picture, `wgpu_embed.png`.
//!
//!     cargo run --release --example wgpu_embed

use langevin::image::Image;
use langevin::sampler::SampleRequest;
use langevin::{Device, Model};
use pollster::block_on;

/// Images of 28×28 along a side of the picture, and pixels of it for one of theirs.
const ALONG: u32 = 4;
const SIDE: u32 = 28;
const SCALE: u32 = 5;
const PICTURE: u32 = ALONG * SIDE * SCALE;

/// A triangle over the whole picture, whose pixels are grey as the buffer says: `[images, SIDE, SIDE]`, from -1 to 1.
const DRAW: &str = "
override ALONG: u32;
override SIDE: u32;
override SCALE: u32;
@group(0) @binding(0) var<storage, read> images: array<f32>;

@vertex
fn corner(@builtin(vertex_index) i: u32) -> @builtin(position) vec4<f32> {
    return vec4<f32>(f32(i & 1u) * 4.0 - 1.0, f32(i >> 1u) * 4.0 - 1.0, 0.0, 1.0);
}

@fragment
fn pixel(@builtin(position) at: vec4<f32>) -> @location(0) vec4<f32> {
    let place = vec2<u32>(at.xy) / SCALE;
    let image = place.y / SIDE * ALONG + place.x / SIDE;
    let inside = place % SIDE;
    let grey = images[(image * SIDE + inside.y) * SIDE + inside.x] * 0.5 + 0.5;
    return vec4<f32>(grey, grey, grey, 1.0);
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

    // langevin's: the same device and queue.
    let device = Device::from_wgpu(adapter.get_info(), gpu.clone(), queue.clone())?;
    let model = Model::open("mnist-unet")?;
    let n = (ALONG * ALONG) as usize;
    let request = SampleRequest { n, batch: n, steps: 8, ..SampleRequest::new(&model) };
    let mut sampler = request.prepare(&model, device)?;
    sampler.run_batch(0, &mut || Ok(()))?;

    // The samples, where they are. What the embedder submits now comes after what langevin submitted.
    let (buffer, offset, shape) = sampler.wgpu_images()?;
    let size = wgpu::BufferSize::new(4 * shape.iter().product::<usize>() as u64);
    let pixels = draw(&gpu, &queue, wgpu::BufferBinding { buffer: &buffer, offset, size })?;
    Image::new(PICTURE as usize, PICTURE as usize, 3, pixels)?.save_png("wgpu_embed.png")?;
    println!("wgpu_embed.png was drawn on {}", adapter.get_info().name);
    Ok(())
}

/// Draws the buffer into a texture, and reads that back: RGB.
fn draw(
    gpu: &wgpu::Device,
    queue: &wgpu::Queue,
    images: wgpu::BufferBinding,
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
    let constants = [("ALONG", ALONG as f64), ("SIDE", SIDE as f64), ("SCALE", SCALE as f64)];
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
    let entries = [wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(images) }];
    let layout = &pipeline.get_bind_group_layout(0);
    let group = gpu.create_bind_group(&wgpu::BindGroupDescriptor { label: Some("images"), layout, entries: &entries });
    let bytes_per_row = (4 * PICTURE).next_multiple_of(wgpu::COPY_BYTES_PER_ROW_ALIGNMENT);
    let picture = gpu.create_buffer(&wgpu::BufferDescriptor {
        label: Some("picture"),
        size: (bytes_per_row * PICTURE) as u64,
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
    let to = wgpu::TexelCopyBufferInfo {
        buffer: &picture,
        layout: wgpu::TexelCopyBufferLayout { offset: 0, bytes_per_row: Some(bytes_per_row), rows_per_image: None },
    };
    encoder.copy_texture_to_buffer(texture.as_image_copy(), to, extent);
    queue.submit([encoder.finish()]);
    picture.map_async(wgpu::MapMode::Read, .., |_| {});
    gpu.poll(wgpu::PollType::wait_indefinitely())?;
    let rows = picture.get_mapped_range(..)?;
    let rows = rows.chunks_exact(bytes_per_row as usize).map(|row| &row[..4 * PICTURE as usize]);
    Ok(rows.flat_map(|row| row.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]])).collect())
}
