// y [n] = the sum of x [parts, n] over the parts, in their order; with ADD that and what y was. After: lib/flat.

struct Scalars {
    n: u32,
    parts: u32,
}

override ADD: bool;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

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
            var sum = x[i];
            for (var part = 1u; part < s.parts; part++) {
                sum += x[part * s.n + i];
            }
            if ADD {
                sum += y[i];
            }
            y[i] = sum;
        }
    }
}
