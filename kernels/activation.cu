// y = act(x)
#include "lib/activation.cuh"
#include "lib/flat.cuh"

#define ENTRY(T)                                                             \
    FLAT_KERNEL activation_##T(const T* x, T* y, u32 n, u32 kind) {          \
        flat(n, [=](float v) { return act(kind, v); }, y, x);                \
    }
FOR_TYPES(ENTRY)
