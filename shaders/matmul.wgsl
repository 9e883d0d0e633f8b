// y[b] = a[b] b[b]   a [B, M, K] or [B, K, M], b [B, K, N] or [B, N, K] -> y [B, M, N]. After: lib/product.

struct Scalars {
    batch: u32,
    m: u32,
    n: u32,
    k: u32,
}

override TRANSPOSE_A: bool;
override TRANSPOSE_B: bool;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> a: array<real>;
@group(0) @binding(2) var<storage, read_write> b: array<real>;
@group(0) @binding(3) var<storage, read_write> y: array<real>;

fn left(sample: u32, row: u32, k: u32) -> f32 {
    if row >= s.m || k >= s.k {
        return 0.0;
    }
    return f32(a[sample * s.m * s.k + select(row * s.k + k, k * s.m + row, TRANSPOSE_A)]);
}

fn right(sample: u32, k: u32, col: u32) -> f32 {
    if col >= s.n || k >= s.k {
        return 0.0;
    }
    return f32(b[sample * s.k * s.n + select(k * s.n + col, col * s.k + k, TRANSPOSE_B)]);
}

fn store(sample: u32, row: u32, col: u32, value: vec4<f32>) {
    for (var j = 0u; j < 4u; j++) {
        if row < s.m && col + j < s.n {
            y[(sample * s.m + row) * s.n + col + j] = real(value[j]);
        }
    }
}

// Depth and quad of place `i` of a tile of `quads`: neighbours read neighbours.
fn place(i: u32, quads: u32, along_depth: bool) -> vec2<u32> {
    if along_depth {
        return vec2<u32>(i % TILE_DEPTH, i / TILE_DEPTH);
    }
    return vec2<u32>(i / quads, i % quads);
}

@compute @workgroup_size(ROW_LANES * COL_LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let lanes = ROW_LANES * COL_LANES;
    let across = (s.n + 4u * COL_LANES - 1u) / (4u * COL_LANES);
    let down = (s.m + TILE_ROWS - 1u) / TILE_ROWS;
    let number = wg.x + wg.y * wgs.x;
    let first_col = number % across * 4u * COL_LANES;
    let first_row = number / across % down * TILE_ROWS;
    let sample = number / across / down;
    if sample >= s.batch {
        return;
    }
    var sums = Sums();
    for (var k = 0u; k < s.k; k += TILE_DEPTH) {
        for (var i = lane; i < 2u * ROW_LANES * TILE_DEPTH; i += lanes) {
            let at = place(i, 2u * ROW_LANES, !TRANSPOSE_A);
            let row = first_row + 4u * at.y;
            left_tile[left_at(at.x, at.y)] = vec4<f32>(
                left(sample, row, k + at.x),
                left(sample, row + 1u, k + at.x),
                left(sample, row + 2u, k + at.x),
                left(sample, row + 3u, k + at.x),
            );
        }
        for (var i = lane; i < RIGHT_QUADS; i += lanes) {
            let at = place(i, COL_LANES, TRANSPOSE_B);
            let col = first_col + 4u * at.y;
            right_tile[at.x * COL_LANES + at.y] = vec4<f32>(
                right(sample, k + at.x, col),
                right(sample, k + at.x, col + 1u),
                right(sample, k + at.x, col + 2u),
                right(sample, k + at.x, col + 3u),
            );
        }
        workgroupBarrier();
        multiply_tiles(&sums, lane);
        workgroupBarrier();
    }
    for (var r = 0u; r < 8u; r++) {
        let row = first_row + tile_row(lane, r);
        let col = first_col + 4u * (lane % COL_LANES);
        store(sample, row, col, sums[r]);
    }
}
