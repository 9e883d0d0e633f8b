// Products of matrices by tiles in workgroup memory. A workgroup of ROW_LANES * COL_LANES invocations makes 8 * ROW_LANES
// rows of 4 * COL_LANES columns, TILE_DEPTH terms at a time: all put their part of both operands into `left_tile` and
// `right_tile`, then each multiplies for 8 rows of 4 columns of its own.

override ROW_LANES: u32 = 16u;
override COL_LANES: u32 = 16u;

const TILE_DEPTH: u32 = 16u;

// Sizes have names: naga 30 fails where an `override` follows an array whose size is an expression of others.
override LEFT_QUADS: u32 = (2u * ROW_LANES + 1u) * TILE_DEPTH;
override RIGHT_QUADS: u32 = COL_LANES * TILE_DEPTH;
override TILE_ROWS: u32 = 8u * ROW_LANES;

// Four rows of the left operand for each depth, [TILE_DEPTH, LEFT_LINE]. The line is one longer than it need be, so that
// neighbours who write to neighbouring depths use different banks.
var<workgroup> left_tile: array<vec4<f32>, LEFT_QUADS>;
// Four columns of the right operand for each depth, [TILE_DEPTH, COL_LANES].
var<workgroup> right_tile: array<vec4<f32>, RIGHT_QUADS>;

alias Sums = array<vec4<f32>, 8>;

// Row number `r` of 8 of an invocation, counted in its tile.
fn tile_row(lane: u32, r: u32) -> u32 {
    return (r / 4u * ROW_LANES + lane / COL_LANES) * 4u + r % 4u;
}

// Where four rows of the left operand lie.
fn left_at(depth: u32, quad: u32) -> u32 {
    return depth * (2u * ROW_LANES + 1u) + quad;
}

fn multiply_tiles(sums: ptr<function, Sums>, lane: u32) {
    for (var d = 0u; d < TILE_DEPTH; d++) {
        let right = right_tile[d * COL_LANES + lane % COL_LANES];
        let low = left_tile[left_at(d, lane / COL_LANES)];
        let high = left_tile[left_at(d, lane / COL_LANES + ROW_LANES)];
        (*sums)[0] += low.x * right;
        (*sums)[1] += low.y * right;
        (*sums)[2] += low.z * right;
        (*sums)[3] += low.w * right;
        (*sums)[4] += high.x * right;
        (*sums)[5] += high.y * right;
        (*sums)[6] += high.z * right;
        (*sums)[7] += high.w * right;
    }
}
