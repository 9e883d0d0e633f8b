// y = a · gelu(b), a and b the halves of x's rows   x [.., 2·width] → y [.., width]
// Floor: x once, y once. A thread has 16 bytes of a, of b and of y.
#include "lib/activation.cuh"
#include "lib/lines.cuh"

template <class T>
__device__ __forceinline__ void geglu(const T* x, T* y, u32 n, bool wide, Divisor width) {
    wide = wide && is_aligned(x) && is_aligned(y);
    by_pack<T>(n, wide, [&](u32 i) {
        // Element i of y's row r is element i + r·width of x.
        const T* a = x + i + u64(quotient(i, width)) * width.size;
        Floats<T> left(load_wide(a, wide)), right(load_wide(a + width.size, wide));
#pragma unroll
        for (int k = 0; k < WIDE<T>; k++) left.at[k] *= act(GELU, right.at[k]);
        store_wide(y + i, left.times(1.0f), wide);
    });
}

#define ENTRY(T)                                                                   \
    FLAT_KERNEL geglu_##T(const T* x, T* y, u32 n, u32 wide, DIVISOR(width)) {     \
        geglu(x, y, n, wide, AS_DIVISOR(width));                                   \
    }
FOR_TYPES(ENTRY)
