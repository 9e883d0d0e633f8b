// Elementwise kernels: blocks of 256 threads; a thread takes 16 bytes of every array in one access. Where an array begins at another
// place than a multiple of 16 bytes, as a view may, it takes the same elements one by one.
#pragma once
#include "types.cuh"

constexpr int FLAT_THREADS = 256;
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

// Sixteen bytes of every array from element i on, each in one access; or if not `whole` those of them that there are, one by one.
template <class T>
struct Piece {
    u64 i;
    u32 count;
    bool whole;

    __device__ __forceinline__ Wide<T> load(const T* x) const {
        Wide<T> out;
        if (whole) {
            out = *(const Wide<T>*)(x + i);
            return out;
        }
#pragma unroll
        for (u32 k = 0; k < WIDE<T>; k++) out.at[k] = k < count ? x[i + k] : T();
        return out;
    }

    __device__ __forceinline__ void store(T* y, Wide<T> v) const {
        if (whole) {
            *(Wide<T>*)(y + i) = v;
            return;
        }
#pragma unroll
        for (u32 k = 0; k < WIDE<T>; k++)
            if (k < count) y[i + k] = v.at[k];
    }
};

// body(piece) for what the threads of a block have of arrays of n, from the block's first element on: all threads come to the same
// one of two copies of it. `aligned`: all arrays begin at multiples of 16 bytes.
template <class T, class Body>
__device__ __forceinline__ void by_piece(u64 first, u64 n, bool aligned, Body body) {
    u64 i = first + threadIdx.x * WIDE<T>;
    if (aligned && first + FLAT_THREADS * WIDE<T> <= n) body(Piece<T>{i, WIDE<T>, true});
    else body(Piece<T>{i, i < n ? u32(min(n - i, u64(WIDE<T>))) : 0, false});
}
