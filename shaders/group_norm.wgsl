// Group normalisation of x [B, R, C], one workgroup a group of a sample: mean, then variance, then
// y = act(n * gamma + beta), or with MODULATE act((n * gamma + beta) * (1 + scale) + shift).
// After: lib/activation, lib/reduce.

struct Scalars {
    rows: u32,
    channels: u32,
    groups: u32,
    // B * groups
    count: u32,
    eps: f32,
}

override MODULATE: bool;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<real>;
@group(0) @binding(2) var<storage, read_write> gamma: array<real>;
@group(0) @binding(3) var<storage, read_write> beta: array<real>;
// [B, C]
@group(0) @binding(4) var<storage, read_write> scale: array<real>;
@group(0) @binding(5) var<storage, read_write> shift: array<real>;
@group(0) @binding(6) var<storage, read_write> y: array<real>;
// [B, groups, 2]: mean, rstd
@group(0) @binding(7) var<storage, read_write> stats: array<f32>;

// The same by four neighbouring channels.
@group(0) @binding(1) var<storage, read_write> x_quads: array<vec4<real>>;
@group(0) @binding(2) var<storage, read_write> gamma_quads: array<vec4<real>>;
@group(0) @binding(3) var<storage, read_write> beta_quads: array<vec4<real>>;
@group(0) @binding(4) var<storage, read_write> scale_quads: array<vec4<real>>;
@group(0) @binding(5) var<storage, read_write> shift_quads: array<vec4<real>>;
@group(0) @binding(6) var<storage, read_write> y_quads: array<vec4<real>>;

@compute @workgroup_size(REDUCE_LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    place: Place,
) {
    let lane = place.lane;
    let number = wg.x + wg.y * wgs.x;
    if number >= s.count {
        return;
    }
    let width = s.channels / s.groups;
    let sample = number / s.groups;
    let channel = (number % s.groups) * width;
    let start = sample * s.rows * s.channels + channel;
    let n = s.rows * width;

    // Sums run over x less one of its numbers, and the mean is kept as two: far from zero it would be rounded too much.
    let origin = f32(x[start]);
    var sum = 0.0;
    for (var i = lane; i < n; i += REDUCE_LANES) {
        sum += f32(x[start + (i / width) * s.channels + i % width]) - origin;
    }
    let mean = reduce_sum(sum, place) / f32(n);
    var square = 0.0;
    for (var i = lane; i < n; i += REDUCE_LANES) {
        let d = (f32(x[start + (i / width) * s.channels + i % width]) - origin) - mean;
        square += d * d;
    }
    let rstd = 1.0 / sqrt(reduce_sum(square, place) / f32(n) + s.eps);

    if lane == 0u {
        stats[2u * number] = origin + mean;
        stats[2u * number + 1u] = rstd;
    }
    for (var i = lane; i < n; i += REDUCE_LANES) {
        let c = channel + i % width;
        let at = start + (i / width) * s.channels + i % width;
        var v = ((f32(x[at]) - origin) - mean) * rstd * f32(gamma[c]) + f32(beta[c]);
        if MODULATE {
            v = v * (1.0 + f32(scale[sample * s.channels + c])) + f32(shift[sample * s.channels + c]);
        }
        y[at] = real(act(v));
    }
}

// For groups of a multiple of four channels.
@compute @workgroup_size(REDUCE_LANES)
fn quads(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    place: Place,
) {
    let lane = place.lane;
    let number = wg.x + wg.y * wgs.x;
    if number >= s.count {
        return;
    }
    // All in units of four channels.
    let width = s.channels / s.groups / 4u;
    let pitch = s.channels / 4u;
    let sample = number / s.groups;
    let channel = (number % s.groups) * width;
    let start = sample * s.rows * pitch + channel;
    let n = s.rows * width;

    let origin = f32(x_quads[start].x);
    var sum = vec4<f32>();
    for (var i = lane; i < n; i += REDUCE_LANES) {
        sum += vec4<f32>(x_quads[start + (i / width) * pitch + i % width]) - origin;
    }
    let mean = reduce_sum((sum.x + sum.y) + (sum.z + sum.w), place) / f32(4u * n);
    var square = vec4<f32>();
    for (var i = lane; i < n; i += REDUCE_LANES) {
        let d = (vec4<f32>(x_quads[start + (i / width) * pitch + i % width]) - origin) - mean;
        square += d * d;
    }
    let squares = (square.x + square.y) + (square.z + square.w);
    let rstd = 1.0 / sqrt(reduce_sum(squares, place) / f32(4u * n) + s.eps);

    if lane == 0u {
        stats[2u * number] = origin + mean;
        stats[2u * number + 1u] = rstd;
    }
    for (var i = lane; i < n; i += REDUCE_LANES) {
        let c = channel + i % width;
        let at = start + (i / width) * pitch + i % width;
        var v = ((vec4<f32>(x_quads[at]) - origin) - mean) * rstd * vec4<f32>(gamma_quads[c]) + vec4<f32>(beta_quads[c]);
        if MODULATE {
            v = v * (1.0 + vec4<f32>(scale_quads[sample * pitch + c])) + vec4<f32>(shift_quads[sample * pitch + c]);
        }
        y_quads[at] = vec4<real>(vec4<f32>(act(v.x), act(v.y), act(v.z), act(v.w)));
    }
}
