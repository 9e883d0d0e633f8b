// With g = dy · gamma · (1 + scale) over each row of x [samples, rows, C]: dx = rstd · (g - mean(g) - n · mean(g · n)). And the sums over
// rows, of every stretch of them, of dy and dy · n: sums [samples, stretches, 2, C], from which norm_parameters_grad.cu makes the rest.
// Floor: x and dy read once, dx written once.
#include "lib/row_grad.cuh"

#define ENTRY(NUMBERS, T)                                                                                                       \
    ROW_GRAD_KERNEL(NUMBERS) layer_norm_grad_##NUMBERS##_##T(const T* x, const T* gamma, const T* scale, const f32* stats, const T* dy, T* dx,  \
                                    f32* sums, ROW_GRAD, u32 affine, u32 modulate, u32 summed) {                       \
        u32 sample = blockIdx.x / count, first = sample * rows + blockIdx.x % count * per;                             \
        u32 end = min(first + per, (sample + 1) * rows);                                                               \
        RowGrad<T, 2, NUMBERS>{x, gamma, scale + u64(sample) * channels, dy, dx, stats, sums + 2 * u64(blockIdx.x) * channels,  \
                      channels, first, end, affine != 0, modulate != 0, summed != 0}.run(lanes);                       \
    }
#define ROWS(T) FOR_ROW_GRADS(ENTRY, T)
FOR_TYPES(ROWS)
