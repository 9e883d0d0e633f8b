// y = epilogue(x W) on Hopper   x [m, k], W [k, n] in panels -> y [m, n]
//
// Floor: 2 m n k FLOPs, by the tensor cores that only `wgmma` keeps busy; `lib/gemm_hopper.cuh`. For sizes that give every multiprocessor a tile; what is
// smaller has the kernels of sm_80, and so has f32.
#include "lib/gemm_hopper.cuh"

template <class Tile, class A, class B, class T>
__device__ __forceinline__ void linear(const T* x, const T* w, f32* parts, u32 k, u32 part, const Epilogue<T>& epilogue) {
    u32 m = epilogue.m, n = epilogue.n;
    TilePlace place(tiles_of(m, Tile::ROWS), tiles_of(n, Tile::COLS), Tile::TALL);
    u32 row = place.row * Tile::ROWS, col = place.col * Tile::COLS;
    Terms terms = terms_of(k, part);
    A a(x, k, row, m, terms);
    B b(w, k, col, n, terms);
    Tile::run(a, b, terms, row, col, Finish<T>{epilogue, parts});
}

#define LINEAR(T, COLS, BLOCKS)                                                                                                           \
    extern "C" __global__ void __launch_bounds__(HOPPER_THREADS, BLOCKS) linear_##COLS##_##T(                                             \
        const T* x, const T* w, const T* bias, const T* sample_bias, const T* residual, T* y, f32* parts, u32 m, u32 n, u32 k,            \
        u32 per_sample, u32 part, u32 has_bias, u32 has_sample_bias, u32 has_residual, u32 activation, f32 scale) {                       \
        Epilogue<T> e(bias, sample_bias, residual, y, m, n, per_sample, has_bias, has_sample_bias, has_residual, activation, scale);      \
        linear<Wgmma<T, COLS>, HalfRows<T, HOPPER_ROWS, HOPPER_THREADS>, HopperPanels<T, COLS>>(x, w, parts, k, part, e);                 \
    }
LINEAR(f16, 256, 1)
LINEAR(f16, 128, 2)
LINEAR(bf16, 256, 1)
LINEAR(bf16, 128, 2)
