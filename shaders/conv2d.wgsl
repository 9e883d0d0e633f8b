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

// Each invocation on its own, 4 rows of 8 columns, for processors that play GPU: there workgroup memory is as dear as any, and
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
    let row = number / halves * 4u;
    let half = number % halves;
    if row >= s.pixels {
        return;
    }
    let corner_0 = corner(row);
    let corner_1 = corner(row + 1u);
    let corner_2 = corner(row + 2u);
    let corner_3 = corner(row + 3u);
    var at = half / 2u * s.terms * 4u + half % 2u * 2u;
    var left = array<vec4<f32>, 4>();
    var right = array<vec4<f32>, 4>();
    for (var ky = 0u; ky < s.kernel_rows; ky++) {
        for (var kx = 0u; kx < s.kernel_cols; kx++) {
            let tap = vec2<u32>(ky, kx);
            let pixel_0 = pixel_quads(corner_0, tap);
            let pixel_1 = pixel_quads(corner_1, tap);
            let pixel_2 = pixel_quads(corner_2, tap);
            let pixel_3 = pixel_quads(corner_3, tap);
            for (var i = 0u; i < s.channels / 4u; i++) {
                let w_left = mat4x4<f32>(weight(at), weight(at + 4u), weight(at + 8u), weight(at + 12u));
                let w_right = mat4x4<f32>(weight(at + 1u), weight(at + 5u), weight(at + 9u), weight(at + 13u));
                let v_0 = quad(pixel_0, i);
                left[0] += w_left * v_0;
                right[0] += w_right * v_0;
                let v_1 = quad(pixel_1, i);
                left[1] += w_left * v_1;
                right[1] += w_right * v_1;
                let v_2 = quad(pixel_2, i);
                left[2] += w_left * v_2;
                right[2] += w_right * v_2;
                let v_3 = quad(pixel_3, i);
                left[3] += w_left * v_3;
                right[3] += w_right * v_3;
                at += 16u;
            }
        }
    }
    for (var r = 0u; r < 4u; r++) {
        store(row + r, 8u * half, left[r]);
        store(row + r, 8u * half + 4u, right[r]);
    }
}
