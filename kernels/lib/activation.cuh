// Pointwise nonlinearities and their derivatives; the numbers are those of `ops::Activation`.
#pragma once
#include "types.cuh"

constexpr float SQRT_2_OVER_PI = 0.7978845608f;

enum Activation : u32 { IDENTITY, SILU, GELU, GELU_TANH, RELU };

// 2^x to 2 ulp, and 1/x to 1 ulp; what is below the smallest normal number is zero.
__device__ __forceinline__ float exp2_near(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float reciprocal_near(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// To 2^-11, of it.
__device__ __forceinline__ float tanh_near(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// To 2e-7.
__device__ __forceinline__ float sigmoid(float x) { return reciprocal_near(1.0f + exp2_near(-1.44269504f * x)); }

// e^(-x²/2)
__device__ __forceinline__ float bell(float x) { return exp2_near(-0.72134752f * x * x); }

// The normal distribution function, to 2e-7 (Abramowitz & Stegun 1964, 7.1.26): 15 instructions, where that by `erfcf` has about 60, more than
// memory leaves time for in 16 bits.
__device__ __forceinline__ float normal_cdf(float x) {
    float t = reciprocal_near(fmaf(0.231641888f, fabsf(x), 1.0f));
    float tail = 0.127414796f + t * (-0.142248368f + t * (0.7107068705f + t * (-0.7265760135f + t * 0.5307027145f)));
    tail *= t * bell(x);
    return x < 0.0f ? tail : 1.0f - tail;
}

// x Φ(x), where products in 16 bits are ended: to 2^-18 of it down to x = -6, and to 0 behind that. What x Φ(x) lacks to max(x, 0) is -|x| Φ(-|x|), whose
// logarithm a polynomial of few terms is near; so it takes one instruction of those that a multiprocessor makes 16 of a cycle, where `normal_cdf` takes two, and
// 10 in all where x by that takes 14. Infinities become NaN.
__device__ __forceinline__ float gelu_near(float x) {
    float a = fabsf(x), p = -1.834810998e-06f;
    p = fmaf(p, a, 6.159828679e-05f);
    p = fmaf(p, a, -0.0009305248111f);
    p = fmaf(p, a, 0.00850789087f);
    p = fmaf(p, a, -0.0539600693f);
    p = fmaf(p, a, -0.4584643928f);
    p = fmaf(p, a, -1.151251045f);
    p = fmaf(p, a, -0.9999952945f);
    return fmaf(-a, exp2_near(p), fmaxf(x, 0.0f));
}

// (1 + tanh(u)) / 2 of GELU's approximation.
__device__ __forceinline__ float gelu_gate(float x) {
    return sigmoid(2.0f * SQRT_2_OVER_PI * (x + 0.044715f * x * x * x));
}

__device__ __forceinline__ float act(u32 kind, float x) {
    switch (kind) {
        case SILU: return x * sigmoid(x);
        case GELU: return x * normal_cdf(x);
        case GELU_TANH: return x * gelu_gate(x);
        // NaN stays NaN, which `fmaxf` would hide.
        case RELU: return x < 0.0f ? 0.0f : x;
        default: return x;
    }
}

__device__ __forceinline__ float act_derivative(u32 kind, float x) {
    switch (kind) {
        case SILU: {
            float g = sigmoid(x);
            return g * (1.0f + x * (1.0f - g));
        }
        case GELU: return normal_cdf(x) + x * 0.3989422804f * bell(x);
        case GELU_TANH: {
            float g = gelu_gate(x);
            return g + x * 2.0f * g * (1.0f - g) * SQRT_2_OVER_PI * (1.0f + 0.134145f * x * x);
        }
        case RELU: return x > 0.0f ? 1.0f : 0.0f;
        default: return 1.0f;
    }
}

// SiLU, or the identity as a SiLU whose gate is open whatever x is: one code for both.
struct Gated {
    float rate, open;

    __device__ __forceinline__ Gated(bool silu) : rate(silu ? -1.44269504f : 0.0f), open(silu ? 0.0f : -1000.0f) {}

    __device__ __forceinline__ float gate(float x) const { return reciprocal_near(1.0f + exp2_near(fmaf(x, rate, open))); }

    __device__ __forceinline__ float value(float x) const { return x * gate(x); }

    __device__ __forceinline__ float derivative(float x) const {
        float g = gate(x);
        return g * (1.0f + x * (1.0f - g));
    }
};
