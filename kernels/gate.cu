// y = residual + gate · x   x, residual, y [B, R, C], gate [B, C]
// Floor: x and residual once, y once; the gate stays in cache.
#include "lib/lines.cuh"

template <class T>
__device__ __forceinline__ void gate_rows(
    const T* x, const T* gate, const T* residual, T* y, u32 n, bool wide, Divisor channels, Divisor sample) {
    wide = wide && is_aligned(x) && is_aligned(gate) && is_aligned(residual) && is_aligned(y);
    by_pack<T>(n, wide, [&](u32 i) {
        u64 at = u64(quotient(i, sample)) * channels.size + divide(i, channels).rest;
        Wide<T> in = load_wide(x + i, wide), factor = load_wide(gate + at, wide);
        Floats<T> sum(load_wide(residual + i, wide));
#pragma unroll
        for (int k = 0; k < WIDE<T>; k++) sum.at[k] += widen(factor.at[k]) * widen(in.at[k]);
        store_wide(y + i, sum.times(1.0f), wide);
    });
}

#define ENTRY(T)                                                                                       \
    FLAT_KERNEL gate_##T(                                                                              \
        const T* x, const T* gate, const T* residual, T* y, u32 n, u32 wide, DIVISOR(channels), DIVISOR(sample)) { \
        gate_rows(x, gate, residual, y, n, wide, AS_DIVISOR(channels), AS_DIVISOR(sample));            \
    }
FOR_TYPES(ENTRY)
