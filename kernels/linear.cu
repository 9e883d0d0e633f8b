// y = epilogue(x W)   x [m, k], W [k, n] in panels -> y [m, n]
//
// Floor: 2 m n k FLOPs, or the bytes of x, W and y where there are few rows. Sums in registers: `lib/gemm_f32.cuh`, `lib/gemm_half.cuh`. Where tiles are
// too few, a launch sums parts of k, and `sum_parts` finishes.
#include "lib/gemm_f32.cuh"
#include "lib/gemm_half.cuh"

template <class Tile, class A, class B, class T>
__device__ __forceinline__ void linear(const T* x, const T* w, f32* parts, u32 k, u32 part, const Epilogue<T>& epilogue) {
    u32 m = epilogue.m, n = epilogue.n;
    TilePlace place(tiles_of(m, Tile::ROWS), tiles_of(n, Tile::COLS));
    u32 row = place.row * Tile::ROWS, col = place.col * Tile::COLS;
    Terms terms = terms_of(k, part);
    A a(x, k, row, m, terms);
    B b(w, k, col, n, terms);
    Tile::run(a, b, terms, row, col, Finish<T>{epilogue, parts});
}

#define LINEAR(T, SIZE, THREADS, BLOCKS, ...)                                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) linear_##SIZE##_##T(                                                    \
        const T* x, const T* w, const T* bias, const T* sample_bias, const T* residual, T* y, f32* parts, u32 m, u32 n, u32 k,            \
        u32 per_sample, u32 part, u32 has_bias, u32 has_sample_bias, u32 has_residual, u32 activation, f32 scale) {                       \
        Epilogue<T> e(bias, sample_bias, residual, y, m, n, per_sample, has_bias, has_sample_bias, has_residual, activation, scale);      \
        linear<__VA_ARGS__>(x, w, parts, k, part, e);                                                                                     \
    }
#define LINEAR_F32(SIZE, WARPS_M, WARPS_N, UNROLL, BLOCKS)                                                                                        \
    LINEAR(f32, SIZE, 32 * WARPS_M * WARPS_N, BLOCKS, Ffma<WARPS_M, WARPS_N, UNROLL>, Rows<SIZE, WARPS_M * WARPS_N>, Panels<SIZE, WARPS_M * WARPS_N>)
#define LINEAR_HALF(T, SIZE, BLOCKS) LINEAR(T, SIZE, HALF_THREADS, BLOCKS, Mma<T, SIZE>, HalfRows<T, SIZE>, HalfPanels<T, SIZE>)
LINEAR_F32(128, 4, 2, 16, 2)
LINEAR_F32(64, 2, 1, 2, 8)
LINEAR_HALF(f16, 128, 2)
LINEAR_HALF(f16, 64, 4)
LINEAR_HALF(bf16, 128, 2)
LINEAR_HALF(bf16, 64, 4)
