// `diffusion_update` by four elements, where n is a multiple of 4 and all but the coefficients begin where arguments begin.

struct Scalars {
    n: u32,
    first: u32,
    terms: u32,
    clip: f32,
    c_at: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> c: array<f32>;
// Those behind the last term are there to be bound only.
@group(0) @binding(2) var<storage, read_write> x0: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> x1: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> x2: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> x3: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> x4: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> x5: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read_write> y: array<vec4<f32>>;

fn coefficient(k: u32) -> f32 {
    return select(0.0, c[s.c_at + min(k, s.terms - 1u)], k < s.terms);
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.x + group.y * groups.x) * 256u + lane;
    if 4u * i >= s.n {
        return;
    }
    let c0 = coefficient(0u);
    let c1 = coefficient(1u);
    let c2 = coefficient(2u);
    let c3 = coefficient(3u);
    let c4 = coefficient(4u);
    let c5 = coefficient(5u);
    // No number waits for a coefficient: all terms are read at a time, and what is not a term at one place for all. A number whose
    // coefficient is 0 is not used, whatever it is.
    let none = vec4<f32>();
    let v0 = x0[i];
    let v1 = x1[select(0u, i, s.terms > 1u)];
    let v2 = x2[select(0u, i, s.terms > 2u)];
    let v3 = x3[select(0u, i, s.terms > 3u)];
    let v4 = x4[select(0u, i, s.terms > 4u)];
    let v5 = x5[select(0u, i, s.terms > 5u)];
    var v = select(none, c0 * v0, c0 != 0.0);
    v += select(none, c1 * v1, c1 != 0.0);
    v += select(none, c2 * v2, c2 != 0.0);
    v += select(none, c3 * v3, c3 != 0.0);
    v += select(none, c4 * v4, c4 != 0.0);
    v += select(none, c5 * v5, c5 != 0.0);
    // NaN passes, which `clamp` would hide.
    v = select(v, vec4<f32>(s.clip), v > vec4<f32>(s.clip));
    y[i] = select(v, vec4<f32>(-s.clip), v < vec4<f32>(-s.clip));
}
