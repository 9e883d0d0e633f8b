// Philox 4x32-10 (Salmon, Moraes, Dror & Shaw 2011), bit for bit that of `cpu::philox`.
#pragma once
#include "lines.cuh"

__device__ __forceinline__ uint4 philox(uint2 key, uint4 c) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        c = {__umulhi(0xCD9E8D57u, c.z) ^ c.y ^ key.x, 0xCD9E8D57u * c.z, __umulhi(0xD2511F53u, c.x) ^ c.w ^ key.y, 0xD2511F53u * c.x};
        key.x += 0x9E3779B9u;
        key.y += 0xBB67AE85u;
    }
    return c;
}

// A word as a number of [0, 1): its upper 24 bits, exact.
__device__ __forceinline__ float uniform(u32 word) { return float(word >> 8) * (1.0f / 16777216.0f); }

// The words of block `block` of a sample's numbers; seeds [B, 2], draw [1].
__device__ __forceinline__ uint4 random_words(const u32* seeds, const f32* draw, u32 stream, u32 sample, u32 block) {
    return philox({seeds[2 * u64(sample)], seeds[2 * u64(sample) + 1]}, {block, u32(*draw), stream, 0});
}

// use(i, v): element i of [B, per sample] is word e mod 4 of make(sample, e / 4), e its number in the sample. Four neighbours a thread, which one
// block makes where samples divide into fours.
template <class Make, class Use>
__device__ __forceinline__ void by_four(u32 n, Divisor sample, Make make, Use use) {
    u64 start = flat_start(4);
    if (start >= n) return;
    Divided at = divide(u32(start), sample);
    Pack<f32, 4> four;
#pragma unroll
    for (u32 k = 0; k < 4; k++) {
        if (start + k >= n) return;
        if (k == 0 || at.rest % 4 == 0) four = make(at.quotient, at.rest / 4);
        use(u32(start) + k, four.at[at.rest % 4]);
        if (++at.rest == sample.size) at.rest = 0, at.quotient++;
    }
}
