// The moments of stretches and channels put together, a workgroup a group of a sample, and what of it each channel needs:
// y = act(((x - origin) - mean) * factor + offset). The mean is in two parts: far from zero one number would be rounded too much.
// After: lib/reduce or lib/reduce_subgroups.

struct Scalars {
    // B * groups
    count: u32,
    groups: u32,
    rows: u32,
    channels: u32,
    // Stretches of a sample, and rows of each but the last.
    stretches: u32,
    each: u32,
    eps: f32,
}

override MODULATE: bool;

@group(0) @binding(0) var<uniform> s: Scalars;
// [B, stretches, 3, C]: origin, mean less origin, sum of squares
@group(0) @binding(1) var<storage, read_write> moments: array<f32>;
@group(0) @binding(2) var<storage, read_write> gamma: array<real>;
@group(0) @binding(3) var<storage, read_write> beta: array<real>;
// [B, C]
@group(0) @binding(4) var<storage, read_write> scale: array<real>;
@group(0) @binding(5) var<storage, read_write> shift: array<real>;
// [B, groups, 2]: mean, rstd
@group(0) @binding(6) var<storage, read_write> stats: array<f32>;
// [B, 4, C]: origin, mean, factor, offset
@group(0) @binding(7) var<storage, read_write> coefficients: array<f32>;

@compute @workgroup_size(REDUCE_LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    place: Place,
) {
    let number = wg.x + wg.y * wgs.x;
    if number >= s.count {
        return;
    }
    let width = s.channels / s.groups;
    let sample = number / s.groups;
    let first = number % s.groups * width;
    let start = sample * s.stretches * 3u * s.channels + first;
    let n = s.stretches * width;
    let origin = moments[start];
    let terms = f32(s.rows * width);

    var sum = 0.0;
    for (var i = place.lane; i < n; i += REDUCE_LANES) {
        let at = start + i / width * 3u * s.channels + i % width;
        let rows = f32(min(s.each, s.rows - i / width * s.each));
        sum += rows * ((moments[at] - origin) + moments[at + s.channels]);
    }
    let mean = reduce_sum(sum, place) / terms;
    var squares = 0.0;
    for (var i = place.lane; i < n; i += REDUCE_LANES) {
        let at = start + i / width * 3u * s.channels + i % width;
        let rows = f32(min(s.each, s.rows - i / width * s.each));
        let d = ((moments[at] - origin) + moments[at + s.channels]) - mean;
        squares += moments[at + 2u * s.channels] + rows * d * d;
    }
    let rstd = 1.0 / sqrt(reduce_sum(squares, place) / terms + s.eps);
    if place.lane == 0u {
        stats[2u * number] = origin + mean;
        stats[2u * number + 1u] = rstd;
    }
    for (var i = place.lane; i < width; i += REDUCE_LANES) {
        let c = first + i;
        var factor = rstd * f32(gamma[c]);
        var offset = f32(beta[c]);
        if MODULATE {
            let more = 1.0 + f32(scale[sample * s.channels + c]);
            factor *= more;
            offset = offset * more + f32(shift[sample * s.channels + c]);
        }
        let to = 4u * sample * s.channels + c;
        coefficients[to] = origin;
        coefficients[to + s.channels] = mean;
        coefficients[to + 2u * s.channels] = factor;
        coefficients[to + 3u * s.channels] = offset;
    }
}
