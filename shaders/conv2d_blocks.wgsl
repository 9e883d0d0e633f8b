// `conv2d` for hardware, its column matrix read as conv2d_fours or conv2d_ones does. After: lib/activation, lib/y_fours (or
// lib/epilogue, lib/y_ones), lib/parts, lib/product_sizes, lib/panels, lib/corners.

struct Scalars {
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
    n: u32,
    part: u32,
    parts: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> s: Scalars;

// The corners of four pixels.
struct LeftRows {
    a: vec3<u32>,
    b: vec3<u32>,
    c: vec3<u32>,
    d: vec3<u32>,
}

fn product_sizes() -> ProductSizes {
    return ProductSizes(1u, s.pixels, s.n, s.terms, s.part, s.parts);
}

fn left_rows(sample: u32, row: u32) -> LeftRows {
    return LeftRows(corner(row), corner(row + 1u), corner(row + 2u), corner(row + 3u));
}

fn store_sums(at: ProductPlace, row: u32, col: u32, sums: vec4<f32>) {
    if row >= s.pixels {
        return;
    }
    if !PARTS {
        finish(sums, row, col, s.n, s.out_height * s.out_width, s.scale);
    } else if col < s.n {
        let line = (s.n + 3u) / 4u;
        parts[(at.part * s.pixels + row) * line + col / 4u] = sums;
    }
}
