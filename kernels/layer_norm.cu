// x [rows, C] -> y = n, then (n · gamma + beta) · (1 + scale) + shift, each pair there or not, n = (x - mean) · rstd over each row;
// stats [rows, 2]: mean, rstd. Scale and shift of a sample begin at columns `scale_at` and `shift_at` of rows that are `wide` numbers apart.
// Floor: x read once, y written once. The row stays in registers between the passes: mean, then the squared differences from it, of 16 bits
// both at once, then y. A warp or a part of it has a row of common lengths, which costs no barriers and few instructions besides those of the numbers.
// Parameters come from the L1.
#include "lib/norm.cuh"

template <class Row, class T>
__device__ __forceinline__ void normalise(const Row& x, RowTeam team, Parameters<T> p, T* y, f32* stats, bool there,
                                          u32 channels, float eps) {
    constexpr int E = Row::EACH;
    float each = 1.0f / float(channels), mean, left = 0.0f, square;
    // One row does for those below.
    if (threadIdx.x < max(team.lanes, 32u)) x.each_place([&](u32 i) { p.prefetch(i); });
    if constexpr (sizeof(T) == 2) {
        // One pass less the first number: if that is far from the n others, it costs a factor of n of the rounding, which 16 bits do not see.
        float sum[2] = {0.0f, 0.0f}, first = there ? widen(x.from[0]) : 0.0f;
        x.each([&](u32, const float (&v)[E]) {
#pragma unroll
            for (int k = 0; k < E; k++) {
                float d = v[k] - first;
                sum[0] += d;
                sum[1] = fmaf(d, d, sum[1]);
            }
        });
        team.sum(sum);
        float apart = sum[0] * each;
        mean = first + apart, square = fmaf(sum[1], each, -apart * apart);
    } else {
        float sum[1] = {0.0f}, rest[2] = {0.0f, 0.0f};
        x.each([&](u32, const float (&v)[E]) {
#pragma unroll
            for (int k = 0; k < E; k++) sum[0] += v[k];
        });
        team.sum(sum);
        mean = sum[0] * each;
        // With what rounding left of the mean: large means cost no digits.
        x.each([&](u32, const float (&v)[E]) {
#pragma unroll
            for (int k = 0; k < E; k++) {
                float d = v[k] - mean;
                rest[0] += d;
                rest[1] = fmaf(d, d, rest[1]);
            }
        });
        team.sum(rest);
        left = rest[0] * each, square = fmaf(rest[1], each, -left * left);
    }
    // The root to 2 ulp. Of 16 bits the mean is in the offset: what rounding takes from that is far less than from y.
    constexpr bool FOLDED = sizeof(T) == 2;
    float rstd = rsqrtf(fmaxf(square, 0.0f) + eps), offset = -(FOLDED ? mean : left) * rstd;
    if (there && team.lane == 0) {
        stats[0] = mean + left;
        stats[1] = rstd;
    }
    x.each([&](u32 i, const float (&v)[E]) {
        float out[E];
#pragma unroll
        for (int k = 0; k < E; k++) out[k] = fmaf(FOLDED ? v[k] : v[k] - mean, rstd, offset);
        p.follow(out, i);
        *(Pack<T, E>*)(y + i) = narrow_all<T>(out);
    });
}

// As `normalise` of 16 bits, of ROWS rows below each other, whose parameters are read and widened once. A team is a warp at most.
template <class T, int FOURS, int ROWS>
__device__ __forceinline__ void normalise_rows(const T* from, RowTeam team, Parameters<T> p, T* y, f32* stats, u32 rows, u32 channels, float eps) {
    using Row = HeldRow<T, FOURS>;
    constexpr int E = Row::EACH;
    float each = 1.0f / float(channels), sum[2 * ROWS] = {}, rstd[ROWS], offset[ROWS];
    Wide<T> packs[ROWS][Row::HELD];
    // Teams behind the last row have no numbers.
    u32 n = rows > 0 ? channels : 0, first = team.lane * E, on = team.lanes * E;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int k = 0; k < Row::HELD; k++)
            if (r < rows && first + k * on < n) packs[r][k] = *(const Wide<T>*)(from + r * channels + first + k * on);
    // One row does for those below.
    if (threadIdx.x < max(team.lanes, 32u)) {
#pragma unroll
        for (int k = 0; k < Row::HELD; k++)
            if (first + k * on < n) p.prefetch(first + k * on);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if (r >= rows) continue;
        float start = widen(from[r * channels]);
        offset[r] = start;
#pragma unroll
        for (int k = 0; k < Row::HELD; k++) {
            if (first + k * on >= n) continue;
            float v[E];
            widen_all<T>(v, packs[r][k]);
#pragma unroll
            for (int e = 0; e < E; e++) {
                float d = v[e] - start;
                sum[2 * r] += d;
                sum[2 * r + 1] = fmaf(d, d, sum[2 * r + 1]);
            }
        }
    }
    sum_in_warp(sum, team.lanes);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float apart = sum[2 * r] * each, mean = offset[r] + apart;
        rstd[r] = rsqrtf(fmaxf(fmaf(sum[2 * r + 1], each, -apart * apart), 0.0f) + eps), offset[r] = -mean * rstd[r];
        if (r < rows && team.lane == 0) {
            stats[2 * r] = mean;
            stats[2 * r + 1] = rstd[r];
        }
    }
#pragma unroll
    for (int k = 0; k < Row::HELD; k++) {
        u32 c = first + k * on;
        if (c >= n) continue;
        float out[ROWS][E];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            widen_all<T>(out[r], packs[r][k]);
#pragma unroll
            for (int e = 0; e < E; e++) out[r][e] = fmaf(out[r][e], rstd[r], offset[r]);
        }
        p.follow(out, c);
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            if (r < rows) *(Wide<T>*)(y + r * channels + c) = narrow_all<T>(out[r]);
    }
}

#define ENTRY(FOURS, T)                                                                                                               \
    FLAT_KERNEL layer_norm_##FOURS##_##T(const T* x, const T* gamma, const T* beta, const T* scale,                                   \
                                         const T* shift, T* y, f32* stats, u32 lanes, u32 rows, u32 channels,                         \
                                         u32 per_sample, u32 affine, u32 modulate, float eps, u32 wide, u32 scale_at, u32 shift_at) { \
        RowTeam team(lanes);                                                                                                          \
        bool there = team.row < rows;                                                                                                 \
        u32 n = there ? channels : 0;                                                                                                 \
        u64 sample = u64(team.row / per_sample) * wide, start = u64(team.row) * channels;                                             \
        Parameters<T> first{gamma, beta, scale + scale_at, shift + shift_at, affine != 0, modulate != 0};                             \
        Parameters<T> p{gamma, beta, first.scale + sample, first.shift + sample, first.affine, first.modulate};                       \
        f32* own = stats + 2 * u64(team.row);                                                                                         \
        bool aligned = is_aligned(x) && is_aligned(y) && first.aligned() && (!modulate || wide * sizeof(T) % 16 == 0);                \
        if (can_hold<T, FOURS>(channels, lanes) && aligned)                                                                           \
            normalise(HeldRow<T, FOURS>(x + start, team, n), team, p, y + start, own, there, channels, eps);                          \
        else normalise(AnyRow<T>(x + start, team, n), team, p, y + start, own, there, channels, eps);                                 \
    }
#define ROWS(T) FOR_ROWS(ENTRY, T)
FOR_TYPES(ROWS)

// Two rows of a sample to a team: where there are enough for all multiprocessors, in whole packs, of 16 bits.
#define PAIR(FOURS, T)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 3)                                                      \
    layer_norm_pair_##FOURS##_##T(const T* x, const T* gamma, const T* beta, const T* scale, const T* shift, T* y,     \
                                  f32* stats, u32 lanes, u32 rows, u32 channels, u32 per_sample, u32 affine,           \
                                  u32 modulate, float eps, u32 wide, u32 scale_at, u32 shift_at) {                     \
        RowTeam team(lanes);                                                                                           \
        u32 row = 2 * team.row, left = row < rows ? rows - row : 0;                                                    \
        u64 sample = u64(row / per_sample) * wide, start = u64(row) * channels;                                        \
        scale += scale_at + sample, shift += shift_at + sample;                                                        \
        Parameters<T> p{gamma, beta, scale, shift, affine != 0, modulate != 0};                                        \
        normalise_rows<T, FOURS, 2>(x + start, team, p, y + start, stats + 2 * u64(row), min(left, 2), channels, eps); \
    }
#define PAIRS(T) FOR_ROWS(PAIR, T)
PAIRS(f16)
PAIRS(bf16)
