// The gradient of attention in f16 and bf16 on Hopper, where there are many keys and queries: as `attention_grad.cu`, with five products and one
// exponential a score for seven and two, as blocks of keys make dq as well.
//
// Floor: 2 Tq Tk (3 d + 2 dv) FLOPs a head, by `wgmma`. Cycles of a multiprocessor for 64 keys and 64 queries, by arithmetic:
//
//   columns of a head              40    64   128
//   products                      448   640  1280
//   exponentials                  256   256   256
//   sums to integers, of 16        96   128   256
//
// dq is the sum of what all blocks of a head's keys add to it, in whatever order: so it is of integers, the same bits every time. A query's unit is a power of two for which no
// sum passes 2^29, as |dS k| is at most sum(P) (|dy| |v| + |rowsum(dy ∘ y)|) |k|, with the longest v of the head and its largest number of k. That leaves 29 bits below a bound
// that dq comes near to for one key of weight 1, and some 15 where thousands of keys share it.
//
// A block has 128 keys, 64 for each of two warpgroups; a third warpgroup brings queries, 64 in a tile, and gives its registers to the others. Scores lie with
// keys as rows: P and dS are left operands in registers for dv and dk; for dq, which wants dS of all of the block's keys with queries as rows, dS goes through
// shared memory, and each warpgroup makes half of the columns. A turn makes dq of the tile before its own, whose dS the other warpgroup has most likely made
// by then, so that one may be most of a turn behind the other, with exponentials beside its products. The sums go to memory beside the products of dk, and up
// to 64 columns beside the next tile's scores.
#include "lib/attention_grad_hopper.cuh"

constexpr u32 ROWS = 128;
// A tile's terms: of each query lse in powers of two, rowsum(dy ∘ y), and what dq is multiplied by.
constexpr u32 TERMS = 3 * OTHERS;

// Of bits of numbers that are not negative, or NaN, which is above all.
__device__ __forceinline__ u32 largest(u32 v, u32 lanes) {
    for (u32 step = lanes / 2; step > 0; step /= 2) v = max(v, __shfl_xor_sync(~0u, v, step));
    return v;
}
__device__ __forceinline__ float sum_of(float v, u32 lanes) {
    for (u32 step = lanes / 2; step > 0; step /= 2) v += __shfl_xor_sync(~0u, v, step);
    return v;
}

// limits [pairs, parts, 2]: the largest |k| and |v|² of 128 keys, as bits. 16 lanes a row.
template <class T>
__device__ __forceinline__ void find_limits(const T* k, const T* v, u32* limits, u32 keys, u32 heads, u32 d, u32 dv, u32 parts) {
    __shared__ u32 of_warps[8][2];
    u32 pair = blockIdx.x / parts, lane = threadIdx.x % 16, of_k = 0, of_v = 0;
    Head<const T> k_rows(k, pair, heads, keys, d), v_rows(v, pair, heads, keys, dv);
#pragma unroll 1
    for (u32 i = threadIdx.x / 16; i < ROWS; i += 16) {
        u32 row = blockIdx.x % parts * ROWS + i;
        float square = 0.0f;
        if (row < keys && 8 * lane < d) {
            Wide<T> x = *(const Wide<T>*)(k_rows.row(row) + 8 * lane);
#pragma unroll
            for (u32 c = 0; c < 8; c++) of_k = max(of_k, __float_as_uint(widen(x.at[c])) & 0x7fffffff);
        }
        if (row < keys && 8 * lane < dv) {
            Wide<T> x = *(const Wide<T>*)(v_rows.row(row) + 8 * lane);
#pragma unroll
            for (u32 c = 0; c < 8; c++) square += widen(x.at[c]) * widen(x.at[c]);
        }
        of_v = max(of_v, __float_as_uint(sum_of(square, 16)));
    }
    of_k = largest(of_k, 32), of_v = largest(of_v, 32);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32][0] = of_k, of_warps[threadIdx.x / 32][1] = of_v;
    __syncthreads();
    if (threadIdx.x < 2) {
        u32 most = 0;
        for (u32 w = 0; w < 8; w++) most = max(most, of_warps[w][threadIdx.x]);
        limits[2 * blockIdx.x + threadIdx.x] = most;
    }
}

// A power of two that takes what is at most `bound` below 2^29; NaN if there is none.
__device__ __forceinline__ float unit_for(float bound) {
    u32 exponent = __float_as_uint(bound) >> 23;
    return __uint_as_float(exponent >= 255 ? 0x7fffffff : min(282 - exponent, 227u) << 23);
}

// terms [pairs, tiles, 3, 64]; zeros to `fixed` [pairs, tiles, 64 · K]. A block for each tile, 16 lanes a query.
template <class T, u32 K>
__device__ __forceinline__ void make_terms(const T* y, const T* dy, const float* lse, const u32* limits, float* terms, int* fixed, u32 queries, u32 heads,
                                           u32 dv, u32 parts) {
    u32 tiles = (queries + OTHERS - 1) / OTHERS, pair = blockIdx.x / tiles, lane = threadIdx.x % 16, of_k = 0, of_v = 0;
    Head<const T> y_rows(y, pair, heads, queries, dv), dy_rows(dy, pair, heads, queries, dv);
    for (u32 p = threadIdx.x % 32; p < parts; p += 32) {
        of_k = max(of_k, limits[2 * (pair * parts + p)]);
        of_v = max(of_v, limits[2 * (pair * parts + p) + 1]);
    }
    float most = __uint_as_float(largest(of_k, 32)), longest = sqrtf(__uint_as_float(largest(of_v, 32)));
    terms += u64(blockIdx.x) * TERMS;
#pragma unroll 1
    for (u32 i = threadIdx.x / 16; i < OTHERS; i += 16) {
        u32 query = blockIdx.x % tiles * OTHERS + i;
        float dot = 0.0f, square = 0.0f;
        if (query < queries && 8 * lane < dv) {
            Wide<T> a = *(const Wide<T>*)(y_rows.row(query) + 8 * lane), b = *(const Wide<T>*)(dy_rows.row(query) + 8 * lane);
#pragma unroll
            for (u32 c = 0; c < 8; c++) dot += widen(a.at[c]) * widen(b.at[c]), square += widen(b.at[c]) * widen(b.at[c]);
        }
        dot = sum_of(dot, 16), square = sum_of(square, 16);
        if (lane == 0) {
            bool has = query < queries;
            terms[i] = has ? lse[u64(pair) * queries + query] * LOG2_E : INFINITE;
            terms[OTHERS + i] = has ? dot : 0.0f;
            terms[2 * OTHERS + i] = has ? unit_for((sqrtf(square) * longest + fabsf(dot)) * most) : 0.0f;
        }
    }
    Pack<float, 4>* zeros = (Pack<float, 4>*)(fixed + u64(blockIdx.x) * (OTHERS * K));
#pragma unroll
    for (u32 i = 0; i < OTHERS * K / 4; i += 256) zeros[i + threadIdx.x] = Pack<float, 4>::zeros();
}

__device__ __forceinline__ void add(int* to, int v) {
    asm volatile("red.relaxed.gpu.global.add.s32 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "r"(v) : "memory");
}

// Four matrices of 8 × 8 halves as accumulators have them, into a panel: lane l has the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void store_matrices(u32 at, const u32 (&w)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]) : "memory");
}

// A warp's 16 rows of a panel as left operands of products over K columns.
template <u32 K>
__device__ __forceinline__ void load_rows(u32 (&a)[K / 16][4], u32 at) {
#pragma unroll
    for (u32 k = 0; k < K / 16; k++) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(a[k][0]), "=r"(a[k][1]), "=r"(a[k][2]), "=r"(a[k][3])
                     : "r"(at ^ k << 5)
                     : "memory");
    }
}

// An address of which the compiler knows nothing: it would make sums with it something else, which do not go into accesses.
__device__ __forceinline__ u32 opaque(u32 at) {
    asm volatile("" : "+r"(at));
    return at;
}

// Where things lie in a block's shared memory: K and V, tiles of queries and dy with their terms, dS twice; and barriers at which they change hands.
template <u32 K>
struct Room {
    static constexpr u32 PANELS = (K + 63) / 64, OWN = PANELS * ROWS * PANEL_ROW, TILE = PANELS * OTHERS * PANEL_ROW, STAGE = 2 * TILE;
    static constexpr u32 STAGES = K <= 64 ? 4 : 3, SLOPES = ROWS * PANEL_ROW, TERM_BYTES = TERMS * 4, BARRIERS = 2 * STAGES + 4;
    u32 place, barriers;

    __device__ __forceinline__ u32 tile(u32 stage) const { return place + 2 * OWN + stage * STAGE; }
    __device__ __forceinline__ u32 slopes(u32 turn) const { return tile(STAGES) + turn * SLOPES; }
    __device__ __forceinline__ u32 terms(u32 stage) const { return slopes(2) + stage * TERM_BYTES; }
    // A tile is there; both warpgroups have done with it.
    __device__ __forceinline__ u32 full(u32 stage) const { return barriers + stage * 8; }
    __device__ __forceinline__ u32 empty(u32 stage) const { return full(STAGES) + stage * 8; }
    // dS of all keys is there; both have done with it.
    __device__ __forceinline__ u32 sloped(u32 turn) const { return empty(STAGES) + turn * 8; }
    __device__ __forceinline__ u32 taken(u32 turn) const { return sloped(2) + turn * 8; }

    __device__ __forceinline__ void make_barriers() const {
#pragma unroll
        for (u32 i = 0; i < STAGES; i++) make_barrier(full(i), 1), make_barrier(empty(i), 8);
#pragma unroll
        for (u32 i = 0; i < 2; i++) make_barrier(sloped(i), 8), make_barrier(taken(i), 8);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
};

// Scores and dP go over K columns, which dq has too; dk and dv have N. fixed [pairs, tiles, 2, K / 4, 128]: sums of a warpgroup as its threads have them.
template <class T, u32 K, u32 N>
__device__ __forceinline__ void gradient(const TensorMap& k, const TensorMap& v, const TensorMap& q, const TensorMap& dy, const float* terms, int* fixed, T* dk,
                                         T* dv, u32 keys, u32 queries, u32 heads, u32 d, u32 width, u32 blocks, float scale) {
    using In = Room<K>;
    constexpr u32 HALF = K / 2;
    // Whether there are registers for K and V as left operands, and for the scores of the next tile.
    constexpr bool NARROW = K <= 64;
    extern __shared__ __align__(1024) unsigned char memory[];
    __shared__ u64 barriers[In::BARRIERS];
    // Patterns of the swizzle begin at multiples of 1024 bytes, whatever stands before.
    const In room = {(shared_address(memory) + 1023) & ~1023u, shared_address(barriers)};
    u32 warpgroup = warpgroup_number(), pair = blockIdx.x / blocks, block = blockIdx.x % blocks, first = block * ROWS, tiles = (queries + OTHERS - 1) / OTHERS;
    // Blocks begin at tiles of their own, so that they do not all add to the same sums.
    u32 tile = u32(u64(block) * tiles / blocks);
    if (threadIdx.x == 0) room.make_barriers();
    __syncthreads();
    Ring<In::STAGES> ring;
    if (warpgroup == 2) {
        give_registers<24>();
        if (threadIdx.x % 128 != 0) return;
        fetch_map(k), fetch_map(v), fetch_map(q), fetch_map(dy);
        u32 head = pair % heads, sample = pair / heads;
#pragma unroll 1
        for (u32 t = 0; t < tiles; t++) {
            u32 barrier = room.full(ring.stage), to = room.tile(ring.stage);
            await(room.empty(ring.stage), ring.parity ^ 1);
            arrive_and_announce(barrier, (t == 0 ? 2 * In::OWN : 0) + In::STAGE + In::TERM_BYTES);
            if (t == 0) {
                bring<ROWS, In::PANELS>(room.place, k, head, first, sample, barrier);
                bring<ROWS, In::PANELS>(room.place + In::OWN, v, head, first, sample, barrier);
            }
            bring<OTHERS, In::PANELS>(to, q, head, tile * OTHERS, sample, barrier);
            bring<OTHERS, In::PANELS>(to + In::TILE, dy, head, tile * OTHERS, sample, barrier);
            copy_line(room.terms(ring.stage), terms + (u64(pair) * tiles + tile) * TERMS, In::TERM_BYTES, barrier);
            ring.advance();
            if (++tile == tiles) tile = 0;
        }
        return;
    }
    take_registers<240>();
    u32 warp = threadIdx.x / 32, own = room.place + warpgroup * 64 * PANEL_ROW, row = warp * 16 * PANEL_ROW + chunk(threadIdx.x % 16, threadIdx.x % 32 / 16);
    fixed += u64(pair) * tiles * (OTHERS * K) + warpgroup * (OTHERS * HALF) + threadIdx.x % 128;
    float factor = scale * LOG2_E, s[OTHERS / 2], dp[OTHERS / 2], to_k[N / 2] = {}, to_v[N / 2] = {}, to_q[HALF / 2], units[2] = {};
    u32 of_k[NARROW ? K / 16 : 1][4], of_v[NARROW ? K / 16 : 1][4];
    auto begin_scores_of = [&](u32 stage) {
        if constexpr (NARROW) begin_scores<K>(s, of_k, room.tile(stage), T{});
        else begin_scores<K, ROWS>(s, own, room.tile(stage), T{});
    };
    // Which place dS of a turn has, and the parity of its barriers. dq is of the turn before: in the first turn of zeros, times no unit.
    u32 turn = 0, parity = 0;
    auto begin_queries = [&] {
        u64 left = matrix_descriptor<128, 16, 1024>(room.slopes(turn ^ 1));
        u64 right = matrix_descriptor<128, 16, 1024>(room.place + warpgroup * (K <= 64 ? HALF * 2 : ROWS * PANEL_ROW));
        begin_products();
#pragma unroll
        for (u32 i = 0; i < ROWS / 16; i++) cross(to_q, left + i * (16 * PANEL_ROW >> 4), right + i * (16 * PANEL_ROW >> 4), i > 0, T{});
        commit_products();
    };
    auto send_queries = [&] {
        int* to = fixed + u64((tile > 0 ? tile : tiles) - 1) * (OTHERS * K);
#pragma unroll
        for (u32 i = 0; i < HALF / 2; i++) add(to + i * 128, __float2int_rn(to_q[i] * units[i / 2 % 2]));
    };
    const u32 none[4] = {};
#pragma unroll
    for (u32 c = 0; c < 4; c++) store_matrices(room.slopes(1) + row ^ c << 5, none);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("bar.sync 1, 256;" ::: "memory");
    if constexpr (NARROW) {
        await(room.full(0), 0);
        load_rows<K>(of_k, room.place + row), load_rows<K>(of_v, room.place + In::OWN + row);
        begin_products();
        begin_scores_of(0);
        wait_products<0>(s);
    }
#pragma unroll 1
    for (u32 t = 0; t < tiles; t++) {
        u32 queries_here = room.tile(ring.stage), dy_here = queries_here + In::TILE, terms_here = room.terms(ring.stage), done = room.empty(ring.stage);
        // Of this thread's queries.
        u32 of_scores = opaque(terms_here + threadIdx.x % 4 * 8);
        if constexpr (!NARROW) await(room.full(ring.stage), ring.parity);
        begin_products();
        if constexpr (!NARROW) begin_scores_of(ring.stage);
        if constexpr (NARROW) begin_scores<K>(dp, of_v, dy_here, T{});
        else begin_scores<K, ROWS>(dp, own + In::OWN, dy_here, T{});
        if constexpr (!NARROW) wait_products<1>(s);
#pragma unroll
        for (u32 n = 0; n < OTHERS / 8; n++) {
            Pack<float, 2> less = read_floats<2>(of_scores + n * 32);
#pragma unroll
            for (u32 r = 0; r < 4; r++) s[4 * n + r] = exp2_fast(fmaf(s[4 * n + r], factor, -less.at[r % 2]));
        }
        u32 w[OTHERS / 16][4], ds[OTHERS / 16][4];
        narrow_weights<T>(w, s);
        begin_products();
        begin_sums<N>(to_v, w, dy_here, T{});
        wait_products<1>(dp);
#pragma unroll
        for (u32 n = 0; n < OTHERS / 8; n++) {
            Pack<float, 2> delta = read_floats<2>(of_scores + OTHERS * 4 + n * 32);
#pragma unroll
            for (u32 r = 0; r < 4; r++) dp[4 * n + r] = s[4 * n + r] * (dp[4 * n + r] - delta.at[r % 2]);
        }
        narrow_weights<T>(ds, dp);
        await(room.taken(turn), parity ^ turn ^ 1);
#pragma unroll
        for (u32 c = 0; c < OTHERS / 16; c++) store_matrices(room.slopes(turn) + row ^ c << 5, ds[c]);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncwarp();
        if (threadIdx.x % 32 == 0) arrive(room.sloped(turn));
        ring.advance();
        if (NARROW && t + 1 < tiles) await(room.full(ring.stage), ring.parity);
        if (t > 0) await(room.sloped(turn ^ 1), parity ^ turn ^ 1);
        begin_queries();
        begin_sums<N>(to_k, ds, queries_here, T{});
        // The last turn makes those of an earlier tile, for nothing: with a branch around them, all products would be waited for one by one.
        if constexpr (NARROW) begin_scores_of(ring.stage);
        wait_products<NARROW ? 2 : 1>(to_q);
        __syncwarp();
        if (threadIdx.x % 32 == 0) arrive(room.taken(turn ^ 1));
        send_queries();
#pragma unroll
        for (u32 h = 0; h < 2; h++) units[h] = read_floats<1>(terms_here + (2 * OTHERS + warp % 4 * 16 + threadIdx.x % 32 / 4 + 8 * h) * 4).at[0];
        wait_products<0>(to_k);
        hold(to_v);
        if constexpr (NARROW) hold(s);
        __syncwarp();
        if (threadIdx.x % 32 == 0) arrive(done);
        if (++tile == tiles) tile = 0;
        if (turn ^= 1; turn == 0) parity ^= 1;
    }
    await(room.sloped(turn ^ 1), parity ^ turn ^ 1);
    begin_queries();
    wait_products<0>(to_q);
    send_queries();
    // K and V are not read any more.
    asm volatile("bar.sync 1, 256;" ::: "memory");
    float by_scale[2] = {scale, scale}, by_one[2] = {1.0f, 1.0f};
    put_panels<T, N, ROWS>(Head<T>(dk, pair, heads, keys, d), to_k, by_scale, room.place, warp * 16, first, keys);
    put_panels<T, N, ROWS>(Head<T>(dv, pair, heads, keys, width), to_v, by_one, room.place + In::OWN, warp * 16, first, keys);
}

// dq of a tile and half of the columns.
template <class T, u32 K>
__device__ __forceinline__ void finish(const int* fixed, const float* terms, T* dq, u32 queries, u32 heads, u32 d, float scale) {
    constexpr u32 HALF = K / 2;
    __shared__ __align__(128) unsigned char room[64 * PANEL_ROW];
    u32 tiles = (queries + OTHERS - 1) / OTHERS, number = blockIdx.x / 2, col = blockIdx.x % 2 * HALF, first = number % tiles * OTHERS;
    u32 row = threadIdx.x / 32 * 16;
    fixed += u64(blockIdx.x) * (OTHERS * HALF) + threadIdx.x;
    float sums[HALF / 2], factor[2];
#pragma unroll
    for (u32 i = 0; i < HALF / 2; i++) sums[i] = float(fixed[i * 128]);
#pragma unroll
    for (u32 h = 0; h < 2; h++) factor[h] = scale / terms[u64(number) * TERMS + 2 * OTHERS + row + threadIdx.x % 32 / 4 + 8 * h];
    Head<T> to(dq, number / tiles, heads, queries, d);
    to.data += col;
    to.width = min(d - min(d, col), HALF);
    put_panels<T, HALF, 64>(to, sums, factor, shared_address(room), row, first, queries);
}

#define MAP(name) const __grid_constant__ TensorMap name
#define GRADIENT(T, K, N)                                                                                                                                    \
    extern "C" __global__ void __launch_bounds__(256) attention_grad_once_terms_##N##_##T(const T* y, const T* dy, const float* lse, const u32* limits,      \
                                                                                         float* terms, int* fixed, u32 queries, u32 heads, u32 dv, u32 parts) { \
        make_terms<T, K>(y, dy, lse, limits, terms, fixed, queries, heads, dv, parts);                                                                       \
    }                                                                                                                                                        \
    extern "C" __global__ void __launch_bounds__(384, 1) attention_grad_once_##N##_##T(MAP(k), MAP(v), MAP(q), MAP(dy), const float* terms, int* fixed, T* dk,\
                                                                                      T* dv, u32 keys, u32 queries, u32 heads, u32 d, u32 width, u32 blocks,  \
                                                                                      float scale) {                                                         \
        gradient<T, K, N>(k, v, q, dy, terms, fixed, dk, dv, keys, queries, heads, d, width, blocks, scale);                                                 \
    }                                                                                                                                                        \
    extern "C" __global__ void __launch_bounds__(128) attention_grad_once_finish_##N##_##T(const int* fixed, const float* terms, T* dq, u32 queries,         \
                                                                                          u32 heads, u32 d, float scale) {                                   \
        finish<T, K>(fixed, terms, dq, queries, heads, d, scale);                                                                                            \
    }
#define HALVES(T)                                                                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) attention_grad_once_limits_##T(const T* k, const T* v, u32* limits, u32 keys, u32 heads, u32 d, u32 dv, \
                                                                                    u32 parts) {                                                            \
        find_limits(k, v, limits, keys, heads, d, dv, parts);                                                                                               \
    }                                                                                                                                                       \
    GRADIENT(T, 48, 40)                                                                                                                                     \
    GRADIENT(T, 64, 64)                                                                                                                                     \
    GRADIENT(T, 128, 128)
HALVES(f16)
HALVES(bf16)
