// x [outer, middle, inner] -> scale · the sum over the middle, f32, in an order that depends on the sizes alone.
// Floor: x read once. A thread has four packs under way; where a launch would have too few blocks, each sums a stretch of the middle, and who
// comes last adds what they leave; of rows a second launch does.
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
__device__ __forceinline__ Pack<T, N> pack_at(const T* from) {
    Pack<T, N> v;
    if constexpr (ALIGNED) {
        v = *(const Pack<T, N>*)from;
    } else {
#pragma unroll
        for (int k = 0; k < N; k++) v.at[k] = from[k];
    }
    return v;
}

template <class T, int N>
__device__ __forceinline__ Sums<N> widened(const Pack<T, N>& v) {
    Sums<N> out;
#pragma unroll
    for (int k = 0; k < N; k++) out.at[k] = widen(v.at[k]);
    return out;
}

template <int N>
__device__ __forceinline__ Sums<N> widened(const Sums<N>& v) {
    return v;
}

// What another block left, past L1.
template <int N>
__device__ __forceinline__ Sums<N> left_by_another(const f32* from) {
    Sums<N> out;
    if constexpr (N == 1) {
        out.at[0] = __ldcg(from);
    } else {
#pragma unroll
        for (int k = 0; k < N; k += 4) {
            float4 four = __ldcg((const float4*)(from + k));
            out.at[k] = four.x, out.at[k + 1] = four.y, out.at[k + 2] = four.z, out.at[k + 3] = four.w;
        }
    }
    return out;
}

// Adds four rows `step` apart, all of which are read before the first is looked at; those that are not there are the pack `none`.
template <int N, class T, class Read, class Packed, class There>
__device__ __forceinline__ void add_four(Sums<N>& sum, const T* from, u64 step, Read read, const Packed& none, There is_there) {
    Packed packs[4] = {none, none, none, none};
#pragma unroll
    for (u32 k = 0; k < 4; k++)
        if (is_there(k)) packs[k] = read(from + k * step);
    Sums<N> a = widened(packs[0]), c = widened(packs[2]);
    a.add(widened(packs[1]));
    c.add(widened(packs[3]));
    a.add(c);
    sum.add(a);
}

template <int N, class T, class Read, class Packed>
__device__ __forceinline__ Sums<N> down(const T* from, u32 rows, u64 step, Read read, const Packed& none) {
    Sums<N> sum = {};
    u32 row = 0;
#pragma unroll 1
    for (; row + 3 < rows; row += 4, from += 4 * step) add_four(sum, from, step, read, none, [=](u32) { return true; });
    if (row < rows) add_four(sum, from, step, read, none, [=](u32 k) { return row + k < rows; });
    return sum;
}

// How a block lies over x: `across` lanes along packs of N columns, 256 / across lines down the rows.
template <int N>
struct Lines {
    u32 shift, lane, line, count;

    __device__ __forceinline__ Lines(u32 across)
        : shift(31 - __clz(across)), lane(threadIdx.x & (across - 1)), line(threadIdx.x >> shift), count(FLAT_THREADS >> shift) {}

    // How many of `rows` rows this line has: every `count`-th.
    __device__ __forceinline__ u32 share(u32 rows) const { return rows > line ? (rows - line + count - 1) >> (8 - shift) : 0; }

    // The sum of all lines, in line 0.
    __device__ __forceinline__ void join(Sums<N>& sum) const {
        // Sixteen bytes of neighbouring threads beside each other.
        constexpr int P = N < 4 ? N : 4;
        __shared__ Pack<f32, P> places[N / P][FLAT_THREADS];
        auto put = [&] {
#pragma unroll
            for (int i = 0; i < N / P; i++) {
                Pack<f32, P> piece;
#pragma unroll
                for (int k = 0; k < P; k++) piece.at[k] = sum.at[i * P + k];
                places[i][threadIdx.x] = piece;
            }
        };
        put();
#pragma unroll 1
        for (u32 rest = count / 2; rest > 0; rest /= 2) {
            __syncthreads();
            if (line >= rest) continue;
#pragma unroll
            for (int i = 0; i < N / P; i++) {
                Pack<f32, P> other = places[i][threadIdx.x + (rest << shift)];
#pragma unroll
                for (int k = 0; k < P; k++) sum.at[i * P + k] += other.at[k];
            }
            put();
        }
    }
};

template <int N>
__device__ __forceinline__ void store_sums(f32* to, const Sums<N>& sum, float scale) {
    constexpr int P = N < 4 ? N : 4;
#pragma unroll
    for (int i = 0; i < N / P; i++) {
        Pack<f32, P> piece;
#pragma unroll
        for (int k = 0; k < P; k++) piece.at[k] = scale * sum.at[i * P + k];
        store<f32, P>(to + i * P, piece);
    }
}

// True for the block that comes last of `count`, which sees what the others left. The counter is zero before and after.
__device__ __forceinline__ bool comes_last(u32* arrived, u32 count) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(arrived, 1) + 1 == count;
        if (last) *arrived = 0;
    }
    __syncthreads();
    __threadfence();
    return last;
}

// A block sums a stretch of rows. Of `count` stretches, who comes last adds up their sums, parts [outer, count, cols]; arrivals [outer, tiles]. y [outer, cols].
template <int N, class T>
__device__ __forceinline__ void columns(const T* x, f32* parts, u32* arrivals, f32* y, u32 rows, u32 cols, u32 count, u32 per, u32 tiles,
                                        u32 across, float scale) {
    Lines<N> lines(across);
    u32 tile = blockIdx.x % tiles, stretch = blockIdx.x / tiles, outer = stretch / count, number = stretch - outer * count;
    u32 col = (tile * across + lines.lane) * N, first = number * per;
    bool there = col < cols;
    Sums<N> sum = {};
    if (there) {
        const T* from = x + (u64(outer) * rows + first + lines.line) * cols + col;
        u32 own = lines.share(min(per, rows - first));
        u64 step = u64(lines.count) * cols;
        if (N == 1 || sizeof(T) == 2 || is_aligned(x, sizeof(T) * N)) sum = down<N>(from, own, step, pack_at<N, true, T>, Pack<T, N>::zeros());
        else sum = down<N>(from, own, step, pack_at<N, false, T>, Pack<T, N>::zeros());
    }
    lines.join(sum);
    if (count > 1) {
        f32* left = parts + u64(outer) * count * cols + col;
        if (there && lines.line == 0) store_sums(left + u64(number) * cols, sum, 1.0f);
        if (!comes_last(arrivals + outer * tiles + tile, count)) return;
        sum = {};
        if (there) sum = down<N>(left + u64(lines.line) * cols, lines.share(count), u64(lines.count) * cols, left_by_another<N>, Sums<N>{});
        lines.join(sum);
    }
    if (there && lines.line == 0) store_sums(y + u64(outer) * cols + col, sum, scale);
}

#define ENTRIES(T)                                                                                                     \
    FLAT_KERNEL reduce_1_##T(const T* x, f32* y, u32 n_rows, u32 n, u32 count, u32 per, float scale) {                 \
        rows<1>(x, y, n_rows, n, count, per, scale);                                                                   \
    }                                                                                                                  \
    FLAT_KERNEL reduce_8_##T(const T* x, f32* y, u32 n_rows, u32 n, u32 count, u32 per, float scale) {                 \
        rows<8>(x, y, n_rows, n, count, per, scale);                                                                   \
    }
FOR_TYPES(ENTRIES)

#define COLUMNS(T, N)                                                                                                       \
    FLAT_KERNEL reduce_columns_##N##_##T(const T* x, f32* parts, u32* arrivals, f32* y, u32 rows, u32 cols, u32 count,      \
                                         u32 per, u32 tiles, u32 across, float scale) {                                     \
        columns<N>(x, parts, arrivals, y, rows, cols, count, per, tiles, across, scale);                                    \
    }
COLUMNS(f32, 4)
COLUMNS(f32, 1)
COLUMNS(f16, 8)
COLUMNS(f16, 1)
COLUMNS(bf16, 8)
COLUMNS(bf16, 1)
