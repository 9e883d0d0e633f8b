// One step over a region of parameters, see `ops::Optimizer`, with its averages, in one launch: g = scale · grad + l2 · p, the moments m and v of g,
// then p = keep · p - rate · m / (root · √v + floor), then average += (1 - decay) · (p - average).
// Floor: p, g, m, v and every average once, all but g once back. A thread has 16 bytes of each at a time, 16 times; the coefficients, which
// need f64, are made once a block.
#include "lib/lines.cuh"

constexpr u32 AVERAGES = 4, HYPER = 8, EACH = 16;
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

FLAT_KERNEL optimizer_f32(
    const f32* p, const f32* grads, const f32* m, const f32* v, const f32* a0, const f32* a1, const f32* a2, const f32* a3, const f32* hyper,
    const f32* norm, f32* p_out, f32* m_out, f32* v_out, f32* a0_out, f32* a1_out, f32* a2_out, f32* a3_out, u32 n, u32 kind, u32 averages) {
    __shared__ Coefficients shared;
    if (threadIdx.x == 0) shared = coefficients(hyper, *norm, kind, averages);
    __syncthreads();
    Coefficients c = shared;
    const f32* a[AVERAGES] = {a0, a1, a2, a3};
    f32* a_out[AVERAGES] = {a0_out, a1_out, a2_out, a3_out};
    bool wide = n % 4 == 0 && is_aligned(p) && is_aligned(grads) && is_aligned(m) && is_aligned(v) && is_aligned(p_out) &&
                is_aligned(m_out) && is_aligned(v_out);
#pragma unroll
    for (u32 k = 0; k < AVERAGES; k++) wide = wide && is_aligned(a[k]) && is_aligned(a_out[k]);
    u32 pack = wide ? 4 : 1;
    u64 first = u64(blockIdx.x) * FLAT_THREADS * 4 * EACH, end = min(u64(n), first + FLAT_THREADS * 4 * EACH);
#pragma unroll 1
    for (u64 i = first + threadIdx.x * pack; i < end; i += FLAT_THREADS * pack) {
        Wide<f32> x = load_wide(p + i, wide), g = load_wide(grads + i, wide), s = load_wide(m + i, wide), t = load_wide(v + i, wide);
        Wide<f32> mean[AVERAGES];
#pragma unroll
        for (u32 k = 0; k < AVERAGES; k++)
            if (k < averages) mean[k] = load_wide(a[k] + i, wide);
        if (c.update) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float d = g.at[j] * c.scale + c.l2 * x.at[j];
                s.at[j] = c.beta1 * s.at[j] + c.rest1 * d;
                t.at[j] = c.beta2 * t.at[j] + c.rest2 * d * d;
                x.at[j] = c.keep * x.at[j] - c.rate * s.at[j] / (sqrtf(t.at[j]) * c.root + c.floor);
#pragma unroll
                for (u32 k = 0; k < AVERAGES; k++)
                    if (k < averages) mean[k].at[j] += c.follow[k] * (x.at[j] - mean[k].at[j]);
            }
        }
        store_wide(p_out + i, x, wide);
        store_wide(m_out + i, s, wide);
        store_wide(v_out + i, t, wide);
#pragma unroll
        for (u32 k = 0; k < AVERAGES; k++)
            if (k < averages) store_wide(a_out[k] + i, mean[k], wide);
    }
}
