// y[b] = x[b, index[b]], x [B, count, inner]; NaN for an index out of range.
// Floor: y read and written once.
#include "lib/lines.cuh"

#define ENTRY(BYTES)                                                                                                \
    FLAT_KERNEL gather_##BYTES(const void* x, const i32* index, void* y, u32 n, u32 count, DIVISOR(inner)) {        \
        Divisor inner = AS_DIVISOR(inner);                                                                          \
        move_units<BYTES>(n, y, [=](u32 i) {                                                                        \
            Divided at = divide(i, inner);                                                                          \
            u32 k = u32(index[at.quotient]);                                                                        \
            u32 from = (at.quotient * count + k) * inner.size + at.rest;                                            \
            return k < count ? load_unit<BYTES>(x, from) : fill_unit<BYTES>(0x7fc00000);                            \
        });                                                                                                         \
    }
ENTRY(16)
ENTRY(4)
