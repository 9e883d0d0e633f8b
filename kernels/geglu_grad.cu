// dx of y = a · gelu(b): dy · gelu(b) and dy · a · gelu'(b)   x, dx [.., 2·width], dy [.., width]
// Floor: x and dy once, dx once.
#include "lib/activation.cuh"
#include "lib/lines.cuh"

template <class T>
__device__ __forceinline__ void geglu_grad(const T* x, const T* dy, T* dx, u32 n, bool wide, Divisor width) {
    wide = wide && is_aligned(x) && is_aligned(dy) && is_aligned(dx);
    by_pack<T>(n, wide, [&](u32 i) {
        u64 at = i + u64(quotient(i, width)) * width.size;
        Floats<T> a(load_wide(x + at, wide)), b(load_wide(x + at + width.size, wide)), d(load_wide(dy + i, wide));
#pragma unroll
        for (int k = 0; k < WIDE<T>; k++) {
            a.at[k] *= d.at[k] * act_derivative(GELU, b.at[k]);
            b.at[k] = d.at[k] * act(GELU, b.at[k]);
        }
        store_wide(dx + at, b.times(1.0f), wide);
        store_wide(dx + at + width.size, a.times(1.0f), wide);
    });
}

#define ENTRY(T)                                                                                          \
    FLAT_KERNEL geglu_grad_##T(const T* x, const T* dy, T* dx, u32 n, u32 wide, DIVISOR(width)) {         \
        geglu_grad(x, dy, dx, n, wide, AS_DIVISOR(width));                                                \
    }
FOR_TYPES(ENTRY)
