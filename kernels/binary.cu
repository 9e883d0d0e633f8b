// y = (a + b) · scale, a - b or a · b
#include "lib/flat.cuh"

#define ENTRY(T)                                                                                     \
    FLAT_KERNEL add_##T(const T* a, const T* b, T* y, u32 n, f32 scale) {                            \
        flat(n, [=](float a, float b) { return (a + b) * scale; }, y, a, b);                         \
    }                                                                                                \
    FLAT_KERNEL sub_##T(const T* a, const T* b, T* y, u32 n) {                                       \
        flat(n, [](float a, float b) { return a - b; }, y, a, b);                                    \
    }                                                                                                \
    FLAT_KERNEL mul_##T(const T* a, const T* b, T* y, u32 n) {                                       \
        flat(n, [](float a, float b) { return a * b; }, y, a, b);                                    \
    }
FOR_TYPES(ENTRY)
