// Kernels over x [B, n] with a block for each stretch of a sample, whose numbers they hold in registers; `ops/lanes.rs` (`Samples`) lowers them.
#pragma once
#include "norm.cuh"

// Packs of a thread: a stretch has 4096 numbers at most, which are under way at once.
constexpr u32 PACKS_HELD = 4;

// WHOLE: samples are a multiple of 16 bytes, all arrays begin at one.
template <bool WHOLE>
struct Stretch {
    u32 sample;
    // Where it begins in the tensor, and its numbers.
    u64 start;
    u32 count;

    __device__ __forceinline__ Stretch(u32 n, u32 each, u32 stretches) : sample(blockIdx.x / stretches) {
        u32 number = blockIdx.x % stretches;
        start = u64(sample) * n + u64(number) * each;
        count = min(each, n - number * each);
    }

    // Number j of this thread's pack k within the stretch, and whether it is there.
    __device__ __forceinline__ u32 place(u32 k, u32 j) const { return (k * FLAT_THREADS + threadIdx.x) * 4 + j; }
    __device__ __forceinline__ bool has(u32 k, u32 j) const { return place(k, WHOLE ? 0 : j) < count; }

    // Those that are not there are `rest`.
    __device__ __forceinline__ void load(Wide<f32> (&v)[PACKS_HELD], const f32* x, f32 rest) const {
#pragma unroll
        for (u32 k = 0; k < PACKS_HELD; k++) {
#pragma unroll
            for (u32 j = 0; j < 4; j++) v[k].at[j] = !WHOLE && has(k, j) ? x[start + place(k, j)] : rest;
            if (WHOLE && has(k, 0)) v[k] = *(const Wide<f32>*)(x + start + place(k, 0));
        }
    }

    __device__ __forceinline__ void store(f32* y, const Wide<f32> (&v)[PACKS_HELD]) const {
#pragma unroll
        for (u32 k = 0; k < PACKS_HELD; k++) {
            if constexpr (WHOLE) {
                if (has(k, 0)) *(Wide<f32>*)(y + start + place(k, 0)) = v[k];
            } else {
#pragma unroll
                for (u32 j = 0; j < 4; j++)
                    if (has(k, j)) y[start + place(k, j)] = v[k].at[j];
            }
        }
    }
};

// f(v) for every number that a thread holds.
template <class F>
__device__ __forceinline__ void each_held(Wide<f32> (&v)[PACKS_HELD], F f) {
#pragma unroll
    for (u32 k = 0; k < PACKS_HELD; k++)
#pragma unroll
        for (u32 j = 0; j < 4; j++) f(v[k].at[j]);
}

// a becomes a - b.
__device__ __forceinline__ void subtract(Wide<f32> (&a)[PACKS_HELD], const Wide<f32> (&b)[PACKS_HELD]) {
#pragma unroll
    for (u32 k = 0; k < PACKS_HELD; k++)
#pragma unroll
        for (u32 j = 0; j < 4; j++) a[k].at[j] -= b[k].at[j];
}

__device__ __forceinline__ float sum_of_block(float v) {
    float sum[1] = {v};
    RowTeam(FLAT_THREADS).sum(sum);
    return sum[0];
}

// The sum over a block of the squares that its threads hold.
__device__ __forceinline__ float squares_of_block(Wide<f32> (&v)[PACKS_HELD]) {
    float sum = 0.0f;
    each_held(v, [&](float d) { sum = fmaf(d, d, sum); });
    return sum_of_block(sum);
}

// The sum of a sample's parts [B, stretches], on every thread.
__device__ __forceinline__ float sum_of_parts(const f32* parts, u32 sample, u32 stretches) {
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < stretches; i += FLAT_THREADS) sum += parts[u64(sample) * stretches + i];
    return sum_of_block(sum);
}
