// A moving average of parameters after a step: average + follow * (p - average). After: lib/flat.

struct Scalars {
    n: u32,
    first: u32,
    // Which average.
    number: u32,
    p_at: u32,
    average_at: u32,
    y_at: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> p: array<f32>;
@group(0) @binding(2) var<storage, read_write> average: array<f32>;
// As optimizer_coefficients.wgsl leaves them
@group(0) @binding(3) var<storage, read_write> coefficients: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(FLAT_LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = flat_start(group, groups, lane);
    for (var k = 0u; k < FLAT_EACH; k++) {
        let i = start + k * FLAT_LANES;
        if i >= s.n {
            return;
        }
        var a = average[s.average_at + i];
        if coefficients[0] != 0.0 {
            a += coefficients[11u + s.number] * (p[s.p_at + i] - a);
        }
        y[s.y_at + i] = a;
    }
}
