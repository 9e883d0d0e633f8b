// The backward of group_norm.cu over x [B, R, C]. With h = n · factor + offset the argument of the activation, factor = gamma · (1 + scale),
// and e = dy · act'(h): `sums` leaves the sums over every stretch of rows of e and e · n, `group_norm_grad` makes dx = rstd · (e · factor -
// mean(e · factor) - n · mean(e · factor · n)), the means over the group; norm_parameters_grad.cu has the rest. Sums are f32.
// Floor: x and dy read once, dx written once. Both launches read x and dy, as all of a group must be summed before any of dx is made; the
// second one begins with what the first one read last, which the L2 has still.
#include "lib/activation.cuh"
#include "lib/norm.cuh"

// Of a thread's channels: h = (x - mean) · factor + offset, rstd being in the factor.
template <int E>
struct Coefficients {
    float mean[E], factor[E], offset[E];

    // stats of the sample
    template <class T>
    __device__ __forceinline__ Coefficients(const Parameters<T>& p, const f32* stats, u32 c, Divisor width) {
        p.linear(c, factor, offset);
        each_group<E>(c, width, [&](int k, u32 g) {
            mean[k] = stats[2 * g];
            factor[k] *= stats[2 * g + 1];
        });
    }
};

// body(aligned, i, x, dy, act') for a column's rows. Entries of one channel a thread know all activations, whose code is long; the others
// SiLU and the identity. They have 64 bytes of x and dy under way, or a row where packs do not lie at 16 bytes.
template <int E, class T, class Body>
__device__ __forceinline__ void by_activation(u32 kind, bool aligned, const T* x, const T* dy, u32 rows, u64 step, Body body) {
    using P = Pack<T, E>;
    auto any = [=](float h) { return act_derivative(kind, h); };
    Gated gated(kind == SILU);
    auto frequent = [=](float h) { return gated.derivative(h); };
    if constexpr (E == 1)
        each_row<E, 2, true>(x, dy, rows, step, [&](u32 i, const P& x, const P& dy) { body(true, i, x, dy, any); });
    else if (aligned)
        each_row<E, E == 8 ? 2 : 4, true>(x, dy, rows, step, [&](u32 i, const P& x, const P& dy) { body(true, i, x, dy, frequent); });
    else
        each_row<E, 1, false>(x, dy, rows, step, [&](u32 i, const P& x, const P& dy) { body(false, i, x, dy, frequent); });
}

// Adds e and e · (x - mean) of a row.
template <class T, int E>
struct AddRow {
    ColumnSums<E, 2>& sums;
    const Coefficients<E>& p;

    template <class F>
    __device__ __forceinline__ void operator()(bool, u32, const Pack<T, E>& x, const Pack<T, E>& dy, F derivative) const {
        float v[E], up[E];
        widen_all<T>(v, x);
        widen_all<T>(up, dy);
#pragma unroll
        for (int k = 0; k < E; k++) {
            float d = v[k] - p.mean[k];
            float e = up[k] * derivative(fmaf(d, p.factor[k], p.offset[k]));
            sums.at[0][k] += e;
            sums.at[1][k] = fmaf(e, d, sums.at[1][k]);
        }
    }
};

// Makes dx of a row.
template <class T, int E>
struct MakeRow {
    T* dx;
    u64 step;
    const Coefficients<E>& p;
    const float (&constant)[E], (&slope)[E];

    template <class F>
    __device__ __forceinline__ void operator()(bool aligned, u32 i, const Pack<T, E>& x, const Pack<T, E>& dy, F derivative) const {
        float v[E], up[E];
        widen_all<T>(v, x);
        widen_all<T>(up, dy);
#pragma unroll
        for (int k = 0; k < E; k++) {
            float d = v[k] - p.mean[k];
            float e = up[k] * derivative(fmaf(d, p.factor[k], p.offset[k]));
            v[k] = fmaf(e, p.factor[k], fmaf(d, slope[k], constant[k]));
        }
        if (aligned) write<T, E, true>(dx + i * step, narrow_all<T>(v));
        else write<T, E, false>(dx + i * step, narrow_all<T>(v));
    }
};

template <class T, int E>
__device__ __forceinline__ void sums(const T* x, const T* dy, const f32* stats, Parameters<T> p, f32* out, u32 groups, Divisor width,
                                     u32 kind, const Tile<E>& t) {
    ColumnSums<E, 2> sums;
    if (t.col < t.end_col) {
        const f32* own_stats = stats + 2 * u64(t.sample) * groups;
        Coefficients<E> own(p, own_stats, t.col, width);
        u64 at = u64(t.sample) * t.rows * t.channels + t.at(t.col);
        by_activation<E>(kind, packs_are_aligned(x, dy), x + at, dy + at, t.own_rows(), t.step(), AddRow<T, E>{sums, own});
        each_group<E>(t.col, width, [&](int k, u32 g) { sums.at[1][k] *= own_stats[2 * g + 1]; });
    }
    sums.store(out, t);
}

// sums [B, 2, C]
template <class T, int E>
__device__ __forceinline__ void make(const T* x, const T* dy, const f32* stats, Parameters<T> p, const f32* sums, T* dx, u32 groups,
                                     Divisor width, u32 kind, const Tile<E>& t) {
    // Of the tile's groups: -rstd · mean(e · factor), -rstd² · mean(e · factor · n).
    __shared__ float constants[FLAT_THREADS * E], slopes[FLAT_THREADS * E];
    u32 first = quotient(t.first_col, width);
    const f32 *own_stats = stats + 2 * u64(t.sample) * groups, *own_sums = sums + 2 * u64(t.sample) * t.channels;
    GroupTeams<> teams(quotient(t.end_col - t.first_col, width));
    teams.each([&](u32 g, bool there) {
        float total[2] = {0.0f, 0.0f};
        for (u32 i = teams.lane; i < width.size && there; i += teams.lanes) {
            u32 c = t.first_col + g * width.size + i;
            float factor[1], offset[1];
            p.linear(c, factor, offset);
            total[0] = fmaf(factor[0], own_sums[c], total[0]);
            total[1] = fmaf(factor[0], own_sums[c + t.channels], total[1]);
        }
        teams.sum(total);
        if (!there || teams.lane > 0) return;
        float rstd = own_stats[2 * (first + g) + 1], by = -rstd / (float(t.rows) * float(width.size));
        constants[g] = by * total[0];
        slopes[g] = by * rstd * total[1];
    });
    __syncthreads();
    bool aligned = packs_are_aligned(x, dy, dx);
    for (u32 c = t.col; c < t.end_col; c += t.across * E) {
        Coefficients<E> own(p, own_stats, c, width);
        float constant[E], slope[E];
        each_group<E>(c, width, [&](int k, u32 g) {
            constant[k] = constants[g - first];
            slope[k] = slopes[g - first];
        });
        u64 at = u64(t.sample) * t.rows * t.channels + t.at(c);
        MakeRow<T, E> row{dx + at, t.step(), own, constant, slope};
        by_activation<E>(kind, aligned, x + at, dy + at, t.own_rows(), t.step(), row);
    }
}

#define ENTRY(T, E)                                                                                                    \
    FLAT_KERNEL group_norm_grad_sums_##E##_##T(const T* x, const T* gamma, const T* beta, const T* scale,              \
                                               const T* shift, const T* dy, const f32* stats, f32* out, TILE,          \
                                               u32 groups, DIVISOR(width), u32 kind, u32 modulate) {                                   \
        Tile<E> t = AS_TILE(E, false);                                                                                 \
        u64 sample = u64(t.sample) * channels;                                                                         \
        Parameters<T> p{gamma, beta, scale + sample, shift + sample, true, modulate != 0};                             \
        sums<T, E>(x, dy, stats, p, out, groups, AS_DIVISOR(width), kind, t);                                                             \
    }                                                                                                                  \
    FLAT_KERNEL group_norm_grad_##E##_##T(const T* x, const T* gamma, const T* beta, const T* scale, const T* shift,   \
                                          const T* dy, const f32* stats, const f32* sums, T* dx, TILE, u32 groups,     \
                                          DIVISOR(width), u32 kind, u32 modulate) {                                                    \
        Tile<E> t = AS_TILE(E, true);                                                                                  \
        u64 sample = u64(t.sample) * channels;                                                                         \
        Parameters<T> p{gamma, beta, scale + sample, shift + sample, true, modulate != 0};                             \
        make<T, E>(x, dy, stats, p, sums, dx, groups, AS_DIVISOR(width), kind, t);                                                        \
    }
ENTRY(f32, 4)
ENTRY(f32, 1)
ENTRY(f16, 8)
ENTRY(f16, 1)
ENTRY(bf16, 8)
ENTRY(bf16, 1)
