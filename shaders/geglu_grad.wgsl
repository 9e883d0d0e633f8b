// dx of y = a act(b): dy act(b) and dy a act'(b)   x, dx [.., 2 width], dy [.., width]. After: lib/flat, lib/activation.

struct Scalars {
    n: u32,
    first: u32,
    width: u32,
    x_at: u32,
    dy_at: u32,
    dx_at: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> dy: array<f32>;
@group(0) @binding(3) var<storage, read_write> dx: array<f32>;

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
            let at = i + (i / s.width) * s.width;
            let d = dy[s.dy_at + i];
            let a = x[s.x_at + at];
            let b = x[s.x_at + at + s.width];
            dx[s.dx_at + at] = d * act(b);
            dx[s.dx_at + at + s.width] = d * a * act_derivative(b);
        }
    }
}
