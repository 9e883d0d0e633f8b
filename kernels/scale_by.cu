// y = factor[0] · x
#include "lib/flat.cuh"

FLAT_KERNEL scale_by_f32(const f32* x, const f32* factor, f32* y, u32 n) {
    float by = *factor;
    flat(n, [=](float v) { return by * v; }, y, x);
}
