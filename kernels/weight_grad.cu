// dW = patches(x)ᵀ dy   x [B, H, W, C], dy [B, H', W', n] -> dW [taps * C, n] in panels, f32 for all types of x and dy.
//
// Floor: 2 · pixels · terms · n FLOPs. `lib/gemm_f32.cuh`, `lib/gemm_half.cuh`; k runs over pixels. dW has few tiles and many pixels: a launch sums
// parts of them, and `sum_parts` adds those up in order, so that the sum is the same every time.
#include "lib/gemm_f32.cuh"
#include "lib/gemm_half.cuh"

// A tile, and what its lines are made of.
template <int WARPS_M, int WARPS_N, int UNROLL>
struct Full {
    using Tile = Ffma<WARPS_M, WARPS_N, UNROLL>;
    using X = Columns<Tile::ROWS, Tile::WARPS>;
    using Dy = Columns<Tile::COLS, Tile::WARPS>;
    using Patches = PatchColumns<Tile::ROWS, Tile::WARPS>;
};

template <class T, int SIZE>
struct Half {
    using Tile = Mma<T, SIZE>;
    using X = HalfColumns<T, SIZE>;
    using Dy = HalfColumns<T, SIZE>;
    using Patches = HalfPatchColumns<T, SIZE>;
};

template <class Kind, class A, class T>
__device__ __forceinline__ void weight_grad(A source, const T* dy, f32* dw, f32* parts, u32 m, u32 n, u32 k, u32 part) {
    using Tile = typename Kind::Tile;
    TilePlace place(tiles_of(m, Tile::ROWS), tiles_of(n, Tile::COLS));
    u32 row = place.row * Tile::ROWS, col = place.col * Tile::COLS;
    Terms terms = terms_of(k, part);
    typename Kind::Dy b(dy, n, col, n, terms);
    f32* to = gridDim.y == 1 ? dw : parts + u64(blockIdx.y) * m * (tiles_of(n, 16) * 16);
    Tile::run(source(row, terms), b, terms, row, col, PanelStore(to, m, n, m));
}

#define WEIGHT_GRAD(T, SIZE, THREADS, BLOCKS, ...)                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) linear_weight_grad_##SIZE##_##T(                                        \
        const T* x, const T* dy, f32* dw, f32* parts, u32 m, u32 n, u32 k, u32 part) {                                                    \
        using Kind = __VA_ARGS__;                                                                                                         \
        auto columns = [=](u32 row, Terms terms) { return Kind::X(x, m, row, m, terms); };                                                \
        weight_grad<Kind>(columns, dy, dw, parts, m, n, k, part);                                                                         \
    }                                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) conv2d_weight_grad_##SIZE##_##T(                                        \
        const T* x, const T* dy, f32* dw, f32* parts, WINDOW_PARAMETERS, u32 m, u32 n, u32 k, u32 part) {                                 \
        using Kind = __VA_ARGS__;                                                                                                         \
        Window window{WINDOW_ARGUMENTS};                                                                                                  \
        auto patches = [=](u32 row, Terms terms) { return Kind::Patches(x, window, row, terms); };                                        \
        weight_grad<Kind>(patches, dy, dw, parts, m, n, k, part);                                                                         \
    }
WEIGHT_GRAD(f32, 128, 256, 2, Full<4, 2, 16>)
WEIGHT_GRAD(f32, 64, 64, 8, Full<2, 1, 2>)
WEIGHT_GRAD(f16, 128, HALF_THREADS, 2, Half<f16, 128>)
WEIGHT_GRAD(f16, 64, HALF_THREADS, 4, Half<f16, 64>)
WEIGHT_GRAD(bf16, 128, HALF_THREADS, 2, Half<bf16, 128>)
WEIGHT_GRAD(bf16, 64, HALF_THREADS, 4, Half<bf16, 64>)
