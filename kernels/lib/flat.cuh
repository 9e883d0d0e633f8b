// Elementwise kernels: blocks of 256 threads; a thread takes 16 bytes of every array in one access. Where an array begins at another
// place than a multiple of 16 bytes, as a view may, it takes the same elements one by one.
#pragma once
#include "types.cuh"

constexpr int FLAT_THREADS = 256;
// Registers enough for two blocks of loads in flight; no hot loop here.
#define FLAT_KERNEL extern "C" __global__ void __launch_bounds__(FLAT_THREADS)

// The number of this thread's first element, each thread having `each` of them.
__device__ __forceinline__ u64 flat_start(u32 each) { return (u64(blockIdx.x) * FLAT_THREADS + threadIdx.x) * each; }

// y[i] = f(x[i]...) for all `n` elements. Every element is read before it is written, by the thread that writes it: y may be one of x.
template <class T, class F, class... X>
__device__ __forceinline__ void flat(u32 n, F f, T* y, const X*... x) {
    constexpr int EACH = WIDE<T>;
    u64 start = flat_start(EACH);
    if (start + EACH <= n && (is_aligned(y) && ... && is_aligned(x, sizeof(Pack<X, EACH>)))) {
        Wide<T> out;
        auto pack = [&](Pack<X, EACH>... in) {
#pragma unroll
            for (int k = 0; k < EACH; k++) out.at[k] = narrow<T>(f(widen(in.at[k])...));
        };
        pack(*(const Pack<X, EACH>*)(x + start)...);
        *(Wide<T>*)(y + start) = out;
        return;
    }
    for (u64 i = start; i < n && i < start + EACH; i++) y[i] = narrow<T>(f(widen(x[i])...));
}
