// dx = dy · act'(x)
#include "lib/activation.cuh"
#include "lib/flat.cuh"

#define ENTRY(T)                                                                                     \
    FLAT_KERNEL activation_grad_##T(const T* x, const T* dy, T* dx, u32 n, u32 kind) {               \
        flat(n, [=](float v, float d) { return d * act_derivative(kind, v); }, dx, x, dy);           \
    }
FOR_TYPES(ENTRY)
