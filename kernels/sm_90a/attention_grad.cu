// The gradient of attention in f16 and bf16 on Hopper   (Dao 2023; Shah et al. 2024): with P = exp(scale · q kᵀ - lse) and
// dS = P ∘ (dy vᵀ - rowsum(dy ∘ y)): dv = Pᵀ dy, dk = scale · dSᵀ q, dq = scale · dS k
//
// Floor: 2 Tq Tk (3 d + 2 dv) FLOPs a head, by `wgmma`. Here are two kernels, without atomics: by keys, which makes dk and dv, and by queries, which makes dq
// and the scores and dP again: seven products for five, and two exponentials a score. Cycles of a multiprocessor for 64 rows and 64 others, by
// arithmetic:
//
//   columns of a head              40    64    80   128
//   by key: products              352   512   640  1024
//   by query: products            272   384   480   768
//   exponentials, of either       256   256   256   256
//
// A block has two or three warpgroups, each with 64 *rows* of a head, which are keys or queries, and goes over all *others*, queries or keys. Rows of both
// first products stay in shared memory, others come in tiles of 64, all in boxes that one thread asks for. Warpgroups do not wait for each other, but for
// what comes: one may be most of a turn behind the other. Scores lie with rows as rows, so P and dS are the left operands of the sums in the registers
// in which the first products left them: dP is made beside the exponentials, the sums of P beside dS.
#include "lib/attention_grad_hopper.cuh"

// Bytes of a tile's terms.
constexpr u32 TERM_BYTES = OTHERS * 8;

// What scores and dP of a thread are compared with: lse in powers of two, and rowsum(dy ∘ y), `terms` of `attention_grad_terms`. They go with
// rows that are queries, or with others that are: then they are in shared memory.
template <bool BY_KEY>
struct Terms {
    Pack<float, 2> of_row[2];

    // For scores 4 · n + r, of even r and of odd r.
    __device__ __forceinline__ Pack<float, 2> of(u32 kind, u32 place, u32 n) const {
        Pack<float, 2> both;
        if constexpr (BY_KEY) {
            u32 at = place + n * 64 + threadIdx.x % 4 * 16 + kind * 4;
            both.at[0] = read_floats<1>(at).at[0], both.at[1] = read_floats<1>(at + 8).at[0];
        }
        return both;
    }

    __device__ __forceinline__ void soften(float (&s)[OTHERS / 2], u32 place, float factor) const {
#pragma unroll
        for (u32 n = 0; n < OTHERS / 8; n++) {
            Pack<float, 2> others = of(0, place, n);
#pragma unroll
            for (u32 r = 0; r < 4; r++) {
                float less = BY_KEY ? others.at[r % 2] : of_row[r / 2].at[0];
                s[4 * n + r] = exp2_fast(fmaf(s[4 * n + r], factor, -less));
            }
        }
    }

    // dP to dS.
    __device__ __forceinline__ void slope(float (&dp)[OTHERS / 2], const float (&p)[OTHERS / 2], u32 place) const {
#pragma unroll
        for (u32 n = 0; n < OTHERS / 8; n++) {
            Pack<float, 2> others = of(1, place, n);
#pragma unroll
            for (u32 r = 0; r < 4; r++) {
                float delta = BY_KEY ? others.at[r % 2] : of_row[r / 2].at[1];
                dp[4 * n + r] = p[4 * n + r] * (dp[4 * n + r] - delta);
            }
        }
    }
};

// Sums over others of dS, and of P too if rows are keys; products go over K columns, sums have N. Operands of scores have `d` columns, those
// of dP `dv`. terms [pairs, queries rounded up to 64, 2].
template <class T, u32 K, u32 N, u32 GROUPS, bool BY_KEY>
__device__ __forceinline__ void gradient(const TensorMap& score_rows, const TensorMap& slope_rows, const TensorMap& score_others,
                                         const TensorMap& slope_others, const float* terms, T* of_slopes, T* of_weights, u32 rows, u32 others, u32 heads, u32 d,
                                         u32 dv, u32 blocks, float scale) {
    constexpr u32 ROWS = 64 * GROUPS, PANELS = (K + 63) / 64, OWN = PANELS * ROWS * PANEL_ROW, TILE = PANELS * OTHERS * PANEL_ROW;
    constexpr u32 STAGE = 2 * TILE;
    extern __shared__ __align__(1024) unsigned char room[];
    __shared__ u64 barriers[4];
    // Patterns of the swizzle begin at multiples of 1024 bytes, whatever stands before the room.
    u32 place = (shared_address(room) + 1023) & ~1023u, stages = place + 2 * OWN, terms_place = stages + 2 * STAGE;
    // A tile is there; all have done with it. Of two tiles each.
    u32 there = shared_address(barriers), done = there + 16;
    u32 pair = blockIdx.x / blocks, first = blockIdx.x % blocks * ROWS, own = place + warpgroup_number() * 64 * PANEL_ROW;
    u32 tiles = (others + OTHERS - 1) / OTHERS;
    terms += 2 * u64(pair) * (((BY_KEY ? others : rows) + 63) / 64 * 64);
    auto load = [&](u32 t) {
        u32 barrier = there + t % 2 * 8, stage = stages + t % 2 * STAGE, head = pair % heads, sample = pair / heads;
        arrive_and_announce(barrier, (t == 0 ? 2 * OWN : 0) + STAGE + (BY_KEY ? TERM_BYTES : 0));
        if (t == 0) {
            bring<ROWS, PANELS>(place, score_rows, head, first, sample, barrier);
            bring<ROWS, PANELS>(place + OWN, slope_rows, head, first, sample, barrier);
        }
        bring<OTHERS, PANELS>(stage, score_others, head, t * OTHERS, sample, barrier);
        bring<OTHERS, PANELS>(stage + TILE, slope_others, head, t * OTHERS, sample, barrier);
        if constexpr (BY_KEY) copy_line(terms_place + t % 2 * TERM_BYTES, terms + t * OTHERS * 2, TERM_BYTES, barrier);
    };

    if (threadIdx.x == 0) {
        fetch_map(score_rows), fetch_map(slope_rows), fetch_map(score_others), fetch_map(slope_others);
#pragma unroll
        for (u32 i = 0; i < 2; i++) make_barrier(there + i * 8, 1), make_barrier(done + i * 8, 4 * GROUPS);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        load(0);
        if (tiles > 1) load(1);
    }
    __syncthreads();
    Terms<BY_KEY> compared;
    u32 warp_row = threadIdx.x / 32 * 16;
    if constexpr (!BY_KEY) {
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            u32 row = first + warp_row + threadIdx.x % 32 / 4 + 8 * h;
            // Nothing is written of rows that there are not.
            compared.of_row[h] = *(const Pack<float, 2>*)(terms + 2 * (row < rows ? row : 0));
        }
    }
    float factor = scale * LOG2_E, s[OTHERS / 2], dp[OTHERS / 2], to_slopes[N / 2] = {}, to_weights[N / 2] = {};
    u32 w[OTHERS / 16][4];
#pragma unroll 1
    for (u32 t = 0; t < tiles; t++) {
        u32 stage = stages + t % 2 * STAGE, now = terms_place + t % 2 * TERM_BYTES;
        await(there + t % 2 * 8, t / 2 % 2);
        begin_products();
        begin_scores<K, ROWS>(s, own, stage, T{});
        begin_scores<K, ROWS>(dp, own + OWN, stage + TILE, T{});
        if (threadIdx.x == 0 && t > 0 && t + 1 < tiles) {
            await(done + (t - 1) % 2 * 8, (t - 1) / 2 % 2);
            load(t + 1);
        }
        __syncwarp();
        wait_products<1>(s);
        compared.soften(s, now, factor);
        if (!BY_KEY && others - t * OTHERS < OTHERS) {
            // Keys that there are not have scores of 0, and P may be beyond all numbers.
#pragma unroll
            for (u32 i = 0; i < OTHERS / 2; i++) {
                if (i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2 >= others - t * OTHERS) s[i] = 0.0f;
            }
        }
        if constexpr (BY_KEY) {
            narrow_weights<T>(w, s);
            begin_products();
            begin_sums<N>(to_weights, w, stage + TILE, T{});
        }
        wait_products<BY_KEY ? 1 : 0>(dp);
        compared.slope(dp, s, now);
        u32 slopes_narrow[OTHERS / 16][4];
        narrow_weights<T>(slopes_narrow, dp);
        begin_products();
        begin_sums<N>(to_slopes, slopes_narrow, stage, T{});
        wait_products<0>(to_slopes);
        hold(to_weights);
        if (threadIdx.x % 32 == 0) arrive(done + t % 2 * 8);
    }
    // No warp's place is read any more.
    __syncthreads();
    float by_scale[2] = {scale, scale}, by_one[2] = {1.0f, 1.0f};
    put_panels<T, N, ROWS>(Head<T>(of_slopes, pair, heads, rows, d), to_slopes, by_scale, place, warp_row, first, rows);
    if constexpr (BY_KEY) put_panels<T, N, ROWS>(Head<T>(of_weights, pair, heads, rows, dv), to_weights, by_one, place + OWN, warp_row, first, rows);
}

// q, k, v, dy: maps of [B, rows, heads, columns] in boxes of 64 columns of a head, of a block's rows or a tile's others. blocks: of the rows of a head,
// which are keys, or queries. GROUPS warpgroups by key, as many as have registers for their sums; two by query, of which BLOCKS blocks share a multiprocessor.
#define MAP(name) const __grid_constant__ TensorMap name
#define GRADIENT(T, D, K, GROUPS, BLOCKS)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128 * GROUPS, 1) attention_grad_by_key_##D##_##T(                                         \
        MAP(k), MAP(v), MAP(q), MAP(dy), const float* terms, T* dk, T* dv, u32 keys, u32 queries, u32 heads, u32 d, u32 width, u32 blocks, \
        float scale) {                                                                                                                     \
        gradient<T, K, D, GROUPS, true>(k, v, q, dy, terms, dk, dv, keys, queries, heads, d, width, blocks, scale);                        \
    }                                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS) attention_grad_by_query_##D##_##T(                                           \
        MAP(q), MAP(dy), MAP(k), MAP(v), const float* terms, T* dq, u32 queries, u32 keys, u32 heads, u32 d, u32 width, u32 blocks,        \
        float scale) {                                                                                                                     \
        gradient<T, K, D, 2, false>(q, dy, k, v, terms, dq, (T*)nullptr, queries, keys, heads, d, width, blocks, scale);                   \
    }
#define HALVES(T)             \
    GRADIENT(T, 40, 48, 3, 2) \
    GRADIENT(T, 64, 64, 2, 2) \
    GRADIENT(T, 80, 80, 2, 1) \
    GRADIENT(T, 128, 128, 2, 1)
HALVES(f16)
HALVES(bf16)
