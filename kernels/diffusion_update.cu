// y = clamp(Σ c[k] · x_k, -clip, clip), one to six terms. What the coefficient 0 goes with is not read.
// Floor: every x with a coefficient once, y once. All loads of a thread are under way before the first is used; y may be one of the x.
#include "lib/lines.cuh"

constexpr u32 TERMS = 6;

FLAT_KERNEL diffusion_update_f32(
    const f32* c, const f32* x0, const f32* x1, const f32* x2, const f32* x3, const f32* x4, const f32* x5, f32* y, u32 n, u32 terms,
    f32 clip) {
    const f32* x[TERMS] = {x0, x1, x2, x3, x4, x5};
    float factor[TERMS];
    bool wide = n % WIDE<f32> == 0 && is_aligned(y);
#pragma unroll
    for (u32 k = 0; k < TERMS; k++) {
        factor[k] = k < terms ? c[k] : 0.0f;
        wide = wide && is_aligned(x[k]);
    }
    by_pack<f32>(n, wide, [&](u32 i) {
        Wide<f32> in[TERMS];
#pragma unroll
        for (u32 k = 0; k < TERMS; k++)
            if (factor[k] != 0.0f) in[k] = load_wide(x[k] + i, wide);
        Floats<f32> sum(0.0f);
#pragma unroll
        for (u32 k = 0; k < TERMS; k++)
            if (factor[k] != 0.0f) sum.add(factor[k], in[k]);
#pragma unroll
        for (int k = 0; k < WIDE<f32>; k++) {
            // NaN passes, which `fminf` would hide.
            float v = sum.at[k];
            v = v > clip ? clip : v;
            sum.at[k] = v < -clip ? -clip : v;
        }
        store_wide(y + i, sum.times(1.0f), wide);
    });
}
