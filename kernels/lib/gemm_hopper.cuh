// Products in f16 and bf16 on Hopper: matrix instructions of four warps (`wgmma`), which read both operands from shared memory, sums in f32.
//
// A block has two warpgroups, each with 64 of the tile's 128 rows and all of its columns: with 256 of them a tile of 64 terms keeps the tensor cores
// busy for 1024 cycles, in which they read 80 KiB of shared memory and copies write 48, of the 128 KiB that it moves. All threads copy, chunks of
// 16 bytes, two or three tiles ahead. The products of a tile run beside its successor's barrier and the copies of another; one group of them is always
// under way.
//
// In shared memory A is lines of 64 terms with chunks exchanged by the line's number, which is the swizzle of 128 bytes and `TermRuns` of
// `gemm_half.cuh`. B is a weight's panels as they lie, terms of 16 columns, with the swizzle of 32 bytes: so it is transposed by the tensor cores.
#pragma once
#include "gemm_half.cuh"
#include "wgmma.cuh"

constexpr int HOPPER_ROWS = 128, HOPPER_THREADS = 256;

// Columns of a weight in panels, as `HalfPanels`; a half of the block copies every other panel.
template <class T, int LINES>
struct HopperPanels {
    const T* at;
    u32 rows, to;
    int panels;

    // Columns from `first` on, a multiple of 16, of `count`, of a weight whose panels have `rows`.
    __device__ __forceinline__ HopperPanels(const T* w, u32 rows, u32 first, u32 count, Terms terms) : rows(rows) {
        u32 panel = threadIdx.x / 128, term = threadIdx.x / 2 % 64, half = threadIdx.x % 2;
        at = w + (u64(first / 16 + panel) * rows + terms.first + term) * 16 + 8 * half;
        to = panel * 2048 + term * 32 + ((half ^ term / 4 & 1) << 4);
        panels = int((count + 15) / 16) - int(first / 16 + panel);
    }

    __device__ __forceinline__ void fetch(char* tile, int left) {
        bool there = int(threadIdx.x / 2 % 64) < left;
#pragma unroll
        for (int i = 0; i < LINES / 16; i += 2) copy_async<16>(tile + to + i * 2048, ahead(at, 16 * i, rows), i < panels && there);
        at += 16 * HALF_DEPTH;
    }
};

// Begins d += A B of 64 rows, 128 or 256 columns and 16 terms.
#define MULTIPLY_MATRICES(T, TYPE)                                                                                                        \
    __device__ __forceinline__ void multiply_matrices(float (&d)[64], u64 a, u64 b, T) {                                                  \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {" NAMES_64 \
                     "}, %64, %65, p, 1, 1, 0, 1;\n}"                                                                                     \
                     : SIXTY_FOUR(d, 0)                                                                                                   \
                     : "l"(a), "l"(b), "r"(1));                                                                                           \
    }                                                                                                                                     \
    __device__ __forceinline__ void multiply_matrices(float (&d)[128], u64 a, u64 b, T) {                                                 \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\nwgmma.mma_async.sync.aligned.m64n256k16.f32." TYPE "." TYPE              \
                     " {" NAMES_128 "}, %128, %129, p, 1, 1, 0, 1;\n}"                                                                    \
                     : SIXTY_FOUR(d, 0), SIXTY_FOUR(d, 64)                                                                                \
                     : "l"(a), "l"(b), "r"(1));                                                                                           \
    }
MULTIPLY_MATRICES(f16, "f16")
MULTIPLY_MATRICES(bf16, "bf16")

// Tiles of 128 rows and COLUMNS columns. With 128 columns two blocks share a multiprocessor, with 256 a block has it for itself.
template <class T, int COLUMNS>
struct Wgmma {
    static constexpr int ROWS = HOPPER_ROWS, COLS = COLUMNS, DEPTH = HALF_DEPTH, STAGES = COLS == 256 ? 4 : 3;
    static constexpr int A_BYTES = ROWS * 128, STAGE = A_BYTES + COLS * 128;
    // Rows of tiles in a band.
    static constexpr u32 TALL = COLS == 256 ? 16 : 8;
    // A warp's sums on their way out, with a gap so that they meet 32 banks.
    static constexpr int OUT_PITCH = COLS + 8;

    template <class A, class B, class Out>
    static __device__ __forceinline__ void run(A a, B b, Terms terms, u32 row, u32 col, const Out& out) {
        extern __shared__ __align__(1024) char room[];
        static_assert(ROWS * OUT_PITCH * 4 <= STAGES * STAGE);
        // Patterns of the swizzles begin at multiples of 1024 bytes, whatever stands before the room.
        char* shared = room + (-u32(__cvta_generic_to_shared(room)) & 1023);
        u32 base = u32(__cvta_generic_to_shared(shared));

        float sums[COLS / 2] = {};
        auto fetch = [&](int stage, int left) {
            a.fetch(shared + stage * STAGE, left);
            b.fetch(shared + stage * STAGE + A_BYTES, left);
        };
        // Begins the products of a tile.
        auto multiply = [&](int stage) {
            u32 from = base + stage * STAGE;
            u64 u = matrix_descriptor<128, 16, 1024>(from + warp_id() / 4 * 8192), v = matrix_descriptor<32, 2048, 256>(from + A_BYTES);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int step = 0; step < DEPTH / 16; step++) multiply_matrices(sums, u + step * (32 >> 4), v + step * (512 >> 4), T{});
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        };

        // Behind the barrier of tile t all have its numbers, and the products of tile t - 2 have ended in all warps, but maybe not those of t - 1. So the
        // stage that is filled next is that of t - 2, with tile t + STAGES - 2.
        constexpr int AHEAD = STAGES - 2;
        int tiles = (terms.count() + DEPTH - 1) / DEPTH, stage = 0, left = terms.count();
#pragma unroll 1
        for (int t = 0; t < AHEAD; t++) {
            if (t < tiles) fetch(t, left - t * DEPTH);
            asm volatile("cp.async.commit_group;" ::: "memory");
        }
#pragma unroll 1
        for (int t = 0; t < tiles; t++) {
            // What threads have copied is for the tensor cores to see.
            asm volatile("cp.async.wait_group %0;\nfence.proxy.async.shared::cta;" ::"n"(AHEAD - 1) : "memory");
            __syncthreads();
            multiply(stage);
            if (t + AHEAD < tiles) fetch(stage + AHEAD < STAGES ? stage + AHEAD : stage + AHEAD - STAGES, left - (t + AHEAD) * DEPTH);
            asm volatile("cp.async.commit_group;" ::: "memory");
            asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
            stage = stage + 1 < STAGES ? stage + 1 : 0;
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        asm volatile("cp.async.wait_all;" ::: "memory");
        __syncthreads();

        u32 lane = lane_id();
        f32* mine = (f32*)shared + warp_id() * 16 * OUT_PITCH;
        f32* to = mine + lane / 4 * OUT_PITCH + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < COLS / 8; j++)
#pragma unroll
            for (int h = 0; h < 2; h++) store_shared(to + 8 * h * OUT_PITCH + 8 * j, sums[4 * j + 2 * h], sums[4 * j + 2 * h + 1]);
        __syncwarp();
#pragma unroll 1
        for (u32 at = 0; at < COLS; at += 128) send_sums<16, 128, OUT_PITCH>(mine + at, row + warp_id() * 16, col + at, out);
    }
};
