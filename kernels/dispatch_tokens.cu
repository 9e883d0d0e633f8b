// y[p] = x[order[p] / chosen], or times weights[order[p]]: rows of `width`. A number out of range gives NaN.
// Floor: y written once, x read once: its copies are neighbours in no order, but fit the L2.
#include "lib/lines.cuh"

FLAT_KERNEL dispatch_tokens_f32(const f32* x, const i32* order, const f32* weights, f32* y, u32 n, u32 is_wide,
                                DIVISOR(width), u32 pairs, DIVISOR(chosen), u32 weighted) {
    Divisor width = AS_DIVISOR(width), chosen = AS_DIVISOR(chosen);
    bool wide = is_wide && is_aligned(x) && is_aligned(y);
    by_pack<f32>(n, wide, [=](u32 i) {
        Divided at = divide(i, width);
        u32 pair = u32(order[at.quotient]), token = 0;
        float weight = __uint_as_float(0x7fc00000);
        if (pair < pairs) {
            weight = weighted ? weights[pair] : 1.0f;
            token = quotient(pair, chosen);
        }
        Floats<f32> v(load_wide(x + u64(token) * width.size + at.rest, wide));
        store_wide(y + i, v.times(weight), wide);
    });
}
