// y = epilogue(x * W) on Hopper, an implicit matrix product   x [B, H, W, C], W [taps * C, n] in panels -> y [B, H', W', n]
//
// Floor: 2 m n k FLOPs with m pixels of the output and k = taps * C, as for `linear`; x comes as patches, see `conv2d.cu` of sm_80.
#include "lib/gemm_hopper.cuh"

template <class Tile, class A, class B, class T>
__device__ __forceinline__ void conv2d(const T* x, const Window& window, const T* w, f32* parts, u32 k, u32 part, const Epilogue<T>& epilogue) {
    u32 m = epilogue.m, n = epilogue.n;
    TilePlace place(tiles_of(m, Tile::ROWS), tiles_of(n, Tile::COLS), Tile::TALL);
    u32 row = place.row * Tile::ROWS, col = place.col * Tile::COLS;
    Terms terms = terms_of(k, part);
    A a(x, window, row, m, terms);
    B b(w, k, col, n, terms);
    Tile::run(a, b, terms, row, col, Finish<T>{epilogue, parts});
}

#define CONV2D(T, COLS, BLOCKS)                                                                                                           \
    extern "C" __global__ void __launch_bounds__(HOPPER_THREADS, BLOCKS) conv2d_##COLS##_##T(                                             \
        const T* x, const T* w, const T* bias, const T* sample_bias, const T* residual, T* y, f32* parts, WINDOW_PARAMETERS, u32 m,       \
        u32 n, u32 k, u32 per_sample, u32 part, u32 has_bias, u32 has_sample_bias, u32 has_residual, u32 activation, f32 scale) {         \
        Epilogue<T> e(bias, sample_bias, residual, y, m, n, per_sample, has_bias, has_sample_bias, has_residual, activation, scale);      \
        conv2d<Wgmma<T, COLS>, HalfPatches<T, HOPPER_ROWS, HOPPER_THREADS>, HopperPanels<T, COLS>>(x, Window{WINDOW_ARGUMENTS}, w, parts, \
                                                                                                   k, part, e);                           \
    }
CONV2D(f16, 256, 1)
CONV2D(f16, 128, 2)
CONV2D(bf16, 256, 1)
CONV2D(bf16, 128, 2)
