// Sines and cosines of many turns, to 1e-7: the turns and their fraction in f64, in which a thousand turns are good to 1e-13, then an eighth of a
// turn in f32. Sines of the CUDA library are exact for large angles too, but need a stack for it.
#pragma once
#include "types.cuh"

struct Wave {
    float sine, cosine;
};

// Of 2 pi turns. NaN and infinity give NaN.
__device__ __forceinline__ Wave wave(double turns) {
    turns -= rint(turns);
    double quarter = rint(4.0 * turns);
    float a = float((turns - 0.25 * quarter) * 6.283185307179586), b = a * a;
    float s = a + a * b * (-1.0f / 6 + b * (1.0f / 120 + b * (-1.0f / 5040 + b * (1.0f / 362880))));
    float c = 1.0f + b * (-0.5f + b * (1.0f / 24 + b * (-1.0f / 720 + b * (1.0f / 40320 - b * (1.0f / 3628800)))));
    int q = int(quarter);
    float sine = q & 1 ? c : s, cosine = q & 1 ? s : c;
    return {q & 2 ? -sine : sine, (q + 1) & 2 ? -cosine : cosine};
}

// A number of f64 among an entry's parameters, which are of 32 bits.
#define F64(name) u32 name##_low, u32 name##_high
#define AS_F64(name) __hiloint2double(int(name##_high), int(name##_low))

// first · ratio^n by squaring: off by a few roundings of f64.
__device__ __forceinline__ double frequency(double first, double ratio, u32 n) {
#pragma unroll 1
    for (; n > 0; n >>= 1, ratio *= ratio)
        if (n & 1) first *= ratio;
    return first;
}
