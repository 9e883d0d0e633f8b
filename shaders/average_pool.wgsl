// y = the mean of the pixels under each window of x. After: lib/flat, lib/pool.

@group(0) @binding(1) var<storage, read_write> x: array<real>;
@group(0) @binding(2) var<storage, read_write> y: array<real>;

fn mean(i: u32) -> f32 {
    let p = place(i, window_count());
    let under = pixels(p.at);
    var sum = 0.0;
    for (var row = under.start.x; row < under.end.x; row++) {
        for (var col = under.start.y; col < under.end.y; col++) {
            sum += f32(x[number(p, vec2<u32>(row, col), image_size())]);
        }
    }
    return sum * pool_weight(under);
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
            y[i] = real(mean(i));
        }
    }
}
