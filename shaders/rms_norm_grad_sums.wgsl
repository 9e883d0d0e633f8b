// dgamma = sums over rows of dy * x * rstd, x [rows, C], a stretch of rows a workgroup -> [stretches, C].
// After: lib/lanes, lib/stretch.

@group(0) @binding(1) var<storage, read_write> x: array<f32>;
// [rows]
@group(0) @binding(2) var<storage, read_write> rstds: array<f32>;
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
    var sum = 0.0;
    for (var row = mine.row; row < mine.end; row += DOWN) {
        let at = row * s.cols + mine.col;
        sum += dy[at] * (x[at] * rstds[row]);
    }
    let total = sum_down(vec2<f32>(sum, 0.0), lane).x;
    if mine.stores {
        sums[mine.number * s.cols + mine.col] = total;
    }
}
