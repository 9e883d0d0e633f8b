// y[b] = A[b] B[b]   a [B, m, k] or [B, k, m], b [B, k, n] or [B, n, k] -> y [B, m, n]
//
// Floor: 2 B m n k FLOPs, or the bytes where a side is small. Sums in registers: `lib/gemm_f32.cuh`, `lib/gemm_half.cuh`. Letters of an entry: how a and b lie, n as they are multiplied,
// t transposed.
#include "lib/gemm_f32.cuh"
#include "lib/gemm_half.cuh"

template <class Tile, class A, bool A_TURNED, class B, bool B_TURNED, class T>
__device__ __forceinline__ void matmul(const T* a, const T* b, T* y, f32* parts, u32 batches, u32 m, u32 n, u32 k, u32 part) {
    TilePlace place(tiles_of(m, Tile::ROWS), tiles_of(n, Tile::COLS));
    u32 row = place.row * Tile::ROWS, col = place.col * Tile::COLS;
    Terms terms = terms_of(k, part);
    A left(a + u64(place.batch) * m * k, A_TURNED ? m : k, row, m, terms);
    B right(b + u64(place.batch) * n * k, B_TURNED ? k : n, col, n, terms);
    u64 at = u64(place.batch) * m * n;
    Tile::run(left, right, terms, row, col, RowStore<T>(y + at, parts + at, u64(batches) * m * n, m, n));
}

#define MATMUL(T, NAME, SIZE, THREADS, BLOCKS, ...)                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) matmul_##NAME##_##SIZE##_##T(                                           \
        const T* a, const T* b, T* y, f32* parts, u32 batches, u32 m, u32 n, u32 k, u32 part) {                                           \
        matmul<__VA_ARGS__>(a, b, y, parts, batches, m, n, k, part);                                                                      \
    }
#define MATMUL_F32(SIZE, M, N, BLOCKS)                                                                                                    \
    MATMUL(f32, nn, SIZE, 32 * M * N, BLOCKS, Ffma<M, N>, Rows<SIZE, M * N>, false, Columns<SIZE, M * N>, false)                          \
    MATMUL(f32, nt, SIZE, 32 * M * N, BLOCKS, Ffma<M, N>, Rows<SIZE, M * N>, false, Rows<SIZE, M * N>, true)                              \
    MATMUL(f32, tn, SIZE, 32 * M * N, BLOCKS, Ffma<M, N>, Columns<SIZE, M * N>, true, Columns<SIZE, M * N>, false)                        \
    MATMUL(f32, tt, SIZE, 32 * M * N, BLOCKS, Ffma<M, N>, Columns<SIZE, M * N>, true, Rows<SIZE, M * N>, true)
#define MATMUL_HALF(T, SIZE, BLOCKS)                                                                                                      \
    MATMUL(T, nn, SIZE, HALF_THREADS, BLOCKS, Mma<T, SIZE>, HalfRows<T, SIZE>, false, HalfColumns<T, SIZE>, false)                        \
    MATMUL(T, nt, SIZE, HALF_THREADS, BLOCKS, Mma<T, SIZE>, HalfRows<T, SIZE>, false, HalfRows<T, SIZE>, true)                            \
    MATMUL(T, tn, SIZE, HALF_THREADS, BLOCKS, Mma<T, SIZE>, HalfColumns<T, SIZE>, true, HalfColumns<T, SIZE>, false)                      \
    MATMUL(T, tt, SIZE, HALF_THREADS, BLOCKS, Mma<T, SIZE>, HalfColumns<T, SIZE>, true, HalfRows<T, SIZE>, true)
MATMUL_F32(128, 4, 2, 2)
MATMUL_F32(64, 2, 1, 8)
MATMUL_HALF(f16, 64, 4)
MATMUL_HALF(bf16, 64, 4)
