// What attention and its gradient on Hopper share: products by `wgmma`, and panels of heads in shared memory.
//
// Operands lie in panels of 64 columns, rows of 128 bytes with chunks of 16 bytes exchanged by the row's number.
#pragma once
#include "attention.cuh"
#include "boxes.cuh"
#include "wgmma.cuh"

constexpr u32 PANEL_ROW = 128;

// Begins s = A · Bᵀ of 16 columns, or s += if `adds`, with 64 rows of A and N of B in shared memory.
#define SCORE(T, TYPE, N, NAMES, SUMS, A, B, ADDS)                                                                                       \
    __device__ __forceinline__ void score(float (&d)[N / 2], u64 a, u64 b, u32 adds, T) {                                                \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #ADDS ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" \
                     NAMES "}, %" #A ", %" #B ", p, 1, 1, 0, 0;\n}"                                                                      \
                     : SUMS                                                                                                              \
                     : "l"(a), "l"(b), "r"(adds));                                                                                       \
    }
// Begins o += P · V of 16 rows of V, with P in registers.
#define WEIGH(T, TYPE, N, NAMES, SUMS, A0, A1, A2, A3, B, ADDS)                                                                          \
    __device__ __forceinline__ void weigh(float (&d)[N / 2], const u32 (&a)[4], u64 b, T) {                                              \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #ADDS ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" \
                     NAMES "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", p, 1, 1, 1;\n}"                                        \
                     : SUMS                                                                                                              \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));                                                      \
    }
// Begins s = Aᵀ · B of 16 rows of A and of B, or s += if `adds`, with 64 columns of A and N of B in shared memory.
#define CROSS(T, TYPE, N, NAMES, SUMS, A, B, ADDS)                                                                                       \
    __device__ __forceinline__ void cross(float (&d)[N / 2], u64 a, u64 b, u32 adds, T) {                                                \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #ADDS ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" \
                     NAMES "}, %" #A ", %" #B ", p, 1, 1, 1, 1;\n}"                                                                      \
                     : SUMS                                                                                                              \
                     : "l"(a), "l"(b), "r"(adds));                                                                                       \
    }
#define PRODUCTS(T, TYPE)                                                                                          \
    SCORE(T, TYPE, 64, NAMES_32, THIRTY_TWO(d, 0), 32, 33, 34)                                                     \
    SCORE(T, TYPE, 96, NAMES_48, THIRTY_TWO(d, 0) COMMA SIXTEEN(d, 32), 48, 49, 50)                                \
    SCORE(T, TYPE, 128, NAMES_64, SIXTY_FOUR(d, 0), 64, 65, 66)                                                    \
    SCORE(T, TYPE, 160, NAMES_80, SIXTY_FOUR(d, 0) COMMA SIXTEEN(d, 64), 80, 81, 82)                               \
    CROSS(T, TYPE, 32, NAMES_16, SIXTEEN(d, 0), 16, 17, 18)                                                        \
    CROSS(T, TYPE, 64, NAMES_32, THIRTY_TWO(d, 0), 32, 33, 34)                                                     \
    WEIGH(T, TYPE, 40, NAMES_20, SIXTEEN(d, 0) COMMA FOUR(d, 16), 20, 21, 22, 23, 24, 25)                          \
    WEIGH(T, TYPE, 64, NAMES_32, THIRTY_TWO(d, 0), 32, 33, 34, 35, 36, 37)                                         \
    WEIGH(T, TYPE, 72, NAMES_36, THIRTY_TWO(d, 0) COMMA FOUR(d, 32), 36, 37, 38, 39, 40, 41)                       \
    WEIGH(T, TYPE, 80, NAMES_40, THIRTY_TWO(d, 0) COMMA EIGHT(d, 32), 40, 41, 42, 43, 44, 45)                      \
    WEIGH(T, TYPE, 128, NAMES_64, SIXTY_FOUR(d, 0), 64, 65, 66, 67, 68, 69)                                        \
    WEIGH(T, TYPE, 160, NAMES_80, SIXTY_FOUR(d, 0) COMMA SIXTEEN(d, 64), 80, 81, 82, 83, 84, 85)                   \
    WEIGH(T, TYPE, 256, NAMES_128, SIXTY_FOUR(d, 0) COMMA SIXTY_FOUR(d, 64), 128, 129, 130, 131, 132, 133)
#define COMMA ,
PRODUCTS(f16, "f16")
PRODUCTS(bf16, "bf16")

// A ring of places in shared memory: which is next, and the parity of its phase.
template <u32 STAGES>
struct Ring {
    u32 stage = 0, parity = 0;

    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

// Which of a block's warpgroups this is, from one lane, so that descriptors that depend on it are known to be the same in a warp: `wgmma` takes them
// from uniform registers, and each would be moved there otherwise.
__device__ __forceinline__ u32 warpgroup_number() { return __shfl_sync(~0u, threadIdx.x / 128, 0); }

// Registers that a product has under way, or is to have, are not touched across this.
template <u32 N>
__device__ __forceinline__ void hold(float (&d)[N]) {
#pragma unroll
    for (u32 i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits for all groups of products but the last `N`, of which one has made `d`.
template <int N, u32 SIZE>
__device__ __forceinline__ void wait_products(float (&d)[SIZE]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
    hold(d);
}

// Where a chunk of 16 bytes of a panel lies.
__device__ __forceinline__ u32 chunk(u32 row, u32 c) { return row * PANEL_ROW + ((c ^ row % 8) << 4); }

// Brings rows `first`.. of a head as ROWS rows in panels, with zeros for rows and columns that there are not.
template <u32 ROWS, u32 PANELS>
__device__ __forceinline__ void bring(u32 to, const TensorMap& x, u32 head, u32 first, u32 sample, u32 barrier) {
#pragma unroll
    for (u32 p = 0; p < PANELS; p++) copy_box(to + p * ROWS * PANEL_ROW, x, 64 * p, head, first, sample, barrier);
}

// Writes a warp's 16 rows of sums, those of each row times its factor, through panels of ROWS rows in shared memory, where each warp has rows of its
// own. A thread has rows `group` and `group` + 8, of every 8 columns two. `row` is the warp's first in the block, `first` the block's, `end` behind the last there is.
template <class T, u32 N, u32 ROWS>
__device__ __forceinline__ void put_panels(Head<T> y, const float (&o)[N / 2], const float (&factor)[2], u32 place, u32 row, u32 first, u32 end) {
    u32 lane = threadIdx.x % 32, to[8];
#pragma unroll
    for (u32 c = 0; c < 8; c++) to[c] = place + chunk(row + lane / 4, c) + lane % 4 * 4;
#pragma unroll
    for (u32 h = 0; h < 2; h++) {
#pragma unroll
        for (u32 n = 0; n < N / 8; n++) {
            u32 both = pack<T>(o[4 * n + 2 * h] * factor[h], o[4 * n + 2 * h + 1] * factor[h]);
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(to[n % 8] + (n / 8 * ROWS + h * 8) * PANEL_ROW), "r"(both) : "memory");
        }
    }
    __syncwarp();
    u32 rows = min(end - min(end, first + row), 16), c = lane % 8;
    T* out = y.row(first + row + lane / 8) + 8 * c;
#pragma unroll 1
    for (u32 r = lane / 8; r < rows; r += 4) {
#pragma unroll
        for (u32 p = 0; p < N / 8; p += 8) {
            if (8 * (p + c) >= y.width) break;
            write_floats((float*)(out + 8 * p), read_floats<4>(place + p / 8 * ROWS * PANEL_ROW + chunk(row + r, c)));
        }
        out += 4 * y.stride;
    }
}
