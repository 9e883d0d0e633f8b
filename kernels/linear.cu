// y = epilogue(x W)   x [m, k], W [k, n] in panels -> y [m, n]
//
// Floor: 2 m n k FLOPs, or the bytes of x, W and y where there are few rows. f32: `lib/gemm_f32.cuh`. Where tiles are too few, a launch
// sums parts of k, and `sum_parts` finishes.
#include "lib/gemm_f32.cuh"

template <int WARPS_M, int WARPS_N>
__device__ __forceinline__ void linear(const f32* x, const f32* w, f32* parts, u32 k, u32 part, const Epilogue<f32>& epilogue) {
    using Tile = Ffma<WARPS_M, WARPS_N>;
    u32 m = epilogue.m, n = epilogue.n;
    TilePlace place(tiles_of(m, Tile::ROWS), tiles_of(n, Tile::COLS));
    u32 row = place.row * Tile::ROWS, col = place.col * Tile::COLS;
    Terms terms = terms_of(k, part);
    Rows<Tile::ROWS, Tile::WARPS> a(x, k, row, m, terms);
    Panels<Tile::COLS, Tile::WARPS> b(w, k, col, n, terms);
    Tile::run(a, b, terms.tiles(DEPTH), row, col, Finish<f32>{epilogue, parts});
}

#define LINEAR_F32(SIZE, WARPS_M, WARPS_N, BLOCKS)                                                                                        \
    extern "C" __global__ void __launch_bounds__(32 * WARPS_M * WARPS_N, BLOCKS) linear_##SIZE##_f32(                                     \
        const f32* x, const f32* w, const f32* bias, const f32* sample_bias, const f32* residual, f32* y, f32* parts, u32 m, u32 n, u32 k, \
        u32 per_sample, u32 part, u32 has_bias, u32 has_sample_bias, u32 has_residual, u32 activation, f32 scale) {                       \
        Epilogue<f32> e(bias, sample_bias, residual, y, m, n, per_sample, has_bias, has_sample_bias, has_residual, activation, scale);    \
        linear<WARPS_M, WARPS_N>(x, w, parts, k, part, e);                                                                                \
    }
LINEAR_F32(128, 4, 2, 2)
LINEAR_F32(64, 2, 1, 8)
