// The gradient of attention in f16 and bf16: with P = exp(scale · q kᵀ - lse), dS = P ∘ (dy vᵀ - rowsum(dy ∘ y)):
// dv = Pᵀ dy, dk = scale · dSᵀ q, dq = scale · dS k   (Dao 2023)
//
// Floor: five products on tensor cores, 2 Tq Tk (3 d + 2 dv) FLOPs a head. Here every sum stays in the registers of the block that makes it, without
// atomics, and scores are made again for each: seven products up to 64 columns, eight beyond. The other way, five products by 128 keys and parts
// of dq that a second launch adds, writes and reads 4 d bytes a query for every 128 keys: 8 d / 3.35e12 s, where the two products by 128 keys that it
// saves are 512 d FLOPs, 512 d / 6e14 s, a third of that; and its parts need as many times dq's memory as there are blocks of keys.
//
// One kernel does for dq, dk and dv, as they are the same sum: a block has some *rows* (queries, or keys) of one head and goes over the *others* (keys, or
// queries). Scores lie with rows as rows, so weights go from the accumulators of the first products straight to the left operand of the last:
//
//                     first product     second product     sums
//     dq   queries:   dy vᵀ             q kᵀ               dS k
//     dk   keys:      v dyᵀ             k qᵀ               dS q
//     dv   keys:      k qᵀ              none               P dy
//
// The block's rows of both left operands are in shared memory throughout, the others come in tiles of OTHERS. Every width that products go over is
// counted in steps of 16 columns, and sums in groups of 32: instances of 64, 128 and 256 columns lose little on what is between.
#include "lib/attention.cuh"

// A tile's others; columns of sums that are made at once.
constexpr u32 OTHERS = 32;
constexpr u32 GROUP_COLUMNS = 32;
// Bytes of a tile's terms.
constexpr u32 TERM_BYTES = OTHERS * 8;

// What a query's scores are compared with: lse in powers of two, and rowsum(dy ∘ y). Each head has a multiple of 64 of them; where there is no
// query, P is to be 0.
__device__ __forceinline__ u32 padded(u32 queries) { return (queries + 63) / 64 * 64; }

// terms [pairs, padded queries, 2]: 8 lanes a query.
template <class T>
__device__ __forceinline__ void make_terms(const T* y, const T* dy, const float* lse, float* terms, u32 queries, u32 heads, u32 dv) {
    u64 number = u64(blockIdx.x) * 32 + threadIdx.x / 8;
    u32 lane = threadIdx.x % 8, pair = u32(number / padded(queries)), query = u32(number % padded(queries));
    bool has = query < queries;
    Head<const T> a(y, pair, heads, queries, dv), b(dy, pair, heads, queries, dv);
    const T *x = a.row(has ? query : 0), *dx = b.row(has ? query : 0);
    float sum = 0.0f;
    if (a.wide && b.wide) {
        for (u32 i = lane * 8; i < dv; i += 64) {
            Wide<T> left = *(const Wide<T>*)(x + i), right = *(const Wide<T>*)(dx + i);
#pragma unroll
            for (u32 k = 0; k < 8; k++) sum += widen(left.at[k]) * widen(right.at[k]);
        }
    } else {
        for (u32 i = lane; i < dv; i += 8) sum += widen(x[i]) * widen(dx[i]);
    }
#pragma unroll
    for (u32 step = 4; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (lane == 0) {
        Pack<float, 2> both;
        both.at[0] = has ? lse[u64(pair) * queries + query] * LOG2_E : INFINITE;
        both.at[1] = has ? sum : 0.0f;
        write_floats(terms + 2 * number, both);
    }
}

// What is the same for every block of a launch. Left operands are the rows', right ones the others'.
template <class T>
struct Gradient {
    const T *first_left, *first_right, *second_left, *second_right;
    const float* terms;
    T* out;
    // Unless gridDim.y is 1: for each part of the others, sums [pairs, rows, sum_width].
    float* part;
    u32 rows, others, heads;
    // Columns of the first product, and of the second and of the sums.
    u32 first_width, width, sum_width;
    // Blocks of the rows of a head; others of a part.
    u32 blocks, split;
    // Rows are queries.
    bool by_query;
    float scale;

    __device__ __forceinline__ u32 pair() const { return blockIdx.x / blocks; }
    __device__ __forceinline__ u32 begin() const { return blockIdx.y * split; }
    __device__ __forceinline__ u32 end() const { return min(others, begin() + split); }
    __device__ __forceinline__ const float* terms_of(u32 query) const {
        return terms + 2 * (u64(pair()) * padded(by_query ? rows : others) + query);
    }
    __device__ __forceinline__ Head<const T> left(const T* x, u32 width) const { return Head<const T>(x, pair(), heads, rows, width); }
    __device__ __forceinline__ Head<const T> right(const T* x, u32 width) const { return Head<const T>(x, pair(), heads, others, width); }

    // The terms of others from `other` on. Where these are keys they say only which there are.
    __device__ __forceinline__ void copy_terms(u32 to, u32 other) const {
        if (by_query) {
            if (threadIdx.x < OTHERS) {
                float less = other + threadIdx.x < end() ? 0.0f : INFINITE;
                asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to + threadIdx.x * 8), "f"(less), "f"(0.0f) : "memory");
            }
        } else if (threadIdx.x < OTHERS / 2) {
            copy_16(to + threadIdx.x * 16, terms_of(other) + threadIdx.x * 4, true);
        }
    }

    // Writes a warp's sums, from columns `col` and row `first` on.
    template <u32 N, u32 M>
    __device__ __forceinline__ void put(float (&o)[M][N / 8][4], float factor, u32 place, u32 first, u32 col) const {
#pragma unroll
        for (u32 m = 0; m < M; m++) {
#pragma unroll
            for (u32 n = 0; n < N / 8; n++) {
#pragma unroll
                for (u32 r = 0; r < 4; r++) o[m][n][r] *= factor;
            }
        }
        if (gridDim.y > 1) {
            u32 lane = threadIdx.x % 32;
            u64 row = u64(blockIdx.y * (gridDim.x / blocks) + pair()) * rows + first + lane / 4;
            put_sums<N, M>(o, part + row * sum_width + col + lane % 4 * 2, sum_width, first, rows);
        } else {
            // What is there was this warp's.
            __syncwarp();
            put_tile<T, N, M>(o, place, Head<T>(out, pair(), heads, rows, width), first, rows, col);
        }
    }
};

// The terms of a thread's rows; nothing where rows are keys.
template <u32 M>
struct RowTerms {
    float less[M][2], delta[M][2];

    template <class T>
    __device__ __forceinline__ RowTerms(const Gradient<T>& to, u32 first) {
#pragma unroll
        for (u32 m = 0; m < M; m++) {
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                u32 row = first + 16 * m + 8 * h + threadIdx.x % 32 / 4;
                bool has = to.by_query && row < to.rows;
                const float* terms = to.terms_of(has ? row : 0);
                less[m][h] = has ? terms[0] : 0.0f, delta[m][h] = has ? terms[1] : 0.0f;
            }
        }
    }
};

// A warp's products and sums with tiles whose rows have C places.
template <class T, u32 N, u32 M, u32 C = N / 8>
struct Warp {
    static constexpr u32 ROWS = 16 * M;
    using Scores = float[M][OTHERS / 8][4];
    // The left operand of sums, 16 others at a time.
    using Weights = u32[OTHERS / 16][M][4];
    using Sums = float[M][N / 8][4];

    static __device__ __forceinline__ void clear(Scores& s) {
#pragma unroll
        for (u32 m = 0; m < M; m++) {
#pragma unroll
            for (u32 n = 0; n < OTHERS / 8; n++) {
#pragma unroll
                for (u32 r = 0; r < 4; r++) s[m][n][r] = 0.0f;
            }
        }
    }

    static __device__ __forceinline__ void move(Scores& to, const Scores& from) {
#pragma unroll
        for (u32 m = 0; m < M; m++) {
#pragma unroll
            for (u32 n = 0; n < OTHERS / 8; n++) {
#pragma unroll
                for (u32 r = 0; r < 4; r++) to[m][n][r] = from[m][n][r];
            }
        }
    }

    // The terms of two neighbouring others, of number n of those that a thread has.
    static __device__ __forceinline__ Pack<float, 4> others_terms(u32 terms, u32 n) {
        return read_floats<4>(terms + n * 64 + threadIdx.x % 4 * 16);
    }

    // What a first product begins with: -rowsum(dy ∘ y) for dP, or 0 for scores.
    static __device__ __forceinline__ void begin(Scores& dp, const RowTerms<M>& rows, u32 terms, bool slopes) {
        float sign = slopes ? -1.0f : 0.0f;
#pragma unroll
        for (u32 n = 0; n < OTHERS / 8; n++) {
            Pack<float, 4> others = others_terms(terms, n);
#pragma unroll
            for (u32 m = 0; m < M; m++) {
#pragma unroll
                for (u32 r = 0; r < 4; r++) dp[m][n][r] = fmaf(others.at[r % 2 * 2 + 1], sign, -rows.delta[m][r / 2]);
            }
        }
    }

    // s += A · Bᵀ of `width` columns; A are this warp's rows.
    static __device__ __forceinline__ void multiply(Scores& s, u32 a, u32 b, u32 width) {
        u32 lane = threadIdx.x % 32, left = a + swizzled<C>(lane % 16, lane / 16) * 16;
        u32 right = b + swizzled<C>(lane % 8 + lane / 16 * 8, lane / 8 % 2) * 16;
#pragma unroll 2
        for (u32 step = 0; step * 16 < width; step++) {
            u32 x[M][4], y[OTHERS / 16][4];
#pragma unroll
            for (u32 m = 0; m < M; m++) load_matrices(x[m], beside<C>(left, step) + m * 256 * C);
#pragma unroll
            for (u32 n = 0; n < OTHERS / 16; n++) load_matrices(y[n], beside<C>(right, step) + n * 256 * C);
#pragma unroll
            for (u32 n = 0; n < OTHERS / 8; n++) {
#pragma unroll
                for (u32 m = 0; m < M; m++) multiply_add<T>(s[m][n], x[m], y[n / 2][n % 2 * 2], y[n / 2][n % 2 * 2 + 1]);
            }
        }
    }

    // Scores to P.
    static __device__ __forceinline__ void soften(Scores& s, const RowTerms<M>& rows, u32 terms, float factor) {
#pragma unroll
        for (u32 n = 0; n < OTHERS / 8; n++) {
            Pack<float, 4> others = others_terms(terms, n);
#pragma unroll
            for (u32 m = 0; m < M; m++) {
#pragma unroll
                // One of two is 0, or says that there is no such key.
                for (u32 r = 0; r < 4; r++) s[m][n][r] = exp2_fast(fmaf(s[m][n][r], factor, -(rows.less[m][r / 2] + others.at[r % 2 * 2])));
            }
        }
    }

    static __device__ __forceinline__ void add_scores(Scores& to, const Scores& s) {
#pragma unroll
        for (u32 m = 0; m < M; m++) {
#pragma unroll
            for (u32 n = 0; n < OTHERS / 8; n++) {
#pragma unroll
                for (u32 r = 0; r < 4; r++) to[m][n][r] += s[m][n][r];
            }
        }
    }

    // dP to dS.
    static __device__ __forceinline__ void slope(Scores& dp, const Scores& p) {
#pragma unroll
        for (u32 m = 0; m < M; m++) {
#pragma unroll
            for (u32 n = 0; n < OTHERS / 8; n++) {
#pragma unroll
                for (u32 r = 0; r < 4; r++) dp[m][n][r] *= p[m][n][r];
            }
        }
    }

    static __device__ __forceinline__ void narrow_weights(Weights& w, const Scores& s) {
#pragma unroll
        for (u32 k = 0; k < OTHERS / 16; k++) {
#pragma unroll
            for (u32 m = 0; m < M; m++) {
#pragma unroll
                for (u32 r = 0; r < 4; r++) w[k][m][r] = pack<T>(s[m][2 * k + r / 2][r % 2 * 2], s[m][2 * k + r / 2][r % 2 * 2 + 1]);
            }
        }
    }

    // o += W · X, X of `width` columns in rows of N / 8 places.
    static __device__ __forceinline__ void add(Sums& o, const Weights& w, u32 x, u32 width) {
        constexpr u32 PLACES = N / 8, EACH = GROUP_COLUMNS / 16;
        u32 lane = threadIdx.x % 32, from = x + swizzled<PLACES>(lane % 16, lane / 16) * 16;
#pragma unroll
        for (u32 g = 0; g < N / GROUP_COLUMNS; g++) {
            if (g * GROUP_COLUMNS >= width) break;
#pragma unroll
            for (u32 k = 0; k < OTHERS / 16; k++) {
                u32 b[EACH][4];
#pragma unroll
                for (u32 n = 0; n < EACH; n++) load_matrices_transposed(b[n], beside<PLACES>(from, g * EACH + n) + k * 256 * PLACES);
#pragma unroll
                for (u32 n = 0; n < 2 * EACH; n++) {
#pragma unroll
                    for (u32 m = 0; m < M; m++) {
                        multiply_add<T>(o[m][2 * g * EACH + n], w[k][m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
                    }
                }
            }
        }
    }
};

// Places of a tile's row that are read.
__device__ __forceinline__ u32 places_of(u32 width) { return (width + GROUP_COLUMNS - 1) / GROUP_COLUMNS * (GROUP_COLUMNS / 8); }

// Others of a head as tiles whose rows have C places, one tile after the other.
template <class T, u32 C>
struct Tiles {
    // Rows that a block copies at a time.
    static constexpr u32 STEP = THREADS / C;
    Head<const T> x;
    // This thread's first place of the next tile, and in the tile.
    const T* at;
    u32 to, places, next, end;

    __device__ __forceinline__ Tiles(const Head<const T>& x, u32 begin, u32 end)
        : x(x), at(x.row(begin + threadIdx.x / C) + threadIdx.x % C * 8), to(swizzled<C>(threadIdx.x / C, threadIdx.x % C) * 16),
          places(places_of(x.width)), next(begin), end(end) {}

    __device__ __forceinline__ void copy(u32 tile) {
        u32 row = threadIdx.x / C, c = threadIdx.x % C;
        if (!x.wide) {
            copy_tile<OTHERS, C, 1>(tile, x, next, end, 0, places);
        } else if (c < places) {
            u32 left = c * 8 < x.width ? end - next : 0;
#pragma unroll
            for (u32 i = 0; i < OTHERS; i += STEP) {
                // Eight rows below each other lie differently.
                copy_16(tile + (to ^ i % 8 * 16) + i * C * 16, at + u64(i) * x.stride, row + i < left);
            }
        }
        at += u64(OTHERS) * x.stride;
        next += OTHERS;
    }
};

// Sums of up to N columns of 64 · M rows, of dS if there are `slopes`, else of P. Each of the two tiles of others comes while the other one is used.
template <class T, u32 N, u32 M>
__device__ __forceinline__ void sums(const Gradient<T>& to, bool slopes) {
    using W = Warp<T, N, M>;
    constexpr u32 C = N / 8, ROWS = 64 * M, ROW_BYTES = C * 16;
    extern __shared__ __align__(128) unsigned char shared[];
    u32 first_right = shared_address(shared), second_right = first_right + OTHERS * ROW_BYTES, terms = second_right + OTHERS * ROW_BYTES;
    u32 first_left = terms + 2 * TERM_BYTES, second_left = first_left + ROWS * ROW_BYTES, own = threadIdx.x / 32 * W::ROWS;
    u32 first = blockIdx.x % to.blocks * ROWS, begin = to.begin(), end = to.end();
    Tiles<T, C> firsts(to.right(to.first_right, to.first_width), begin, end), seconds(to.right(to.second_right, to.width), begin, end);

    copy_tile<ROWS, C, 1>(first_left, to.left(to.first_left, to.first_width), first, to.rows, 0, firsts.places);
    if (slopes) copy_tile<ROWS, C, 1>(second_left, to.left(to.second_left, to.width), first, to.rows, 0, seconds.places);
    RowTerms<M> rows(to, first + own);
    float factor = to.scale * LOG2_E;
    typename W::Sums o = {};
    firsts.copy(first_right);
    to.copy_terms(terms, begin);
#pragma unroll 1
    while (true) {
        commit_copies();
        wait_copies<0>();
        __syncthreads();
        seconds.copy(second_right);
        commit_copies();
        typename W::Scores s = {}, dp;
        W::begin(dp, rows, terms, slopes);
        W::multiply(dp, first_left + own * ROW_BYTES, first_right, to.first_width);
        wait_copies<0>();
        __syncthreads();
        u32 now = terms;
        bool more = firsts.next < end;
        terms = terms == first_left - TERM_BYTES ? terms - TERM_BYTES : terms + TERM_BYTES;
        if (more) {
            to.copy_terms(terms, firsts.next);
            firsts.copy(first_right);
        }
        if (slopes) {
            W::multiply(s, second_left + own * ROW_BYTES, second_right, to.width);
            W::soften(s, rows, now, factor);
            W::slope(dp, s);
        } else {
            W::soften(dp, rows, now, factor);
        }
        typename W::Weights w;
        W::narrow_weights(w, dp);
        W::add(o, w, second_right, to.width);
        if (!more) break;
    }
    to.template put<N, M>(o, slopes ? to.scale : 1.0f, first_left + own * ROW_BYTES, first + own, 0);
}

// dk and dv of 128 keys of up to 64 columns at once: the first product is v dyᵀ, the second k qᵀ. `dv`: as `to`, where dv goes.
template <class T>
__device__ __forceinline__ void both_sums(const Gradient<T>& to, const Gradient<T>& dv) {
    constexpr u32 N = 64, M = 2, C = N / 8, ROWS = 64 * M, ROW_BYTES = C * 16, TILE_BYTES = OTHERS * ROW_BYTES;
    constexpr u32 STAGE_BYTES = 2 * TILE_BYTES + TERM_BYTES;
    using W = Warp<T, N, M>;
    extern __shared__ __align__(128) unsigned char shared[];
    u32 first_left = shared_address(shared), second_left = first_left + ROWS * ROW_BYTES, stages = second_left + ROWS * ROW_BYTES;
    u32 own = threadIdx.x / 32 * W::ROWS, first = blockIdx.x % to.blocks * ROWS;
    u32 begin = to.begin(), end = to.end();
    Tiles<T, C> firsts(to.right(to.first_right, to.first_width), begin, end), seconds(to.right(to.second_right, to.width), begin, end);

    copy_tile<ROWS, C, 1>(first_left, to.left(to.first_left, to.first_width), first, to.rows, 0, firsts.places);
    copy_tile<ROWS, C, 1>(second_left, to.left(to.second_left, to.width), first, to.rows, 0, seconds.places);
    RowTerms<M> rows(to, first + own);
    float factor = to.scale * LOG2_E;
    typename W::Sums to_k = {}, to_v = {};
    u32 stage = stages + STAGE_BYTES;
    // The first round only copies, so that copies are in one place.
#pragma unroll 1
    for (bool there = false; firsts.next < end || there;) {
        u32 next = stage == stages ? stages + STAGE_BYTES : stages;
        if (there) {
            wait_copies<0>();
            __syncthreads();
        }
        bool more = firsts.next < end;
        if (more) {
            to.copy_terms(next + 2 * TILE_BYTES, firsts.next);
            firsts.copy(next);
            seconds.copy(next + TILE_BYTES);
            commit_copies();
        }
        if (there) {
            u32 terms = stage + 2 * TILE_BYTES;
            typename W::Scores s = {}, dp;
            typename W::Weights w;
            W::begin(dp, rows, terms, true);
            W::multiply(dp, first_left + own * ROW_BYTES, stage, to.first_width);
            W::multiply(s, second_left + own * ROW_BYTES, stage + TILE_BYTES, to.width);
            W::soften(s, rows, terms, factor);
            W::slope(dp, s);
            W::narrow_weights(w, s);
            W::add(to_v, w, stage, to.first_width);
            W::narrow_weights(w, dp);
            W::add(to_k, w, stage + TILE_BYTES, to.width);
        }
        stage = next;
        there = more;
    }
    dv.template put<N, M>(to_v, 1.0f, first_left + own * ROW_BYTES, first + own, 0);
    to.template put<N, M>(to_k, to.scale, second_left + own * ROW_BYTES, first + own, 0);
}

// Heads of any size: operands of products come in steps of 64 columns, again for every tile, and a block makes 256 columns of sums of 64 rows
// (blockIdx.z), of dS if there are `slopes`.
template <class T>
__device__ __forceinline__ void wide_sums(const Gradient<T>& to, bool slopes) {
    constexpr u32 N = 256, ROWS = 64, C = 8, STEP = 64, LEFT_BYTES = ROWS * C * 16, STAGE_BYTES = LEFT_BYTES + OTHERS * C * 16;
    using W = Warp<T, N, 1, C>;
    extern __shared__ __align__(128) unsigned char shared[];
    u32 stages = shared_address(shared), x = stages + 2 * STAGE_BYTES, terms = x + OTHERS * N * 2;
    u32 own = threadIdx.x / 32 * W::ROWS, first = blockIdx.x % to.blocks * ROWS, col = blockIdx.z * N;
    u32 begin = to.begin(), end = to.end(), tiles = (end - begin + OTHERS - 1) / OTHERS;
    u32 firsts = (to.first_width + STEP - 1) / STEP, phases = firsts + (slopes ? (to.width + STEP - 1) / STEP : 0);
    Head<const T> seconds = to.right(to.second_right, to.width);
    auto load = [&](Step step, u32 stage) {
        bool is_first = step.phase < firsts;
        u32 at = (is_first ? step.phase : step.phase - firsts) * STEP, width = is_first ? to.first_width : to.width;
        copy_tile<ROWS, C>(stage, to.left(is_first ? to.first_left : to.second_left, width), first, to.rows, at);
        copy_tile<OTHERS, C>(stage + LEFT_BYTES, to.right(is_first ? to.first_right : to.second_right, width), begin + step.tile * OTHERS, end, at);
    };

    RowTerms<1> rows(to, first + own);
    float factor = to.scale * LOG2_E;
    typename W::Sums o = {};
    typename W::Scores s = {}, dp = {};
    u32 stage = stages;
    Step ahead = {0, 0};
    load(ahead, stage);
    commit_copies();
#pragma unroll 1
    for (Step now = {0, 0}; now.tile < tiles; now.next(phases)) {
        wait_copies<0>();
        __syncthreads();
        if (now.phase == 0) {
            copy_tile<OTHERS, N / 8>(x, seconds, begin + now.tile * OTHERS, end, col);
            to.copy_terms(terms, begin + now.tile * OTHERS);
        }
        u32 next = stage == stages ? stages + STAGE_BYTES : stages;
        ahead.next(phases);
        if (ahead.tile < tiles) load(ahead, next);
        commit_copies();
        W::multiply(s, stage + own * C * 16, stage + LEFT_BYTES, STEP);
        stage = next;
        if (now.phase + 1 < phases) {
            if (now.phase + 1 == firsts) {
                W::move(dp, s);
                W::clear(s);
            }
            continue;
        }
        wait_copies<0>();
        __syncthreads();
        typename W::Weights w;
        W::soften(s, rows, terms, factor);
        if (slopes) {
            typename W::Scores less;
            W::begin(less, rows, terms, true);
            W::add_scores(dp, less);
            W::slope(s, dp);
        }
        W::narrow_weights(w, s);
        W::add(o, w, x, to.width - col);
        W::clear(s);
    }
    __syncthreads();
    to.template put<N, 1>(o, slopes ? to.scale : 1.0f, stages + own * N * 2, first + own, col);
}

// out = the sum of `parts` parts [pairs, rows, sum_width].
template <class T>
__device__ __forceinline__ void add_parts(const float* part, T* out, u32 pairs, u32 rows, u32 heads, u32 width, u32 sum_width, u32 parts) {
    OfParts<T> piece(pairs * rows, width);
    if (!piece.has) return;
    const float* at = part + u64(piece.row) * sum_width + piece.col;
    u64 step = u64(pairs) * rows * sum_width;
    float sum[WIDE<T>] = {};
#pragma unroll 2
    for (u32 p = 0; p < parts; p++) piece.add(sum, at + p * step, 1.0f);
    piece.put(out, heads, rows, width, sum, 1.0f);
}

#define INPUTS(T) const T *first_left, const T *first_right, const T *second_left, const T *second_right, const float *terms
#define SIZES u32 rows, u32 others, u32 heads, u32 first_width, u32 width, u32 sum_width, u32 blocks, u32 split, u32 by_query, float scale
#define GRADIENT(T, OUT, PART, WIDTH)                                                                                       \
    Gradient<T> {                                                                                                           \
        first_left, first_right, second_left, second_right, terms, OUT, PART, rows, others, heads, first_width, WIDTH,      \
            sum_width, blocks, split, by_query != 0, scale                                                                  \
    }
#define KERNEL(BLOCKS) extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)

#define SUMS(T, NAME, BLOCKS, ...) \
    KERNEL(BLOCKS) attention_grad_##NAME##_##T(INPUTS(T), T* out, float* part, SIZES, u32 slopes) {                                 \
        __VA_ARGS__(GRADIENT(T, out, part, width), slopes != 0);                                                            \
    }
#define HALVES(T)                                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) attention_grad_terms_##T(                                             \
        const T* y, const T* dy, const float* lse, float* terms, u32 queries, u32 heads, u32 dv) {                          \
        make_terms(y, dy, lse, terms, queries, heads, dv);                                                                  \
    }                                                                                                                       \
    KERNEL(2) attention_grad_both_64_##T(INPUTS(T), T* dk, T* dv, float* part_k, float* part_v, SIZES) {                       \
        both_sums<T>(GRADIENT(T, dk, part_k, width), GRADIENT(T, dv, part_v, first_width));                                 \
    }                                                                                                                       \
    SUMS(T, 64, 3, sums<T, 64, 2>)                                                                                             \
    SUMS(T, 128, 2, sums<T, 128, 2>)                                                                                           \
    SUMS(T, 256, 2, sums<T, 256, 1>)                                                                                           \
    SUMS(T, wide, 2, wide_sums<T>)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256) attention_grad_sum_##T(                                               \
        const float* part, T* out, u32 pairs, u32 rows, u32 heads, u32 width, u32 sum_width, u32 parts) {                   \
        add_parts(part, out, pairs, rows, heads, width, sum_width, parts);                                                  \
    }
HALVES(f16)
HALVES(bf16)
