// -ln softmax(x[b])[labels[b]], x [B, C]; a line of lanes a sample. A label outside 0..C gives NaN. After: lib/lanes.

struct Scalars {
    samples: u32,
    classes: u32,
}

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> labels: array<i32>;
@group(0) @binding(3) var<storage, read_write> losses: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let sample = (wg.x + wg.y * wgs.x) * DOWN + lane / ACROSS;
    let across = lane % ACROSS;
    let start = sample * s.classes;
    // Lanes without a sample still meet the others in the sums.
    let n = select(0u, s.classes, sample < s.samples);
    var peak = -3.4028235e38;
    for (var i = across; i < n; i += ACROSS) {
        peak = max(peak, x[start + i]);
    }
    let largest = max_across(peak, lane);
    var sum = 0.0;
    for (var i = across; i < n; i += ACROSS) {
        sum += exp(x[start + i] - largest);
    }
    let total = sum_across(vec2<f32>(sum, 0.0), lane).x;
    if across < min(n, 1u) {
        let label = labels[sample];
        var nan = 0x7fc00000u;
        var loss = bitcast<f32>(nan);
        if label >= 0 && u32(label) < s.classes {
            loss = log(total) + (largest - x[start + u32(label)]);
        }
        losses[sample] = loss;
    }
}
