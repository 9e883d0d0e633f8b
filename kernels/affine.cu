// y = scale · x + offset
#include "lib/flat.cuh"

#define ENTRY(T)                                                                \
    FLAT_KERNEL affine_##T(const T* x, T* y, u32 n, f32 scale, f32 offset) {    \
        flat(n, [=](float v) { return scale * v + offset; }, y, x);             \
    }
FOR_TYPES(ENTRY)
