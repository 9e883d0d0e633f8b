// The softmax of a token's logits over a group of lanes of a warp.
#pragma once
#include "flat.cuh"

// Keeps the sum of the chosen weights from being zero where they are made to sum to 1.
constexpr float TINY = 1e-20f;

struct Softmax {
    float most, sum;
    __device__ __forceinline__ float score(float x) const { return expf(x - most) / sum; }
};

// A token and its lanes, a power of two. Lanes behind the last token go along with it, and are not `real`.
struct Token {
    const f32* x;
    u32 number, lane, count, lanes;
    bool real;

    __device__ __forceinline__ Token(const f32* logits, u32 tokens, u32 count, u32 lanes) : count(count), lanes(lanes) {
        u64 at = u64(blockIdx.x) * (FLAT_THREADS / lanes) + threadIdx.x / lanes;
        real = at < tokens;
        number = real ? u32(at) : tokens - 1;
        lane = threadIdx.x % lanes;
        x = logits + u64(number) * count;
    }

    __device__ __forceinline__ float sum(float v) const {
        for (u32 distance = lanes / 2; distance > 0; distance /= 2) v += __shfl_xor_sync(~0u, v, distance);
        return v;
    }

    __device__ __forceinline__ Softmax softmax() const {
        Softmax s = {__uint_as_float(0xff800000), 0.0f};
        for (u32 e = lane; e < count; e += lanes) s.most = fmaxf(s.most, x[e]);
        for (u32 distance = lanes / 2; distance > 0; distance /= 2)
            s.most = fmaxf(s.most, __shfl_xor_sync(~0u, s.most, distance));
        for (u32 e = lane; e < count; e += lanes) s.sum += expf(x[e] - s.most);
        s.sum = sum(s.sum);
        return s;
    }
};
