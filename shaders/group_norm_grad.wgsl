// The backward of group normalisation over x [B, R, C], a stretch of rows a workgroup. With h = n * factor + offset the
// argument of the activation, factor = gamma * (1 + scale), and e = dy * act'(h): `sum_rows` makes the sums of e and of e * n,
// `main` dx = rstd * (e * factor - mean(e * factor) - n * mean(e * factor * n)), the means over the group as
// group_norm_grad_means leaves them. After: lib/activation, lib/lanes, lib/stretch.

override MODULATE: bool;

@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> gamma: array<f32>;
@group(0) @binding(3) var<storage, read_write> beta: array<f32>;
// [B, C]
@group(0) @binding(4) var<storage, read_write> scale: array<f32>;
@group(0) @binding(5) var<storage, read_write> shift: array<f32>;
@group(0) @binding(6) var<storage, read_write> dy: array<f32>;

// [B, groups, 2]: mean, rstd
@group(0) @binding(7) var<storage, read_write> stats: array<f32>;
// [B, stretches, 2, C]
@group(0) @binding(8) var<storage, read_write> sums: array<f32>;

// [B, groups]: mean, rstd, and what of dx is constant and in proportion to x - mean
@group(0) @binding(7) var<storage, read_write> means: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read_write> dx: array<f32>;

// factor, offset of a column
fn parameters(mine: Stretch) -> vec2<f32> {
    // A column that is not there has no rows either.
    let c = min(mine.col, s.cols - 1u);
    var p = vec2<f32>(gamma[c], beta[c]);
    if MODULATE {
        let at = mine.sample * s.cols + c;
        p = p * (1.0 + scale[at]) + vec2<f32>(0.0, shift[at]);
    }
    return p;
}

// Number of a column's group among those of all samples.
fn group_of(mine: Stretch) -> u32 {
    return mine.sample * s.groups + min(mine.col, s.cols - 1u) / (s.cols / s.groups);
}

@compute @workgroup_size(LANES)
fn sum_rows(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = wg.x + wg.y * wgs.x;
    if !has_stretch(number) {
        return;
    }
    let mine = stretch(number, lane);
    let p = parameters(mine);
    let group = 2u * group_of(mine);
    let mean = stats[group];
    let rstd = stats[group + 1u];
    let start = mine.sample * s.rows * s.cols + mine.col;
    var sum = vec2<f32>();
    for (var row = mine.row; row < mine.end; row += DOWN) {
        let at = start + row * s.cols;
        let n = (x[at] - mean) * rstd;
        let e = dy[at] * act_derivative(n * p.x + p.y);
        sum += vec2<f32>(e, e * n);
    }
    let total = sum_down(sum, lane);
    if mine.stores {
        let at = 2u * mine.number * s.cols + mine.col;
        sums[at] = total.x;
        sums[at + s.cols] = total.y;
    }
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = wg.x + wg.y * wgs.x;
    if !has_stretch(number) {
        return;
    }
    let mine = stretch(number, lane);
    let p = parameters(mine);
    // mean, rstd, constant, slope
    let m = means[group_of(mine)];
    let start = mine.sample * s.rows * s.cols + mine.col;
    for (var row = mine.row; row < mine.end; row += DOWN) {
        let at = start + row * s.cols;
        let d = x[at] - m.x;
        let e = dy[at] * act_derivative(d * m.y * p.x + p.y);
        dx[at] = e * p.x * m.y + m.z + d * m.w;
    }
}
