// W [taps, c, n] -> W' [taps, n, c], W'[taps - 1 - t, n, c] = W[t, c, n], both in panels of 16 columns.
// Floor: W read once, W' written once. A square of 16 × 16 has no gap in both: a block turns some of them, neighbours along c, 16 bytes a thread,
// in shared memory, where no two threads of a warp meet in a bank, writing or reading. Numbers are not looked at.
#include "lib/lines.cuh"

constexpr u32 SIDE = 16;

// Where a square is: its place along c, its tap and its place along n.
struct Square {
    u32 row, tap, col;

    __device__ __forceinline__ Square(u32 number, u32 rows, u32 taps) {
        u32 line = number / rows;
        row = number - line * rows;
        col = line / taps;
        tap = line - col * taps;
    }
};

// Column i of row r stands at i ^ r.
FLAT_KERNEL transpose_weight_4(const u32* w, u32* out, u32 taps, u32 c, u32 n, u32 squares) {
    constexpr u32 EACH = 4;
    __shared__ u32 square[EACH][SIDE * SIDE];
    u32 rows = (c + SIDE - 1) / SIDE;
    u32 high = threadIdx.x / SIDE, low = threadIdx.x % SIDE;
    u32 v[EACH];
#pragma unroll
    for (u32 k = 0; k < EACH; k++) {
        Square at(blockIdx.x * EACH + k, rows, taps);
        u32 row = at.row * SIDE + high;
        v[k] = 0;
        if (blockIdx.x * EACH + k < squares && row < c) v[k] = w[((u64(at.col) * taps + at.tap) * c + row) * SIDE + low];
    }
#pragma unroll
    for (u32 k = 0; k < EACH; k++) square[k][high * SIDE + (low ^ high)] = v[k];
    __syncthreads();
#pragma unroll
    for (u32 k = 0; k < EACH; k++) {
        Square at(blockIdx.x * EACH + k, rows, taps);
        u32 col = at.col * SIDE + high;
        if (blockIdx.x * EACH + k < squares && col < n)
            out[((u64(at.row) * taps + (taps - 1 - at.tap)) * n + col) * SIDE + low] = square[k][low * SIDE + (high ^ low)];
    }
}

// Two neighbours a word, 8 words a row: a thread turns two by two of them. Of a row of W', word i stands at i, from row 8 on at i ^ 4; every
// other pair of threads writes the second of its rows first, so that eight of them are in four rows with different banks, twice. `block` is the
// number of the block among those of this weight.
__device__ __forceinline__ void transpose_pairs(const u32* w, u32* out, u32 taps, u32 c, u32 n, u32 squares, u32 block) {
    constexpr u32 EACH = 2, WORDS = SIDE / 2, BESIDE = FLAT_THREADS / (WORDS * WORDS);
    __shared__ u32 square[EACH][BESIDE][SIDE * WORDS];
    u32 rows = (c + SIDE - 1) / SIDE, beside = threadIdx.x / (WORDS * WORDS);
    u32 high = threadIdx.x / WORDS % WORDS, low = threadIdx.x % WORDS, second = low / 2 % 2;
#pragma unroll
    for (u32 k = 0; k < EACH; k++) {
        u32 number = (block * EACH + k) * BESIDE + beside;
        Square at(number, rows, taps);
        u32 row = at.row * SIDE + 2 * high, a = 0, b = 0;
        const u32* from = w + ((u64(at.col) * taps + at.tap) * c + row) * WORDS + low;
        if (number < squares && row < c) a = from[0];
        if (number < squares && row + 1 < c) b = from[WORDS];
        u32 turned[2] = {__byte_perm(a, b, 0x5410), __byte_perm(a, b, 0x7632)};
        u32* to = square[k][beside] + 2 * low * WORDS + (high ^ low / 4 * 4);
        to[second * WORDS] = second ? turned[1] : turned[0];
        to[(1 - second) * WORDS] = second ? turned[0] : turned[1];
    }
    __syncthreads();
#pragma unroll
    for (u32 k = 0; k < EACH; k++) {
        u32 number = (block * EACH + k) * BESIDE + beside;
        Square at(number, rows, taps);
        u32* to = out + ((u64(at.row) * taps + (taps - 1 - at.tap)) * n + at.col * SIDE) * WORDS + low;
#pragma unroll
        for (u32 line = high; line < SIDE; line += WORDS)
            if (number < squares && at.col * SIDE + line < n) to[line * WORDS] = square[k][beside][line * WORDS + (low ^ line / 8 * 4)];
    }
}

FLAT_KERNEL transpose_weight_2(const u32* w, u32* out, u32 taps, u32 c, u32 n, u32 squares) {
    transpose_pairs(w, out, taps, c, n, squares, blockIdx.x);
}

// A weight among many: its first block, where it and what is made of it begin, in lines of 16 numbers, and its sizes.
struct OneOfMany {
    u32 block, from, to, taps, c, n, squares;
};

// Many weights of one array, which `table` tells of in the order of their blocks.
FLAT_KERNEL transpose_weights_2(const u32* w, const OneOfMany* table, u32* out, u32 count) {
    // How many begin at this block or before it.
    u32 begun = 0;
    for (u32 first = 0; first < count; first += FLAT_THREADS) {
        u32 i = first + threadIdx.x;
        begun += __syncthreads_count(i < count && table[i].block <= blockIdx.x);
    }
    OneOfMany one = table[begun - 1];
    constexpr u32 LINE = SIDE / 2;
    transpose_pairs(w + u64(one.from) * LINE, out + u64(one.to) * LINE, one.taps, one.c, one.n, one.squares, blockIdx.x - one.block);
}
