// dx = the sum of dy over the windows that hold a pixel, each divided as its mean was.
// Floor: dy read once, dx written once.
#include "lib/pool.cuh"

// 1 / what a window is divided by; pixels are those of dx.
__device__ __forceinline__ float weight(u32 row, u32 col, u32 fixed, const Pool& p) {
    Span rows = pixels(row, p.kernel.row, p.near.row, p.stride.size, p.height.size);
    Span cols = pixels(col, p.kernel.col, p.near.col, p.stride.size, p.width.size);
    return 1.0f / float(fixed > 0 ? fixed : rows.count() * cols.count());
}

FLAT_KERNEL average_pool_grad_f32(const f32* dy, f32* dx, u32 n, u32 is_wide, POOL, u32 fixed) {
    Pool p = AS_POOL;
    bool wide = is_wide && is_aligned(dy) && is_aligned(dx);
    by_pack<f32>(n, wide, [=](u32 i) {
        Spot at = spot(i, p);
        Under over = windows(at, p);
        Floats<f32> sum(0.0f);
        for (u32 row = over.rows.start; row < over.rows.end; row++)
#pragma unroll 1
            for (u32 col = over.cols.start; col < over.cols.end; col++)
                sum.add(weight(row, col, fixed, p), load_wide(dy + number(at, row, col, p), wide));
        store_wide(dx + i, sum.times(1.0f), wide);
    });
}
