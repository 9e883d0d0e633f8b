// `layer_norm` by four channels, where channels and the places of columns are multiples of four. After: lib/lanes.

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
@group(0) @binding(1) var<storage, read_write> x: array<vec4<real>>;
@group(0) @binding(2) var<storage, read_write> gamma: array<vec4<real>>;
@group(0) @binding(3) var<storage, read_write> beta: array<vec4<real>>;
// C of the columns of [samples, wide]
@group(0) @binding(4) var<storage, read_write> scale: array<vec4<real>>;
@group(0) @binding(5) var<storage, read_write> shift: array<vec4<real>>;
@group(0) @binding(6) var<storage, read_write> y: array<vec4<real>>;
// [rows, 2]: mean, rstd
@group(0) @binding(7) var<storage, read_write> stats: array<f32>;

fn sum_of(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = (wg.x + wg.y * wgs.x) * DOWN + lane / ACROSS;
    let across = lane % ACROSS;
    let fours = s.channels / 4u;
    let start = row * fours;
    // Lanes without a row still meet the others in the sums.
    let n = select(0u, fours, row < s.rows);

    var sum = vec4<f32>();
    for (var i = across; i < n; i += ACROSS) {
        sum += vec4<f32>(x[start + i]);
    }
    let mean = sum_across(vec2<f32>(sum_of(sum), 0.0), lane).x / f32(s.channels);
    // What rounding left of the mean: large means cost no digits.
    var rests = vec4<f32>();
    var squares = vec4<f32>();
    for (var i = across; i < n; i += ACROSS) {
        let d = vec4<f32>(x[start + i]) - mean;
        rests += d;
        squares = fma(d, d, squares);
    }
    let rest = sum_across(vec2<f32>(sum_of(rests), sum_of(squares)), lane) / f32(s.channels);
    let rstd = 1.0 / sqrt(max(rest.y - rest.x * rest.x, 0.0) + s.eps);

    if across < min(n, 1u) {
        stats[2u * row] = mean + rest.x;
        stats[2u * row + 1u] = rstd;
    }
    let sample = row / s.per_sample * s.wide;
    for (var i = across; i < n; i += ACROSS) {
        var v = ((vec4<f32>(x[start + i]) - mean) - rest.x) * rstd;
        if AFFINE {
            v = fma(v, vec4<f32>(gamma[i]), vec4<f32>(beta[i]));
        }
        if MODULATE {
            v = fma(v, 1.0 + vec4<f32>(scale[(s.scale_at + sample) / 4u + i]), vec4<f32>(shift[(s.shift_at + sample) / 4u + i]));
        }
        y[start + i] = vec4<real>(v);
    }
}
