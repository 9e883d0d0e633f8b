// y = n, with AFFINE n * gamma + beta, with MODULATE (what that gives) * (1 + scale) + shift, where n = (x - mean) * rstd over
// each row of x [rows, C]; a line of lanes a row. After: lib/lanes.

struct Scalars {
    rows: u32,
    channels: u32,
    // Rows of a sample.
    per_sample: u32,
    eps: f32,
    // Numbers from a sample's scale or shift to the next one's, and where the first ones begin.
    wide: u32,
    scale_at: u32,
    shift_at: u32,
}

override AFFINE: bool;
override MODULATE: bool;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<real>;
@group(0) @binding(2) var<storage, read_write> gamma: array<real>;
@group(0) @binding(3) var<storage, read_write> beta: array<real>;
// C of the columns of [samples, wide]
@group(0) @binding(4) var<storage, read_write> scale: array<real>;
@group(0) @binding(5) var<storage, read_write> shift: array<real>;
@group(0) @binding(6) var<storage, read_write> y: array<real>;
// [rows, 2]: mean, rstd
@group(0) @binding(7) var<storage, read_write> stats: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = (wg.x + wg.y * wgs.x) * DOWN + lane / ACROSS;
    let across = lane % ACROSS;
    let start = row * s.channels;
    // Lanes without a row still meet the others in the sums.
    let n = select(0u, s.channels, row < s.rows);

    var sum = 0.0;
    for (var i = across; i < n; i += ACROSS) {
        sum += f32(x[start + i]);
    }
    let mean = sum_across(vec2<f32>(sum, 0.0), lane).x / f32(s.channels);
    // What rounding left of the mean: large means cost no digits.
    var rest = vec2<f32>();
    for (var i = across; i < n; i += ACROSS) {
        let d = f32(x[start + i]) - mean;
        rest += vec2<f32>(d, d * d);
    }
    rest = sum_across(rest, lane) / f32(s.channels);
    let rstd = 1.0 / sqrt(max(rest.y - rest.x * rest.x, 0.0) + s.eps);

    if across < min(n, 1u) {
        stats[2u * row] = mean + rest.x;
        stats[2u * row + 1u] = rstd;
    }
    let sample = row / s.per_sample * s.wide;
    for (var i = across; i < n; i += ACROSS) {
        var v = ((f32(x[start + i]) - mean) - rest.x) * rstd;
        if AFFINE {
            v = v * f32(gamma[i]) + f32(beta[i]);
        }
        if MODULATE {
            v = v * (1.0 + f32(scale[s.scale_at + sample + i])) + f32(shift[s.shift_at + sample + i]);
        }
        y[start + i] = real(v);
    }
}
