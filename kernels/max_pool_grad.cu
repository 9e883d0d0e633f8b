// dx = the sum of dy over the windows whose largest pixel it is; of equal pixels the first counts.
// Floor: x and dy read once, dx written once. Two launches: where the largest pixel of each window lies, which costs 8 bytes a window more;
// then each pixel asks the windows over it, so that sums have one order.
#include "lib/pool.cuh"

FLAT_KERNEL max_pool_grad_peaks_f32(const f32* x, u32* peaks, u32 n, u32 is_wide, POOL) {
    Pool p = AS_POOL;
    bool wide = is_wide && is_aligned(x) && is_aligned(peaks);
    by_pack<f32>(n, wide, [=](u32 i) {
        Spot at = spot(i, p);
        Under under = pixels(at, p);
        Floats<f32> most(__uint_as_float(0xff800000));
        u32 first = number(at, under.rows.start, under.cols.start, p);
        Wide<u32> peak;
#pragma unroll
        for (int k = 0; k < 4; k++) peak.at[k] = first + k;
        for (u32 row = under.rows.start; row < under.rows.end; row++) {
            u32 from = number(at, row, under.cols.start, p);
#pragma unroll 1
            for (u32 col = under.cols.start; col < under.cols.end; col++, from += p.channels.size) {
                Wide<f32> v = load_wide(x + from, wide);
#pragma unroll
                for (int k = 0; k < 4; k++)
                    if (exceeds(v.at[k], most.at[k])) {
                        most.at[k] = v.at[k];
                        peak.at[k] = from + k;
                    }
            }
        }
        store_wide(peaks + i, peak, wide);
    });
}

FLAT_KERNEL max_pool_grad_f32(const u32* peaks, const f32* dy, f32* dx, u32 n, u32 is_wide, POOL) {
    Pool p = AS_POOL;
    bool wide = is_wide && is_aligned(peaks) && is_aligned(dy) && is_aligned(dx);
    by_pack<f32>(n, wide, [=](u32 i) {
        Spot at = spot(i, p);
        Under over = windows(at, p);
        Floats<f32> sum(0.0f);
        for (u32 row = over.rows.start; row < over.rows.end; row++)
#pragma unroll 1
            for (u32 col = over.cols.start; col < over.cols.end; col++) {
                u32 window = number(at, row, col, p);
                Wide<u32> peak = load_wide(peaks + window, wide);
                Wide<f32> v = load_wide(dy + window, wide);
#pragma unroll
                for (int k = 0; k < 4; k++) sum.at[k] += peak.at[k] == i + k ? v.at[k] : 0.0f;
            }
        store_wide(dx + i, sum.times(1.0f), wide);
    });
}
