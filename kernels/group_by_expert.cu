// experts [n] -> order [n], places [n], offsets [count + 1]: a stable counting sort of n pairs by expert.
// Floor: experts read once, order and places written once. One launch, as launches cost more than the rest at these sizes: a block has
// an expert and reads all pairs twice, from the L2 (1 MB for 131072 pairs): how many go before its own, then where each of its own
// goes. A warp has a stretch of the pairs, so that their order needs one barrier, not one each 128 pairs.
#include "lib/lines.cuh"

constexpr u32 THREADS = 1024, WARPS = THREADS / 32;

// The experts of four pairs from i on, what is none being the last; those behind the end are `count`.
__device__ __forceinline__ Wide<u32> four(const i32* experts, u32 i, u32 n, u32 count) {
    Wide<u32> e;
    if (i + 4 <= n) {
        e = load<u32, 4>((const u32*)experts + i);
#pragma unroll
        for (int k = 0; k < 4; k++) e.at[k] = e.at[k] < count ? e.at[k] : count - 1;
        return e;
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
        e.at[k] = count;
        if (i + k < n) e.at[k] = u32(experts[i + k]) < count ? u32(experts[i + k]) : count - 1;
    }
    return e;
}

// `per` is a multiple of 128, the pairs of a warp.
extern "C" __global__ void __launch_bounds__(THREADS)
    group_by_expert_i32(const i32* experts, i32* order, i32* places, i32* offsets, u32 n, u32 count, u32 per) {
    __shared__ u32 before_of[WARPS], own_of[WARPS];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, expert = blockIdx.x;
    u32 start = warp * per, end = start + per < n ? start + per : n;
    u32 before = 0, own = 0;
#pragma unroll 4
    for (u32 i = start + 4 * lane; i < end; i += 128) {
        Wide<u32> e = four(experts, i, n, count);
#pragma unroll
        for (int k = 0; k < 4; k++) before += e.at[k] < expert, own += e.at[k] == expert;
    }
    auto add = [](u32 a, u32 b) { return a + b; };
    before = join_warp(before, add);
    own = join_warp(own, add);
    if (lane == 0) before_of[warp] = before, own_of[warp] = own;
    __syncthreads();
    // The first of the expert's places, then the first of the warp's.
    u32 next = 0;
    for (u32 k = 0; k < WARPS; k++) next += before_of[k];
    if (threadIdx.x == 0) {
        offsets[expert] = i32(next);
        if (expert == count - 1) offsets[count] = i32(n);
    }
    for (u32 k = 0; k < warp; k++) next += own_of[k];
    u32 earlier = (1u << lane) - 1;
    for (u32 first = start; first < end; first += 128) {
        Wide<u32> e = four(experts, first + 4 * lane, n, count);
        u32 at = next;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            u32 votes = __ballot_sync(~0u, e.at[k] == expert);
            at += __popc(votes & earlier);
            next += __popc(votes);
        }
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (e.at[k] == expert) {
                u32 pair = first + 4 * lane + k;
                order[at] = i32(pair);
                places[pair] = i32(at);
                at++;
            }
    }
}
