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
    MULTIPLY_MATRICES(T, TYPE, "64", 32, NAMES_32, "%32", "%33", THIRTY_TWO(d, 0))                                               \
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

// Registers in shared memory.
__device__ __forceinline__ void write_shared(u32 at, u32 v) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(v) : "memory"); }
__device__ __forceinline__ void write_shared(u32 at, const Pack<u32, 4>& v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.at[0]), "r"(v.at[1]), "r"(v.at[2]), "r"(v.at[3]) : "memory");
}
__device__ __forceinline__ u32 read_shared(u32 at) {
    u32 v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
    return v;
}
__device__ __forceinline__ Pack<u32, 4> read_shared_four(u32 at) {
    Pack<u32, 4> v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.at[0]), "=r"(v.at[1]), "=r"(v.at[2]), "=r"(v.at[3]) : "r"(at) : "memory");
    return v;
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

// Waits until so many have counted themselves, and sees what they wrote before.
__device__ __forceinline__ void await_count(const u32* at, u32 count) {
    u32 seen;
    do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(__cvta_generic_to_global(at)) : "memory");
    } while (seen < count);
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
    __device__ __forceinline__ void activated(u32 row, u32 col, float (&v)[4]) const {
        row = of(row);
        if (epilogue.has(row, col)) epilogue.activated(epilogue.template biases<true>(row, col), v);
    }

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
//
// If it is GATED, W has twice the columns of y, n: those of its second half are gates, and a tile has as many of them as columns that they are the gates of, so
// that a thread that has a sum has its gate's too. It is a linear layer's, of one tap.
template <class T, int COLUMNS, bool GATED = false>
struct Wgmma {
    static constexpr int COLS = COLUMNS, OUT = GATED ? COLS / 2 : COLS, TEAMS = COLS == 256 ? 1 : 2, STAGES = COLS == 256 ? 4 : COLS > 128 ? 5 : COLS == 128 ? 6 : 8, BARRIERS = 2 * STAGES + 2;
    static constexpr int A_BYTES = HOPPER_ROWS * 128, STAGE = A_BYTES + COLS * 128;
    // Panels of a tile, those among them that are not of gates, and the bytes that a step takes of one.
    static constexpr int PANELS = COLS / 16, OUT_PANELS = OUT / 16, PANEL_BYTES = HOPPER_DEPTH * 32;
    // Columns of sums that a warp sends at a time, of 8 rows, with a gap so that they meet 32 banks.
    static constexpr int PART = 32, PITCH = PART + 8;
    // Columns of numbers that a warp sends at a time, of 16 rows, and the bytes between those, by which they meet all banks; a warp's room.
    static constexpr int SLICE = 64, SLICE_PITCH = SLICE * 2 + 16, ROOM = 16 * SLICE_PITCH;
    // Whether what will be added is on its way one slice ahead: with 192 columns no registers are left for it.
    static constexpr bool AHEAD = COLS != 192;
    // Rows of tiles in a band.
    static constexpr u32 TALL = COLS == 256 ? 16 : 8;
    // A warpgroup's sums: of 64 rows, or twice of them.
    using Sums = float[TEAMS][COLS / 2];

    const Patches& patches;
    // Columns of y.
    u32 n;
    // Steps of the block's part of k, and where parts of sums go: [tiles, parts, threads' sums by four, threads, 4], and how many of a tile's have come, by
    // warp, which is zero before and after the launch.
    Terms steps;
    f32* parts;
    u32* arrivals;
    // Shared memory: stages; a barrier of each that says that it is full; those that say that it is empty; those that give a warpgroup its turn.
    u32 base, full, empty = full + 8 * STAGES, turns = empty + 8 * STAGES;
    // Steps so far, which say what stage is next and what its phase is.
    u32 count = 0;

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

    __device__ __forceinline__ u32 tiles() const { return patches.count() * tiles_of(n, OUT); }
    // True if both warpgroups share a tile.
    __device__ __forceinline__ bool share() const { return TEAMS == 1 || tiles() <= gridDim.x; }
    __device__ __forceinline__ TilePlace place(u32 tile) const { return {patches.count(), tiles_of(n, OUT), TALL, tile}; }

    __device__ __forceinline__ u32 stage() const { return count % STAGES; }
    __device__ __forceinline__ u32 parity() const { return count / STAGES & 1; }

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
            u32 tap = GATED ? 0 : steps.first / taps.steps, step = steps.first - tap * taps.steps, ky = tap / taps.columns, kx = tap - ky * taps.columns;
            u32 left = tiles_of(n, 16) - at.col * OUT_PANELS;
            const char* of_tap = (const char*)w + at.col * OUT_PANELS * panel + u64(tap) * taps.channels * 32 + thread * 16;
#pragma unroll 1
            for (u32 i = steps.first; i < steps.end; i++) {
                u32 stage = this->stage(), barrier = full + 8 * stage, channel = step * HOPPER_DEPTH;
                await(empty + 8 * stage, parity() ^ 1);
                if (thread == 0) {
                    arrive_and_announce(barrier, A_BYTES);
                    copy_box(base + stage * STAGE, x, channel, patch.x * taps.stride + kx - taps.pad_left, patch.y * taps.stride + ky - taps.pad_top,
                             patch.image, barrier);
                }
                const char* from = of_tap + channel * 32;
                u32 there = channel + line < taps.channels ? left : 0;
#pragma unroll
                for (int p = 0; p < PANELS; p++, from += panel) {
                    if (GATED && p == OUT_PANELS) from = ahead(of_tap + channel * 32, n / 16, taps.lines * 32);
                    copy_16(room + stage * STAGE + p * PANEL_BYTES, from, p % OUT_PANELS < there);
                }
                arrive_behind_copies(barrier);
                if (++step == taps.steps && !GATED) {
                    step = 0, of_tap += taps.channels * 32;
                    if (++kx == taps.columns) kx = 0, ky++;
                }
                count++;
            }
        }
    }

    // Makes a warpgroup's sums and sends them; `room` is the warp's own, for sums on their way out.
    __device__ __forceinline__ void multiply(f32* room, const Epilogue<T>& epilogue) {
        u32 group = warp_id() / 4, tile = blockIdx.x;
        bool both = share();
        if (!both && group == 1) tile += gridDim.x, count += steps.count();
#pragma unroll 1
        for (; tile < tiles(); tile += TEAMS * gridDim.x) {
            TilePlace at = place(tile);
            PatchStore<T> out = store_of(at, both, epilogue);
            Sums sums = {};
            if (blockIdx.y + 1 == gridDim.y) fetch_added(at.col * OUT, both, out);
            // Who waits for a stage must have seen the one before it, or a phase that ended long ago would do.
            if (!both) await(turns + 8 * group, (count / steps.count() / 2 + group + 1) % 2);
            both ? add_steps<1>(sums, group) : add_steps<TEAMS>(sums, group);
            if (gridDim.y == 1 || join(sums, tile, both)) send(room, sums, at.col * OUT, both, out);
            if (!both) count += steps.count();
        }
    }

    // Adds the products of all steps: of all rows in the warpgroup's turn, which ends when all are under way, or of 64 rows, of which each warpgroup has its own.
    template <int COUNT>
    __device__ __forceinline__ void add_steps(Sums& sums, u32 group) {
        u32 rows = COUNT == 1 ? group * 8192 : 0, i = steps.first;
        // There is a step: with a way past the loop ptxas 12 waits for each product.
#pragma unroll 1
        do {
            u32 stage = this->stage(), from = base + stage * STAGE;
            u64 u = matrix_descriptor<128, 16, 1024>(from + rows), v = matrix_descriptor<32, 2048, 256>(from + A_BYTES);
            await(full + 8 * stage, parity());
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
            if (i > steps.first && lane_id() == 0) arrive(empty + 8 * ((count - 1) % STAGES));
            count++;
        } while (++i < steps.end);
        if (COUNT == 2 && lane_id() == 0) arrive(turns + 8 * (group ^ 1));
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        if (lane_id() == 0) arrive(empty + 8 * ((count - 1) % STAGES));
    }

    // The end of a tile, with the pixels of this warp.
    __device__ __forceinline__ PatchStore<T> store_of(const TilePlace& at, bool both, const Epilogue<T>& epilogue) const {
        u32 lane = lane_id(), first = both ? warp_id() / 4 * 64 : lane / 16 * 64;
        Patch patch(patches, at.row);
        return {epilogue, patch.pixel(patches, first + warp_id() % 4 * 16 + lane % 16, epilogue.m)};
    }

    // The last part of k has the end of a tile: other parts leave a warp's sums, and it adds them to its own, in their order. True for the last part. It waits for blocks
    // before its own alone, which run if it does.
    __device__ __forceinline__ bool join(Sums& sums, u32 tile, bool both) const {
        u32 *arrived = arrivals + tile * 8 + (both ? warp_id() : warp_id() % 4), others = gridDim.y - 1;
        if (blockIdx.y < others) {
            f32* own = part_of(tile, blockIdx.y, both);
#pragma unroll
            for (int r = 0; r < TEAMS; r++)
                if (r == 0 || !both)
#pragma unroll
                    for (int i = 0; i < COLS / 8; i++) *(Wide<f32>*)(own + (r * COLS / 8 + i) * 128 * 4) = four_of(sums[r] + 4 * i);
            // One lane vouches for what all have written.
            __syncwarp();
            if (lane_id() == 0) asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(__cvta_generic_to_global(arrived)) : "memory");
            return false;
        }
        await_count(arrived, others);
#pragma unroll 1
        for (u32 part = 0; part < others; part++) {
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
        __syncwarp();
        if (lane_id() == 0) *arrived = 0;
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

    // Ends that are not whole are sent with 128 columns alone: `ops/hopper.rs` asks for no others. (A trap here would have ptxas 13 forget about `setmaxnreg`.)
    __device__ __forceinline__ void send(f32* room, Sums& sums, u32 first, bool both, const PatchStore<T>& out) const {
        if (GATED || COLS != 128 || (out.epilogue.whole() && (!out.epilogue.sample_use || one_sample(out.epilogue)))) {
#pragma unroll
            for (int r = 0; r < TEAMS; r++)
                if (r == 0 || !both) send_whole(u32(__cvta_generic_to_shared(room)), sums[r], r, first, out);
        } else {
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
        u32 lane = lane_id(), gates = GATED && lane >= OUT_PANELS ? OUT : 0, col = first + lane * 16 - gates;
        if (e.has_bias && lane < PANELS && col < n) fetch_line(e.bias + (gates ? n : 0) + col);
        if (!e.has_residual) return;
        // A lane has a row, or half of one.
        for (u32 i = both ? lane / 16 * 64 : 0; i < COLS; i += both ? 128 : 64)
            if (e.has(out.pixel, first + i)) fetch_line(e.residual + u64(out.pixel) * n + first + i);
    }

    static __device__ __forceinline__ void fetch_line(const T* from) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(from)) : "memory");
    }

    // What a lane has of 16 rows and 64 columns where accesses are of eight columns: those of every fourth row.
    struct Slice {
        const PatchStore<T>& out;
        // Of the warp's room, its first row, its columns.
        u32 at, first, col;
        Pack<u32, 4> residual[4];

        // Whether the lane's columns are among so many.
        __device__ __forceinline__ bool among(int columns) const { return columns >= SLICE || lane_id() % 8 * 8 < columns; }

        __device__ __forceinline__ void bring(int columns, u32 ahead = 0) {
            const Epilogue<T>& e = out.epilogue;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 row = out.of(first + 4 * i);
                bool there = among(columns) && e.has(row, col + ahead);
                residual[i] = there ? *(const Pack<u32, 4>*)(e.residual + u64(row) * e.n + col + ahead) : Pack<u32, 4>::zeros();
            }
        }

        __device__ __forceinline__ void give() const {
#pragma unroll
            for (int i = 0; i < 4; i++) write_shared(at + 4 * i * SLICE_PITCH, residual[i]);
        }

        __device__ __forceinline__ void store(int columns) const {
            const Epilogue<T>& e = out.epilogue;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 row = out.of(first + 4 * i);
                Pack<u32, 4> eight = read_shared_four(at + 4 * i * SLICE_PITCH);
                if (among(columns) && e.has(row, col)) *(Pack<u32, 4>*)(e.y + u64(row) * e.n + col) = eight;
            }
        }
    };

    // Rows of whole accesses of eight columns, 16 rows and 64 columns of a warp at a time, through its room: a lane has pairs of neighbours in registers, and
    // eight of them beside each other in memory, so that a warp's access is four lines of 128 bytes. What is added to the sums goes the other way.
    __device__ __forceinline__ void send_whole(u32 room, float (&sums)[COLS / 2], int team, u32 first, const PatchStore<T>& out) const {
        const Epilogue<T>& e = out.epilogue;
        // As if nobody knew it: or the compiler keeps places in rows of biases for the next team, in registers that there are not.
        asm volatile("" : "+r"(first));
        u32 lane = lane_id(), rows[2] = {row_of(out, team, 0), row_of(out, team, 1)};
        Slice slice{out, room + lane / 8 * SLICE_PITCH + lane % 8 * 16, 16 * team + lane / 8, first + lane % 8 * 8};
        if (AHEAD && e.has_residual) slice.bring(COLS);
        if constexpr (GATED) {
            gate(sums, first, e);
        } else {
            add_biases(sums, rows, first, e);
            activate(sums, e.activation);
        }
        send_slices<0>(room + lane / 4 * SLICE_PITCH + lane % 4 * 4, sums, slice, e);
    }

    // The columns from `PART` on; a lane's pairs of two rows in the room.
    template <int PART>
    __device__ __forceinline__ void send_slices(u32 pairs, float (&sums)[COLS / 2], Slice& slice, const Epilogue<T>& e) const {
        constexpr int LEFT = OUT - PART, WIDE = LEFT < SLICE ? LEFT : SLICE;
        if (e.has_residual) {
            if (!AHEAD) slice.bring(LEFT);
            slice.give();
            if constexpr (AHEAD && LEFT > SLICE) slice.bring(LEFT - SLICE, SLICE);
            __syncwarp();
#pragma unroll
            for (int j = 0; j < WIDE / 4; j++) add_pair(sums + PART / 2 + 2 * j, read_shared(pairs + j % 2 * 8 * SLICE_PITCH + j / 2 * 16));
        }
#pragma unroll
        for (int j = 0; j < WIDE / 4; j++) {
            const float* v = sums + PART / 2 + 2 * j;
            write_shared(pairs + j % 2 * 8 * SLICE_PITCH + j / 2 * 16, pack<T>(v[0] * e.scale, v[1] * e.scale));
        }
        __syncwarp();
        slice.store(WIDE);
        __syncwarp();
        slice.col += SLICE;
        if constexpr (LEFT > SLICE) send_slices<PART + SLICE>(pairs, sums, slice, e);
    }

    // Adds the two numbers of a register to two neighbours.
    static __device__ __forceinline__ void add_pair(float* v, u32 two) {
        float pair[2];
        widen_both(two, pair, T{});
        v[0] += pair[0], v[1] += pair[1];
    }

    // So many columns of a row of numbers: a lane has two neighbours of every 64, which the lanes that need them ask it for.
    template <int COUNT>
    struct Columns {
        u32 pairs[(COUNT + 63) / 64];

        __device__ __forceinline__ Columns(const T* from, u32 first, u32 n) {
#pragma unroll
            for (int i = 0; i < (COUNT + 63) / 64; i++) {
                u32 col = first + 64 * i + 2 * lane_id();
                pairs[i] = col < n ? *(const u32*)(from + col) : 0;
            }
        }

        // Columns 8 j + 2 (lane % 4) and the next.
        __device__ __forceinline__ void get(int j, float (&pair)[2]) const {
            widen_both(__shfl_sync(~0u, pairs[j / 8], j % 8 * 4 + lane_id() % 4), pair, T{});
        }
    };

    // What a gated tile makes of its sums, whose second half are of gates.
    static __device__ __forceinline__ void gate(float (&sums)[COLS / 2], u32 first, const Epilogue<T>& e) {
        // Zeros if there is no bias.
        u32 end = e.has_bias ? e.n : 0;
        Columns<OUT> biases(e.bias, first, end), gate_biases(e.bias + e.n, first, end);
#pragma unroll
        for (int j = 0; j < OUT / 8; j++) {
            float bias[2], gate_bias[2];
            biases.get(j, bias), gate_biases.get(j, gate_bias);
#pragma unroll
            for (int i = 4 * j; i < 4 * j + 4; i++) sums[i] = (sums[i] + bias[i % 2]) * gelu_near(sums[i + OUT / 2] + gate_bias[i % 2]);
        }
    }

    // A bias, and what the sample adds to the sums or multiplies them by: sixteen rows of y are of one sample.
    static __device__ __forceinline__ void add_biases(float (&sums)[COLS / 2], const u32 (&rows)[2], u32 first, const Epilogue<T>& e) {
        float pair[2];
        if (e.has_bias) {
            Columns<COLS> bias(e.bias, first, e.n);
#pragma unroll
            for (int j = 0; j < COLS / 8; j++) {
                bias.get(j, pair);
#pragma unroll
                for (int i = 0; i < 4; i++) sums[4 * j + i] += pair[i % 2];
            }
        }
        if (!e.sample_use) return;
        Columns<COLS> sample(e.sample_of(min(__reduce_min_sync(~0u, min(rows[0], rows[1])), e.m - 1)), first, e.n);
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
