// y [outer, middle, inner] = scale x [outer, inner].
// Floor: y written once; x is read from the caches again and again.
#include "lib/lines.cuh"

template <class T>
__device__ __forceinline__ void broadcast(const T* x, T* y, u32 n, bool wide, Divisor inner, Divisor middle, float scale) {
    wide = wide && is_aligned(x) && is_aligned(y);
    by_pack<T>(n, wide, [=](u32 i) {
        Divided at = divide(i, inner);
        Floats<T> v(load_wide(x + u64(quotient(at.quotient, middle)) * inner.size + at.rest, wide));
        store_wide(y + i, v.times(scale), wide);
    });
}

#define ENTRY(T)                                                                                                    \
    FLAT_KERNEL broadcast_##T(const T* x, T* y, u32 n, u32 wide, DIVISOR(inner), DIVISOR(middle), float scale) {    \
        broadcast(x, y, n, wide, AS_DIVISOR(inner), AS_DIVISOR(middle), scale);                                     \
    }
FOR_TYPES(ENTRY)
