// y = epilogue(x W)   x [M, K], W [K, N] in panels [ceil(N/16), K, 16] -> y [M, N]
// After: lib/f32 or lib/f16, lib/activation, lib/epilogue.

struct Scalars {
    m: u32,
    n: u32,
    k: u32,
    per_sample: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
// A panel's row of 16 columns is four of them.
@group(0) @binding(2) var<storage, read_write> w: array<vec4<stored>>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

// Invocations of a workgroup along rows and columns; each makes 8 rows of 4 columns.
override ROW_LANES: u32 = 16u;
override COL_LANES: u32 = 16u;

const EACH: u32 = 8u;
// Stretch of K that workgroup memory holds.
const DEPTH: u32 = 16u;

var<workgroup> x_tile: array<f32, ROW_LANES * EACH * DEPTH>;
var<workgroup> w_tile: array<vec4<f32>, DEPTH * COL_LANES>;

fn store(row: u32, col: u32, value: vec4<f32>) {
    if row >= s.m {
        return;
    }
    for (var j = 0u; j < 4u; j++) {
        if col + j < s.n {
            y[row * s.n + col + j] = epilogue(value[j], row, col + j, s.n, s.per_sample, s.scale);
        }
    }
}

// Tiles through workgroup memory; a grid of (column tiles, row tiles).
@compute @workgroup_size(ROW_LANES * COL_LANES)
fn tiled(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let lanes = ROW_LANES * COL_LANES;
    let rows = ROW_LANES * EACH;
    let first_row = wg.y * rows;
    // In units of four columns.
    let first_quad = wg.x * COL_LANES;
    let quads = (s.n + 15u) / 16u * 4u;
    let lane_row = lane / COL_LANES;
    let lane_col = lane % COL_LANES;

    var sum = array<vec4<f32>, EACH>();
    for (var k = 0u; k < s.k; k += DEPTH) {
        for (var i = lane; i < rows * DEPTH; i += lanes) {
            let row = first_row + i / DEPTH;
            let depth = k + i % DEPTH;
            var v = 0.0;
            if row < s.m && depth < s.k {
                v = x[row * s.k + depth];
            }
            x_tile[(i % DEPTH) * rows + i / DEPTH] = v;
        }
        for (var i = lane; i < DEPTH * COL_LANES; i += lanes) {
            // Neighbours read neighbouring columns of one row of a panel.
            let quad = first_quad + i % COL_LANES;
            let depth = k + i / COL_LANES;
            var v = vec4<f32>();
            if quad < quads && depth < s.k {
                v = vec4<f32>(w[(quad / 4u * s.k + depth) * 4u + quad % 4u]);
            }
            w_tile[i] = v;
        }
        workgroupBarrier();
        for (var d = 0u; d < DEPTH; d++) {
            let v = w_tile[d * COL_LANES + lane_col];
            for (var r = 0u; r < EACH; r++) {
                sum[r] += x_tile[d * rows + r * ROW_LANES + lane_row] * v;
            }
        }
        workgroupBarrier();
    }
    for (var r = 0u; r < EACH; r++) {
        store(first_row + r * ROW_LANES + lane_row, 4u * (first_quad + lane_col), sum[r]);
    }
}

// x by four terms.
@group(0) @binding(1) var<storage, read_write> x_quads: array<vec4<f32>>;

// Four columns of four rows of a panel.
fn weights(at: u32) -> mat4x4<f32> {
    return mat4x4<f32>(vec4<f32>(w[at]), vec4<f32>(w[at + 4u]), vec4<f32>(w[at + 8u]), vec4<f32>(w[at + 12u]));
}

// The same without workgroup memory and barriers, for a processor that plays GPU: an invocation makes 4 rows of 8 columns. K is
// a multiple of 4. Reading four numbers costs there as much as reading one.
@compute @workgroup_size(64)
fn direct(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // Of panels, those that hold columns.
    let halves = (s.n + 7u) / 8u;
    let number = (wg.x + wg.y * wgs.x) * 64u + lane;
    let row = number / halves * 4u;
    let half = number % halves;
    if row >= s.m {
        return;
    }
    // Rows beyond the last stand for the last, and are not stored.
    let quads = s.k / 4u;
    let row_0 = row * quads;
    let row_1 = min(row + 1u, s.m - 1u) * quads;
    let row_2 = min(row + 2u, s.m - 1u) * quads;
    let row_3 = min(row + 3u, s.m - 1u) * quads;
    var at = half / 2u * s.k * 4u + half % 2u * 2u;
    var left = array<vec4<f32>, 4>();
    var right = array<vec4<f32>, 4>();
    for (var i = 0u; i < quads; i++) {
        let w_left = weights(at);
        let w_right = weights(at + 1u);
        let v_0 = x_quads[row_0 + i];
        left[0] += w_left * v_0;
        right[0] += w_right * v_0;
        let v_1 = x_quads[row_1 + i];
        left[1] += w_left * v_1;
        right[1] += w_right * v_1;
        let v_2 = x_quads[row_2 + i];
        left[2] += w_left * v_2;
        right[2] += w_right * v_2;
        let v_3 = x_quads[row_3 + i];
        left[3] += w_left * v_3;
        right[3] += w_right * v_3;
        at += 16u;
    }
    for (var r = 0u; r < 4u; r++) {
        store(row + r, 8u * half, left[r]);
        store(row + r, 8u * half + 4u, right[r]);
    }
}
