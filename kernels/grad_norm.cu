// y = √(Σ x²): `grad_norm_squares` makes the sum of every stretch, a block each, `grad_norm` adds them, in one block. A thread adds 16 packs in f32,
// all else is f64. Floor: x once; 64 bytes a thread under way, 128 KB on a multiprocessor.
#include "lib/lines.cuh"

// A pack of each thread, this many times, is added in f32; stretches are a multiple of it.
constexpr u32 PACKS = 16, BATCH = FLAT_THREADS * WIDE<f32> * PACKS;

__device__ __forceinline__ double sum_of_block(double v) {
    return Team<8>().join(v, [](double a, double b) { return a + b; });
}

FLAT_KERNEL grad_norm_squares_f32(const f32* x, double* parts, u32 n, u32 each) {
    u64 start = u64(blockIdx.x) * each, end = min(u64(n), start + each);
    double total = 0.0;
#pragma unroll 1
    for (; start < end; start += BATCH) {
        float sum = 0.0f;
#pragma unroll 4
        for (u32 k = 0; k < PACKS; k++) {
            u64 i = start + (k * FLAT_THREADS + threadIdx.x) * WIDE<f32>;
            u32 count = i < end ? u32(min(end - i, u64(WIDE<f32>))) : 0;
            Wide<f32> v = Piece<f32>{i, count, count == WIDE<f32> && is_aligned(x)}.load(x);
            float a = v.at[0] * v.at[0] + v.at[1] * v.at[1], b = v.at[2] * v.at[2] + v.at[3] * v.at[3];
            sum += a + b;
        }
        total += sum;
    }
    total = sum_of_block(total);
    if (threadIdx.x == 0) parts[blockIdx.x] = total;
}

FLAT_KERNEL grad_norm_f32(const double* parts, f32* y, u32 count) {
    double sum = 0.0;
#pragma unroll 4
    for (u32 i = threadIdx.x; i < count; i += FLAT_THREADS) sum += parts[i];
    sum = sum_of_block(sum);
    if (threadIdx.x == 0) *y = float(sqrt(sum));
}
