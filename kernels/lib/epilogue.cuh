// What a matrix product does before it stores: y = (act(v + bias + sample_bias) + residual) * scale; `ops::Epilogue`.
#pragma once
#include "activation.cuh"

// Four neighbouring numbers, of which `count` exist (the others are 0); in one access if `WIDE`.
template <bool WIDE, class T>
__device__ __forceinline__ void load_quad(float (&out)[4], const T* from, u32 count) {
    if constexpr (WIDE) {
        Pack<T, 4> pack = *(const Pack<T, 4>*)from;
#pragma unroll
        for (int i = 0; i < 4; i++) out[i] = widen(pack.at[i]);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) out[i] = i < count ? widen(from[i]) : 0.0f;
    }
}

template <bool WIDE, class T>
__device__ __forceinline__ void add_quad(float (&v)[4], const T* from, u32 count) {
    float term[4];
    load_quad<WIDE>(term, from, count);
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] += term[i];
}

template <bool WIDE, class T>
__device__ __forceinline__ void store_quad(T* to, const float (&v)[4], u32 count) {
    if constexpr (WIDE) {
        Pack<T, 4> pack;
#pragma unroll
        for (int i = 0; i < 4; i++) pack.at[i] = narrow<T>(v[i]);
        *(Pack<T, 4>*)to = pack;
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (i < count) to[i] = narrow<T>(v[i]);
    }
}

// What follows are ends of a product. Their `store` takes four sums of a row, those of the columns from `col` on, and leaves out what is outside of
// the matrix; `WIDE` if `wide()`. If they `activate()`, `activated` was called before with the same four.

// A matrix [m, n] in rows with an epilogue.
template <class T>
struct Epilogue {
    const T *bias, *sample_bias, *residual;
    T* y;
    u32 m, n, per_sample;
    bool has_bias, has_sample_bias, has_residual, is_wide;
    u32 activation;
    float scale;

    // Operands that are absent are not read.
    __device__ __forceinline__ Epilogue(const T* bias, const T* sample_bias, const T* residual, T* y, u32 m, u32 n, u32 per_sample,
                                        u32 has_bias, u32 has_sample_bias, u32 has_residual, u32 activation, float scale)
        : bias(bias), sample_bias(sample_bias), residual(residual), y(y), m(m), n(n), per_sample(per_sample), has_bias(has_bias),
          has_sample_bias(has_sample_bias), has_residual(has_residual), activation(activation), scale(scale) {
        constexpr u32 QUAD = 4 * sizeof(T);
        is_wide = n % 4 == 0 && is_aligned(y, QUAD) && (!has_bias || is_aligned(bias, QUAD)) &&
                  (!has_sample_bias || is_aligned(sample_bias, QUAD)) && (!has_residual || is_aligned(residual, QUAD));
    }

    __device__ __forceinline__ bool wide() const { return is_wide; }
    __device__ __forceinline__ bool activates() const { return activation != IDENTITY; }

    template <bool WIDE>
    __device__ __forceinline__ void add_biases(u32 row, u32 col, float (&v)[4]) const {
        if (has_bias) add_quad<WIDE>(v, bias + col, n - col);
        if (has_sample_bias) add_quad<WIDE>(v, sample_bias + u64(row / per_sample) * n + col, n - col);
    }

    __device__ __forceinline__ void activated(u32 row, u32 col, float (&v)[4]) const {
        if (row >= m || col >= n) return;
        add_biases<false>(row, col, v);
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = act(activation, v[i]);
    }

    template <bool WIDE>
    __device__ __forceinline__ void store(u32 row, u32 col, float (&v)[4]) const {
        if (row >= m || col >= n) return;
        u64 at = u64(row) * n + col;
        if (!activates()) add_biases<WIDE>(row, col, v);
        if (has_residual) add_quad<WIDE>(v, residual + at, n - col);
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] *= scale;
        store_quad<WIDE>(y + at, v, n - col);
    }
};

// The same where a block has all of k. Where it has a part, its sums go to `parts` [parts, m, n], for `sum_parts` to add up and finish.
template <class T>
struct Finish {
    const Epilogue<T>& epilogue;
    f32* parts;

    __device__ __forceinline__ bool wide() const { return gridDim.y == 1 ? epilogue.wide() : epilogue.n % 4 == 0; }
    __device__ __forceinline__ bool activates() const { return gridDim.y == 1 && epilogue.activates(); }
    __device__ __forceinline__ void activated(u32 row, u32 col, float (&v)[4]) const { epilogue.activated(row, col, v); }

    template <bool WIDE>
    __device__ __forceinline__ void store(u32 row, u32 col, float (&v)[4]) const {
        u32 m = epilogue.m, n = epilogue.n;
        if (gridDim.y == 1) {
            epilogue.template store<WIDE>(row, col, v);
        } else if (row < m && col < n) {
            store_quad<WIDE>(parts + (u64(blockIdx.y) * m + row) * n + col, v, n - col);
        }
    }
};

// A matrix [m, n] in rows as it is; or, where a block has a part of k, its sums in `parts`, the next part `elements` behind.
template <class T>
struct RowStore {
    T* y;
    f32* parts;
    u64 elements;
    u32 m, n;

    __device__ __forceinline__ bool wide() const { return n % 4 == 0 && (gridDim.y > 1 || is_aligned(y, 4 * sizeof(T))); }
    __device__ __forceinline__ bool activates() const { return false; }
    __device__ __forceinline__ void activated(u32, u32, float (&)[4]) const {}

    template <bool WIDE>
    __device__ __forceinline__ void store(u32 row, u32 col, float (&v)[4]) const {
        if (row >= m || col >= n) return;
        u64 at = u64(row) * n + col;
        if (gridDim.y == 1) {
            store_quad<WIDE>(y + at, v, n - col);
        } else {
            store_quad<WIDE>(parts + blockIdx.y * elements + at, v, n - col);
        }
    }
};

// A weight [m, n] in panels [ceil(n / 16), rows, 16], of which this is `m` rows. Columns behind the last are zeros, as the sums are.
struct PanelStore {
    f32* y;
    u32 m, n, rows;

    __device__ __forceinline__ bool wide() const { return true; }
    __device__ __forceinline__ bool activates() const { return false; }
    __device__ __forceinline__ void activated(u32, u32, float (&)[4]) const {}

    template <bool WIDE>
    __device__ __forceinline__ void store(u32 row, u32 col, float (&v)[4]) const {
        if (row < m && col < (n + 15) / 16 * 16) store_quad<WIDE>(y + (u64(col / 16) * rows + row) * 16 + col % 16, v, 4);
    }
};

// Sends a warp's sums, [ROWS, COLS] in shared memory, to their end; the first is that of (row, col). Activations, of which there is much code, are a
// pass of their own; behind it four stores are under way at a time.
template <int ROWS, int COLS, int PITCH, class Out>
__device__ __forceinline__ void send_sums(f32* sums, u32 row, u32 col, const Out& out) {
    constexpr int QUADS = COLS / 4, STEP = 32 / QUADS;
    u32 first = threadIdx.x % 32 / QUADS, c = threadIdx.x % QUADS * 4;
    f32* from = sums + first * PITCH + c;
    row += first;
    col += c;
    if (out.activates()) {
#pragma unroll 1
        for (int r = 0; r < ROWS; r += STEP) {
            Wide<f32> quad = *(const Wide<f32>*)(from + r * PITCH);
            out.activated(row + r, col, quad.at);
            *(Wide<f32>*)(from + r * PITCH) = quad;
        }
    }
    if (out.wide()) {
#pragma unroll 4
        for (int r = 0; r < ROWS; r += STEP) {
            Wide<f32> quad = *(const Wide<f32>*)(from + r * PITCH);
            out.template store<true>(row + r, col, quad.at);
        }
    } else {
#pragma unroll 1
        for (int r = 0; r < ROWS; r += STEP) {
            Wide<f32> quad = *(const Wide<f32>*)(from + r * PITCH);
            out.template store<false>(row + r, col, quad.at);
        }
    }
}
