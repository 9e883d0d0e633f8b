// t [B] -> y [B, dim]: sines and cosines of t times the frequencies ratio^j, j < dim / 2, and a zero if dim is odd.
// Floor: y written once; some kilobytes. A thread makes a sine and its cosine, for one time and frequency, or that zero.
#include "lib/lines.cuh"
#include "lib/wave.cuh"

// `first` is the turns of a unit of t at the frequency 1.
FLAT_KERNEL timestep_embedding_f32(const f32* t, f32* y, u32 n, DIVISOR(width), u32 dim, u32 cosines_first, F64(first),
                                   F64(ratio)) {
    u64 i = u64(blockIdx.x) * FLAT_THREADS + threadIdx.x;
    if (i >= n) return;
    Divided at = divide(u32(i), AS_DIVISOR(width));
    u32 half = dim / 2, j = at.rest;
    f32* row = y + u64(at.quotient) * dim;
    if (j == half) {
        row[dim - 1] = 0.0f;
        return;
    }
    Wave w = wave(double(t[at.quotient]) * frequency(AS_F64(first), AS_F64(ratio), j));
    row[j] = cosines_first ? w.cosine : w.sine;
    row[half + j] = cosines_first ? w.sine : w.cosine;
}
