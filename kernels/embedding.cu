// y[n] = table[index[n]], rows of c; NaN, of whatever type, for an index out of range.
// Floor: the rows read once, y written once; an index is read once a unit, from the L1.
#include "lib/lines.cuh"

#define ENTRY(BYTES)                                                                                                \
    FLAT_KERNEL embedding_##BYTES(const void* table, const i32* index, void* y, u32 n, u32 rows, DIVISOR(c)) {      \
        Divisor c = AS_DIVISOR(c);                                                                                  \
        move_units<BYTES>(n, y, [=](u32 i) {                                                                        \
            Divided at = divide(i, c);                                                                              \
            u32 row = u32(index[at.quotient]);                                                                      \
            return row < rows ? load_unit<BYTES>(table, row * c.size + at.rest) : fill_unit<BYTES>(0x7fff7fff);     \
        });                                                                                                         \
    }
ENTRY(16)
ENTRY(4)
ENTRY(2)
