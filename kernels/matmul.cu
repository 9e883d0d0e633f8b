// y[b] = A[b] B[b]   a [B, m, k] or [B, k, m], b [B, k, n] or [B, n, k] -> y [B, m, n]
//
// Floor: 2 B m n k FLOPs, or the bytes where k or n is small. f32: `lib/gemm_f32.cuh`. Letters of an entry: how a and b lie, n as they are multiplied,
// t transposed.
#include "lib/gemm_f32.cuh"

// Lines of an operand whose k runs in memory, or whose lines do.
template <bool K_RUNS, int LINES, int WARPS>
struct Operand : Rows<LINES, WARPS> {
    __device__ __forceinline__ Operand(const f32* x, u32 first, u32 count, u32 k, Terms terms) : Rows<LINES, WARPS>(x, k, first, count, terms) {}
};

template <int LINES, int WARPS>
struct Operand<false, LINES, WARPS> : Columns<LINES, WARPS> {
    __device__ __forceinline__ Operand(const f32* x, u32 first, u32 count, u32, Terms terms)
        : Columns<LINES, WARPS>(x, count, first, count, terms) {}
};

template <bool A_TURNED, bool B_TURNED, int WARPS_M, int WARPS_N>
__device__ __forceinline__ void matmul(const f32* a, const f32* b, f32* y, f32* parts, u32 batches, u32 m, u32 n, u32 k, u32 part) {
    using Tile = Ffma<WARPS_M, WARPS_N>;
    TilePlace place(tiles_of(m, Tile::ROWS), tiles_of(n, Tile::COLS));
    u32 row = place.row * Tile::ROWS, col = place.col * Tile::COLS;
    Terms terms = terms_of(k, part);
    Operand<!A_TURNED, Tile::ROWS, Tile::WARPS> left(a + u64(place.batch) * m * k, row, m, k, terms);
    Operand<B_TURNED, Tile::COLS, Tile::WARPS> right(b + u64(place.batch) * n * k, col, n, k, terms);
    u64 at = u64(place.batch) * m * n;
    Tile::run(left, right, terms.tiles(DEPTH), row, col, RowStore<f32>{y + at, parts + at, u64(batches) * m * n, m, n});
}

#define MATMUL(NAME, A_TURNED, B_TURNED, SIZE, WARPS_M, WARPS_N, BLOCKS)                                                                  \
    extern "C" __global__ void __launch_bounds__(32 * WARPS_M * WARPS_N, BLOCKS) matmul_##NAME##_##SIZE##_f32(                            \
        const f32* a, const f32* b, f32* y, f32* parts, u32 batches, u32 m, u32 n, u32 k, u32 part) {                                     \
        matmul<A_TURNED, B_TURNED, WARPS_M, WARPS_N>(a, b, y, parts, batches, m, n, k, part);                                             \
    }
#define SIZES(NAME, A_TURNED, B_TURNED) MATMUL(NAME, A_TURNED, B_TURNED, 128, 4, 2, 2) MATMUL(NAME, A_TURNED, B_TURNED, 64, 2, 1, 8)
SIZES(nn, false, false)
SIZES(nt, false, true)
SIZES(tn, true, false)
SIZES(tt, true, true)
