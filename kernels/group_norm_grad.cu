// The backward of group_norm.cu over x [B, R, C]. With h = n · factor + offset the argument of the activation, factor = gamma · (1 + scale),
// and e = dy · act'(h): `sums` leaves the sums over every stretch of rows of e and e · n, `group_norm_grad` makes dx = rstd · (e · factor -
// mean(e · factor) - n · mean(e · factor · n)), the means over the group; norm_parameters_grad.cu has the rest.
// Floor: x and dy read once, dx written once. Both launches read x and dy, as all of a group must be summed before any of dx is made; the
// second one begins with what the first one read last, which the L2 has still.
#include "lib/activation.cuh"
#include "lib/norm.cuh"

// Of a thread's channels: h = (x - mean) · factor · rstd + offset.
template <int E>
struct Coefficients {
    float mean[E], rstd[E], factor[E], offset[E];

    // stats of the sample
    __device__ __forceinline__ Coefficients(const Parameters<f32>& p, const f32* stats, u32 c, u32 width) {
#pragma unroll
        for (int k = 0; k < E; k++) {
            const f32* own = stats + 2 * ((c + k) / width);
            mean[k] = own[0];
            rstd[k] = own[1];
            p.linear(c + k, factor[k], offset[k]);
        }
    }
};

// body(i, x, dy, act') for a column's rows: the frequent activations with more loads under way than the code of all of them allows.
template <int E, class Body>
__device__ __forceinline__ void by_activation(u32 kind, bool aligned, const f32* x, const f32* dy, u32 rows, u64 step, Body body) {
    using P = Pack<f32, E>;
    if (aligned && kind == SILU)
        each_row<E, 4, true>(x, dy, rows, step, [&](u32 i, const P& x, const P& dy) {
            body(i, x, dy, [](float h) { return act_derivative(SILU, h); });
        });
    else if (aligned && kind == IDENTITY)
        each_row<E, 4, true>(x, dy, rows, step, [&](u32 i, const P& x, const P& dy) {
            body(i, x, dy, [](float) { return 1.0f; });
        });
    else
        each_row<E, 1, false>(x, dy, rows, step, [&](u32 i, const P& x, const P& dy) {
            body(i, x, dy, [=](float h) { return act_derivative(kind, h); });
        });
}

// Adds e and e · n of a row.
template <int E>
struct AddRow {
    ColumnSums<E, 2>& sums;
    const Coefficients<E>& p;

    template <class F>
    __device__ __forceinline__ void operator()(u32, const Pack<f32, E>& x, const Pack<f32, E>& dy, F derivative) const {
#pragma unroll
        for (int k = 0; k < E; k++) {
            float n = (x.at[k] - p.mean[k]) * p.rstd[k];
            float e = dy.at[k] * derivative(fmaf(n, p.factor[k], p.offset[k]));
            sums.at[0].at[k] += e;
            sums.at[1].at[k] = fmaf(e, n, sums.at[1].at[k]);
        }
    }
};

// Makes dx of a row.
template <int E>
struct MakeRow {
    f32* dx;
    u64 step;
    bool aligned;
    const Coefficients<E>& p;
    const float (&constant)[E], (&slope)[E];

    template <class F>
    __device__ __forceinline__ void operator()(u32 i, const Pack<f32, E>& x, const Pack<f32, E>& dy, F derivative) const {
        Pack<f32, E> out;
#pragma unroll
        for (int k = 0; k < E; k++) {
            float d = x.at[k] - p.mean[k], n = d * p.rstd[k];
            float e = dy.at[k] * derivative(fmaf(n, p.factor[k], p.offset[k]));
            out.at[k] = fmaf(e, p.factor[k] * p.rstd[k], fmaf(d, slope[k], constant[k]));
        }
        if (aligned) write<f32, E, true>(dx + i * step, out);
        else write<f32, E, false>(dx + i * step, out);
    }
};

template <int E>
__device__ __forceinline__ void sums(const f32* x, const f32* dy, const f32* stats, Parameters<f32> p, f32* out, u32 groups,
                                     u32 kind, const Tile<E>& t) {
    ColumnSums<E, 2> sums;
    if (t.col < t.end_col) {
        Coefficients<E> own(p, stats + 2 * u64(t.sample) * groups, t.col, t.channels / groups);
        u64 at = u64(t.sample) * t.rows * t.channels + t.at(t.col);
        by_activation<E>(kind, is_aligned(x) && is_aligned(dy), x + at, dy + at, t.own_rows(), t.step(), AddRow<E>{sums, own});
    }
    sums.store(out, t);
}

// sums [B, 2, C]
template <int E>
__device__ __forceinline__ void make(const f32* x, const f32* dy, const f32* stats, Parameters<f32> p, const f32* sums, f32* dx,
                                     u32 groups, u32 kind, const Tile<E>& t) {
    // Of the tile's groups: -rstd · mean(e · factor), -rstd² · mean(e · factor · n).
    __shared__ float constants[FLAT_THREADS * E], slopes[FLAT_THREADS * E];
    u32 width = t.channels / groups, first = t.first_col / width;
    const f32 *own_stats = stats + 2 * u64(t.sample) * groups, *own_sums = sums + 2 * u64(t.sample) * t.channels;
    for (u32 g = threadIdx.x / 32; g < (t.end_col - t.first_col) / width; g += FLAT_THREADS / 32) {
        float total[2] = {0.0f, 0.0f};
        for (u32 i = threadIdx.x % 32; i < width; i += 32) {
            u32 c = t.first_col + g * width + i;
            float factor, offset;
            p.linear(c, factor, offset);
            total[0] = fmaf(factor, own_sums[c], total[0]);
            total[1] = fmaf(factor, own_sums[c + t.channels], total[1]);
        }
#pragma unroll
        for (int v = 0; v < 2; v++) total[v] = join_warp(total[v], [](float a, float b) { return a + b; });
        if (threadIdx.x % 32 > 0) continue;
        float rstd = own_stats[2 * (first + g) + 1], by = -rstd / (float(t.rows) * float(width));
        constants[g] = by * total[0];
        slopes[g] = by * rstd * total[1];
    }
    __syncthreads();
    for (u32 c = t.col; c < t.end_col; c += t.across * E) {
        Coefficients<E> own(p, own_stats, c, width);
        float constant[E], slope[E];
#pragma unroll
        for (int k = 0; k < E; k++) {
            constant[k] = constants[(c + k) / width - first];
            slope[k] = slopes[(c + k) / width - first];
        }
        u64 at = u64(t.sample) * t.rows * t.channels + t.at(c);
        bool aligned = is_aligned(x) && is_aligned(dy) && is_aligned(dx);
        by_activation<E>(kind, aligned, x + at, dy + at, t.own_rows(), t.step(),
                         MakeRow<E>{dx + at, t.step(), aligned, own, constant, slope});
    }
}

#define ENTRY(E)                                                                                                       \
    FLAT_KERNEL group_norm_grad_sums_##E(const f32* x, const f32* gamma, const f32* beta, const f32* scale,            \
                                         const f32* shift, const f32* dy, const f32* stats, f32* out, TILE,            \
                                         u32 groups, u32 kind, u32 modulate) {                                         \
        Tile<E> t = AS_TILE(E, false);                                                                                 \
        u64 sample = u64(t.sample) * channels;                                                                         \
        Parameters<f32> p{gamma, beta, scale + sample, shift + sample, true, modulate != 0};                           \
        sums<E>(x, dy, stats, p, out, groups, kind, t);                                                                \
    }                                                                                                                  \
    FLAT_KERNEL group_norm_grad_##E(const f32* x, const f32* gamma, const f32* beta, const f32* scale,                 \
                                    const f32* shift, const f32* dy, const f32* stats, const f32* sums, f32* dx, TILE, \
                                    u32 groups, u32 kind, u32 modulate) {                                              \
        Tile<E> t = AS_TILE(E, true);                                                                                  \
        u64 sample = u64(t.sample) * channels;                                                                         \
        Parameters<f32> p{gamma, beta, scale + sample, shift + sample, true, modulate != 0};                           \
        make<E>(x, dy, stats, p, sums, dx, groups, kind, t);                                                           \
    }
ENTRY(4)
ENTRY(1)
