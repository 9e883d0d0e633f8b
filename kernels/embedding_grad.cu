// dy [n, c], index [n] -> dtable [rows, c]: each row the sum of the dy of its index, in their order.
// Floor: dy and the index read once, dtable written once. A block has a row of the table: it reads the whole index, 256 numbers at a
// time, and lists those that are its own in order; so the index is read as many times as the table has rows, from the L2: 1 MB in all
// for 256 labels of 1000 classes.
#include "lib/lines.cuh"

FLAT_KERNEL embedding_grad_f32(const f32* dy, const i32* index, f32* dtable, u32 n, u32 c) {
    constexpr u32 WARPS = FLAT_THREADS / 32;
    __shared__ u32 found[WARPS], list[FLAT_THREADS];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    f32* out = dtable + u64(blockIdx.x) * c;
    bool wide = c % 4 == 0 && is_aligned(dy) && is_aligned(dtable), written = false;
    u32 each = wide ? 4 : 1;
    for (u32 first = 0; first < n || !written; first += FLAT_THREADS) {
        u32 i = first + threadIdx.x;
        bool own = i < n && u32(index[i]) == blockIdx.x;
        u32 votes = __ballot_sync(~0u, own);
        __syncthreads();
        if (lane == 0) found[warp] = __popc(votes);
        __syncthreads();
        u32 before = 0, count = 0;
#pragma unroll
        for (u32 k = 0; k < WARPS; k++) {
            before += k < warp ? found[k] : 0;
            count += found[k];
        }
        // A row of which there is none is zero.
        if (count == 0 && (written || first + FLAT_THREADS < n)) continue;
        if (own) list[before + __popc(votes & ((1u << lane) - 1))] = i;
        __syncthreads();
        for (u32 col = threadIdx.x * each; col < c; col += FLAT_THREADS * each) {
            Floats<f32> sum(0.0f);
            if (written) sum = Floats<f32>(load_wide(out + col, wide));
#pragma unroll 2
            for (u32 j = 0; j < count; j++) sum.add(1.0f, load_wide(dy + u64(list[j]) * c + col, wide));
            store_wide(out + col, sum.times(1.0f), wide);
        }
        written = true;
    }
}
