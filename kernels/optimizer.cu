// One step over a region of parameters, see `ops::Optimizer`, with its averages, in one launch: g = scale · grad + l2 · p, the moments m and v of g,
// then p = keep · p - rate · m / (root · √v + floor), then average += (1 - decay) · (p - average).
// Floor: p, g, m, v and every average once, all but g once back: 28 bytes a parameter, 8 more for each average. As many blocks as run at
// once, four a multiprocessor, go over the region together, so that none is left over at the end; a thread has 16 bytes of each array under
// way, 64 KB on a multiprocessor. A block makes the coefficients, which need f64, while the L2 fetches the first of them.
#include "lib/flat.cuh"

constexpr u32 AVERAGES = 4, HYPER = 8;
enum Kind : u32 { ADAM_W, ADAM, RADAM };

struct Coefficients {
    float scale, l2, keep, beta1, beta2, rest1, rest2, rate, root, floor, follow[AVERAGES];
    // If not, nothing changes.
    bool update;
};

// x^n, to a few roundings.
__device__ __forceinline__ double power(double x, u32 n) {
    double y = 1.0;
#pragma unroll 1
    for (; n > 0; n >>= 1, x *= x)
        if (n & 1) y *= x;
    return y;
}

// hyper: lr, beta1, beta2, eps, decay, step, gradient scale, largest norm, then a decay for each average
__device__ __forceinline__ Coefficients coefficients(const f32* hyper, float norm, u32 kind, u32 averages) {
    double lr = hyper[0], beta1 = hyper[1], beta2 = hyper[2], decay = hyper[4], scale = hyper[6], largest = hyper[7];
    u32 step = u32(hyper[5]);
    double power2 = power(beta2, step), c1 = 1.0 - power(beta1, step), c2 = 1.0 - power2;
    Coefficients c;
    c.update = (__float_as_uint(norm) & 0x7f800000u) != 0x7f800000u;
    if (largest > 0.0) scale *= fmin(largest / (fabs(scale) * norm + 1e-6), 1.0);
    double rate = lr / c1, root = 1.0 / sqrt(c2), floor = hyper[3];
    if (kind == RADAM) {
        double limit = 2.0 / (1.0 - beta2) - 1.0, length = limit - 2.0 * step * power2 / c2;
        if (length > 5.0) {
            rate *= sqrt((length - 4.0) * (length - 2.0) * limit / ((limit - 4.0) * (limit - 2.0) * length)) * sqrt(c2);
            root = 1.0;
        } else {
            root = 0.0, floor = 1.0;
        }
    }
    c.scale = float(scale);
    c.l2 = kind == ADAM_W ? 0.0f : float(decay);
    c.keep = kind == ADAM_W ? float(1.0 - lr * decay) : 1.0f;
    c.beta1 = float(beta1), c.beta2 = float(beta2), c.rest1 = float(1.0 - beta1), c.rest2 = float(1.0 - beta2);
    c.rate = float(rate), c.root = float(root), c.floor = float(floor);
#pragma unroll
    for (u32 k = 0; k < AVERAGES; k++) c.follow[k] = k < averages ? 1.0f - hyper[HYPER + k] : 0.0f;
    return c;
}

// Has the L2 fetch what is at p.
__device__ __forceinline__ void prefetch(const f32* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(p))); }

extern "C" __global__ void __launch_bounds__(FLAT_THREADS, 4) optimizer_f32(
    const f32* p, const f32* grads, const f32* m, const f32* v, const f32* a0, const f32* a1, const f32* a2, const f32* a3, const f32* hyper,
    const f32* norm, f32* p_out, f32* m_out, f32* v_out, f32* a0_out, f32* a1_out, f32* a2_out, f32* a3_out, u32 n, u32 kind, u32 averages) {
    __shared__ Coefficients c;
    const f32* a[AVERAGES] = {a0, a1, a2, a3};
    f32* a_out[AVERAGES] = {a0_out, a1_out, a2_out, a3_out};
    bool aligned = is_aligned(p) && is_aligned(grads) && is_aligned(m) && is_aligned(v) && is_aligned(p_out) && is_aligned(m_out) &&
                   is_aligned(v_out);
#pragma unroll
    for (u32 k = 0; k < AVERAGES; k++) aligned = aligned && is_aligned(a[k]) && is_aligned(a_out[k]);
    constexpr u64 EACH = FLAT_THREADS * WIDE<f32>;
    u64 first = blockIdx.x * EACH, own = first + threadIdx.x * WIDE<f32>;
    if (own < n) {
        // Under way while the coefficients are made.
        prefetch(p + own), prefetch(grads + own), prefetch(m + own), prefetch(v + own);
#pragma unroll
        for (u32 k = 0; k < AVERAGES; k++)
            if (k < averages) prefetch(a[k] + own);
    }
    if (threadIdx.x == 0) c = coefficients(hyper, *norm, kind, averages);
    __syncthreads();
#pragma unroll 1
    for (u64 start = first; start < n; start += gridDim.x * EACH) {
        by_piece<f32>(start, n, aligned, [&](Piece<f32> at) {
            Wide<f32> x = at.load(p), g = at.load(grads), s = at.load(m), t = at.load(v), mean[AVERAGES];
#pragma unroll
            for (u32 k = 0; k < AVERAGES; k++)
                if (k < averages) mean[k] = at.load(a[k]);
            if (c.update) {
#pragma unroll
                for (int j = 0; j < WIDE<f32>; j++) {
                    float d = g.at[j] * c.scale + c.l2 * x.at[j];
                    s.at[j] = c.beta1 * s.at[j] + c.rest1 * d;
                    t.at[j] = c.beta2 * t.at[j] + c.rest2 * d * d;
                    x.at[j] = c.keep * x.at[j] - c.rate * s.at[j] / (sqrtf(t.at[j]) * c.root + c.floor);
#pragma unroll
                    for (u32 k = 0; k < AVERAGES; k++)
                        if (k < averages) mean[k].at[j] += c.follow[k] * (x.at[j] - mean[k].at[j]);
                }
            }
            at.store(p_out, x);
            at.store(m_out, s);
            at.store(v_out, t);
#pragma unroll
            for (u32 k = 0; k < AVERAGES; k++)
                if (k < averages) at.store(a_out[k], mean[k]);
        });
    }
}
