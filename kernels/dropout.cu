// y = x / (1 - p) where u ≥ p, zero elsewhere; u as random.cu makes it
// Floor: x once, y once; about 100 integer instructions for four numbers.
#include "lib/philox.cuh"

FLAT_KERNEL dropout_f32(
    const f32* x, const u32* seeds, const f32* draw, f32* y, u32 n, DIVISOR(sample), u32 stream, f32 p, f32 scale) {
    Divisor sample = AS_DIVISOR(sample);
    auto make = [&](u32 number, u32 block) {
        uint4 w = random_words(seeds, draw, stream, number, block);
        Pack<f32, 4> out;
        out.at[0] = uniform(w.x), out.at[1] = uniform(w.y), out.at[2] = uniform(w.z), out.at[3] = uniform(w.w);
        return out;
    };
    if (sample.size % 4 == 0 && is_aligned(x) && is_aligned(y)) {
        u64 start = flat_start(4);
        if (start >= n) return;
        Pack<f32, 4> v = *(const Pack<f32, 4>*)(x + start);
        Divided at = divide(u32(start), sample);
        Pack<f32, 4> u = make(at.quotient, at.rest / 4);
#pragma unroll
        for (int k = 0; k < 4; k++) v.at[k] = u.at[k] >= p ? v.at[k] * scale : 0.0f;
        *(Pack<f32, 4>*)(y + start) = v;
        return;
    }
    by_four(n, sample, make, [&](u32 i, float u) { y[i] = u >= p ? x[i] * scale : 0.0f; });
}
