// dW = patches(x)ᵀ dy   x [B, H, W, C], dy [B, H', W', n] -> dW [taps * C, n] in panels.
//
// Floor: 2 · pixels · terms · n FLOPs. `lib/gemm_f32.cuh`; k runs over pixels. dW has few tiles and many pixels: a launch sums parts of them,
// and `sum_parts` adds those up in order, so that the sum is the same every time.
#include "lib/gemm_f32.cuh"

template <int WARPS_M, int WARPS_N, int UNROLL, class A>
__device__ __forceinline__ void weight_grad(A source, const f32* dy, f32* dw, f32* parts, u32 m, u32 n, u32 k, u32 part) {
    using Tile = Ffma<WARPS_M, WARPS_N, UNROLL>;
    TilePlace place(tiles_of(m, Tile::ROWS), tiles_of(n, Tile::COLS));
    u32 row = place.row * Tile::ROWS, col = place.col * Tile::COLS;
    Terms terms = terms_of(k, part);
    Columns<Tile::COLS, Tile::WARPS> b(dy, n, col, n, terms);
    f32* to = gridDim.y == 1 ? dw : parts + u64(blockIdx.y) * m * (tiles_of(n, 16) * 16);
    Tile::run(source(row, terms), b, terms, row, col, PanelStore{to, m, n, m});
}

#define LINEAR_WEIGHT_GRAD(SIZE, WARPS_M, WARPS_N, UNROLL, BLOCKS)                                                                        \
    extern "C" __global__ void __launch_bounds__(32 * WARPS_M * WARPS_N, BLOCKS) linear_weight_grad_##SIZE##_f32(                         \
        const f32* x, const f32* dy, f32* dw, f32* parts, u32 m, u32 n, u32 k, u32 part) {                                                \
        auto columns = [=](u32 row, Terms terms) { return Columns<SIZE, WARPS_M * WARPS_N>(x, m, row, m, terms); };                       \
        weight_grad<WARPS_M, WARPS_N, UNROLL>(columns, dy, dw, parts, m, n, k, part);                                                     \
    }
#define CONV2D_WEIGHT_GRAD(SIZE, WARPS_M, WARPS_N, UNROLL, BLOCKS)                                                                        \
    extern "C" __global__ void __launch_bounds__(32 * WARPS_M * WARPS_N, BLOCKS) conv2d_weight_grad_##SIZE##_f32(                         \
        const f32* x, const f32* dy, f32* dw, f32* parts, WINDOW_PARAMETERS, u32 m, u32 n, u32 k, u32 part) {                             \
        Window window{WINDOW_ARGUMENTS};                                                                                                  \
        auto patches = [=](u32 row, Terms terms) { return PatchColumns<SIZE, WARPS_M * WARPS_N>(x, window, row, terms); };                \
        weight_grad<WARPS_M, WARPS_N, UNROLL>(patches, dy, dw, parts, m, n, k, part);                                                     \
    }
LINEAR_WEIGHT_GRAD(128, 4, 2, 16, 2)
LINEAR_WEIGHT_GRAD(64, 2, 1, 2, 8)
CONV2D_WEIGHT_GRAD(128, 4, 2, 16, 2)
CONV2D_WEIGHT_GRAD(64, 2, 1, 2, 8)
