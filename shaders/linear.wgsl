// y = epilogue(x W)   x [M, K], W [K, N] in panels [ceil(N/16), K, 16] -> y [M, N]
// After: lib/activation, lib/epilogue.

struct Scalars {
    m: u32,
    n: u32,
    k: u32,
    per_sample: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<real>;
// A panel's row of 16 columns is four of them.
@group(0) @binding(2) var<storage, read_write> w: array<vec4<real>>;
@group(0) @binding(6) var<storage, read_write> y: array<real>;

fn weight(i: u32) -> vec4<f32> {
    return vec4<f32>(w[i]);
}

fn store(row: u32, col: u32, value: vec4<f32>) {
    if row >= s.m {
        return;
    }
    for (var j = 0u; j < 4u; j++) {
        if col + j < s.n {
            y[row * s.n + col + j] = real(epilogue(value[j], row, col + j, s.n, s.per_sample, s.scale));
        }
    }
}

// x by four terms.
@group(0) @binding(1) var<storage, read_write> x_quads: array<vec4<real>>;

// The same without workgroup memory and barriers, for a processor that plays GPU: an invocation makes 8 rows of 8 columns. K is
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
    let row = number / halves * 8u;
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
    let row_4 = min(row + 4u, s.m - 1u) * quads;
    let row_5 = min(row + 5u, s.m - 1u) * quads;
    let row_6 = min(row + 6u, s.m - 1u) * quads;
    let row_7 = min(row + 7u, s.m - 1u) * quads;
    var at = half / 2u * s.k * 4u + half % 2u * 2u;
    var left_0 = vec4<f32>();
    var right_0 = vec4<f32>();
    var left_1 = vec4<f32>();
    var right_1 = vec4<f32>();
    var left_2 = vec4<f32>();
    var right_2 = vec4<f32>();
    var left_3 = vec4<f32>();
    var right_3 = vec4<f32>();
    var left_4 = vec4<f32>();
    var right_4 = vec4<f32>();
    var left_5 = vec4<f32>();
    var right_5 = vec4<f32>();
    var left_6 = vec4<f32>();
    var right_6 = vec4<f32>();
    var left_7 = vec4<f32>();
    var right_7 = vec4<f32>();
    for (var i = 0u; i < quads; i++) {
        let w_left = mat4x4<f32>(weight(at), weight(at + 4u), weight(at + 8u), weight(at + 12u));
        let w_right = mat4x4<f32>(weight(at + 1u), weight(at + 5u), weight(at + 9u), weight(at + 13u));
        let v_0 = vec4<f32>(x_quads[row_0 + i]);
        left_0 += w_left * v_0;
        right_0 += w_right * v_0;
        let v_1 = vec4<f32>(x_quads[row_1 + i]);
        left_1 += w_left * v_1;
        right_1 += w_right * v_1;
        let v_2 = vec4<f32>(x_quads[row_2 + i]);
        left_2 += w_left * v_2;
        right_2 += w_right * v_2;
        let v_3 = vec4<f32>(x_quads[row_3 + i]);
        left_3 += w_left * v_3;
        right_3 += w_right * v_3;
        let v_4 = vec4<f32>(x_quads[row_4 + i]);
        left_4 += w_left * v_4;
        right_4 += w_right * v_4;
        let v_5 = vec4<f32>(x_quads[row_5 + i]);
        left_5 += w_left * v_5;
        right_5 += w_right * v_5;
        let v_6 = vec4<f32>(x_quads[row_6 + i]);
        left_6 += w_left * v_6;
        right_6 += w_right * v_6;
        let v_7 = vec4<f32>(x_quads[row_7 + i]);
        left_7 += w_left * v_7;
        right_7 += w_right * v_7;
        at += 16u;
    }
    // No array of sums that a loop indexes: they would lie in memory all along. And a loop, so that less is compiled.
    for (var side = 0u; side < 2u; side++) {
        let col = 8u * half + 4u * side;
        store(row, col, select(left_0, right_0, side == 1u));
        store(row + 1u, col, select(left_1, right_1, side == 1u));
        store(row + 2u, col, select(left_2, right_2, side == 1u));
        store(row + 3u, col, select(left_3, right_3, side == 1u));
        store(row + 4u, col, select(left_4, right_4, side == 1u));
        store(row + 5u, col, select(left_5, right_5, side == 1u));
        store(row + 6u, col, select(left_6, right_6, side == 1u));
        store(row + 7u, col, select(left_7, right_7, side == 1u));
    }
}
