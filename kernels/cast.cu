// y = x in another type
#include "lib/flat.cuh"

// A thread takes 16 bytes of the f32 side.
template <class From, class To>
__device__ void cast(const From* x, To* y, u32 n) {
    constexpr int EACH = WIDE<f32>;
    u64 start = flat_start(EACH);
    if (start + EACH <= n && is_aligned(x) && is_aligned(y)) {
        Pack<From, EACH> in = *(const Pack<From, EACH>*)(x + start);
        Pack<To, EACH> out;
#pragma unroll
        for (int k = 0; k < EACH; k++) out.at[k] = narrow<To>(widen(in.at[k]));
        *(Pack<To, EACH>*)(y + start) = out;
        return;
    }
    for (u64 i = start; i < n && i < start + EACH; i++) y[i] = narrow<To>(widen(x[i]));
}

#define ENTRY(From, To) \
    FLAT_KERNEL cast_##From##_##To(const From* x, To* y, u32 n) { cast(x, y, n); }
ENTRY(f32, f16) ENTRY(f32, bf16) ENTRY(f16, f32) ENTRY(bf16, f32)
