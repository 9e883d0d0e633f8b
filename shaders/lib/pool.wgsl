// Windows over images x [B, H, W, C] -> [B, H', W', C]; pairs are rows, columns. Scalars as `PoolWindow::scalars` lists them,
// then the number of what invocations make.

struct Scalars {
    height: u32,
    width: u32,
    out_height: u32,
    out_width: u32,
    kernel_height: u32,
    kernel_width: u32,
    // Padding before the first row and column.
    top: u32,
    left: u32,
    channels: u32,
    stride: u32,
    n: u32,
    // What every window is divided by; 0 if each by its own pixels. Of averages only.
    divisor: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;

fn image_size() -> vec2<u32> {
    return vec2<u32>(s.height, s.width);
}

fn window_count() -> vec2<u32> {
    return vec2<u32>(s.out_height, s.out_width);
}

// From `start` to before `end`.
struct Span {
    start: vec2<u32>,
    end: vec2<u32>,
}

// The pixels under a window.
fn pixels(window: vec2<u32>) -> Span {
    let start = window * s.stride;
    let near = vec2<u32>(s.top, s.left);
    let kernel = vec2<u32>(s.kernel_height, s.kernel_width);
    return Span(max(start, near) - near, min(start + kernel - near, image_size()));
}

// The windows over a pixel.
fn windows(pixel: vec2<u32>) -> Span {
    let at = pixel + vec2<u32>(s.top, s.left);
    let kernel = vec2<u32>(s.kernel_height, s.kernel_width);
    let first = (max(at + 1u, kernel) - kernel + s.stride - 1u) / s.stride;
    return Span(first, min(at / s.stride + 1u, window_count()));
}

// Where number `i` of [B, size, C] lies: channel, row, column, image.
struct Place {
    channel: u32,
    at: vec2<u32>,
    image: u32,
}

fn place(i: u32, size: vec2<u32>) -> Place {
    let pixel = i / s.channels;
    let line = pixel / size.y;
    return Place(i % s.channels, vec2<u32>(line % size.x, pixel % size.y), line / size.x);
}

// The number of what lies there.
fn number(p: Place, at: vec2<u32>, size: vec2<u32>) -> u32 {
    return ((p.image * size.x + at.x) * size.y + at.y) * s.channels + p.channel;
}

// 1 / what a window over these pixels is divided by.
fn pool_weight(under: Span) -> f32 {
    let extent = under.end - under.start;
    return 1.0 / f32(select(extent.x * extent.y, s.divisor, s.divisor > 0u));
}
