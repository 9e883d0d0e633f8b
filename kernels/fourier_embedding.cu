// t [B], freqs [half] -> y [B, 2 half]: sines and cosines of 2 pi freqs t, or of 2 pi freqs ln t.
// Floor: y written once; some kilobytes. A thread makes a sine and its cosine.
#include "lib/lines.cuh"
#include "lib/wave.cuh"

FLAT_KERNEL fourier_embedding_f32(const f32* t, const f32* freqs, f32* y, u32 n, DIVISOR(half), u32 of_log, u32 cosines_first) {
    u64 i = u64(blockIdx.x) * FLAT_THREADS + threadIdx.x;
    if (i >= n) return;
    Divisor half = AS_DIVISOR(half);
    Divided at = divide(u32(i), half);
    double time = t[at.quotient];
    Wave w = wave((of_log ? log(time) : time) * double(freqs[at.rest]));
    f32* row = y + u64(at.quotient) * 2 * half.size + at.rest;
    row[0] = cosines_first ? w.cosine : w.sine;
    row[half.size] = cosines_first ? w.sine : w.cosine;
}
