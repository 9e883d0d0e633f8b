// One optimiser step over a region of parameters, see `ops::Optimizer`: g = scale * grad + l2 * p, the moments m and v of g, then
// p = keep * p - rate * m / (root * sqrt(v) + floor). After: lib/flat.

struct Scalars {
    n: u32,
    first: u32,
    p_at: u32,
    grads_at: u32,
    m_at: u32,
    v_at: u32,
    p_out_at: u32,
    m_out_at: u32,
    v_out_at: u32,
}

struct Coefficients {
    // 0: nothing changes.
    update: f32,
    scale: f32,
    l2: f32,
    keep: f32,
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    rate: f32,
    root: f32,
    floor: f32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> p: array<f32>;
@group(0) @binding(2) var<storage, read_write> grads: array<f32>;
@group(0) @binding(3) var<storage, read_write> m: array<f32>;
@group(0) @binding(4) var<storage, read_write> v: array<f32>;
@group(0) @binding(5) var<storage, read_write> c: Coefficients;
@group(0) @binding(6) var<storage, read_write> p_out: array<f32>;
@group(0) @binding(7) var<storage, read_write> m_out: array<f32>;
@group(0) @binding(8) var<storage, read_write> v_out: array<f32>;

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
        var param = p[s.p_at + i];
        var first = m[s.m_at + i];
        var second = v[s.v_at + i];
        if c.update != 0.0 {
            let g = grads[s.grads_at + i] * c.scale + c.l2 * param;
            first = c.beta1 * first + c.rest1 * g;
            second = c.beta2 * second + c.rest2 * g * g;
            param = c.keep * param - c.rate * first / (sqrt(second) * c.root + c.floor);
        }
        p_out[s.p_out_at + i] = param;
        m_out[s.m_out_at + i] = first;
        v_out[s.v_out_at + i] = second;
    }
}
