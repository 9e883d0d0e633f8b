// dw[t, j] = a[t] · b[places[t, j]]: rows of n. A number out of range gives NaN.
// Floor: b read once; a token's row of a comes from the L1 for all but the first of its pairs. A warp a pair.
#include "lib/lines.cuh"

FLAT_KERNEL combine_weights_grad_f32(const f32* a, const f32* b, const i32* places, f32* dw, u32 pairs, u32 n, u32 chosen) {
    Team<1> team;
    u32 place = team.row < pairs ? u32(places[team.row]) : pairs;
    const f32* token = a + u64(team.row / chosen) * n;
    const f32* row = b + u64(place) * n;
    float sum = 0.0f;
    if (place < pairs && n % 4 == 0 && is_aligned(a) && is_aligned(b)) {
#pragma unroll 2
        for (u32 i = 4 * team.lane; i < n; i += 4 * team.LANES) {
            Wide<f32> u = *(const Wide<f32>*)(token + i), v = *(const Wide<f32>*)(row + i);
#pragma unroll
            for (int k = 0; k < 4; k++) sum += u.at[k] * v.at[k];
        }
    } else if (place < pairs) {
        for (u32 i = team.lane; i < n; i += team.LANES) sum += token[i] * row[i];
    }
    sum = team.sum(sum);
    if (team.row < pairs && team.lane == 0) dw[team.row] = place < pairs ? sum : __uint_as_float(0x7fc00000);
}
