// y = epilogue(x * W), an implicit matrix product   x [B, H, W, C], W [taps * C, N] in panels -> y [B, H', W', N]
// After: lib/activation, lib/epilogue, lib/corners, lib/window.

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
    scale: f32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
// A panel's row of 16 columns is four of them.
@group(0) @binding(2) var<storage, read_write> w: array<vec4<real>>;
@group(0) @binding(6) var<storage, read_write> y: array<real>;

fn weight(i: u32) -> vec4<f32> {
    return vec4<f32>(w[i]);
}

fn store(row: u32, col: u32, value: vec4<f32>) {
    if row >= s.pixels {
        return;
    }
    let per_sample = s.out_height * s.out_width;
    for (var j = 0u; j < 4u; j++) {
        if col + j < s.n {
            y[row * s.n + col + j] = real(epilogue(value[j], row, col + j, s.n, per_sample, s.scale));
        }
    }
}

// x by four channels of a pixel.
@group(0) @binding(1) var<storage, read_write> x_quads: array<vec4<real>>;

// Where the channels of the pixel under a tap begin in `x_quads`, and 1; or 0, 0 where there is none.
fn pixel_quads(corner: vec3<u32>, tap: vec2<u32>) -> vec2<u32> {
    let at = corner.yz + tap;
    let pixel = at / DILATION;
    let inside = pixel.x < s.height && pixel.y < s.width;
    if inside && (DILATION == 1u || all(at % DILATION == vec2<u32>(0u))) {
        return vec2<u32>(((corner.x + pixel.x) * s.width + pixel.y) * (s.channels / 4u), 1u);
    }
    return vec2<u32>(0u, 0u);
}

fn quad(pixel: vec2<u32>, i: u32) -> vec4<f32> {
    return select(vec4<f32>(), vec4<f32>(x_quads[pixel.x + i]), pixel.y == 1u);
}

// Each invocation on its own, 8 rows of 8 columns, for processors that play GPU: there workgroup memory is as dear as any, and
// barriers are dearer. The channels are a multiple of 4.
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
    if row >= s.pixels {
        return;
    }
    let corner_0 = corner(row);
    let corner_1 = corner(row + 1u);
    let corner_2 = corner(row + 2u);
    let corner_3 = corner(row + 3u);
    let corner_4 = corner(row + 4u);
    let corner_5 = corner(row + 5u);
    let corner_6 = corner(row + 6u);
    let corner_7 = corner(row + 7u);
    var at = half / 2u * s.terms * 4u + half % 2u * 2u;
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
    for (var ky = 0u; ky < s.kernel_rows; ky++) {
        for (var kx = 0u; kx < s.kernel_cols; kx++) {
            let tap = vec2<u32>(ky, kx);
            let pixel_0 = pixel_quads(corner_0, tap);
            let pixel_1 = pixel_quads(corner_1, tap);
            let pixel_2 = pixel_quads(corner_2, tap);
            let pixel_3 = pixel_quads(corner_3, tap);
            let pixel_4 = pixel_quads(corner_4, tap);
            let pixel_5 = pixel_quads(corner_5, tap);
            let pixel_6 = pixel_quads(corner_6, tap);
            let pixel_7 = pixel_quads(corner_7, tap);
            for (var i = 0u; i < s.channels / 4u; i++) {
                let w_left = mat4x4<f32>(weight(at), weight(at + 4u), weight(at + 8u), weight(at + 12u));
                let w_right = mat4x4<f32>(weight(at + 1u), weight(at + 5u), weight(at + 9u), weight(at + 13u));
                let v_0 = quad(pixel_0, i);
                left_0 += w_left * v_0;
                right_0 += w_right * v_0;
                let v_1 = quad(pixel_1, i);
                left_1 += w_left * v_1;
                right_1 += w_right * v_1;
                let v_2 = quad(pixel_2, i);
                left_2 += w_left * v_2;
                right_2 += w_right * v_2;
                let v_3 = quad(pixel_3, i);
                left_3 += w_left * v_3;
                right_3 += w_right * v_3;
                let v_4 = quad(pixel_4, i);
                left_4 += w_left * v_4;
                right_4 += w_right * v_4;
                let v_5 = quad(pixel_5, i);
                left_5 += w_left * v_5;
                right_5 += w_right * v_5;
                let v_6 = quad(pixel_6, i);
                left_6 += w_left * v_6;
                right_6 += w_right * v_6;
                let v_7 = quad(pixel_7, i);
                left_7 += w_left * v_7;
                right_7 += w_right * v_7;
                at += 16u;
            }
        }
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
