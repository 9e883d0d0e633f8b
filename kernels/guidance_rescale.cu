// y = combined · (phi · std(cond) / std(combined) + 1 - phi), std over each sample
// `spreads` makes mean and sum of squared deviations of every stretch of each sample of both, in two passes over registers;
// `guidance_rescale` joins a sample's (Chan et al. 1983) and scales. Floor: cond once, combined twice (the second time from L2), y once.
// y may be combined or cond.
#include "lib/samples.cuh"

// Mean and Σ (x - mean)² of both.
struct alignas(16) Spreads {
    float cond, cond_squares, combined, combined_squares;
};

template <bool WHOLE>
__device__ __forceinline__ Spreads spreads(const f32* cond, const f32* combined, const Stretch<WHOLE>& s) {
    // Less the first, all deviations of a constant are exactly zero, as are those of what is not there.
    float first[2] = {cond[s.start], combined[s.start]}, mean[2] = {}, squares[2] = {};
    Wide<f32> x[2][PACKS_HELD];
    s.load(x[0], cond, first[0]);
    s.load(x[1], combined, first[1]);
#pragma unroll
    for (int of = 0; of < 2; of++)
        each_held(x[of], [&](float& v) { v -= first[of], mean[of] += v; });
    RowTeam team(FLAT_THREADS);
    team.sum(mean);
#pragma unroll
    for (int of = 0; of < 2; of++) {
        mean[of] /= s.count;
#pragma unroll
        for (u32 k = 0; k < PACKS_HELD; k++)
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                float d = s.has(k, j) ? x[of][k].at[j] - mean[of] : 0.0f;
                squares[of] = fmaf(d, d, squares[of]);
            }
    }
    team.sum(squares);
    return {first[0] + mean[0], squares[0], first[1] + mean[1], squares[1]};
}

FLAT_KERNEL guidance_rescale_spreads_f32(
    const f32* cond, const f32* combined, Spreads* parts, u32 n, u32 each, u32 stretches) {
    bool whole = n % 4 == 0 && is_aligned(cond) && is_aligned(combined);
    Spreads both = whole ? spreads(cond, combined, Stretch<true>(n, each, stretches))
                         : spreads(cond, combined, Stretch<false>(n, each, stretches));
    if (threadIdx.x == 0) parts[blockIdx.x] = both;
}

// What a sample is multiplied by, from its parts.
__device__ __forceinline__ float factor(const Spreads* parts, u32 n, u32 each, u32 stretches, float phi) {
    Spreads first = parts[0];
    float mean[2] = {}, squares[2] = {};
    auto count = [&](u32 i) { return float(min(each, n - i * each)); };
    for (u32 i = threadIdx.x; i < stretches; i += FLAT_THREADS) {
        Spreads part = parts[i];
        mean[0] += count(i) * (part.cond - first.cond);
        mean[1] += count(i) * (part.combined - first.combined);
    }
    RowTeam team(FLAT_THREADS);
    team.sum(mean);
    mean[0] /= n, mean[1] /= n;
    for (u32 i = threadIdx.x; i < stretches; i += FLAT_THREADS) {
        Spreads part = parts[i];
        float d[2] = {part.cond - first.cond - mean[0], part.combined - first.combined - mean[1]};
        squares[0] += part.cond_squares + count(i) * d[0] * d[0];
        squares[1] += part.combined_squares + count(i) * d[1] * d[1];
    }
    team.sum(squares);
    return phi * (squares[1] > 0.0f ? sqrtf(squares[0] / squares[1]) : 1.0f) + 1.0f - phi;
}

template <bool WHOLE>
__device__ __forceinline__ void rescale(
    const f32* combined, const Spreads* parts, f32* y, u32 n, u32 each, u32 stretches, float phi, const Stretch<WHOLE>& s) {
    Wide<f32> x[PACKS_HELD];
    s.load(x, combined, 0.0f);
    float by = factor(parts + u64(s.sample) * stretches, n, each, stretches, phi);
    each_held(x, [&](float& v) { v *= by; });
    s.store(y, x);
}

FLAT_KERNEL guidance_rescale_f32(
    const f32* combined, const Spreads* parts, f32* y, u32 n, u32 each, u32 stretches, f32 phi) {
    if (n % 4 == 0 && is_aligned(combined) && is_aligned(y))
        rescale(combined, parts, y, n, each, stretches, phi, Stretch<true>(n, each, stretches));
    else
        rescale(combined, parts, y, n, each, stretches, phi, Stretch<false>(n, each, stretches));
}
