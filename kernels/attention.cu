// y = softmax(scale · q kᵀ) v in each head, and lse, the logarithm of each softmax's denominator   (Dao et al. 2022; Dao 2023)
//
// Floor: 2 Tq Tk (d + dv) FLOPs a head, on tensor cores for f16 and bf16, on FMA units for f32; bytes matter only where there are few keys.
// A block has some queries of one head and goes over the keys, or over one of several parts of them (gridDim.y), whose results
// `attention_join` puts together. Weights never leave the registers (16 bits) or the warp (f32).
//
// The maximum that exponentials refer to may lag: sums are scaled anew only where a score exceeds it by more than LAG, which after the
// first keys is rare. That is exact, as the sums are f32 and any reference cancels.
#include "lib/attention.cuh"

// In powers of two.
constexpr float LAG = 8.0f;

// A row's sum over lanes `WIDTH` beside each other.
template <u32 WIDTH>
__device__ __forceinline__ float sum_of(float x) {
#pragma unroll
    for (u32 step = WIDTH / 2; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
}

template <u32 WIDTH>
__device__ __forceinline__ float max_of(float x) {
#pragma unroll
    for (u32 step = WIDTH / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
    return x;
}

// What is the same for every block of a launch.
template <class T>
struct Attention {
    T* y;
    float *lse, *part;
    u32 pairs, queries, heads, dv;
    // Columns of sums in scratch: all that blocks make.
    u32 width;

    __device__ __forceinline__ u64 rows() const { return u64(pairs) * queries; }

    // Where the parts' sums begin for a row, and where its logarithm goes; after all sums in scratch come all logarithms.
    __device__ __forceinline__ float* part_row(u64 row) const { return part + (blockIdx.y * rows() + row) * width; }
    __device__ __forceinline__ float* lse_row(u64 row) const {
        return gridDim.y == 1 ? lse + row : part + gridDim.y * rows() * width + blockIdx.y * rows() + row;
    }
};

// A warp's 16 · M queries, their sums over columns of V, and their softmaxes. A thread has rows `group` and `group` + 8 of every 16.
template <class T, u32 D, u32 M, u32 KEYS>
struct Rows {
    static constexpr u32 C = D / 8;
    float o[M][D / 8][4], top[M][2], total[M][2];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (u32 m = 0; m < M; m++) {
#pragma unroll
            for (u32 n = 0; n < D / 8; n++) {
#pragma unroll
                for (u32 r = 0; r < 4; r++) o[m][n][r] = 0.0f;
            }
#pragma unroll
            for (u32 h = 0; h < 2; h++) top[m][h] = -INFINITE, total[m][h] = 0.0f;
        }
    }

    // Scores of KEYS keys, of which there are `count`, to weights: 2 to the power of factor · s - top.
    __device__ __forceinline__ void soften(float (&s)[M][KEYS / 8][4], u32 count, float factor) {
        if (count < KEYS) {
#pragma unroll
            for (u32 n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (u32 r = 0; r < 2; r++) {
                    bool has = n * 8 + threadIdx.x % 4 * 2 + r < count;
#pragma unroll
                    for (u32 m = 0; m < M; m++) {
                        s[m][n][r] = has ? s[m][n][r] : -INFINITE;
                        s[m][n][r + 2] = has ? s[m][n][r + 2] : -INFINITE;
                    }
                }
            }
        }
        float high[M][2];
        bool rises = false;
#pragma unroll
        for (u32 m = 0; m < M; m++) {
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                float most = s[m][0][2 * h];
#pragma unroll
                for (u32 n = 0; n < KEYS / 8; n++) most = fmaxf(most, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
                high[m][h] = max_of<4>(most) * factor;
                rises |= high[m][h] > top[m][h] + LAG;
            }
        }
        if (__any_sync(~0u, rises)) {
#pragma unroll
            for (u32 m = 0; m < M; m++) {
#pragma unroll
                for (u32 h = 0; h < 2; h++) {
                    float next = fmaxf(top[m][h], high[m][h]);
                    float less = exp2_fast(top[m][h] - next);
                    top[m][h] = next;
                    total[m][h] *= less;
#pragma unroll
                    for (u32 n = 0; n < D / 8; n++) o[m][n][2 * h] *= less, o[m][n][2 * h + 1] *= less;
                }
            }
        }
#pragma unroll
        for (u32 m = 0; m < M; m++) {
#pragma unroll
            for (u32 n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (u32 r = 0; r < 4; r++) {
                    s[m][n][r] = exp2_fast(fmaf(s[m][n][r], factor, -top[m][r / 2]));
                    total[m][r / 2] += s[m][n][r];
                }
            }
        }
    }

    // o += weights · V; the accumulators of two neighbouring tiles are the left operand of the next product as they lie.
    __device__ __forceinline__ void add(const float (&s)[M][KEYS / 8][4], u32 v) {
        u32 lane = threadIdx.x % 32, from = v + swizzled<C>(lane % 16, lane / 16) * 16;
#pragma unroll
        for (u32 k = 0; k < KEYS / 16; k++) {
            u32 p[M][4];
#pragma unroll
            for (u32 m = 0; m < M; m++) {
#pragma unroll
                for (u32 r = 0; r < 4; r++) p[m][r] = pack<T>(s[m][2 * k + r / 2][r % 2 * 2], s[m][2 * k + r / 2][r % 2 * 2 + 1]);
            }
#pragma unroll
            for (u32 n = 0; n < D / 16; n++) {
                u32 b[4];
                load_matrices_transposed(b, beside<C>(from, n) + k * 256 * C);
#pragma unroll
                for (u32 m = 0; m < M; m++) {
                    multiply_add<T>(o[m][2 * n], p[m], b[0], b[1]);
                    multiply_add<T>(o[m][2 * n + 1], p[m], b[2], b[3]);
                }
            }
        }
    }

    // Writes columns `col`.. of y through this warp's place in shared memory, and lse. `first` is the warp's first row.
    __device__ __forceinline__ void put(const Attention<T>& to, u32 place, u32 pair, u32 first, u32 col) {
        u32 lane = threadIdx.x % 32, group = lane / 4, member = lane % 4;
#pragma unroll
        for (u32 m = 0; m < M; m++) {
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                u32 row = first + 16 * m + 8 * h + group;
                float sum = sum_of<4>(total[m][h]), factor = 1.0f / sum;
                if (row < to.queries && member == 0 && col == 0) {
                    *to.lse_row(u64(pair) * to.queries + row) = (top[m][h] + log2_fast(sum)) * LN_2;
                }
#pragma unroll
                for (u32 n = 0; n < D / 8; n++) o[m][n][2 * h] *= factor, o[m][n][2 * h + 1] *= factor;
            }
        }
        if (gridDim.y > 1) {
            float* at = to.part_row(u64(pair) * to.queries + first + group) + col + member * 2;
            put_sums<D, M>(o, at, to.width, first, to.queries);
        } else {
            put_tile<T, D, M>(o, place, Head<T>(to.y, pair, to.heads, to.queries, to.dv), first, to.queries, col);
        }
    }
};

// s += Q · Kᵀ of one step of 16 columns.
template <class T, u32 C, u32 M, u32 KEYS>
__device__ __forceinline__ void score(float (&s)[M][KEYS / 8][4], const u32 (&q)[M][4], u32 k, u32 step) {
    u32 lane = threadIdx.x % 32, from = k + swizzled<C>(lane % 8 + lane / 16 * 8, lane / 8 % 2) * 16;
#pragma unroll
    for (u32 n = 0; n < KEYS / 16; n++) {
        u32 b[4];
        load_matrices(b, beside<C>(from, step) + n * 256 * C);
#pragma unroll
        for (u32 m = 0; m < M; m++) {
            multiply_add<T>(s[m][2 * n], q[m], b[0], b[1]);
            multiply_add<T>(s[m][2 * n + 1], q[m], b[2], b[3]);
        }
    }
}

// The left operand: rows 16 m.. of a tile, columns 16 `step`... `flip` changes the sign of both halves, or nothing.
template <u32 C, u32 M>
__device__ __forceinline__ void load_queries(u32 (&q)[M][4], u32 tile, u32 step, u32 flip) {
    u32 lane = threadIdx.x % 32, from = tile + swizzled<C>(lane % 16, lane / 16) * 16;
#pragma unroll
    for (u32 m = 0; m < M; m++) {
        load_matrices(q[m], beside<C>(from, step) + m * 256 * C);
#pragma unroll
        for (u32 r = 0; r < 4; r++) q[m][r] ^= flip;
    }
}

// Heads of at most D columns. Four warps of 16 · M queries; their Q stays in registers. STAGES tiles of K and V are in shared memory or on
// their way; Q comes through
// the last one, and what is behind it.
template <class T, u32 D, u32 M, u32 KEYS, u32 STAGES>
__device__ __forceinline__ void attention(const T* q, const T* k, const T* v, const Attention<T>& to, u32 keys, u32 d,
                                          u32 blocks, u32 split, float scale) {
    constexpr u32 C = D / 8, TILE_BYTES = KEYS * C * 16, STAGE_BYTES = 2 * TILE_BYTES;
    constexpr u32 QUERIES = 64 * M;
    extern __shared__ __align__(128) unsigned char shared[];
    u32 base = shared_address(shared), warp = threadIdx.x / 32;
    u32 pair = blockIdx.x / blocks, first = blockIdx.x % blocks * QUERIES;
    u32 begin = blockIdx.y * split, end = min(keys, begin + split), tiles = (end - begin + KEYS - 1) / KEYS;
    Head<const T> ks(k, pair, to.heads, keys, d), vs(v, pair, to.heads, keys, to.dv);
    auto load = [&](u32 tile) {
        if (tile < tiles) {
            u32 stage = base + tile % STAGES * STAGE_BYTES, key = begin + tile * KEYS;
            copy_tile<KEYS, C>(stage, ks, key, end);
            copy_tile<KEYS, C>(stage + TILE_BYTES, vs, key, end);
        }
        commit_copies();
    };

    // Q comes first; the loop begins before the first tile, so that all loads of K and V are in one place.
    u32 place = base + (STAGES - 1) * STAGE_BYTES;
    copy_tile<QUERIES, C>(place, Head<const T>(q, pair, to.heads, to.queries, d), first, to.queries);
    commit_copies();
    // Scores are compared before they are scaled, so the factor must not be negative.
    u32 flip = scale < 0.0f ? 0x80008000 : 0;
    float factor = fabsf(scale) * LOG2_E;
    u32 queries[D / 16][M][4] = {};
    Rows<T, D, M, KEYS> rows;
    rows.clear();
    u32 stage = 0;
#pragma unroll 1
    for (u32 ahead = 0; ahead < tiles + STAGES - 1; ahead++) {
        // Then tile ahead - (STAGES - 1) is there, and all have done with the stage of the one before it.
        if (ahead >= STAGES - 1) {
            wait_copies<STAGES - 2>();
            __syncthreads();
        }
        if (ahead == STAGES - 1) {
#pragma unroll
            for (u32 step = 0; step < D / 16; step++) load_queries<C>(queries[step], place + warp * M * 256 * C, step, flip);
            __syncthreads();
        }
        load(ahead);
        if (ahead < STAGES - 1) continue;
        float s[M][KEYS / 8][4] = {};
#pragma unroll
        for (u32 step = 0; step < D / 16; step++) score<T, C, M, KEYS>(s, queries[step], base + stage * STAGE_BYTES, step);
        rows.soften(s, end - begin - (ahead - (STAGES - 1)) * KEYS, factor);
        rows.add(s, base + stage * STAGE_BYTES + TILE_BYTES);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    __syncthreads();
    rows.put(to, base + warp * M * 256 * C, pair, first + warp * 16 * M, 0);
}

// Heads of any size: Q and K come in steps of 64 columns, again for every tile of keys, and a block makes 256 columns of y (blockIdx.z).
template <class T>
__device__ __forceinline__ void attention_wide(const T* q, const T* k, const T* v, const Attention<T>& to, u32 keys, u32 d,
                                               u32 blocks, u32 split, float scale) {
    constexpr u32 KEYS = 64, QUERIES = 64, C = 8, TILE_BYTES = 64 * C * 16, STAGE_BYTES = 2 * TILE_BYTES, D = 256;
    extern __shared__ __align__(128) unsigned char shared[];
    u32 base = shared_address(shared), values = base + 2 * STAGE_BYTES, warp = threadIdx.x / 32;
    u32 pair = blockIdx.x / blocks, first = blockIdx.x % blocks * QUERIES, col = blockIdx.z * D;
    u32 begin = blockIdx.y * split, end = min(keys, begin + split), tiles = (end - begin + KEYS - 1) / KEYS;
    u32 phases = (d + 63) / 64;
    Head<const T> qs(q, pair, to.heads, to.queries, d), ks(k, pair, to.heads, keys, d), vs(v, pair, to.heads, keys, to.dv);
    auto load = [&](Step step, u32 stage) {
        copy_tile<QUERIES, C>(stage, qs, first, to.queries, step.phase * 64);
        copy_tile<KEYS, C>(stage + TILE_BYTES, ks, begin + step.tile * KEYS, end, step.phase * 64);
    };
    u32 flip = scale < 0.0f ? 0x80008000 : 0;
    float factor = fabsf(scale) * LOG2_E;

    Rows<T, D, 1, KEYS> rows;
    rows.clear();
    float s[1][KEYS / 8][4] = {};
    u32 stage = 0;
    Step ahead = {0, 0};
    load(ahead, base);
    commit_copies();
#pragma unroll 1
    for (Step now = {0, 0}; now.tile < tiles; now.next(phases)) {
        wait_copies<0>();
        __syncthreads();
        if (now.phase == 0) copy_tile<KEYS, D / 8>(values, vs, begin + now.tile * KEYS, end, col);
        ahead.next(phases);
        if (ahead.tile < tiles) load(ahead, base + (stage ^ STAGE_BYTES));
        commit_copies();
#pragma unroll
        for (u32 step = 0; step < C / 2; step++) {
            u32 a[1][4];
            load_queries<C>(a, base + stage + warp * 256 * C, step, flip);
            score<T, C, 1, KEYS>(s, a, base + stage + TILE_BYTES, step);
        }
        stage ^= STAGE_BYTES;
        if (now.phase + 1 < phases) continue;
        rows.soften(s, end - begin - now.tile * KEYS, factor);
        wait_copies<0>();
        __syncthreads();
        rows.add(s, values);
#pragma unroll
        for (u32 n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (u32 r = 0; r < 4; r++) s[0][n][r] = 0.0f;
        }
    }
    __syncthreads();
    rows.put(to, base + warp * 256 * (D / 8), pair, first + warp * 16, col);
}

// f32: 64 queries, 64 keys at a time; a block makes 16 · N columns of y (blockIdx.z).
template <int N>
__device__ __forceinline__ void attention_f32(const float* q, const float* k, const float* v, const Attention<float>& to,
                                              u32 keys, u32 d, u32 blocks, u32 split, float scale) {
    extern __shared__ __align__(16) float floats[];
    float* weights = floats + 2 * STAGE;
    u32 tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    u32 pair = blockIdx.x / blocks, first = blockIdx.x % blocks * TILE, col = blockIdx.z * 16 * N;
    u32 begin = blockIdx.y * split, end = min(keys, begin + split), tiles = (end - begin + TILE - 1) / TILE;
    u32 deep = (d + DEPTH - 1) / DEPTH;
    Head<const float> qs(q, pair, to.heads, to.queries, d), ks(k, pair, to.heads, keys, d), vs(v, pair, to.heads, keys, to.dv);
    float factor = scale * LOG2_E;
    float s[8][4] = {}, o[8][N] = {}, top[8], total[8];
#pragma unroll
    for (int i = 0; i < 8; i++) top[i] = -INFINITE, total[i] = 0.0f;

    auto load = [&](Step step, float* stage) {
        u32 key = begin + step.tile * TILE;
        if (step.phase < deep) {
            copy_rows<TILE, DEPTH, DEPTH_STRIDE>(stage, qs, first, to.queries, step.phase * DEPTH);
            copy_rows<TILE, DEPTH, DEPTH_STRIDE>(stage + STAGE / 2, ks, key, end, step.phase * DEPTH);
        } else {
            copy_rows<SUMMED<N>, 16 * N, 16 * N>(stage, vs, key + (step.phase - deep) * SUMMED<N>, end, col);
        }
    };
    auto soften = [&](u32 count) {
        float high[8];
        bool rises = false;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            high[i] = -INFINITE;
#pragma unroll
            for (int j = 0; j < 4; j++) high[i] = tx + 16 * j < count ? fmaxf(high[i], s[i][j] * factor) : high[i];
            high[i] = max_of<16>(high[i]);
            rises |= high[i] > top[i] + LAG;
        }
        if (__any_sync(~0u, rises)) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float next = fmaxf(top[i], high[i]);
                float less = exp2_fast(top[i] - next);
                top[i] = next;
                total[i] *= less;
#pragma unroll
                for (int n = 0; n < N; n++) o[i][n] *= less;
            }
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                s[i][j] = tx + 16 * j < count ? exp2_fast(fmaf(s[i][j], factor, -top[i])) : 0.0f;
                total[i] += s[i][j];
            }
        }
        put_weights(weights, s);
#pragma unroll
        for (int i = 0; i < 8; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) s[i][j] = 0.0f;
        }
    };
    pipeline(floats, tiles, deep + TILE / SUMMED<N>, load, [&](Step step, const float* stage) {
        u32 left = end - begin - step.tile * TILE;
        if (step.phase < deep) {
            dots(s, stage, stage + STAGE / 2, min(d - step.phase * DEPTH, DEPTH));
            if (step.phase + 1 == deep) soften(left);
            return;
        }
        u32 key = (step.phase - deep) * SUMMED<N>;
        // Each reads weights that its own warp wrote.
        __syncwarp();
        if (key < left) sums(o, weights + key, stage, min(left - key, SUMMED<N>));
    });

#pragma unroll
    for (int i = 0; i < 8; i++) {
        float sum = sum_of<16>(total[i]);
        total[i] = 1.0f / sum;
        u32 row = first + ty + 8 * i;
        if (tx == 0 && col == 0 && row < to.queries) *to.lse_row(u64(pair) * to.queries + row) = (top[i] + log2_fast(sum)) * LN_2;
    }
    bool whole = gridDim.y == 1;
    Head<float> y(to.y, pair, to.heads, to.queries, to.dv);
    if (!whole) {
        y.data = to.part_row(u64(pair) * to.queries);
        y.stride = y.width = to.width;
        y.wide = true;
    }
    put_rows(y, first, to.queries, col, o, total);
}

// blocks: of the queries of a head. split: keys of a part. part: unless gridDim.y is 1, for each part the rows of y [pairs, queries, width],
// then for each the logarithms [pairs, queries].
#define PARAMETERS(T)                                                                                                  \
    const T *q, const T *k, const T *v, T *y, float *lse, float *part, u32 pairs, u32 queries, u32 keys, u32 heads,    \
        u32 d, u32 dv, u32 width, u32 blocks, u32 split, float scale
#define FORWARD(T, ...) \
    __VA_ARGS__(q, k, v, Attention<T>{y, lse, part, pairs, queries, heads, dv, width}, keys, d, blocks, split, scale)
#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS)

#define NARROW(T, D, M, KEYS, STAGES) \
    KERNEL attention_##D##_##T(PARAMETERS(T)) { FORWARD(T, attention<T, D, M, KEYS, STAGES>); }
#define HALVES(T)                                                                        \
    NARROW(T, 16, 2, 64, 3)                                                              \
    NARROW(T, 32, 2, 64, 3)                                                              \
    NARROW(T, 48, 2, 64, 3)                                                              \
    NARROW(T, 64, 2, 64, 3)                                                              \
    NARROW(T, 80, 2, 32, 3)                                                              \
    NARROW(T, 96, 2, 32, 3)                                                              \
    NARROW(T, 128, 2, 32, 3)                                                             \
    NARROW(T, 160, 1, 32, 2)                                                             \
    NARROW(T, 256, 1, 32, 2)                                                             \
    KERNEL attention_wide_##T(PARAMETERS(T)) { FORWARD(T, attention_wide<T>); }
HALVES(f16)
HALVES(bf16)

#define FLOATS(D) \
    KERNEL attention_##D##_f32(PARAMETERS(f32)) { FORWARD(f32, attention_f32<D / 16>); }
FLOATS(16)
FLOATS(32)
FLOATS(48)
FLOATS(64)
FLOATS(80)
FLOATS(128)
FLOATS(256)

// y: the parts' averages, weighted by their softmaxes' denominators.
template <class T>
__device__ __forceinline__ void join(const float* part, T* y, float* lse, u32 pairs, u32 queries, u32 heads, u32 dv,
                                     u32 width, u32 parts) {
    OfParts<T> piece(pairs * queries, dv);
    if (!piece.has) return;
    u64 rows = u64(pairs) * queries;
    const float *sums = part + u64(piece.row) * width + piece.col, *logs = part + parts * rows * width + piece.row;
    float top = -INFINITE, total = 0.0f, sum[WIDE<T>] = {};
    for (u32 p = 0; p < parts; p++) top = fmaxf(top, logs[p * rows]);
#pragma unroll 2
    for (u32 p = 0; p < parts; p++) {
        float weight = exp2_fast((logs[p * rows] - top) * LOG2_E);
        total += weight;
        piece.add(sum, sums + p * rows * width, weight);
    }
    piece.put(y, heads, queries, dv, sum, 1.0f / total);
    if (piece.col == 0) lse[piece.row] = top + log2_fast(total) * LN_2;
}

#define JOIN(T)                                                                                                        \
    extern "C" __global__ void __launch_bounds__(256) attention_join_##T(const float* part, T* y, float* lse, u32 pairs, \
                                                                         u32 queries, u32 heads, u32 dv, u32 width,    \
                                                                         u32 parts) {                                  \
        join(part, y, lse, pairs, queries, heads, dv, width, parts);                                                   \
    }
FOR_TYPES(JOIN)
