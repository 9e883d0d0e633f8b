// y = epilogue(x * W), an implicit matrix product   x [B, H, W, C], W [taps * C, n] in panels -> y [B, H', W', n]
//
// Floor: 2 m n k FLOPs with m pixels of the output and k = taps * C. Patches of x are gathered on their way to shared memory, where they lie
// as rows of a matrix; f32: `lib/gemm_f32.cuh`. Where tiles are too few, a launch sums parts of k, and `sum_parts` finishes. A 1×1
// convolution is a `linear`.
#include "lib/gemm_f32.cuh"

template <int WARPS_M, int WARPS_N>
__device__ __forceinline__ void conv2d(const f32* x, const Window& window, const f32* w, f32* parts, u32 k, u32 part,
                                       const Epilogue<f32>& epilogue) {
    using Tile = Ffma<WARPS_M, WARPS_N>;
    u32 m = epilogue.m, n = epilogue.n;
    TilePlace place(tiles_of(m, Tile::ROWS), tiles_of(n, Tile::COLS));
    u32 row = place.row * Tile::ROWS, col = place.col * Tile::COLS;
    Terms terms = terms_of(k, part);
    Patches<Tile::ROWS, Tile::WARPS> a(x, window, row, m, terms);
    Panels<Tile::COLS, Tile::WARPS> b(w, k, col, n, terms);
    Tile::run(a, b, terms.tiles(DEPTH), row, col, Finish<f32>{epilogue, parts});
}

#define CONV2D_F32(SIZE, WARPS_M, WARPS_N, BLOCKS)                                                                                        \
    extern "C" __global__ void __launch_bounds__(32 * WARPS_M * WARPS_N, BLOCKS) conv2d_##SIZE##_f32(                                     \
        const f32* x, const f32* w, const f32* bias, const f32* sample_bias, const f32* residual, f32* y, f32* parts, WINDOW_PARAMETERS, \
        u32 m, u32 n, u32 k, u32 per_sample, u32 part, u32 has_bias, u32 has_sample_bias, u32 has_residual, u32 activation, f32 scale) {  \
        Epilogue<f32> e(bias, sample_bias, residual, y, m, n, per_sample, has_bias, has_sample_bias, has_residual, activation, scale);    \
        conv2d<WARPS_M, WARPS_N>(x, Window{WINDOW_ARGUMENTS}, w, parts, k, part, e);                                                      \
    }
CONV2D_F32(128, 4, 2, 2)
CONV2D_F32(64, 2, 1, 8)
