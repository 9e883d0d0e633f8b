// y = 1 / x
#include "lib/flat.cuh"

FLAT_KERNEL reciprocal_f32(const f32* x, f32* y, u32 n) {
    flat(n, [](float v) { return 1.0f / v; }, y, x);
}
