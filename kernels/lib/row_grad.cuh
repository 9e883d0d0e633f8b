// The backward of a normalisation of the rows of x [samples, rows, C]: with g = dy · factor and n = (x - mean) · rstd,
// dx = rstd · (g - mean(g) - n · mean(g · n)), and the sums of dy and dy · n over the rows of every stretch: [samples, stretches, 2, C], f32.
// With one value there is no mean: neither mean(g) nor sums of dy.
// A block has a stretch of a sample's rows. Its threads keep their parts of a row in registers, and their columns' sums and factors through
// all rows; so x and dy are read once. `ops/norm.rs` lowers it.
#pragma once
#include "norm.cuh"

// Threads of a block that share its rows: `lanes` of them a row, a power of two up to a warp, or some warps.
template <int VALUES>
struct RowTeams {
    u32 lanes, teams, team, lane;

    __device__ __forceinline__ RowTeams(u32 lanes) : lanes(lanes) {
        teams = blockDim.x / lanes, team = threadIdx.x / lanes;
        lane = threadIdx.x - team * lanes;
    }

    // v becomes the sums over a team's lanes, the same on every one. All threads of the block must come here, with 0 and 1 in turn: what is
    // written one time is read by all before it is written again, with one barrier.
    __device__ __forceinline__ void sum(float (&v)[VALUES], u32 turn) const {
        sum_in_warp(v, lanes);
        if (lanes <= 32) return;
        __shared__ Pack<f32, VALUES> parts[2][FLAT_THREADS / 32];
        if (threadIdx.x % 32 == 0) {
            Pack<f32, VALUES> own;
#pragma unroll
            for (int k = 0; k < VALUES; k++) own.at[k] = v[k];
            parts[turn][threadIdx.x / 32] = own;
        }
        __syncthreads();
        u32 warps = lanes / 32, first = team * warps;
#pragma unroll
        for (int k = 0; k < VALUES; k++) v[k] = 0.0f;
#pragma unroll 2
        for (u32 w = 0; w < warps; w++) {
            Pack<f32, VALUES> part = parts[turn][first + w];
#pragma unroll
            for (int k = 0; k < VALUES; k++) v[k] += part.at[k];
        }
    }
};

// NUMBERS: those of a row that a thread has.
template <class T, int VALUES, int NUMBERS>
struct RowGrad {
    static constexpr int E = WIDE<T>, HELD = NUMBERS / E;
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
    __device__ __forceinline__ void finish(float (&sum)[VALUES], float rstd, float each) const {
        float by = rstd * each;
        if (VALUES == 2) sum[0] *= by;
        sum[VALUES - 1] *= by * rstd;
    }

    __device__ __forceinline__ float made(float g, float d, const float (&sum)[VALUES], float rstd) const {
        return fmaf(g, rstd, fmaf(-d, sum[VALUES - 1], VALUES == 2 ? -sum[0] : 0.0f));
    }

    // The packs of a thread, of x and dy in one row; and the row's statistics.
    struct Row {
        Wide<T> x[HELD], dy[HELD];
        float mean, rstd;
    };

    // Rows that are on their way while one is computed with, where registers are enough; where its numbers are kept it makes room for the next.
    static constexpr int AHEAD = sizeof(T) == 2 ? 2 : 1;

    __device__ __forceinline__ u32 place(const RowTeams<VALUES>& t, int k) const { return (k * t.lanes + t.lane) * E; }

    __device__ __forceinline__ void read(Row& into, u32 row, const RowTeams<VALUES>& t) const {
        if (row >= end) return;
        into.mean = mean(row), into.rstd = rstd(row);
        u64 start = u64(row) * channels;
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            if (place(t, k) >= channels) continue;
            into.x[k] = *(const Wide<T>*)(x + start + place(t, k));
            into.dy[k] = *(const Wide<T>*)(dy + start + place(t, k));
        }
    }

    // by *= plus + parameter, column by column.
    __device__ __forceinline__ void multiply(float (&by)[NUMBERS], const T* parameter, float plus, const RowTeams<VALUES>& t) const {
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            if (place(t, k) >= channels) continue;
            float v[E];
            widen_all<T>(v, *(const Wide<T>*)(parameter + place(t, k)));
#pragma unroll
            for (int e = 0; e < E; e++) by[k * E + e] *= plus + v[e];
        }
    }

    // f(k, x, dy) for the packs k that a thread has of a row.
    template <class F>
    __device__ __forceinline__ void each(const Row& row, bool there, const RowTeams<VALUES>& t, F f) const {
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            if (!there || place(t, k) >= channels) continue;
            float a[E], b[E];
            widen_all<T>(a, row.x[k]);
            widen_all<T>(b, row.dy[k]);
            f(k, a, b);
        }
    }

    // x - mean and g stay from the sums to dx, where registers are enough.
    static constexpr bool KEPT = NUMBERS == 8;

    // `lanes` threads to a row.
    __device__ __forceinline__ void held(u32 lanes) const {
        RowTeams<VALUES> team(lanes);
        float by[NUMBERS], total[VALUES][NUMBERS], part = 1.0f / float(channels);
#pragma unroll
        for (int i = 0; i < NUMBERS; i++) {
            by[i] = 1.0f;
#pragma unroll
            for (int v = 0; v < VALUES; v++) total[v][i] = 0.0f;
        }
        if (affine) multiply(by, gamma, 0.0f, team);
        if (modulate) multiply(by, scale, 1.0f, team);
        u32 row = first + team.team, turn = 0;
        Row rows[AHEAD];
#pragma unroll
        for (int r = 0; r < AHEAD; r++) read(rows[r], row + r * team.teams, team);
#pragma unroll 1
        for (u32 next = first; next < end;) {
#pragma unroll
            for (int r = 0; r < AHEAD; r++, next += team.teams, row += team.teams, turn ^= 1) {
                // The same for all teams.
                if (r > 0 && next >= end) break;
                Row& own = rows[r];
                bool there = row < end;
                float m = own.mean, s = own.rstd, sum[VALUES] = {};
                float d[NUMBERS], g[NUMBERS];
                each(own, there, team, [&](int i, const float (&x)[E], const float (&dy)[E]) {
#pragma unroll
                    for (int e = 0; e < E; e++) {
                        int c = i * E + e;
                        d[c] = x[e] - m, g[c] = dy[e] * by[c];
                        float n = d[c] * s;
                        sum[VALUES - 1] = fmaf(g[c], n, sum[VALUES - 1]);
                        total[VALUES - 1][c] = fmaf(dy[e], n, total[VALUES - 1][c]);
                        if (VALUES == 1) continue;
                        sum[0] += g[c];
                        total[0][c] += dy[e];
                    }
                });
                if (KEPT) read(own, row + AHEAD * team.teams, team);
                team.sum(sum, turn);
                finish(sum, s, part);
                T* to = dx + u64(row) * channels;
                if (KEPT) {
#pragma unroll
                    for (int i = 0; i < HELD; i++) {
                        if (!there || place(team, i) >= channels) continue;
                        float out[E];
#pragma unroll
                        for (int e = 0; e < E; e++) out[e] = made(g[i * E + e], d[i * E + e], sum, s);
                        *(Wide<T>*)(to + place(team, i)) = narrow_all<T>(out);
                    }
                } else {
                    each(own, there, team, [&](int i, const float (&x)[E], const float (&dy)[E]) {
                        float out[E];
#pragma unroll
                        for (int e = 0; e < E; e++) out[e] = made(dy[e] * by[i * E + e], x[e] - m, sum, s);
                        *(Wide<T>*)(to + place(team, i)) = narrow_all<T>(out);
                    });
                    read(own, row + AHEAD * team.teams, team);
                }
            }
        }
        if (summed) store(total, team);
    }

    // Adds up what the teams have, four neighbouring columns of a thread after the other.
    __device__ __forceinline__ void store(const float (&total)[VALUES][NUMBERS], const RowTeams<VALUES>& team) const {
        __shared__ alignas(16) f32 lines[4 * FLAT_THREADS];
#pragma unroll
        for (int v = 0; v < VALUES; v++) {
#pragma unroll
            for (int i = 0; i < NUMBERS; i += 4) {
                if (i / E * team.lanes * E >= channels) continue;
                Pack<f32, 4> own;
#pragma unroll
                for (int k = 0; k < 4; k++) own.at[k] = total[v][i + k];
                __syncthreads();
                *(Pack<f32, 4>*)(lines + 4 * threadIdx.x) = own;
                __syncthreads();
#pragma unroll 1
                for (u32 j = threadIdx.x; j < 4 * team.lanes; j += blockDim.x) {
                    u32 c = (i / E * team.lanes + j / 4) * E + i % E + j % 4;
                    if (c >= channels) continue;
                    float sum = lines[j];
#pragma unroll 1
                    for (u32 t = 1; t < team.teams; t++) sum += lines[t * 4 * team.lanes + j];
                    sums[v * channels + c] = sum;
                }
            }
        }
    }

    // Any row, read twice, by all threads: each has its columns' sums in memory.
    __device__ __forceinline__ void any() const {
        RowTeams<VALUES> team(blockDim.x);
        u32 turn = 0;
        for (u32 c = threadIdx.x; c < VALUES * channels && summed; c += blockDim.x) sums[c] = 0.0f;
        // Whose columns are others' then.
        __syncthreads();
#pragma unroll 1
        for (u32 row = first; row < end; row++, turn ^= 1) {
            u64 start = u64(row) * channels;
            float m = mean(row), s = rstd(row), sum[VALUES] = {};
#pragma unroll 1
            for (u32 c = threadIdx.x; c < channels; c += blockDim.x) {
                float n = (widen(x[start + c]) - m) * s, own = widen(dy[start + c]), g = own * factor(c);
                sum[VALUES - 1] = fmaf(g, n, sum[VALUES - 1]);
                if (VALUES == 2) sum[0] += g;
                if (!summed) continue;
                sums[(VALUES - 1) * channels + c] += own * n;
                if (VALUES == 2) sums[c] += own;
            }
            team.sum(sum, turn);
            finish(sum, s, 1.0f / float(channels));
#pragma unroll 1
            for (u32 c = threadIdx.x; c < channels; c += blockDim.x)
                dx[start + c] = narrow<T>(made(widen(dy[start + c]) * factor(c), widen(x[start + c]) - m, sum, s));
        }
    }

    __device__ __forceinline__ void run(u32 lanes) const {
        bool parameters = (!affine || packs_are_aligned(gamma)) && (!modulate || packs_are_aligned(scale));
        bool aligned = packs_are_aligned(x, dy, dx) && parameters;
        // Rows of whole packs come to entries of 8 numbers.
        if ((NUMBERS == 8 && sizeof(T) == 2) || (aligned && channels % E == 0 && channels <= NUMBERS * lanes)) held(lanes);
        else any();
    }
};

// Blocks of 256 threads that a multiprocessor has registers for.
#define ROW_GRAD_KERNEL(NUMBERS) extern "C" __global__ void __launch_bounds__(FLAT_THREADS, NUMBERS == 8 ? 3 : 2)
// What an entry is told of the rows: each shared by `lanes` threads, `count` stretches of `per` rows a sample.
#define ROW_GRAD u32 lanes, u32 rows, u32 channels, u32 count, u32 per
// Entries for rows of up to 8 and 16 numbers a thread.
#define FOR_ROW_GRADS(ENTRY, T) ENTRY(8, T) ENTRY(16, T)
