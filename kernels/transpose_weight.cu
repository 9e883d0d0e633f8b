// W [taps, c, n] -> W' [taps, n, c], W'[taps - 1 - t, n, c] = W[t, c, n], both in panels of 16 columns.
// Floor: W read once, W' written once. A square of 16 × 16 has no gap in both: a block turns some of them, neighbours along c, 16 bytes a thread,
// in shared memory, where column i of row r stands at i ^ r: no two threads of a warp meet in a bank, writing or reading. Numbers of two bytes
// that are neighbours share a bank's word.
#include "lib/lines.cuh"

// Numbers are not looked at: T has their size.
template <class T>
__device__ __forceinline__ void transpose_weight(const T* w, T* out, u32 taps, u32 c, u32 n, u32 squares) {
    constexpr u32 SIDE = 16, EACH = WIDE<T>;
    __shared__ T square[EACH][SIDE * SIDE];
    u32 rows = (c + SIDE - 1) / SIDE;
    u32 high = threadIdx.x / SIDE, low = threadIdx.x % SIDE;
    T v[EACH];
#pragma unroll
    for (u32 k = 0; k < EACH; k++) {
        u32 number = blockIdx.x * EACH + k;
        u32 row = number % rows * SIDE + high, tap = number / rows % taps, panel = number / rows / taps;
        v[k] = T();
        if (number < squares && row < c) v[k] = w[((u64(panel) * taps + tap) * c + row) * SIDE + low];
    }
#pragma unroll
    for (u32 k = 0; k < EACH; k++) square[k][high * SIDE + (low ^ high)] = v[k];
    __syncthreads();
#pragma unroll
    for (u32 k = 0; k < EACH; k++) {
        u32 number = blockIdx.x * EACH + k;
        u32 to = number % rows, tap = number / rows % taps, col = number / rows / taps * SIDE + high;
        if (number < squares && col < n)
            out[((u64(to) * taps + (taps - 1 - tap)) * n + col) * SIDE + low] = square[k][low * SIDE + (high ^ low)];
    }
}

#define ENTRY(BYTES)                                                                                                   \
    FLAT_KERNEL transpose_weight_##BYTES(const Word<BYTES>* w, Word<BYTES>* out, u32 taps, u32 c, u32 n, u32 squares) { \
        transpose_weight(w, out, taps, c, n, squares);                                                                 \
    }
ENTRY(4)
ENTRY(2)
