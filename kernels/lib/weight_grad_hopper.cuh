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
#pragma once
#include "gemm_hopper.cuh"

// Pixels of a step; channels or columns of a box, and its bytes.
constexpr int GRAD_DEPTH = 64, GRAD_BOX = 64, GRAD_BOX_BYTES = GRAD_DEPTH * GRAD_BOX * 2;

// Begins d = A B, or d += A B if it `adds`, of 64 rows, 128, 192 or 256 columns and 16 terms, both operands transposed.
#define MULTIPLY_TRANSPOSED(T, TYPE)                                                                                                      \
    __device__ __forceinline__ void multiply_transposed(float (&d)[64], u64 a, u64 b, u32 adds, T) {                                      \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {" NAMES_64 \
                     "}, %64, %65, p, 1, 1, 1, 1;\n}"                                                                                     \
                     : SIXTY_FOUR(d, 0)                                                                                                   \
                     : "l"(a), "l"(b), "r"(adds));                                                                                        \
    }                                                                                                                                     \
    __device__ __forceinline__ void multiply_transposed(float (&d)[96], u64 a, u64 b, u32 adds, T) {                                      \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\nwgmma.mma_async.sync.aligned.m64n192k16.f32." TYPE "." TYPE " {" NAMES_96 \
                     "}, %96, %97, p, 1, 1, 1, 1;\n}"                                                                                     \
                     : SIXTY_FOUR(d, 0), THIRTY_TWO(d, 64)                                                                                \
                     : "l"(a), "l"(b), "r"(adds));                                                                                        \
    }                                                                                                                                     \
    __device__ __forceinline__ void multiply_transposed(float (&d)[128], u64 a, u64 b, u32 adds, T) {                                     \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\nwgmma.mma_async.sync.aligned.m64n256k16.f32." TYPE "." TYPE              \
                     " {" NAMES_128 "}, %128, %129, p, 1, 1, 1, 1;\n}"                                                                    \
                     : SIXTY_FOUR(d, 0), SIXTY_FOUR(d, 64)                                                                                \
                     : "l"(a), "l"(b), "r"(adds));                                                                                        \
    }
MULTIPLY_TRANSPOSED(f16, "f16")
MULTIPLY_TRANSPOSED(bf16, "bf16")

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

// All tiles of a block, of all parts of k.
template <class T, int TILE_ROWS>
struct WeightGrad {
    static constexpr int ROWS = TILE_ROWS, COLS = ROWS == 256 ? 128 : 256, STAGES = 4;
    // Products are of dWᵀ.
    static constexpr bool TURNED = ROWS == 192;
    // Boxes of x and of dy; those that are a warpgroup's own, the products' rows; columns of a product.
    static constexpr int A = ROWS / GRAD_BOX, B = COLS / GRAD_BOX, OWN = (TURNED ? B : A) / 2, WIDTH = TURNED ? ROWS : COLS;
    static constexpr int STAGE = (A + B) * GRAD_BOX_BYTES;
    // Rows of tiles in a band.
    static constexpr u32 TALL = 2048 / ROWS;

    GradPatches patches;
    GradWeight weight;
    GradParts parts;
    // Shared memory: stages; a barrier of each that says that it is full; those that say that it is empty.
    u32 base, full, empty = full + 8 * STAGES;
    // The stage that is next, and the parity of its phase.
    u32 stage = 0, parity = 0;

    __device__ __forceinline__ void make_barriers() const {
#pragma unroll 1
        for (int i = 0; i < STAGES; i++) {
            make_barrier(full + 8 * i, 1);
            // A lane of each warp that multiplies.
            make_barrier(empty + 8 * i, 8);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }

    __device__ __forceinline__ u32 down() const { return tiles_of(weight.taps * weight.boxes(), A); }
    __device__ __forceinline__ u32 across() const { return tiles_of(weight.n, COLS); }
    // Tiles of all parts; a tile's batch is its part.
    __device__ __forceinline__ u32 tiles() const { return down() * across() * parts.count; }
    __device__ __forceinline__ TilePlace place(u32 tile) const { return {down(), across(), TALL, tile}; }

    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }

    // Brings the operands of all steps of all tiles, in one thread.
    __device__ __forceinline__ void bring(const TensorMap& x, const TensorMap& dy) {
        fetch_map(x);
        fetch_map(dy);
#pragma unroll 1
        for (u32 tile = blockIdx.x; tile < tiles(); tile += gridDim.x) {
            TilePlace at = place(tile);
            Terms terms = parts.terms(at.batch);
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

    // Makes a warpgroup's sums of all tiles and sends them: to dW, or to parts of it, one behind the other.
    __device__ __forceinline__ void multiply(f32* out) {
        u32 lane = lane_id(), group = warp_id() / 4;
        float sums[OWN][WIDTH / 2] = {};
#pragma unroll 1
        for (u32 tile = blockIdx.x; tile < tiles(); tile += gridDim.x) {
            TilePlace at = place(tile);
            Terms terms = parts.terms(at.batch);
            u32 last = 0;
#pragma unroll 1
            for (u32 i = terms.first; i < terms.end; i++) {
                u32 from = base + stage * STAGE;
                // Blocks of 8 pixels are 1 KiB apart, of 64 channels or columns a box.
                u64 u = matrix_descriptor<128, GRAD_BOX_BYTES, 1024>(from + ((TURNED ? A : 0) + group * OWN) * GRAD_BOX_BYTES);
                u64 v = matrix_descriptor<128, GRAD_BOX_BYTES, 1024>(from + (TURNED ? 0 : A) * GRAD_BOX_BYTES);
                await(full + 8 * stage, parity);
                asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
                for (int k = 0; k < GRAD_DEPTH / 16; k++)
#pragma unroll
                    for (int r = 0; r < OWN; r++)
                        multiply_transposed(sums[r], u + (k * 2048 + r * GRAD_BOX_BYTES >> 4), v + (k * 2048 >> 4), k > 0 || i > terms.first, T{});
                asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
                // The products of the step before have ended, and its stage may be filled again.
                asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
                if (i > terms.first && lane == 0) arrive(last);
                last = empty + 8 * stage;
                advance();
            }
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            if (lane == 0) arrive(last);
            f32* to = out + u64(at.batch) * weight.rows() * weight.panels() * 16;
#pragma unroll
            for (int r = 0; r < OWN; r++)
                if constexpr (TURNED) send_turned(to, sums[r], at.row * A, (at.col * B + group * OWN + r) * (GRAD_BOX / 16));
                else send(to, sums[r], GradRows(weight, at.row * A + group * OWN + r), at.col * (COLS / 16));
        }
    }

    // Of a row's 8 columns a lane has two, which its neighbour makes four of: even lanes take those of a panel's first 8 columns, odd ones of the others. So a
    // warp writes 8 rows of a panel in one access, 512 bytes that lie together.
    __device__ __forceinline__ void send(f32* out, float (&sums)[WIDTH / 2], const GradRows& rows, u32 panel) const {
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
    // by trading twice all four of one: a warp's access is 16 rows by 8 columns, whole sectors.
    __device__ __forceinline__ void send_turned(f32* out, float (&sums)[WIDTH / 2], u32 box, u32 panel) const {
        u32 lane = lane_id(), row = lane / 8 % 2 * 8 + lane % 4 * 2 + lane / 4 % 2;
        bool there = (panel += warp_id() % 4) < weight.panels();
        out += u64(panel) * weight.rows() * 16 + lane / 16 * 4;
#pragma unroll
        for (int a = 0; a < A; a++) {
            GradRows rows(weight, box + a);
            u32 first = rows.channel + row;
            f32* to = out + u64(rows.tap * weight.channels + first) * 16;
#pragma unroll
            for (int p = 0; p < GRAD_BOX / 16; p++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float *low = sums + 32 * a + 8 * p + 2 * half, *high = low + 4;
                    trade<4>(lane / 4 % 2, low[0], low[1]);
                    trade<4>(lane / 4 % 2, high[0], high[1]);
                    trade<8>(lane / 8 % 2, low[0], high[0]);
                    trade<8>(lane / 8 % 2, low[1], high[1]);
                    if (there && first + 16 * p < weight.channels) store_global(to + 256 * p + 8 * half, low[0], low[1], high[0], high[1]);
                }
        }
    }
};
