// y = combined * (phi * std(cond) / std(combined) + 1 - phi), std over each sample. `spreads` makes mean and sum of squared
// deviations of every stretch of each sample of both, `main` joins a sample's and scales; a workgroup a stretch.
// After: lib/reduce or lib/reduce_subgroups.

struct Scalars {
    samples: u32,
    // Elements of a sample, of a stretch; stretches of a sample.
    n: u32,
    each: u32,
    stretches: u32,
    phi: f32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
// [B, n]
@group(0) @binding(1) var<storage, read_write> combined: array<f32>;
// [B, stretches]: mean and squared deviations of cond, then of combined
@group(0) @binding(2) var<storage, read_write> parts: array<vec4<f32>>;

@group(0) @binding(3) var<storage, read_write> cond: array<f32>;

@group(0) @binding(3) var<storage, read_write> y: array<f32>;

// Elements of a stretch of every sample.
fn count(stretch: u32) -> u32 {
    return min((stretch + 1u) * s.each, s.n) - stretch * s.each;
}

@compute @workgroup_size(REDUCE_LANES)
fn spreads(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    place: Place,
) {
    let lane = place.lane;
    let number = wg.x + wg.y * wgs.x;
    if number >= s.samples * s.stretches {
        return;
    }
    let start = number / s.stretches * s.n + number % s.stretches * s.each;
    let n = count(number % s.stretches);
    // Less the first, all deviations of a constant are exactly zero.
    let origin = vec2<f32>(cond[start], combined[start]);
    var sum = vec2<f32>();
    for (var i = lane; i < n; i += REDUCE_LANES) {
        sum += vec2<f32>(cond[start + i], combined[start + i]) - origin;
    }
    let mean = vec2<f32>(reduce_sum(sum.x, place), reduce_sum(sum.y, place)) / f32(n);
    var square = vec2<f32>();
    for (var i = lane; i < n; i += REDUCE_LANES) {
        let d = vec2<f32>(cond[start + i], combined[start + i]) - origin - mean;
        square += d * d;
    }
    let squares = vec2<f32>(reduce_sum(square.x, place), reduce_sum(square.y, place));
    if lane == 0u {
        parts[number] = vec4<f32>(origin.x + mean.x, squares.x, origin.y + mean.y, squares.y);
    }
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
    let first = number / s.stretches * s.stretches;
    let origin = parts[first].xz;
    var shift = vec2<f32>();
    for (var i = lane; i < s.stretches; i += REDUCE_LANES) {
        shift += f32(count(i)) * (parts[first + i].xz - origin);
    }
    let mean = vec2<f32>(reduce_sum(shift.x, place), reduce_sum(shift.y, place)) / f32(s.n);
    var square = vec2<f32>();
    for (var i = lane; i < s.stretches; i += REDUCE_LANES) {
        let d = parts[first + i].xz - origin - mean;
        square += parts[first + i].yw + f32(count(i)) * d * d;
    }
    let spread = vec2<f32>(reduce_sum(square.x, place), reduce_sum(square.y, place));
    var ratio = 1.0;
    if spread.y > 0.0 {
        ratio = sqrt(spread.x / spread.y);
    }
    let factor = s.phi * ratio + 1.0 - s.phi;

    let start = number / s.stretches * s.n + number % s.stretches * s.each;
    for (var i = lane; i < count(number % s.stretches); i += REDUCE_LANES) {
        y[start + i] = combined[start + i] * factor;
    }
}
