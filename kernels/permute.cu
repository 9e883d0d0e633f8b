// y = x with its axes in another order, of which lowering has joined those that stay neighbours.
// Floor: x read once, y written once.
//
// Where y's last axis is contiguous in x as well, runs move in units. Elsewhere one more axis of y is contiguous in x: squares of it and
// the last axis are turned in shared memory, so that a warp reads and writes 128 contiguous bytes at a time. Of two bytes an element, a
// square has 64 × 64 and threads read and write two at once; rows of an odd number of elements keep the banks apart in both directions.
// Where one of the two axes is short, single elements move: a warp writes 128 bytes and reads as many segments as the axis has elements.
#include "lib/lines.cuh"

// The number of an index along further axes -> how far it is from the first, in x; the last axis first.
#define AXIS(k) DIVISOR(axis##k), u32 stride##k
#define STEP(k)                                 \
    {                                           \
        Divided at = divide(i, AS_DIVISOR(axis##k)); \
        offset += at.rest * stride##k;          \
        i = at.quotient;                        \
    }

#define RUNS(BYTES)                                                                                                    \
    FLAT_KERNEL permute_##BYTES(const void* x, void* y, u32 n, DIVISOR(run), u32 axes, AXIS(0), AXIS(1), AXIS(2),      \
                                AXIS(3), AXIS(4), AXIS(5)) {                                                           \
        Divisor run = AS_DIVISOR(run);                                                                                 \
        move_units<BYTES>(n, y, [=](u32 i) {                                                                           \
            Divided at = divide(i, run);                                                                               \
            u32 offset = at.rest;                                                                                      \
            i = at.quotient;                                                                                           \
            if (axes > 0) STEP(0)                                                                                      \
            if (axes > 1) STEP(1)                                                                                      \
            if (axes > 2) STEP(2)                                                                                      \
            if (axes > 3) {                                                                                            \
                STEP(3) STEP(4) STEP(5)                                                                                \
            }                                                                                                          \
            return load_unit<BYTES>(x, offset);                                                                        \
        });                                                                                                            \
    }
FOR_UNITS(RUNS)

// Squares of y's last axis and the one that is contiguous in x, `near`. Words of V elements move.
template <class T, int V>
__device__ __forceinline__ void turn(const T* x, T* y, u32 last, u32 last_in_x, u32 near, u32 near_in_y, u32 first_last,
                                     u32 first_near) {
    constexpr int SIDE = 32 * V, WARPS = FLAT_THREADS / 32;
    __shared__ T square[SIDE][SIDE + 1];
    u32 lane = threadIdx.x % 32 * V, warp = threadIdx.x / 32;
    Pack<T, V> in[SIDE / WARPS];
#pragma unroll
    for (int k = 0; k < SIDE / WARPS; k++) {
        u32 row = first_last + warp + k * WARPS, col = first_near + lane;
        if (row < last && col < near) in[k] = *(const Pack<T, V>*)(x + row * last_in_x + col);
    }
#pragma unroll
    for (int k = 0; k < SIDE / WARPS; k++)
#pragma unroll
        for (int v = 0; v < V; v++) square[warp + k * WARPS][lane + v] = in[k].at[v];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < SIDE / WARPS; k++) {
        u32 row = first_near + warp + k * WARPS, col = first_last + lane;
        Pack<T, V> out;
#pragma unroll
        for (int v = 0; v < V; v++) out.at[v] = square[lane + v][warp + k * WARPS];
        if (row < near && col < last) *(Pack<T, V>*)(y + row * near_in_y + col) = out;
    }
}

// The other axes of y, and where each lies in y.
#define OTHER(k) AXIS(k), u32 in_y##k
#define OTHER_STEP(k)                           \
    {                                           \
        Divided at = divide(i, AS_DIVISOR(axis##k)); \
        offset += at.rest * stride##k;          \
        offset_y += at.rest * in_y##k;          \
        i = at.quotient;                        \
    }

#define TURN(NAME, T, V)                                                                                               \
    FLAT_KERNEL permute_turn_##NAME(const T* x, T* y, u32 last, u32 last_in_x, u32 near, u32 near_in_y,                \
                                    DIVISOR(lasts), DIVISOR(nears), OTHER(0), OTHER(1), OTHER(2), OTHER(3)) {          \
        Divided column = divide(blockIdx.x, AS_DIVISOR(lasts)), row = divide(column.quotient, AS_DIVISOR(nears));      \
        u32 i = row.quotient, offset = 0, offset_y = 0;                                                                \
        OTHER_STEP(0) OTHER_STEP(1) OTHER_STEP(2) OTHER_STEP(3)                                                        \
        turn<T, V>(x + offset, y + offset_y, last, last_in_x, near, near_in_y, column.rest * 32 * V,                   \
                   row.rest * 32 * V);                                                                                 \
    }
TURN(4, u32, 1)
TURN(2, unsigned short, 1)
TURN(2x2, unsigned short, 2)
