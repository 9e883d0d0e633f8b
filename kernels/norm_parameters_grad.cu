// Gradients of a normalisation's parameters from the sums over each sample's rows of e and of e · n, where e is the gradient of
// n · gamma · (1 + scale) + ..: sums [samples, 2, C] -> dgamma, dbeta [C] if `affine`, dscale, dshift [samples, C] if `modulate`. The latter
// are of the type of what they are gradients of; all other results are f32.
// Floor: the sums, small beside x. A block has 32 channels, its 32 warps share the samples: there are few blocks, and each
// waits for memory as often as a warp has four of them.
#include "lib/types.cuh"

constexpr u32 WARPS = 32;

template <class T>
__device__ __forceinline__ void gradients(const f32* sums, const T* gamma, const T* beta, const T* scale, f32* dgamma, f32* dbeta, T* dscale,
                                          T* dshift, u32 samples, u32 channels, bool affine, bool modulate) {
    __shared__ f32 parts[2][WARPS][32];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
    // Of gamma, of beta.
    float total = 0.0f, other = 0.0f;
    if (c < channels) {
        float g = affine ? widen(gamma[c]) : 1.0f, b = affine ? widen(beta[c]) : 0.0f;
#pragma unroll 4
        for (u32 k = warp; k < samples; k += WARPS) {
            u64 at = u64(k) * channels + c, first = 2 * u64(k) * channels + c;
            float e = sums[first], en = sums[first + channels], factor = 1.0f;
            if (modulate) {
                factor += widen(scale[at]);
                dscale[at] = narrow<T>(fmaf(en, g, e * b));
                dshift[at] = narrow<T>(e);
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

#define ENTRY(T)                                                                                                               \
    extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                                   \
    norm_parameters_grad_##T(const f32* sums, const T* gamma, const T* beta, const T* scale, f32* dgamma, f32* dbeta,          \
                             T* dscale, T* dshift, u32 samples, u32 channels, u32 affine, u32 modulate) {                      \
        gradients(sums, gamma, beta, scale, dgamma, dbeta, dscale, dshift, samples, channels, affine != 0, modulate != 0);     \
    }
FOR_TYPES(ENTRY)
