// y = (a + b) * scale, a - b or a * b, element by element. After: lib/flat.

struct Scalars {
    n: u32,
    first: u32,
    a_at: u32,
    b_at: u32,
    y_at: u32,
}

// 0 add, 1 subtract, 2 multiply
override OPERATION: u32;
// Of a sum; 1 otherwise
override SCALE: f32;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> a: array<real>;
@group(0) @binding(2) var<storage, read_write> b: array<real>;
@group(0) @binding(3) var<storage, read_write> y: array<real>;

fn combine(p: f32, q: f32) -> f32 {
    if OPERATION == 0u {
        return (p + q) * SCALE;
    }
    if OPERATION == 1u {
        return p - q;
    }
    return p * q;
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
            y[s.y_at + i] = real(combine(f32(a[s.a_at + i]), f32(b[s.b_at + i])));
        }
    }
}
