// y = epilogue(x * W), an implicit matrix product   x [B, H, W, C], W [taps * C, n] in panels -> y [B, H', W', n]
//
// Floor: 2 m n k FLOPs with m pixels of the output and k = taps * C. Patches of x are gathered on their way to shared memory, where they lie as rows
// of a matrix; from there on it is a `linear`, as is a 1×1 convolution from the start.
#include "lib/gemm_f32.cuh"
#include "lib/gemm_half.cuh"

template <class Tile, class A, class B, class T>
__device__ __forceinline__ void conv2d(const T* x, const Window& window, const T* w, f32* parts, u32 k, u32 part, const Epilogue<T>& epilogue) {
    u32 m = epilogue.m, n = epilogue.n;
    TilePlace place(tiles_of(m, Tile::ROWS), tiles_of(n, Tile::COLS));
    u32 row = place.row * Tile::ROWS, col = place.col * Tile::COLS;
    Terms terms = terms_of(k, part);
    A a(x, window, row, m, terms);
    B b(w, k, col, n, terms);
    Tile::run(a, b, terms, row, col, Finish<T>{epilogue, parts});
}

#define CONV2D(T, SIZE, THREADS, BLOCKS, ...)                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) conv2d_##SIZE##_##T(                                         \
        const T* x, const T* w, const T* bias, const T* sample, const T* residual, T* y, f32* parts, WINDOW_PARAMETERS, u32 m, \
        u32 n, u32 k, u32 per_sample, u32 part, EPILOGUE_SCALARS) {                                                            \
        Epilogue<T> e = EPILOGUE(T);                                                                                           \
        conv2d<__VA_ARGS__>(x, Window{WINDOW_ARGUMENTS}, w, parts, k, part, e);                                                \
    }
#define CONV2D_F32(SIZE, WARPS_M, WARPS_N, UNROLL, BLOCKS)                                                                                        \
    CONV2D(f32, SIZE, 32 * WARPS_M * WARPS_N, BLOCKS, Ffma<WARPS_M, WARPS_N, UNROLL>, Patches<SIZE, WARPS_M * WARPS_N>,                           \
           Panels<SIZE, WARPS_M * WARPS_N>)
#define CONV2D_HALF(T, SIZE, BLOCKS) CONV2D(T, SIZE, HALF_THREADS, BLOCKS, Mma<T, SIZE>, HalfPatches<T, SIZE>, HalfPanels<T, SIZE>)
CONV2D_F32(128, 4, 2, 16, 2)
CONV2D_F32(64, 2, 1, 2, 8)
CONV2D_HALF(f16, 128, 2)
CONV2D_HALF(f16, 64, 4)
CONV2D_HALF(bf16, 128, 2)
CONV2D_HALF(bf16, 64, 4)
