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

// N numbers, of which a thread adds up columns.
template <int N>
struct Sums {
    float at[N];

    __device__ __forceinline__ void add(const Sums& other) {
#pragma unroll
        for (int k = 0; k < N; k++) at[k] += other.at[k];
    }
};

// From one access, if ALIGNED. The choice is made outside of loops, or else loads would wait for each other.
template <int N, bool ALIGNED, class T>
__device__ __forceinline__ Sums<N> widened(const T* from) {
    Sums<N> out;
    Pack<T, N> v;
    if (ALIGNED) v = *(const Pack<T, N>*)from;
#pragma unroll
    for (int k = 0; k < N; k++) out.at[k] = widen(ALIGNED ? v.at[k] : from[k]);
    return out;
}

// Of rows `step` apart, four under way.
template <int N, bool ALIGNED, class T>
__device__ __forceinline__ Sums<N> down(const T* from, u32 rows, u64 step) {
    Sums<N> sum = {};
    u32 row = 0;
#pragma unroll 1
    for (; row + 3 < rows; row += 4, from += 4 * step) {
        Sums<N> a = widened<N, ALIGNED>(from), b = widened<N, ALIGNED>(from + step);
        Sums<N> c = widened<N, ALIGNED>(from + 2 * step), d = widened<N, ALIGNED>(from + 3 * step);
        a.add(b);
        c.add(d);
        a.add(c);
        sum.add(a);
    }
#pragma unroll 1
    for (; row < rows; row++, from += step) sum.add(widened<N, ALIGNED>(from));
    return sum;
}

// A block is `across` lanes along packs of columns, 256 / across down the rows of a stretch. y [outer, count, cols].
template <int N, class T>
__device__ __forceinline__ void columns(const T* x, f32* y, u32 rows, u32 cols, u32 count, u32 per, u32 tiles, u32 across,
                                        float scale) {
    // Sixteen bytes of neighbouring threads beside each other.
    constexpr int P = N < 4 ? N : 4;
    __shared__ Pack<f32, P> lines[N / P][FLAT_THREADS];
    u32 tile = blockIdx.x % tiles, stretch = blockIdx.x / tiles, shift = 31 - __clz(across);
    u32 lane = threadIdx.x & (across - 1), line = threadIdx.x >> shift, lines_down = FLAT_THREADS >> shift;
    u32 col = (tile * across + lane) * N;
    u32 start = stretch % count * per + line, end = min(stretch % count * per + per, rows);
    Sums<N> sum = {};
    if (col < cols && start < end) {
        const T* from = x + (u64(stretch / count) * rows + start) * cols + col;
        u32 own = (end - start + lines_down - 1) >> (8 - shift);
        u64 step = u64(lines_down) * cols;
        if (N == 1 || sizeof(T) == 2 || is_aligned(x, sizeof(T) * N)) sum = down<N, true>(from, own, step);
        else sum = down<N, false>(from, own, step);
    }
    auto put = [&] {
#pragma unroll
        for (int i = 0; i < N / P; i++) {
            Pack<f32, P> piece;
#pragma unroll
            for (int k = 0; k < P; k++) piece.at[k] = sum.at[i * P + k];
            lines[i][threadIdx.x] = piece;
        }
    };
    put();
#pragma unroll 1
    for (u32 rest = lines_down / 2; rest > 0; rest /= 2) {
        __syncthreads();
        if (line >= rest) continue;
#pragma unroll
        for (int i = 0; i < N / P; i++) {
            Pack<f32, P> other = lines[i][threadIdx.x + rest * across];
#pragma unroll
            for (int k = 0; k < P; k++) sum.at[i * P + k] += other.at[k];
        }
        put();
    }
    if (line > 0 || col >= cols) return;
#pragma unroll
    for (int i = 0; i < N / P; i++) {
        Pack<f32, P> piece;
#pragma unroll
        for (int k = 0; k < P; k++) piece.at[k] = scale * sum.at[i * P + k];
        store<f32, P>(y + u64(stretch) * cols + col + i * P, piece);
    }
}

#define ENTRIES(T)                                                                                                     \
    FLAT_KERNEL reduce_1_##T(const T* x, f32* y, u32 n_rows, u32 n, u32 count, u32 per, float scale) {                 \
        rows<1>(x, y, n_rows, n, count, per, scale);                                                                   \
    }                                                                                                                  \
    FLAT_KERNEL reduce_8_##T(const T* x, f32* y, u32 n_rows, u32 n, u32 count, u32 per, float scale) {                 \
        rows<8>(x, y, n_rows, n, count, per, scale);                                                                   \
    }
FOR_TYPES(ENTRIES)

#define COLUMNS(T, N)                                                                                                  \
    FLAT_KERNEL reduce_columns_##N##_##T(const T* x, f32* y, u32 rows, u32 cols, u32 count, u32 per, u32 tiles,        \
                                         u32 across, float scale) {                                                    \
        columns<N>(x, y, rows, cols, count, per, tiles, across, scale);                                                \
    }
COLUMNS(f32, 4)
COLUMNS(f32, 1)
COLUMNS(f16, 8)
COLUMNS(f16, 1)
COLUMNS(bf16, 8)
COLUMNS(bf16, 1)
