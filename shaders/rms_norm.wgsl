// y = x * rstd, with AFFINE x * rstd * gamma, where rstd = 1 / sqrt(mean(x^2) + eps) over each row of x [rows, C]; a line of
// lanes a row. After: lib/lanes.

struct Scalars {
    rows: u32,
    channels: u32,
    eps: f32,
}

override AFFINE: bool;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<real>;
@group(0) @binding(2) var<storage, read_write> gamma: array<real>;
@group(0) @binding(3) var<storage, read_write> y: array<real>;
// [rows]
@group(0) @binding(4) var<storage, read_write> rstds: array<f32>;

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
    var square = 0.0;
    for (var i = across; i < n; i += ACROSS) {
        let v = f32(x[start + i]);
        square += v * v;
    }
    let mean = sum_across(vec2<f32>(square, 0.0), lane).x / f32(s.channels);
    let rstd = 1.0 / sqrt(mean + s.eps);
    if across < min(n, 1u) {
        rstds[row] = rstd;
    }
    for (var i = across; i < n; i += ACROSS) {
        var v = f32(x[start + i]) * rstd;
        if AFFINE {
            v *= f32(gamma[i]);
        }
        y[start + i] = real(v);
    }
}
