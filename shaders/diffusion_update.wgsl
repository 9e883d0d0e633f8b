// y = clamp(sum of c[k] x_k, -clip, clip), one to six terms. What the coefficient 0 goes with is not read.
// After: lib/flat.

struct Scalars {
    n: u32,
    first: u32,
    terms: u32,
    clip: f32,
    c_at: u32,
    x0_at: u32,
    x1_at: u32,
    x2_at: u32,
    x3_at: u32,
    x4_at: u32,
    x5_at: u32,
    y_at: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> c: array<f32>;
// Those behind the last term are there to be bound only.
@group(0) @binding(2) var<storage, read_write> x0: array<f32>;
@group(0) @binding(3) var<storage, read_write> x1: array<f32>;
@group(0) @binding(4) var<storage, read_write> x2: array<f32>;
@group(0) @binding(5) var<storage, read_write> x3: array<f32>;
@group(0) @binding(6) var<storage, read_write> x4: array<f32>;
@group(0) @binding(7) var<storage, read_write> x5: array<f32>;
@group(0) @binding(8) var<storage, read_write> y: array<f32>;

fn coefficient(k: u32) -> f32 {
    if k < s.terms {
        return c[s.c_at + k];
    }
    return 0.0;
}

@compute @workgroup_size(FLAT_LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = flat_start(group, groups, lane);
    let c0 = coefficient(0u);
    let c1 = coefficient(1u);
    let c2 = coefficient(2u);
    let c3 = coefficient(3u);
    let c4 = coefficient(4u);
    let c5 = coefficient(5u);
    for (var k = 0u; k < FLAT_EACH; k++) {
        let i = start + k * FLAT_LANES;
        if i < s.n {
            var v = 0.0;
            if c0 != 0.0 {
                v += c0 * x0[s.x0_at + i];
            }
            if c1 != 0.0 {
                v += c1 * x1[s.x1_at + i];
            }
            if c2 != 0.0 {
                v += c2 * x2[s.x2_at + i];
            }
            if c3 != 0.0 {
                v += c3 * x3[s.x3_at + i];
            }
            if c4 != 0.0 {
                v += c4 * x4[s.x4_at + i];
            }
            if c5 != 0.0 {
                v += c5 * x5[s.x5_at + i];
            }
            // NaN passes, which `clamp` would hide.
            v = select(v, s.clip, v > s.clip);
            y[s.y_at + i] = select(v, -s.clip, v < -s.clip);
        }
    }
}
