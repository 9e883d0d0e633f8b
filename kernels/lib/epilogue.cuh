// What a matrix product does before it stores: y = (act(v + bias + sample_bias) + residual) * scale; `ops::Epilogue`.
#pragma once
#include "activation.cuh"

// Four neighbouring numbers of a row, of which `count` exist (the others are 0); in one access if `wide`.
template <class T>
__device__ __forceinline__ void load_quad(float (&out)[4], const T* from, u32 count, bool wide) {
    if (wide) {
        Pack<T, 4> pack = *(const Pack<T, 4>*)from;
#pragma unroll
        for (int i = 0; i < 4; i++) out[i] = widen(pack.at[i]);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) out[i] = i < count ? widen(from[i]) : 0.0f;
}

template <class T>
__device__ __forceinline__ void store_quad(T* to, const float (&v)[4], u32 count, bool wide) {
    Pack<T, 4> pack;
#pragma unroll
    for (int i = 0; i < 4; i++) pack.at[i] = narrow<T>(v[i]);
    if (wide) {
        *(Pack<T, 4>*)to = pack;
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (i < count) to[i] = pack.at[i];
}

// A matrix [m, n] in rows, finished quad by quad.
template <class T>
struct Epilogue {
    const T *bias, *sample_bias, *residual;
    T* y;
    u32 m, n, per_sample;
    bool has_bias, has_sample_bias, has_residual;
    u32 activation;
    float scale;
    // All that is read and written may be taken four numbers at once.
    bool wide;

    // Operands that are absent are not read.
    __device__ __forceinline__ Epilogue(const T* bias, const T* sample_bias, const T* residual, T* y, u32 m, u32 n, u32 per_sample,
                                        u32 has_bias, u32 has_sample_bias, u32 has_residual, u32 activation, float scale)
        : bias(bias), sample_bias(sample_bias), residual(residual), y(y), m(m), n(n), per_sample(per_sample), has_bias(has_bias),
          has_sample_bias(has_sample_bias), has_residual(has_residual), activation(activation), scale(scale) {
        constexpr u32 QUAD = 4 * sizeof(T);
        wide = n % 4 == 0 && is_aligned(y, QUAD) && (!has_bias || is_aligned(bias, QUAD)) &&
               (!has_sample_bias || is_aligned(sample_bias, QUAD)) && (!has_residual || is_aligned(residual, QUAD));
    }

    // Columns col..col + 4 of a row; what is outside of the matrix is left out.
    __device__ __forceinline__ void store(u32 row, u32 col, float (&v)[4]) const {
        if (row >= m || col >= n) return;
        u32 count = n - col;
        float term[4];
        if (has_bias) {
            load_quad(term, bias + col, count, wide);
#pragma unroll
            for (int i = 0; i < 4; i++) v[i] += term[i];
        }
        if (has_sample_bias) {
            load_quad(term, sample_bias + u64(row / per_sample) * n + col, count, wide);
#pragma unroll
            for (int i = 0; i < 4; i++) v[i] += term[i];
        }
        if (activation != IDENTITY) {
#pragma unroll
            for (int i = 0; i < 4; i++) v[i] = act(activation, v[i]);
        }
        u64 at = u64(row) * n + col;
        if (has_residual) {
            load_quad(term, residual + at, count, wide);
#pragma unroll
            for (int i = 0; i < 4; i++) v[i] += term[i];
        }
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] *= scale;
        store_quad(y + at, v, count, wide);
    }
};

// The same where a block has all of k. Where it has a part, its sums go to `parts` [parts, m, n], for `sum_parts` to add up and finish.
template <class T>
struct Finish {
    const Epilogue<T>& epilogue;
    f32* parts;

    __device__ __forceinline__ void store(u32 row, u32 col, float (&v)[4]) const {
        u32 m = epilogue.m, n = epilogue.n;
        if (gridDim.y == 1) {
            epilogue.store(row, col, v);
        } else if (row < m && col < n) {
            store_quad(parts + (u64(blockIdx.y) * m + row) * n + col, v, n - col, n % 4 == 0);
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

    __device__ __forceinline__ void store(u32 row, u32 col, float (&v)[4]) const {
        if (row >= m || col >= n) return;
        u64 at = u64(row) * n + col;
        if (gridDim.y == 1) {
            store_quad(y + at, v, n - col, n % 4 == 0 && is_aligned(y, 4 * sizeof(T)));
        } else {
            store_quad(parts + blockIdx.y * elements + at, v, n - col, n % 4 == 0);
        }
    }
};

// A weight [m, n] in panels [ceil(n / 16), rows, 16], of which this is `m` rows. Columns behind the last are zeros, as the sums are.
struct PanelStore {
    f32* y;
    u32 m, n, rows;

    __device__ __forceinline__ void store(u32 row, u32 col, float (&v)[4]) const {
        if (row < m && col < (n + 15) / 16 * 16) store_quad(y + (u64(col / 16) * rows + row) * 16 + col % 16, v, 4, true);
    }
};
