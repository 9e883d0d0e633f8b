// What kernels over lines of elements share: `ops/lines.rs` lowers them.
//
// Copies do not look at numbers: they move units of 16, 8, 4 or 2 bytes, the most that divides every length and distance. Kernels that
// do look take packs of 16 bytes where a line is a multiple of that, single elements elsewhere. A multiprocessor must have some 20 KB
// under way to hide the 0.8 µs that loads take at 3.35 TB/s, some 30 KB at 4.8: 2048 threads with 16 bytes each have 32.
#pragma once
#include "flat.cuh"

// Division by a size that is the same for all threads, exact for all n of 32 bits (Granlund and Montgomery 1994): four
// instructions in place of about twenty.
struct Divisor {
    u32 size, factor, shift;
};

// A divisor among an entry's parameters, and as a value.
#define DIVISOR(name) u32 name##_size, u32 name##_factor, u32 name##_shift
#define AS_DIVISOR(name) Divisor{name##_size, name##_factor, name##_shift}

struct Divided {
    u32 quotient, rest;
};

__device__ __forceinline__ u32 quotient(u32 n, Divisor d) { return u32((u64(__umulhi(n, d.factor)) + n) >> d.shift); }

__device__ __forceinline__ Divided divide(u32 n, Divisor d) {
    u32 q = quotient(n, d);
    return {q, n - q * d.size};
}

// One pack in one access, or element by element where it does not lie at a multiple of its size.
template <class T, int N>
__device__ __forceinline__ Pack<T, N> load(const T* p) {
    Pack<T, N> out;
    if constexpr (N > 1) {
        if (!is_aligned(p, sizeof(T) * N)) {
#pragma unroll
            for (int k = 0; k < N; k++) out.at[k] = p[k];
            return out;
        }
    }
    out = *(const Pack<T, N>*)p;
    return out;
}

template <class T, int N>
__device__ __forceinline__ void store(T* p, Pack<T, N> v) {
    if constexpr (N > 1) {
        if (!is_aligned(p, sizeof(T) * N)) {
#pragma unroll
            for (int k = 0; k < N; k++) p[k] = v.at[k];
            return;
        }
    }
    *(Pack<T, N>*)p = v;
}

// A unit: words of 4 bytes, as views begin at multiples of that, or one of 2.
template <int BYTES>
struct Units {
    using Word = u32;
    static constexpr int WORDS = BYTES / 4;
};
template <>
struct Units<2> {
    using Word = unsigned short;
    static constexpr int WORDS = 1;
};
template <int BYTES>
using Word = typename Units<BYTES>::Word;
template <int BYTES>
using Unit = Pack<Word<BYTES>, Units<BYTES>::WORDS>;

// Unit `i` of an array.
template <int BYTES>
__device__ __forceinline__ Unit<BYTES> load_unit(const void* x, u32 i) {
    return load<Word<BYTES>, Units<BYTES>::WORDS>((const Word<BYTES>*)x + u64(i) * Units<BYTES>::WORDS);
}

template <int BYTES>
__device__ __forceinline__ void store_unit(void* y, u32 i, Unit<BYTES> v) {
    store<Word<BYTES>, Units<BYTES>::WORDS>((Word<BYTES>*)y + u64(i) * Units<BYTES>::WORDS, v);
}

template <int BYTES>
__device__ __forceinline__ Unit<BYTES> fill_unit(u32 word) {
    Unit<BYTES> out;
#pragma unroll
    for (int k = 0; k < Units<BYTES>::WORDS; k++) out.at[k] = Word<BYTES>(word);
    return out;
}

// Unit place(i) of y = read(i) for all n. All of a thread's units are read before the first is written, so that as many loads are
// under way: two of the largest.
template <int BYTES, class Read, class Place>
__device__ __forceinline__ void move_units(u32 n, void* y, Read read, Place place) {
    constexpr int EACH = BYTES == 16 ? 2 : 16 / BYTES;
    u64 first = u64(blockIdx.x) * FLAT_THREADS * EACH + threadIdx.x;
    Unit<BYTES> moved[EACH];
#pragma unroll
    for (int k = 0; k < EACH; k++)
        if (first + k * FLAT_THREADS < n) moved[k] = read(u32(first) + k * FLAT_THREADS);
#pragma unroll
    for (int k = 0; k < EACH; k++)
        if (first + k * FLAT_THREADS < n) store_unit<BYTES>(y, place(u32(first) + k * FLAT_THREADS), moved[k]);
}

template <int BYTES, class Read>
__device__ __forceinline__ void move_units(u32 n, void* y, Read read) {
    move_units<BYTES>(n, y, read, [](u32 i) { return i; });
}

#define FOR_UNITS(ENTRY) ENTRY(16) ENTRY(8) ENTRY(4) ENTRY(2)

// Sixteen bytes from p on; if not `wide` one element, the rest zero.
template <class T>
__device__ __forceinline__ Wide<T> load_wide(const T* p, bool wide) {
    Wide<T> out;
    if (wide) {
        out = *(const Wide<T>*)p;
        return out;
    }
#pragma unroll
    for (int k = 1; k < WIDE<T>; k++) out.at[k] = T();
    out.at[0] = *p;
    return out;
}

// Sixteen bytes from p on; if not `wide` the first element.
template <class T>
__device__ __forceinline__ void store_wide(T* p, Wide<T> v, bool wide) {
    if (wide) *(Wide<T>*)p = v;
    else *p = v.at[0];
}

// The numbers of a pack of T, in f32.
template <class T>
struct Floats {
    float at[WIDE<T>];

    __device__ __forceinline__ Floats(float v) {
#pragma unroll
        for (int k = 0; k < WIDE<T>; k++) at[k] = v;
    }

    __device__ __forceinline__ Floats(Wide<T> v) {
#pragma unroll
        for (int k = 0; k < WIDE<T>; k++) at[k] = widen(v.at[k]);
    }

    // this += factor · v
    __device__ __forceinline__ void add(float factor, Wide<T> v) {
#pragma unroll
        for (int k = 0; k < WIDE<T>; k++) at[k] = fmaf(factor, widen(v.at[k]), at[k]);
    }

    // factor · this
    __device__ __forceinline__ Wide<T> times(float factor) const {
        Wide<T> out;
#pragma unroll
        for (int k = 0; k < WIDE<T>; k++) out.at[k] = narrow<T>(factor * at[k]);
        return out;
    }
};

// body(i) for every pack of n elements, i being its first; or if not `wide` for every element.
template <class T, class Body>
__device__ __forceinline__ void by_pack(u32 n, bool wide, Body body) {
    constexpr u32 EACH = WIDE<T>;
    u64 first = u64(blockIdx.x) * FLAT_THREADS * EACH, end = first + FLAT_THREADS * EACH;
    if (end > n) end = n;
#pragma unroll 1
    for (u64 i = first + threadIdx.x * (wide ? EACH : 1); i < end; i += FLAT_THREADS * (wide ? EACH : 1)) body(u32(i));
}

// v of all lanes of a warp, joined in pairs: the same on every lane.
template <class T, class Join>
__device__ __forceinline__ T join_warp(T v, Join join) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) v = join(v, __shfl_xor_sync(~0u, v, distance));
    return v;
}

// The warps of a block of 256 threads that share a row: one, or all.
template <int WARPS>
struct Team {
    static constexpr u32 LANES = 32 * WARPS;
    u32 row, lane;

    __device__ __forceinline__ Team()
        : row(blockIdx.x * (FLAT_THREADS / LANES) + threadIdx.x / LANES), lane(threadIdx.x % LANES) {}

    // v of all lanes joined: the same on every one. All threads of the block must come here.
    template <class T, class Join>
    __device__ __forceinline__ T join(T v, Join joined) const {
        v = join_warp(v, joined);
        if (WARPS == 1) return v;
        __shared__ T parts[WARPS];
        __syncthreads();
        if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
        __syncthreads();
        v = parts[0];
        for (int k = 1; k < WARPS; k++) v = joined(v, parts[k]);
        return v;
    }

    __device__ __forceinline__ float sum(float v) const {
        return join(v, [](float a, float b) { return a + b; });
    }

    // NaN is passed over.
    __device__ __forceinline__ float largest(float v) const {
        return join(v, [](float a, float b) { return fmaxf(a, b); });
    }

    // f(i, x[i]) for this lane's share of x[..n], 16 bytes in one access where they lie so.
    template <class T, class F>
    __device__ __forceinline__ void each(const T* x, u32 n, F f) const {
        constexpr u32 EACH = WIDE<T>;
        if (n % EACH == 0 && is_aligned(x)) {
#pragma unroll 4
            for (u32 i = EACH * lane; i < n; i += EACH * LANES) {
                Wide<T> v = *(const Wide<T>*)(x + i);
#pragma unroll
                for (int k = 0; k < EACH; k++) f(i + k, widen(v.at[k]));
            }
            return;
        }
#pragma unroll 4
        for (u32 i = lane; i < n; i += LANES) f(i, widen(x[i]));
    }
};

#define FOR_TEAMS(ENTRY) ENTRY(1) ENTRY(8)
