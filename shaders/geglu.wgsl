// y = a act(b), a and b the halves of x's rows   x [.., 2 width] -> y [.., width]. After: lib/flat, lib/activation.

struct Scalars {
    n: u32,
    first: u32,
    width: u32,
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
            // Element i of y's row r is element i + r * width of x.
            let at = s.first + i;
            let a = s.x_at + at + (at / s.width) * s.width;
            y[s.y_at + i] = real(f32(x[a]) * act(f32(x[a + s.width])));
        }
    }
}
