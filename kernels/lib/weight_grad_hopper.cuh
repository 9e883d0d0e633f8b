// Weight gradients in f16 and bf16 on Hopper: dW = patches(x)ᵀ dy by matrix instructions of four warps (`wgmma`), sums in f32.
//
// k runs over pixels, 64 a step: a patch of them, so that both operands are boxes of images, lines of 64 channels of x under a tap and of 64 columns of dy. For
// pixels outside of the images a box of dy has zeros, whatever x has there. Rows of dW are cut into blocks of 64 channels of one tap; neighbours in a tile
// may be of different taps.
//
// Channels and columns run in memory, pixels do not: so both operands lie transposed, lines of 128 bytes a pixel with the swizzle of 128 bytes, boxes of 8 KiB
// side by side.
//
// A tile has 128 rows and 256 columns, or 256 and 128: a step brings 48 KiB either way, and keeps the tensor cores busy for 1024 cycles. In these the former
// reads 80 KiB of shared memory, the latter 96, of the 128 KiB that it moves. Or it has 192 rows and 256 columns, of which columns are what a product has as
// rows: 56 KiB a step of 1536 cycles, the fewest of all. A block has a multiprocessor for itself and goes from tile to tile, of one part of
// k after the other. It has three warpgroups: one thread of the last brings operands, tile after tile, the others have half of a tile each. They send
// their sums from registers, while the operands of the next tile arrive.
//
// Or a tile has 192 rows and 128 columns and is of one warpgroup, and while that sends its sums the other has the tensor cores: for images so small that
// what is stored takes longer than the products.
//
// Tiles that do not fill a round are shared: each block has as many steps of them, one tile behind the other. So it may have the last steps of a tile, and the first of
// another, whose sums it leaves for the block that has the last. It begins with those, which are waited for, and ends with those for which it waits itself: for blocks
// before it alone, which run if it does.
#pragma once
#include "gemm_hopper.cuh"

// Pixels of a step; channels or columns of a box, and its bytes.
constexpr int GRAD_DEPTH = 64, GRAD_BOX = 64, GRAD_BOX_BYTES = GRAD_DEPTH * GRAD_BOX * 2;

// Begins d += A B, of 64 rows, 128, 192 or 256 columns and 16 terms, both operands transposed.
#define MULTIPLY_TRANSPOSED(T, TYPE, COLUMNS, SUMS, NAMES, A, B, ...)                                                                        \
    __device__ __forceinline__ void multiply_transposed(float (&d)[SUMS], u64 a, u64 b, T) {                                                 \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" COLUMNS "k16.f32." TYPE "." TYPE " {" NAMES "}, " A ", " B ", 1, 1, 1, 1, 1;"       \
                     : __VA_ARGS__                                                                                                           \
                     : "l"(a), "l"(b));                                                                                                      \
    }
#define MULTIPLY_ALL_TRANSPOSED(T, TYPE)                                                                                          \
    MULTIPLY_TRANSPOSED(T, TYPE, "128", 64, NAMES_64, "%64", "%65", SIXTY_FOUR(d, 0))                                             \
    MULTIPLY_TRANSPOSED(T, TYPE, "192", 96, NAMES_96, "%96", "%97", SIXTY_FOUR(d, 0), THIRTY_TWO(d, 64))                          \
    MULTIPLY_TRANSPOSED(T, TYPE, "256", 128, NAMES_128, "%128", "%129", SIXTY_FOUR(d, 0), SIXTY_FOUR(d, 64))
MULTIPLY_ALL_TRANSPOSED(f16, "f16")
MULTIPLY_ALL_TRANSPOSED(bf16, "bf16")

// The sum of the lane that differs in this bit. Not as bits, as which the compiler would have all sums in every round of a loop: ptxas then
// waits for each product.
template <int BIT>
__device__ __forceinline__ float of_neighbour(float v) {
    float out;
    asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, -1;" : "=f"(out) : "f"(v), "n"(BIT));
    return out;
}

// Trades with the lane that differs in a bit, which this one `has` or not: who does not has the first sums of both then, who has it the second.
template <int BIT>
__device__ __forceinline__ void trade(bool has, float& first, float& second) {
    float other = of_neighbour<BIT>(has ? first : second);
    float kept = has ? second : first;
    first = has ? other : kept, second = has ? kept : other;
}

// Four sums to memory in one access, which the compiler would split.
__device__ __forceinline__ void store_global(f32* to, float a, float b, float c, float d) {
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
}

// The images of dy, and the patches of 64 pixels that they are cut into: 2^`wide` columns, 2^`high` rows, and images up to 64 pixels.
struct GradPatches {
    u32 width, height, wide, high;
};

// A patch: where it begins. They run along rows, then down, then through the images.
struct GradPatch {
    u32 x, y, image;

    __device__ __forceinline__ GradPatch(const GradPatches& p, u32 number) {
        u32 across = tiles_of(p.width, 1 << p.wide), down = tiles_of(p.height, 1 << p.high), row = number / across, slab = row / down;
        x = number - row * across << p.wide;
        y = row - slab * down << p.high;
        image = slab * (GRAD_DEPTH >> p.wide + p.high);
    }

    __device__ __forceinline__ void advance(const GradPatches& p) {
        x += 1 << p.wide;
        if (x < p.width) return;
        x = 0, y += 1 << p.high;
        if (y >= p.height) y = 0, image += GRAD_DEPTH >> p.wide + p.high;
    }
};

// dW [taps * channels, n]; the window of a convolution of stride 1 has so many `columns`.
struct GradWeight {
    u32 channels, taps, columns, pad_top, pad_left, n;

    __device__ __forceinline__ u32 rows() const { return taps * channels; }
    __device__ __forceinline__ u32 panels() const { return tiles_of(n, 16); }
    // Boxes to the channels of a tap.
    __device__ __forceinline__ u32 boxes() const { return tiles_of(channels, GRAD_BOX); }
};

// Rows of dW in a box of x: channels from one on under a tap; no channels behind the last tap.
struct GradRows {
    u32 tap, channel;

    __device__ __forceinline__ GradRows(const GradWeight& w, u32 number) : tap(number / w.boxes()) {
        channel = tap < w.taps ? (number - tap * w.boxes()) * GRAD_BOX : w.channels;
    }
};

// Parts of k: `part` steps of the `steps` that there are.
struct GradParts {
    u32 steps, part, count;

    __device__ __forceinline__ Terms terms(u32 number) const { return {number * part, min((number + 1) * part, steps)}; }
};

// Tiles that blocks do whole, those of all parts. The tiles behind them are shared: they have `steps` in all, of which a block has `share`. What is left for others
// to add: [shares, threads' sums by four, threads, 4], and a flag of each share and warp, which is zero before and after the launch.
struct GradShares {
    u32 whole, steps, share;
    f32* left;
    u32* flags;
};

// Steps of a tile that are a block's; none if there are no more.
struct Piece {
    u32 tile;
    Terms terms;
};

// All pieces of a block.
template <class T, int TILE_ROWS, int TILE_COLS>
struct WeightGrad {
    static constexpr int ROWS = TILE_ROWS, COLS = TILE_COLS;
    // Warpgroups that have a tile each, in turns.
    static constexpr int TEAMS = ROWS * COLS < 32768 ? 2 : 1, STAGES = TEAMS == 2 ? 5 : 4;
    // Threads of a tile.
    static constexpr int THREADS = 256 / TEAMS;
    // Products are of dWᵀ.
    static constexpr bool TURNED = ROWS == 192;
    // Boxes of x and of dy; those that are a warpgroup's own, the products' rows; columns of a product.
    static constexpr int A = ROWS / GRAD_BOX, B = COLS / GRAD_BOX, OWN = (TURNED ? B : A) * TEAMS / 2, WIDTH = TURNED ? ROWS : COLS;
    static constexpr int STAGE = (A + B) * GRAD_BOX_BYTES;
    using Sums = float[OWN][WIDTH / 2];
    // Rows of tiles in a band.
    static constexpr u32 TALL = 2048 / ROWS;

    GradPatches patches;
    GradWeight weight;
    GradParts parts;
    GradShares shares;
    // Shared memory: stages; a barrier of each that says that it is full; those that say that it is empty; those that give a warpgroup its turn.
    u32 base, full, empty = full + 8 * STAGES, turns = empty + 8 * STAGES;
    // The stage that is next, and the parity of its phase.
    u32 stage = 0, parity = 0;

    __device__ __forceinline__ void make_barriers() const {
#pragma unroll 1
        for (int i = 0; i < STAGES; i++) {
            make_barrier(full + 8 * i, 1);
            // A lane of each warp that multiplies.
            make_barrier(empty + 8 * i, THREADS / 32);
        }
        for (int i = 0; i < 2; i++) make_barrier(turns + 8 * i, 4);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }

    __device__ __forceinline__ u32 down() const { return tiles_of(weight.taps * weight.boxes(), A); }
    __device__ __forceinline__ u32 across() const { return tiles_of(weight.n, COLS); }
    // A tile's batch is its part.
    __device__ __forceinline__ TilePlace place(u32 tile) const { return {down(), across(), TALL, tile}; }

    // A block's piece of that number: those of its share come first, from its end on. It is made up anew wherever it is asked for, as sums leave few registers.
    __device__ __forceinline__ Piece piece(u32 number) const {
        u32 block;
        asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
        u32 first = block * shares.share, end = min(first + shares.share, shares.steps);
        if (first < end) {
            u32 last = (end - 1) / parts.steps, count = last - first / parts.steps + 1;
            if (number < count) {
                u32 tile = last - number, begin = tile * parts.steps;
                return {shares.whole + tile, {max(first, begin) - begin, min(end - begin, parts.steps)}};
            }
            number -= count;
        }
        u32 tile = block + number * gridDim.x;
        return {tile, tile < shares.whole ? parts.terms(tile / (down() * across())) : Terms{0, 0}};
    }

    // True if another block has the last steps of the tile, or others have its first.
    __device__ __forceinline__ bool leaves(const Piece& piece) const { return piece.tile >= shares.whole && piece.terms.end < parts.steps; }
    __device__ __forceinline__ bool joins(const Piece& piece) const { return piece.tile >= shares.whole && piece.terms.first > 0; }

    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }

    // Leaves out the stages of a piece.
    __device__ __forceinline__ void skip(u32 steps) {
        u32 next = stage + steps;
        stage = next % STAGES;
        parity ^= next / STAGES & 1;
    }

    // Brings the operands of all steps of all pieces, in one thread.
    __device__ __forceinline__ void bring(const TensorMap& x, const TensorMap& dy) {
        fetch_map(x);
        fetch_map(dy);
#pragma unroll 1
        for (u32 number = 0;; number++) {
            auto [tile, terms] = piece(number);
            if (terms.count() == 0) break;
            TilePlace at = place(tile);
            GradPatch patch(patches, terms.first);
            // Of each box of x the first channel, and how far the tap is from dy's pixel.
            u32 channel[A], right[A], below[A];
#pragma unroll
            for (int a = 0; a < A; a++) {
                GradRows rows(weight, at.row * A + a);
                u32 ky = rows.tap / weight.columns;
                channel[a] = rows.channel, below[a] = ky - weight.pad_top, right[a] = rows.tap - ky * weight.columns - weight.pad_left;
            }
#pragma unroll 1
            for (u32 i = terms.first; i < terms.end; i++) {
                u32 to = base + stage * STAGE, barrier = full + 8 * stage;
                await(empty + 8 * stage, parity ^ 1);
                arrive_and_announce(barrier, STAGE);
#pragma unroll
                for (int a = 0; a < A; a++)
                    copy_box(to + a * GRAD_BOX_BYTES, x, channel[a], patch.x + right[a], patch.y + below[a], patch.image, barrier);
#pragma unroll
                for (int b = 0; b < B; b++)
                    copy_box(to + (A + b) * GRAD_BOX_BYTES, dy, at.col * COLS + b * GRAD_BOX, patch.x, patch.y, patch.image, barrier);
                patch.advance(patches);
                advance();
            }
        }
    }

    // Makes a warpgroup's sums of all its pieces and sends them: to dW, or to parts of it, one behind the other.
    __device__ __forceinline__ void multiply(f32* out) {
        // As one lane has it, so that descriptors are of the warp and not of threads.
        u32 group = __shfl_sync(~0u, warp_id() / 4, 0), own = TEAMS == 1 ? group * OWN : 0;
#pragma unroll 1
        for (u32 number = 0;; number++) {
            Terms terms = piece(number).terms;
            if (terms.count() == 0) break;
            if (TEAMS == 2 && number % 2 != group) {
                skip(terms.count());
                continue;
            }
            // Who waits for a stage must have seen the one before it, or a phase that ended long ago would do.
            if (TEAMS == 2) await(turns + 8 * group, (number / 2 + group + 1) % 2);
            // Beginning with what the first product leaves alone would be free, but ptxas 12 waits for each product then.
            Sums sums = {};
            add_steps(sums, terms, own);
            end(out, sums, piece(number), own);
        }
    }

    // The end of a piece.
    __device__ __forceinline__ void end(f32* out, Sums& sums, const Piece& piece, u32 own) const {
        if (leaves(piece)) return leave(sums);
        if (joins(piece)) add_left(sums, piece);
        send(out, sums, place(piece.tile), own);
    }

    // The products of all these steps; a warpgroup's turn ends when all are under way.
    __device__ __forceinline__ void add_steps(Sums& sums, const Terms& terms, u32 own) {
        u32 last = 0;
#pragma unroll 1
        for (u32 i = terms.first; i < terms.end; i++) {
            u32 from = base + stage * STAGE;
            // Blocks of 8 pixels are 1 KiB apart, of 64 channels or columns a box.
            u64 u = matrix_descriptor<128, GRAD_BOX_BYTES, 1024>(from + ((TURNED ? A : 0) + own) * GRAD_BOX_BYTES);
            u64 v = matrix_descriptor<128, GRAD_BOX_BYTES, 1024>(from + (TURNED ? 0 : A) * GRAD_BOX_BYTES);
            await(full + 8 * stage, parity);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int k = 0; k < GRAD_DEPTH / 16; k++)
#pragma unroll
                for (int r = 0; r < OWN; r++)
                    multiply_transposed(sums[r], u + (k * 2048 + r * GRAD_BOX_BYTES >> 4), v + (k * 2048 >> 4), T{});
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            // The products of the step before have ended, and its stage may be filled again.
            asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
            if (i > terms.first && lane_id() == 0) arrive(last);
            last = empty + 8 * stage;
            advance();
        }
        if (TEAMS == 2 && lane_id() == 0) arrive(turns + 8 * (warp_id() / 4 ^ 1));
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        if (lane_id() == 0) arrive(last);
    }

    // A thread's place in what a share leaves, and its warp's flag.
    __device__ __forceinline__ f32* left_of(u32 share) const { return shares.left + u64(share) * (ROWS * COLS) + threadIdx.x % THREADS * 4; }
    __device__ __forceinline__ u32* flag_of(u32 share) const { return shares.flags + share * 8 + warp_id() % (THREADS / 32); }

    // Leaves a warp's sums for the block that has the last steps of the tile.
    __device__ __forceinline__ void leave(const Sums& sums) const {
        f32* to = left_of(blockIdx.x);
#pragma unroll
        for (int r = 0; r < OWN; r++)
#pragma unroll
            for (int i = 0; i < WIDTH / 2; i += 4) {
                const float* from = sums[r] + i;
                store_global(to + (r * WIDTH / 2 + i) * THREADS, from[0], from[1], from[2], from[3]);
            }
        __syncwarp();
        if (lane_id() == 0) asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(__cvta_generic_to_global(flag_of(blockIdx.x))) : "memory");
    }

    // Adds what the blocks have left that have the tile's first steps, from the nearest on.
    __device__ __forceinline__ void add_left(Sums& sums, const Piece& piece) const {
        u32 begin = (piece.tile - shares.whole) * parts.steps, share = blockIdx.x;
#pragma unroll 1
        do {
            const f32* from = left_of(--share);
            u32* flag = flag_of(share);
            await_count(flag, 1);
#pragma unroll
            for (int r = 0; r < OWN; r++)
#pragma unroll
                for (int i = 0; i < WIDTH / 2; i += 4) {
                    float4 four = __ldcg((const float4*)(from + (r * WIDTH / 2 + i) * THREADS));
                    float* to = sums[r] + i;
                    to[0] += four.x, to[1] += four.y, to[2] += four.z, to[3] += four.w;
                }
            __syncwarp();
            if (lane_id() == 0) *flag = 0;
        } while (share * shares.share > begin);
    }

    __device__ __forceinline__ void send(f32* out, Sums& sums, const TilePlace& at, u32 own) const {
        out += u64(at.batch) * weight.rows() * weight.panels() * 16;
#pragma unroll
        for (int r = 0; r < OWN; r++)
            if constexpr (TURNED) send_turned(out, sums[r], at.row * A, (at.col * B + own + r) * (GRAD_BOX / 16));
            else send_rows(out, sums[r], GradRows(weight, at.row * A + own + r), at.col * (COLS / 16));
    }

    // Of a row's 8 columns a lane has two, which its neighbour makes four of: even lanes take those of a panel's first 8 columns, odd ones of the others. So a
    // warp writes 8 rows of a panel in one access, 512 bytes that lie together.
    __device__ __forceinline__ void send_rows(f32* out, float (&sums)[WIDTH / 2], const GradRows& rows, u32 panel) const {
        u32 lane = lane_id(), first = rows.channel + warp_id() % 4 * 16 + lane / 4;
        bool odd = lane % 2;
        u64 step = u64(weight.rows()) * 16;
        f32* to = out + panel * step + u64(rows.tap * weight.channels + first) * 16 + odd * 8 + lane % 4 / 2 * 4;
#pragma unroll
        for (int p = 0; p < COLS / 16; p++) {
            bool there = panel + p < weight.panels();
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float *low = sums + 8 * p + 2 * half, *high = low + 4;
                trade<1>(odd, low[0], high[0]);
                trade<1>(odd, low[1], high[1]);
                if (there && first + 8 * half < weight.channels) store_global(to + 128 * half, low[0], low[1], high[0], high[1]);
            }
            to += step;
        }
    }

    // The same of dWᵀ, from box `box` of x and this panel on: a warp has a panel's 16 columns as rows. Of 16 rows of dW four lanes have two columns each of four, and
    // by trading twice all four of two: a warp's access is 8 rows of a panel again.
    __device__ __forceinline__ void send_turned(f32* out, float (&sums)[WIDTH / 2], u32 box, u32 panel) const {
        u32 lane = lane_id(), row = lane % 4 * 2 + lane / 4 % 2;
        bool there = (panel += warp_id() % 4) < weight.panels();
        out += u64(panel) * weight.rows() * 16 + lane / 8 % 2 * 8 + lane / 16 * 4;
#pragma unroll
        for (int a = 0; a < A; a++) {
            GradRows rows(weight, box + a);
            u32 first = rows.channel + row;
            f32* to = out + u64(rows.tap * weight.channels + first) * 16;
#pragma unroll
            for (int p = 0; p < GRAD_BOX / 8; p++) {
                float* v = sums + 32 * a + 4 * p;
                trade<4>(lane / 4 % 2, v[0], v[1]);
                trade<4>(lane / 4 % 2, v[2], v[3]);
                trade<8>(lane / 8 % 2, v[0], v[2]);
                trade<8>(lane / 8 % 2, v[1], v[3]);
                if (there && first + 8 * p < weight.channels) store_global(to + 128 * p, v[0], v[1], v[2], v[3]);
            }
        }
    }
};
