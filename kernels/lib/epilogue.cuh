// What a matrix product does before it stores: y = (act(v + bias + sample bias) * gate + residual) * scale; `ops::Epilogue`. The sample bias and the gate have a
// row a sample; a product has one of them at most, here called `sample`.
#pragma once
#include "activation.cuh"

// Four neighbouring numbers as they lie in memory, of which `count` exist (the others are 0); in one access if `WIDE`.
template <bool WIDE, class T>
__device__ __forceinline__ Pack<T, 4> four(const T* from, u32 count) {
    if constexpr (WIDE) return *(const Pack<T, 4>*)from;
    Pack<T, 4> pack = Pack<T, 4>::zeros();
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (i < count) pack.at[i] = from[i];
    return pack;
}

template <bool WIDE, class T>
__device__ __forceinline__ void load_quad(float (&out)[4], const T* from, u32 count) {
    Pack<T, 4> pack = four<WIDE>(from, count);
#pragma unroll
    for (int i = 0; i < 4; i++) out[i] = widen(pack.at[i]);
}

template <class T>
__device__ __forceinline__ void add_pack(float (&v)[4], const Pack<T, 4>& pack) {
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] += widen(pack.at[i]);
}

template <bool WIDE, class T>
__device__ __forceinline__ void add_quad(float (&v)[4], const T* from, u32 count) {
    add_pack(v, four<WIDE>(from, count));
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
// the matrix. It adds what `operands` brought: ends may be one another's memory for all that the compiler knows, so that a load behind a store waits for
// it, and what is needed for several stores is brought before the first. If they `activate()`, `activated` was called before with the same four sums. `WIDE` if
// `wide()`: four columns are one access then.

// What an end without operands brings.
struct Nothing {};

// Of four columns of a row, as it lies in memory.
template <class T>
struct Added {
    Pack<T, 4> bias = Pack<T, 4>::zeros(), sample = bias, residual = bias;
};

// What becomes of the row of a sample.
enum : u32 { SAMPLE_BIAS = 1, SAMPLE_GATE = 2 };

// The scalars of an epilogue, and the end that they and the operands make. Rows of `sample` are `sample_stride` numbers apart, and what is wanted of them begins at
// `sample_first`.
#define EPILOGUE_SCALARS u32 has_bias, u32 sample_use, u32 has_residual, u32 sample_stride, u32 sample_first, u32 activation, f32 scale
#define EPILOGUE(T) \
    Epilogue<T>(bias, sample, residual, y, m, n, per_sample, has_bias, sample_use, has_residual, sample_stride, sample_first, activation, scale)

// A matrix [m, n] in rows with an epilogue.
template <class T>
struct Epilogue {
    using Operands = Added<T>;

    const T *bias, *sample, *residual;
    T* y;
    u32 m, n, per_sample, sample_use, sample_stride, sample_first;
    bool has_bias, has_residual, is_wide;
    u32 activation;
    float scale;

    // Operands that are absent are not read.
    __device__ __forceinline__ Epilogue(const T* bias, const T* sample, const T* residual, T* y, u32 m, u32 n, u32 per_sample, u32 has_bias,
                                        u32 sample_use, u32 has_residual, u32 sample_stride, u32 sample_first, u32 activation, float scale)
        : bias(bias), sample(sample), residual(residual), y(y), m(m), n(n), per_sample(per_sample), sample_use(sample_use),
          sample_stride(sample_stride), sample_first(sample_first), has_bias(has_bias), has_residual(has_residual), activation(activation), scale(scale) {
        constexpr u32 QUAD = 4 * sizeof(T);
        is_wide = n % 4 == 0 && is_aligned(y, QUAD) && (!has_bias || is_aligned(bias, QUAD)) &&
                  (!sample_use || (is_aligned(sample + sample_first, QUAD) && sample_stride % 4 == 0)) && (!has_residual || is_aligned(residual, QUAD));
    }

    __device__ __forceinline__ bool wide() const { return is_wide; }
    // True if eight columns of 16 bits may be one access, where all tensors begin at multiples of 16 bytes, and the activation is one that networks end many
    // products with, without a gate: `Epilogue::is_whole` of `ops/linear.rs`.
    __device__ __forceinline__ bool whole() const {
        return n % 8 == 0 && (!sample_use || (sample_stride | sample_first) % 4 == 0) && activation != GELU && activation != RELU && !(gates() && activates());
    }
    __device__ __forceinline__ bool activates() const { return activation != IDENTITY; }
    __device__ __forceinline__ bool gates() const { return sample_use == SAMPLE_GATE; }
    // Where the row of a row's sample begins.
    __device__ __forceinline__ const T* sample_of(u32 row) const { return sample + sample_first + u64(row / per_sample) * sample_stride; }
    __device__ __forceinline__ bool has(u32 row, u32 col) const { return row < m && col < n; }

    template <bool WIDE>
    __device__ __forceinline__ Operands biases(u32 row, u32 col) const {
        Operands o;
        if (has_bias) o.bias = four<WIDE>(bias + col, n - col);
        if (sample_use == SAMPLE_BIAS) o.sample = four<WIDE>(sample_of(row) + col, n - col);
        return o;
    }

    template <bool WIDE>
    __device__ __forceinline__ Operands operands(u32 row, u32 col) const {
        Operands o;
        if (!has(row, col)) return o;
        if (has_bias && !activates()) o.bias = four<WIDE>(bias + col, n - col);
        if (gates() || (sample_use && !activates())) o.sample = four<WIDE>(sample_of(row) + col, n - col);
        if (has_residual) o.residual = four<WIDE>(residual + u64(row) * n + col, n - col);
        return o;
    }

    __device__ __forceinline__ void activated(u32 row, u32 col, float (&v)[4]) const {
        if (has(row, col)) activated(wide() ? biases<true>(row, col) : biases<false>(row, col), v);
    }
    __device__ __forceinline__ void activated(const Operands& o, float (&v)[4]) const {
        add_pack(v, o.bias);
        add_pack(v, o.sample);
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = act(activation, v[i]);
    }

    template <bool WIDE>
    __device__ __forceinline__ void store(u32 row, u32 col, float (&v)[4], const Operands& o) const {
        if (!has(row, col)) return;
        add_pack(v, o.bias);
        if (gates()) {
#pragma unroll
            for (int i = 0; i < 4; i++) v[i] *= widen(o.sample.at[i]);
        } else {
            add_pack(v, o.sample);
        }
        add_pack(v, o.residual);
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] *= scale;
        store_quad<WIDE>(y + u64(row) * n + col, v, n - col);
    }
};

// The same where a block has all of k. Where it has a part, its sums go to `parts` [parts, m, n], for `sum_parts` to add up and finish.
template <class T>
struct Finish {
    using Operands = Added<T>;

    const Epilogue<T>& epilogue;
    f32* parts;

    __device__ __forceinline__ bool wide() const { return gridDim.y == 1 ? epilogue.wide() : epilogue.n % 4 == 0; }
    __device__ __forceinline__ bool activates() const { return gridDim.y == 1 && epilogue.activates(); }
    __device__ __forceinline__ void activated(u32 row, u32 col, float (&v)[4]) const { epilogue.activated(row, col, v); }

    template <bool WIDE>
    __device__ __forceinline__ Operands operands(u32 row, u32 col) const {
        return gridDim.y == 1 ? epilogue.template operands<WIDE>(row, col) : Operands();
    }

    template <bool WIDE>
    __device__ __forceinline__ void store(u32 row, u32 col, float (&v)[4], const Operands& o) const {
        u32 m = epilogue.m, n = epilogue.n;
        if (gridDim.y == 1) {
            epilogue.template store<WIDE>(row, col, v, o);
        } else if (epilogue.has(row, col)) {
            store_quad<WIDE>(parts + (u64(blockIdx.y) * m + row) * n + col, v, n - col);
        }
    }
};

// Ends that add nothing.
struct PlainEnd {
    using Operands = Nothing;

    __device__ __forceinline__ bool activates() const { return false; }
    __device__ __forceinline__ void activated(u32, u32, float (&)[4]) const {}

    template <bool WIDE>
    __device__ __forceinline__ Nothing operands(u32, u32) const {
        return {};
    }
};

// A matrix [m, n] in rows as it is; or, where a block has a part of k, its sums in `parts`, the next part `elements` behind.
template <class T>
struct RowStore : PlainEnd {
    T* y;
    f32* parts;
    u64 elements;
    u32 m, n;

    __device__ __forceinline__ RowStore(T* y, f32* parts, u64 elements, u32 m, u32 n) : y(y), parts(parts), elements(elements), m(m), n(n) {}

    __device__ __forceinline__ bool wide() const { return n % 4 == 0 && (gridDim.y > 1 || is_aligned(y, 4 * sizeof(T))); }

    template <bool WIDE>
    __device__ __forceinline__ void store(u32 row, u32 col, float (&v)[4], Nothing) const {
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
struct PanelStore : PlainEnd {
    f32* y;
    u32 m, n, rows;

    __device__ __forceinline__ PanelStore(f32* y, u32 m, u32 n, u32 rows) : y(y), m(m), n(n), rows(rows) {}

    __device__ __forceinline__ bool wide() const { return true; }

    template <bool WIDE>
    __device__ __forceinline__ void store(u32 row, u32 col, float (&v)[4], Nothing) const {
        if (row < m && col < (n + 15) / 16 * 16) store_quad<WIDE>(y + (u64(col / 16) * rows + row) * 16 + col % 16, v, 4);
    }
};

// A warp's sums, [ROWS, COLS] in shared memory, on their way to their end, the first of them to (row, col). Each lane has four columns of every STEPth
// row.
template <int ROWS, int COLS, int PITCH, class Out, bool WIDE = true>
struct Sending {
    static constexpr int QUADS = COLS / 4, STEP = 32 / QUADS, COUNT = ROWS / STEP;

    typename Out::Operands operands[COUNT];

    static __device__ __forceinline__ u32 first() { return threadIdx.x % 32 / QUADS; }
    static __device__ __forceinline__ u32 column() { return threadIdx.x % QUADS * 4; }

    // Begins to load what will be added.
    __device__ __forceinline__ void bring(u32 row, u32 col, const Out& out) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) operands[i] = out.template operands<WIDE>(row + first() + i * STEP, col + column());
    }

    // Activations, of which there is much code, are a pass of their own.
    __device__ __forceinline__ void send(f32* sums, u32 row, u32 col, const Out& out) const {
        f32* from = sums + first() * PITCH + column();
        row += first();
        col += column();
        if (out.activates()) {
#pragma unroll 1
            for (int i = 0; i < COUNT; i++) {
                Wide<f32> quad = *(const Wide<f32>*)(from + i * STEP * PITCH);
                out.activated(row + i * STEP, col, quad.at);
                *(Wide<f32>*)(from + i * STEP * PITCH) = quad;
            }
        }
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            Wide<f32> quad = *(const Wide<f32>*)(from + i * STEP * PITCH);
            out.template store<WIDE>(row + i * STEP, col, quad.at, operands[i]);
        }
    }
};

// Sends a warp's sums, [ROWS, COLS] in shared memory, to an end that stores one column at a time.
template <int ROWS, int COLS, int PITCH, class Out>
__device__ __forceinline__ void send_narrow(f32* sums, u32 row, u32 col, const Out& out) {
    constexpr int STEP = 128 / COLS;
#pragma unroll 1
    for (int r = 0; r < ROWS; r += STEP) {
        Sending<STEP, COLS, PITCH, Out, false> sending;
        sending.bring(row + r, col, out);
        sending.send(sums + r * PITCH, row + r, col, out);
    }
}

// The same to any end: two stores of a lane at a time or four, by the registers that it takes, if they are wide.
template <int ROWS, int COLS, int PITCH, class Out>
__device__ __forceinline__ void send_sums(f32* sums, u32 row, u32 col, const Out& out) {
    constexpr int STEP = 128 / COLS, MOST = (sizeof(typename Out::Operands) > 24 ? 2 : 4) * STEP, AT_ONCE = ROWS < MOST ? ROWS : MOST;
    if (!out.wide()) return send_narrow<ROWS, COLS, PITCH>(sums, row, col, out);
#pragma unroll 1
    for (int r = 0; r < ROWS; r += AT_ONCE) {
        Sending<AT_ONCE, COLS, PITCH, Out> sending;
        sending.bring(row + r, col, out);
        sending.send(sums + r * PITCH, row + r, col, out);
    }
}

// Finishes four sums and stores them.
template <class Out>
__device__ __forceinline__ void finish_quad(u32 row, u32 col, float (&v)[4], const Out& out) {
    if (out.activates()) out.activated(row, col, v);
    if (out.wide()) {
        out.template store<true>(row, col, v, out.template operands<true>(row, col));
    } else {
        out.template store<false>(row, col, v, out.template operands<false>(row, col));
    }
}
