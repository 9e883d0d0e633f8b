// dx of y = a · gelu(b): dy · gelu(b) and dy · a · gelu'(b)   x, dx [.., 2·width], dy [.., width]
// Floor: x and dy once, dx once.
#include "lib/activation.cuh"
#include "lib/lines.cuh"

FLAT_KERNEL geglu_grad_f32(const f32* x, const f32* dy, f32* dx, u32 n, u32 wide_lines, DIVISOR(width)) {
    Divisor width = AS_DIVISOR(width);
    bool wide = wide_lines && is_aligned(x) && is_aligned(dy) && is_aligned(dx);
    by_pack<f32>(n, wide, [&](u32 i) {
        u64 at = i + u64(quotient(i, width)) * width.size;
        Wide<f32> a = load_wide(x + at, wide), b = load_wide(x + at + width.size, wide), d = load_wide(dy + i, wide);
        Wide<f32> da, db;
#pragma unroll
        for (int k = 0; k < WIDE<f32>; k++) {
            da.at[k] = d.at[k] * act(GELU, b.at[k]);
            db.at[k] = d.at[k] * a.at[k] * act_derivative(GELU, b.at[k]);
        }
        store_wide(dx + at, da, wide);
        store_wide(dx + at + width.size, db, wide);
    });
}
