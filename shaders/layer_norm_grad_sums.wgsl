// Sums over rows of x [samples, rows, C], a stretch of them a workgroup: of dy and of dy * n -> [samples, stretches, 2, C].
// After: lib/lanes, lib/stretch.

@group(0) @binding(1) var<storage, read_write> x: array<f32>;
// [samples, rows, 2]: mean, rstd
@group(0) @binding(2) var<storage, read_write> stats: array<f32>;
@group(0) @binding(3) var<storage, read_write> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> sums: array<f32>;

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
    var sum = vec2<f32>();
    for (var row = mine.row; row < mine.end; row += DOWN) {
        let line = mine.sample * s.rows + row;
        let at = line * s.cols + mine.col;
        let n = (x[at] - stats[2u * line]) * stats[2u * line + 1u];
        sum += dy[at] * vec2<f32>(1.0, n);
    }
    let total = sum_down(sum, lane);
    if mine.stores {
        let at = 2u * mine.number * s.cols + mine.col;
        sums[at] = total.x;
        sums[at + s.cols] = total.y;
    }
}
