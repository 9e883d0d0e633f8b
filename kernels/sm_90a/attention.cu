// y = softmax(scale · q kᵀ) v in each head, and lse, on Hopper   (Dao et al. 2022; Shah et al. 2024)
//
// Floor: 2 Tq Tk (d + dv) FLOPs a head, by the tensor cores that only `wgmma` keeps busy, or an exponential for every score, of which a
// multiprocessor makes 16 a cycle. Cycles of a multiprocessor for 128 queries and 128 keys, by arithmetic, instructions as machine code has them:
//
//   columns of a head                     40    64    72    80   128
//   products, 4096 FLOPs                 704  1024  1216  1280  2048
//   exponentials, 16                     896  1024  1024  1024  1024
//   instructions of warps, 4             755   752   776   776   654
//   shared memory, 128 bytes             608   896  1184  1216  1792
//
// Warpgroups have 64 queries of a head each, and go over all keys. Scores are products of what is in shared memory; weights are the left operand of the
// second product in the registers in which the first one left them. The softmax of a tile of keys runs beside the second product of the tile before it.
// It looks for no maximum, but at the first tile, and where weights outgrow that: a score costs a multiply-add, an exponential, an addition and half a
// conversion, and none of them waits for what other lanes have.
//
// Heads of at most 80 columns: all warpgroups of a block multiply, up to four, each at its own pace; one thread brings what is needed two turns later.
// Four share what comes: rows of 80 bytes for two would take most of what L2 can hand out.
//
// With more columns, there is another warpgroup of which a thread brings what they need and all give their registers to the others, and each begins its
// products in turn, so that a softmax is beside both products of the other warpgroup. With 128 columns blocks stay, and go from some queries to others,
// whose first scores are beside the last sums of those before.
//
// Q, K and V come in boxes of panels of 64 columns, a tile's panel at once: rows of 128 bytes with chunks exchanged by the row's number, zeros where a
// head has no more columns or there are no more rows. Heads are padded to 16 columns in the first product, to 8 in the second.
#include "lib/attention_hopper.cuh"

// Exponentials of a row refer to the maximum of its first tile for as long as what a thread has of a tile's weights adds up to no more than this. Only where
// it does not is there another maximum to look for, and the tile's weights are made again: rare after the first keys, and exact, as any reference cancels.
constexpr float MOST = 256.0f;

// Warpgroups begin their products in turns: each waits for its own, and passes on the next one's.
__device__ __forceinline__ void await_turn(u32 group) { asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory"); }
__device__ __forceinline__ void pass_turn(u32 group) { asm volatile("bar.arrive %0, 256;" ::"r"(1 + group) : "memory"); }

// 2^(s · factor - less) by FMA units, to about 2⁻¹³, where the exponent is in [-112, 16]; beyond it is at an end, and at the lower one for NaN.
struct PowerOfTwo {
    // The exponent's place in that range, of [0, 1], is s · slope + start.
    float slope, start;

    __device__ __forceinline__ PowerOfTwo(float factor, float less) : slope(factor / 128.0f), start((112.0f - less) / 128.0f) {}

    __device__ __forceinline__ float of(float s) const {
        // What is added has no bits after the point: the sum's lowest bits are the exponent's whole part.
        constexpr float WHOLE = 12582912.0f - 112.0f;
        float place;
        asm("fma.rn.sat.f32 %0, %1, %2, %3;" : "=f"(place) : "f"(s), "f"(slope), "f"(start));
        float whole = fmaf(place, 128.0f, WHOLE), rest = fmaf(place, 128.0f, WHOLE - whole);
        float power = fmaf(fmaf(fmaf(0.055171669f, rest, 0.242611122f), rest, 0.693260985f), rest, 0.999928074f);
        return __int_as_float(__float_as_int(power) + (__float_as_int(whole) << 23));
    }
};

// One in so many is none.
constexpr u32 NEVER = 1 << 16;

// A thread's part of 64 queries: rows `group` and `group` + 8 of its warp's 16, and columns 2 · member and the next of every 8.
template <class T, u32 DV, u32 KEYS, u32 EVERY>
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

    // Scores to weights, which are added to `sums`: if `shared`, one in EVERY by FMA units.
    __device__ __forceinline__ void weigh_scores(float (&s)[KEYS / 2], float factor, float (&sums)[2], bool shared) {
        PowerOfTwo power[2] = {{factor, top[0]}, {factor, top[1]}};
#pragma unroll
        for (u32 i = 0; i < KEYS / 2; i++) {
            bool by_fma = shared && i % EVERY == EVERY - 1;
            s[i] = by_fma ? power[i / 2 % 2].of(s[i]) : exp2_fast(fmaf(s[i], factor, -top[i / 2 % 2]));
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
        weigh_scores(s, factor, total, false);
    }

    // Scores to weights while sums are under way, then waits for those. `again` makes the scores once more.
    template <class Again>
    __device__ __forceinline__ void soften(float (&s)[KEYS / 2], float factor, Again again) {
        float sums[2] = {0.0f, 0.0f};
        weigh_scores(s, factor, sums, true);
        // Never read, as sums are not negative: but no wait moves up past a read, and this one would, to before the exponentials.
        if (sums[0] + sums[1] < 0.0f) top[0] = read_floats<1>(0).at[0];
        wait_products<0>(o);
        // Also where a weight is NaN, which a power of two by FMA units does not show.
        if (__any_sync(~0u, !(sums[0] + sums[1] <= MOST))) {
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

    // Writes y through this warp's rows of panels of ROWS in shared memory, and lse. `row` is the warp's first in the block, `first` the block's.
    template <u32 ROWS>
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
        put_panels<T, DV, ROWS>(y, o, factor, place, row, first, queries);
    }
};

// A warp's scores once more, without the others of its warpgroup, which `wgmma` wants all: s = Q · Kᵀ for its 16 of a block's rows, and KEYS keys.
template <class T, u32 DK, u32 KEYS>
__device__ __forceinline__ void score_alone(float (&s)[KEYS / 2], u32 q_place, u32 queries, u32 k_place) {
    u32 lane = threadIdx.x % 32, q_row = threadIdx.x / 32 * 16 + lane % 16, k_row = lane / 16 * 8 + lane % 8;
#pragma unroll
    for (u32 i = 0; i < KEYS / 2; i++) s[i] = 0.0f;
#pragma unroll 1
    for (u32 i = 0; i < DK / 16; i++) {
        u32 a[4], b[4];
        load_matrices(a, q_place + i / 4 * queries * PANEL_ROW + chunk(q_row, i % 4 * 2 + lane / 16));
#pragma unroll
        for (u32 n = 0; n < KEYS / 8; n++) {
            if (n % 2 == 0) load_matrices(b, k_place + i / 4 * KEYS * PANEL_ROW + chunk(n * 8 + k_row, i % 4 * 2 + lane / 8 % 2));
            multiply_add<T>(reinterpret_cast<float(&)[4]>(s[4 * n]), a, b[n % 2 * 2], b[n % 2 * 2 + 1]);
        }
    }
}

// Heads of at most DK columns of q and k, and DV of v, by GROUPS warpgroups and a thread of another that brings Q, and tiles of K and of V, for which there are STAGES places
// each. With two places for Q a block goes on to others' queries, of `all`, as many apart as there are blocks: the last sums of some are beside the first scores of the next.
template <class T, u32 DK, u32 DV, u32 KEYS, u32 GROUPS, u32 STAGES, u32 Q_PLACES, u32 REGISTERS>
__device__ __forceinline__ void attention(const TensorMap& q, const TensorMap& k, const TensorMap& v, T* y, float* lse, u32 queries, u32 keys, u32 heads,
                                          u32 dv, u32 blocks, float scale, u32 all) {
    constexpr u32 K_PANELS = (DK + 63) / 64, V_PANELS = (DV + 63) / 64, QUERIES = 64 * GROUPS;
    constexpr u32 Q_TILE = K_PANELS * QUERIES * PANEL_ROW, K_TILE = K_PANELS * KEYS * PANEL_ROW, V_TILE = V_PANELS * KEYS * PANEL_ROW;
    static_assert(DV <= DK);
    extern __shared__ __align__(1024) unsigned char room[];
    __shared__ u64 barriers[4 * STAGES + 2 * Q_PLACES];
    // Patterns of the swizzle begin at multiples of 1024 bytes, whatever stands before the room.
    u32 place = (shared_address(room) + 1023) & ~1023u, k_place = place + Q_PLACES * Q_TILE, v_place = k_place + STAGES * K_TILE;
    // A tile of K is there, one of V, some queries; all have done with it.
    u32 k_full = shared_address(barriers), v_full = k_full + 8 * STAGES, k_empty = v_full + 8 * STAGES, v_empty = k_empty + 8 * STAGES;
    u32 q_full = v_empty + 8 * STAGES, q_empty = q_full + 8 * Q_PLACES;
    u32 warpgroup = warpgroup_number(), tiles = (keys + KEYS - 1) / KEYS;
    if (threadIdx.x == 0) {
#pragma unroll 1
        for (u32 i = 0; i < 2 * STAGES; i++) make_barrier(k_full + 8 * i, 1), make_barrier(k_empty + 8 * i, 4 * GROUPS);
#pragma unroll 1
        for (u32 i = 0; i < Q_PLACES; i++) make_barrier(q_full + 8 * i, 1), make_barrier(q_empty + 8 * i, 4 * GROUPS);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (warpgroup == GROUPS) {
        if constexpr (REGISTERS > 0) give_registers<24>();
        if (threadIdx.x % 128 != 0) return;
        fetch_map(q), fetch_map(k), fetch_map(v);
        Ring<Q_PLACES> of_q;
        Ring<STAGES> ring, late;
#pragma unroll 1
        for (u32 block = blockIdx.x; block < all; block += gridDim.x) {
            u32 pair = block / blocks, head = pair % heads, sample = pair / heads;
            await(q_empty + 8 * of_q.stage, of_q.parity ^ 1);
            arrive_and_announce(q_full + 8 * of_q.stage, Q_TILE);
            bring<QUERIES, K_PANELS>(place + of_q.stage * Q_TILE, q, head, block % blocks * QUERIES, sample, q_full + 8 * of_q.stage);
            of_q.advance();
            // The first tile is the last one, which alone may have fewer keys. V of a tile comes after K of the next, in the order in which they are needed.
#pragma unroll 1
            for (u32 t = 0; t <= tiles; t++) {
                u32 key = (tiles - 1 - t) * KEYS;
                if (t < tiles) {
                    await(k_empty + 8 * ring.stage, ring.parity ^ 1);
                    arrive_and_announce(k_full + 8 * ring.stage, K_TILE);
                    bring<KEYS, K_PANELS>(k_place + ring.stage * K_TILE, k, head, key, sample, k_full + 8 * ring.stage);
                    ring.advance();
                }
                if (t > 0) {
                    await(v_empty + 8 * late.stage, late.parity ^ 1);
                    arrive_and_announce(v_full + 8 * late.stage, V_TILE);
                    bring<KEYS, V_PANELS>(v_place + late.stage * V_TILE, v, head, key + KEYS, sample, v_full + 8 * late.stage);
                    late.advance();
                }
            }
        }
        return;
    }
    if constexpr (REGISTERS > 0) take_registers<REGISTERS>();
    Ring<Q_PLACES> of_q;
    Ring<STAGES> scores, values;
    float s[KEYS / 2];
    // Begins the scores of the next tile.
    auto multiply = [&] {
        u64 q_matrix = matrix_descriptor<128, 16, 1024>(place + of_q.stage * Q_TILE + warpgroup * 64 * PANEL_ROW);
        u64 k_matrix = matrix_descriptor<128, 16, 1024>(k_place + scores.stage * K_TILE);
#pragma unroll
        for (u32 i = 0; i < DK / 16; i++) {
            u32 in_panel = i % 4 * (32 >> 4);
            score(s, q_matrix + (i / 4 * (QUERIES * PANEL_ROW >> 4) + in_panel), k_matrix + (i / 4 * (KEYS * PANEL_ROW >> 4) + in_panel), i > 0, T{});
        }
        commit_products();
    };
    u32 p[KEYS / 16][4];
    Softmax<T, DV, KEYS, NEVER> rows;
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
    auto begin_turn = [&] {
        if (GROUPS > 1) await_turn(warpgroup);
        begin_products();
    };
    auto end_turn = [&](bool is_last) {
        if (GROUPS > 1 && !(is_last && warpgroup + 1 == GROUPS)) pass_turn(warpgroup + 1 == GROUPS ? 0 : warpgroup + 1);
    };
    float factor = scale * LOG2_E;
    // With the scores of a block's first tile.
    auto start = [&] {
        leave(k_empty, scores);
        rows.clear();
        rows.mask(s, keys - (tiles - 1) * KEYS);
        rows.weigh_anew(s, factor);
        rows.pack_weights(s, p);
    };
    auto put = [&](u32 block, u32 stage) {
        u32 pair = block / blocks;
        // The warpgroup's place is not read any more.
        asm volatile("bar.sync %0, 128;" ::"r"(8 + warpgroup) : "memory");
        rows.template put<QUERIES>(Head<T>(y, pair, heads, queries, dv), lse + u64(pair) * queries, place + stage * Q_TILE, threadIdx.x / 32 * 16,
                                   block % blocks * QUERIES, queries);
    };
    if (GROUPS > 1 && warpgroup + 1 == GROUPS) pass_turn(0);
    await(q_full, 0);
    await(k_full, 0);
    begin_turn();
    multiply();
    end_turn(false);
    wait_products<0>(s);
    start();
    u32 block = blockIdx.x;
    // No product is under way from one turn to the next, and none is left out of a turn: assemblers would put a wait behind each.
#pragma unroll 1
    while (true) {
#pragma unroll 1
        for (u32 t = 1; t < tiles; t++) {
            await(k_full + 8 * scores.stage, scores.parity);
            await(v_full + 8 * values.stage, values.parity);
            begin_turn();
            multiply();
            sum();
            end_turn(false);
            wait_products<1>(s);
            rows.soften(s, factor, [&] { score_alone<T, DK, KEYS>(s, place + of_q.stage * Q_TILE, QUERIES, k_place + scores.stage * K_TILE); });
            leave(k_empty, scores);
            rows.pack_weights(s, p);
            leave(v_empty, values);
        }
        if (Q_PLACES == 1 || block + gridDim.x >= all) break;
        u32 before = of_q.stage;
        of_q.advance();
        await(q_full + 8 * of_q.stage, of_q.parity);
        await(k_full + 8 * scores.stage, scores.parity);
        await(v_full + 8 * values.stage, values.parity);
        begin_turn();
        multiply();
        sum();
        end_turn(false);
        wait_products<0>(s);
        hold(rows.o);
        leave(v_empty, values);
        put(block, before);
        // Copies may write there what threads have read.
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncwarp();
        if (threadIdx.x % 32 == 0) arrive(q_empty + 8 * before);
        start();
        block += gridDim.x;
    }
    await(v_full + 8 * values.stage, values.parity);
    begin_turn();
    sum();
    end_turn(true);
    wait_products<0>(rows.o);
    put(block, of_q.stage);
}

// Narrow heads, by as many warpgroups as a block has, a power of two: all multiply, and one thread brings what a turn needs when all have done with what lay there. There are places for Q,
// and for `stages` tiles of K and of V, a power of two.
template <class T, u32 DK, u32 DV, u32 KEYS, u32 EVERY>
__device__ __forceinline__ void attention_narrow(const TensorMap& q, const TensorMap& k, const TensorMap& v, T* y, float* lse, u32 queries, u32 keys, u32 heads,
                                                 u32 dv, u32 blocks, float scale, u32 stages) {
    constexpr u32 K_PANELS = (DK + 63) / 64, V_PANELS = (DV + 63) / 64, MOST_STAGES = 4;
    constexpr u32 K_TILE = K_PANELS * KEYS * PANEL_ROW, V_TILE = V_PANELS * KEYS * PANEL_ROW;
    static_assert(DV <= DK);
    extern __shared__ __align__(1024) unsigned char room[];
    __shared__ u64 barriers[2 * MOST_STAGES];
    u32 own = blockDim.x / 2, groups = blockDim.x / 128, q_panel = own * PANEL_ROW;
    // Patterns of the swizzle begin at multiples of 1024 bytes, whatever stands before the room.
    u32 place = (shared_address(room) + 1023) & ~1023u, k_place = place + K_PANELS * q_panel, v_place = k_place + stages * K_TILE;
    // What a turn needs is there; all have done with it.
    u32 there = shared_address(barriers), done = there + 8 * MOST_STAGES;
    u32 pair = blockIdx.x / blocks, head = pair % heads, sample = pair / heads, first = blockIdx.x % blocks * own, warpgroup = warpgroup_number();
    u32 tiles = (keys + KEYS - 1) / KEYS;
    auto stage_of = [&](u32 t) { return t & (stages - 1); };
    auto parity_of = [&](u32 t) { return u32((t & stages) != 0); };
    // The K of one turn and the V of the one before it come together. The first turn's tile is the last, which alone may have fewer keys.
    auto load = [&](u32 t) {
        u32 stage = stage_of(t), barrier = there + 8 * stage, key = (tiles - 1 - t) * KEYS;
        await(done + 8 * stage, parity_of(t) ^ 1);
        arrive_and_announce(barrier, (t == 0 ? K_PANELS * q_panel : V_TILE) + (t < tiles ? K_TILE : 0));
        if (t == 0) {
#pragma unroll
            for (u32 p = 0; p < K_PANELS; p++) copy_box(place + p * q_panel, q, 64 * p, head, first, sample, barrier);
        }
        if (t < tiles) bring<KEYS, K_PANELS>(k_place + stage * K_TILE, k, head, key, sample, barrier);
        if (t > 0) bring<KEYS, V_PANELS>(v_place + stage_of(t - 1) * V_TILE, v, head, key + KEYS, sample, barrier);
    };
    auto finish = [&](u32 t) {
        if (threadIdx.x % 32 == 0) arrive(done + 8 * stage_of(t));
    };
    float s[KEYS / 2];
    u64 q_matrix = matrix_descriptor<128, 16, 1024>(place + warpgroup * 64 * PANEL_ROW);
    // Begins the scores of a turn's tile.
    auto multiply = [&](u32 t) {
        u64 k_matrix = matrix_descriptor<128, 16, 1024>(k_place + stage_of(t) * K_TILE);
#pragma unroll
        for (u32 i = 0; i < DK / 16; i++) {
            u32 in_panel = i % 4 * (32 >> 4);
            score(s, q_matrix + (i / 4 * (q_panel >> 4) + in_panel), k_matrix + (i / 4 * (KEYS * PANEL_ROW >> 4) + in_panel), i > 0, T{});
        }
        commit_products();
    };
    u32 p[KEYS / 16][4];
    Softmax<T, DV, KEYS, EVERY> rows;
    rows.clear();
    // Begins the sums over the values of a turn's tile.
    auto sum = [&](u32 t) {
        u64 v_matrix = matrix_descriptor<128, KEYS * PANEL_ROW, 1024>(v_place + stage_of(t) * V_TILE);
#pragma unroll
        for (u32 i = 0; i < KEYS / 16; i++) weigh(rows.o, p[i], v_matrix + i * (16 * PANEL_ROW >> 4), T{});
        commit_products();
    };
    u32 ahead = stages / 2;
    if (threadIdx.x == 0) {
        fetch_map(q), fetch_map(k), fetch_map(v);
#pragma unroll 1
        for (u32 i = 0; i < stages; i++) make_barrier(there + i * 8, 1), make_barrier(done + i * 8, blockDim.x / 32);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#pragma unroll 1
        for (u32 i = 0; i <= min(ahead, tiles); i++) load(i);
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
        await(there + 8 * stage_of(t), parity_of(t));
        begin_products();
        multiply(t);
        sum(t - 1);
        // Warpgroups bring by turns.
        if (threadIdx.x == (t & (groups - 1)) * 128 && t + ahead <= tiles) load(t + ahead);
        __syncwarp();
        wait_products<1>(s);
        rows.soften(s, factor, [&] { score_alone<T, DK, KEYS>(s, place, own, k_place + stage_of(t) * K_TILE); });
        rows.pack_weights(s, p);
        finish(t);
    }
    await(there + 8 * stage_of(tiles), parity_of(tiles));
    begin_products();
    sum(tiles - 1);
    wait_products<0>(rows.o);
    // Q is not read any more: each warp has as much room there for y, panel by panel.
    __syncthreads();
    u32 row = threadIdx.x / 32 * 16, room_of_warp = place + row * V_PANELS * PANEL_ROW;
    rows.template put<16>(Head<T>(y, pair, heads, queries, dv), lse + u64(pair) * queries, room_of_warp - row * PANEL_ROW, row, first, queries);
}

// q, k, v: maps of [B, rows, heads, columns] in boxes of 64 columns of a head, of a block's queries or a tile's keys. blocks: of the queries of a head; all: of all heads.
#define ENTRY(T, NAME, THREADS, BODY, LAST)                                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                                                           \
        attention_##NAME##_##T(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v, T* y,   \
                               float* lse, u32 queries, u32 keys, u32 heads, u32 dv, u32 blocks, float scale, u32 LAST) {                             \
        BODY(q, k, v, y, lse, queries, keys, heads, dv, blocks, scale, LAST);                                                                          \
    }
#define WIDE(T, NAME, DK, DV, KEYS, GROUPS, STAGES, Q_PLACES, REGISTERS) \
    ENTRY(T, NAME, 128 * GROUPS + 128, (attention<T, DK, DV, KEYS, GROUPS, STAGES, Q_PLACES, REGISTERS>), all)
#define NARROW(T, NAME, DK, DV, KEYS, EVERY) ENTRY(T, NAME, 512, (attention_narrow<T, DK, DV, KEYS, EVERY>), stages)
// `few`: one warpgroup. REGISTERS of a thread that multiplies are what the block leaves of a multiprocessor's.
#define HALVES(T)                              \
    NARROW(T, 40, 48, 40, 96, 8)               \
    NARROW(T, 64, 64, 64, 64, NEVER)           \
    NARROW(T, 72, 80, 72, 64, NEVER)           \
    NARROW(T, 80, 80, 80, 64, NEVER)           \
    WIDE(T, 128, 128, 128, 128, 2, 2, 2, 240)  \
    WIDE(T, 160, 160, 160, 96, 2, 2, 1, 240)   \
    WIDE(T, few_128, 128, 128, 64, 1, 4, 1, 0) \
    WIDE(T, few_160, 160, 160, 64, 1, 4, 1, 0) \
    WIDE(T, few_256, 256, 256, 64, 1, 3, 1, 0)
HALVES(f16)
HALVES(bf16)
