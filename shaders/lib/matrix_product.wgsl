// Products by cooperative matrices. A workgroup makes a tile of 64 rows and 64 columns, PART_DEPTH terms at a time: all put
// their part of both operands into `left_part` and `right_part`, then each subgroup multiplies for one of the tile's four
// blocks of 32 by 32. After: lib/matrices_8 or lib/matrices_16. The op has
//     product_sizes()              samples, rows, columns, terms of its products
//     prepare(tile, lane)          what the invocation does once for a tile
//     put_left(tile, k, lane)      its part of `left_part`, terms from k on: [TILE_EDGE, LEFT_LINE]; zeros beyond the operand
//     put_right(tile, k, lane)     the same of `right_part`: [PART_DEPTH, RIGHT_LINE]
//     store_sums(sample, row, col, sums)   four columns of a row; it skips what is beyond the product

// Four times the smallest subgroup. Where subgroups are larger, two of them or one make the four blocks one after the other.
override MATRIX_LANES: u32;

const TILE_EDGE: u32 = 64u;
const BLOCK_EDGE: u32 = 32u;
const PART_DEPTH: u32 = 16u;
// Lines are longer than need be, so that rows of a matrix begin in different banks; multiples of 16 bytes.
const LEFT_LINE: u32 = 24u;
const RIGHT_LINE: u32 = 72u;
const SUM_LINE: u32 = 36u;
// Matrices along an edge of a block.
const SIDE: u32 = BLOCK_EDGE / EDGE;

var<workgroup> left_part: array<real, TILE_EDGE * LEFT_LINE>;
var<workgroup> right_part: array<real, PART_DEPTH * RIGHT_LINE>;
// A row of matrices of each subgroup, on its way to memory: [4, EDGE, SUM_LINE].
var<workgroup> sum_part: array<f32, 4u * EDGE * SUM_LINE>;

alias BlockSums = array<SumMatrix, SIDE * SIDE>;

// Where a tile begins.
struct MatrixTile {
    sample: u32,
    row: u32,
    col: u32,
}

struct ProductSizes {
    samples: u32,
    rows: u32,
    cols: u32,
    terms: u32,
}

fn multiply_parts(sums: ptr<function, BlockSums>, block: u32) {
    for (var depth = 0u; depth < PART_DEPTH; depth += EDGE) {
        var left = array<LeftMatrix, SIDE>();
        for (var i = 0u; i < SIDE; i++) {
            let row = block / 2u * BLOCK_EDGE + i * EDGE;
            left[i] = coopLoadT<LeftMatrix>(&left_part[row * LEFT_LINE + depth], LEFT_LINE);
        }
        for (var j = 0u; j < SIDE; j++) {
            let col = block % 2u * BLOCK_EDGE + j * EDGE;
            let right = coopLoadT<RightMatrix>(&right_part[depth * RIGHT_LINE + col], RIGHT_LINE);
            for (var i = 0u; i < SIDE; i++) {
                (*sums)[i * SIDE + j] = coopMultiplyAdd(left[i], right, (*sums)[i * SIDE + j]);
            }
        }
    }
}

// Stores row `i` of the matrices of the blocks from `first_block` on, one for each of `subgroups`.
fn store_row(tile: MatrixTile, i: u32, first_block: u32, subgroups: u32, lane: u32) {
    for (var at = lane; at < subgroups * EDGE * BLOCK_EDGE / 4u; at += MATRIX_LANES) {
        let line = at / (BLOCK_EDGE / 4u);
        let quad = at % (BLOCK_EDGE / 4u);
        let block = first_block + line / EDGE;
        let row = tile.row + block / 2u * BLOCK_EDGE + i * EDGE + line % EDGE;
        let col = tile.col + block % 2u * BLOCK_EDGE + 4u * quad;
        let place = line * SUM_LINE + 4u * quad;
        let sums = vec4<f32>(sum_part[place], sum_part[place + 1u], sum_part[place + 2u], sum_part[place + 3u]);
        store_sums(tile.sample, row, col, sums);
    }
}

@compute @workgroup_size(MATRIX_LANES)
fn cooperative(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    let sizes = product_sizes();
    let across = (sizes.cols + TILE_EDGE - 1u) / TILE_EDGE;
    let down = (sizes.rows + TILE_EDGE - 1u) / TILE_EDGE;
    let number = wg.x + wg.y * wgs.x;
    let sample = number / across / down;
    if sample >= sizes.samples {
        return;
    }
    let tile = MatrixTile(sample, number / across % down * TILE_EDGE, number % across * TILE_EDGE);
    prepare(tile, lane);
    workgroupBarrier();
    for (var block = 0u; block < 4u; block += subgroups) {
        var sums = BlockSums();
        for (var k = 0u; k < sizes.terms; k += PART_DEPTH) {
            put_left(tile, k, lane);
            put_right(tile, k, lane);
            workgroupBarrier();
            multiply_parts(&sums, block + subgroup);
            workgroupBarrier();
        }
        for (var i = 0u; i < SIDE; i++) {
            for (var j = 0u; j < SIDE; j++) {
                coopStoreT(sums[i * SIDE + j], &sum_part[subgroup * EDGE * SUM_LINE + j * EDGE], SUM_LINE);
            }
            workgroupBarrier();
            store_row(tile, i, block, subgroups, lane);
            workgroupBarrier();
        }
    }
}

