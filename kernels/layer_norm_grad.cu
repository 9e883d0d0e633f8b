// With g = dy · gamma · (1 + scale) over each row of x [rows, C]: dx = rstd · (g - mean(g) - n · mean(g · n)). And the sums over rows, of
// every stretch of them, of dy and dy · n: sums [samples, stretches, 2, C], from which norm_parameters_grad.cu makes the rest.
// Floor: x and dy read once, dx written once. dx holds both rows in registers; the sums read x and dy again, from the L2 as far as they
// are there still, latest first.
#include "lib/norm.cuh"

// factor(v, c) multiplies v by the factors of the channels from c on.
template <class Row, class Factor>
__device__ __forceinline__ void backward(const Row& x, const Row& dy, RowTeam team, float mean, float rstd, f32* dx,
                                         u32 channels, Factor factor) {
    constexpr int E = Row::EACH;
    float sums[2] = {0.0f, 0.0f};
    x.each(dy, [&](u32 i, const Pack<f32, E>& x, Pack<f32, E> g) {
        factor(g.at, i);
#pragma unroll
        for (int k = 0; k < E; k++) {
            sums[0] += g.at[k];
            sums[1] = fmaf(g.at[k], x.at[k] - mean, sums[1]);
        }
    });
    team.sum(sums);
    float constant = sums[0] / float(channels), slope = sums[1] / float(channels) * rstd * rstd;
    x.each(dy, [&](u32 i, const Pack<f32, E>& x, Pack<f32, E> g) {
        factor(g.at, i);
#pragma unroll
        for (int k = 0; k < E; k++) g.at[k] = (g.at[k] - constant - (x.at[k] - mean) * slope) * rstd;
        *(Pack<f32, E>*)(dx + i) = g;
    });
}

struct Factors {
    const f32 *gamma, *scale;
    bool affine, modulate;

    template <int E>
    __device__ __forceinline__ void operator()(f32 (&g)[E], u32 c) const {
        if (affine) {
            Pack<f32, E> by = *(const Pack<f32, E>*)(gamma + c);
#pragma unroll
            for (int k = 0; k < E; k++) g[k] *= by.at[k];
        }
        if (modulate) {
            Pack<f32, E> by = *(const Pack<f32, E>*)(scale + c);
#pragma unroll
            for (int k = 0; k < E; k++) g[k] *= 1.0f + by.at[k];
        }
    }
};

#define ENTRY(FOURS, T)                                                                                         \
    FLAT_KERNEL layer_norm_grad_##FOURS##_##T(const T* x, const T* gamma, const T* scale, const f32* stats,            \
                                              const T* dy, T* dx, u32 lanes, u32 rows, u32 channels, u32 per_sample,              \
                                              u32 affine, u32 modulate) {                                              \
        RowTeam team(lanes);                                                                                           \
        bool there = team.row < rows;                                                                                  \
        u32 n = there ? channels : 0;                                                                                  \
        u64 start = u64(team.row) * channels;                                                                          \
        float mean = there ? stats[2 * u64(team.row)] : 0.0f, rstd = there ? stats[2 * u64(team.row) + 1] : 0.0f;      \
        Factors factors{gamma, scale + u64(team.row / per_sample) * channels, affine != 0, modulate != 0};             \
        bool aligned = is_aligned(x) && is_aligned(dy) && is_aligned(dx) && (!affine || is_aligned(gamma)) &&          \
                       (!modulate || is_aligned(scale));                                                               \
        if (can_hold<T, FOURS>(channels, lanes) && aligned)                                                            \
            backward(HeldRow<T, FOURS>(x + start, team, n),                                                \
                     HeldRow<T, FOURS>(dy + start, team, n), team, mean, rstd, dx + start, channels,       \
                     factors);                                                                                         \
        else                                                                                                           \
            backward(AnyRow<T>(x + start, team, n), AnyRow<T>(dy + start, team, n), team,      \
                     mean, rstd, dx + start, channels, factors);                                                       \
    }
FOR_ROWS(ENTRY, f32)

template <int E>
__device__ __forceinline__ void sums(const f32* x, const f32* stats, const f32* dy, f32* out, const Tile<E>& t) {
    ColumnSums<E, 2> sums;
    if (t.col < t.end_col) {
        u64 first = u64(t.sample) * t.rows, at = first * t.channels + t.at(t.col);
        auto add = [&](u32 i, const Pack<f32, E>& x, const Pack<f32, E>& dy) {
            const f32* own = stats + 2 * (first + t.row + i * t.down);
            float mean = own[0], rstd = own[1];
#pragma unroll
            for (int k = 0; k < E; k++) {
                sums.at[0].at[k] += dy.at[k];
                sums.at[1].at[k] = fmaf(dy.at[k], (x.at[k] - mean) * rstd, sums.at[1].at[k]);
            }
        };
        if (is_aligned(x) && is_aligned(dy)) each_row<E, 4, true>(x + at, dy + at, t.own_rows(), t.step(), add);
        else each_row<E, 1, false>(x + at, dy + at, t.own_rows(), t.step(), add);
    }
    sums.store(out, t);
}

#define SUMS(E)                                                                                                        \
    FLAT_KERNEL layer_norm_grad_sums_##E(const f32* x, const f32* stats, const f32* dy, f32* out, TILE) {              \
        sums<E>(x, stats, dy, out, AS_TILE(E, true));                                                                  \
    }
SUMS(4)
SUMS(1)
