// Products in f16 and bf16 on Hopper: matrix instructions of four warps (`wgmma`), which read both operands from shared memory, sums in f32.
//
// A linear layer is a convolution of one tap over an image of one row here, so that one kernel serves both. Rows of y are pixels; a tile has a patch of 128 of
// them, so that x under a tap of all of them is a box of the tensor x, brought by one instruction, with zeros for what is outside of the image or behind
// its channels. A step is 64 channels under one tap.
//
// A block has a multiprocessor for itself and goes from tile to tile. It has three warpgroups: the last brings operands, tile after tile, the others multiply.
// With 256 columns a step keeps the tensor cores busy for 1024 cycles, in which they read 80 KiB of shared memory and copies write 48, of the 128 KiB that it
// moves.
//
// In shared memory A is lines of 64 terms with the swizzle of 128 bytes. B is a weight's panels as they lie, terms of 16 columns, with the swizzle of 32
// bytes: so it is transposed by the tensor cores. Boxes of it would come as rows of 32 bytes, each of which takes as long as one of A's, of 128: so threads copy
// it by 16 bytes, eight of which are a line of 128 bytes where they lie and where they go.
#pragma once
#include "boxes.cuh"
#include "fragments.cuh"
#include "gemm.cuh"
#include "wgmma.cuh"

constexpr int HOPPER_ROWS = 128, HOPPER_DEPTH = 64, HOPPER_THREADS = 384;

// Begins d += A B, of 64 rows, twice as many columns as a thread has sums, and 16 terms.
#define MULTIPLY_MATRICES(T, TYPE, COLUMNS, SUMS, NAMES, A, B, ...)                                                                        \
    __device__ __forceinline__ void multiply_matrices(float (&d)[SUMS], u64 a, u64 b, T) {                                                 \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" COLUMNS "k16.f32." TYPE "." TYPE " {" NAMES "}, " A ", " B ", 1, 1, 1, 0, 1;" \
                     : __VA_ARGS__                                                                                                         \
                     : "l"(a), "l"(b));                                                                                                    \
    }
#define MULTIPLY_ALL(T, TYPE)                                                                                                    \
    MULTIPLY_MATRICES(T, TYPE, "128", 64, NAMES_64, "%64", "%65", SIXTY_FOUR(d, 0))                                              \
    MULTIPLY_MATRICES(T, TYPE, "160", 80, NAMES_80, "%80", "%81", SIXTY_FOUR(d, 0), SIXTEEN(d, 64))                              \
    MULTIPLY_MATRICES(T, TYPE, "192", 96, NAMES_96, "%96", "%97", SIXTY_FOUR(d, 0), THIRTY_TWO(d, 64))                           \
    MULTIPLY_MATRICES(T, TYPE, "256", 128, NAMES_128, "%128", "%129", SIXTY_FOUR(d, 0), SIXTY_FOUR(d, 64))
MULTIPLY_ALL(f16, "f16")
MULTIPLY_ALL(bf16, "bf16")

// The images that rows of y are pixels of, and the patches that they are cut into: 2^`wide` columns, 2^`high` rows, and images up to 128 pixels.
struct Patches {
    u32 width, height, images, wide, high;

    __device__ __forceinline__ u32 across() const { return tiles_of(width, 1 << wide); }
    __device__ __forceinline__ u32 down() const { return tiles_of(height, 1 << high); }
    __device__ __forceinline__ u32 deep() const { return 7 - wide - high; }
    __device__ __forceinline__ u32 count() const { return across() * down() * tiles_of(images, 1 << deep()); }
};

// Where a patch begins.
struct Patch {
    u32 image, y, x;

    __device__ __forceinline__ Patch(const Patches& p, u32 number) {
        u32 row = number / p.across(), slab = row / p.down();
        x = number - row * p.across() << p.wide;
        y = row - slab * p.down() << p.high;
        image = slab << p.deep();
    }

    // The number of pixel `i` of the patch; `nowhere` if there is none in the images.
    __device__ __forceinline__ u32 pixel(const Patches& p, u32 i, u32 nowhere) const {
        u32 px = x + (i & (1 << p.wide) - 1), py = y + (i >> p.wide & (1 << p.high) - 1), pi = image + (i >> p.wide + p.high);
        return px < p.width && py < p.height && pi < p.images ? (pi * p.height + py) * p.width + px : nowhere;
    }
};

// The window of a convolution; how many channels a tap has, and how many steps there are to them; the lines of a panel, channels of all taps.
struct Taps {
    u32 columns, stride, pad_top, pad_left, steps, channels, lines;
};

// Trades one of two registers with the lane that differs in a bit: who has the bit gives its first for the other's second.
template <u32 BIT>
__device__ __forceinline__ void trade(u32& first, u32& second) {
    bool has = lane_id() & BIT;
    u32 other = __shfl_xor_sync(~0u, has ? first : second, BIT);
    first = has ? other : first;
    second = has ? second : other;
}

// Register i of lane j of four neighbours becomes register j of lane i.
__device__ __forceinline__ void transpose(u32 (&r)[4]) {
    trade<2>(r[0], r[2]), trade<2>(r[1], r[3]);
    trade<1>(r[0], r[1]), trade<1>(r[2], r[3]);
}

// The two numbers of a register.
__device__ __forceinline__ void widen_both(u32 two, float (&v)[2], bf16) {
    v[0] = __uint_as_float(two << 16), v[1] = __uint_as_float(two & 0xffff0000);
}
__device__ __forceinline__ void widen_both(u32 two, float (&v)[2], f16) {
    Pack<f16, 2> pair;
    pair.whole = two;
    v[0] = widen(pair.at[0]), v[1] = widen(pair.at[1]);
}

// An end for the sums of a patch: lane i knows the pixel of the warp's row i, of which there are 16 or twice 16.
template <class T>
struct PatchStore {
    using Operands = typename Epilogue<T>::Operands;

    const Epilogue<T>& epilogue;
    u32 pixel;

    __device__ __forceinline__ u32 of(u32 row) const { return __shfl_sync(~0u, pixel, row); }
    // Of four columns: `ops/hopper.rs` asks for no others.
    __device__ __forceinline__ bool wide() const { return true; }
    __device__ __forceinline__ bool activates() const { return epilogue.activates(); }
    __device__ __forceinline__ void activated(u32 row, u32 col, float (&v)[4]) const { epilogue.activated(of(row), col, v); }

    template <bool WIDE>
    __device__ __forceinline__ Operands operands(u32 row, u32 col) const {
        return epilogue.template operands<WIDE>(of(row), col);
    }

    template <bool WIDE>
    __device__ __forceinline__ void store(u32 row, u32 col, float (&v)[4], const Operands& operands) const {
        epilogue.template store<WIDE>(of(row), col, v, operands);
    }
};

// All tiles of a block. Tiles of 256 columns are of both warpgroups, 64 rows each. Narrower ones are of one warpgroup, and while it sends its sums the other
// has the tensor cores; unless no block has more than one tile, which is of both then.
template <class T, int COLUMNS>
struct Wgmma {
    static constexpr int COLS = COLUMNS, TEAMS = COLS == 256 ? 1 : 2, STAGES = COLS == 256 ? 4 : COLS > 128 ? 5 : 6, BARRIERS = 2 * STAGES + 2;
    static constexpr int A_BYTES = HOPPER_ROWS * 128, STAGE = A_BYTES + COLS * 128;
    // Panels of a tile, and the bytes that a step takes of one.
    static constexpr int PANELS = COLS / 16, PANEL_BYTES = HOPPER_DEPTH * 32;
    // Columns of sums that a warp sends at a time, of 8 rows, with a gap so that they meet 32 banks.
    static constexpr int PART = 32, PITCH = PART + 8;
    // Rows of tiles in a band.
    static constexpr u32 TALL = COLS == 256 ? 16 : 8;
    // A warpgroup's sums: of 64 rows, or twice of them.
    using Sums = float[TEAMS][COLS / 2];

    const Patches& patches;
    u32 n;
    // Steps of the block's part of k, and where parts of sums go: [tiles, parts, threads' sums by four, threads, 4], and how many of a tile's have come, by
    // warp, which is zero before and after the launch.
    Terms steps;
    f32* parts;
    u32* arrivals;
    // Shared memory: stages; a barrier of each that says that it is full; those that say that it is empty; those that give a warpgroup its turn.
    u32 base, full, empty = full + 8 * STAGES, turns = empty + 8 * STAGES;
    // The stage that is next, and the parity of its phase.
    u32 stage = 0, parity = 0;

    __device__ __forceinline__ void make_barriers() const {
#pragma unroll 1
        for (int i = 0; i < STAGES; i++) {
            // Every thread that copies, and the one that asks for boxes.
            make_barrier(full + 8 * i, 129);
            // A lane of each warp that multiplies.
            make_barrier(empty + 8 * i, share() ? 8 : 4);
        }
        for (int i = 0; i < 2; i++) make_barrier(turns + 8 * i, 4);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }

    __device__ __forceinline__ u32 tiles() const { return patches.count() * tiles_of(n, COLS); }
    // True if both warpgroups share a tile.
    __device__ __forceinline__ bool share() const { return TEAMS == 1 || tiles() <= gridDim.x; }
    __device__ __forceinline__ TilePlace place(u32 tile) const { return {patches.count(), tiles_of(n, COLS), TALL, tile}; }

    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }

    // Leaves out the stages of a tile.
    __device__ __forceinline__ void skip() {
        u32 next = stage + steps.count();
        stage = next % STAGES;
        parity ^= next / STAGES & 1;
    }

    // Brings the operands of all steps of all tiles, by a warpgroup: a box of x, and a chunk of each panel by each of its threads. Nobody waits for what is on
    // its way: when a thread's copies have come, they arrive at the stage's barrier by themselves.
    __device__ __forceinline__ void bring(const TensorMap& x, const T* w, const Taps& taps) {
        u32 thread = threadIdx.x % 128, line = thread / 2;
        // Halves of a line change places in every other four lines.
        u32 room = base + A_BYTES + (thread ^ thread / 8 % 2) * 16;
        u64 panel = u64(taps.lines) * 32;
        if (thread == 0) fetch_map(x);
#pragma unroll 1
        for (u32 tile = blockIdx.x; tile < tiles(); tile += gridDim.x) {
            TilePlace at = place(tile);
            Patch patch(patches, at.row);
            u32 tap = steps.first / taps.steps, step = steps.first - tap * taps.steps, ky = tap / taps.columns, kx = tap - ky * taps.columns;
            u32 left = tiles_of(n, 16) - at.col * PANELS;
            const char* of_tap = (const char*)w + at.col * PANELS * panel + u64(tap) * taps.channels * 32 + thread * 16;
#pragma unroll 1
            for (u32 i = steps.first; i < steps.end; i++) {
                u32 barrier = full + 8 * stage, channel = step * HOPPER_DEPTH;
                await(empty + 8 * stage, parity ^ 1);
                if (thread == 0) {
                    arrive_and_announce(barrier, A_BYTES);
                    copy_box(base + stage * STAGE, x, channel, patch.x * taps.stride + kx - taps.pad_left, patch.y * taps.stride + ky - taps.pad_top,
                             patch.image, barrier);
                }
                const char* from = of_tap + channel * 32;
                u32 there = channel + line < taps.channels ? left : 0;
#pragma unroll
                for (int p = 0; p < PANELS; p++, from += panel) copy_16(room + stage * STAGE + p * PANEL_BYTES, from, p < there);
                arrive_behind_copies(barrier);
                if (++step == taps.steps) {
                    step = 0, of_tap += taps.channels * 32;
                    if (++kx == taps.columns) kx = 0, ky++;
                }
                advance();
            }
        }
    }

    // Makes a warpgroup's sums and sends them; `room` is the warp's own, for sums on their way out.
    __device__ __forceinline__ void multiply(f32* room, const Epilogue<T>& epilogue) {
        u32 group = warp_id() / 4, tile = blockIdx.x, turn = group ^ 1;
        bool both = share();
        if (!both && group == 1) tile += gridDim.x, skip();
#pragma unroll 1
        for (; tile < tiles(); tile += TEAMS * gridDim.x) {
            TilePlace at = place(tile);
            PatchStore<T> out = store_of(at, both, epilogue);
            Sums sums = {};
            if (blockIdx.y == 0) fetch_added(at.col * COLS, both, out);
            // Who waits for a stage must have seen the one before it, or a phase that ended long ago would do.
            if (!both) await(turns + 8 * group, turn), turn ^= 1;
            both ? add_steps<1>(sums, group) : add_steps<TEAMS>(sums, group);
            if (gridDim.y == 1 || join(sums, tile, both)) send(room, sums, at.col * COLS, both, out);
            if (!both) skip();
        }
    }

    // Adds the products of all steps: of all rows in the warpgroup's turn, which ends when all are under way, or of 64 rows, of which each warpgroup has its own.
    template <int COUNT>
    __device__ __forceinline__ void add_steps(Sums& sums, u32 group) {
        u32 last = 0, rows = COUNT == 1 ? group * 8192 : 0, i = steps.first;
        // There is a step: with a way past the loop ptxas 12 waits for each product.
#pragma unroll 1
        do {
            u32 from = base + stage * STAGE;
            u64 u = matrix_descriptor<128, 16, 1024>(from + rows), v = matrix_descriptor<32, 2048, 256>(from + A_BYTES);
            await(full + 8 * stage, parity);
            // Tensor cores see what was copied. Not by who copied it, who would wait for all that is still on its way.
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int k = 0; k < HOPPER_DEPTH / 16; k++)
#pragma unroll
                for (int r = 0; r < COUNT; r++) multiply_matrices(sums[r], u + (k * 32 + r * 8192 >> 4), v + (k * 512 >> 4), T{});
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            // The products of the step before have ended, and its stage may be filled again.
            asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
            if (i > steps.first && lane_id() == 0) arrive(last);
            last = empty + 8 * stage;
            advance();
        } while (++i < steps.end);
        if (COUNT == 2 && lane_id() == 0) arrive(turns + 8 * (group ^ 1));
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        if (lane_id() == 0) arrive(last);
    }

    // The end of a tile, with the pixels of this warp.
    __device__ __forceinline__ PatchStore<T> store_of(const TilePlace& at, bool both, const Epilogue<T>& epilogue) const {
        u32 lane = lane_id(), first = both ? warp_id() / 4 * 64 : lane / 16 * 64;
        Patch patch(patches, at.row);
        return {epilogue, patch.pixel(patches, first + warp_id() % 4 * 16 + lane % 16, epilogue.m)};
    }

    // Leaves a warp's sums of a part of k. True for the warp that comes last of those that have the same rows of the tile: it has the sums of all parts then,
    // added up in their order.
    __device__ __forceinline__ bool join(Sums& sums, u32 tile, bool both) const {
        f32* own = part_of(tile, blockIdx.y, both);
#pragma unroll
        for (int r = 0; r < TEAMS; r++)
            if (r == 0 || !both)
#pragma unroll
                for (int i = 0; i < COLS / 8; i++) *(Wide<f32>*)(own + (r * COLS / 8 + i) * 128 * 4) = four_of(sums[r] + 4 * i);
        u32 *arrived = arrivals + tile * 8 + (both ? warp_id() : warp_id() % 4), before = 0;
        // Who counts the warp vouches for what all its lanes wrote before, and sees for all of them what others have.
        __syncwarp();
        if (lane_id() == 0) {
            __threadfence();
            before = atomicAdd(arrived, 1);
            __threadfence();
        }
        __syncwarp();
        if (__shfl_sync(~0u, before, 0) + 1 < gridDim.y) return false;
        if (lane_id() == 0) *arrived = 0;
#pragma unroll
        for (int i = 0; i < TEAMS * COLS / 2; i++) sums[i / (COLS / 2)][i % (COLS / 2)] = 0.0f;
#pragma unroll 1
        for (u32 part = 0; part < gridDim.y; part++) {
            const f32* from = part_of(tile, part, both);
#pragma unroll
            for (int r = 0; r < TEAMS; r++)
                if (r == 0 || !both)
#pragma unroll
                    for (int i = 0; i < COLS / 8; i++) {
                        float4 four = __ldcg((const float4*)(from + (r * COLS / 8 + i) * 128 * 4));
                        float* to = sums[r] + 4 * i;
                        to[0] += four.x, to[1] += four.y, to[2] += four.z, to[3] += four.w;
                    }
        }
        return true;
    }

    // A thread's place in a part of a tile's sums.
    __device__ __forceinline__ f32* part_of(u32 tile, u32 part, bool both) const {
        u32 half = both ? warp_id() / 4 * 64 : 0;
        return parts + u64(tile * gridDim.y + part) * (HOPPER_ROWS * COLS) + half * COLS + threadIdx.x % 128 * 4;
    }

    static __device__ __forceinline__ Wide<f32> four_of(const float* from) {
        Wide<f32> four;
#pragma unroll
        for (int j = 0; j < 4; j++) four.at[j] = from[j];
        return four;
    }

    // Ends that are not whole are sent with 128 columns alone, which is what `ops/hopper.rs` asks for. (A trap here would have ptxas 13 forget about `setmaxnreg`.)
    __device__ __forceinline__ void send(f32* room, Sums& sums, u32 first, bool both, const PatchStore<T>& out) const {
        if (out.epilogue.whole() && (!out.epilogue.sample_use || one_sample(out.epilogue))) {
#pragma unroll
            for (int r = 0; r < TEAMS; r++)
                if (r == 0 || !both) send_whole(sums[r], r, first, out);
        } else if constexpr (COLS == 128) {
            send_rounds(room, sums, first, both, out);
        }
    }

    // True if all of sixteen rows of a tile are of one sample; `one_sample` of `ops/hopper.rs`.
    __device__ __forceinline__ bool one_sample(const Epilogue<T>& e) const {
        if (patches.width * patches.height > 1) return patches.wide + patches.high >= 4;
        return e.per_sample % 16 == 0 || e.per_sample >= e.m;
    }

    // The row of y of sums `half` of team `team`: a lane has two neighbouring columns of every eight, of the warp's rows lane / 4 and 8 behind.
    static __device__ __forceinline__ u32 row_of(const PatchStore<T>& out, int team, int half) { return out.of(16 * team + 8 * half + lane_id() / 4); }

    static __device__ __forceinline__ Pack<f32, 2> pair_of(const Sums& sums, int team, int half, int j) {
        Pack<f32, 2> pair;
        pair.at[0] = sums[team][4 * j + 2 * half], pair.at[1] = sums[team][4 * j + 2 * half + 1];
        return pair;
    }

    // Has what will be added to a tile's sums near before they are made.
    __device__ __forceinline__ void fetch_added(u32 first, bool both, const PatchStore<T>& out) const {
        const Epilogue<T>& e = out.epilogue;
        u32 lane = lane_id(), col = first + lane * 16;
        if (e.has_bias && lane < COLS / 16 && col < n) fetch_line(e.bias + col);
        if (!e.has_residual) return;
        // A lane has a row, or half of one.
        for (u32 i = both ? lane / 16 * 64 : 0; i < COLS; i += both ? 128 : 64)
            if (e.has(out.pixel, first + i)) fetch_line(e.residual + u64(out.pixel) * n + first + i);
    }

    static __device__ __forceinline__ void fetch_line(const T* from) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(from)) : "memory");
    }

    // Rows of whole accesses of eight columns, straight from registers: four lanes trade what they have of 32 columns, so that each has eight beside each
    // other. Whatever is added to the sums comes before the stores that it would have to wait for.
    __device__ __forceinline__ void send_whole(float (&sums)[COLS / 2], int team, u32 first, const PatchStore<T>& out) const {
        const Epilogue<T>& e = out.epilogue;
        u32 rows[2] = {row_of(out, team, 0), row_of(out, team, 1)}, col = first + lane_id() % 4 * 8;
        Pack<u32, 4> residual[2];
        auto bring = [&] { residual[0] = residual_of(e, rows[0], col), residual[1] = residual_of(e, rows[1], col); };
        // With 192 columns no registers are left for it until the others are done.
        if (COLS != 192) bring();
        add_biases(sums, rows, first, e);
        activate(sums, e.activation);
        if (COLS == 192) bring();
#pragma unroll
        for (int part = 0; part < COLS / 32; part++, col += 32) {
            Pack<u32, 4> added[2];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                added[h] = residual[h];
                if (part + 1 < COLS / 32) residual[h] = residual_of(e, rows[h], col + 32);
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                Pack<u32, 4> quad;
                if (e.has_residual) transpose(added[h].at);
#pragma unroll
                for (int q = 0; q < 4; q++) {
                    float* v = sums + 16 * part + 4 * q + 2 * h;
                    if (e.has_residual) add_pair(v, added[h].at[q]);
                    quad.at[q] = pack<T>(v[0] * e.scale, v[1] * e.scale);
                }
                transpose(quad.at);
                if (e.has(rows[h], col)) *(Pack<u32, 4>*)(e.y + u64(rows[h]) * n + col) = quad;
            }
        }
    }

    static __device__ __forceinline__ Pack<u32, 4> residual_of(const Epilogue<T>& e, u32 row, u32 col) {
        return e.has_residual && e.has(row, col) ? *(const Pack<u32, 4>*)(e.residual + u64(row) * e.n + col) : Pack<u32, 4>::zeros();
    }

    // Adds the two numbers of a register to two neighbours.
    static __device__ __forceinline__ void add_pair(float* v, u32 two) {
        float pair[2];
        widen_both(two, pair, T{});
        v[0] += pair[0], v[1] += pair[1];
    }

    // The tile's columns of a row of numbers: a lane has two neighbours of every 64, which the lanes that need them ask it for.
    struct Columns {
        u32 pairs[(COLS + 63) / 64];

        __device__ __forceinline__ Columns(const T* from, u32 first, u32 n) {
#pragma unroll
            for (int i = 0; i < (COLS + 63) / 64; i++) {
                u32 col = first + 64 * i + 2 * lane_id();
                pairs[i] = col < n ? *(const u32*)(from + col) : 0;
            }
        }

        // Columns 8 j + 2 (lane % 4) and the next.
        __device__ __forceinline__ void get(int j, float (&pair)[2]) const {
            widen_both(__shfl_sync(~0u, pairs[j / 8], j % 8 * 4 + lane_id() % 4), pair, T{});
        }
    };

    // A bias, and what the sample adds to the sums or multiplies them by: sixteen rows of y are of one sample.
    static __device__ __forceinline__ void add_biases(float (&sums)[COLS / 2], const u32 (&rows)[2], u32 first, const Epilogue<T>& e) {
        float pair[2];
        if (e.has_bias) {
            Columns bias(e.bias, first, e.n);
#pragma unroll
            for (int j = 0; j < COLS / 8; j++) {
                bias.get(j, pair);
#pragma unroll
                for (int i = 0; i < 4; i++) sums[4 * j + i] += pair[i % 2];
            }
        }
        if (!e.sample_use) return;
        Columns sample(e.sample_of(min(__reduce_min_sync(~0u, min(rows[0], rows[1])), e.m - 1)), first, e.n);
        bool gates = e.gates();
#pragma unroll
        for (int j = 0; j < COLS / 8; j++) {
            sample.get(j, pair);
            // One code for both.
            float added[2] = {gates ? 0.0f : pair[0], gates ? 0.0f : pair[1]}, factor[2] = {gates ? pair[0] : 1.0f, gates ? pair[1] : 1.0f};
#pragma unroll
            for (int i = 0; i < 4; i++) sums[4 * j + i] = fmaf(sums[4 * j + i], factor[i % 2], added[i % 2]);
        }
    }

    // Those activations that `whole` allows, which are a number by a gate: one code for both, so that there is less of it.
    static __device__ __forceinline__ void activate(float (&sums)[COLS / 2], u32 activation) {
        if (activation == IDENTITY) return;
        constexpr float RATE = -1.44269504f, GELU_RATE = 2.0f * SQRT_2_OVER_PI * RATE;
        float linear = activation == SILU ? RATE : GELU_RATE, cubic = activation == SILU ? 0.0f : 0.044715f * GELU_RATE;
#pragma unroll
        for (float& x : sums) x *= reciprocal_near(1.0f + exp2_near(x * fmaf(cubic * x, x, linear)));
    }

    // To any end, through shared memory, in rounds of 8 rows and PART columns a warp.
    __device__ __forceinline__ void send_rounds(f32* room, const Sums& sums, u32 first, bool both, const PatchStore<T>& out) const {
        constexpr int PARTS = COLS / PART, ROUNDS = TEAMS * PARTS * 2;
        f32* to = room + lane_id() / 4 * PITCH + lane_id() % 4 * 2;
        // A loop, so that the code of an end is there once; registers are not chosen by a number, so that each round has its own stores.
#pragma unroll 1
        for (int round = 0; round < (both ? ROUNDS / TEAMS : ROUNDS); round++) {
#pragma unroll
            for (int r = 0; r < ROUNDS; r++)
                if (r == round)
#pragma unroll
                    for (int j = 0; j < PART / 8; j++) {
                        Pack<f32, 2> pair = pair_of(sums, r / 2 / PARTS, r % 2, r / 2 % PARTS * PART / 8 + j);
                        store_shared(to + 8 * j, pair.at[0], pair.at[1]);
                    }
            __syncwarp();
            send_sums<8, PART, PITCH>(room, round / 2 / PARTS * 16 + round % 2 * 8, first + round / 2 % PARTS * PART, out);
            __syncwarp();
        }
    }
};
