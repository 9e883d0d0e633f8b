// x [B, H, W, C] -> y [B, height, width, C]: y[o, p] = x[o H / height, p W / width].
// Floor: y written once, of x what is asked for read once; where y is larger, neighbours read the same from the L1. Units are of pixels.
#include "lib/lines.cuh"

#define ENTRY(BYTES)                                                                                                \
    FLAT_KERNEL resize_nearest_##BYTES(const void* x, void* y, u32 n, u32 h, u32 w, DIVISOR(c), DIVISOR(height),    \
                                       DIVISOR(width)) {                                                            \
        Divisor c = AS_DIVISOR(c), height = AS_DIVISOR(height), width = AS_DIVISOR(width);                          \
        move_units<BYTES>(n, y, [=](u32 i) {                                                                        \
            Divided at = divide(i, c), pixel = divide(at.quotient, width), line = divide(pixel.quotient, height);   \
            u32 row = line.quotient * h + quotient(line.rest * h, height);                                          \
            return load_unit<BYTES>(x, (row * w + quotient(pixel.rest * w, width)) * c.size + at.rest);             \
        });                                                                                                         \
    }
FOR_UNITS(ENTRY)
