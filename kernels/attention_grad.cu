// The gradient of attention: with P = exp(scale · q kᵀ - lse), dS = P ∘ (dy vᵀ - rowsum(dy ∘ y)):
// dv = Pᵀ dy, dk = scale · dSᵀ q, dq = scale · dS k   (Dao et al. 2022)
//
// Floor: five products on FMA units, 2 Tq Tk (3 d + 2 dv) FLOPs a head. Here seven: q kᵀ and dy vᵀ are made by keys, for dk and
// dv, and again by queries, for dq, so that every sum stays in the registers of one block, without atomics. Wider heads than 128 columns
// are made in slices (blockIdx.z), with those two products again for each.
#include "lib/attention.cuh"
#include "lib/flat.cuh"

// delta [pairs, queries] = rowsum(dy ∘ y): 8 lanes a row.
extern "C" __global__ void __launch_bounds__(256)
    attention_grad_delta_f32(const float* y, const float* dy, float* delta, u32 pairs, u32 queries, u32 heads, u32 dv) {
    u64 number = u64(blockIdx.x) * 32 + threadIdx.x / 8, rows = u64(pairs) * queries;
    u32 lane = threadIdx.x % 8;
    // Lanes behind the last row sum it too, so that all are there for the exchange.
    u64 row = min(number, rows - 1);
    u32 pair = u32(row / queries), query = u32(row - u64(pair) * queries);
    Head<const float> a(y, pair, heads, queries, dv), b(dy, pair, heads, queries, dv);
    const float *x = a.row(query), *dx = b.row(query);
    float sum = 0.0f;
    if (a.wide && b.wide) {
        for (u32 i = lane * 4; i < dv; i += 32) {
            float4 left = *(const float4*)(x + i), right = *(const float4*)(dx + i);
            sum += left.x * right.x + left.y * right.y + left.z * right.z + left.w * right.w;
        }
    } else {
        for (u32 i = lane; i < dv; i += 8) sum += x[i] * dx[i];
    }
#pragma unroll
    for (u32 step = 4; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (lane == 0 && number < rows) delta[row] = sum;
}

// P and dS lie in shared memory, one after the other. A thread reads its own P where it puts its dS.
__device__ __forceinline__ float* weight(float* weights, u32 i, u32 j) {
    return weights + (threadIdx.x / 16 + 8 * i) * WEIGHTS_STRIDE + threadIdx.x % 16 + 16 * j;
}

// Scores to P = 2 to the power of factor · s - less(i, j), and zeros again.
template <class Less>
__device__ __forceinline__ void put_softmax(float* weights, float (&s)[8][4], float factor, Less less) {
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            *weight(weights, i, j) = exp2_fast(fmaf(s[i][j], factor, -less(i, j)));
            s[i][j] = 0.0f;
        }
    }
}

// dP to dS = P (dP - delta(i, j)), and zeros again.
template <class Delta>
__device__ __forceinline__ void put_slopes(float* weights, float (&s)[8][4], Delta delta) {
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            *weight(weights, i, j) *= s[i][j] - delta(i, j);
            s[i][j] = 0.0f;
        }
    }
}

// 64 keys of one head, over its queries or a part of them (blockIdx.y): 16 · N columns of dk and dv.
template <int N>
__device__ __forceinline__ void by_key(const float* q, const float* k, const float* v, const float* dy, const float* lse,
                                       const float* delta, float* dk, float* dv, u32 queries, u32 keys, u32 heads, u32 d,
                                       u32 wide_v, u32 blocks, u32 split, float scale) {
    extern __shared__ __align__(16) float floats[];
    float* weights = floats + 2 * STAGE;
    u32 tx = threadIdx.x % 16, pair = blockIdx.x / blocks, first = blockIdx.x % blocks * TILE, col = blockIdx.z * 16 * N;
    u32 begin = blockIdx.y * split, end = min(queries, begin + split), tiles = (end - begin + TILE - 1) / TILE;
    Head<const float> qs(q, pair, heads, queries, d), ks(k, pair, heads, keys, d);
    Head<const float> vs(v, pair, heads, keys, wide_v), dys(dy, pair, heads, queries, wide_v);
    // Steps: scores, sums to dv, dP, sums to dk. Where each begins:
    constexpr u32 SUMS = TILE / SUMMED<N>;
    u32 sums_v = (d + DEPTH - 1) / DEPTH, slopes = sums_v + SUMS, sums_k = slopes + (wide_v + DEPTH - 1) / DEPTH;
    lse += u64(pair) * queries, delta += u64(pair) * queries;
    float s[8][4] = {}, to_k[8][N] = {}, to_v[8][N] = {}, logs[4], deltas[4];

    auto load = [&](Step step, float* stage) {
        u32 query = begin + step.tile * TILE, phase = step.phase;
        bool scores = phase < sums_v, by_row = scores || (phase >= slopes && phase < sums_k);
        bool of_dy = phase >= sums_v && phase < sums_k;
        Head<const float> right = choose(of_dy, dys, qs);
        if (by_row) {
            u32 at = (scores ? phase : phase - slopes) * DEPTH;
            copy_rows<TILE, DEPTH, DEPTH_STRIDE>(stage, choose(scores, ks, vs), first, keys, at);
            copy_rows<TILE, DEPTH, DEPTH_STRIDE>(stage + STAGE / 2, right, query, end, at);
        } else {
            u32 number = of_dy ? phase - sums_v : phase - sums_k;
            copy_rows<SUMMED<N>, 16 * N, 16 * N>(stage, right, query + number * SUMMED<N>, end, col);
        }
    };
    pipeline(floats, tiles, sums_k + SUMS, load, [&](Step step, const float* stage) {
        u32 query = begin + step.tile * TILE, left = end - query, phase = step.phase;
        if (phase == 0) {
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                bool has = tx + 16 * j < left;
                // Where there is no query P is 0.
                logs[j] = has ? lse[query + tx + 16 * j] * LOG2_E : INFINITE;
                deltas[j] = has ? delta[query + tx + 16 * j] : 0.0f;
            }
        }
        bool scores = phase < sums_v;
        if (scores || (phase >= slopes && phase < sums_k)) {
            u32 width = scores ? d - phase * DEPTH : wide_v - (phase - slopes) * DEPTH;
            dots(s, stage, stage + STAGE / 2, min(width, DEPTH));
            if (phase + 1 == sums_v) put_softmax(weights, s, scale * LOG2_E, [&](u32, u32 j) { return logs[j]; });
            if (phase + 1 == sums_k) put_slopes(weights, s, [&](u32, u32 j) { return deltas[j]; });
            return;
        }
        __syncwarp();
        bool of_v = phase < slopes;
        u32 at = (of_v ? phase - sums_v : phase - sums_k) * SUMMED<N>;
        if (at >= left) return;
        u32 count = min(left - at, SUMMED<N>);
        if (of_v) sums(to_v, weights + at, stage, count);
        else sums(to_k, weights + at, stage, count);
    });
    float factor[8];
#pragma unroll
    for (int i = 0; i < 8; i++) factor[i] = 1.0f;
    u64 part = u64(gridDim.x / blocks) * keys * blockIdx.y;
    put_rows(Head<float>(dv + part * wide_v, pair, heads, keys, wide_v), first, keys, col, to_v, factor);
#pragma unroll
    for (int i = 0; i < 8; i++) factor[i] = scale;
    put_rows(Head<float>(dk + part * d, pair, heads, keys, d), first, keys, col, to_k, factor);
}

// 64 queries of one head, over its keys or a part of them (blockIdx.y): 16 · N columns of dq.
template <int N>
__device__ __forceinline__ void by_query(const float* q, const float* k, const float* v, const float* dy, const float* lse,
                                         const float* delta, float* dq, u32 queries, u32 keys, u32 heads, u32 d, u32 wide_v,
                                         u32 blocks, u32 split, float scale) {
    extern __shared__ __align__(16) float floats[];
    float* weights = floats + 2 * STAGE;
    u32 tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    u32 pair = blockIdx.x / blocks, first = blockIdx.x % blocks * TILE, col = blockIdx.z * 16 * N;
    u32 begin = blockIdx.y * split, end = min(keys, begin + split), tiles = (end - begin + TILE - 1) / TILE;
    Head<const float> qs(q, pair, heads, queries, d), ks(k, pair, heads, keys, d);
    Head<const float> vs(v, pair, heads, keys, wide_v), dys(dy, pair, heads, queries, wide_v);
    // Steps: scores, dP, sums.
    u32 slopes = (d + DEPTH - 1) / DEPTH, sums_k = slopes + (wide_v + DEPTH - 1) / DEPTH;
    float s[8][4] = {}, to_q[8][N] = {}, logs[8], deltas[8];
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        u32 row = first + ty + 8 * i;
        u64 number = u64(pair) * queries + row;
        logs[i] = row < queries ? lse[number] * LOG2_E : INFINITE;
        deltas[i] = row < queries ? delta[number] : 0.0f;
    }

    auto load = [&](Step step, float* stage) {
        u32 key = begin + step.tile * TILE, phase = step.phase;
        if (phase < sums_k) {
            bool scores = phase < slopes;
            u32 at = (scores ? phase : phase - slopes) * DEPTH;
            copy_rows<TILE, DEPTH, DEPTH_STRIDE>(stage, choose(scores, qs, dys), first, queries, at);
            copy_rows<TILE, DEPTH, DEPTH_STRIDE>(stage + STAGE / 2, choose(scores, ks, vs), key, end, at);
        } else {
            copy_rows<SUMMED<N>, 16 * N, 16 * N>(stage, ks, key + (phase - sums_k) * SUMMED<N>, end, col);
        }
    };
    pipeline(floats, tiles, sums_k + TILE / SUMMED<N>, load, [&](Step step, const float* stage) {
        u32 left = end - begin - step.tile * TILE, phase = step.phase;
        if (phase < sums_k) {
            u32 width = phase < slopes ? d - phase * DEPTH : wide_v - (phase - slopes) * DEPTH;
            dots(s, stage, stage + STAGE / 2, min(width, DEPTH));
            // Where there is no key P is 0.
            auto less = [&](u32 i, u32 j) { return tx + 16 * j < left ? logs[i] : INFINITE; };
            if (phase + 1 == slopes) put_softmax(weights, s, scale * LOG2_E, less);
            if (phase + 1 == sums_k) put_slopes(weights, s, [&](u32 i, u32) { return deltas[i]; });
            return;
        }
        __syncwarp();
        u32 at = (phase - sums_k) * SUMMED<N>;
        if (at < left) sums(to_q, weights + at, stage, min(left - at, SUMMED<N>));
    });
    float factor[8];
#pragma unroll
    for (int i = 0; i < 8; i++) factor[i] = scale;
    u64 part = u64(gridDim.x / blocks) * queries * blockIdx.y;
    put_rows(Head<float>(dq + part * d, pair, heads, queries, d), first, queries, col, to_q, factor);
}

// out = the sum of `parts` arrays of n numbers, one behind the other.
FLAT_KERNEL attention_grad_sum_f32(const float* part, float* out, u32 n, u32 parts) {
    u64 start = flat_start(4);
    if (n % 4 == 0 && is_aligned(out)) {
        if (start >= n) return;
        Wide<float> sum = *(const Wide<float>*)(part + start);
        for (u32 p = 1; p < parts; p++) {
            Wide<float> more = *(const Wide<float>*)(part + u64(p) * n + start);
#pragma unroll
            for (int i = 0; i < 4; i++) sum.at[i] += more.at[i];
        }
        *(Wide<float>*)(out + start) = sum;
        return;
    }
    for (u64 i = start; i < n && i < start + 4; i++) {
        float sum = part[i];
        for (u32 p = 1; p < parts; p++) sum += part[u64(p) * n + i];
        out[i] = sum;
    }
}

// Parts of dk, dv and dq lie one behind the other. blocks: of keys, or queries, of a head. split: rows of a part. Two blocks on a
// multiprocessor are asked for, as three would leave too few registers to some.
#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS, 2)
#define PARAMETERS const float *q, const float *k, const float *v, const float *dy, const float *lse, const float *delta
#define SIZES u32 queries, u32 keys, u32 heads, u32 d, u32 wide_v, u32 blocks, u32 split, float scale

#define BY_KEY(D)                                                                                               \
    KERNEL attention_grad_by_key_##D##_f32(PARAMETERS, float* dk, float* dv, SIZES) {                           \
        by_key<D / 16>(q, k, v, dy, lse, delta, dk, dv, queries, keys, heads, d, wide_v, blocks, split, scale); \
    }
#define BY_QUERY(D)                                                                                           \
    KERNEL attention_grad_by_query_##D##_f32(PARAMETERS, float* dq, SIZES) {                                  \
        by_query<D / 16>(q, k, v, dy, lse, delta, dq, queries, keys, heads, d, wide_v, blocks, split, scale); \
    }
#define BOTH(D) BY_KEY(D) BY_QUERY(D)
BOTH(16)
BOTH(32)
BOTH(48)
BOTH(64)
BOTH(80)
BOTH(128)
BY_QUERY(256)
