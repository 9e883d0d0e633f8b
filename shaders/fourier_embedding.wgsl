// t [B], freqs [half] -> y [B, 2 half]: sines and cosines of 2 pi freqs[j] t, or of 2 pi freqs[j] ln t.
// An element of the launch is a time with a frequency. After: lib/flat, lib/multiply, lib/wide, lib/turn, lib/wave.

struct Scalars {
    n: u32,
    first: u32,
    half: u32,
    t_at: u32,
    freqs_at: u32,
    y_at: u32,
}

override LOG: bool;
override COSINES_FIRST: bool;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> t: array<f32>;
@group(0) @binding(2) var<storage, read_write> freqs: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(FLAT_LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = flat_start(group, groups, lane);
    for (var k = 0u; k < FLAT_EACH; k++) {
        let i = start + k * FLAT_LANES;
        if i < s.n {
            let sample = i / s.half;
            let j = i % s.half;
            let frequency = freqs[s.freqs_at + j];
            var cos_sin = no_wave();
            if is_finite(frequency) {
                cos_sin = wave(t[s.t_at + sample], wide(frequency), LOG);
            }
            let at = s.y_at + 2u * sample * s.half + j;
            y[at] = select(cos_sin.y, cos_sin.x, COSINES_FIRST);
            y[at + s.half] = select(cos_sin.x, cos_sin.y, COSINES_FIRST);
        }
    }
}
