// y = `before` zeros | x | zeros: rows of `width` units, of which x has `run`.
// Floor: x read once, y written once. One division a unit.
#include "lib/lines.cuh"

#define ENTRY(BYTES)                                                                                                \
    FLAT_KERNEL pad_##BYTES(const void* x, void* y, u32 n, u32 before, u32 run, DIVISOR(width)) {                   \
        Divisor width = AS_DIVISOR(width);                                                                          \
        move_units<BYTES>(n, y, [=](u32 i) {                                                                        \
            Divided at = divide(i, width);                                                                          \
            u32 col = at.rest - before;                                                                             \
            return col < run ? load_unit<BYTES>(x, at.quotient * run + col) : fill_unit<BYTES>(0);                  \
        });                                                                                                         \
    }
FOR_UNITS(ENTRY)
