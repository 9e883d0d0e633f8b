// y = the largest pixel under each window; NaN is larger than all.
// Floor: x read once, y written once; what lies under several windows comes from the L1 or L2 for all but the first.
#include "lib/pool.cuh"

FLAT_KERNEL max_pool_f32(const f32* x, f32* y, u32 n, u32 is_wide, POOL) {
    Pool p = AS_POOL;
    bool wide = is_wide && is_aligned(x) && is_aligned(y);
    by_pack<f32>(n, wide, [=](u32 i) {
        Spot at = spot(i, p);
        Under under = pixels(at, p);
        Floats<f32> most(__uint_as_float(0xff800000));
        for (u32 row = under.rows.start; row < under.rows.end; row++) {
            const f32* from = x + number(at, row, under.cols.start, p);
#pragma unroll 2
            for (u32 col = under.cols.start; col < under.cols.end; col++, from += p.channels.size) {
                Wide<f32> v = load_wide(from, wide);
#pragma unroll
                for (int k = 0; k < 4; k++) most.at[k] = exceeds(v.at[k], most.at[k]) ? v.at[k] : most.at[k];
            }
        }
        store_wide(y + i, most.times(1.0f), wide);
    });
}
