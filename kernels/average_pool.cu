// y = the mean of the pixels under each window; sums in f32.
// Floor: x read once, y written once; what lies under several windows comes from the L1 or L2 for all but the first.
#include "lib/pool.cuh"

template <class T>
__device__ __forceinline__ void means(const T* x, T* y, u32 n, bool wide, u32 fixed, const Pool& p) {
    wide = wide && is_aligned(x) && is_aligned(y);
    by_pack<T>(n, wide, [=](u32 i) {
        Spot at = spot(i, p);
        Under under = pixels(at, p);
        Floats<T> sum(0.0f);
        for (u32 row = under.rows.start; row < under.rows.end; row++) {
            const T* from = x + number(at, row, under.cols.start, p);
#pragma unroll 2
            for (u32 col = under.cols.start; col < under.cols.end; col++, from += p.channels.size)
                sum.add(1.0f, load_wide(from, wide));
        }
        u32 count = fixed > 0 ? fixed : under.rows.count() * under.cols.count();
        store_wide(y + i, sum.times(1.0f / float(count)), wide);
    });
}

#define ENTRY(T)                                                                             \
    FLAT_KERNEL average_pool_##T(const T* x, T* y, u32 n, u32 wide, POOL, u32 fixed) {       \
        means(x, y, n, wide, fixed, AS_POOL);                                                \
    }
FOR_TYPES(ENTRY)
