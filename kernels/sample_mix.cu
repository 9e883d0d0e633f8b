// y = a · x, or with `two` a · x + b · z; a and b [B], the others [B, ..]
// Floor: x and z once, y once.
#include "lib/lines.cuh"

FLAT_KERNEL sample_mix_f32(
    const f32* a, const f32* x, const f32* b, const f32* z, f32* y, u32 n, u32 wide_lines, DIVISOR(sample), u32 two) {
    bool wide = wide_lines && is_aligned(x) && is_aligned(z) && is_aligned(y);
    by_pack<f32>(n, wide, [&](u32 i) {
        u32 sample = quotient(i, AS_DIVISOR(sample));
        Wide<f32> in = load_wide(x + i, wide), other;
        if (two) other = load_wide(z + i, wide);
        Floats<f32> sum(0.0f);
        sum.add(a[sample], in);
        if (two) sum.add(b[sample], other);
        store_wide(y + i, sum.times(1.0f), wide);
    });
}
