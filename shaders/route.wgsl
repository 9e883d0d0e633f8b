// The experts of each token and their weights   logits [T, E] -> weights [T, chosen], experts [T, chosen]. An invocation a
// token. The scores are softmax(logits); the most extreme comes first, of equal ones the smaller number.

struct Scalars {
    tokens: u32,
    experts: u32,
    chosen: u32,
}

override LOWEST: bool;
override NORMALIZE: bool;

@group(0) @binding(0) var<uniform> s: Scalars;
@group(0) @binding(1) var<storage, read_write> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> weights: array<f32>;
@group(0) @binding(3) var<storage, read_write> experts: array<u32>;

fn taken(first: u32, count: u32, expert: u32) -> bool {
    for (var i = first; i < first + count; i++) {
        if experts[i] == expert {
            return true;
        }
    }
    return false;
}

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
    var total = 0.0;
    for (var j = 0u; j < s.chosen; j++) {
        var best = s.experts;
        for (var e = 0u; e < s.experts; e++) {
            if taken(first, j, e) {
                continue;
            }
            if best == s.experts {
                best = e;
                continue;
            }
            let a = logits[row + e];
            let b = logits[row + best];
            if select(a > b, a < b, LOWEST) {
                best = e;
            }
        }
        experts[first + j] = best;
        let weight = exp(logits[row + best] - largest) / sum;
        weights[first + j] = weight;
        total += weight;
    }
    if NORMALIZE {
        for (var j = 0u; j < s.chosen; j++) {
            weights[first + j] /= total + 1e-20;
        }
    }
}
