// y[p] = x[order[p] / chosen], with WEIGHTED times weights[order[p]]   x [T, width], order [T chosen], weights [T, chosen] ->
// y [T chosen, width]; NaN where a number is out of range. After: lib/flat.

struct Scalars {
    n: u32,
    first: u32,
    tokens: u32,
    chosen: u32,
    width: u32,
    x_at: u32,
    order_at: u32,
    weights_at: u32,
    y_at: u32,
}

override WEIGHTED: bool;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
// Negative ones are larger than any.
@group(0) @binding(2) var<storage, read_write> order: array<u32>;
@group(0) @binding(3) var<storage, read_write> weights: array<f32>;
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
        if i < s.n {
            let pair = order[s.order_at + (s.first + i) / s.width];
            var bits = 0x7fc00000u;
            var v = bitcast<f32>(bits);
            if pair < s.tokens * s.chosen {
                v = x[s.x_at + pair / s.chosen * s.width + (s.first + i) % s.width];
                if WEIGHTED {
                    v *= weights[s.weights_at + pair];
                }
            }
            y[s.y_at + i] = v;
        }
    }
}
