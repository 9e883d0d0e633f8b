// dW = A^T dy   A the column matrix of x, [pixels, taps * C], dy [pixels, N] -> dW in panels [ceil(N/16), taps * C, 16].
// A workgroup sums over one part of the pixels; where there are several, y is [parts, dW] and another launch adds them up.
// A linear layer is a convolution of 1 x 1 images. After: lib/product, lib/corners,
// lib/window.

struct Scalars {
    height: u32,
    width: u32,
    channels: u32,
    out_height: u32,
    out_width: u32,
    kernel_rows: u32,
    kernel_cols: u32,
    stride: u32,
    pad_top: u32,
    pad_left: u32,
    // B * out_height * out_width
    pixels: u32,
    // kernel_rows * kernel_cols * channels
    terms: u32,
    n: u32,
    // Pixels in a part, a multiple of TILE_DEPTH.
    part: u32,
    parts: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(2) var<storage, read_write> dy: array<f32>;
// A panel's row of 16 columns is four of them.
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

var<workgroup> taps: array<vec3<u32>, TILE_ROWS>;

// Four columns of dy, zeros beyond the last row and column.
fn dy_quad(row: u32, col: u32) -> vec4<f32> {
    var v = vec4<f32>();
    if row < s.pixels {
        for (var j = 0u; j < 4u; j++) {
            if col + j < s.n {
                v[j] = dy[row * s.n + col + j];
            }
        }
    }
    return v;
}

fn store(part: u32, row: u32, quad: u32, value: vec4<f32>) {
    let panels = (s.n + 15u) / 16u;
    if row < s.terms && quad < 4u * panels {
        y[((part * panels + quad / 4u) * s.terms + row) * 4u + quad % 4u] = value;
    }
}

@compute @workgroup_size(ROW_LANES * COL_LANES)
fn tiled(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let lanes = ROW_LANES * COL_LANES;
    // In units of four columns.
    let across = ((s.n + 15u) / 16u * 4u + COL_LANES - 1u) / COL_LANES;
    let down = (s.terms + TILE_ROWS - 1u) / TILE_ROWS;
    let number = wg.x + wg.y * wgs.x;
    let first_quad = number % across * COL_LANES;
    let first_row = number / across % down * TILE_ROWS;
    let part = number / across / down;
    if part >= s.parts {
        return;
    }
    for (var i = lane; i < TILE_ROWS; i += lanes) {
        taps[i] = tap(first_row + i);
    }
    workgroupBarrier();

    var sums = Sums();
    let end = min((part + 1u) * s.part, s.pixels);
    for (var k = part * s.part; k < end; k += TILE_DEPTH) {
        // Neighbours read neighbouring channels.
        for (var i = lane; i < 2u * ROW_LANES * TILE_DEPTH; i += lanes) {
            let quad = i % (2u * ROW_LANES);
            let depth = i / (2u * ROW_LANES);
            let pixel = corner(k + depth);
            left_tile[left_at(depth, quad)] = vec4<f32>(
                column(pixel, taps[4u * quad]),
                column(pixel, taps[4u * quad + 1u]),
                column(pixel, taps[4u * quad + 2u]),
                column(pixel, taps[4u * quad + 3u]),
            );
        }
        for (var i = lane; i < RIGHT_QUADS; i += lanes) {
            right_tile[i] = dy_quad(k + i / COL_LANES, 4u * (first_quad + i % COL_LANES));
        }
        workgroupBarrier();
        multiply_tiles(&sums, lane);
        workgroupBarrier();
    }
    for (var r = 0u; r < 8u; r++) {
        store(part, first_row + tile_row(lane, r), first_quad + lane % COL_LANES, sums[r]);
    }
}

// x by four channels of a pixel, dy by four columns.
@group(0) @binding(1) var<storage, read_write> x_quads: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dy_quads: array<vec4<f32>>;

// Each invocation on its own, 4 channels of a tap by 8 columns, for processors that play GPU, see conv2d. The channels and N are
// multiples of 4.
@compute @workgroup_size(64)
fn direct(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // Of panels.
    let halves = (s.n + 15u) / 16u * 2u;
    let number = (wg.x + wg.y * wgs.x) * 64u + lane;
    let half = number % halves;
    let row = number / halves % (s.terms / 4u) * 4u;
    let part = number / halves / (s.terms / 4u);
    if part >= s.parts {
        return;
    }
    let begin = part * s.part;
    let end = min(begin + s.part, s.pixels);
    let under = tap(row);
    let quads = s.channels / 4u;
    let stride = s.n / 4u;
    let has_left = 2u * half < stride;
    let has_right = 2u * half + 1u < stride;
    var image = begin / s.out_width / s.out_height;
    var out_row = begin / s.out_width % s.out_height;
    var out_col = begin % s.out_width;
    var left = array<vec4<f32>, 4>();
    var right = array<vec4<f32>, 4>();
    for (var k = begin; k < end; k++) {
        let at = vec2<u32>(out_row, out_col) * s.stride + under.xy - vec2<u32>(s.pad_top, s.pad_left);
        let inside = at.x < s.height && at.y < s.width;
        let pixel = (image * s.height + at.x) * s.width + at.y;
        let v = select(vec4<f32>(), x_quads[select(0u, pixel * quads + under.z / 4u, inside)], inside);
        let v_left = select(vec4<f32>(), dy_quads[k * stride + select(0u, 2u * half, has_left)], has_left);
        let v_right = select(vec4<f32>(), dy_quads[k * stride + select(0u, 2u * half + 1u, has_right)], has_right);
        left[0] += v.x * v_left;
        right[0] += v.x * v_right;
        left[1] += v.y * v_left;
        right[1] += v.y * v_right;
        left[2] += v.z * v_left;
        right[2] += v.z * v_right;
        left[3] += v.w * v_left;
        right[3] += v.w * v_right;
        let row_ends = out_col + 1u == s.out_width;
        let image_ends = row_ends && out_row + 1u == s.out_height;
        out_col = select(out_col + 1u, 0u, row_ends);
        out_row = select(out_row + u32(row_ends), 0u, image_ends);
        image += u32(image_ends);
    }
    for (var r = 0u; r < 4u; r++) {
        store(part, row + r, 2u * half, left[r]);
        store(part, row + r, 2u * half + 1u, right[r]);
    }
}
