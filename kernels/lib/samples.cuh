// Kernels over x [B, n] with a block for each stretch of a sample; `ops/lanes.rs` (`Samples`) lowers them.
#pragma once
#include "lines.cuh"

struct Stretch {
    u32 sample;
    // Where it begins in the tensor, and its elements.
    u64 start;
    u32 count;

    __device__ __forceinline__ Stretch(u32 n, u32 each, u32 stretches) : sample(blockIdx.x / stretches) {
        u32 number = blockIdx.x % stretches;
        start = u64(sample) * n + u64(number) * each;
        count = min(each, n - number * each);
    }
};
