// The column matrix of a convolution over x [B, H, W, C], which is never made: a row for each output pixel, a column for each
// (tap, channel). Its sizes are among the shader's scalars: those of x, of the output and of the kernel, `pixels` in all
// outputs together, `terms` in a row. x is argument 1.

// x has DILATION - 1 zeros between its pixels.
override DILATION: u32 = 1u;

@group(0) @binding(1) var<storage, read_write> x: array<real>;

// First row of the image of output pixel `row`, and the pixel under tap (0, 0), counted in the dilated image. It may be
// negative, that is beyond every size; rows beyond the last are.
fn corner(row: u32) -> vec3<u32> {
    if row >= s.pixels {
        return vec3<u32>(0u, 0x80000000u, 0u);
    }
    let y = row / s.out_width;
    let top = (y % s.out_height) * s.stride - s.pad_top;
    let left = (row % s.out_width) * s.stride - s.pad_left;
    return vec3<u32>(y / s.out_height * s.height, top, left);
}

// Row and column of a tap, and channel, of column `k`; beyond the last, a tap that no image has.
fn tap(k: u32) -> vec3<u32> {
    if k >= s.terms {
        return vec3<u32>(0x40000000u, 0u, 0u);
    }
    let tap = k / s.channels;
    return vec3<u32>(tap / s.kernel_cols, tap % s.kernel_cols, k % s.channels);
}

// The element of a row with this corner and a column with this tap.
fn column(corner: vec3<u32>, tap: vec3<u32>) -> f32 {
    let at = corner.yz + tap.xy;
    let pixel = at / DILATION;
    let inside = pixel.x < s.height && pixel.y < s.width;
    if inside && (DILATION == 1u || all(at % DILATION == vec2<u32>(0u))) {
        return f32(x[((corner.x + pixel.x) * s.width + pixel.y) * s.channels + tap.z]);
    }
    return 0.0;
}
