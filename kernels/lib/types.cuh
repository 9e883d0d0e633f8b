// Element types, and how they become f32 and back. Arithmetic is f32 always; f16 and bf16 are storage.
#pragma once

using f32 = float;
using i32 = int;
using u32 = unsigned;
using u64 = unsigned long long;

struct f16 {
    unsigned short bits;
};
struct bf16 {
    unsigned short bits;
};

__device__ __forceinline__ float widen(f32 v) { return v; }

__device__ __forceinline__ float widen(f16 v) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(v.bits));
    return out;
}

__device__ __forceinline__ float widen(bf16 v) { return __uint_as_float(u32(v.bits) << 16); }

// To nearest, ties to even.
template <class T>
__device__ __forceinline__ T narrow(float v);

template <>
__device__ __forceinline__ f32 narrow(float v) {
    return v;
}

template <>
__device__ __forceinline__ f16 narrow(float v) {
    f16 out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
    return out;
}

template <>
__device__ __forceinline__ bf16 narrow(float v) {
    bf16 out;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
    return out;
}

// Bits that move in one access.
template <int BYTES>
struct Bits;
template <>
struct Bits<2> {
    using Type = unsigned short;
};
template <>
struct Bits<4> {
    using Type = unsigned;
};
template <>
struct Bits<8> {
    using Type = uint2;
};
template <>
struct Bits<16> {
    using Type = uint4;
};

// `N` elements that move in one access: copies are of the whole, as elements one by one would be as many loads.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
    using Whole = typename Bits<sizeof(T) * N>::Type;
    union {
        T at[N];
        Whole whole;
    };
    __device__ __forceinline__ Pack() {}
    static __device__ __forceinline__ Pack zeros() {
        Pack pack;
        pack.whole = Whole{};
        return pack;
    }
    __device__ __forceinline__ Pack(const Pack& other) : whole(other.whole) {}
    __device__ __forceinline__ Pack& operator=(const Pack& other) {
        whole = other.whole;
        return *this;
    }
};

// Elements of 16 bytes, the widest access.
template <class T>
constexpr int WIDE = 16 / sizeof(T);

template <class T>
using Wide = Pack<T, WIDE<T>>;

__device__ __forceinline__ bool is_aligned(const void* p, u32 bytes = 16) { return (u64(p) & (bytes - 1)) == 0; }

// One entry a type: `FOR_TYPES(ENTRY)` with `#define ENTRY(T) extern "C" __global__ void name_##T(...)`.
#define FOR_TYPES(ENTRY) ENTRY(f32) ENTRY(f16) ENTRY(bf16)
