// The column matrix of a convolution over x [B, H, W, C], which is never made: a row for each output pixel, a column for each
// (tap, channel). Its sizes are the first scalars of the shader, `s.window`, and x is its argument 1.

struct Window {
    height: u32,
    width: u32,
    channels: u32,
    out_height: u32,
    out_width: u32,
    kernel_rows: u32,
    kernel_cols: u32,
    stride: u32,
    pad_top: u32,
    pad_left: u32,
    // B * out_height * out_width
    pixels: u32,
    // kernel_rows * kernel_cols * channels
    terms: u32,
}

// x has DILATION - 1 zeros between its pixels.
override DILATION: u32 = 1u;

@group(0) @binding(1) var<storage, read_write> x: array<f32>;

// First row of the image of output pixel `row`, and the pixel under tap (0, 0), counted in the dilated image. It may be
// negative, that is beyond every size; rows beyond the last are.
fn corner(row: u32) -> vec3<u32> {
    if row >= s.window.pixels {
        return vec3<u32>(0u, 0x80000000u, 0u);
    }
    let y = row / s.window.out_width;
    let top = (y % s.window.out_height) * s.window.stride - s.window.pad_top;
    let left = (row % s.window.out_width) * s.window.stride - s.window.pad_left;
    return vec3<u32>(y / s.window.out_height * s.window.height, top, left);
}

// Row and column of a tap, and channel, of column `k`; beyond the last, a tap that no image has.
fn tap(k: u32) -> vec3<u32> {
    if k >= s.window.terms {
        return vec3<u32>(0x40000000u, 0u, 0u);
    }
    let tap = k / s.window.channels;
    return vec3<u32>(tap / s.window.kernel_cols, tap % s.window.kernel_cols, k % s.window.channels);
}

// The element of a row with this corner and a column with this tap.
fn column(corner: vec3<u32>, tap: vec3<u32>) -> f32 {
    let at = corner.yz + tap.xy;
    let pixel = at / DILATION;
    let inside = pixel.x < s.window.height && pixel.y < s.window.width;
    if inside && (DILATION == 1u || all(at % DILATION == vec2<u32>(0u))) {
        return x[((corner.x + pixel.x) * s.window.width + pixel.y) * s.window.channels + tap.z];
    }
    return 0.0;
}
