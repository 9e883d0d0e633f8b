// dy [B, H, W, C] -> dx [B, height, width, C]: pixel i of n has the sum of those from ceil(i m / n) to before ceil((i + 1) m / n) of m,
// in order.
// Floor: dy read once, dx written once.
#include "lib/lines.cuh"

// ceil(i m / n)
__device__ __forceinline__ u32 start(u32 i, u32 m, Divisor n) { return quotient(i * m + n.size - 1, n); }

FLAT_KERNEL resize_nearest_grad_f32(const f32* dy, f32* dx, u32 n, u32 is_wide, DIVISOR(c), u32 h, u32 w, DIVISOR(height),
                                    DIVISOR(width)) {
    Divisor c = AS_DIVISOR(c), height = AS_DIVISOR(height), width = AS_DIVISOR(width);
    bool wide = is_wide && is_aligned(dy) && is_aligned(dx);
    by_pack<f32>(n, wide, [=](u32 i) {
        Divided at = divide(i, c), pixel = divide(at.quotient, width), line = divide(pixel.quotient, height);
        u32 row_end = start(line.rest + 1, h, height), col_end = start(pixel.rest + 1, w, width);
        u32 col_start = start(pixel.rest, w, width);
        Floats<f32> sum(0.0f);
        for (u32 row = start(line.rest, h, height); row < row_end; row++) {
            const f32* from = dy + u64((line.quotient * h + row) * w + col_start) * c.size + at.rest;
#pragma unroll 2
            for (u32 col = col_start; col < col_end; col++, from += c.size) sum.add(1.0f, load_wide(from, wide));
        }
        store_wide(dx + i, sum.times(1.0f), wide);
    });
}
