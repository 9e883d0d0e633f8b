// x [outer, middle, inner] -> scale · the sum over the middle, f32, in an order that depends on the sizes alone.
// Floor: x read once. A thread has four packs under way; where a launch would have too few blocks, each sums a stretch of the middle and a
// second launch adds what they leave.
#include "lib/lines.cuh"

// inner = 1: a team a stretch of a row of n. y [rows, count].
template <int WARPS, class T>
__device__ __forceinline__ void rows(const T* x, f32* y, u32 rows, u32 n, u32 count, u32 per, float scale) {
    Team<WARPS> team;
    u32 row = team.row / count, start = team.row % count * per;
    u32 end = start + per < n ? start + per : n;
    float sum = 0.0f;
    if (row < rows) team.each(x + u64(row) * n + start, end - start, [&](u32, float v) { sum += v; });
    sum = team.sum(sum);
    if (row < rows && team.lane == 0) y[team.row] = scale * sum;
}

template <int E>
__device__ __forceinline__ void add(Pack<f32, E>& sum, Pack<f32, E> v) {
#pragma unroll
    for (int k = 0; k < E; k++) sum.at[k] += v.at[k];
}

template <int E, class T>
__device__ __forceinline__ Pack<f32, E> widened(const T* from) {
    Pack<T, E> v = load<T, E>(from);
    Pack<f32, E> out;
#pragma unroll
    for (int k = 0; k < E; k++) out.at[k] = widen(v.at[k]);
    return out;
}

// A block is `across` lanes along packs of columns, 256 / across down the rows of a stretch. y [outer, count, cols].
template <int E, class T>
__device__ __forceinline__ void columns(const T* x, f32* y, u32 rows, u32 cols, u32 count, u32 per, u32 tiles, u32 across,
                                        float scale) {
    __shared__ Pack<f32, E> lines[FLAT_THREADS];
    u32 tile = blockIdx.x % tiles, stretch = blockIdx.x / tiles;
    u32 down = FLAT_THREADS / across, lane = threadIdx.x % across, line = threadIdx.x / across;
    u32 col = (tile * across + lane) * E;
    u32 start = stretch % count * per, end = start + per < rows ? start + per : rows;
    Pack<f32, E> sum;
#pragma unroll
    for (int k = 0; k < E; k++) sum.at[k] = 0.0f;
    if (col < cols) {
        const T* from = x + (u64(stretch / count) * rows + start + line) * cols + col;
        u64 step = u64(down) * cols;
        u32 row = start + line;
        for (; row + 3 * down < end; row += 4 * down, from += 4 * step) {
            Pack<f32, E> a = widened<E>(from), b = widened<E>(from + step);
            Pack<f32, E> c = widened<E>(from + 2 * step), d = widened<E>(from + 3 * step);
            add(a, b);
            add(c, d);
            add(a, c);
            add(sum, a);
        }
        for (; row < end; row += down, from += step) add(sum, widened<E>(from));
    }
    lines[threadIdx.x] = sum;
    for (u32 rest = down / 2; rest > 0; rest /= 2) {
        __syncthreads();
        if (line < rest) {
            add(sum, lines[threadIdx.x + rest * across]);
            lines[threadIdx.x] = sum;
        }
    }
    if (line > 0 || col >= cols) return;
#pragma unroll
    for (int k = 0; k < E; k++) sum.at[k] *= scale;
    store<f32, E>(y + u64(stretch) * cols + col, sum);
}

#define ENTRIES(T)                                                                                                     \
    FLAT_KERNEL reduce_1_##T(const T* x, f32* y, u32 n_rows, u32 n, u32 count, u32 per, float scale) {                 \
        rows<1>(x, y, n_rows, n, count, per, scale);                                                                   \
    }                                                                                                                  \
    FLAT_KERNEL reduce_8_##T(const T* x, f32* y, u32 n_rows, u32 n, u32 count, u32 per, float scale) {                 \
        rows<8>(x, y, n_rows, n, count, per, scale);                                                                   \
    }                                                                                                                  \
    FLAT_KERNEL reduce_columns_4_##T(const T* x, f32* y, u32 rows, u32 cols, u32 count, u32 per, u32 tiles, u32 across,\
                                     float scale) {                                                                    \
        columns<4>(x, y, rows, cols, count, per, tiles, across, scale);                                                \
    }                                                                                                                  \
    FLAT_KERNEL reduce_columns_1_##T(const T* x, f32* y, u32 rows, u32 cols, u32 count, u32 per, u32 tiles, u32 across,\
                                     float scale) {                                                                    \
        columns<1>(x, y, rows, cols, count, per, tiles, across, scale);                                                \
    }
FOR_TYPES(ENTRIES)
