// y = combined · (phi · std(cond) / std(combined) + 1 - phi), std over each sample
// `spreads` makes mean and sum of squared deviations of every stretch of each sample of both, `guidance_rescale` joins a sample's and
// scales. Floor: cond once, combined twice (the second time from L2), y once.
#include "lib/samples.cuh"

// Mean and Σ (x - mean)² of both.
struct Spreads {
    float cond, cond_squares, combined, combined_squares;
};

FLAT_KERNEL guidance_rescale_spreads_f32(
    const f32* cond, const f32* combined, Spreads* parts, u32 n, u32 each, u32 stretches) {
    Stretch s(n, each, stretches);
    Team<8> team;
    const f32 *a = cond + s.start, *b = combined + s.start;
    // Less the first, all deviations of a constant are exactly zero.
    float first_a = *a, first_b = *b, sum_a = 0.0f, sum_b = 0.0f;
    for (u32 i = team.lane; i < s.count; i += team.LANES) sum_a += a[i] - first_a, sum_b += b[i] - first_b;
    float mean_a = team.sum(sum_a) / s.count, mean_b = team.sum(sum_b) / s.count, square_a = 0.0f, square_b = 0.0f;
    for (u32 i = team.lane; i < s.count; i += team.LANES) {
        float da = a[i] - first_a - mean_a, db = b[i] - first_b - mean_b;
        square_a += da * da;
        square_b += db * db;
    }
    square_a = team.sum(square_a), square_b = team.sum(square_b);
    if (team.lane == 0) parts[blockIdx.x] = {first_a + mean_a, square_a, first_b + mean_b, square_b};
}

FLAT_KERNEL guidance_rescale_f32(
    const f32* combined, const Spreads* parts, f32* y, u32 n, u32 each, u32 stretches, f32 phi) {
    Stretch s(n, each, stretches);
    Team<8> team;
    parts += u64(s.sample) * stretches;
    Spreads first = parts[0];
    float shift_a = 0.0f, shift_b = 0.0f;
    auto count = [&](u32 i) { return float(min(each, n - i * each)); };
    for (u32 i = team.lane; i < stretches; i += team.LANES) {
        shift_a += count(i) * (parts[i].cond - first.cond);
        shift_b += count(i) * (parts[i].combined - first.combined);
    }
    float mean_a = team.sum(shift_a) / n, mean_b = team.sum(shift_b) / n, square_a = 0.0f, square_b = 0.0f;
    for (u32 i = team.lane; i < stretches; i += team.LANES) {
        float da = parts[i].cond - first.cond - mean_a, db = parts[i].combined - first.combined - mean_b;
        square_a += parts[i].cond_squares + count(i) * da * da;
        square_b += parts[i].combined_squares + count(i) * db * db;
    }
    square_a = team.sum(square_a), square_b = team.sum(square_b);
    float factor = phi * (square_b > 0.0f ? sqrtf(square_a / square_b) : 1.0f) + 1.0f - phi;
    for (u32 i = team.lane; i < s.count; i += team.LANES) y[s.start + i] = combined[s.start + i] * factor;
}
