// The gradient of a loss for its prediction, d = prediction - goal: kind 0 w·dy·2·d/n, 1 w·dy·d/|d|, 2 w·dy·d/√(|d|² + c²), zero where a sample
// has no difference. `squares` are those of the stretches, as `loss_squares` leaves them; of kind 0, and where a sample is one stretch, they
// are not read. Floor: prediction and goal once, dx once. dx may be one of the two.
#include "lib/samples.cuh"

template <bool WHOLE>
__device__ __forceinline__ void grad(
    const f32* prediction, const f32* goal, const f32* weight, const f32* dy, f32* dx, const f32* squares, u32 n, u32 stretches, u32 kind,
    float c, const Stretch<WHOLE>& s) {
    Wide<f32> d[PACKS_HELD], t[PACKS_HELD];
    s.load(d, prediction, 0.0f);
    s.load(t, goal, 0.0f);
    float slope = 2.0f / n, scale = weight[s.sample] * dy[s.sample];
    if (stretches > 1 && kind != 0) slope = sum_of_parts(squares, s.sample, stretches);
    subtract(d, t);
    if (stretches == 1 && kind != 0) slope = squares_of_block(d);
    if (kind != 0) {
        float length = sqrtf(slope + c * c);
        // At no difference the norm has a corner: its gradient is taken as zero.
        slope = length == 0.0f ? 0.0f : 1.0f / fmaxf(length, 1.1754944e-38f);
    }
    scale *= slope;
    each_held(d, [&](float& v) { v *= scale; });
    s.store(dx, d);
}

FLAT_KERNEL loss_grad_f32(
    const f32* prediction, const f32* goal, const f32* weight, const f32* dy, f32* dx, const f32* squares, u32 n, u32 each, u32 stretches,
    u32 kind, f32 c) {
    if (n % 4 == 0 && is_aligned(prediction) && is_aligned(goal) && is_aligned(dx))
        grad(prediction, goal, weight, dy, dx, squares, n, stretches, kind, c, Stretch<true>(n, each, stretches));
    else
        grad(prediction, goal, weight, dy, dx, squares, n, stretches, kind, c, Stretch<false>(n, each, stretches));
}
