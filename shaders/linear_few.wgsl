// `linear` for few rows: a workgroup makes four of them in the columns of a panel. After: linear_blocks.

const SLICES: u32 = 64u;

// Sums of a slice of the terms and four columns: column r of a matrix is row r of four.
var<workgroup> slices: array<mat4x4<f32>, 128>;

// A grid of (panels, rows of four). K is a multiple of 4: invocations of a slice take four terms each SLICES times four.
@compute @workgroup_size(256)
fn few(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let slice = lane / 4u;
    let quad = lane % 4u;
    let rows = left_rows(0u, 4u * wg.y);
    let col = 16u * wg.x + 4u * quad;
    let cols = right_cols(0u, col);
    var sums = mat4x4<f32>();
    for (var k = 4u * slice; k < s.k; k += 4u * SLICES) {
        let at = rows + vec4<u32>(k);
        let x = mat4x4<f32>(x_four(at.x, 4u), x_four(at.y, 4u), x_four(at.z, 4u), x_four(at.w, 4u));
        sums += right_block(cols, k, s.k) * x;
    }
    for (var half = SLICES / 2u; half > 0u; half /= 2u) {
        if slice >= half && slice < 2u * half {
            slices[(slice - half) * 4u + quad] = sums;
        }
        workgroupBarrier();
        if slice < half {
            sums += slices[slice * 4u + quad];
        }
        workgroupBarrier();
    }
    if slice == 0u {
        let at = ProductPlace(0u, 0u);
        store_sums(at, 4u * wg.y, col, sums[0]);
        store_sums(at, 4u * wg.y + 1u, col, sums[1]);
        store_sums(at, 4u * wg.y + 2u, col, sums[2]);
        store_sums(at, 4u * wg.y + 3u, col, sums[3]);
    }
}
