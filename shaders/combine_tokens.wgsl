// y[t] = sum over j of x[places[t, j]], with WEIGHTED each times weights[t, j]   x [T chosen, width], places and weights
// [T, chosen] -> y [T, width]; NaN where a number is out of range. After: lib/flat.

struct Scalars {
    n: u32,
    first: u32,
    tokens: u32,
    chosen: u32,
    width: u32,
    x_at: u32,
    places_at: u32,
    weights_at: u32,
    y_at: u32,
}

override WEIGHTED: bool;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
// Negative ones are larger than any.
@group(0) @binding(2) var<storage, read_write> places: array<u32>;
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
            let first = (s.first + i) / s.width * s.chosen;
            let col = (s.first + i) % s.width;
            var sum = 0.0;
            for (var pair = first; pair < first + s.chosen; pair++) {
                let row = places[s.places_at + pair];
                var bits = 0x7fc00000u;
                var v = bitcast<f32>(bits);
                if row < s.tokens * s.chosen {
                    v = x[s.x_at + row * s.width + col];
                    if WEIGHTED {
                        v *= weights[s.weights_at + pair];
                    }
                }
                sum += v;
            }
            y[s.y_at + i] = sum;
        }
    }
}
