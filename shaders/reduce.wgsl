// Sums over the middle of x [outer, middle, inner], a stretch of it a workgroup -> y [outer, stretches, inner].
// After: lib/lanes, lib/stretch.

@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

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
    let start = mine.sample * s.rows * s.cols + mine.col;
    var sum = 0.0;
    for (var row = mine.row; row < mine.end; row += DOWN) {
        sum += x[start + row * s.cols];
    }
    let total = sum_down(vec2<f32>(sum, 0.0), lane).x;
    if mine.stores {
        y[mine.number * s.cols + mine.col] = total * s.scale;
    }
}
