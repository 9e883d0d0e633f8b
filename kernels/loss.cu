// The weighted loss of each sample, w its weight, d = prediction - goal: kind 0 w·|d|²/n, 1 w·|d|, 2 w·(√(|d|² + c²) - c)
// `loss_squares` makes |d|² of every stretch of each sample, or where that is the whole sample its loss; else `loss` adds them.
// Floor: prediction and goal once; 64 bytes of each a thread under way.
#include "lib/samples.cuh"

__device__ __forceinline__ float weighted(float square, float weight, u32 n, u32 kind, float c) {
    if (kind == 0) return weight * (square / n);
    if (kind == 1) return weight * sqrtf(square);
    // Without the cancellation, and without dividing by zero.
    return weight * (square / fmaxf(sqrtf(square + c * c) + c, 1.1754944e-38f));
}

template <bool WHOLE>
__device__ __forceinline__ float squares(const f32* prediction, const f32* goal, const Stretch<WHOLE>& s) {
    Wide<f32> p[PACKS_HELD], t[PACKS_HELD];
    s.load(p, prediction, 0.0f);
    s.load(t, goal, 0.0f);
    subtract(p, t);
    return squares_of_block(p);
}

// `weight` is read, and `out` the losses, only where there is one stretch.
FLAT_KERNEL loss_squares_f32(
    const f32* prediction, const f32* goal, const f32* weight, f32* out, u32 n, u32 each, u32 stretches, u32 kind, f32 c) {
    bool whole = n % 4 == 0 && is_aligned(prediction) && is_aligned(goal);
    float square = whole ? squares(prediction, goal, Stretch<true>(n, each, stretches))
                         : squares(prediction, goal, Stretch<false>(n, each, stretches));
    if (threadIdx.x == 0) out[blockIdx.x] = stretches == 1 ? weighted(square, weight[blockIdx.x], n, kind, c) : square;
}

// A block a sample.
FLAT_KERNEL loss_f32(const f32* parts, const f32* weight, f32* losses, u32 n, u32 stretches, u32 kind, f32 c) {
    float square = sum_of_parts(parts, blockIdx.x, stretches);
    if (threadIdx.x == 0) losses[blockIdx.x] = weighted(square, weight[blockIdx.x], n, kind, c);
}
