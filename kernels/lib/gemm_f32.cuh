// Products in f32: fused multiply-adds on tiles of registers.
//
// A thread has 8 × 8 sums and reads 4 × 16 bytes of shared memory for 64 multiply-adds, a warp 32 × 64, a block what its warps have. Lanes are
// 4 × 8 and placed so that a quarter of a warp, which shared memory serves at a time, reads 2 places of A and 4 of B. Both operands lie in
// shared memory as [DEPTH][lines]: lines are rows of A, columns of B.
//
// All but panels are copied number by number, 4 bytes a lane: a tile of 128 × 128 × 16 takes 16 such copies a thread beside 1024 multiply-adds,
// so that nothing is won with wider ones; neighbouring lanes still read whole sectors, operands may begin anywhere and have any size, a
// window's border is a predicate, and what runs along k in memory is turned on its way.
#pragma once
#include "gemm.cuh"
#include "window.cuh"

constexpr int DEPTH = 16;

// Lines of a matrix whose k runs in memory: rows of A, columns of a transposed B. A warp copies 4 lines of 8 numbers at a time, whole sectors; in shared
// memory, where lines lie side by side, they meet 32 banks.
template <int LINES, int WARPS>
struct Rows {
    static constexpr int PITCH = LINES + 4, STEP = 4 * WARPS;
    const f32* at;
    u32 stride, to;
    int lines;

    // Lines from `first` on, of `count`, each `stride` behind the last.
    __device__ __forceinline__ Rows(const f32* x, u32 stride, u32 first, u32 count, Terms terms) : stride(stride) {
        u32 line = 4 * warp_id() + lane_id() / 8, k = lane_id() % 8;
        at = x + u64(first + line) * stride + terms.first + k;
        to = k * PITCH + line;
        lines = int(count) - int(first + line);
    }

    __device__ __forceinline__ void fetch(f32* tile, int left) {
        int depth = left - int(lane_id() % 8);
        // Few at a time: registers are short.
#pragma unroll 2
        for (int i = 0; i < LINES; i += STEP) {
            const f32* from = ahead(at, i, stride);
            copy_async<4>(tile + to + i, from, i < lines && depth > 0);
            copy_async<4>(tile + to + i + 8 * PITCH, from + 8, i < lines && depth > 8);
        }
        at += DEPTH;
    }
};

// Lines of a matrix that lie side by side in memory: columns of B, rows of a transposed A.
template <int LINES, int WARPS>
struct Columns {
    static constexpr int PITCH = LINES;
    const f32* at;
    u32 stride, to;
    int lines;

    // Lines from `first` on, of `count`; from one k to the next it is `stride`.
    __device__ __forceinline__ Columns(const f32* x, u32 stride, u32 first, u32 count, Terms terms) : stride(stride) {
        u32 line = lane_id(), k = warp_id();
        at = x + u64(terms.first + k) * stride + first + line;
        to = k * PITCH + line;
        lines = int(count) - int(first + line);
    }

    __device__ __forceinline__ void fetch(f32* tile, int left) {
        int depth = left - int(warp_id());
#pragma unroll
        for (int j = 0; j < DEPTH; j += WARPS) {
#pragma unroll
            for (int i = 0; i < LINES; i += 32) copy_async<4>(tile + to + j * PITCH + i, at + i, i < lines && j < depth);
            at = ahead(at, WARPS, stride);
        }
    }
};

// Columns of a weight in panels: 16 bytes a lane, a panel's 1 KiB without a gap.
template <int LINES, int WARPS>
struct Panels {
    // Two rows of 16 columns meet 32 banks.
    static constexpr int PITCH = LINES + 16, STEP = WARPS / 2;
    const f32* at;
    u32 rows, to;
    int panels;

    // Columns from `first` on, a multiple of 16, of `count`, of a weight whose panels have `rows`; w is the first of the rows in use.
    __device__ __forceinline__ Panels(const f32* w, u32 rows, u32 first, u32 count, Terms terms) : rows(rows) {
        u32 panel = threadIdx.x / 64, k = threadIdx.x % 64 / 4, col = threadIdx.x % 4 * 4;
        at = w + (u64(first / 16 + panel) * rows + terms.first + k) * 16 + col;
        to = k * PITCH + 16 * panel + col;
        panels = int((count + 15) / 16) - int(first / 16 + panel);
    }

    // Which of a tile's terms this thread copies.
    static __device__ __forceinline__ u32 term() { return threadIdx.x % 64 / 4; }

    __device__ __forceinline__ void fetch(f32* tile, int left) {
        bool there = int(term()) < left;
#pragma unroll
        for (int i = 0; i < LINES / 16; i += STEP) copy_async<16>(tile + to + 16 * i, ahead(at, 16 * i, rows), i < panels && there);
        at += 16 * DEPTH;
    }
};

// Rows of a convolution: line m is an output pixel, k runs over the terms of its window. As `Rows`, 4 lines of 8 terms a warp.
template <int LINES, int WARPS>
struct Patches {
    static constexpr int PITCH = LINES + 4, STEP = 4 * WARPS;
    const f32* x;
    Window w;
    const Corner* corners;
    Term term;
    u32 to;

    __device__ __forceinline__ Patches(const f32* x, const Window& w, u32 first, u32 pixels, Terms terms)
        : x(x), w(w), term(w, terms.first + lane_id() % 8) {
        u32 line = 4 * warp_id() + lane_id() / 8, k = lane_id() % 8;
        corners = describe_lines<Corner, LINES, 32 * WARPS>([&](int i) { return Corner(w, first + i, pixels); }) + line;
        to = k * PITCH + line;
    }

    __device__ __forceinline__ void fetch(f32* tile, int left) {
        int depth = left - int(lane_id() % 8);
#pragma unroll
        for (int k = 0; k < DEPTH; k += 8) {
#pragma unroll
            for (int i = 0; i < LINES; i += STEP) {
                Corner corner = corners[i];
                u32 pixel;
                bool there = w.pixel(corner.first, corner.y + int(term.ky), corner.x + int(term.kx), pixel);
                copy_async<4>(tile + to + k * PITCH + i, x + (u64(pixel) * w.channels + term.c), there && k < depth);
            }
            term.advance(w, 8);
        }
    }
};

// The same turned: line m is a term, k runs over output pixels. As `Columns`, 32 lines a warp.
template <int LINES, int WARPS>
struct PatchColumns {
    static constexpr int PITCH = LINES;
    const f32* x;
    Window w;
    const Tap* taps;
    Pixel pixel;
    u32 to;

    __device__ __forceinline__ PatchColumns(const f32* x, const Window& w, u32 first, Terms terms)
        : x(x), w(w), pixel(w, terms.first + warp_id()) {
        taps = describe_lines<Tap, LINES, 32 * WARPS>([&](int i) { return Tap(w, Term(w, first + i)); }) + lane_id();
        to = warp_id() * PITCH + lane_id();
    }

    __device__ __forceinline__ void fetch(f32* tile, int left) {
        int depth = left - int(warp_id());
#pragma unroll 1
        for (int k = 0; k < DEPTH; k += WARPS) {
            u32 image = pixel.image * w.height * w.width;
            int top = int(pixel.y * w.stride), left = int(pixel.x * w.stride);
#pragma unroll
            for (int i = 0; i < LINES; i += 32) {
                Tap tap = taps[i];
                u32 number;
                bool there = w.pixel(image, top + tap.y, left + tap.x, number);
                copy_async<4>(tile + to + k * PITCH + i, x + (u64(number) * w.channels + tap.c), there && k < depth);
            }
            pixel.advance(w, WARPS);
        }
    }
};

// Tiles of `32 WARPS_M` rows and `64 WARPS_N` columns. UNROLL terms are written out, all 16 where it pays: at 4 and 8, ptxas spills.
template <int WARPS_M, int WARPS_N, int UNROLL = 2>
struct Ffma {
    static constexpr int DEPTH = 16;
    static constexpr int WARPS = WARPS_M * WARPS_N, ROWS = 32 * WARPS_M, COLS = 64 * WARPS_N, STAGES = 2;
    // A warp's 16 rows of sums on their way out, with a gap so that they meet 32 banks.
    static constexpr int OUT_PITCH = 68, OUT = 16 * OUT_PITCH;

    template <class A, class B, class Out>
    static __device__ __forceinline__ void run(A a, B b, Terms terms, u32 row, u32 col, const Out& out) {
        constexpr int A_TILE = DEPTH * A::PITCH, STAGE = A_TILE + DEPTH * B::PITCH;
        constexpr int BUFFERS = STAGES * STAGE, FLOATS = BUFFERS > WARPS * OUT ? BUFFERS : WARPS * OUT;
        __shared__ __align__(16) f32 shared[FLOATS];

        u32 lane = lane_id(), warp_row = warp_id() / WARPS_N * 32, warp_col = warp_id() % WARPS_N * 64;
        u32 lane_row = (lane >> 3 & 2) | (lane & 1), lane_col = lane >> 1 & 7;
        const f32* a_from = shared + warp_row + 4 * lane_row;
        const f32* b_from = shared + A_TILE + warp_col + 4 * lane_col;

        float sums[8][8] = {};
        auto fetch = [&](int stage, int left) {
            a.fetch(shared + stage * STAGE, left);
            b.fetch(shared + stage * STAGE + A_TILE, left);
        };
        auto multiply = [&](int stage) {
#pragma unroll UNROLL
            for (int k = 0; k < DEPTH; k++) {
                float u[8], v[8];
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    load_shared(u + 4 * h, a_from + stage * STAGE + k * A::PITCH + 16 * h);
                    load_shared(v + 4 * h, b_from + stage * STAGE + k * B::PITCH + 32 * h);
                }
#pragma unroll
                for (int i = 0; i < 8; i++)
#pragma unroll
                    for (int j = 0; j < 8; j++) sums[i][j] += u[i] * v[j];
            }
        };
        pipeline<STAGES, DEPTH>(terms.count(), fetch, multiply);

        // Through shared memory, so that a warp stores whole rows, and the code of the epilogue is there once.
        f32* mine = shared + warp_id() * OUT;
#pragma unroll 1
        for (int half = 0; half < 2; half++) {
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    f32* to = mine + (4 * lane_row + i) * OUT_PITCH + 32 * j + 4 * lane_col;
                    auto pick = [&](int e) { return half ? sums[4 + i][4 * j + e] : sums[i][4 * j + e]; };
                    store_shared(to, pick(0), pick(1), pick(2), pick(3));
                }
            __syncwarp();
            send_sums<16, 64, OUT_PITCH>(mine, row + warp_row + 16 * half, col + warp_col, out);
            __syncwarp();
        }
    }
};
