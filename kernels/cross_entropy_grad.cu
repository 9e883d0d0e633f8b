// logits [rows, n], labels [rows], dy [rows] -> dy (softmax(logits) - onehot(label)).
// Floor: logits read once from memory, the result written once; the passes after the first find a row in the L1.
#include "lib/lines.cuh"

#define ENTRY(WARPS)                                                                                                   \
    FLAT_KERNEL cross_entropy_grad_##WARPS(const f32* logits, const i32* labels, const f32* dy, f32* dx, u32 rows,     \
                                           u32 n) {                                                                    \
        Team<WARPS> team;                                                                                              \
        const f32* x = logits + u64(team.row) * n;                                                                     \
        u32 count = team.row < rows ? n : 0;                                                                           \
        float most = __uint_as_float(0xff800000), sum = 0.0f;                                                          \
        team.each(x, count, [&](u32, float v) { most = fmaxf(most, v); });                                             \
        most = team.largest(most);                                                                                     \
        team.each(x, count, [&](u32, float v) { sum += expf(v - most); });                                             \
        sum = team.sum(sum);                                                                                           \
        if (team.row >= rows) return;                                                                                  \
        u32 label = u32(labels[team.row]);                                                                             \
        float own = dy[team.row];                                                                                      \
        f32* out = dx + u64(team.row) * n;                                                                             \
        for (u32 i = team.lane; i < n; i += team.LANES)                                                                \
            out[i] = own * (expf(x[i] - most) / sum - (i == label ? 1.0f : 0.0f));                                     \
    }
FOR_TEAMS(ENTRY)
