// `matmul` for hardware. M, N and K are multiples of 4. After: lib/x_fours, lib/product_sizes, lib/blocks.

struct Scalars {
    batch: u32,
    m: u32,
    n: u32,
    k: u32,
}

override TRANSPOSE_A: bool;
override TRANSPOSE_B: bool;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(2) var<storage, read_write> b: array<vec4<real>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<real>>;

// Where four rows or columns begin, or one after the other lie; those beyond the last are others.
alias LeftRows = vec4<u32>;
alias RightCols = vec4<u32>;

const EACH = vec4<u32>(0u, 1u, 2u, 3u);

fn product_sizes() -> ProductSizes {
    return ProductSizes(s.batch, s.m, s.n, s.k, (s.k + 15u) / 16u * 16u, 1u);
}

fn left_rows(sample: u32, row: u32) -> vec4<u32> {
    if TRANSPOSE_A {
        return vec4<u32>(sample * s.k * s.m + min(row, s.m - 4u));
    }
    return (vec4<u32>(sample * s.m) + min(vec4<u32>(row) + EACH, vec4<u32>(s.m - 1u))) * s.k;
}

fn left_block(rows: vec4<u32>, k: u32, end: u32) -> mat4x4<f32> {
    let at = rows + select(vec4<u32>(k), (vec4<u32>(k) + EACH) * s.m, TRANSPOSE_A);
    let block = mat4x4<f32>(x_four(at.x, 4u), x_four(at.y, 4u), x_four(at.z, 4u), x_four(at.w, 4u));
    if TRANSPOSE_A {
        return block;
    }
    return transpose(block);
}

fn right_cols(sample: u32, col: u32) -> vec4<u32> {
    if TRANSPOSE_B {
        return (vec4<u32>(sample * s.n) + min(vec4<u32>(col) + EACH, vec4<u32>(s.n - 1u))) * s.k;
    }
    return vec4<u32>(sample * s.k * s.n + min(col, s.n - 4u));
}

fn right_block(cols: vec4<u32>, k: u32, end: u32) -> mat4x4<f32> {
    let at = (cols + select((vec4<u32>(k) + EACH) * s.n, vec4<u32>(k), TRANSPOSE_B)) / 4u;
    let block = mat4x4<f32>(vec4<f32>(b[at.x]), vec4<f32>(b[at.y]), vec4<f32>(b[at.z]), vec4<f32>(b[at.w]));
    if TRANSPOSE_B {
        return transpose(block);
    }
    return block;
}

fn store_sums(at: ProductPlace, row: u32, col: u32, sums: vec4<f32>) {
    if row < s.m && col < s.n {
        y[((at.sample * s.m + row) * s.n + col) / 4u] = vec4<real>(sums);
    }
}
