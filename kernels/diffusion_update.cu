// y = clamp(Σ c[k] · x_k, -clip, clip), one to six terms. What the coefficient 0 goes with is not read.
// Floor: every x with a coefficient once, y once. A thread has 16 bytes of each; all its loads are under way before the first is used, 32 KB a
// term on a multiprocessor. y may be one of the x.
#include "lib/flat.cuh"

constexpr u32 TERMS = 6;

FLAT_KERNEL diffusion_update_f32(
    const f32* c, const f32* x0, const f32* x1, const f32* x2, const f32* x3, const f32* x4, const f32* x5, f32* y, u32 n, u32 terms,
    f32 clip) {
    const f32* x[TERMS] = {x0, x1, x2, x3, x4, x5};
    float factor[TERMS];
    bool aligned = is_aligned(y);
#pragma unroll
    for (u32 k = 0; k < TERMS; k++) {
        factor[k] = k < terms ? c[k] : 0.0f;
        aligned = aligned && is_aligned(x[k]);
    }
    by_piece<f32>(u64(blockIdx.x) * FLAT_THREADS * WIDE<f32>, n, aligned, [&](Piece<f32> at) {
        Wide<f32> in[TERMS], sum;
#pragma unroll
        for (u32 k = 0; k < TERMS; k++)
            if (factor[k] != 0.0f) in[k] = at.load(x[k]);
#pragma unroll
        for (int j = 0; j < WIDE<f32>; j++) sum.at[j] = 0.0f;
#pragma unroll
        for (u32 k = 0; k < TERMS; k++) {
            if (factor[k] == 0.0f) continue;
#pragma unroll
            for (int j = 0; j < WIDE<f32>; j++) sum.at[j] = fmaf(factor[k], in[k].at[j], sum.at[j]);
        }
#pragma unroll
        for (int j = 0; j < WIDE<f32>; j++) {
            // NaN passes, which `fminf` would hide.
            float v = sum.at[j];
            v = v > clip ? clip : v;
            sum.at[j] = v < -clip ? -clip : v;
        }
        at.store(y, sum);
    });
}
