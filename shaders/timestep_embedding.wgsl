// t [B] -> y [B, dim]: sines and cosines of t times the frequencies ratio^j, j < dim / 2, and a zero if dim is odd.
// An element of the launch is a time with a frequency, or with that zero.
// After: lib/flat, lib/multiply, lib/wide, lib/turn, lib/wave.

struct Scalars {
    n: u32,
    first: u32,
    dim: u32,
    cosines_first: u32,
    ratio_high: u32,
    ratio_low: u32,
    ratio_exponent: u32,
    ratio_negative: u32,
    // Turns a unit of t at the frequency 1.
    scale_high: u32,
    scale_low: u32,
    scale_exponent: u32,
    scale_negative: u32,
    t_at: u32,
    y_at: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> t: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(FLAT_LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = flat_start(group, groups, lane);
    let ratio = Wide(s.ratio_high, s.ratio_low, i32(s.ratio_exponent), s.ratio_negative);
    let scale = Wide(s.scale_high, s.scale_low, i32(s.scale_exponent), s.scale_negative);
    let half = s.dim / 2u;
    let width = s.dim - half;
    for (var k = 0u; k < FLAT_EACH; k++) {
        let i = start + k * FLAT_LANES;
        if i < s.n {
            let sample = i / width;
            let j = i % width;
            let at = s.y_at + sample * s.dim;
            if j == half {
                y[at + s.dim - 1u] = 0.0;
            } else {
                let frequency = wide_product(scale, wide_power(ratio, j));
                let cos_sin = wave(t[s.t_at + sample], frequency, false);
                let cosines_first = s.cosines_first != 0u;
                y[at + j] = select(cos_sin.y, cos_sin.x, cosines_first);
                y[at + half + j] = select(cos_sin.x, cos_sin.y, cosines_first);
            }
        }
    }
}
