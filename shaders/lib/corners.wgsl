// The column matrix of a convolution over x [B, H, W, C], which is never made: a row for each output pixel, a column for each
// (tap, channel). Its sizes are among the shader's scalars: those of x, of the output and of the kernel, `pixels` in all
// outputs together, `terms` in a row.

// x has DILATION - 1 zeros between its pixels.
override DILATION: u32 = 1u;

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
