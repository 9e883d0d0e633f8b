// Products in f16 and bf16: matrix instructions (m16n8k16), sums in f32.
//
// A block has 4 warps as 2 × 2, a warp a quarter of the tile: with tiles of 128 it reads 4 KiB of shared memory for 32 matrix instructions, which
// take longer. Numbers arrive by copies of 16 bytes, *chunks*, two tiles of 64 terms ahead.
//
// In shared memory chunks lie so that eight in a row, which a copy writes, and eight that are a matrix of `ldmatrix`, meet all banks, in one of two layouts:
// lines of 64 terms (`TermRuns`), or the lines of a term side by side (`LineRuns`), as they lie in memory; `ldmatrix` turns the latter.
//
// Where operands do not begin at 16 bytes or their rows are not a multiple of it (an image's 3 or 4 channels), numbers are gathered one by one.
#pragma once
#include "fragments.cuh"
#include "gemm.cuh"
#include "window.cuh"

constexpr int HALF_DEPTH = 64, HALF_THREADS = 128;

// [lines][64 terms], chunks of a line exchanged by the line's number.
struct TermRuns {
    static constexpr bool TURNED = false;

    // Where a lane's row of a fragment of A and of B begins: the 16 lines from `first` on, terms 0 to 15.
    static __device__ __forceinline__ u32 a_place(u32 lane, u32 first) { return (first + lane % 16) * 128 + ((lane / 16 ^ lane & 7) << 4); }
    static __device__ __forceinline__ u32 b_place(u32 lane, u32 first) {
        return (first + lane / 16 * 8 + lane % 8) * 128 + ((lane / 8 % 2 ^ lane & 7) << 4);
    }
    // The same 16 `step` terms and 16 `block` lines further.
    static __device__ __forceinline__ u32 at(u32 place, int step, int block) { return (place ^ step << 5) + block * 2048; }
};

// [lines / 16][64 terms][16 lines], as panels lie in memory. The 8 chunks of 4 terms are exchanged by the term's and the panel's number.
struct LineRuns {
    static constexpr bool TURNED = true;

    // Of 8 lines (`half` of 16) of a term, in panel `panel` of a tile.
    static __device__ __forceinline__ u32 chunk(u32 panel, u32 term, u32 half) {
        return panel * 2048 + term / 4 * 128 + ((term % 4 * 2 + half ^ (panel & 3) << 1 ^ term / 4 & 1) << 4);
    }
    static __device__ __forceinline__ u32 a_place(u32 lane, u32 first) { return chunk(first / 16, lane / 16 * 8 + lane % 8, lane / 8 % 2); }
    static __device__ __forceinline__ u32 b_place(u32 lane, u32 first) { return chunk(first / 16, lane % 16, lane / 16); }
    // `first` is 0 or as many lines as a warp has, at most 64 and a power of two: panel numbers add without carry below 4.
    static __device__ __forceinline__ u32 at(u32 place, int step, int block) { return (place ^ (block & 3) << 5) + block * 2048 + step * 512; }
};

// Eight numbers of one chunk, gathered.
template <class T, class F>
__device__ __forceinline__ void gather_chunk(char* to, F number) {
#pragma unroll 4
    for (int i = 0; i < 8; i++) ((T*)to)[i] = number(i);
}

// Lines of a matrix whose terms run in memory: rows of A, columns of a transposed B.
template <class T, int LINES, int THREADS = HALF_THREADS>
struct HalfRows {
    using Layout = TermRuns;
    // Lines that a block copies at a time.
    static constexpr int STEP = THREADS / 8;
    const T* at;
    u32 stride, to;
    int lines;
    bool wide;

    // Lines from `first` on, of `count`, each `stride` behind the last.
    __device__ __forceinline__ HalfRows(const T* x, u32 stride, u32 first, u32 count, Terms terms) : stride(stride) {
        u32 line = threadIdx.x / 8, chunk = threadIdx.x % 8;
        at = x + u64(first + line) * stride + terms.first + 8 * chunk;
        to = line * 128 + ((chunk ^ line & 7) << 4);
        lines = int(count) - int(first + line);
        wide = stride % 8 == 0 && is_aligned(x);
    }

    __device__ __forceinline__ void fetch(char* tile, int left) {
        int depth = left - int(threadIdx.x % 8 * 8);
        if (wide) {
#pragma unroll
            for (int i = 0; i < LINES; i += STEP) copy_async<16>(tile + to + i * 128, ahead(at, i, stride), i < lines && depth > 0);
        } else {
#pragma unroll 1
            for (int i = 0; i < LINES; i += STEP)
                gather_chunk<T>(tile + to + i * 128, [&](int e) { return i < lines && e < depth ? at[u64(i) * stride + e] : T{0}; });
        }
        at += HALF_DEPTH;
    }
};

// Lines of a matrix that lie side by side in memory: columns of B, rows of a transposed A.
template <class T, int LINES>
struct HalfColumns {
    using Layout = LineRuns;
    // Chunks of a term, and terms that a block copies at a time.
    static constexpr int CHUNKS = LINES / 8, STEP = HALF_THREADS / CHUNKS;
    const T* at;
    u32 stride, to;
    int lines;
    bool wide;

    // Lines from `first` on, of `count`; from one term to the next it is `stride`.
    __device__ __forceinline__ HalfColumns(const T* x, u32 stride, u32 first, u32 count, Terms terms) : stride(stride) {
        u32 chunk = threadIdx.x % CHUNKS, term = threadIdx.x / CHUNKS;
        at = x + u64(terms.first + term) * stride + first + 8 * chunk;
        to = LineRuns::chunk(chunk / 2, term, chunk % 2);
        lines = int(count) - int(first + 8 * chunk);
        wide = stride % 8 == 0 && is_aligned(x);
    }

    __device__ __forceinline__ void fetch(char* tile, int left) {
        int depth = left - int(threadIdx.x / CHUNKS);
        if (wide) {
#pragma unroll
            for (int i = 0; i < HALF_DEPTH; i += STEP) copy_async<16>(tile + to + i * 32, ahead(at, i, stride), lines > 0 && i < depth);
        } else {
#pragma unroll 1
            for (int i = 0; i < HALF_DEPTH; i += STEP)
                gather_chunk<T>(tile + to + i * 32, [&](int e) { return e < lines && i < depth ? at[u64(i) * stride + e] : T{0}; });
        }
        at = ahead(at, HALF_DEPTH, stride);
    }
};

// Columns of a weight in panels: a panel's 2 KiB of a tile are copied as they lie.
template <class T, int LINES>
struct HalfPanels {
    using Layout = LineRuns;
    const T* at;
    u32 rows, to;
    int panels;

    // Columns from `first` on, a multiple of 16, of `count`, of a weight whose panels have `rows`.
    __device__ __forceinline__ HalfPanels(const T* w, u32 rows, u32 first, u32 count, Terms terms) : rows(rows) {
        u32 term = threadIdx.x / 2, half = threadIdx.x % 2;
        at = w + (u64(first / 16) * rows + terms.first + term) * 16 + 8 * half;
        to = LineRuns::chunk(0, term, half);
        panels = int((count + 15) / 16) - int(first / 16);
    }

    __device__ __forceinline__ void fetch(char* tile, int left) {
        bool there = int(threadIdx.x / 2) < left;
#pragma unroll
        for (int i = 0; i < LINES / 16; i++) copy_async<16>(tile + LineRuns::at(to, 0, i), ahead(at, 16 * i, rows), i < panels && there);
        at += 16 * HALF_DEPTH;
    }
};

// Rows of a convolution: a line is an output pixel, terms are those of its window. A chunk is eight channels under one tap.
template <class T, int LINES, int THREADS = HALF_THREADS>
struct HalfPatches {
    using Layout = TermRuns;
    static constexpr int STEP = THREADS / 8;
    const T* x;
    Window w;
    const Corner* corners;
    Term term;
    u32 to;
    bool wide;

    __device__ __forceinline__ HalfPatches(const T* x, const Window& w, u32 first, u32 pixels, Terms terms)
        : x(x), w(w), term(w, terms.first + threadIdx.x % 8 * 8) {
        u32 line = threadIdx.x / 8, chunk = threadIdx.x % 8;
        corners = describe_lines<Corner, LINES, THREADS>([&](int i) { return Corner(w, first + i, pixels); }) + line;
        to = line * 128 + ((chunk ^ line & 7) << 4);
        wide = w.channels % 8 == 0 && is_aligned(x);
    }

    // The number of x under a term from a corner on; false if there is none.
    __device__ __forceinline__ bool number(const Corner& corner, const Term& term, u64& at) const {
        u32 pixel;
        bool there = w.pixel(corner.first, corner.y + int(term.ky), corner.x + int(term.kx), pixel);
        at = u64(pixel) * w.channels + term.c;
        return there;
    }

    __device__ __forceinline__ void fetch(char* tile, int left) {
        int depth = left - int(threadIdx.x % 8 * 8);
        if (wide) {
#pragma unroll
            for (int i = 0; i < LINES; i += STEP) {
                u64 at;
                bool there = number(corners[i], term, at);
                copy_async<16>(tile + to + i * 128, x + at, there && depth > 0);
            }
        } else {
#pragma unroll 1
            for (int i = 0; i < LINES; i += STEP) {
                Term own = term;
                gather_chunk<T>(tile + to + i * 128, [&](int e) {
                    u64 at;
                    bool there = number(corners[i], own, at);
                    own.advance(w, 1);
                    return there && e < depth ? x[at] : T{0};
                });
            }
        }
        term.advance(w, HALF_DEPTH);
    }
};

template <bool TURNED>
__device__ __forceinline__ void load_fragment(u32 (&to)[4], u32 at) {
    if constexpr (TURNED) load_matrices_transposed(to, at);
    else load_matrices(to, at);
}

// Tiles of SIZE rows and columns.
template <class T, int SIZE>
struct Mma {
    static constexpr int ROWS = SIZE, COLS = SIZE, WARP = SIZE / 2, STAGES = 3, TILE = SIZE * 128;
    static constexpr int DEPTH = HALF_DEPTH;
    // A warp's sums on their way out, with a gap so that they meet 32 banks.
    static constexpr int OUT_PITCH = WARP + 8;

    template <class A, class B, class Out>
    static __device__ __forceinline__ void run(A a, B b, Terms terms, u32 row, u32 col, const Out& out) {
        extern __shared__ __align__(128) char shared[];
        static_assert(4 * WARP * OUT_PITCH * 4 <= STAGES * 2 * TILE);
        using AL = typename A::Layout;
        using BL = typename B::Layout;
        u32 lane = lane_id(), warp_row = warp_id() / 2 * WARP, warp_col = warp_id() % 2 * WARP;
        u32 base = u32(__cvta_generic_to_shared(shared));
        u32 a_place = AL::a_place(lane, warp_row), b_place = BL::b_place(lane, warp_col);

        float sums[WARP / 16][WARP / 8][4] = {};
        auto fetch = [&](int stage, int left) {
            a.fetch(shared + stage * 2 * TILE, left);
            b.fetch(shared + stage * 2 * TILE + TILE, left);
        };
        auto multiply = [&](int stage) {
            u32 from = base + stage * 2 * TILE;
#pragma unroll
            for (int step = 0; step < DEPTH / 16; step++) {
                u32 u[WARP / 16][4], v[WARP / 16][4];
#pragma unroll
                for (int i = 0; i < WARP / 16; i++) {
                    load_fragment<AL::TURNED>(u[i], from + AL::at(a_place, step, i));
                    load_fragment<BL::TURNED>(v[i], from + TILE + BL::at(b_place, step, i));
                }
#pragma unroll
                for (int i = 0; i < WARP / 16; i++)
#pragma unroll
                    for (int j = 0; j < WARP / 8; j++) multiply_add<T>(sums[i][j], u[i], v[j / 2][j % 2 * 2], v[j / 2][j % 2 * 2 + 1]);
            }
        };
        pipeline<STAGES, DEPTH>(terms.count(), fetch, multiply);

        f32* mine = (f32*)shared + warp_id() * WARP * OUT_PITCH;
        f32* to = mine + lane / 4 * OUT_PITCH + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < WARP / 16; i++)
#pragma unroll
            for (int j = 0; j < WARP / 8; j++)
#pragma unroll
                for (int h = 0; h < 2; h++)
                    store_shared(to + (16 * i + 8 * h) * OUT_PITCH + 8 * j, sums[i][j][2 * h], sums[i][j][2 * h + 1]);
        __syncwarp();
        send_sums<WARP, WARP, OUT_PITCH>(mine, row + warp_row, col + warp_col, out);
    }
};
