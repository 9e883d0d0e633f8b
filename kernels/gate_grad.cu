// dx = gate · dy, and dgate = Σ dy · x over a sample's rows, of every stretch of them   x, dy, dx [B, R, C], gate [B, C], dgate [B, stretches, C]
// Floor: x and dy once, dx once. Threads lie along channels, 16 bytes each, and down the rows of a stretch, four rows of both under way.
#include "lib/norm.cuh"

template <int E>
__device__ __forceinline__ void gate_grad(const f32* x, const f32* gate, const f32* dy, f32* dx, f32* dgate, const Tile<E>& t) {
    ColumnSums<E, 1> sums;
    if (t.col < t.end_col) {
        u64 sample = u64(t.sample) * t.rows * t.channels + t.at(t.col);
        Pack<f32, E> by = load<f32, E>(gate + u64(t.sample) * t.channels + t.col);
        const f32 *a = x + sample, *b = dy + sample;
        f32* out = dx + sample;
        auto row = [&](u32 i, const Pack<f32, E>& x, Pack<f32, E> d, bool aligned) {
#pragma unroll
            for (int k = 0; k < E; k++) {
                sums.at[0].at[k] = fmaf(d.at[k], x.at[k], sums.at[0].at[k]);
                d.at[k] *= by.at[k];
            }
            aligned ? write<f32, E, true>(out + i * t.step(), d) : write<f32, E, false>(out + i * t.step(), d);
        };
        if (is_aligned(x) && is_aligned(dy) && is_aligned(dx))
            each_row<E, 4, true>(a, b, t.own_rows(), t.step(), [&](u32 i, const Pack<f32, E>& x, const Pack<f32, E>& d) { row(i, x, d, true); });
        else
            each_row<E, 1, false>(a, b, t.own_rows(), t.step(), [&](u32 i, const Pack<f32, E>& x, const Pack<f32, E>& d) { row(i, x, d, false); });
    }
    sums.store(dgate, t);
}

#define ENTRY(E)                                                                                             \
    FLAT_KERNEL gate_grad_##E(const f32* x, const f32* gate, const f32* dy, f32* dx, f32* dgate, TILE) {     \
        gate_grad<E>(x, gate, dy, dx, dgate, AS_TILE(E, false));                                             \
    }
ENTRY(4)
ENTRY(1)
