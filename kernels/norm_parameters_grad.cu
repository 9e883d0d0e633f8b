// Gradients of a normalisation's parameters from the sums over each sample's rows of e and of e · n, where e is the gradient of
// n · gamma · (1 + scale) + ..: sums [samples, 2, C] -> dgamma, dbeta [C] if `affine`, dscale, dshift [samples, C] if `modulate`.
// Floor: the sums, small beside x. A block has 32 channels, its eight warps share the samples.
#include "lib/types.cuh"

constexpr u32 WARPS = 8;

extern "C" __global__ void __launch_bounds__(32 * WARPS)
norm_parameters_grad_f32(const f32* sums, const f32* gamma, const f32* beta, const f32* scale, f32* dgamma, f32* dbeta,
                         f32* dscale, f32* dshift, u32 samples, u32 channels, u32 affine, u32 modulate) {
    __shared__ f32 parts[2][WARPS][32];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
    // Of gamma, of beta.
    float total = 0.0f, other = 0.0f;
    if (c < channels) {
        float g = affine ? gamma[c] : 1.0f, b = affine ? beta[c] : 0.0f;
#pragma unroll 4
        for (u32 k = warp; k < samples; k += WARPS) {
            u64 at = u64(k) * channels + c, first = 2 * u64(k) * channels + c;
            float e = sums[first], en = sums[first + channels], factor = 1.0f;
            if (modulate) {
                factor += scale[at];
                dscale[at] = fmaf(en, g, e * b);
                dshift[at] = e;
            }
            total = fmaf(en, factor, total);
            other = fmaf(e, factor, other);
        }
    }
    parts[0][warp][lane] = total;
    parts[1][warp][lane] = other;
    __syncthreads();
    if (!affine || warp > 1 || c >= channels) return;
    float sum = 0.0f;
#pragma unroll
    for (u32 k = 0; k < WARPS; k++) sum += parts[warp][k][lane];
    (warp == 0 ? dgamma : dbeta)[c] = sum;
}
