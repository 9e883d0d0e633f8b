// y[t] = the sum of x[places[t, j]] over j, or of weights[t, j] times that, in order: rows of `width`. A number out of range gives NaN.
// Floor: x read once, y written once.
#include "lib/lines.cuh"

FLAT_KERNEL combine_tokens_f32(const f32* x, const i32* places, const f32* weights, f32* y, u32 n, u32 is_wide,
                               DIVISOR(width), u32 pairs, u32 chosen, u32 weighted) {
    Divisor width = AS_DIVISOR(width);
    bool wide = is_wide && is_aligned(x) && is_aligned(y);
    by_pack<f32>(n, wide, [=](u32 i) {
        Divided at = divide(i, width);
        Floats<f32> sum(0.0f);
#pragma unroll 2
        for (u32 j = 0; j < chosen; j++) {
            u32 pair = at.quotient * chosen + j, place = u32(places[pair]);
            float weight = weighted ? weights[pair] : 1.0f;
            if (place >= pairs) place = 0, weight = __uint_as_float(0x7fc00000);
            sum.add(weight, load_wide(x + u64(place) * width.size + at.rest, wide));
        }
        store_wide(y + i, sum.times(1.0f), wide);
    });
}
