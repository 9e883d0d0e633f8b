// dx [B, count, inner]: dy [B, inner] at the index of b, zero elsewhere.
// Floor: dy read once, dx written once.
#include "lib/lines.cuh"

#define ENTRY(BYTES)                                                                                                \
    FLAT_KERNEL gather_grad_##BYTES(const void* dy, const i32* index, void* dx, u32 n, DIVISOR(count),              \
                                    DIVISOR(inner)) {                                                               \
        Divisor count = AS_DIVISOR(count), inner = AS_DIVISOR(inner);                                               \
        move_units<BYTES>(n, dx, [=](u32 i) {                                                                       \
            Divided at = divide(i, inner), row = divide(at.quotient, count);                                        \
            bool here = u32(index[row.quotient]) == row.rest;                                                       \
            return here ? load_unit<BYTES>(dy, row.quotient * inner.size + at.rest) : fill_unit<BYTES>(0);          \
        });                                                                                                         \
    }
ENTRY(16)
ENTRY(4)
