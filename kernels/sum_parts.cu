// y = epilogue(sum of parts)   parts [count, m, n], sums over parts of k that a matrix product's launch left -> y [m, n]
//
// Floor: the bytes of the parts and of y; the parts were just written and lie in the L2 cache. A thread adds up four columns, part by part in
// order, four loads in flight.
#include "lib/epilogue.cuh"

template <class T>
__device__ __forceinline__ void sum_parts(const f32* parts, u32 count, const Epilogue<T>& epilogue) {
    u32 m = epilogue.m, n = epilogue.n, quads = (n + 3) / 4;
    u32 id = blockIdx.x * 256 + threadIdx.x, row = id / quads, col = 4 * (id - row * quads);
    if (row >= m) return;
    const f32* from = parts + u64(row) * n + col;
    float sum[4] = {};
#pragma unroll 4
    for (u32 part = 0; part < count; part++) {
        n % 4 == 0 ? add_quad<true>(sum, from, n - col) : add_quad<false>(sum, from, n - col);
        from += u64(m) * n;
    }
    finish_quad(row, col, sum, epilogue);
}

#define ENTRY(T)                                                                                                                               \
    extern "C" __global__ void __launch_bounds__(256) sum_parts_##T(const f32* parts, const T* bias, const T* sample, const T* residual, T* y, \
                                                                    u32 m, u32 n, u32 per_sample, u32 count, EPILOGUE_SCALARS) {               \
        Epilogue<T> e = EPILOGUE(T);                                                                                                           \
        sum_parts(parts, count, e);                                                                                                            \
    }
FOR_TYPES(ENTRY)
