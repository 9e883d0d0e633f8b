// y = factor[0] · x   factor f32
#include "lib/flat.cuh"

#define ENTRY(T)                                                                   \
    FLAT_KERNEL scale_by_##T(const T* x, const f32* factor, T* y, u32 n) {         \
        float by = *factor;                                                        \
        flat(n, [=](float v) { return by * v; }, y, x);                            \
    }
FOR_TYPES(ENTRY)
