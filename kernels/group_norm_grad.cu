// The backward of group_norm.cu over x [B, R, C]. With h = n · factor + offset the argument of the activation, factor = gamma · (1 + scale),
// and e = dy · act'(h): `sums` leaves the sums over every stretch of rows of e and e · n, `group_norm_grad` makes dx = rstd · (e · factor -
// mean(e · factor) - n · mean(e · factor · n)), the means over the group; norm_parameters_grad.cu has the rest. Sums are f32.
// Floor: x and dy read once, dx written once. Both launches read x and dy, as all of a group must be summed before any of dx is made; the
// second one begins with what the first one read last, which the L2 has still.
#include "lib/activation.cuh"
#include "lib/norm.cuh"

// act' of E numbers that are `times` the activation's argument. Entries of one channel a thread know all activations, whose code is long, the
// others SiLU and the identity. In 16 bits by tanh, to 2^-11: one slow instruction in place of two.
template <class T, int E>
struct Derivative {
    u32 kind;

    __device__ __forceinline__ float times() const { return E > 1 && sizeof(T) == 2 && kind == SILU ? 0.5f : 1.0f; }

    template <int N>
    __device__ __forceinline__ void operator()(float (&h)[N]) const {
        if constexpr (E == 1) {
            h[0] = act_derivative(kind, h[0]);
        } else if constexpr (sizeof(T) == 4) {
            Gated gated(kind == SILU);
#pragma unroll
            for (int k = 0; k < N; k++) h[k] = gated.derivative(h[k]);
        } else if (opaque(kind == SILU)) {
#pragma unroll
            for (int k = 0; k < N; k++) {
                float t = tanh_near(h[k]);
                h[k] = fmaf(fmaf(h[k], fmaf(-t, t, 1.0f), t), 0.5f, 0.5f);
            }
        } else {
#pragma unroll
            for (int k = 0; k < N; k++) h[k] = 1.0f;
        }
    }
};

// Neighbouring channels of a thread that are of one group.
template <int E>
constexpr int SHARED = E == 1 ? 1 : 2;

// In 16 bits the mean is in offsets, and is taken from sums when they are there: what rounding takes then is far less than what it took from x.
template <class T>
constexpr bool FOLDED = sizeof(T) == 2;

// Of a thread's channels: h = d · factor + offset with d = x - mean, or x, rstd being in the factor; both `times` what the activation is of.
template <class T, int E>
struct Coefficients {
    float mean[E / SHARED<E>], factor[E], offset[E];

    // stats of the sample
    __device__ __forceinline__ Coefficients(const Parameters<T>& p, const f32* stats, u32 c, Divisor width, float times) {
        p.linear(c, factor, offset);
        each_group<E / SHARED<E>, SHARED<E>>(c, width, [&](int pair, u32 g) {
            float m = stats[2 * g], rstd = stats[2 * g + 1] * times;
#pragma unroll
            for (int k = pair * SHARED<E>; k < (pair + 1) * SHARED<E>; k++) {
                factor[k] *= rstd;
                offset[k] = fmaf(offset[k], times, FOLDED<T> ? -m * factor[k] : 0.0f);
            }
            mean[pair] = m;
        });
    }

    // d and e of a row's channels from k on; N of them at a time take few registers.
    template <int N, class F>
    __device__ __forceinline__ void row(const Pack<T, E>& x, const Pack<T, E>& dy, F derivative, int k, float (&d)[N], float (&e)[N]) const {
        float up[N];
        widen_all<T>(d, ((const Pack<T, N>*)&x)[k / N]);
        widen_all<T>(up, ((const Pack<T, N>*)&dy)[k / N]);
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (!FOLDED<T>) d[i] -= mean[(k + i) / SHARED<E>];
            e[i] = fmaf(d[i], factor[k + i], offset[k + i]);
        }
        derivative(e);
#pragma unroll
        for (int i = 0; i < N; i++) e[i] *= up[i];
    }

    // Sums of e · d become those of e · (x - mean).
    __device__ __forceinline__ void centre(ColumnSums<E, 2>& sums, const f32* stats, u32 c, Divisor width) const {
        if (!FOLDED<T>) return;
        each_group<E / SHARED<E>, SHARED<E>>(c, width, [&](int pair, u32 g) {
            float m = stats[2 * g];
#pragma unroll
            for (int k = pair * SHARED<E>; k < (pair + 1) * SHARED<E>; k++) sums.at[1][k] = fmaf(-m, sums.at[0][k], sums.at[1][k]);
        });
    }
};

// body(aligned, i, x, dy) for a column's rows. They have 64 bytes of x and dy under way, or a row where packs do not lie at 16 bytes.
template <int E, class T, class Body>
__device__ __forceinline__ void by_alignment(bool aligned, const T* x, const T* dy, u32 rows, u64 step, Body body) {
    using P = Pack<T, E>;
    constexpr int ROWS = E == 4 ? 4 : 2;
    if (E == 1 || aligned) each_row<E, ROWS, true>(x, dy, rows, step, [&](u32 i, const P& x, const P& dy) { body(true, i, x, dy); });
    else each_row<E, 1, false>(x, dy, rows, step, [&](u32 i, const P& x, const P& dy) { body(false, i, x, dy); });
}

// Adds e and e · d of a row.
template <class T, int E>
__device__ __forceinline__ void add_row(ColumnSums<E, 2>& sums, const Coefficients<T, E>& p, Derivative<T, E> derivative, const Pack<T, E>& x,
                                        const Pack<T, E>& dy) {
    constexpr int N = E < 4 ? E : 4;
#pragma unroll
    for (int k = 0; k < E; k += N) {
        float d[N], e[N];
        p.row(x, dy, derivative, k, d, e);
#pragma unroll
        for (int i = 0; i < N; i++) {
            sums.at[0][k + i] += e[i];
            sums.at[1][k + i] = fmaf(e[i], d[i], sums.at[1][k + i]);
        }
    }
}

// Of a thread's channels: dx = e · factor + d · slope + constant.
template <class T, int E>
struct Line {
    float factor[E], slope[E / SHARED<E>], constant[E / SHARED<E>];

    // From those of the tile's groups, of which `first` is the first.
    __device__ __forceinline__ Line(const Coefficients<T, E>& p, Derivative<T, E> derivative, const float* constants, const float* slopes, u32 c,
                                    Divisor width, u32 first) {
        float times = 1.0f / derivative.times();
#pragma unroll
        for (int k = 0; k < E; k++) factor[k] = p.factor[k] * times;
        each_group<E / SHARED<E>, SHARED<E>>(c, width, [&](int pair, u32 g) {
            slope[pair] = slopes[g - first];
            constant[pair] = constants[g - first];
        });
    }

    __device__ __forceinline__ void row(const Coefficients<T, E>& p, Derivative<T, E> derivative, const Pack<T, E>& x, const Pack<T, E>& dy,
                                        float (&made)[E]) const {
        constexpr int N = E < 4 ? E : 4;
#pragma unroll
        for (int k = 0; k < E; k += N) {
            float d[N], e[N];
            p.row(x, dy, derivative, k, d, e);
#pragma unroll
            for (int i = 0; i < N; i++)
                made[k + i] = fmaf(e[i], factor[k + i], fmaf(d[i], slope[(k + i) / SHARED<E>], constant[(k + i) / SHARED<E>]));
        }
    }
};

template <class T, int E>
__device__ __forceinline__ void sums(const T* x, const T* dy, const f32* stats, Parameters<T> p, f32* out, u32 groups, Divisor width,
                                     u32 kind, const Tile<E>& t) {
    ColumnSums<E, 2> sums;
    if (t.col < t.end_col) {
        const f32* own_stats = stats + 2 * u64(t.sample) * groups;
        Derivative<T, E> derivative{kind};
        Coefficients<T, E> own(p, own_stats, t.col, width, derivative.times());
        u64 at = u64(t.sample) * t.rows * t.channels + t.at(t.col);
        auto add = [&](bool, u32, const Pack<T, E>& x, const Pack<T, E>& dy) { add_row(sums, own, derivative, x, dy); };
        by_alignment<E>(packs_are_aligned(x, dy), x + at, dy + at, t.own_rows(), t.step(), add);
        own.centre(sums, own_stats, t.col, width);
        each_group<E>(t.col, width, [&](int k, u32 g) { sums.at[1][k] *= own_stats[2 * g + 1]; });
    }
    sums.store(out, t);
}

// sums [B, 2, C]
template <class T, int E>
__device__ __forceinline__ void make(const T* x, const T* dy, const f32* stats, Parameters<T> p, const f32* sums, T* dx, u32 groups,
                                     Divisor width, u32 kind, const Tile<E>& t) {
    // Of the tile's groups: -rstd · mean(e · factor), -rstd² · mean(e · factor · n); if d is x the first less the mean times the second.
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
        float mean = own_stats[2 * (first + g)], rstd = own_stats[2 * (first + g) + 1], by = -rstd / (float(t.rows) * float(width.size));
        slopes[g] = by * rstd * total[1];
        constants[g] = fmaf(by, total[0], FOLDED<T> ? -mean * slopes[g] : 0.0f);
    });
    __syncthreads();
    bool aligned = packs_are_aligned(x, dy, dx);
    for (u32 c = t.col; c < t.end_col; c += t.across * E) {
        Derivative<T, E> derivative{kind};
        Coefficients<T, E> own(p, own_stats, c, width, derivative.times());
        Line<T, E> line(own, derivative, constants, slopes, c, width, first);
        u64 at = u64(t.sample) * t.rows * t.channels + t.at(c);
        by_alignment<E>(aligned, x + at, dy + at, t.own_rows(), t.step(), [&](bool aligned, u32 i, const Pack<T, E>& x, const Pack<T, E>& dy) {
            float made[E];
            line.row(own, derivative, x, dy, made);
            T* to = dx + at + i * t.step();
            if (aligned) write<T, E, true>(to, narrow_all<T>(made));
            else write<T, E, false>(to, narrow_all<T>(made));
        });
    }
}

// Sums over the lines of a block of what its threads have, in shared memory: first all of theirs, in pieces of 16 bytes, neighbours' beside each
// other; then as many threads as there are add up the lines of each number, and one what those have. `ops/group_norm` has the size.
template <int E>
struct BlockSums {
    static constexpr u32 PIECES = 2 * E / 4;
    f32 *pieces, *parts;
    u32 across, numbers, stride, shares;
    Divisor by_across;

    __device__ __forceinline__ BlockSums(f32* at, Divisor across) : pieces(at), across(across.size), by_across(across) {
        numbers = 4 * PIECES * across.size, stride = 4 * (blockDim.x + across.size);
        parts = at + PIECES * stride;
        shares = max(quotient(blockDim.x / (4 * PIECES), across), 1);
    }

    // Where the next floats are free.
    __device__ __forceinline__ f32* end() const { return parts + max(blockDim.x, numbers); }

    // f(v, channel, sum) for value v of the tile's channels, by some thread each.
    template <class F>
    __device__ __forceinline__ void each(const ColumnSums<E, 2>& own, u32 lines, F f) const {
#pragma unroll
        for (int v = 0; v < 2; v++)
#pragma unroll
            for (int i = 0; i < E / 4; i++) *(Pack<f32, 4>*)(pieces + (v * (E / 4) + i) * stride + 4 * threadIdx.x) = own.piece(v, i);
        __syncthreads();
#pragma unroll 1
        for (u32 j = threadIdx.x; j < numbers * shares; j += blockDim.x) {
            u32 share = quotient(j / (4 * PIECES), by_across), number = j - share * numbers, piece = quotient(number / 4, by_across);
            const f32* from = pieces + piece * stride + number - piece * 4 * across;
            float sum = 0.0f;
#pragma unroll 4
            for (u32 line = share; line < lines; line += shares) sum += from[4 * line * across];
            parts[j] = sum;
        }
        __syncthreads();
#pragma unroll 1
        for (u32 number = threadIdx.x; number < numbers; number += blockDim.x) {
            float sum = 0.0f;
#pragma unroll 4
            for (u32 share = 0; share < shares; share++) sum += parts[share * numbers + number];
            u32 piece = quotient(number / 4, by_across), place = number - piece * 4 * across;
            f(piece / (E / 4), place / 4 * E + piece % (E / 4) * 4 + place % 4, sum);
        }
    }
};

// All rows of a tile in one block, HELD of them a thread. out [B, 2, C]: the sums.
template <class T, int E>
__device__ __forceinline__ void held(const T* x, const T* dy, const f32* stats, Parameters<T> p, f32* out, T* dx, u32 groups, Divisor width,
                                     u32 kind, Divisor across, const Tile<E>& t) {
    extern __shared__ uint4 shared[];
    // Of the tile's groups, as in `make`.
    __shared__ float constants[HELD_GROUPS], slopes[HELD_GROUPS];
    u32 rows = t.col < t.end_col ? t.own_rows() : 0, col = rows > 0 ? t.col : t.first_col, step = t.down.size * t.channels;
    u32 first = quotient(t.first_col, width), tile_groups = quotient(t.end_col - t.first_col, width);
    u64 at = u64(t.sample) * t.rows * t.channels + u64(rows > 0 ? t.row : 0) * t.channels + col;
    const f32* own_stats = stats + 2 * u64(t.sample) * groups;
    Rows<T, E> a, b;
    a.fetch(x + at, step, rows, packs_are_aligned(x));
    b.fetch(dy + at, step, rows, packs_are_aligned(dy));
    // What is loaded after that, and waited for, must not come before.
    __syncwarp();
    Derivative<T, E> derivative{kind};
    Coefficients<T, E> own(p, own_stats, col, width, derivative.times());
    BlockSums<E> block((f32*)shared, across);
    f32 *total = block.end(), *product = total + block.across * E;
    {
        ColumnSums<E, 2> sums;
#pragma unroll
        for (int r = 0; r < HELD<E>; r++)
            if (r < rows) add_row(sums, own, derivative, a.at[r], b.at[r]);
        own.centre(sums, own_stats, col, width);
        block.each(sums, t.down.size, [&](u32 v, u32 i, float sum) {
            u32 c = t.first_col + i;
            if (c >= t.end_col) return;
            float factor[1], offset[1];
            p.linear(c, factor, offset);
            (v == 0 ? total : product)[i] = factor[0] * sum;
            out[(u64(t.sample) * 2 + v) * t.channels + c] = v == 0 ? sum : sum * stats[2 * (u64(afresh(t.sample)) * groups + quotient(c, width)) + 1];
        });
    }
    __syncthreads();
    GroupTeam team(tile_groups);
    float each = -1.0f / (float(t.rows) * float(width.size));
    team.each(tile_groups, [&](u32 g, bool there) {
        float constant = 0.0f, slope = 0.0f;
        for (u32 i = team.lane; i < width.size && there; i += team.lanes) {
            constant += total[g * width.size + i];
            slope += product[g * width.size + i];
        }
        constant = team.total(constant), slope = team.total(slope);
        if (!there || team.lane > 0) return;
        const f32* of_group = stats + 2 * (u64(afresh(t.sample)) * groups + first + g);
        float rstd = of_group[1], by = each * rstd, own = by * rstd * rstd * slope;
        slopes[g] = own;
        constants[g] = fmaf(by, constant, FOLDED<T> ? -of_group[0] * own : 0.0f);
    });
    __syncthreads();
    if (rows == 0) return;
    Line<T, E> line(own, derivative, constants, slopes, col, width, first);
    bool aligned = packs_are_aligned(dx);
    T* to = dx + at;
    step = afresh(step), rows = afresh(rows);
#pragma unroll
    for (int r = 0; r < HELD<E>; r++, to += step) {
        if (r >= rows) continue;
        float made[E];
        line.row(own, derivative, a.at[r], b.at[r], made);
        if (sizeof(T) == 2 || aligned) write_whole<T>(to, narrow_all<T>(made));
        else write<T, E, false>(to, narrow_all<T>(made));
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

// Two blocks of 256 threads fit a multiprocessor. Numbers of f16, which take an instruction more each, would have more registers than there are.
#define ALONE(T)                                                                                                       \
    extern "C" __global__ void __launch_bounds__(512, 1)                                                               \
    group_norm_grad_held_##T(const T* x, const T* gamma, const T* beta, const T* scale, const T* shift, const T* dy,   \
                             const f32* stats, T* dx, f32* sums, TILE, u32 groups, DIVISOR(width), u32 kind,           \
                             u32 modulate) {                                                                           \
        Tile<WIDE<T>> t = AS_TILE(WIDE<T>, false);                                                                     \
        u64 sample = u64(t.sample) * channels;                                                                         \
        Parameters<T> p{gamma, beta, scale + sample, shift + sample, true, modulate != 0};                             \
        held<T, WIDE<T>>(x, dy, stats, p, sums, dx, groups, AS_DIVISOR(width), kind, AS_DIVISOR(across), t);                               \
    }
ALONE(f32)
ALONE(bf16)
