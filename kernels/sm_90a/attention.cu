// y = softmax(scale · q kᵀ) v in each head, and lse, on Hopper   (Dao et al. 2022; Shah et al. 2024)
//
// Floor: 2 Tq Tk (d + dv) FLOPs a head, by the tensor cores that only `wgmma` keeps busy, or an exponential for every score, of which a
// multiprocessor makes 16 a cycle. Cycles of a multiprocessor for 128 queries and 128 keys, by arithmetic:
//
//   columns of a head                     40    64    72    80   128
//   products, 4096 FLOPs                 704  1024  1216  1280  2048
//   exponentials, 16                    1024  1024  1024  1024  1024
//   instructions of warps, 4             905  1091  1143  1175   944
//   shared memory, 128 bytes             736  1024  1280  1344  1792
//
// Warpgroups have 64 queries of a head each, and go over all keys. Scores are products of what is in shared memory; weights are the left operand of the second product in
// the registers in which the first one left them. The softmax of a tile of keys runs beside the second product of the tile before it. A block has two warpgroups, or where that leaves
// multiprocessors idle one.
//
// With more than 80 columns, or one warpgroup, there is another of which a thread brings what they need and all give their registers to the others, and each begins its products in turn, so that a softmax is
// beside both products of the other warpgroup. With fewer, two blocks share a multiprocessor, and four warpgroups' softmaxes are beside each other.
//
// Q, K and V come in boxes of panels of 64 columns: rows of 128 bytes with chunks exchanged by the row's number, zeros where a head has no more
// columns or there are no more rows. Heads are padded to 16 columns in the first product, to 8 in the second.
#include "lib/attention_hopper.cuh"

// Exponentials of a row refer to the maximum of its first tile for as long as a thread's weights of a tile add up to no more than this. Only where they do
// not is there another maximum to look for, and the tile's weights are made again: rare after the first keys, and exact, as any reference cancels.
constexpr float MOST = 256.0f;

// Warpgroups begin their products in turns: each waits for its own, and passes on the next one's.
__device__ __forceinline__ void await_turn(u32 group) { asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory"); }
__device__ __forceinline__ void pass_turn(u32 group) { asm volatile("bar.arrive %0, 256;" ::"r"(1 + group) : "memory"); }

// A thread's part of 64 queries: rows `group` and `group` + 8 of its warp's 16, and columns 2 · member and the next of every 8.
template <class T, u32 DV, u32 KEYS, u32 QUERIES>
struct Softmax {
    float o[DV / 2], top[2], total[2];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (u32 i = 0; i < DV / 2; i++) o[i] = 0.0f;
#pragma unroll
        for (u32 h = 0; h < 2; h++) top[h] = -INFINITE, total[h] = 0.0f;
    }

    // Of scores of which the first `count` are of keys that there are, the others count for nothing.
    __device__ __forceinline__ void mask(float (&s)[KEYS / 2], u32 count) {
        if (count == KEYS) return;
#pragma unroll
        for (u32 i = 0; i < KEYS / 2; i++) {
            if (i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2 >= count) s[i] = -INFINITE;
        }
    }

    // Scores to weights, which are added to `sums`.
    __device__ __forceinline__ void weigh_scores(float (&s)[KEYS / 2], float factor, float (&sums)[2]) {
#pragma unroll
        for (u32 i = 0; i < KEYS / 2; i++) {
            s[i] = exp2_fast(fmaf(s[i], factor, -top[i / 2 % 2]));
            sums[i / 2 % 2] += s[i];
        }
    }

    // The same with references that are no less than any of these scores, for what was summed before as well. No product is under way.
    __device__ __forceinline__ void weigh_anew(float (&s)[KEYS / 2], float factor) {
        float less[2];
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            float most = s[2 * h];
#pragma unroll
            for (u32 n = 0; n < KEYS / 8; n++) most = fmaxf(most, fmaxf(s[4 * n + 2 * h], s[4 * n + 2 * h + 1]));
#pragma unroll
            for (u32 step = 2; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
            float next = fmaxf(top[h], most * factor);
            less[h] = exp2_fast(top[h] - next);
            top[h] = next;
            total[h] *= less[h];
        }
#pragma unroll
        for (u32 i = 0; i < DV / 2; i++) o[i] *= less[i / 2 % 2];
        weigh_scores(s, factor, total);
    }

    // Scores to weights while sums are under way, then waits for those. `again` makes the scores once more.
    template <class Again>
    __device__ __forceinline__ void soften(float (&s)[KEYS / 2], float factor, Again again) {
        float sums[2] = {0.0f, 0.0f};
        weigh_scores(s, factor, sums);
        // Never read, as sums are not negative: but no wait moves up past a read, and this one would, to before the exponentials.
        if (sums[0] + sums[1] < 0.0f) top[0] = read_floats<1>(0).at[0];
        wait_products<0>(o);
        if (__any_sync(~0u, fmaxf(sums[0], sums[1]) > MOST)) {
            again();
            weigh_anew(s, factor);
        } else {
            total[0] += sums[0], total[1] += sums[1];
        }
    }

    // Weights as the left operand of sums, of which none is under way.
    __device__ __forceinline__ void pack_weights(const float (&s)[KEYS / 2], u32 (&p)[KEYS / 16][4]) {
#pragma unroll
        for (u32 k = 0; k < KEYS / 16; k++) {
#pragma unroll
            for (u32 r = 0; r < 4; r++) {
                p[k][r] = pack<T>(s[8 * k + 2 * r], s[8 * k + 2 * r + 1]);
                asm volatile("" : "+r"(p[k][r])::"memory");
            }
        }
    }

    // Writes y through shared memory, where each warp has rows of its own, and lse. `row` is the warp's first in the block, `first` the block's.
    __device__ __forceinline__ void put(Head<T> y, float* lse, u32 place, u32 row, u32 first, u32 queries) {
        u32 lane = threadIdx.x % 32;
        float factor[2];
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            u32 r = first + row + lane / 4 + 8 * h;
            float sum = total[h];
#pragma unroll
            for (u32 step = 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
            if (lane % 4 == 0 && r < queries) lse[r] = (top[h] + log2_fast(sum)) * LN_2;
            factor[h] = 1.0f / sum;
        }
        put_panels<T, DV, QUERIES>(y, o, factor, place, row, first, queries);
    }
};

// A warp's scores once more, without the others of its warpgroup, which `wgmma` wants all: s = Q · Kᵀ for its 16 of QUERIES rows, and KEYS keys.
template <class T, u32 DK, u32 KEYS, u32 QUERIES>
__device__ __forceinline__ void score_alone(float (&s)[KEYS / 2], u32 q_place, u32 k_place) {
    u32 lane = threadIdx.x % 32, q_row = threadIdx.x / 32 * 16 + lane % 16, k_row = lane / 16 * 8 + lane % 8;
#pragma unroll
    for (u32 i = 0; i < KEYS / 2; i++) s[i] = 0.0f;
#pragma unroll 1
    for (u32 i = 0; i < DK / 16; i++) {
        u32 a[4], b[4];
        load_matrices(a, q_place + i / 4 * QUERIES * PANEL_ROW + chunk(q_row, i % 4 * 2 + lane / 16));
#pragma unroll
        for (u32 n = 0; n < KEYS / 8; n++) {
            if (n % 2 == 0) load_matrices(b, k_place + i / 4 * KEYS * PANEL_ROW + chunk(n * 8 + k_row, i % 4 * 2 + lane / 8 % 2));
            multiply_add<T>(reinterpret_cast<float(&)[4]>(s[4 * n]), a, b[n % 2 * 2], b[n % 2 * 2 + 1]);
        }
    }
}

// Rows of a box.
constexpr u32 BOX = 32;

// `bring` by boxes of fewer rows.
template <u32 ROWS, u32 PANELS>
__device__ __forceinline__ void bring_boxes(u32 to, const TensorMap& x, u32 head, u32 first, u32 sample, u32 barrier) {
#pragma unroll 1
    for (u32 row = 0; row < ROWS; row += BOX) {
#pragma unroll
        for (u32 p = 0; p < PANELS; p++) copy_box(to + (p * ROWS + row) * PANEL_ROW, x, 64 * p, head, first + row, sample, barrier);
    }
}

// Heads of at most DK columns of q and k, and DV of v, by GROUPS warpgroups and a warp that brings Q, and tiles of K and of V, for which there are STAGES places each.
template <class T, u32 DK, u32 DV, u32 KEYS, u32 GROUPS, u32 STAGES, u32 REGISTERS>
__device__ __forceinline__ void attention(const TensorMap& q, const TensorMap& k, const TensorMap& v, T* y, float* lse, u32 queries, u32 keys, u32 heads,
                                          u32 dv, u32 blocks, float scale) {
    constexpr u32 K_PANELS = (DK + 63) / 64, V_PANELS = (DV + 63) / 64, QUERIES = 64 * GROUPS;
    constexpr u32 Q_TILE = K_PANELS * QUERIES * PANEL_ROW, K_TILE = K_PANELS * KEYS * PANEL_ROW, V_TILE = V_PANELS * KEYS * PANEL_ROW;
    static_assert(DV <= DK);
    extern __shared__ __align__(1024) unsigned char room[];
    __shared__ u64 barriers[4 * STAGES];
    // Patterns of the swizzle begin at multiples of 1024 bytes, whatever stands before the room.
    u32 place = (shared_address(room) + 1023) & ~1023u, k_place = place + Q_TILE, v_place = k_place + STAGES * K_TILE;
    // A tile of K is there, one of V; all have done with it.
    u32 k_full = shared_address(barriers), v_full = k_full + 8 * STAGES, k_empty = v_full + 8 * STAGES, v_empty = k_empty + 8 * STAGES;
    u32 pair = blockIdx.x / blocks, first = blockIdx.x % blocks * QUERIES, warpgroup = warpgroup_number();
    u32 tiles = (keys + KEYS - 1) / KEYS;
    if (threadIdx.x == 0) {
#pragma unroll 1
        for (u32 i = 0; i < 2 * STAGES; i++) make_barrier(k_full + 8 * i, 1), make_barrier(k_empty + 8 * i, 4 * GROUPS);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (warpgroup == GROUPS) {
        if constexpr (REGISTERS > 0) give_registers<24>();
        if (threadIdx.x % 128 != 0) return;
        fetch_map(q), fetch_map(k), fetch_map(v);
        u32 head = pair % heads, sample = pair / heads;
        Ring<STAGES> ring, late;
        // The first tile is the last one, which alone may have fewer keys. V of a tile comes after K of the next, in the order in which they are needed.
#pragma unroll 1
        for (u32 t = 0; t <= tiles; t++) {
            u32 key = (tiles - 1 - t) * KEYS;
            if (t < tiles) {
                await(k_empty + 8 * ring.stage, ring.parity ^ 1);
                arrive_and_announce(k_full + 8 * ring.stage, K_TILE + (t == 0 ? Q_TILE : 0));
                if (t == 0) bring_boxes<QUERIES, K_PANELS>(place, q, head, first, sample, k_full);
                bring_boxes<KEYS, K_PANELS>(k_place + ring.stage * K_TILE, k, head, key, sample, k_full + 8 * ring.stage);
                ring.advance();
            }
            if (t > 0) {
                await(v_empty + 8 * late.stage, late.parity ^ 1);
                arrive_and_announce(v_full + 8 * late.stage, V_TILE);
                bring_boxes<KEYS, V_PANELS>(v_place + late.stage * V_TILE, v, head, key + KEYS, sample, v_full + 8 * late.stage);
                late.advance();
            }
        }
        return;
    }
    if constexpr (REGISTERS > 0) take_registers<REGISTERS>();
    Ring<STAGES> scores, values;
    float s[KEYS / 2];
    u64 q_matrix = matrix_descriptor<128, 16, 1024>(place + warpgroup * 64 * PANEL_ROW);
    // Begins the scores of the next tile.
    auto multiply = [&] {
        u64 k_matrix = matrix_descriptor<128, 16, 1024>(k_place + scores.stage * K_TILE);
#pragma unroll
        for (u32 i = 0; i < DK / 16; i++) {
            u32 in_panel = i % 4 * (32 >> 4);
            score(s, q_matrix + (i / 4 * (QUERIES * PANEL_ROW >> 4) + in_panel), k_matrix + (i / 4 * (KEYS * PANEL_ROW >> 4) + in_panel), i > 0, T{});
        }
        commit_products();
    };
    u32 p[KEYS / 16][4];
    Softmax<T, DV, KEYS, QUERIES> rows;
    rows.clear();
    // Begins the sums over the values of the tile before.
    auto sum = [&] {
        u64 v_matrix = matrix_descriptor<128, KEYS * PANEL_ROW, 1024>(v_place + values.stage * V_TILE);
#pragma unroll
        for (u32 i = 0; i < KEYS / 16; i++) weigh(rows.o, p[i], v_matrix + i * (16 * PANEL_ROW >> 4), T{});
        commit_products();
    };
    // Says that this warp has done with a place.
    auto leave = [&](u32 empty, Ring<STAGES>& ring) {
        if (threadIdx.x % 32 == 0) arrive(empty + 8 * ring.stage);
        ring.advance();
    };
    float factor = scale * LOG2_E;
    await(k_full, 0);
    begin_products();
    multiply();
    wait_products<0>(s);
    leave(k_empty, scores);
    rows.mask(s, keys - (tiles - 1) * KEYS);
    rows.weigh_anew(s, factor);
    rows.pack_weights(s, p);
    if (GROUPS > 1 && warpgroup + 1 == GROUPS) pass_turn(0);
    // No product is under way from one turn to the next, and none is left out of a turn: assemblers would put a wait behind each.
#pragma unroll 1
    for (u32 t = 1; t < tiles; t++) {
        await(k_full + 8 * scores.stage, scores.parity);
        await(v_full + 8 * values.stage, values.parity);
        if (GROUPS > 1) await_turn(warpgroup);
        begin_products();
        multiply();
        sum();
        if (GROUPS > 1) pass_turn(warpgroup + 1 == GROUPS ? 0 : warpgroup + 1);
        wait_products<1>(s);
        rows.soften(s, factor, [&] { score_alone<T, DK, KEYS, QUERIES>(s, place, k_place + scores.stage * K_TILE); });
        leave(k_empty, scores);
        rows.pack_weights(s, p);
        leave(v_empty, values);
    }
    await(v_full + 8 * values.stage, values.parity);
    if (GROUPS > 1) await_turn(warpgroup);
    begin_products();
    sum();
    if (GROUPS > 1 && warpgroup + 1 < GROUPS) pass_turn(warpgroup + 1);
    wait_products<0>(rows.o);
    // The warpgroup's place is not read any more.
    asm volatile("bar.sync %0, 128;" ::"r"(8 + warpgroup) : "memory");
    rows.put(Head<T>(y, pair, heads, queries, dv), lse + u64(pair) * queries, place, threadIdx.x / 32 * 16, first, queries);
}

// The same for narrow heads, by blocks that share a multiprocessor, of warpgroups that all multiply: one thread brings what the next turn needs when all have done with the turn
// before. There is room for Q, and two tiles of K and of V each.
template <class T, u32 DK, u32 DV, u32 KEYS, u32 QUERIES>
__device__ __forceinline__ void attention_shared(const TensorMap& q, const TensorMap& k, const TensorMap& v, T* y, float* lse, u32 queries, u32 keys, u32 heads,
                                          u32 dv, u32 blocks, float scale) {
    constexpr u32 K_PANELS = (DK + 63) / 64, V_PANELS = (DV + 63) / 64, WARPS = QUERIES / 16;
    constexpr u32 Q_TILE = K_PANELS * QUERIES * PANEL_ROW, K_TILE = K_PANELS * KEYS * PANEL_ROW, V_TILE = V_PANELS * KEYS * PANEL_ROW;
    static_assert(DV <= DK);
    extern __shared__ __align__(1024) unsigned char room[];
    __shared__ u64 barriers[4];
    // Patterns of the swizzle begin at multiples of 1024 bytes, whatever stands before the room.
    u32 place = (shared_address(room) + 1023) & ~1023u, k_place = place + Q_TILE, v_place = k_place + 2 * K_TILE;
    // What a turn needs is there; all have done with it. Of two turns each.
    u32 there = shared_address(barriers), done = there + 16;
    u32 pair = blockIdx.x / blocks, first = blockIdx.x % blocks * QUERIES, warpgroup = warpgroup_number();
    u32 tiles = (keys + KEYS - 1) / KEYS;
    // The K of one turn and the V of the one before it come together. The first turn's tile is the last, which alone may have fewer keys.
    u32 head = pair % heads, sample = pair / heads;
    auto load = [&](u32 t) {
        u32 barrier = there + t % 2 * 8, key = (tiles - 1 - t) * KEYS;
        arrive_and_announce(barrier, (t == 0 ? Q_TILE : V_TILE) + (t < tiles ? K_TILE : 0));
        if (t == 0) bring<QUERIES, K_PANELS>(place, q, head, first, sample, barrier);
        if (t < tiles) bring<KEYS, K_PANELS>(k_place + t % 2 * K_TILE, k, head, key, sample, barrier);
        if (t > 0) bring<KEYS, V_PANELS>(v_place + (t - 1) % 2 * V_TILE, v, head, key + KEYS, sample, barrier);
    };
    auto finish = [&](u32 t) {
        if (threadIdx.x % 32 == 0) arrive(done + t % 2 * 8);
    };
    float s[KEYS / 2];
    u64 q_matrix = matrix_descriptor<128, 16, 1024>(place + warpgroup * 64 * PANEL_ROW);
    // Begins the scores of a turn's tile.
    auto multiply = [&](u32 t) {
        u64 k_matrix = matrix_descriptor<128, 16, 1024>(k_place + t % 2 * K_TILE);
#pragma unroll
        for (u32 i = 0; i < DK / 16; i++) {
            u32 in_panel = i % 4 * (32 >> 4);
            score(s, q_matrix + (i / 4 * (QUERIES * PANEL_ROW >> 4) + in_panel), k_matrix + (i / 4 * (KEYS * PANEL_ROW >> 4) + in_panel), i > 0, T{});
        }
        commit_products();
    };

    u32 p[KEYS / 16][4];
    Softmax<T, DV, KEYS, QUERIES> rows;
    rows.clear();
    // Begins the sums over the values of a turn's tile.
    auto sum = [&](u32 t) {
        u64 v_matrix = matrix_descriptor<128, KEYS * PANEL_ROW, 1024>(v_place + t % 2 * V_TILE);
#pragma unroll
        for (u32 i = 0; i < KEYS / 16; i++) weigh(rows.o, p[i], v_matrix + i * (16 * PANEL_ROW >> 4), T{});
        commit_products();
    };

    if (threadIdx.x == 0) {
        fetch_map(q), fetch_map(k), fetch_map(v);
#pragma unroll
        for (u32 i = 0; i < 2; i++) make_barrier(there + i * 8, 1), make_barrier(done + i * 8, WARPS);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        load(0);
        load(1);
    }
    __syncthreads();
    float factor = scale * LOG2_E;
    await(there, 0);
    begin_products();
    multiply(0);
    wait_products<0>(s);
    rows.mask(s, keys - (tiles - 1) * KEYS);
    rows.weigh_anew(s, factor);
    rows.pack_weights(s, p);
    finish(0);
    // No product is under way from one turn to the next, and none is left out of a turn: assemblers would put a wait behind each.
#pragma unroll 1
    for (u32 t = 1; t < tiles; t++) {
        await(there + t % 2 * 8, t / 2 % 2);
        begin_products();
        multiply(t);
        sum(t - 1);
        if (threadIdx.x == 0) {
            // Behind this all have done with the K of t - 1 and the V of t - 2.
            await(done + (t - 1) % 2 * 8, (t - 1) / 2 % 2);
            load(t + 1);
        }
        __syncwarp();
        wait_products<1>(s);
        rows.soften(s, factor, [&] { score_alone<T, DK, KEYS, QUERIES>(s, place, k_place + t % 2 * K_TILE); });
        rows.pack_weights(s, p);
        finish(t);
    }
    await(there + tiles % 2 * 8, tiles / 2 % 2);
    begin_products();
    sum(tiles - 1);
    wait_products<0>(rows.o);
    // No warp's place is read any more.
    __syncthreads();
    rows.put(Head<T>(y, pair, heads, queries, dv), lse + u64(pair) * queries, place, threadIdx.x / 32 * 16, first, queries);
}

// q, k, v: maps of [B, rows, heads, columns] in boxes of 64 columns of a head, of a block's queries or a tile's keys. blocks: of the queries of a head.
#define ATTENTION(T, NAME, DK, DV, KEYS, GROUPS, STAGES, BLOCKS, REGISTERS)                                                                          \
    extern "C" __global__ void __launch_bounds__(128 * GROUPS + 128, BLOCKS)                                                                         \
        attention_##NAME##_##T(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v, T* y, \
                               float* lse, u32 queries, u32 keys, u32 heads, u32 dv, u32 blocks, float scale) {                                      \
        attention<T, DK, DV, KEYS, GROUPS, STAGES, REGISTERS>(q, k, v, y, lse, queries, keys, heads, dv, blocks, scale);                             \
    }
#define SHARED(T, NAME, DK, DV, KEYS)                                                                                                                \
    extern "C" __global__ void __launch_bounds__(256, 2)                                                                                             \
        attention_##NAME##_##T(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v, T* y, \
                               float* lse, u32 queries, u32 keys, u32 heads, u32 dv, u32 blocks, float scale) {                                      \
        attention_shared<T, DK, DV, KEYS, 128>(q, k, v, y, lse, queries, keys, heads, dv, blocks, scale);                                            \
    }
// `few`: one warpgroup. REGISTERS of a thread that multiplies are what BLOCKS on a multiprocessor leave.
#define HALVES(T)                                   \
    SHARED(T, 40, 48, 40, 96)                    \
    SHARED(T, 64, 64, 64, 64)                    \
    SHARED(T, 72, 80, 72, 64)                    \
    SHARED(T, 80, 80, 80, 64)                    \
    ATTENTION(T, 128, 128, 128, 160, 2, 2, 1, 240) \
    ATTENTION(T, 160, 160, 160, 96, 2, 2, 1, 240)   \
    ATTENTION(T, few_40, 48, 40, 96, 1, 4, 1, 0)    \
    ATTENTION(T, few_64, 64, 64, 64, 1, 4, 1, 0)    \
    ATTENTION(T, few_80, 80, 80, 64, 1, 4, 1, 0)    \
    ATTENTION(T, few_128, 128, 128, 64, 1, 4, 1, 0) \
    ATTENTION(T, few_160, 160, 160, 64, 1, 4, 1, 0) \
    ATTENTION(T, few_256, 256, 256, 64, 1, 3, 1, 0)
HALVES(f16)
HALVES(bf16)
