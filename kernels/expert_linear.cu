// y[r] = x[r] W[e] for the rows of every expert   x [rows, k], W [experts, k, n] in panels, offsets [experts + 1] -> y [rows, n]
//
// Floor: 2 rows n k FLOPs, or the weights' bytes where experts have few rows. `lib/gemm_f32.cuh`. Only the device knows how many rows an expert
// has: there are blocks for the worst case, and those that are left over end at once.
#include "lib/experts.cuh"
#include "lib/gemm_f32.cuh"

template <int WARPS_M, int WARPS_N>
__device__ __forceinline__ void expert_linear(const f32* x, const f32* w, const i32* offsets, f32* y, u32 rows, u32 n, u32 k, u32 experts,
                                              u32 reversed) {
    using Tile = Ffma<WARPS_M, WARPS_N>;
    u32 cols = tiles_of(n, Tile::COLS), tile = blockIdx.x / cols, col = blockIdx.x % cols * Tile::COLS;
    for (u32 e = 0; e < experts; e++) {
        ExpertRows of(offsets, e, rows);
        u32 count = of.end - of.first, tiles = tiles_of(count, Tile::ROWS);
        if (tile >= tiles) {
            tile -= tiles;
            continue;
        }
        u32 row = tile * Tile::ROWS;
        Terms terms{0, k};
        Rows<Tile::ROWS, Tile::WARPS> a(x + u64(of.first) * k, k, row, count, terms);
        Panels<Tile::COLS, Tile::WARPS> b(w + u64(slot_of(e, experts, reversed)) * k * 16, experts * k, col, n, terms);
        Tile::run(a, b, terms, row, col, RowStore<f32>(y + u64(of.first) * n, nullptr, 0, count, n));
        return;
    }
}

#define EXPERT_LINEAR(SIZE, WARPS_M, WARPS_N, BLOCKS)                                                                                     \
    extern "C" __global__ void __launch_bounds__(32 * WARPS_M * WARPS_N, BLOCKS) expert_linear_##SIZE##_f32(                              \
        const f32* x, const f32* w, const i32* offsets, f32* y, u32 rows, u32 n, u32 k, u32 experts, u32 reversed) {                      \
        expert_linear<WARPS_M, WARPS_N>(x, w, offsets, y, rows, n, k, experts, reversed);                                                 \
    }
EXPERT_LINEAR(128, 4, 2, 2)
EXPERT_LINEAR(64, 2, 1, 8)
