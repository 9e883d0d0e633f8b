// Products by cooperative matrices of 16 by 16 for hardware whose subgroups have 32 invocations. A workgroup makes a tile of 128 rows
// and 128 columns, STEP terms at a time: all put their part of both operands into workgroup memory, eight numbers at once, while the
// next ones are under way, and each subgroup multiplies for a block of 64 rows by 32 columns. Where there are several parts, each
// sums over its own stretch of the terms. The right operand is a weight in panels, `w`, whose rows are multiples of 8 terms.
// The op has
//     product_sizes()                  of its products
//     left_row(sample, row)            what an invocation keeps to read a row: LeftRow
//     left_eight(row, k)               eight terms of it from k on, all of them there
//     store_sums(at, row, col, sums)   four columns of a row; it skips what is beyond the product
// No index of sums is a variable: registers have none.

const STEP: u32 = 32u;
// Lines are longer by 16 bytes than need be, so that rows of a matrix begin in different banks. All in fours.
const LEFT_LINE: u32 = 10u;
const RIGHT_LINE: u32 = 6u;
const SUM_LINE: u32 = 9u;
const RIGHT_PANEL: u32 = 192u;

// [128 rows, LEFT_LINE]
var<workgroup> left_part: array<vec4<real>, 1280>;
// [8 panels, STEP, RIGHT_LINE]
var<workgroup> right_part: array<vec4<real>, 1536>;
// 16 rows of each subgroup, on their way to memory: [8, 16, SUM_LINE]
var<workgroup> sum_part: array<vec4<f32>, 1152>;

// Four rows of two matrices.
alias BlockSums = array<SumMatrix, 8>;

struct Eight {
    low: vec4<real>,
    high: vec4<real>,
}

// What an invocation brings for a step.
struct Brought {
    left: Eight,
    far_left: Eight,
    right: Eight,
    far_right: Eight,
}

fn left_or_zero(row: LeftRow, k: u32, end: u32) -> Eight {
    if k < end {
        return left_eight(row, k);
    }
    return Eight();
}

fn right_eight(panel: u32, k: u32, half: u32) -> Eight {
    let at = (panel + k) * 4u + 2u * half;
    return Eight(w[at], w[at + 1u]);
}

fn multiply_matrices(sums: ptr<function, BlockSums>, left: u32, right: u32) {
    let near = coopLoadT<RightMatrix>(&right_part[right], RIGHT_LINE);
    let far = coopLoadT<RightMatrix>(&right_part[right + RIGHT_PANEL], RIGHT_LINE);
    let a = coopLoadT<LeftMatrix>(&left_part[left], LEFT_LINE);
    (*sums)[0] = coopMultiplyAdd(a, near, (*sums)[0]);
    (*sums)[1] = coopMultiplyAdd(a, far, (*sums)[1]);
    let b = coopLoadT<LeftMatrix>(&left_part[left + 16u * LEFT_LINE], LEFT_LINE);
    (*sums)[2] = coopMultiplyAdd(b, near, (*sums)[2]);
    (*sums)[3] = coopMultiplyAdd(b, far, (*sums)[3]);
    let c = coopLoadT<LeftMatrix>(&left_part[left + 32u * LEFT_LINE], LEFT_LINE);
    (*sums)[4] = coopMultiplyAdd(c, near, (*sums)[4]);
    (*sums)[5] = coopMultiplyAdd(c, far, (*sums)[5]);
    let d = coopLoadT<LeftMatrix>(&left_part[left + 48u * LEFT_LINE], LEFT_LINE);
    (*sums)[6] = coopMultiplyAdd(d, near, (*sums)[6]);
    (*sums)[7] = coopMultiplyAdd(d, far, (*sums)[7]);
}

// Where a tile begins, and which subgroups store: `subgroups` from `first_block` on.
struct MatrixTile {
    at: ProductPlace,
    row: u32,
    col: u32,
    first_block: u32,
    subgroups: u32,
}

// Stores rows 16 i to 16 i + 15 of the subgroups' blocks.
fn store_matrices(tile: MatrixTile, i: u32, lane: u32) {
    workgroupBarrier();
    for (var k = lane; k < tile.subgroups * 128u; k += 256u) {
        let block = tile.first_block + k / 128u;
        let row = block / 4u * 64u + 16u * i + k / 8u % 16u;
        let col = block % 4u * 32u + k % 8u * 4u;
        store_sums(tile.at, tile.row + row, tile.col + col, sum_part[k / 8u * SUM_LINE + k % 8u]);
    }
    workgroupBarrier();
}

@compute @workgroup_size(256)
fn matrices(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    let sizes = product_sizes();
    let across = (sizes.cols + 127u) / 128u;
    let down = (sizes.rows + 127u) / 128u;
    let number = wg.x + wg.y * wgs.x;
    let first_col = number % across * 128u;
    let first_row = number / across % down * 128u;
    let rest = number / across / down;
    let at = ProductPlace(rest / sizes.parts, rest % sizes.parts);
    if at.sample >= sizes.samples {
        return;
    }
    let begin = at.part * sizes.part;
    let end = min(begin + sizes.part, sizes.terms);

    // Four invocations bring a row's terms, and two a panel's columns of a term.
    let row = left_row(at.sample, first_row + lane / 4u);
    let far_row = left_row(at.sample, first_row + 64u + lane / 4u);
    let term = lane % 4u * 8u;
    let left_put = lane / 4u * LEFT_LINE + lane % 4u * 2u;
    let last = (sizes.cols + 15u) / 16u - 1u;
    let panel = min(first_col / 16u + lane / 64u, last) * sizes.terms;
    let far_panel = min(first_col / 16u + 4u + lane / 64u, last) * sizes.terms;
    let right_term = lane / 2u % STEP;
    let half = lane % 2u;
    let right_put = (lane / 64u * STEP + right_term) * RIGHT_LINE + 2u * half;

    // Where a driver makes larger subgroups, they make the blocks in turns.
    for (var first_block = 0u; first_block < 8u; first_block += subgroups) {
        let block = first_block + subgroup;
        let left = block / 4u * 64u * LEFT_LINE;
        let right = block % 4u * 2u * RIGHT_PANEL;
        var sums = BlockSums();
        let right_k = min(begin + right_term, end - 1u);
        var brought = Brought(
            left_or_zero(row, begin + term, end), left_or_zero(far_row, begin + term, end),
            right_eight(panel, right_k, half), right_eight(far_panel, right_k, half),
        );
        for (var k = begin; k < end; k += STEP) {
            left_part[left_put] = brought.left.low;
            left_part[left_put + 1u] = brought.left.high;
            left_part[left_put + 64u * LEFT_LINE] = brought.far_left.low;
            left_part[left_put + 64u * LEFT_LINE + 1u] = brought.far_left.high;
            right_part[right_put] = brought.right.low;
            right_part[right_put + 1u] = brought.right.high;
            right_part[right_put + 4u * RIGHT_PANEL] = brought.far_right.low;
            right_part[right_put + 4u * RIGHT_PANEL + 1u] = brought.far_right.high;
            workgroupBarrier();
            let next = k + STEP;
            // Beyond the last term the left operand is zero, and the right one any.
            let next_k = min(next + right_term, end - 1u);
            brought = Brought(
                left_or_zero(row, next + term, end), left_or_zero(far_row, next + term, end),
                right_eight(panel, next_k, half), right_eight(far_panel, next_k, half),
            );
            multiply_matrices(&sums, left, right);
            multiply_matrices(&sums, left + 4u, right + 16u * RIGHT_LINE);
            workgroupBarrier();
        }
        let tile = MatrixTile(at, first_row, first_col, first_block, subgroups);
        let put = subgroup * 16u * SUM_LINE;
        coopStoreT(sums[0], &sum_part[put], SUM_LINE);
        coopStoreT(sums[1], &sum_part[put + 4u], SUM_LINE);
        store_matrices(tile, 0u, lane);
        coopStoreT(sums[2], &sum_part[put], SUM_LINE);
        coopStoreT(sums[3], &sum_part[put + 4u], SUM_LINE);
        store_matrices(tile, 1u, lane);
        coopStoreT(sums[4], &sum_part[put], SUM_LINE);
        coopStoreT(sums[5], &sum_part[put + 4u], SUM_LINE);
        store_matrices(tile, 2u, lane);
        coopStoreT(sums[6], &sum_part[put], SUM_LINE);
        coopStoreT(sums[7], &sum_part[put + 4u], SUM_LINE);
        store_matrices(tile, 3u, lane);
    }
}
