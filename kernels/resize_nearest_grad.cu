// dy [B, H, W, C] -> dx [B, height, width, C]: pixel i of n has the sum of those from ceil(i m / n) to before ceil((i + 1) m / n) of m,
// in order; sums in f32.
// Floor: dy read once, dx written once.
#include "lib/lines.cuh"

// ceil(i m / n)
__device__ __forceinline__ u32 start(u32 i, u32 m, Divisor n) { return quotient(i * m + n.size - 1, n); }

template <class T>
__device__ __forceinline__ void sums(const T* dy, T* dx, u32 n, bool wide, Divisor c, u32 h, u32 w, Divisor height, Divisor width) {
    wide = wide && is_aligned(dy) && is_aligned(dx);
    by_pack<T>(n, wide, [=](u32 i) {
        Divided at = divide(i, c), pixel = divide(at.quotient, width), line = divide(pixel.quotient, height);
        u32 row_end = start(line.rest + 1, h, height), col_end = start(pixel.rest + 1, w, width);
        u32 col_start = start(pixel.rest, w, width);
        Floats<T> sum(0.0f);
        for (u32 row = start(line.rest, h, height); row < row_end; row++) {
            const T* from = dy + u64((line.quotient * h + row) * w + col_start) * c.size + at.rest;
#pragma unroll 2
            for (u32 col = col_start; col < col_end; col++, from += c.size) sum.add(1.0f, load_wide(from, wide));
        }
        store_wide(dx + i, sum.times(1.0f), wide);
    });
}

#define ENTRY(T)                                                                                                      \
    FLAT_KERNEL resize_nearest_grad_##T(const T* dy, T* dx, u32 n, u32 wide, DIVISOR(c), u32 h, u32 w, DIVISOR(height), \
                                        DIVISOR(width)) {                                                             \
        sums(dy, dx, n, wide, AS_DIVISOR(c), h, w, AS_DIVISOR(height), AS_DIVISOR(width));                            \
    }
FOR_TYPES(ENTRY)
