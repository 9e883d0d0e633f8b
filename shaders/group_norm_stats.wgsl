// The moments of stretches put together, an invocation a group of a sample (Chan, Golub & LeVeque 1983).

struct Scalars {
    // B * groups
    count: u32,
    groups: u32,
    // Stretches of a sample
    stretches: u32,
    // Numbers of a group in a stretch
    terms: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
// [B, stretches, groups, 3]: origin, mean less origin, sum of squares
@group(0) @binding(1) var<storage, read_write> moments: array<f32>;
// [B, groups, 2]: mean, rstd
@group(0) @binding(2) var<storage, read_write> stats: array<f32>;
// [B, groups, 2]: the mean in two parts. Far from zero one number would be rounded too much.
@group(0) @binding(3) var<storage, read_write> means: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = (wg.x + wg.y * wgs.x) * 64u + lane;
    if number >= s.count {
        return;
    }
    let first = (number / s.groups * s.stretches * s.groups + number % s.groups) * 3u;
    let origin = moments[first];
    let terms = f32(s.terms);
    var mean = moments[first + 1u];
    var squares = moments[first + 2u];
    for (var i = 1u; i < s.stretches; i++) {
        let at = first + i * s.groups * 3u;
        let d = (moments[at] - origin) + (moments[at + 1u] - mean);
        let share = 1.0 / f32(i + 1u);
        mean += d * share;
        squares += moments[at + 2u] + d * d * (terms * f32(i) * share);
    }
    stats[2u * number] = origin + mean;
    stats[2u * number + 1u] = 1.0 / sqrt(squares / (terms * f32(s.stretches)) + s.eps);
    means[2u * number] = origin;
    means[2u * number + 1u] = mean;
}
