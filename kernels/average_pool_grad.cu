// dx = the sum of dy over the windows that hold a pixel, each divided as its mean was; sums in f32.
// Floor: dy read once, dx written once.
#include "lib/pool.cuh"

// 1 / what a window is divided by; pixels are those of dx.
__device__ __forceinline__ float weight(u32 row, u32 col, u32 fixed, const Pool& p) {
    Span rows = pixels(row, p.kernel.row, p.near.row, p.stride.size, p.height.size);
    Span cols = pixels(col, p.kernel.col, p.near.col, p.stride.size, p.width.size);
    return 1.0f / float(fixed > 0 ? fixed : rows.count() * cols.count());
}

template <class T>
__device__ __forceinline__ void sums(const T* dy, T* dx, u32 n, bool wide, u32 fixed, const Pool& p) {
    wide = wide && is_aligned(dy) && is_aligned(dx);
    by_pack<T>(n, wide, [=](u32 i) {
        Spot at = spot(i, p);
        Under over = windows(at, p);
        Floats<T> sum(0.0f);
        for (u32 row = over.rows.start; row < over.rows.end; row++)
#pragma unroll 1
            for (u32 col = over.cols.start; col < over.cols.end; col++)
                sum.add(weight(row, col, fixed, p), load_wide(dy + number(at, row, col, p), wide));
        store_wide(dx + i, sum.times(1.0f), wide);
    });
}

#define ENTRY(T)                                                                             \
    FLAT_KERNEL average_pool_grad_##T(const T* dy, T* dx, u32 n, u32 wide, POOL, u32 fixed) { \
        sums(dy, dx, n, wide, fixed, AS_POOL);                                               \
    }
FOR_TYPES(ENTRY)
