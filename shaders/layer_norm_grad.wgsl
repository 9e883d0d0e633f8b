// With g = dy * gamma * (1 + scale) over each row of x [rows, C]: dx = rstd * (g - mean(g) - n * mean(g * n)); a line of lanes
// a row. After: lib/lanes.

struct Scalars {
    rows: u32,
    channels: u32,
    // Rows of a sample.
    per_sample: u32,
}

override AFFINE: bool;
override MODULATE: bool;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> gamma: array<f32>;
// [samples, C]
@group(0) @binding(3) var<storage, read_write> scale: array<f32>;
// [rows, 2]: mean, rstd
@group(0) @binding(4) var<storage, read_write> stats: array<f32>;
@group(0) @binding(5) var<storage, read_write> dy: array<f32>;
@group(0) @binding(6) var<storage, read_write> dx: array<f32>;

fn upstream(at: u32, channel: u32, sample: u32) -> f32 {
    var g = dy[at];
    if AFFINE {
        g *= gamma[channel];
    }
    if MODULATE {
        g *= 1.0 + scale[sample + channel];
    }
    return g;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = (wg.x + wg.y * wgs.x) * DOWN + lane / ACROSS;
    let across = lane % ACROSS;
    let start = row * s.channels;
    let sample = row / s.per_sample * s.channels;
    // Lanes without a row still meet the others in the sums.
    let n = select(0u, s.channels, row < s.rows);
    var mean = 0.0;
    var rstd = 0.0;
    if n > 0u {
        mean = stats[2u * row];
        rstd = stats[2u * row + 1u];
    }

    var sums = vec2<f32>();
    for (var i = across; i < n; i += ACROSS) {
        let g = upstream(start + i, i, sample);
        sums += vec2<f32>(g, g * (x[start + i] - mean));
    }
    let means = sum_across(sums, lane) / f32(s.channels);
    let slope = means.y * rstd * rstd;
    for (var i = across; i < n; i += ACROSS) {
        let g = upstream(start + i, i, sample);
        dx[start + i] = (g - means.x - (x[start + i] - mean) * slope) * rstd;
    }
}
