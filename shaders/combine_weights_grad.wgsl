// dw[t, j] = a[t] b[places[t, j]], a dot product   a [T, width], b [T chosen, width], places [T, chosen] -> dw [T, chosen]; NaN
// where a number is out of range. A line of lanes a pair. After: lib/lanes.

struct Scalars {
    pairs: u32,
    chosen: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> a: array<f32>;
@group(0) @binding(2) var<storage, read_write> b: array<f32>;
// Negative ones are larger than any.
@group(0) @binding(3) var<storage, read_write> places: array<u32>;
@group(0) @binding(4) var<storage, read_write> dw: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pair = (wg.x + wg.y * wgs.x) * DOWN + lane / ACROSS;
    let across = lane % ACROSS;
    var row = s.pairs;
    if pair < s.pairs {
        row = places[pair];
    }
    // Lanes without a pair still meet the others in the sum.
    var sum = 0.0;
    if row < s.pairs {
        for (var i = across; i < s.width; i += ACROSS) {
            sum += a[pair / s.chosen * s.width + i] * b[row * s.width + i];
        }
    }
    let total = sum_across(vec2<f32>(sum, 0.0), lane).x;
    if pair < s.pairs && across == 0u {
        var bits = 0x7fc00000u;
        dw[pair] = select(bitcast<f32>(bits), total, row < s.pairs);
    }
}
