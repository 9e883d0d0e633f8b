// The weighted loss of each sample, w its weight, d = prediction - goal: KIND 0 w |d|^2 / n, 1 w |d|, 2 w (sqrt(|d|^2 + c^2) - c).
// `sum_squares` makes |d|^2 of every stretch of each sample, `main` adds them, a workgroup a sample. After: lib/reduce.

struct Scalars {
    samples: u32,
    // Elements of a sample, of a stretch; stretches of a sample.
    n: u32,
    each: u32,
    stretches: u32,
    c: f32,
}

override KIND: u32;

@group(0) @binding(0) var<uniform> s: Scalars;
// [B, n]
@group(0) @binding(1) var<storage, read_write> prediction: array<f32>;
@group(0) @binding(2) var<storage, read_write> goal: array<f32>;
// [B, stretches]
@group(0) @binding(3) var<storage, read_write> squares: array<f32>;

@compute @workgroup_size(REDUCE_LANES)
fn sum_squares(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    place: Place,
) {
    let lane = place.lane;
    let number = wg.x + wg.y * wgs.x;
    if number >= s.samples * s.stretches {
        return;
    }
    let first = number % s.stretches * s.each;
    let start = number / s.stretches * s.n;
    var sum = 0.0;
    for (var i = first + lane; i < min(first + s.each, s.n); i += REDUCE_LANES) {
        let d = prediction[start + i] - goal[start + i];
        sum += d * d;
    }
    let total = reduce_sum(sum, place);
    if lane == 0u {
        squares[number] = total;
    }
}

// [B, stretches]
@group(0) @binding(1) var<storage, read_write> parts: array<f32>;
// [B]
@group(0) @binding(2) var<storage, read_write> weight: array<f32>;
@group(0) @binding(3) var<storage, read_write> losses: array<f32>;

fn loss(square: f32) -> f32 {
    if KIND == 0u {
        return square / f32(s.n);
    }
    if KIND == 1u {
        return sqrt(square);
    }
    // Without the cancellation, and without dividing by zero.
    return square / max(sqrt(square + s.c * s.c) + s.c, 1.1754944e-38);
}

@compute @workgroup_size(REDUCE_LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    place: Place,
) {
    let lane = place.lane;
    let sample = wg.x + wg.y * wgs.x;
    if sample >= s.samples {
        return;
    }
    var sum = 0.0;
    for (var i = lane; i < s.stretches; i += REDUCE_LANES) {
        sum += parts[sample * s.stretches + i];
    }
    let square = reduce_sum(sum, place);
    if lane == 0u {
        losses[sample] = weight[sample] * loss(square);
    }
}
