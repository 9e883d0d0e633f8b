// dW[e] = x[r]ᵀ dy[r] over the rows of expert e, zeros where it has none   x [rows, k], dy [rows, n], offsets [experts + 1] ->
// dW [experts, k, n] in panels
//
// Floor: 2 rows n k FLOPs. `lib/gemm_f32.cuh`, an expert's weight after the other.
#include "lib/experts.cuh"
#include "lib/gemm_f32.cuh"

template <int WARPS_M, int WARPS_N>
__device__ __forceinline__ void weight_grad(const f32* x, const f32* dy, const i32* offsets, f32* dw, u32 rows, u32 n, u32 k, u32 experts,
                                            u32 reversed) {
    using Tile = Ffma<WARPS_M, WARPS_N>;
    TilePlace place(tiles_of(k, Tile::ROWS), tiles_of(n, Tile::COLS));
    u32 row = place.row * Tile::ROWS, col = place.col * Tile::COLS;
    ExpertRows of(offsets, place.batch, rows);
    Terms terms{of.first, of.end};
    Columns<Tile::ROWS, Tile::WARPS> a(x, k, row, k, terms);
    Columns<Tile::COLS, Tile::WARPS> b(dy, n, col, n, terms);
    f32* to = dw + u64(slot_of(place.batch, experts, reversed)) * k * 16;
    Tile::run(a, b, terms, row, col, PanelStore(to, k, n, experts * k));
}

#define WEIGHT_GRAD(SIZE, WARPS_M, WARPS_N, BLOCKS)                                                                                       \
    extern "C" __global__ void __launch_bounds__(32 * WARPS_M * WARPS_N, BLOCKS) expert_linear_weight_grad_##SIZE##_f32(                  \
        const f32* x, const f32* dy, const i32* offsets, f32* dw, u32 rows, u32 n, u32 k, u32 experts, u32 reversed) {                    \
        weight_grad<WARPS_M, WARPS_N>(x, dy, offsets, dw, rows, n, k, experts, reversed);                                                 \
    }
WEIGHT_GRAD(128, 4, 2, 2)
WEIGHT_GRAD(64, 2, 1, 8)
