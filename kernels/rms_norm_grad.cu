// With g = dy · gamma, n = x · rstd over each row of x [rows, C]: dx = rstd · (g - n · mean(g · n)). And the sums over rows, of every
// stretch of them, of dy · n: sums [stretches, C].
// Floor: x and dy read once, dx written once; as layer_norm_grad.cu.
#include "lib/norm.cuh"

template <class Row>
__device__ __forceinline__ void backward(const Row& x, const Row& dy, RowTeam team, const f32* gamma, bool affine,
                                         float rstd, f32* dx, u32 channels) {
    constexpr int E = Row::EACH;
    auto factor = [&](f32 (&g)[E], u32 c) {
        if (!affine) return;
        Pack<f32, E> by = *(const Pack<f32, E>*)(gamma + c);
#pragma unroll
        for (int k = 0; k < E; k++) g[k] *= by.at[k];
    };
    float sum[1] = {0.0f};
    x.each(dy, [&](u32 i, const Pack<f32, E>& x, Pack<f32, E> g) {
        factor(g.at, i);
#pragma unroll
        for (int k = 0; k < E; k++) sum[0] = fmaf(g.at[k], x.at[k], sum[0]);
    });
    team.sum(sum);
    float slope = sum[0] / float(channels) * rstd * rstd;
    x.each(dy, [&](u32 i, const Pack<f32, E>& x, Pack<f32, E> g) {
        factor(g.at, i);
#pragma unroll
        for (int k = 0; k < E; k++) g.at[k] = (g.at[k] - x.at[k] * slope) * rstd;
        *(Pack<f32, E>*)(dx + i) = g;
    });
}

#define ENTRY(FOURS, T)                                                                                         \
    FLAT_KERNEL rms_norm_grad_##FOURS##_##T(const T* x, const T* gamma, const f32* rstds, const T* dy, T* dx,          \
                                            u32 lanes, u32 rows, u32 channels, u32 affine) {                                      \
        RowTeam team(lanes);                                                                                           \
        bool there = team.row < rows;                                                                                  \
        u32 n = there ? channels : 0;                                                                                  \
        u64 start = u64(team.row) * channels;                                                                          \
        float rstd = there ? rstds[team.row] : 0.0f;                                                                   \
        bool aligned = is_aligned(x) && is_aligned(dy) && is_aligned(dx) && (!affine || is_aligned(gamma));            \
        if (can_hold<T, FOURS>(channels, lanes) && aligned)                                                            \
            backward(HeldRow<T, FOURS>(x + start, team, n),                                                \
                     HeldRow<T, FOURS>(dy + start, team, n), team, gamma, affine != 0, rstd, dx + start,   \
                     channels);                                                                                        \
        else                                                                                                           \
            backward(AnyRow<T>(x + start, team, n), AnyRow<T>(dy + start, team, n), team,      \
                     gamma, affine != 0, rstd, dx + start, channels);                                                  \
    }
FOR_ROWS(ENTRY, f32)

template <int E>
__device__ __forceinline__ void sums(const f32* x, const f32* rstds, const f32* dy, f32* out, const Tile<E>& t) {
    ColumnSums<E, 1> sums;
    if (t.col < t.end_col) {
        auto add = [&](u32 i, const Pack<f32, E>& x, const Pack<f32, E>& dy) {
            float rstd = rstds[t.row + i * t.down];
#pragma unroll
            for (int k = 0; k < E; k++) sums.at[0].at[k] = fmaf(dy.at[k], x.at[k] * rstd, sums.at[0].at[k]);
        };
        const f32 *a = x + t.at(t.col), *b = dy + t.at(t.col);
        if (is_aligned(x) && is_aligned(dy)) each_row<E, 4, true>(a, b, t.own_rows(), t.step(), add);
        else each_row<E, 1, false>(a, b, t.own_rows(), t.step(), add);
    }
    sums.store(out, t);
}

#define SUMS(E)                                                                                                        \
    FLAT_KERNEL rms_norm_grad_sums_##E(const f32* x, const f32* rstds, const f32* dy, f32* out, TILE) {                \
        sums<E>(x, rstds, dy, out, AS_TILE(E, true));                                                                  \
    }
SUMS(4)
SUMS(1)
