// What all matrix products share: copies to shared memory beside the threads, the loop over k, the order of tiles.
//
// A product is cut into tiles of y, one a block, and maybe k into parts (`blockIdx.y`). Where the numbers of the operands come from is a
// template argument, a *source*: rows or columns of a matrix, a weight's panels, or the pixels under a convolution's window. So one loop
// serves linear layers, convolutions, their gradients, and products of matrices.
#pragma once
#include "copies.cuh"
#include "epilogue.cuh"

// Copies 4 or 16 bytes from global to shared memory; where they are not `there`, nothing is read, and zeros are written.
template <int BYTES>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool there) {
    static_assert(BYTES == 4 || BYTES == 16);
    if constexpr (BYTES == 16) copy_16(shared_address(to), from, there);
    else copy_4(shared_address(to), from, there);
}

// `lines * stride` numbers behind `at`. One instruction, where the compiler would keep the products in registers for all of a loop.
template <class T>
__device__ __forceinline__ const T* ahead(const T* at, u32 lines, u32 stride) {
    u64 out;
    asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(out) : "r"(stride), "r"(u32(lines * sizeof(T))), "l"(at));
    return (const T*)out;
}

// Four numbers of shared memory. As an instruction: in long loops NVRTC splits some of such loads, and others every time it runs.
__device__ __forceinline__ void load_shared(float* to, const f32* from) {
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3])
                 : "r"(u32(__cvta_generic_to_shared(from)))
                 : "memory");
}

// Sums to shared memory in one access, which the compiler would split.
__device__ __forceinline__ void store_shared(f32* to, float a, float b) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(u32(__cvta_generic_to_shared(to))), "f"(a), "f"(b) : "memory");
}

__device__ __forceinline__ void store_shared(f32* to, float a, float b, float c, float d) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(u32(__cvta_generic_to_shared(to))), "f"(a), "f"(b), "f"(c), "f"(d)
                 : "memory");
}

// The sum over `terms` terms in tiles of DEPTH. `fetch(stage, left)` begins to fill a stage of shared memory with the next tile of `left` terms;
// `multiply(stage)` takes it. Copies run `STAGES - 1` tiles ahead. One barrier a tile: behind it all have its numbers, and none needs the stage
// before it, which is the next to be filled. The first rounds only fetch, so that the code of a fetch is there once.
template <int STAGES, int DEPTH, class Fetch, class Multiply>
__device__ __forceinline__ void pipeline(u32 terms, Fetch fetch, Multiply multiply) {
    int tiles = (terms + DEPTH - 1) / DEPTH, stage = 0;
#pragma unroll 1
    for (int t = 1 - STAGES; t < tiles; t++) {
        if (t >= 0) {
            wait_copies<STAGES - 2>();
            __syncthreads();
        }
        // The stage of tile t + STAGES - 1; that of tile t comes after it.
        int next = stage == STAGES - 1 ? 0 : stage + 1;
        if (t + STAGES - 1 < tiles) fetch(stage, int(terms) - (t + STAGES - 1) * DEPTH);
        commit_copies();
        if (t >= 0) multiply(next);
        stage = next;
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
}

// The tile of a block, or tile `id`: it counts batches, and in each of them bands of `tall` rows of tiles, column by column. So the blocks that run
// at a time are a patch of y about as wide as high, which reads the least from memory.
struct TilePlace {
    u32 batch, row, col;

    __device__ __forceinline__ TilePlace(u32 rows, u32 cols, u32 tall = 8, u32 id = blockIdx.x) {
        batch = id / (rows * cols);
        id -= batch * rows * cols;
        u32 band = id / (tall * cols), first = tall * band, high = min(tall, rows - first);
        id -= band * tall * cols;
        col = id / high;
        row = first + id - col * high;
    }
};

// The terms of k that a block sums.
struct Terms {
    u32 first, end;

    __device__ __forceinline__ u32 count() const { return end - first; }
};

// Part `blockIdx.y` of k, of `part` terms.
__device__ __forceinline__ Terms terms_of(u32 k, u32 part) {
    u32 first = min(u64(blockIdx.y) * part, u64(k));
    return {first, u32(min(u64(first) + part, u64(k)))};
}

__device__ __forceinline__ u32 tiles_of(u32 lines, u32 tile) { return (lines + tile - 1) / tile; }

__device__ __forceinline__ u32 warp_id() { return threadIdx.x / 32; }
__device__ __forceinline__ u32 lane_id() { return threadIdx.x % 32; }
