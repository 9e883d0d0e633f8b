// `linear` for hardware. After: lib/activation, lib/y_fours (or lib/epilogue, lib/y_ones), lib/x_fours (or lib/x_ones), lib/parts, lib/product_sizes,
// lib/panels, lib/blocks.

struct Scalars {
    m: u32,
    n: u32,
    k: u32,
    per_sample: u32,
    part: u32,
    parts: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> s: Scalars;

// Where four rows begin; those beyond the last are the last.
alias LeftRows = vec4<u32>;

fn product_sizes() -> ProductSizes {
    return ProductSizes(1u, s.m, s.n, s.k, s.part, s.parts);
}

fn left_rows(sample: u32, row: u32) -> vec4<u32> {
    return min(vec4<u32>(row) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(s.m - 1u)) * s.k;
}

fn left_block(rows: vec4<u32>, k: u32, end: u32) -> mat4x4<f32> {
    let at = rows + vec4<u32>(k);
    let count = end - k;
    return transpose(mat4x4<f32>(x_four(at.x, count), x_four(at.y, count), x_four(at.z, count), x_four(at.w, count)));
}

fn store_sums(at: ProductPlace, row: u32, col: u32, sums: vec4<f32>) {
    if row >= s.m {
        return;
    }
    if !PARTS {
        finish(sums, row, col, s.n, s.per_sample, s.scale);
    } else if col < s.n {
        let line = (s.n + 3u) / 4u;
        parts[(at.part * s.m + row) * line + col / 4u] = sums;
    }
}
