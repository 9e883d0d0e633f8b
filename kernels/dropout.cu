// y = x / (1 - p) where u ≥ p, zero elsewhere; u as random.cu makes it
// Floor: x once, y once; about 100 integer instructions for four numbers. A thread has four numbers of any type: in 16 bits, too, the
// generator takes longer than memory.
#include "lib/philox.cuh"

template <class T>
__device__ __forceinline__ void dropout(const T* x, const u32* seeds, const f32* draw, T* y, u32 n, Divisor sample, u32 stream, f32 p,
                                        f32 scale) {
    using Four = Pack<T, 4>;
    u64 start = flat_start(4);
    if (start >= n) return;
    auto make = [&](u32 number, u32 block) {
        uint4 w = random_words(seeds, draw, stream, number, block);
        Pack<f32, 4> out;
        out.at[0] = uniform(w.x), out.at[1] = uniform(w.y), out.at[2] = uniform(w.z), out.at[3] = uniform(w.w);
        return out;
    };
    auto mask = [=](T v, float u) { return narrow<T>(u >= p ? widen(v) * scale : 0.0f); };
    if (sample.size % 4 == 0 && is_aligned(x, sizeof(Four)) && is_aligned(y, sizeof(Four))) {
        Four v = *(const Four*)(x + start);
        Divided at = divide(u32(start), sample);
        Pack<f32, 4> u = make(at.quotient, at.rest / 4);
#pragma unroll
        for (int k = 0; k < 4; k++) v.at[k] = mask(v.at[k], u.at[k]);
        *(Four*)(y + start) = v;
        return;
    }
    // Each number by itself, to keep the code short.
#pragma unroll 1
    for (u64 i = start; i < n && i < start + 4; i++) {
        Divided at = divide(u32(i), sample);
        y[i] = mask(x[i], make(at.quotient, at.rest / 4).at[at.rest % 4]);
    }
}

#define ENTRY(T)                                                                                                     \
    FLAT_KERNEL dropout_##T(const T* x, const u32* seeds, const f32* draw, T* y, u32 n, DIVISOR(sample), u32 stream, \
                            f32 p, f32 scale) {                                                                      \
        dropout(x, seeds, draw, y, n, AS_DIVISOR(sample), stream, p, scale);                                         \
    }
FOR_TYPES(ENTRY)
