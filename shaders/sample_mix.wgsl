// y = a x, or a x + b z; a and b by sample. After: lib/flat.

struct Scalars {
    n: u32,
    first: u32,
    per_sample: u32,
    a_at: u32,
    x_at: u32,
    b_at: u32,
    z_at: u32,
    y_at: u32,
}

override TWO: bool;

@group(0) @binding(0) var<uniform> s: Scalars;
// [B]
@group(0) @binding(1) var<storage, read_write> a: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;
// [B]
@group(0) @binding(3) var<storage, read_write> b: array<f32>;
@group(0) @binding(4) var<storage, read_write> z: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

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
            let sample = (s.first + i) / s.per_sample;
            var v = a[s.a_at + sample] * x[s.x_at + i];
            if TWO {
                v += b[s.b_at + sample] * z[s.z_at + i];
            }
            y[s.y_at + i] = v;
        }
    }
}
