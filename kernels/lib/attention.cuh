// What attention and its gradient share: a head's rows, tiles of 16-bit numbers, and products of f32 tiles.
//
// The f32 kernels have 128 threads for a tile of 64 rows and 64 columns. Thread 16 · ty + tx has its rows ty + 8 i and its columns tx + 16 j, so
// that a warp has whole rows: weights go from the first product to the second through rows of shared memory that no other warp sees.
// Operands come in steps of a few thousand numbers, one step ahead of what is computed, so that heads may be of any size.
#pragma once
#include "fragments.cuh"

constexpr u32 THREADS = 128;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;
// Constant expressions cannot name infinity otherwise.
#define INFINITE __int_as_float(0x7f800000)

// Both to about 2⁻²²; results below 2⁻¹²⁶ are 0.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The rows of one head of one sample in x [B, rows, heads · width].
template <class T>
struct Head {
    T* data;
    u32 width;
    // From one row to the next.
    u32 stride;
    // Every row begins at a multiple of 16 bytes and has a multiple of 16 bytes.
    bool wide;

    __device__ __forceinline__ Head(T* x, u32 pair, u32 heads, u32 rows, u32 width)
        : data(x + (u64(pair / heads) * rows * heads + pair % heads) * width),
          width(width),
          stride(heads * width),
          wide(is_aligned(x) && width % WIDE<T> == 0) {}

    __device__ __forceinline__ T* row(u32 i) const { return data + u64(i) * stride; }
};

// One of two, without their going to memory.
template <class T>
__device__ __forceinline__ Head<T> choose(bool first, Head<T> a, const Head<T>& b) {
    a.data = first ? a.data : b.data;
    a.width = first ? a.width : b.width;
    a.stride = first ? a.stride : b.stride;
    a.wide = first ? a.wide : b.wide;
    return a;
}

// Rows first.. of a head as a tile of ROWS rows, each C places of 16 bytes, of what is in columns `col`..; zeros from row `end` and behind a
// row's last number. Only the first `places` of a row are written. AT_ONCE copies of a thread are written out at a time.
template <u32 ROWS, u32 C, u32 AT_ONCE = ROWS * C <= 8 * THREADS ? 8 : 2, class T>
__device__ __forceinline__ void copy_tile(u32 tile, const Head<const T>& x, u32 first, u32 end, u32 col = 0, u32 places = C) {
    constexpr u32 PLACES = ROWS * C, EACH = (PLACES + THREADS - 1) / THREADS;
    const T* from = x.row(first) + col;
    u32 width = col < x.width ? x.width - col : 0;
    if (x.wide) {
#pragma unroll(EACH < AT_ONCE ? EACH : AT_ONCE)
        for (u32 k = 0; k < EACH; k++) {
            u32 i = k * THREADS + threadIdx.x, row = i / C, c = i % C;
            if (PLACES % THREADS != 0 && i >= PLACES) break;
            bool has = first + row < end && c * 8 < width;
            if (c < places) copy_16(tile + swizzled<C>(row, c) * 16, has ? from + (row * x.stride + c * 8) : x.data, has);
        }
        return;
    }
#pragma unroll 1
    for (u32 i = threadIdx.x; i < PLACES * 8; i += THREADS) {
        u32 row = i / (C * 8), c = i % (C * 8);
        bool has = first + row < end && c < width;
        unsigned short bits = has ? from[row * x.stride + c].bits : 0;
        asm volatile("st.shared.b16 [%0], %1;" ::"r"(tile + swizzled<C>(row, c / 8) * 16 + c % 8 * 2), "h"(bits) : "memory");
    }
}

// A warp's sums, 16 · M rows of D columns, as f32: `at` is this thread's first number, from one row to the next it is `stride`. `first` is the
// warp's first row, `end` the one behind the last that there is.
template <u32 D, u32 M>
__device__ __forceinline__ void put_sums(const float (&o)[M][D / 8][4], float* at, u32 stride, u32 first, u32 end) {
    u32 group = threadIdx.x % 32 / 4;
#pragma unroll
    for (u32 i = 0; i < 2 * M; i++) {
        if (first + group + 8 * i < end) {
#pragma unroll
            for (u32 n = 0; n < D / 8; n++) {
                Pack<float, 2> both;
                both.at[0] = o[i / 2][n][i % 2 * 2], both.at[1] = o[i / 2][n][i % 2 * 2 + 1];
                write_floats(at + n * 8, both);
            }
        }
        at += 8 * stride;
    }
}

// The same to columns `col`.. of y, through this warp's place in shared memory.
template <class T, u32 D, u32 M>
__device__ __forceinline__ void put_tile(const float (&o)[M][D / 8][4], u32 place, const Head<T>& y, u32 first, u32 end, u32 col) {
    constexpr u32 C = D / 8;
    u32 lane = threadIdx.x % 32, group = lane / 4, member = lane % 4;
    u32 even = place + swizzled<C>(group, 0) * 16 + member * 4, odd = place + swizzled<C>(group, 1) * 16 + member * 4;
#pragma unroll
    for (u32 i = 0; i < 2 * M; i++) {
#pragma unroll
        for (u32 n = 0; n < D / 8; n++) {
            u32 at = beside<C>(n % 2 == 0 ? even : odd, n / 2) + i * 128 * C;
            u32 both = pack<T>(o[i / 2][n][i % 2 * 2], o[i / 2][n][i % 2 * 2 + 1]);
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(both) : "memory");
        }
    }
    __syncwarp();
    if (y.wide) {
#pragma unroll 2
        for (u32 i = lane; i < 16 * M * C; i += 32) {
            u32 row = i / C, c = i % C;
            Pack<float, 4> out;
            asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                         : "=f"(out.at[0]), "=f"(out.at[1]), "=f"(out.at[2]), "=f"(out.at[3])
                         : "r"(place + swizzled<C>(row, c) * 16)
                         : "memory");
            if (first + row >= end || col + c * 8 >= y.width) continue;
            write_floats((float*)(y.row(first + row) + col + c * 8), out);
        }
        return;
    }
#pragma unroll 1
    for (u32 i = lane; i < 16 * M * D; i += 32) {
        u32 row = i / D, c = i % D;
        if (first + row >= end || col + c >= y.width) continue;
        T out;
        asm volatile("ld.shared.b16 %0, [%1];" : "=h"(out.bits) : "r"(place + swizzled<C>(row, c / 8) * 16 + c % 8 * 2) : "memory");
        y.row(first + row)[col + c] = out;
    }
}

// 16 bytes of one row of an output of `width` columns, of `all` rows in all heads, that is put together from parts whose rows are of whole panels of 16
// floats. A thread for each; there are fewer than 2³² of them.
template <class T>
struct OfParts {
    static constexpr u32 EACH = WIDE<T>;
    u32 row, col;
    bool has;

    __device__ __forceinline__ OfParts(u32 all, u32 width) {
        u32 pieces = (width + EACH - 1) / EACH, i = blockIdx.x * 256 + threadIdx.x;
        row = i / pieces, col = (i - row * pieces) * EACH, has = row < all;
    }

    // sum += weight · what a part has, `at` being its first number.
    static __device__ __forceinline__ void add(float (&sum)[EACH], const float* at, float weight) {
#pragma unroll
        for (u32 i = 0; i < EACH; i += 4) {
            Pack<float, 4> x = *(const Pack<float, 4>*)(at + i);
#pragma unroll
            for (u32 k = 0; k < 4; k++) sum[i + k] = fmaf(weight, x.at[k], sum[i + k]);
        }
    }

    __device__ __forceinline__ void put(T* out, u32 heads, u32 rows, u32 width, const float (&sum)[EACH], float factor) const {
        u32 pair = row / rows;
        Head<T> head(out, pair, heads, rows, width);
        T* to = head.row(row - pair * rows) + col;
        Wide<T> all;
#pragma unroll
        for (u32 k = 0; k < EACH; k++) all.at[k] = narrow<T>(sum[k] * factor);
        if (head.wide) {
            *(Wide<T>*)to = all;
            return;
        }
#pragma unroll
        for (u32 k = 0; k < EACH; k++) {
            if (col + k < width) to[k] = all.at[k];
        }
    }
};

// Rows of a tile, columns of it, columns of a step of `dots`, and from one row to the next of what it takes and of weights: all
// without bank conflicts.
constexpr u32 TILE = 64;
constexpr u32 DEPTH = 32;
constexpr u32 DEPTH_STRIDE = DEPTH + 4;
constexpr u32 WEIGHTS_STRIDE = TILE + 16;
// Floats of a step's operands, and of shared memory: two steps and the weights.
constexpr u32 STAGE = 2 * TILE * DEPTH_STRIDE;
constexpr u32 SHARED = 2 * STAGE + TILE * WEIGHTS_STRIDE;

// Copies columns `col`.. of rows `first`.. to ROWS rows of COLS numbers, STRIDE apart; zeros from row `end` and behind a row's last number.
template <u32 ROWS, u32 COLS, u32 STRIDE>
__device__ __forceinline__ void copy_rows(float* to, const Head<const float>& x, u32 first, u32 end, u32 col) {
    static_assert(ROWS * COLS / 4 % THREADS == 0);
    const float* from = x.row(first) + col;
    u32 place = shared_address(to), width = col < x.width ? x.width - col : 0;
    if (x.wide) {
#pragma unroll
        for (u32 k = 0; k < ROWS * COLS / 4 / THREADS; k++) {
            u32 i = k * THREADS + threadIdx.x, row = i / (COLS / 4), c = i % (COLS / 4) * 4;
            bool has = first + row < end && c < width;
            copy_16(place + (row * STRIDE + c) * 4, has ? from + (row * x.stride + c) : x.data, has);
        }
        return;
    }
#pragma unroll 1
    for (u32 i = threadIdx.x; i < ROWS * COLS; i += THREADS) {
        u32 row = i / COLS, c = i % COLS;
        bool has = first + row < end && c < width;
        copy_4(place + (row * STRIDE + c) * 4, has ? from + (row * x.stride + c) : x.data, has);
    }
}

// s += A · Bᵀ of `depth` columns, rounded up to a multiple of 4.
__device__ __forceinline__ void dots(float (&s)[8][4], const float* a, const float* b, u32 depth) {
    u32 rows = shared_address(a + threadIdx.x / 16 * DEPTH_STRIDE), cols = shared_address(b + threadIdx.x % 16 * DEPTH_STRIDE);
#pragma unroll 1
    for (u32 k = 0; k < depth; k += 4, rows += 16, cols += 16) {
        Pack<float, 4> y[4];
#pragma unroll
        for (u32 j = 0; j < 4; j++) y[j] = read_floats<4>(cols + 64 * j * DEPTH_STRIDE);
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            Pack<float, 4> x = read_floats<4>(rows + 32 * i * DEPTH_STRIDE);
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
#pragma unroll
                for (u32 r = 0; r < 4; r++) s[i][j] += x.at[r] * y[j].at[r];
            }
        }
    }
}

// Columns of sums that a thread has of each row: N of them, W beside each other: tx · W + 16 · W · j + w is number j · W + w.
template <int N>
constexpr int GROUP = N % 4 == 0 ? 4 : N % 2 == 0 ? 2 : 1;

// o += P · V of `count` rows of V [count, 16 · N], rounded up to a multiple of 4. P are weights from some column on.
template <int N>
__device__ __forceinline__ void sums(float (&o)[8][N], const float* weights, const float* v, u32 count) {
    constexpr int W = GROUP<N>;
    u32 rows = shared_address(weights + threadIdx.x / 16 * WEIGHTS_STRIDE), values = shared_address(v + threadIdx.x % 16 * W);
#pragma unroll 1
    for (u32 k = 0; k < count; k += 4, rows += 16, values += 256 * N) {
        Pack<float, 4> p[8];
#pragma unroll
        for (int i = 0; i < 8; i++) p[i] = read_floats<4>(rows + 32 * i * WEIGHTS_STRIDE);
#pragma unroll
        for (int r = 0; r < 4; r++) {
#pragma unroll
            for (int j = 0; j < N / W; j++) {
                Pack<float, W> x = read_floats<W>(values + r * 64 * N + 64 * W * j);
#pragma unroll
                for (int i = 0; i < 8; i++) {
#pragma unroll
                    for (int w = 0; w < W; w++) o[i][j * W + w] += p[i].at[r] * x.at[w];
                }
            }
        }
    }
}

// Rows of a step of `sums`: as many as there is room for.
template <int N>
constexpr u32 SUMMED = 64 * 16 * N <= STAGE ? 64 : 32 * 16 * N <= STAGE ? 32 : 16;

__device__ __forceinline__ void put_weights(float* weights, const float (&p)[8][4]) {
    float* at = weights + threadIdx.x / 16 * WEIGHTS_STRIDE + threadIdx.x % 16;
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) at[8 * i * WEIGHTS_STRIDE + 16 * j] = p[i][j];
    }
}

// Sums, those of each row times its factor, to columns `col`.. of rows `first`.. of `to`, before row `end`.
template <int N>
__device__ __forceinline__ void put_rows(const Head<float>& to, u32 first, u32 end, u32 col, const float (&o)[8][N],
                                         const float (&factor)[8]) {
    constexpr int W = GROUP<N>;
    u32 row = first + threadIdx.x / 16, c = col + threadIdx.x % 16 * W;
    float* at = to.row(row) + c;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (row + 8 * i < end) {
#pragma unroll
            for (int j = 0; j < N / W; j++) {
                Pack<float, W> out;
#pragma unroll
                for (int w = 0; w < W; w++) out.at[w] = o[i][j * W + w] * factor[i];
                u32 left = to.width - min(to.width, c + 16 * W * j);
                float* there = at + 16 * W * j;
                if (W > 1 && to.wide) {
                    if (left > 0) write_floats(there, out);
                } else {
#pragma unroll
                    for (u32 w = 0; w < W; w++) {
                        if (w < left) there[w] = out.at[w];
                    }
                }
            }
        }
        at += 8 * to.stride;
    }
}

// Which step comes: number `phase` of the `phases` steps of a tile.
struct Step {
    u32 tile, phase;
    __device__ __forceinline__ void next(u32 phases) {
        if (++phase == phases) {
            phase = 0;
            tile++;
        }
    }
};

// Runs all steps of all tiles, `load` of each while the one before it runs.
template <class Load, class Run>
__device__ __forceinline__ void pipeline(float* shared, u32 tiles, u32 phases, Load load, Run run) {
    Step ahead = {0, 0}, now = {0, 0};
    u32 stage = 0;
    bool loaded = false;
#pragma unroll 1
    while (now.tile < tiles) {
        wait_copies<0>();
        __syncthreads();
        if (ahead.tile < tiles) load(ahead, shared + stage);
        commit_copies();
        ahead.next(phases);
        stage ^= STAGE;
        if (loaded) {
            run(now, shared + stage);
            now.next(phases);
        }
        loaded = true;
    }
}
