// The gradient of a loss for its prediction, d = prediction - goal: kind 0 w·dy·2·d/n, 1 w·dy·d/|d|, 2 w·dy·d/√(|d|² + c²), zero where a sample
// has no difference. Floor: prediction and goal once, dx once.
#include "lib/samples.cuh"

FLAT_KERNEL loss_grad_f32(
    const f32* prediction, const f32* goal, const f32* weight, const f32* dy, f32* dx, const f32* squares, u32 n, u32 each, u32 stretches,
    u32 kind, f32 c) {
    Stretch s(n, each, stretches);
    Team<8> team;
    float slope = 2.0f / n;
    if (kind != 0) {
        float sum = 0.0f;
        for (u32 i = team.lane; i < stretches; i += team.LANES) sum += squares[u64(s.sample) * stretches + i];
        float length = sqrtf(team.sum(sum) + c * c);
        // At no difference the norm has a corner: its gradient is taken as zero.
        slope = length == 0.0f ? 0.0f : 1.0f / fmaxf(length, 1.1754944e-38f);
    }
    float scale = weight[s.sample] * dy[s.sample] * slope;
    const f32 *p = prediction + s.start, *t = goal + s.start;
    f32* out = dx + s.start;
    bool wide = s.count % 4 == 0 && is_aligned(p) && is_aligned(t) && is_aligned(out);
    u32 step = wide ? 4 : 1;
#pragma unroll 2
    for (u32 i = step * team.lane; i < s.count; i += step * team.LANES) {
        Wide<f32> a = load_wide(p + i, wide), b = load_wide(t + i, wide);
#pragma unroll
        for (int k = 0; k < 4; k++) a.at[k] = (a.at[k] - b.at[k]) * scale;
        store_wide(out + i, a, wide);
    }
}
