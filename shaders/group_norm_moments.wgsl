// Of every stretch of `rows` rows of x [B, R, C], and every group of channels: one of its numbers, the mean less that number, and the
// sum of squared differences from the mean. After: lib/reduce or lib/reduce_subgroups.

struct Scalars {
    n: u32,
    first: u32,
    rows: u32,
    channels: u32,
    groups: u32,
    x_at: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<real>;
// [stretches, groups, 3], of all stretches, even where x is seen in pieces.
@group(0) @binding(2) var<storage, read_write> moments: array<f32>;

@compute @workgroup_size(REDUCE_LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    place: Place,
) {
    let lane = place.lane;
    let stretch = s.rows * s.channels;
    let start = (wg.x + wg.y * wgs.x) * stretch;
    if start >= s.n {
        return;
    }
    let width = s.channels / s.groups;
    let n = s.rows * width;
    for (var group = 0u; group < s.groups; group++) {
        let corner = s.x_at + start + group * width;
        let origin = f32(x[corner]);
        var sum = 0.0;
        for (var i = lane; i < n; i += REDUCE_LANES) {
            sum += f32(x[corner + (i / width) * s.channels + i % width]) - origin;
        }
        let mean = reduce_sum(sum, place) / f32(n);
        var square = 0.0;
        for (var i = lane; i < n; i += REDUCE_LANES) {
            let d = (f32(x[corner + (i / width) * s.channels + i % width]) - origin) - mean;
            square += d * d;
        }
        let squares = reduce_sum(square, place);
        if lane == 0u {
            let at = ((s.first + start) / stretch * s.groups + group) * 3u;
            moments[at] = origin;
            moments[at + 1u] = mean;
            moments[at + 2u] = squares;
        }
    }
}
