// y = x · scale where a number's word of random.cu is at least `least`, zero elsewhere: the uniform number that is made of it is then at least p
// Floor: x once, y once; some 60 integer instructions for four numbers, the rounds of the generator, which go on while x is on its way.
#include "lib/philox.cuh"

template <class T>
__device__ __forceinline__ void dropout(const T* x, const u32* seeds, const f32* draw, T* y, u32 n, Divisor sample, u32 stream, u32 least,
                                        f32 scale) {
    constexpr u32 EACH = WIDE<T>;
    u64 start = flat_start(EACH);
    if (start >= n) return;
    auto mask = [=](T v, u32 word) { return narrow<T>(word >= least ? widen(v) * scale : 0.0f); };
    if (sample.size % EACH == 0 && is_aligned(x) && is_aligned(y)) {
        Wide<T> v = *(const Wide<T>*)(x + start);
        Divided at = divide(u32(start), sample);
#pragma unroll
        for (u32 k = 0; k < EACH; k += 4) {
            uint4 w = random_words(seeds, draw, stream, at.quotient, (at.rest + k) / 4);
            v.at[k] = mask(v.at[k], w.x), v.at[k + 1] = mask(v.at[k + 1], w.y);
            v.at[k + 2] = mask(v.at[k + 2], w.z), v.at[k + 3] = mask(v.at[k + 3], w.w);
        }
        *(Wide<T>*)(y + start) = v;
        return;
    }
    // Each number by itself, to keep the code short.
#pragma unroll 1
    for (u64 i = start; i < n && i < start + EACH; i++) {
        Divided at = divide(u32(i), sample);
        uint4 w = random_words(seeds, draw, stream, at.quotient, at.rest / 4);
        u32 k = at.rest % 4;
        y[i] = mask(x[i], k == 0 ? w.x : k == 1 ? w.y : k == 2 ? w.z : w.w);
    }
}

// All threads that a multiprocessor holds, 32 registers each.
#define ENTRY(T)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 8)                                                    \
        dropout_##T(const T* x, const u32* seeds, const f32* draw, T* y, u32 n, DIVISOR(sample), u32 stream, u32 least, f32 scale) { \
        dropout(x, seeds, draw, y, n, AS_DIVISOR(sample), stream, least, scale);                                     \
    }
FOR_TYPES(ENTRY)
