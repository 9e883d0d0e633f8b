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
// A block has two warpgroups, or where that leaves multiprocessors idle one, each with 64 queries of a head, and goes over all keys. Scores are products of what is in shared memory; weights are
// the left operand of the second product in the registers in which the first one left them. The softmax of a tile of keys runs beside the second product
// of the tile before it, and, in heads of 80 columns at most, beside what another block does, as registers let two share a multiprocessor.
//
// Q, K and V lie in panels of 64 columns, rows of 128 bytes with chunks exchanged by the row's number. Where a panel ends early, what no product reads
// is left as it is: heads are padded to 16 columns in the first product, to 8 in the second. Rows begin at multiples of 16 bytes, as heads have multiples
// of 8 columns and tensors of 16 bits begin at multiples of 256 bytes, views too.
#include "lib/attention.cuh"
#include "lib/fragments.cuh"
#include "lib/wgmma.cuh"

constexpr u32 PANEL_ROW = 128;
// The maximum that exponentials refer to may lag, in powers of two; see `kernels/attention.cu`.
constexpr float LAG = 8.0f;

// Begins s = Q · Kᵀ of 16 columns, or s += if `adds`.
#define SCORE(T, TYPE, N, NAMES, SUMS, A, B, ADDS)                                                                                       \
    __device__ __forceinline__ void score(float (&d)[N / 2], u64 a, u64 b, u32 adds, T) {                                                \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #ADDS ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" \
                     NAMES "}, %" #A ", %" #B ", p, 1, 1, 0, 0;\n}"                                                                      \
                     : SUMS                                                                                                              \
                     : "l"(a), "l"(b), "r"(adds));                                                                                       \
    }
// Begins o += P · V of 16 keys, with P in registers.
#define WEIGH(T, TYPE, N, NAMES, SUMS, A0, A1, A2, A3, B, ADDS)                                                                          \
    __device__ __forceinline__ void weigh(float (&d)[N / 2], const u32 (&a)[4], u64 b, T) {                                              \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #ADDS ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" \
                     NAMES "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", p, 1, 1, 1;\n}"                                        \
                     : SUMS                                                                                                              \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));                                                      \
    }
#define PRODUCTS(T, TYPE)                                                                                          \
    SCORE(T, TYPE, 64, NAMES_32, THIRTY_TWO(d, 0), 32, 33, 34)                                                     \
    SCORE(T, TYPE, 96, NAMES_48, THIRTY_TWO(d, 0) COMMA SIXTEEN(d, 32), 48, 49, 50)                                \
    SCORE(T, TYPE, 128, NAMES_64, SIXTY_FOUR(d, 0), 64, 65, 66)                                                    \
    WEIGH(T, TYPE, 40, NAMES_20, SIXTEEN(d, 0) COMMA FOUR(d, 16), 20, 21, 22, 23, 24, 25)                          \
    WEIGH(T, TYPE, 64, NAMES_32, THIRTY_TWO(d, 0), 32, 33, 34, 35, 36, 37)                                         \
    WEIGH(T, TYPE, 72, NAMES_36, THIRTY_TWO(d, 0) COMMA FOUR(d, 32), 36, 37, 38, 39, 40, 41)                       \
    WEIGH(T, TYPE, 80, NAMES_40, THIRTY_TWO(d, 0) COMMA EIGHT(d, 32), 40, 41, 42, 43, 44, 45)                      \
    WEIGH(T, TYPE, 128, NAMES_64, SIXTY_FOUR(d, 0), 64, 65, 66, 67, 68, 69)                                        \
    WEIGH(T, TYPE, 160, NAMES_80, SIXTY_FOUR(d, 0) COMMA SIXTEEN(d, 64), 80, 81, 82, 83, 84, 85)                   \
    WEIGH(T, TYPE, 256, NAMES_128, SIXTY_FOUR(d, 0) COMMA SIXTY_FOUR(d, 64), 128, 129, 130, 131, 132, 133)
#define COMMA ,
PRODUCTS(f16, "f16")
PRODUCTS(bf16, "bf16")

// Registers that a product has under way, or is to have, are not touched across this.
template <u32 N>
__device__ __forceinline__ void hold(float (&d)[N]) {
#pragma unroll
    for (u32 i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits for all groups of products but the last `N`, of which one has made `d`.
template <int N, u32 SIZE>
__device__ __forceinline__ void wait_products(float (&d)[SIZE]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
    hold(d);
}

// Where a chunk of 16 bytes of a panel lies.
__device__ __forceinline__ u32 chunk(u32 row, u32 c) { return row * PANEL_ROW + ((c ^ row % 8) << 4); }

// 16 bytes past L1, `TO` behind an address of shared memory, from `FROM` behind one of global memory; zeros if not `valid`, and nothing is read then.
template <u32 TO, u32 FROM>
__device__ __forceinline__ void copy_chunk(u32 to, u64 from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0 + %3], [%1 + %4], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0), "n"(TO), "n"(FROM) : "memory");
}

// A thread's chunks of tiles of ROWS rows of a head: chunk `c` of each of CHUNKS / 8 panels.
template <u32 ROWS, u32 CHUNKS, u32 P = 0>
__device__ __forceinline__ void copy_row(u32 to, u64 from, u32 width, bool has) {
    u32 c = threadIdx.x % 8;
    if (P + 8 <= CHUNKS || P + c < CHUNKS) copy_chunk<P / 8 * ROWS * PANEL_ROW, P * 16>(to, from, has && 8 * (P + c) < width);
    if constexpr (P + 8 < CHUNKS) copy_row<ROWS, CHUNKS, P + 8>(to, from, width, has);
}

// Rows first.. of a head as ROWS rows of CHUNKS chunks; zeros behind a row's last number and, unless the rows are `whole`, from row `end` on.
template <u32 BLOCK, u32 ROWS, u32 CHUNKS, class T>
__device__ __forceinline__ void copy_panels(u32 to, const Head<const T>& x, u32 first, u32 end, bool whole = false) {
    constexpr u32 STEP = BLOCK / 8;
    static_assert(ROWS % STEP == 0);
    u32 row = threadIdx.x / 8, c = threadIdx.x % 8, left = end - min(end, first + row), step = STEP * x.stride * sizeof(T);
    u64 from = u64(__cvta_generic_to_global(x.row(first + row) + 8 * c));
    to += chunk(row, c);
#pragma unroll
    for (u32 r = 0; r < ROWS; r += STEP) {
        copy_row<ROWS, CHUNKS>(to + r * PANEL_ROW, from, x.width, whole || r < left);
        from += step;
    }
}

// Waits for all but the last N groups of this thread's copies, for the other threads, and for the tensor cores to see what all have copied.
template <int N>
__device__ __forceinline__ void loaded() {
    wait_copies<N>();
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
}

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

    // Scores to weights, while the products of the keys before, unless this `is_first`, may be under way; then to P, when they are done.
    __device__ __forceinline__ void soften(float (&s)[KEYS / 2], u32 (&p)[KEYS / 16][4], float factor, bool is_first) {
        float high[2], less[2];
        bool rises = false;
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            float most = s[2 * h];
#pragma unroll
            for (u32 n = 0; n < KEYS / 8; n++) most = fmaxf(most, fmaxf(s[4 * n + 2 * h], s[4 * n + 2 * h + 1]));
#pragma unroll
            for (u32 step = 2; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
            high[h] = most * factor;
            rises |= high[h] > top[h] + LAG;
        }
        rises = is_first || __any_sync(~0u, rises);
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            float next = rises ? fmaxf(top[h], high[h]) : top[h];
            less[h] = exp2_fast(top[h] - next);
            top[h] = next;
            total[h] *= less[h];
        }
#pragma unroll
        for (u32 i = 0; i < KEYS / 2; i++) {
            s[i] = exp2_fast(fmaf(s[i], factor, -top[i / 2 % 2]));
            total[i / 2 % 2] += s[i];
        }
        if (!is_first) {
            // Never read, as sums are not negative: but no wait moves up past a read, and this one would, to before the exponentials.
            if (total[0] + total[1] < 0.0f) top[0] = read_floats<1>(0).at[0];
            wait_products<0>(o);
        }
        if (!is_first && rises) {
#pragma unroll
            for (u32 i = 0; i < DV / 2; i++) o[i] *= less[i / 2 % 2];
        }
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
        u32 lane = threadIdx.x % 32, group = lane / 4, member = lane % 4, to[8];
#pragma unroll
        for (u32 c = 0; c < 8; c++) to[c] = place + chunk(row + group, c) + member * 4;
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            u32 r = first + row + group + 8 * h;
            float sum = total[h];
#pragma unroll
            for (u32 step = 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
            if (member == 0 && r < queries) lse[r] = (top[h] + log2_fast(sum)) * LN_2;
            float factor = 1.0f / sum;
#pragma unroll
            for (u32 n = 0; n < DV / 8; n++) {
                u32 both = pack<T>(o[4 * n + 2 * h] * factor, o[4 * n + 2 * h + 1] * factor);
                asm volatile("st.shared.b32 [%0], %1;" ::"r"(to[n % 8] + (n / 8 * QUERIES + h * 8) * PANEL_ROW), "r"(both) : "memory");
            }
        }
        __syncwarp();
        u32 end = min(queries - min(queries, first + row), 16);
        u32 c = lane % 8;
        T* out = y.row(first + row + lane / 8) + 8 * c;
#pragma unroll 1
        for (u32 r = lane / 8; r < end; r += 4) {
#pragma unroll
            for (u32 p = 0; p < DV / 8; p += 8) {
                if (8 * (p + c) >= y.width) break;
                write_floats((float*)(out + 8 * p), read_floats<4>(place + p / 8 * QUERIES * PANEL_ROW + chunk(row + r, c)));
            }
            out += 4 * y.stride;
        }
    }
};

// Heads of at most DK columns of q and k, and DV of v. There is room for Q, and two tiles of K and of V each.
template <class T, u32 DK, u32 DV, u32 KEYS, u32 QUERIES>
__device__ __forceinline__ void attention(const T* q, const T* k, const T* v, T* y, float* lse, u32 queries, u32 keys, u32 heads, u32 d, u32 dv,
                                          u32 blocks, float scale) {
    constexpr u32 BLOCK = 2 * QUERIES, K_TILE = (DK + 63) / 64 * KEYS * PANEL_ROW, V_TILE = (DV + 63) / 64 * KEYS * PANEL_ROW;
    constexpr u32 Q_TILE = (DK + 63) / 64 * QUERIES * PANEL_ROW;
    static_assert(DV <= DK);
    extern __shared__ __align__(1024) unsigned char room[];
    // Patterns of the swizzle begin at multiples of 1024 bytes, whatever stands before the room.
    u32 place = (shared_address(room) + 1023) & ~1023u, k_place = place + Q_TILE, v_place = k_place + 2 * K_TILE;
    u32 pair = blockIdx.x / blocks, first = blockIdx.x % blocks * QUERIES, warpgroup = threadIdx.x / 128;
    u32 tiles = (keys + KEYS - 1) / KEYS;
    Head<const T> ks(k, pair, heads, keys, d), vs(v, pair, heads, keys, dv);
    // The K of one turn and the V of the one before it come together. The first turn's tile is the last, which alone may have fewer keys.
    auto load = [&](u32 t, bool whole) {
        u32 key = (tiles - 1 - t) * KEYS;
        if (t < tiles) copy_panels<BLOCK, KEYS, DK / 8>(k_place + t % 2 * K_TILE, ks, key, keys, whole);
        if (t - 1 < tiles) copy_panels<BLOCK, KEYS, DV / 8>(v_place + (t - 1) % 2 * V_TILE, vs, key + KEYS, keys, whole);
        commit_copies();
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

    copy_panels<BLOCK, QUERIES, DK / 8>(place, Head<const T>(q, pair, heads, queries, d), first, queries);
#pragma unroll 1
    for (u32 t = 0; t < 2; t++) load(t, false);
    float factor = scale * LOG2_E;
    loaded<1>();
    begin_products();
    multiply(0);
    wait_products<0>(s);
    rows.mask(s, keys - (tiles - 1) * KEYS);
    rows.soften(s, p, factor, true);
    // No product is under way from one turn to the next, and none is left out of a turn: assemblers would put a wait behind each.
#pragma unroll 1
    for (u32 t = 1; t < tiles; t++) {
        // Behind this the K of turn t and the V of t - 1 are there, and all have done with the K of t - 1 and the V of t - 2.
        loaded<0>();
        begin_products();
        multiply(t);
        sum(t - 1);
        load(t + 1, true);
        wait_products<1>(s);
        rows.soften(s, p, factor, false);
    }
    loaded<0>();
    begin_products();
    sum(tiles - 1);
    wait_products<0>(rows.o);
    // No warp's place is read any more.
    __syncthreads();
    rows.put(Head<T>(y, pair, heads, queries, dv), lse + u64(pair) * queries, place, threadIdx.x / 32 * 16, first, queries);
}

// blocks: of the queries of a head.
#define ATTENTION(T, NAME, DK, DV, KEYS, QUERIES, BLOCKS)                                                                                           \
    extern "C" __global__ void __launch_bounds__(2 * QUERIES, BLOCKS)                                                                               \
        attention_##NAME##_##T(const T* q, const T* k, const T* v, T* y, float* lse, u32 queries, u32 keys, u32 heads, u32 d, u32 dv, u32 blocks,   \
                               float scale) {                                                                                                       \
        attention<T, DK, DV, KEYS, QUERIES>(q, k, v, y, lse, queries, keys, heads, d, dv, blocks, scale);                                           \
    }
// `few`: one warpgroup. Registers are for two blocks on a multiprocessor where shared memory is, or where there are few blocks at all.
#define HALVES(T)                            \
    ATTENTION(T, 40, 48, 40, 96, 128, 2)     \
    ATTENTION(T, 64, 64, 64, 64, 128, 2)     \
    ATTENTION(T, 72, 80, 72, 64, 128, 2)     \
    ATTENTION(T, 80, 80, 80, 64, 128, 2)     \
    ATTENTION(T, 128, 128, 128, 128, 128, 1) \
    ATTENTION(T, 160, 160, 160, 64, 128, 1)  \
    ATTENTION(T, few_40, 48, 40, 96, 64, 2)  \
    ATTENTION(T, few_64, 64, 64, 64, 64, 2)  \
    ATTENTION(T, few_80, 80, 80, 64, 64, 2)  \
    ATTENTION(T, few_128, 128, 128, 64, 64, 1) \
    ATTENTION(T, few_160, 160, 160, 64, 64, 1) \
    ATTENTION(T, few_256, 256, 256, 64, 64, 1)
HALVES(f16)
HALVES(bf16)
