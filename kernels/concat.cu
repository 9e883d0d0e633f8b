// y = a | b | c | d: rows of `width` units, of which the launch makes `made` from column `start` on, and each input gives some. An input
// that is not there gives none.
// Floor: every input read once, y written once; up to four inputs are one launch. One division a unit.
#include "lib/lines.cuh"

#define ENTRY(BYTES)                                                                                                \
    FLAT_KERNEL concat_##BYTES(const void* a, const void* b, const void* c, const void* d, void* y, u32 n,          \
                               u32 of_a, u32 of_b, u32 of_c, u32 of_d, u32 start, u32 width, DIVISOR(made)) {       \
        Divisor made = AS_DIVISOR(made);                                                                            \
        auto read = [=](u32 i) {                                                                                    \
            Divided at = divide(i, made);                                                                           \
            u32 col = at.rest, run = of_a;                                                                          \
            const void* x = a;                                                                                      \
            if (col >= run) col -= run, run = of_b, x = b;                                                          \
            if (col >= run) col -= run, run = of_c, x = c;                                                          \
            if (col >= run) col -= run, run = of_d, x = d;                                                          \
            return load_unit<BYTES>(x, at.quotient * run + col);                                                    \
        };                                                                                                          \
        move_units<BYTES>(n, y, read, [=](u32 i) {                                                                  \
            Divided at = divide(i, made);                                                                           \
            return at.quotient * width + start + at.rest;                                                           \
        });                                                                                                         \
    }
FOR_UNITS(ENTRY)
