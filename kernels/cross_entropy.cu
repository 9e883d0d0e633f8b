// logits [rows, n], labels [rows] -> -ln softmax(logits)[label]; NaN for a label out of range.
// Floor: logits read once from memory; the second pass over a row, which sums, finds it in the L1.
#include "lib/lines.cuh"

#define ENTRY(WARPS)                                                                                                   \
    FLAT_KERNEL cross_entropy_##WARPS(const f32* logits, const i32* labels, f32* y, u32 rows, u32 n) {                 \
        Team<WARPS> team;                                                                                              \
        const f32* x = logits + u64(team.row) * n;                                                                     \
        u32 count = team.row < rows ? n : 0;                                                                           \
        float most = __uint_as_float(0xff800000), sum = 0.0f;                                                          \
        team.each(x, count, [&](u32, float v) { most = fmaxf(most, v); });                                             \
        most = team.largest(most);                                                                                     \
        team.each(x, count, [&](u32, float v) { sum += expf(v - most); });                                             \
        sum = team.sum(sum);                                                                                           \
        if (team.row < rows && team.lane == 0) {                                                                       \
            u32 label = u32(labels[team.row]);                                                                         \
            float own = label < n ? x[label] : __uint_as_float(0x7fc00000);                                            \
            y[team.row] = logf(sum) + (most - own);                                                                    \
        }                                                                                                              \
    }
FOR_TEAMS(ENTRY)
