// With g = dy * gamma, n = x * rstd over each row of x [rows, C]: dx = rstd * (g - n * mean(g * n)); a line of lanes a row.
// After: lib/lanes.

struct Scalars {
    rows: u32,
    channels: u32,
}

override AFFINE: bool;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> gamma: array<f32>;
// [rows]
@group(0) @binding(3) var<storage, read_write> rstds: array<f32>;
@group(0) @binding(4) var<storage, read_write> dy: array<f32>;
@group(0) @binding(5) var<storage, read_write> dx: array<f32>;

fn upstream(at: u32, channel: u32) -> f32 {
    if AFFINE {
        return dy[at] * gamma[channel];
    }
    return dy[at];
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
    // Lanes without a row still meet the others in the sum.
    let n = select(0u, s.channels, row < s.rows);
    var rstd = 0.0;
    if n > 0u {
        rstd = rstds[row];
    }
    var sum = 0.0;
    for (var i = across; i < n; i += ACROSS) {
        sum += x[start + i] * upstream(start + i, i);
    }
    let slope = sum_across(vec2<f32>(sum, 0.0), lane).x / f32(s.channels) * rstd * rstd;
    for (var i = across; i < n; i += ACROSS) {
        dx[start + i] = (upstream(start + i, i) - x[start + i] * slope) * rstd;
    }
}
