// The backward of a normalisation of the rows of x [samples, rows, C]: with g = dy · factor and n = (x - mean) · rstd,
// dx = rstd · (g - mean(g) - n · mean(g · n)), and the sums of dy and dy · n over the rows of every stretch: [samples, stretches, 2, C], f32.
// With one value there is no mean: neither mean(g) nor sums of dy.
// A block has a stretch of a sample's rows. Its threads keep their parts of a row in registers, and their columns' sums and factors through
// all rows; so x and dy are read once. `ops/norm.rs` lowers it.
#pragma once
#include "norm.cuh"

template <class T, int VALUES>
struct RowGrad {
    // A thread's numbers of a row.
    static constexpr int NUMBERS = 16, E = WIDE<T>, HELD = NUMBERS / E;
    const T *x, *gamma, *scale, *dy;
    T* dx;
    // [rows, VALUES]: mean, rstd
    const f32* stats;
    // Of the stretch: [VALUES, C]
    f32* sums;
    u32 channels, first, end;
    bool affine, modulate, summed;

    __device__ __forceinline__ float mean(u32 row) const { return VALUES == 2 ? stats[2 * u64(row)] : 0.0f; }
    __device__ __forceinline__ float rstd(u32 row) const { return stats[VALUES * u64(row) + VALUES - 1]; }

    __device__ __forceinline__ float factor(u32 c) const {
        return (affine ? widen(gamma[c]) : 1.0f) * (modulate ? 1.0f + widen(scale[c]) : 1.0f);
    }

    // What dx takes from rstd · g: a constant, if there is a mean, and a slope over x - mean; from a row's sums of g and g · n.
    __device__ __forceinline__ void finish(float (&sum)[VALUES], float rstd) const {
        float by = rstd / float(channels);
        if (VALUES == 2) sum[0] *= by;
        sum[VALUES - 1] *= by * rstd;
    }

    __device__ __forceinline__ float made(float g, float d, const float (&sum)[VALUES], float rstd) const {
        return fmaf(g, rstd, fmaf(-d, sum[VALUES - 1], VALUES == 2 ? -sum[0] : 0.0f));
    }

    using Row = HeldRow<T, NUMBERS / 4>;
    // The next row is on its way while one is computed with, where registers are enough.
    static constexpr bool AHEAD = sizeof(T) == 2;

    __device__ __forceinline__ Row read(const T* from, u32 row, RowTeam team) const {
        return Row(from + u64(row) * channels, team, row < end ? channels : 0);
    }

    // by *= plus + parameter, column by column.
    __device__ __forceinline__ void multiply(float (&by)[NUMBERS], const Row& parameter, float plus) const {
#pragma unroll
        for (int k = 0; k < HELD; k++)
#pragma unroll
            for (int e = 0; e < E; e++)
                if (parameter.place(k) < channels) by[k * E + e] *= plus + widen(parameter.packs[k].at[e]);
    }

    // f(i, x, dy) for the packs that a thread has, i being its number of their first.
    template <class F>
    __device__ __forceinline__ void each(const Row& x, const Row& dy, F f) const {
#pragma unroll
        for (int k = 0; k < HELD; k++)
            if (x.place(k) < x.n) f(k * E, x.packs[k], dy.packs[k]);
    }

    // `lanes` threads to a row.
    __device__ __forceinline__ void held(u32 lanes) const {
        RowTeam team(lanes);
        u32 teams = FLAT_THREADS / lanes;
        float by[NUMBERS], total[VALUES][NUMBERS];
#pragma unroll
        for (int i = 0; i < NUMBERS; i++) {
            by[i] = 1.0f;
#pragma unroll
            for (int v = 0; v < VALUES; v++) total[v][i] = 0.0f;
        }
        if (affine) multiply(by, Row(gamma, team, channels), 0.0f);
        if (modulate) multiply(by, Row(scale, team, channels), 1.0f);
        u32 row = first + threadIdx.x / lanes;
        Row a = read(x, row, team), b = read(dy, row, team);
#pragma unroll 1
        for (u32 next = first; next < end; next += teams, row += teams) {
            bool there = row < end;
            float m = there ? mean(row) : 0.0f, s = there ? rstd(row) : 0.0f, sum[VALUES] = {};
            Row own = a, other = b;
            if (AHEAD) a = read(x, row + teams, team), b = read(dy, row + teams, team);
            each(own, other, [&](int i, const Wide<T>& x, const Wide<T>& dy) {
#pragma unroll
                for (int e = 0; e < E; e++) {
                    float n = (widen(x.at[e]) - m) * s, v = widen(dy.at[e]), g = v * by[i + e];
                    sum[VALUES - 1] = fmaf(g, n, sum[VALUES - 1]);
                    total[VALUES - 1][i + e] = fmaf(v, n, total[VALUES - 1][i + e]);
                    if (VALUES == 1) continue;
                    sum[0] += g;
                    total[0][i + e] += v;
                }
            });
            team.sum(sum);
            finish(sum, s);
            T* to = dx + u64(row) * channels;
            each(own, other, [&](int i, const Wide<T>& x, const Wide<T>& dy) {
                Wide<T> out;
#pragma unroll
                for (int e = 0; e < E; e++)
                    out.at[e] = narrow<T>(made(widen(dy.at[e]) * by[i + e], widen(x.at[e]) - m, sum, s));
                *(Wide<T>*)(to + own.place(i / E)) = out;
            });
            if (!AHEAD) a = read(x, row + teams, team), b = read(dy, row + teams, team);
        }
        if (summed) store(total, lanes, teams);
    }

    // Adds up what the teams have, four neighbouring columns of a thread after the other.
    __device__ __forceinline__ void store(const float (&total)[VALUES][NUMBERS], u32 lanes, u32 teams) const {
        __shared__ alignas(16) f32 lines[4 * FLAT_THREADS];
#pragma unroll
        for (int v = 0; v < VALUES; v++) {
#pragma unroll
            for (int i = 0; i < NUMBERS; i += 4) {
                if (i / E * lanes * E >= channels) continue;
                Pack<f32, 4> own;
#pragma unroll
                for (int k = 0; k < 4; k++) own.at[k] = total[v][i + k];
                __syncthreads();
                *(Pack<f32, 4>*)(lines + 4 * threadIdx.x) = own;
                __syncthreads();
#pragma unroll 1
                for (u32 j = threadIdx.x; j < 4 * lanes; j += FLAT_THREADS) {
                    u32 c = (i / E * lanes + j / 4) * E + i % E + j % 4;
                    if (c >= channels) continue;
                    float sum = lines[j];
#pragma unroll 1
                    for (u32 t = 1; t < teams; t++) sum += lines[t * 4 * lanes + j];
                    sums[v * channels + c] = sum;
                }
            }
        }
    }

    // Any row, read twice, by all threads: each has its columns' sums in memory.
    __device__ __forceinline__ void any() const {
        RowTeam team(FLAT_THREADS);
        for (u32 c = threadIdx.x; c < VALUES * channels && summed; c += FLAT_THREADS) sums[c] = 0.0f;
        // Whose columns are others' then.
        __syncthreads();
#pragma unroll 1
        for (u32 row = first; row < end; row++) {
            u64 start = u64(row) * channels;
            float m = mean(row), s = rstd(row), sum[VALUES] = {};
#pragma unroll 1
            for (u32 c = threadIdx.x; c < channels; c += FLAT_THREADS) {
                float n = (widen(x[start + c]) - m) * s, own = widen(dy[start + c]), g = own * factor(c);
                sum[VALUES - 1] = fmaf(g, n, sum[VALUES - 1]);
                if (VALUES == 2) sum[0] += g;
                if (!summed) continue;
                sums[(VALUES - 1) * channels + c] += own * n;
                if (VALUES == 2) sums[c] += own;
            }
            team.sum(sum);
            finish(sum, s);
#pragma unroll 1
            for (u32 c = threadIdx.x; c < channels; c += FLAT_THREADS)
                dx[start + c] = narrow<T>(made(widen(dy[start + c]) * factor(c), widen(x[start + c]) - m, sum, s));
        }
    }

    __device__ __forceinline__ void run(u32 lanes) const {
        bool parameters = (!affine || packs_are_aligned(gamma)) && (!modulate || packs_are_aligned(scale));
        if (packs_are_aligned(x, dy, dx) && parameters && channels % E == 0 && channels <= NUMBERS * lanes) held(lanes);
        else any();
    }
};

// Two blocks a multiprocessor.
#define ROW_GRAD_KERNEL extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 2)
// What an entry is told of the rows: each shared by `lanes` threads, `count` stretches of `per` rows a sample.
#define ROW_GRAD u32 lanes, u32 rows, u32 channels, u32 count, u32 per
