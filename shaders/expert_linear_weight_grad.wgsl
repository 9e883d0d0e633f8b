// dW[e] = sum of x[r]^T dy[r] over the rows of expert e   x [R, K], dy [R, N], offsets [E + 1] -> dW [E, K, N] in panels
// [ceil(N/16), E K, 16]. A workgroup has a tile of one expert's weight. After: lib/product, lib/experts.

@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> dy: array<f32>;
// A panel's row of 16 columns is four of them.
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;

var<workgroup> found: vec2<u32>;

@compute @workgroup_size(ROW_LANES * COL_LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let lanes = ROW_LANES * COL_LANES;
    // In units of four columns.
    let quads = (s.n + 15u) / 16u * 4u;
    let across = (quads + COL_LANES - 1u) / COL_LANES;
    let down = (s.k + TILE_ROWS - 1u) / TILE_ROWS;
    let number = wg.x + wg.y * wgs.x;
    let first_quad = number % across * COL_LANES;
    let first_term = number / across % down * TILE_ROWS;
    let expert = number / across / down;
    if expert >= s.experts {
        return;
    }
    if lane == 0u {
        found = rows_of(expert);
    }
    let rows = workgroupUniformLoad(&found);
    var sums = Sums();
    for (var first = rows.x; first < rows.y; first += TILE_DEPTH) {
        for (var i = lane; i < 2u * ROW_LANES * TILE_DEPTH; i += lanes) {
            // Neighbours read neighbouring terms of a row.
            let quad = i % (2u * ROW_LANES);
            let depth = i / (2u * ROW_LANES);
            let row = first + depth;
            let term = first_term + 4u * quad;
            var v = vec4<f32>();
            for (var j = 0u; j < 4u; j++) {
                if row < rows.y && term + j < s.k {
                    v[j] = x[row * s.k + term + j];
                }
            }
            left_tile[left_at(depth, quad)] = v;
        }
        for (var i = lane; i < RIGHT_QUADS; i += lanes) {
            let row = first + i / COL_LANES;
            let col = 4u * (first_quad + i % COL_LANES);
            var v = vec4<f32>();
            for (var j = 0u; j < 4u; j++) {
                if row < rows.y && col + j < s.n {
                    v[j] = dy[row * s.n + col + j];
                }
            }
            right_tile[i] = v;
        }
        workgroupBarrier();
        multiply_tiles(&sums, lane);
        workgroupBarrier();
    }
    for (var r = 0u; r < 8u; r++) {
        let term = first_term + tile_row(lane, r);
        let quad = first_quad + lane % COL_LANES;
        if term < s.k && quad < quads {
            y[weight_at(expert, term, quad)] = sums[r];
        }
    }
}
