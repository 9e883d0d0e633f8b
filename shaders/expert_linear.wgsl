// y[r] = x[r] W[e] for the rows of every expert e   x [R, K], W [E, K, N] in panels [ceil(N/16), E K, 16], offsets [E + 1] ->
// y [R, N]. Tiles do not cross from one expert's rows to the next one's; there are as many workgroups as the worst case has tiles.
// After: lib/product, lib/experts.

@group(0) @binding(1) var<storage, read_write> x: array<f32>;
// A panel's row of 16 columns is four of them.
@group(0) @binding(2) var<storage, read_write> w: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

// Of the workgroup's tile: the expert, the first row, the row behind the expert's last. No rows, no tile.
var<workgroup> found: vec3<u32>;

// Tile number `number`, all experts' counted through.
fn find(number: u32) -> vec3<u32> {
    var tile = number;
    for (var e = 0u; e < s.experts; e++) {
        let rows = rows_of(e);
        let tiles = (rows.y - rows.x + TILE_ROWS - 1u) / TILE_ROWS;
        if tile < tiles {
            return vec3<u32>(e, rows.x + tile * TILE_ROWS, rows.y);
        }
        tile -= tiles;
    }
    return vec3<u32>();
}

@compute @workgroup_size(ROW_LANES * COL_LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let lanes = ROW_LANES * COL_LANES;
    let across = (s.n + 4u * COL_LANES - 1u) / (4u * COL_LANES);
    let number = wg.x + wg.y * wgs.x;
    // In units of four columns.
    let first_quad = number % across * COL_LANES;
    let quads = (s.n + 15u) / 16u * 4u;
    if lane == 0u {
        found = find(number / across);
    }
    let tile = workgroupUniformLoad(&found);
    if tile.y >= tile.z {
        return;
    }
    var sums = Sums();
    for (var k = 0u; k < s.k; k += TILE_DEPTH) {
        for (var i = lane; i < 2u * ROW_LANES * TILE_DEPTH; i += lanes) {
            // Neighbours read neighbouring terms of a row.
            let depth = i % TILE_DEPTH;
            let row = tile.y + i / TILE_DEPTH * 4u;
            var v = vec4<f32>();
            for (var r = 0u; r < 4u; r++) {
                if row + r < tile.z && k + depth < s.k {
                    v[r] = x[(row + r) * s.k + k + depth];
                }
            }
            left_tile[left_at(depth, i / TILE_DEPTH)] = v;
        }
        for (var i = lane; i < RIGHT_QUADS; i += lanes) {
            let quad = first_quad + i % COL_LANES;
            let depth = k + i / COL_LANES;
            var v = vec4<f32>();
            if quad < quads && depth < s.k {
                v = w[weight_at(tile.x, depth, quad)];
            }
            right_tile[i] = v;
        }
        workgroupBarrier();
        multiply_tiles(&sums, lane);
        workgroupBarrier();
    }
    for (var r = 0u; r < 8u; r++) {
        let row = tile.y + tile_row(lane, r);
        let col = 4u * (first_quad + lane % COL_LANES);
        for (var j = 0u; j < 4u; j++) {
            if row < tile.z && col + j < s.n {
                y[row * s.n + col + j] = sums[r][j];
            }
        }
    }
}
