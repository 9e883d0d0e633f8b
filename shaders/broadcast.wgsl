// x [outer, inner] -> y [outer, middle, inner] = scale x. After: lib/flat.

struct Scalars {
    n: u32,
    first: u32,
    inner: u32,
    // middle * inner
    block: u32,
    scale: f32,
    x_at: u32,
    y_at: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<real>;
@group(0) @binding(2) var<storage, read_write> y: array<real>;

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
            let at = s.first + i;
            y[s.y_at + i] = real(s.scale * f32(x[s.x_at + (at / s.block) * s.inner + at % s.inner]));
        }
    }
}
