// y = √(Σ x²): `grad_norm_squares` makes the sum of every stretch, a block each, `grad_norm` adds them in f64, in one block.
// Floor: x once.
#include "lib/lines.cuh"

FLAT_KERNEL grad_norm_squares_f32(const f32* x, f32* parts, u32 n, u32 each) {
    Team<8> team;
    u64 start = u64(blockIdx.x) * each;
    float sum = 0.0f;
    team.each(x + start, min(each, n - u32(start)), [&](u32, float v) { sum += v * v; });
    sum = team.sum(sum);
    if (team.lane == 0) parts[blockIdx.x] = sum;
}

FLAT_KERNEL grad_norm_f32(const f32* parts, f32* y, u32 count) {
    Team<8> team;
    double sum = 0.0;
    for (u32 i = team.lane; i < count; i += team.LANES) sum += parts[i];
    sum = team.join(sum, [](double a, double b) { return a + b; });
    if (team.lane == 0) *y = float(sqrt(sum));
}
