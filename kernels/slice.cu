// y = x[.., start .. start + run, ..]: rows of `from` units, of which y has `run`.
// Floor: y read and written once. One division a unit.
#include "lib/lines.cuh"

#define ENTRY(BYTES)                                                                                                \
    FLAT_KERNEL slice_##BYTES(const void* x, void* y, u32 n, u32 from, u32 start, DIVISOR(run)) {                   \
        Divisor run = AS_DIVISOR(run);                                                                              \
        move_units<BYTES>(n, y, [=](u32 i) {                                                                        \
            Divided at = divide(i, run);                                                                            \
            return load_unit<BYTES>(x, at.quotient * from + start + at.rest);                                       \
        });                                                                                                         \
    }
FOR_UNITS(ENTRY)
