// x [rows, C] -> y = n, then (n · gamma + beta) · (1 + scale) + shift, each pair there or not, n = (x - mean) · rstd over each row;
// stats [rows, 2]: mean, rstd.
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

#define ENTRY(FOURS, T)                                                                                          \
    FLAT_KERNEL layer_norm_##FOURS##_##T(const T* x, const T* gamma, const T* beta, const T* scale,           \
                                                  const T* shift, T* y, f32* stats, u32 lanes, u32 rows, u32 channels,            \
                                                  u32 per_sample, u32 affine, u32 modulate, float eps) {               \
        RowTeam team(lanes);                                                                                           \
        bool there = team.row < rows;                                                                                  \
        u32 n = there ? channels : 0;                                                                                  \
        u64 sample = u64(team.row / per_sample) * channels, start = u64(team.row) * channels;                          \
        Parameters<T> p{gamma, beta, scale + sample, shift + sample, affine != 0, modulate != 0};                      \
        f32* own = stats + 2 * u64(team.row);                                                                          \
        bool aligned = is_aligned(x) && is_aligned(y) && Parameters<T>{gamma, beta, scale, shift, p.affine, p.modulate}.aligned(); \
        if (can_hold<T, FOURS>(channels, lanes) && aligned)                                                             \
            normalise(HeldRow<T, FOURS>(x + start, team, n), team, p, y + start, own, there, channels, eps); \
        else normalise(AnyRow<T>(x + start, team, n), team, p, y + start, own, there, channels, eps);      \
    }
#define ROWS(T) FOR_ROWS(ENTRY, T)
FOR_TYPES(ROWS)
