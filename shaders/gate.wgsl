// y = residual + gate x   x, residual, y [B, R, C], gate [B, C]. After: lib/flat.

struct Scalars {
    n: u32,
    first: u32,
    channels: u32,
    // R * C
    per_sample: u32,
    x_at: u32,
    gate_at: u32,
    residual_at: u32,
    y_at: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<real>;
@group(0) @binding(2) var<storage, read_write> gate: array<real>;
@group(0) @binding(3) var<storage, read_write> residual: array<real>;
@group(0) @binding(4) var<storage, read_write> y: array<real>;

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
            let g = f32(gate[s.gate_at + (at / s.per_sample) * s.channels + at % s.channels]);
            y[s.y_at + i] = real(f32(residual[s.residual_at + i]) + g * f32(x[s.x_at + i]));
        }
    }
}
