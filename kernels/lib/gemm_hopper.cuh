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

// Begins d = A B, or d += A B if it `adds`, of 64 rows, 128 or 256 columns and 16 terms.
#define MULTIPLY_MATRICES(T, TYPE)                                                                                                        \
    __device__ __forceinline__ void multiply_matrices(float (&d)[64], u64 a, u64 b, u32 adds, T) {                                        \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {" NAMES_64 \
                     "}, %64, %65, p, 1, 1, 0, 1;\n}"                                                                                     \
                     : SIXTY_FOUR(d, 0)                                                                                                   \
                     : "l"(a), "l"(b), "r"(adds));                                                                                        \
    }                                                                                                                                     \
    __device__ __forceinline__ void multiply_matrices(float (&d)[128], u64 a, u64 b, u32 adds, T) {                                       \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\nwgmma.mma_async.sync.aligned.m64n256k16.f32." TYPE "." TYPE              \
                     " {" NAMES_128 "}, %128, %129, p, 1, 1, 0, 1;\n}"                                                                    \
                     : SIXTY_FOUR(d, 0), SIXTY_FOUR(d, 64)                                                                                \
                     : "l"(a), "l"(b), "r"(adds));                                                                                        \
    }
MULTIPLY_MATRICES(f16, "f16")
MULTIPLY_MATRICES(bf16, "bf16")

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

// The window of a convolution of stride 1; how many channels a tap has, and how many steps there are to them; the lines of a panel, channels of all taps.
struct Taps {
    u32 columns, pad_top, pad_left, steps, channels, lines;
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

// An end for the sums of a patch: lane i knows the pixel of the warp's row i, of which there are 16 or twice 16.
template <class T>
struct PatchStore {
    using Operands = typename Finish<T>::Operands;

    Finish<T> finish;
    u32 pixel;

    __device__ __forceinline__ u32 of(u32 row) const { return __shfl_sync(~0u, pixel, row); }
    __device__ __forceinline__ bool wide() const { return finish.wide(); }
    __device__ __forceinline__ bool activates() const { return finish.activates(); }
    __device__ __forceinline__ void activated(u32 row, u32 col, float (&v)[4]) const { finish.activated(of(row), col, v); }

    template <bool WIDE>
    __device__ __forceinline__ Operands operands(u32 row, u32 col) const {
        return finish.template operands<WIDE>(of(row), col);
    }

    template <bool WIDE>
    __device__ __forceinline__ void store(u32 row, u32 col, float (&v)[4], const Operands& operands) const {
        finish.template store<WIDE>(of(row), col, v, operands);
    }
};

// All tiles of a block. Tiles of 256 columns are of both warpgroups, 64 rows each. Those of 128 columns are of one warpgroup, and while it sends its sums the other
// has the tensor cores.
template <class T, int COLUMNS>
struct Wgmma {
    static constexpr int COLS = COLUMNS, TEAMS = COLS == 256 ? 1 : 2, STAGES = COLS == 256 ? 4 : 6, BARRIERS = 2 * STAGES + 2;
    static constexpr int A_BYTES = HOPPER_ROWS * 128, STAGE = A_BYTES + COLS * 128;
    // Panels of a tile, the bytes that a step takes of one, and how many steps are on their way while the next ones are asked for.
    static constexpr int PANELS = COLS / 16, PANEL_BYTES = HOPPER_DEPTH * 32, AHEAD = STAGES / 2;
    // Columns of sums that a warp sends at a time, of 8 rows, with a gap so that they meet 32 banks.
    static constexpr int PART = 64, PITCH = PART + 8;
    // Rows of tiles in a band.
    static constexpr u32 TALL = COLS == 256 ? 16 : 8;
    // A warpgroup's sums: of 64 rows, or twice of them.
    using Sums = float[TEAMS][COLS / 2];

    const Patches& patches;
    u32 n;
    // Steps of the block's part of k.
    Terms steps;
    // Shared memory: stages; a barrier of each that says that it is full; those that say that it is empty; those that give a warpgroup its turn.
    u32 base, full, empty = full + 8 * STAGES, turns = empty + 8 * STAGES;
    // The stage that is next, and the parity of its phase.
    u32 stage = 0, parity = 0;

    __device__ __forceinline__ void make_barriers() const {
#pragma unroll 1
        for (int i = 0; i < STAGES; i++) {
            // A lane of each warp that copies, and the thread that asks for boxes.
            make_barrier(full + 8 * i, 5);
            // A lane of each warp that multiplies.
            make_barrier(empty + 8 * i, 8 / TEAMS);
        }
        for (int i = 0; i < 2; i++) make_barrier(turns + 8 * i, 4);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }

    __device__ __forceinline__ u32 tiles() const { return patches.count() * tiles_of(n, COLS); }
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

    // Brings the operands of all steps of all tiles, by a warpgroup: a box of x, and a chunk of each panel by each of its threads.
    __device__ __forceinline__ void bring(const TensorMap& x, const T* w, const Taps& taps) {
        u32 thread = threadIdx.x % 128, line = thread / 2, come = 0, coming = 0;
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
                if (coming == AHEAD) deliver<AHEAD - 1>(come);
                else coming++;
                u32 barrier = full + 8 * stage, channel = step * HOPPER_DEPTH;
                await(empty + 8 * stage, parity ^ 1);
                if (thread == 0) {
                    arrive_and_announce(barrier, A_BYTES);
                    copy_box(base + stage * STAGE, x, channel, patch.x + kx - taps.pad_left, patch.y + ky - taps.pad_top, patch.image, barrier);
                }
                const char* from = of_tap + channel * 32;
                u32 there = channel + line < taps.channels ? left : 0;
#pragma unroll
                for (int p = 0; p < PANELS; p++, from += panel) copy_16(room + stage * STAGE + p * PANEL_BYTES, from, p < there);
                commit_copies();
                if (++step == taps.steps) {
                    step = 0, of_tap += taps.channels * 32;
                    if (++kx == taps.columns) kx = 0, ky++;
                }
                advance();
            }
        }
#pragma unroll 1
        for (; coming > 0; coming--) deliver<0>(come);
    }

    // Says of the oldest stage that it has what this warp copies to it; `LEFT` younger ones need not.
    template <int LEFT>
    __device__ __forceinline__ void deliver(u32& stage) const {
        wait_copies<LEFT>();
        // Tensor cores see what was copied before this.
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncwarp();
        if (lane_id() == 0) arrive(full + 8 * stage);
        if (++stage == STAGES) stage = 0;
    }

    // Makes a warpgroup's sums and sends them; `room` is the warp's own, for sums on their way out.
    __device__ __forceinline__ void multiply(f32* room, const Finish<T>& finish) {
        u32 lane = lane_id(), group = warp_id() / 4, tile = blockIdx.x, turn = group ^ 1;
        Sums sums = {};
        if (TEAMS == 2 && group == 1) tile += gridDim.x, skip();
#pragma unroll 1
        for (; tile < tiles(); tile += TEAMS * gridDim.x) {
            // Who waits for a stage must have seen the one before it, or a phase that ended long ago would do.
            if (TEAMS == 2) await(turns + 8 * group, turn), turn ^= 1;
            u32 last = 0;
#pragma unroll 1
            for (u32 i = steps.first; i < steps.end; i++) {
                u32 from = base + stage * STAGE, rows = TEAMS == 2 ? 0 : group * 8192;
                u64 u = matrix_descriptor<128, 16, 1024>(from + rows), v = matrix_descriptor<32, 2048, 256>(from + A_BYTES);
                await(full + 8 * stage, parity);
                asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
                for (int k = 0; k < HOPPER_DEPTH / 16; k++)
#pragma unroll
                    for (int r = 0; r < TEAMS; r++)
                        multiply_matrices(sums[r], u + (k * 32 + r * 8192 >> 4), v + (k * 512 >> 4), k > 0 || i > steps.first, T{});
                asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
                // The products of the step before have ended, and its stage may be filled again.
                asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
                if (i > steps.first && lane == 0) arrive(last);
                last = empty + 8 * stage;
                advance();
            }
            if (TEAMS == 2 && lane == 0) arrive(turns + 8 * (group ^ 1));
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            if (lane == 0) arrive(last);
            send(room, sums, place(tile), finish);
            if (TEAMS == 2) skip();
        }
    }

    __device__ __forceinline__ void send(f32* room, Sums& sums, const TilePlace& at, const Finish<T>& finish) const {
        u32 lane = lane_id(), first = TEAMS == 2 ? lane / 16 * 64 : warp_id() / 4 * 64;
        Patch patch(patches, at.row);
        PatchStore<T> out{finish, patch.pixel(patches, first + warp_id() % 4 * 16 + lane % 16, finish.epilogue.m)};
        if (gridDim.y > 1 && n % 2 == 0) {
            send_part(sums, at.col * COLS, out);
        } else if (gridDim.y == 1 && finish.epilogue.whole()) {
            send_whole(sums, at.col * COLS, out);
        } else {
            send_rounds(room, sums, at.col * COLS, out);
        }
    }

    // The row of y of sums `half` of team `team`: a lane has two neighbouring columns of every eight, of the warp's rows lane / 4 and 8 behind.
    static __device__ __forceinline__ u32 row_of(const PatchStore<T>& out, int team, int half) { return out.of(16 * team + 8 * half + lane_id() / 4); }

    // Sums of a part of k: four lanes store 32 bytes, a sector.
    __device__ __forceinline__ void send_part(const Sums& sums, u32 first, const PatchStore<T>& out) const {
        u32 m = out.finish.epilogue.m, col = first + lane_id() % 4 * 2;
#pragma unroll
        for (int r = 0; r < TEAMS; r++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                u32 row = row_of(out, r, h);
                f32* to = out.finish.parts + (u64(blockIdx.y) * m + row) * n + col;
#pragma unroll
                for (int j = 0; j < COLS / 8; j++)
                    if (row < m && col + 8 * j < n) *(Pack<f32, 2>*)(to + 8 * j) = pair_of(sums, r, h, j);
            }
    }

    static __device__ __forceinline__ Pack<f32, 2> pair_of(const Sums& sums, int team, int half, int j) {
        Pack<f32, 2> pair;
        pair.at[0] = sums[team][4 * j + 2 * half], pair.at[1] = sums[team][4 * j + 2 * half + 1];
        return pair;
    }

    // Rows of whole accesses of eight columns, straight from registers: four lanes trade what they have of 32 columns, so that each has eight beside each
    // other. Whatever is added to the sums comes before the stores that it would have to wait for.
    __device__ __forceinline__ void send_whole(Sums& sums, u32 first, const PatchStore<T>& out) const {
        const Epilogue<T>& e = out.finish.epilogue;
        u32 rows[TEAMS][2], col = first + lane_id() % 4 * 8;
        Pack<u32, 4> residual[TEAMS][2];
#pragma unroll
        for (int r = 0; r < TEAMS; r++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                rows[r][h] = row_of(out, r, h);
                residual[r][h] = residual_of(e, rows[r][h], col);
            }
        add_biases(sums, first, rows, e);
        activate(sums, e.activation);
#pragma unroll
        for (int part = 0; part < COLS / 32; part++, col += 32) {
            Pack<u32, 4> added[TEAMS][2];
#pragma unroll
            for (int r = 0; r < TEAMS; r++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    added[r][h] = residual[r][h];
                    if (part + 1 < COLS / 32) residual[r][h] = residual_of(e, rows[r][h], col + 32);
                }
#pragma unroll
            for (int r = 0; r < TEAMS; r++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    Pack<u32, 4> quad;
                    if (e.has_residual) transpose(added[r][h].at);
#pragma unroll
                    for (int q = 0; q < 4; q++) {
                        Pack<f32, 2> v = pair_of(sums, r, h, 4 * part + q);
                        if (e.has_residual) add_pair(v.at, added[r][h].at[q]);
                        quad.at[q] = pack<T>(v.at[0] * e.scale, v.at[1] * e.scale);
                    }
                    transpose(quad.at);
                    if (e.has(rows[r][h], col)) *(Pack<u32, 4>*)(e.y + u64(rows[r][h]) * n + col) = quad;
                }
        }
    }

    static __device__ __forceinline__ Pack<u32, 4> residual_of(const Epilogue<T>& e, u32 row, u32 col) {
        return e.has_residual && e.has(row, col) ? *(const Pack<u32, 4>*)(e.residual + u64(row) * e.n + col) : Pack<u32, 4>::zeros();
    }

    // Adds the two numbers of a register.
    static __device__ __forceinline__ void add_pair(float (&v)[2], u32 two) {
        Pack<T, 2> pair;
        pair.whole = two;
        v[0] += widen(pair.at[0]), v[1] += widen(pair.at[1]);
    }

    static __device__ __forceinline__ void add_biases(Sums& sums, u32 first, const u32 (&rows)[TEAMS][2], const Epilogue<T>& e) {
        auto add = [&](float* pair, const T* from) { add_pair(*(float(*)[2])pair, *(const u32*)from); };
        u32 col = first + lane_id() % 4 * 2;
        if (e.has_bias)
#pragma unroll
            for (int j = 0; j < COLS / 8; j++)
                if (col + 8 * j < e.n)
#pragma unroll
                    for (int i = 0; i < 2 * TEAMS; i++) add(sums[i / 2] + 4 * j + i % 2 * 2, e.bias + col + 8 * j);
        if (e.sample_use == SAMPLE_BIAS) by_sample(sums, col, rows, e, [](float& v, float bias) { v += bias; });
        if (e.sample_use == SAMPLE_GATE) by_sample(sums, col, rows, e, [](float& v, float gate) { v *= gate; });
    }

    // Does something to every sum with its column of its sample's row, which most tiles have but one of.
    template <class F>
    static __device__ __forceinline__ void by_sample(Sums& sums, u32 col, const u32 (&rows)[TEAMS][2], const Epilogue<T>& e, const F& f) {
        u32 samples[2 * TEAMS];
        bool one = true;
#pragma unroll
        for (int i = 0; i < 2 * TEAMS; i++) {
            samples[i] = min(rows[i / 2][i % 2], e.m - 1) / e.per_sample;
            one = one && samples[i] == samples[0];
        }
        const T* from = e.sample + e.sample_first + col;
        auto pair_at = [&](u32 sample, int j) { return *(const u32*)(from + u64(sample) * e.sample_stride + 8 * j); };
#pragma unroll
        for (int j = 0; j < COLS / 8; j++) {
            Pack<T, 2> pair;
            bool has = col + 8 * j < e.n;
            pair.whole = has ? pair_at(samples[0], j) : 0;
#pragma unroll
            for (int i = 0; i < 2 * TEAMS; i++) {
                if (!one && has) pair.whole = pair_at(samples[i], j);
                float* v = sums[i / 2] + 4 * j + i % 2 * 2;
                f(v[0], widen(pair.at[0])), f(v[1], widen(pair.at[1]));
            }
        }
    }

    // Those activations that `whole` allows.
    static __device__ __forceinline__ void activate(Sums& sums, u32 activation) {
        if (activation == SILU) {
#pragma unroll
            for (int i = 0; i < TEAMS * COLS / 2; i++) sums[i / (COLS / 2)][i % (COLS / 2)] = act(SILU, sums[i / (COLS / 2)][i % (COLS / 2)]);
        } else if (activation == GELU_TANH) {
#pragma unroll
            for (int i = 0; i < TEAMS * COLS / 2; i++) sums[i / (COLS / 2)][i % (COLS / 2)] = act(GELU_TANH, sums[i / (COLS / 2)][i % (COLS / 2)]);
        }
    }

    // To any end, through shared memory, in rounds of 8 rows and PART columns a warp.
    __device__ __forceinline__ void send_rounds(f32* room, const Sums& sums, u32 first, const PatchStore<T>& out) const {
        constexpr int PARTS = COLS / PART, ROUNDS = TEAMS * PARTS * 2;
        f32* to = room + lane_id() / 4 * PITCH + lane_id() % 4 * 2;
        // A loop, so that the code of an end is there once; registers are not chosen by a number, so that each round has its own stores.
#pragma unroll 1
        for (int round = 0; round < ROUNDS; round++) {
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
