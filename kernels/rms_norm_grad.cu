// With g = dy · gamma, n = x · rstd over each row of x [rows, C]: dx = rstd · (g - n · mean(g · n)). And the sums over rows, of every
// stretch of them, of dy · n: sums [stretches, C].
// Floor: x and dy read once, dx written once.
#include "lib/row_grad.cuh"

#define ENTRY(NUMBERS, T)                                                                                                       \
    ROW_GRAD_KERNEL(NUMBERS) rms_norm_grad_##NUMBERS##_##T(const T* x, const T* gamma, const f32* rstd, const T* dy, T* dx, f32* sums,          \
                                  ROW_GRAD, u32 affine) {                                                              \
        u32 first = blockIdx.x * per, end = min(first + per, rows);                                                    \
        RowGrad<T, 1, NUMBERS>{x, gamma, gamma, dy, dx, rstd, sums + u64(blockIdx.x) * channels, channels, first, end,          \
                      affine != 0, false, affine != 0}.run(lanes);                                                     \
    }
#define ROWS(T) FOR_ROW_GRADS(ENTRY, T)
FOR_TYPES(ROWS)
