// The gradient of a loss for its prediction, d = prediction - goal: KIND 0 w dy 2 d / n, 1 w dy d / |d|,
// 2 w dy d / sqrt(|d|^2 + c^2), zero where a sample has no difference; a workgroup a stretch of a sample. After: lib/reduce.

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
// [B]
@group(0) @binding(3) var<storage, read_write> weight: array<f32>;
@group(0) @binding(4) var<storage, read_write> dy: array<f32>;
@group(0) @binding(5) var<storage, read_write> dx: array<f32>;
// |d|^2 of the stretches [B, stretches], but for KIND 0
@group(0) @binding(6) var<storage, read_write> squares: array<f32>;

// What d is multiplied by, before w dy.
fn slope(sample: u32, place: Place) -> f32 {
    if KIND == 0u {
        return 2.0 / f32(s.n);
    }
    var sum = 0.0;
    for (var i = place.lane; i < s.stretches; i += REDUCE_LANES) {
        sum += squares[sample * s.stretches + i];
    }
    let length = sqrt(reduce_sum(sum, place) + s.c * s.c);
    // At no difference the norm has a corner: its gradient is taken as zero.
    return select(1.0 / max(length, 1.1754944e-38), 0.0, length == 0.0);
}

@compute @workgroup_size(REDUCE_LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    place: Place,
) {
    let lane = place.lane;
    let number = wg.x + wg.y * wgs.x;
    if number >= s.samples * s.stretches {
        return;
    }
    let sample = number / s.stretches;
    let scale = weight[sample] * dy[sample] * slope(sample, place);
    let first = number % s.stretches * s.each;
    let start = sample * s.n;
    for (var i = first + lane; i < min(first + s.each, s.n); i += REDUCE_LANES) {
        dx[start + i] = (prediction[start + i] - goal[start + i]) * scale;
    }
}
