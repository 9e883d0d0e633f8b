// Products of matrices for hardware, by tiles in workgroup memory. A workgroup makes 4 * ROW_QUADS rows of 4 * COL_QUADS columns,
// BLOCK_DEPTH terms at a time: each invocation brings a block of 4 rows, or of 4 columns, by 4 terms, and adds up 8 rows of 8 columns
// (4, if not WIDE). The next block is under way while it multiplies. Where there are several parts, each sums over its own
// stretch of the terms. The op has
//     product_sizes()                   of its products
//     left_rows(sample, row)            what the invocation keeps to read 4 rows: LeftRows
//     left_block(rows, k, end)          column j: the 4 rows' numbers of term k + j; zeros from term `end` on. k < end
//     right_cols(sample, col)           what it keeps to read 4 columns: RightCols
//     right_block(cols, k, end)         column j: the 4 columns' numbers of term k + j; any finite ones from term `end` on
//     store_sums(at, row, col, sums)    four columns of a row; it skips what is beyond the product
// All sums are held by index, and no index is a variable: registers have none.

override ROW_QUADS: u32 = 32u;
override COL_QUADS: u32 = 32u;
override WIDE: bool = true;
override BLOCK_LANES: u32 = 256u;

const BLOCK_DEPTH: u32 = 16u;

// Sizes have names, see lib/product.
override BLOCK_QUADS: u32 = (ROW_QUADS + COL_QUADS) * BLOCK_DEPTH;
override ROW_BLOCKS: u32 = ROW_QUADS / 2u;
override COL_BLOCKS: u32 = select(COL_QUADS, COL_QUADS / 2u, WIDE);

// For each term four rows of the left operand, [BLOCK_DEPTH, ROW_QUADS], then four columns of the right one, [BLOCK_DEPTH, COL_QUADS].
var<workgroup> blocks: array<vec4<f32>, BLOCK_QUADS>;

// Rows of two quads.
alias BlockSums = array<vec4<f32>, 16>;

fn multiply_term(sums: ptr<function, BlockSums>, left: u32, right: u32) {
    let low = blocks[left];
    let high = blocks[left + ROW_BLOCKS];
    let a = blocks[right];
    (*sums)[0] = fma(vec4<f32>(low.x), a, (*sums)[0]);
    (*sums)[2] = fma(vec4<f32>(low.y), a, (*sums)[2]);
    (*sums)[4] = fma(vec4<f32>(low.z), a, (*sums)[4]);
    (*sums)[6] = fma(vec4<f32>(low.w), a, (*sums)[6]);
    (*sums)[8] = fma(vec4<f32>(high.x), a, (*sums)[8]);
    (*sums)[10] = fma(vec4<f32>(high.y), a, (*sums)[10]);
    (*sums)[12] = fma(vec4<f32>(high.z), a, (*sums)[12]);
    (*sums)[14] = fma(vec4<f32>(high.w), a, (*sums)[14]);
    if WIDE {
        let b = blocks[right + COL_BLOCKS];
        (*sums)[1] = fma(vec4<f32>(low.x), b, (*sums)[1]);
        (*sums)[3] = fma(vec4<f32>(low.y), b, (*sums)[3]);
        (*sums)[5] = fma(vec4<f32>(low.z), b, (*sums)[5]);
        (*sums)[7] = fma(vec4<f32>(low.w), b, (*sums)[7]);
        (*sums)[9] = fma(vec4<f32>(high.x), b, (*sums)[9]);
        (*sums)[11] = fma(vec4<f32>(high.y), b, (*sums)[11]);
        (*sums)[13] = fma(vec4<f32>(high.z), b, (*sums)[13]);
        (*sums)[15] = fma(vec4<f32>(high.w), b, (*sums)[15]);
    }
}

fn store_row(at: ProductPlace, row: u32, col: u32, left: vec4<f32>, right: vec4<f32>) {
    store_sums(at, row, col, left);
    if WIDE {
        store_sums(at, row, col + 4u * COL_BLOCKS, right);
    }
}

// The block that the invocation brings, zeros if it is beyond the part.
fn bring(left: bool, rows: LeftRows, cols: RightCols, k: u32, end: u32) -> mat4x4<f32> {
    if k >= end {
        return mat4x4<f32>();
    }
    if left {
        return left_block(rows, k, end);
    }
    return right_block(cols, k, end);
}

@compute @workgroup_size(BLOCK_LANES)
fn blocked(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let sizes = product_sizes();
    let across = (sizes.cols + 4u * COL_QUADS - 1u) / (4u * COL_QUADS);
    let down = (sizes.rows + 4u * ROW_QUADS - 1u) / (4u * ROW_QUADS);
    let number = wg.x + wg.y * wgs.x;
    let first_col = number % across * 4u * COL_QUADS;
    let first_row = number / across % down * 4u * ROW_QUADS;
    let rest = number / across / down;
    let at = ProductPlace(rest / sizes.parts, rest % sizes.parts);
    if at.sample >= sizes.samples {
        return;
    }
    let begin = at.part * sizes.part;
    let end = min(begin + sizes.part, sizes.terms);

    // Of 32 invocations, 8 bring neighbouring rows or columns of each of 4 terms.
    let brings_left = lane < 4u * ROW_QUADS;
    let bringer = select(lane - 4u * ROW_QUADS, lane, brings_left);
    let quad = bringer / 32u * 8u + bringer % 8u;
    let term = bringer / 8u % 4u * 4u;
    let brings = brings_left || quad < COL_QUADS;
    let line = select(COL_QUADS, ROW_QUADS, brings_left);
    let put = select(BLOCK_DEPTH * ROW_QUADS, 0u, brings_left) + term * line + quad;
    let rows = left_rows(at.sample, first_row + select(0u, 4u * quad, brings_left));
    let cols = right_cols(at.sample, first_col + select(4u * quad, 0u, brings_left));

    // And they multiply 4 rows of blocks by 8 columns of blocks.
    let row_block = lane / 32u / (COL_BLOCKS / 8u) * 4u + lane / 8u % 4u;
    let col_block = lane / 32u % (COL_BLOCKS / 8u) * 8u + lane % 8u;

    var sums = BlockSums();
    var block = bring(brings_left, rows, cols, begin + term, end);
    for (var k = begin; k < end; k += BLOCK_DEPTH) {
        if brings {
            blocks[put] = block[0];
            blocks[put + line] = block[1];
            blocks[put + 2u * line] = block[2];
            blocks[put + 3u * line] = block[3];
        }
        workgroupBarrier();
        block = bring(brings_left, rows, cols, k + BLOCK_DEPTH + term, end);
        var left = row_block;
        var right = BLOCK_DEPTH * ROW_QUADS + col_block;
        for (var i = 0u; i < BLOCK_DEPTH; i += 4u) {
            multiply_term(&sums, left, right);
            multiply_term(&sums, left + ROW_QUADS, right + COL_QUADS);
            multiply_term(&sums, left + 2u * ROW_QUADS, right + 2u * COL_QUADS);
            multiply_term(&sums, left + 3u * ROW_QUADS, right + 3u * COL_QUADS);
            left += 4u * ROW_QUADS;
            right += 4u * COL_QUADS;
        }
        workgroupBarrier();
    }
    let row = first_row + 4u * row_block;
    let far_row = row + 4u * ROW_BLOCKS;
    let col = first_col + 4u * col_block;
    store_row(at, row, col, sums[0], sums[1]);
    store_row(at, row + 1u, col, sums[2], sums[3]);
    store_row(at, row + 2u, col, sums[4], sums[5]);
    store_row(at, row + 3u, col, sums[6], sums[7]);
    store_row(at, far_row, col, sums[8], sums[9]);
    store_row(at, far_row + 1u, col, sums[10], sums[11]);
    store_row(at, far_row + 2u, col, sums[12], sums[13]);
    store_row(at, far_row + 3u, col, sums[14], sums[15]);
}
