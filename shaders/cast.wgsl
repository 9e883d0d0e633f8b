// y = x: `narrow` from f32 to `real`, `widen` back. After: lib/flat.

struct Scalars {
    n: u32,
    first: u32,
    x_at: u32,
    y_at: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> wide_x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<real>;

@compute @workgroup_size(FLAT_LANES)
fn narrow(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = flat_start(group, groups, lane);
    for (var k = 0u; k < FLAT_EACH; k++) {
        let i = start + k * FLAT_LANES;
        if i < s.n {
            y[s.y_at + i] = real(wide_x[s.x_at + i]);
        }
    }
}

@group(0) @binding(1) var<storage, read_write> x: array<real>;
@group(0) @binding(2) var<storage, read_write> wide_y: array<f32>;

@compute @workgroup_size(FLAT_LANES)
fn widen(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = flat_start(group, groups, lane);
    for (var k = 0u; k < FLAT_EACH; k++) {
        let i = start + k * FLAT_LANES;
        if i < s.n {
            wide_y[s.y_at + i] = f32(x[s.x_at + i]);
        }
    }
}
