// From the sums over rows of e and of e * n, sums [B, 2, C], those over each group times the channel's factor, as dx needs them:
// means [B, groups] of mean, rstd, -rstd * mean(e * factor), -rstd^2 * mean(e * factor * n); a line of lanes a group.
// After: lib/lanes.

struct Scalars {
    // Of all samples.
    count: u32,
    // Channels of a group, and groups of a sample.
    width: u32,
    groups: u32,
    rows: u32,
}

override MODULATE: bool;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> sums: array<f32>;
@group(0) @binding(2) var<storage, read_write> gamma: array<f32>;
// [B, C]
@group(0) @binding(3) var<storage, read_write> scale: array<f32>;
// [B, groups, 2]: mean, rstd
@group(0) @binding(4) var<storage, read_write> stats: array<f32>;
@group(0) @binding(5) var<storage, read_write> means: array<vec4<f32>>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = (wg.x + wg.y * wgs.x) * DOWN + lane / ACROSS;
    let across = lane % ACROSS;
    // Lanes without a group still meet the others in the sums.
    let n = select(0u, s.width, group < s.count);
    let sample = group / s.groups;
    let channels = s.groups * s.width;
    let first = group % s.groups * s.width;
    var sum = vec2<f32>();
    for (var i = across; i < n; i += ACROSS) {
        let c = first + i;
        var factor = gamma[c];
        if MODULATE {
            factor *= 1.0 + scale[sample * channels + c];
        }
        let at = 2u * sample * channels + c;
        sum += factor * vec2<f32>(sums[at], sums[at + channels]);
    }
    let mean = sum_across(sum, lane) / f32(s.rows * s.width);
    if across < min(n, 1u) {
        let rstd = stats[2u * group + 1u];
        means[group] = vec4<f32>(stats[2u * group], rstd, -rstd * mean.x, -rstd * rstd * mean.y);
    }
}
