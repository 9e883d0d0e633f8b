// The gradient of the logits   logits [T, E], experts [T, chosen], dweights [T, chosen] -> dlogits [T, E]. An invocation a
// token.

struct Scalars {
    tokens: u32,
    experts: u32,
    chosen: u32,
}

override NORMALIZE: bool;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> experts: array<u32>;
@group(0) @binding(3) var<storage, read_write> dweights: array<f32>;
@group(0) @binding(4) var<storage, read_write> dlogits: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let token = (wg.x + wg.y * wgs.x) * 64u + lane;
    if token >= s.tokens {
        return;
    }
    let row = token * s.experts;
    let first = token * s.chosen;
    var largest = logits[row];
    for (var e = 1u; e < s.experts; e++) {
        largest = max(largest, logits[row + e]);
    }
    var sum = 0.0;
    for (var e = 0u; e < s.experts; e++) {
        sum += exp(logits[row + e] - largest);
    }
    // Sums over the chosen: of the scores, and of the scores times the gradients of the weights.
    var total = 0.0;
    var dot = 0.0;
    for (var j = first; j < first + s.chosen; j++) {
        if experts[j] < s.experts {
            let score = exp(logits[row + experts[j]] - largest) / sum;
            total += score;
            dot += score * dweights[j];
        }
    }
    // A weight is its score over `divisor`; `lost` is what every weight loses where another one's score grows.
    var divisor = 1.0;
    var lost = 0.0;
    if NORMALIZE {
        divisor = total + 1e-20;
        lost = dot / divisor;
        dot = (dot - lost * total) / divisor;
    }
    for (var e = 0u; e < s.experts; e++) {
        dlogits[row + e] = -exp(logits[row + e] - largest) / sum * dot;
    }
    for (var j = first; j < first + s.chosen; j++) {
        if experts[j] < s.experts {
            let at = row + experts[j];
            dlogits[at] += exp(logits[at] - largest) / sum * (dweights[j] - lost) / divisor;
        }
    }
}
