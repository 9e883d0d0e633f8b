// logits [tokens, count] -> weights and experts [tokens, chosen]: softmax, then the most extreme ones in order, of equal ones the first.
// Floor: logits read once, the rest written once. A token has as many lanes as it has experts, 32 at most, each with every 32nd expert; what
// it has chosen already is a bit of its lane. Logits after the first pass come from the L1.
#include "lib/route.cuh"

// The next choice: a lane's, or a token's.
struct Choice {
    float value;
    u32 at;
};

FLAT_KERNEL route_f32(const f32* logits, f32* weights, i32* experts, u32 tokens, u32 count, u32 chosen, u32 lanes, u32 lowest,
                      u32 normalize) {
    Token token(logits, tokens, count, lanes);
    Softmax softmax = token.softmax();
    float sign = lowest ? -1.0f : 1.0f, total = 0.0f;
    u32 taken = 0, end = token.real ? chosen : 0;
    for (u32 j = 0; j < chosen; j++) {
        // NaN is neither higher nor lower than anything: it is chosen where it stands before all that is left.
        Choice best = {__uint_as_float(0xff800000), ~0u};
        u32 first = ~0u;
        for (u32 k = 0, e = token.lane; e < count; k++, e += lanes) {
            if (taken >> k & 1) continue;
            float v = sign * token.x[e];
            if (first == ~0u) first = e;
            if (v > best.value || (v == best.value && best.at == ~0u)) best = {v, e};
        }
        for (u32 distance = lanes / 2; distance > 0; distance /= 2) {
            Choice other = {__shfl_xor_sync(~0u, best.value, distance), __shfl_xor_sync(~0u, best.at, distance)};
            if (other.value > best.value || (other.value == best.value && other.at < best.at)) best = other;
            u32 before = __shfl_xor_sync(~0u, first, distance);
            first = before < first ? before : first;
        }
        float leader = token.x[first];
        u32 expert = leader != leader || best.at == ~0u ? first : best.at;
        if (expert % lanes == token.lane) taken |= 1u << expert / lanes;
        float score = softmax.score(token.x[expert]);
        total += score;
        if (j < end && token.lane == j % lanes) {
            experts[u64(token.number) * chosen + j] = i32(expert);
            if (!normalize) weights[u64(token.number) * chosen + j] = score;
        }
    }
    if (!normalize) return;
    // The lane that wrote an expert reads it back.
    for (u32 j = token.lane; j < end; j += lanes) {
        u64 at = u64(token.number) * chosen + j;
        weights[at] = softmax.score(token.x[experts[at]]) / (total + TINY);
    }
}
