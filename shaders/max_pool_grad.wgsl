// dx = the sum of dy over the windows whose largest pixel it is. After: lib/flat, lib/pool.

// Where the largest pixel of each window lies.
@group(0) @binding(1) var<storage, read_write> peaks: array<u32>;
@group(0) @binding(2) var<storage, read_write> dy: array<f32>;
@group(0) @binding(3) var<storage, read_write> dx: array<f32>;

fn gradient(i: u32) -> f32 {
    let p = place(i, image_size());
    let over = windows(p.at);
    var sum = 0.0;
    for (var row = over.start.x; row < over.end.x; row++) {
        for (var col = over.start.y; col < over.end.y; col++) {
            let window = number(p, vec2<u32>(row, col), window_count());
            if peaks[window] == i {
                sum += dy[window];
            }
        }
    }
    return sum;
}

@compute @workgroup_size(FLAT_LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = flat_start(group, groups, lane);
    for (var k = 0u; k < FLAT_EACH; k++) {
        let i = start + k * FLAT_LANES;
        if i < s.n {
            dx[i] = gradient(i);
        }
    }
}
