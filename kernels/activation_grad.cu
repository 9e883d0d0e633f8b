// dx = dy · act'(x)
#include "lib/activation.cuh"
#include "lib/flat.cuh"

FLAT_KERNEL activation_grad_f32(const f32* x, const f32* dy, f32* dx, u32 n, u32 kind) {
    flat(n, [=](float v, float d) { return d * act_derivative(kind, v); }, dx, x, dy);
}
