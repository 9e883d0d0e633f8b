// The weighted loss of each sample, w its weight, d = prediction - goal: kind 0 w·|d|²/n, 1 w·|d|, 2 w·(√(|d|² + c²) - c)
// `loss_squares` makes |d|² of every stretch of each sample, `loss` adds them. Floor: prediction and goal once.
#include "lib/samples.cuh"

FLAT_KERNEL loss_squares_f32(const f32* prediction, const f32* goal, f32* squares, u32 n, u32 each, u32 stretches) {
    Stretch s(n, each, stretches);
    Team<8> team;
    const f32 *p = prediction + s.start, *t = goal + s.start;
    bool wide = s.count % 4 == 0 && is_aligned(p) && is_aligned(t);
    u32 step = wide ? 4 : 1;
    float sum = 0.0f;
#pragma unroll 4
    for (u32 i = step * team.lane; i < s.count; i += step * team.LANES) {
        Wide<f32> a = load_wide(p + i, wide), b = load_wide(t + i, wide);
#pragma unroll
        for (int k = 0; k < 4; k++) sum += (a.at[k] - b.at[k]) * (a.at[k] - b.at[k]);
    }
    sum = team.sum(sum);
    if (team.lane == 0) squares[blockIdx.x] = sum;
}

// A block a sample.
FLAT_KERNEL loss_f32(const f32* parts, const f32* weight, f32* losses, u32 n, u32 stretches, u32 kind, f32 c) {
    Team<8> team;
    float sum = 0.0f;
    for (u32 i = team.lane; i < stretches; i += team.LANES) sum += parts[u64(blockIdx.x) * stretches + i];
    float square = team.sum(sum);
    if (team.lane > 0) return;
    // The last without the cancellation, and without dividing by zero.
    float loss = kind == 0   ? square / n
                 : kind == 1 ? sqrtf(square)
                             : square / fmaxf(sqrtf(square + c * c) + c, 1.1754944e-38f);
    losses[blockIdx.x] = weight[blockIdx.x] * loss;
}
