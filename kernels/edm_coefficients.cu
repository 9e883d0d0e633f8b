// sigma [n] → data² / v, sigma · data / √v, 1 / √v, ln(sigma) / 4, where v = sigma² + data²
#include "lib/flat.cuh"

FLAT_KERNEL edm_coefficients_f32(
    const f32* sigma, f32* skip, f32* out, f32* input, f32* noise, u32 n, f32 data) {
    u64 i = flat_start(1);
    if (i >= n) return;
    float level = sigma[i], root = sqrtf(level * level + data * data), share = data / root;
    skip[i] = share * share;
    out[i] = level * share;
    input[i] = 1.0f / root;
    noise[i] = logf(level) / 4.0f;
}
